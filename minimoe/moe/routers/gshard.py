"""GShard: the two best experts, the second at random in proportion to its gate, which saves room if it is weak."""

import numpy as np

from minimoe.moe import gates, routing
from minimoe.moe.facts import Facts, Rule
from minimoe.moe.routers import softmax_topk
from minimoe.nn import ops

SURE, LEAST = 0.5, -1.0
"""Gate share from which a second expert is always used in training; share that it must exceed in evaluation (any does).
ST-MoE has different values."""

FACTS = Facts(
    summary="the two best, the second at random in proportion to its gate (GShard)",
    losses=dict(balance=0.01),
    options=("renormalize",),
    first_choices=True,
    top_k=2,
    evaluation="the second expert is always used",
    explorer=Rule(least_share=LEAST),
)

weights = softmax_topk.weights


def forward(x_TD, weights, config, tokens, training=False, rng=None, replay=None, sure=SURE, least=LEAST):
    """Softmax top-2; in training the second expert is used with probability min(1, 2 g_2).

        g_i = p_i / (p_1 + p_2)                                 [GShard, arXiv:2006.16668, algorithm 1]

    If the second is not used, the first gate does not change.  Returns a Routing, cache.
    """
    logit_TE, linear = ops.linear_forward(x_TD, weights["w_router_DE"])
    prob_TE, softmax = ops.softmax_forward(logit_TE)
    expert_TK = gates.top_k_experts(logit_TE, config.top_k, replay)
    sent_TK = _used(np.take_along_axis(prob_TE.real, expert_TK, axis=1), training, rng, sure, least)
    if replay is not None:
        sent_TK = np.zeros_like(sent_TK)
        sent_TK[replay.token_A, replay.rank_A] = True
    sent_TK &= tokens.mask_T[:, None]
    assigned, weighed = gates.gates_forward(prob_TE, expert_TK, sent_TK, config.gates_sum_to_one)
    return (routing.dropless_routing(*assigned, logit_TE, prob_TE, tokens),
            softmax_topk.SoftmaxTopKCache(linear, softmax, weighed))


def backward(grad, cache):
    """Gradients of x_TD and, as a dict, of the weights.  The random choice has none.  grad: RoutingGrad."""
    return softmax_topk.backward(grad, cache)


def _used(prob_TK, training, rng, sure, least):
    """Which of a token's choices are used; the first one always is."""
    share_TK = prob_TK / prob_TK.sum(axis=1, keepdims=True)
    used_TK = share_TK > least
    if training:
        used_TK = routing.require_rng(rng, "router 'gshard' or 'st_moe'").random(share_TK.shape) * sure < share_TK
    used_TK[:, 0] = True
    return used_TK
