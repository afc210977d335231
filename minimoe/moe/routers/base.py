"""BASE: the assignment of equally many tokens to each expert with the largest sum of scores.  No balance loss."""

from typing import NamedTuple

import numpy as np

from minimoe.moe import gates, linear_assignment, routing
from minimoe.moe.facts import Facts, Rule
from minimoe.moe.routers import softmax_topk
from minimoe.nn import ops

FACTS = Facts(
    summary="the best assignment of equally many tokens to each expert (BASE)",
    top_k=1,
    causal=False,
    evaluation="the best expert for each token on its own",
    kept_scores=3,
    forward_scores=4,
    backward_scores=4,
    explorer=Rule(numbers=lambda routing, weights: {"gate_TE": ops.sigmoid_forward(routing.logit_TE.real)[0]},
                  gate="the sigmoid of the score"),
)

weights = softmax_topk.weights


class BaseCache(NamedTuple):
    """The caches of the scores, the probabilities and the gates, and the expert of each token."""

    linear: ops.ProductCache
    softmax: np.ndarray
    sigmoid: np.ndarray
    token_A: np.ndarray
    expert_A: np.ndarray


def forward(x_TD, weights, config, tokens, training=False, rng=None, replay=None):
    """One expert per token: in training by balanced assignment, in evaluation the best one.

        maximize the sum of x_t . w_e(t), every expert having T / E tokens;  g = sigmoid(x . w_e)

                                                        [BASE, arXiv:2103.16716, sec. 3]
    The paper writes y = g F(x) + (1 - g) x, where F(x) = x + E(x) includes the residual.  That equals x + g E(x), and
    our block adds the x.  If E does not divide T, loads differ by at most one.  Returns a Routing, cache.
    """
    logit_TE, linear = ops.linear_forward(x_TD, weights["w_router_DE"])
    prob_TE, softmax = ops.softmax_forward(logit_TE)
    score_TE, sigmoid = ops.sigmoid_forward(logit_TE)
    expert_TK = gates.top_k_experts(logit_TE, 1)
    if training:
        expert_TK[tokens.mask_T, 0] = linear_assignment.balanced_assignment(logit_TE.real[tokens.mask_T])
    if replay is not None:
        expert_TK[replay.token_A, replay.rank_A] = replay.expert_A
    token_A, expert_A, rank_A = gates.assignments_by_token(expert_TK, tokens.mask_T)
    gate_A = score_TE[token_A, expert_A]
    result = routing.dropless_routing(token_A, expert_A, rank_A, gate_A, logit_TE, prob_TE, tokens)
    return result, BaseCache(linear, softmax, sigmoid, token_A, expert_A)


def backward(grad, cache):
    """Gradients of x_TD and, as a dict, of the weights.  grad: RoutingGrad."""
    dscore_TE = np.zeros_like(grad.dprob_TE)
    dscore_TE[cache.token_A, cache.expert_A] = grad.dgate_A
    dlogit_TE = grad.dlogit_TE + ops.softmax_backward(grad.dprob_TE, cache.softmax)
    dlogit_TE = dlogit_TE + ops.sigmoid_backward(dscore_TE, cache.sigmoid)
    dx_TD, dw_router_DE = ops.linear_backward(dlogit_TE, cache.linear)
    return dx_TD, {"w_router_DE": dw_router_DE}
