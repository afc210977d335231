"""Softmax over all experts, then the K best: the router of Mixtral (renormalised gates) and OLMoE (raw gates)."""

import numpy as np

from minimoe.moe import routing
from minimoe.nn import ops
from minimoe.params import Weight

CAUSAL = True


def weights(config, std):
    """One score an expert, linear in the token."""
    return {"w_router_DE": Weight((config.d_model, config.n_experts), std)}


def forward(x_TD, weights, config, mask_T, replay=None):
    """Softmax over all experts, keep the K best; the gates are their probabilities, rescaled if the config says so.

        p_TE = softmax(x W)
        raw: g = p                                              [OLMoE, arXiv:2409.02060, sec. 2]
        renormalised: g = p / sum over the K chosen of p        [Mixtral, arXiv:2401.04088, sec. 2.1]

    Equal scores go to the expert with the lowest number.  No gradient flows through the choice itself.
    replay: a Routing whose choices are taken instead of the best.  Returns a Routing of K assignments a token, cache.
    """
    logit_TE, linear_cache = ops.linear_forward(x_TD, weights["w_router_DE"])
    prob_TE, softmax_cache = ops.softmax_forward(logit_TE)
    if replay is None:
        best_TE = np.argsort(-logit_TE.real, axis=-1, kind="stable")
        token_A, expert_A, rank_A = routing.by_token(best_TE[:, :config.top_k], mask_T)
    else:
        token_A, expert_A, rank_A = replay.token_A, replay.expert_A, replay.rank_A
    gate_A = prob_TE[token_A, expert_A]
    sum_A = _token_sum(gate_A, config.top_k) if config.gates_sum_to_one else None
    if sum_A is not None:
        gate_A = gate_A / sum_A
    result = routing.without_limit(token_A, expert_A, rank_A, gate_A, logit_TE, prob_TE, mask_T)
    return result, (result, sum_A, config.top_k, linear_cache, softmax_cache)


def backward(dgate_A, dprob_TE, dlogit_TE, cache):
    """Gradients of x_TD and, as a dict, of the weights."""
    result, sum_A, top_k, linear_cache, softmax_cache = cache
    if sum_A is not None:  # gate = p / sum p: only the ratios of the chosen count
        dgate_A = (dgate_A - _token_sum(dgate_A * result.gate_A, top_k)) / sum_A
    dprob_TE = dprob_TE.copy()
    dprob_TE[result.token_A, result.expert_A] += dgate_A  # a token has an expert once, so += loses nothing
    dx_TD, dw_router_DE = ops.linear_backward(ops.softmax_backward(dprob_TE, softmax_cache) + dlogit_TE, linear_cache)
    return dx_TD, {"w_router_DE": dw_router_DE}


def _token_sum(value_A, top_k):
    """For each assignment, the sum over the K assignments of its token."""
    return np.repeat(value_A.reshape(-1, top_k).sum(axis=1), top_k)
