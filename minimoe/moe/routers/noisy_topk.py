"""Noisy top-k: trained noise on the scores lets every expert be tried and makes the expected load differentiable."""

from typing import NamedTuple

import numpy as np

from minimoe.moe import gates, routing
from minimoe.moe.facts import Facts, Rule
from minimoe.nn import normal, ops
from minimoe.parameters import Weight

FACTS = Facts(
    summary="the top_k best after trained noise is added to the scores (Shazeer 2017)",
    losses=dict(importance=0.1, load=0.1),
    options=("renormalize",),
    evaluation="the best scores without noise",
    has_chances=True,
    matrices=2,
    kept_scores=5,
    kept_more=lambda config, n_tokens: 2 * config.d_model * config.n_experts,  # both matrices, side by side
    forward_scores=7,
    backward_scores=9,
    explorer=Rule(),
)

LEAST_SPREAD = 0.01
"""Added to every spread, as in the paper's code in Tensor2Tensor: a spread of 0 would give a load of 0 / 0."""


def weights(config, std):
    """A score and a noise spread for each expert, linear in the token.  Both start at 0, where the load is even."""
    shape = config.d_model, config.n_experts
    return {"w_router_DE": Weight(shape, 0.0), "w_noise_DE": Weight(shape, 0.0)}


class NoisyTopKCache(NamedTuple):
    """The caches of scores and spreads in one product, of the spreads, noise, probabilities, gates and chances.

    spread, softmax: arrays.   chance: None without a load loss.
    """

    linear: ops.ProductCache
    spread: np.ndarray
    noise_TE: np.ndarray
    softmax: np.ndarray
    gates: gates.GatesCache
    chance: "ChanceCache | None"


def forward(x_TD, weights, config, tokens, training=False, rng=None, replay=None):
    """The K best of the noisy scores; the gates are a softmax over those K.

        H = x W + eps * (softplus(x W_noise) + 0.01), eps from N(0, 1);  g = softmax(keep the K best of H)

                                                        [Shazeer 2017, arXiv:1701.06538, eq. 3-5]
    The softmax over the K best scores equals the softmax over all, rescaled to sum to 1 over the K.  Returns a
    Routing, with the chances of all experts if the configuration has a load loss, and the cache.
    """
    w_both = np.concatenate([weights["w_router_DE"], weights["w_noise_DE"]], axis=1)  # one product is faster than two
    both, linear = ops.linear_forward(x_TD, w_both)
    clean_TE, raw_TE = np.split(both, 2, axis=1)
    spread_TE, spread = ops.softplus_forward(raw_TE)
    spread_TE = spread_TE + LEAST_SPREAD
    noise_TE = np.zeros_like(clean_TE.real)
    if training:
        draws_TE = routing.require_rng(rng, "router 'noisy_topk'").standard_normal(clean_TE.shape)
        noise_TE = draws_TE.astype(noise_TE.dtype)
    logit_TE = clean_TE + noise_TE * spread_TE
    prob_TE, softmax = ops.softmax_forward(logit_TE)
    expert_TK = gates.top_k_experts(logit_TE, config.top_k, replay)
    assigned, weighed = gates.gates_forward(prob_TE, expert_TK, tokens.mask_T, config.gates_sum_to_one)
    chance_TE = chance = None
    if config.loss_coefs["load"] > 0:
        chance_TE, chance = chance_forward(clean_TE, spread_TE, logit_TE, expert_TK)
    result = routing.dropless_routing(*assigned, logit_TE, prob_TE, tokens, chance_TE)
    return result, NoisyTopKCache(linear, spread, noise_TE, softmax, weighed, chance)


def backward(grad, cache):
    """Gradients of x_TD and, as a dict, of the weights.  grad: RoutingGrad."""
    dprob_TE = grad.dprob_TE + gates.gates_backward(grad.dgate_A, cache.gates)
    dlogit_TE = grad.dlogit_TE + ops.softmax_backward(dprob_TE, cache.softmax)
    dclean_TE, dspread_TE, dthreshold_TE = chance_backward(grad.dchance_TE, cache.chance)
    dlogit_TE = dlogit_TE + dthreshold_TE
    dclean_TE = dclean_TE + dlogit_TE  # logit = clean + noise * spread
    draw_TE = ops.softplus_backward(dspread_TE + cache.noise_TE * dlogit_TE, cache.spread)
    dx_TD, dw_both = ops.linear_backward(np.concatenate([dclean_TE, draw_TE], axis=1), cache.linear)
    dw_router_DE, dw_noise_DE = np.split(dw_both, 2, axis=1)
    return dx_TD, {"w_router_DE": dw_router_DE, "w_noise_DE": dw_noise_DE}


class ChanceCache(NamedTuple):
    """Which experts are chosen, the last chosen and the next best of each token, and the scores' distances from rivals.

    phi: cache of the normal CDF, an array.
    """

    chosen_TE: np.ndarray
    last_T1: np.ndarray
    next_T1: np.ndarray
    z_TE: np.ndarray
    spread_TE: np.ndarray
    phi: np.ndarray


def chance_forward(clean_TE, spread_TE, logit_TE, expert_TK):
    """Probability that each expert would be among the K best if only its own noise were drawn again.

        P = Phi((clean - threshold) / spread), threshold: the K-th best of the other experts' noisy scores

                                                        [Shazeer 2017, arXiv:1701.06538, eq. 8-9]
    expert_TK: the K best.  A chosen expert has to beat the next best; any other expert has to beat the K-th.  With
    K = E there is no rival, and the chance is 1.  Returns chance_TE, cache.
    """
    top_k, n_experts = expert_TK.shape[1], clean_TE.shape[1]
    if top_k == n_experts:
        return np.ones_like(clean_TE), None
    chosen_TE = np.zeros(clean_TE.shape, bool)
    np.put_along_axis(chosen_TE, expert_TK, True, axis=1)
    last_T1 = expert_TK[:, -1:]
    next_T1 = np.where(chosen_TE, -np.inf, logit_TE.real).argmax(axis=1)[:, None]
    rival_TE = np.where(chosen_TE, next_T1, last_T1)
    z_TE = (clean_TE - np.take_along_axis(logit_TE, rival_TE, axis=1)) / spread_TE
    chance_TE, phi = normal.normal_cdf_forward(z_TE)
    return chance_TE, ChanceCache(chosen_TE, last_T1, next_T1, z_TE, spread_TE, phi)


def chance_backward(dchance_TE, cache):
    """Gradients of clean_TE, spread_TE and logit_TE."""
    if cache is None:
        return (np.zeros_like(dchance_TE),) * 3
    dclean_TE = normal.normal_cdf_backward(dchance_TE, cache.phi) / cache.spread_TE  # z = (clean - rival) / spread
    dlogit_TE = np.zeros_like(dclean_TE)
    by_others_T1 = np.where(cache.chosen_TE, 0, dclean_TE).sum(axis=1, keepdims=True)
    by_chosen_T1 = np.where(cache.chosen_TE, dclean_TE, 0).sum(axis=1, keepdims=True)
    np.put_along_axis(dlogit_TE, cache.last_T1, -by_others_T1, axis=1)
    np.put_along_axis(dlogit_TE, cache.next_T1, -by_chosen_T1, axis=1)
    return dclean_TE, -cache.z_TE * dclean_TE, dlogit_TE
