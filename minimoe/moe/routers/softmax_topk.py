"""Softmax over all experts, then the K best: the router of Mixtral (renormalized gates) and OLMoE (raw gates)."""

from typing import NamedTuple

import numpy as np

from minimoe.moe import gates, routing
from minimoe.moe.facts import Facts, Rule
from minimoe.nn import ops
from minimoe.parameters import Weight

FACTS = Facts(
    summary="softmax over all experts, then the top_k best; gates sum to 1 (Mixtral) or not (OLMoE)",
    losses=dict(balance=0.01, z=0.001),
    options=("renormalize",),
    explorer=Rule(),
)


def weights(config, std):
    """One score per expert, linear in the token."""
    return {"w_router_DE": Weight((config.d_model, config.n_experts), std)}


class SoftmaxTopKCache(NamedTuple):
    """The caches of the scores, the probabilities and the gates; softmax: prob_TE."""

    linear: ops.ProductCache
    softmax: np.ndarray
    gates: gates.GatesCache | gates.SharesCache


def forward(x_TD, weights, config, tokens, training=False, rng=None, replay=None):
    """Softmax over all experts, keep the K best; the gates are their probabilities, rescaled if the config says so.

        p_TE = softmax(x W);  g_TK = p_TK / sum_K p_TK          [Mixtral, arXiv:2401.04088, sec. 2.1]

    Ties go to the expert with the lowest number.  Returns a Routing of K assignments per token, cache.
    """
    logit_TE, linear = ops.linear_forward(x_TD, weights["w_router_DE"])
    prob_TE, softmax = ops.softmax_forward(logit_TE)
    expert_TK = gates.top_k_experts(logit_TE, config.top_k, replay)
    assigned, weighed = gates.gates_forward(prob_TE, expert_TK, tokens.mask_T, config.gates_sum_to_one)
    return (routing.dropless_routing(*assigned, logit_TE, prob_TE, tokens),
            SoftmaxTopKCache(linear, softmax, weighed))


def backward(grad, cache):
    """Gradients of x_TD and, as a dict, of the weights.  grad: RoutingGrad."""
    dprob_TE = grad.dprob_TE + gates.gates_backward(grad.dgate_A, cache.gates)
    dlogit_TE = grad.dlogit_TE + ops.softmax_backward(dprob_TE, cache.softmax)
    dx_TD, dw_router_DE = ops.linear_backward(dlogit_TE, cache.linear)
    return dx_TD, {"w_router_DE": dw_router_DE}
