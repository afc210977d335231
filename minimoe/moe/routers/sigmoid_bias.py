"""DeepSeek-V3: a score of its own for each expert, and a bias that balances the choice without touching the gates."""

from typing import NamedTuple

import numpy as np

from minimoe.moe import gates, routing
from minimoe.moe.facts import Facts, Rule
from minimoe.nn import ops
from minimoe.parameters import Weight

LEAST_SCORE = 1e-30
"""Added to every score: a token that all experts score 0 would have gates of 0 / 0."""


def biased_scores(routing, weights):
    """The numbers that choose and those that weigh, as the explorer shows them."""
    score_TE = ops.sigmoid_forward(routing.logit_TE.real)[0] + LEAST_SCORE
    return {"choice_TE": score_TE + weights["bias_E"].real, "gate_TE": score_TE}


FACTS = Facts(
    summary="sigmoid scores; a bias that no gradient moves balances the choice (DeepSeek-V3)",
    losses=dict(sequence=0.0001),
    options=("renormalize", "bias_rate", "n_groups", "top_groups", "gate_scale"),
    evaluation="the same as in training; the biases stay",
    has_bias=True,
    kept_scores=4,
    forward_scores=2,
    backward_scores=3,
    explorer=Rule(numbers=biased_scores, chosen_by="sigmoid + bias", gate="the sigmoid of the score"),
)


def weights(config, std):
    """One score per expert, linear in the token; and its bias, which starts at 0 and is moved by `after_step` alone."""
    return {"w_router_DE": Weight((config.d_model, config.n_experts), std),
            "bias_E": Weight((config.n_experts,), 0.0)}


class SigmoidBiasCache(NamedTuple):
    """Of the scores before and after the sigmoid, of the gates, and how scores became probabilities and gates."""

    linear: ops.ProductCache
    sigmoid: np.ndarray
    gates: gates.GatesCache
    prob_TE: np.ndarray
    sum_T1: np.ndarray
    gate_scale: float


def forward(x_TD, weights, config, tokens, training=False, rng=None, replay=None):
    """The K experts with the highest score + bias; the gates come from the scores alone.

        s = sigmoid(x W);  choose by s + b;  g = scale * s / sum over the K chosen of s

                                                        [DeepSeek-V3, arXiv:2412.19437, sec. 2.1.2]
    n_groups, top_groups: a token's experts are in few groups of experts, so that it travels to few nodes.  For losses
    the distribution over all experts is s / sum of s.  Returns a Routing, cache.
    """
    logit_TE, linear = ops.linear_forward(x_TD, weights["w_router_DE"])
    score_TE, sigmoid = ops.sigmoid_forward(logit_TE)
    score_TE = score_TE + LEAST_SCORE
    sum_T1 = score_TE.sum(axis=1, keepdims=True)
    prob_TE = score_TE / sum_T1
    biased_TE = within_groups(score_TE.real + weights["bias_E"].real, config)
    expert_TK = gates.top_k_experts(biased_TE, config.top_k, replay)
    assigned, weighed = gates.gates_forward(score_TE, expert_TK, tokens.mask_T, config.gates_sum_to_one)
    token_A, expert_A, rank_A, gate_A = assigned
    result = routing.dropless_routing(token_A, expert_A, rank_A, config.gate_scale * gate_A, logit_TE, prob_TE, tokens)
    return result, SigmoidBiasCache(linear, sigmoid, weighed, prob_TE, sum_T1, config.gate_scale)


def backward(grad, cache):
    """Gradients of x_TD and, as a dict, of the weights; the bias only chooses, and has none.  grad: RoutingGrad."""
    dscore_TE = gates.gates_backward(cache.gate_scale * grad.dgate_A, cache.gates)
    expected_T1 = (grad.dprob_TE * cache.prob_TE).sum(axis=1, keepdims=True)
    dscore_TE += (grad.dprob_TE - expected_T1) / cache.sum_T1  # prob = score / sum of scores
    dlogit_TE = grad.dlogit_TE + ops.sigmoid_backward(dscore_TE, cache.sigmoid)
    dx_TD, dw_router_DE = ops.linear_backward(dlogit_TE, cache.linear)
    return dx_TD, {"w_router_DE": dw_router_DE, "bias_E": np.zeros_like(dlogit_TE[0])}


def after_step(weights, count_E, config):
    """The weights that change after an optimiser step: biases go down for experts above the mean load, up below it.

        b_e -/+ rate                                            [DeepSeek-V3, arXiv:2412.19437, sec. 2.1.2]

    count_E: the step's assignments of each expert, before capacity.
    """
    bias_E = weights["bias_E"]
    step_E = config.bias_rate * np.sign(count_E.mean() - count_E)
    return {"bias_E": bias_E + step_E.astype(bias_E.dtype)}


def within_groups(score_TE, config):
    """The scores, and -inf for the experts outside of a token's best groups.

    A group's score is the sum of its K / top_groups best experts' scores.  Not 0 but -inf: a score can be negative.
    """
    if config.top_groups == config.n_groups:
        return score_TE
    by_group = score_TE.reshape(len(score_TE), config.n_groups, -1)
    n_best = max(config.top_k // config.top_groups, 1)
    group_score = -np.sort(-by_group, axis=2)[:, :, :n_best].sum(axis=2)
    allowed = np.zeros(group_score.shape, bool)
    np.put_along_axis(allowed, gates.top_k_experts(group_score, config.top_groups), True, axis=1)
    return np.where(allowed[:, :, None], by_group, -np.inf).reshape(score_TE.shape)
