"""Sinkhorn: the choice comes from a plan with equal loads, the gates come from the plain probabilities."""

import numpy as np

from minimoe.moe import gates, routing
from minimoe.moe.facts import Facts, Rule
from minimoe.moe.routers import softmax_topk
from minimoe.nn import ops

FACTS = Facts(
    summary="the best of a balanced plan in training, the best scores in evaluation (S-BASE)",
    options=("renormalize",),
    causal=False,
    evaluation="the best plain scores: there is no plan, so other tokens do not matter",
    forward_scores=5,
    explorer=Rule(shares="logit_TE"),
)

TOLERANCE, MOST_ROUNDS = 1e-4, 200

weights = softmax_topk.weights


def forward(x_TD, weights, config, tokens, training=False, rng=None, replay=None):
    """The K largest entries of a token's row in the plan, or of its scores in evaluation; gates from the softmax.

                                                        [S-BASE in Clark 2022, arXiv:2202.01169, sec. 3.1]
    The plan distributes the load evenly, but taking the largest entries rounds it, so the loads are only nearly even.
    No gradient flows through the plan.  Returns a Routing, cache.
    """
    logit_TE, linear = ops.linear_forward(x_TD, weights["w_router_DE"])
    prob_TE, softmax = ops.softmax_forward(logit_TE)
    choice_TE = logit_TE.real.copy()
    if training:
        choice_TE[tokens.mask_T] = plan(choice_TE[tokens.mask_T])
    expert_TK = gates.top_k_experts(choice_TE, config.top_k, replay)
    if config.gates_sum_to_one:  # from logits: the plan can choose experts whose probabilities are all near 0
        assigned, weighed = gates.shares_forward(logit_TE, expert_TK, tokens.mask_T)
    else:
        assigned, weighed = gates.gates_forward(prob_TE, expert_TK, tokens.mask_T, False)
    return (routing.dropless_routing(*assigned, logit_TE, prob_TE, tokens),
            softmax_topk.SoftmaxTopKCache(linear, softmax, weighed))


def backward(grad, cache):
    """Gradients of x_TD and, as a dict, of the weights.  grad: RoutingGrad."""
    if not isinstance(cache.gates, gates.SharesCache):
        return softmax_topk.backward(grad, cache)
    dlogit_TE = grad.dlogit_TE + ops.softmax_backward(grad.dprob_TE, cache.softmax)
    dlogit_TE += gates.shares_backward(grad.dgate_A, cache.gates)
    dx_TD, dw_router_DE = ops.linear_backward(dlogit_TE, cache.linear)
    return dx_TD, {"w_router_DE": dw_router_DE}


def plan(logit_TE):
    """The matrix closest to exp(logit) whose rows sum to 1 and whose columns sum to T / E each.

        alternately: columns / their sum * T / E, rows / their sum      [Sinkhorn 1964; Cuturi 2013, arXiv:1306.0895]

    Stops when every column is within a relative TOLERANCE of T / E, or after MOST_ROUNDS.  Returns plan_TE.
    """
    logit_TE = ops.floats("logit_TE", logit_TE)
    n_tokens, n_experts = logit_TE.shape
    plan_TE = logit_TE - logit_TE.max(axis=1, keepdims=True)
    plan_TE -= plan_TE.max(axis=0, initial=-np.inf)  # otherwise an expert that no token wants has nothing to scale
    plan_TE = np.exp(plan_TE - plan_TE.max(axis=1, keepdims=True))
    plan_TE /= plan_TE.sum(axis=1, keepdims=True)
    for _ in range(MOST_ROUNDS):
        share_E = plan_TE.sum(axis=0) * (n_experts / max(n_tokens, 1))
        if (abs(share_E - 1) < TOLERANCE).all():
            break
        plan_TE /= share_E
        plan_TE /= plan_TE.sum(axis=1, keepdims=True)
    return plan_TE
