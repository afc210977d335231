"""DeepSeek-V3: a sigmoid score for each expert, and a bias that balances the choice without changing the gates."""

from typing import NamedTuple

import numpy as np

from minimoe.moe import gates, routing
from minimoe.moe.facts import Facts, Rule
from minimoe.nn import ops
from minimoe.parameters import Weight

GROUP_SCORES = {
    "top2": lambda config: 2,
    "paper": lambda config: max(config.top_k // config.top_groups, 1),
}
"""Name -> function of the configuration that returns how many of a group's best scores are summed into its score.

"top2": two, whatever K is, as in the code of released checkpoints (deepseek-ai/DeepSeek-V3, inference/model.py).
"paper": K / top_groups, as many as a token has in a group on average     [DeepSeek-V3, arXiv:2412.19437, sec. 2.1.2].
For DeepSeek-V3 itself, with K = 8 in 4 groups, both give the same.
"""


def chosen_by(routing, weights):
    """The numbers that choose experts, those that break ties, and those that give the gates, for the explorer."""
    logit_TE = routing.logit_TE.real
    score_TE, _ = ops.sigmoid_forward(logit_TE)
    return {"choice_TE": score_TE + weights["bias_E"].real, "gate_TE": score_TE,
            "tie_TE": np.where(_faint(score_TE)[:, None], logit_TE, 0), "log_TE": ops.log_sigmoid_forward(logit_TE)[0]}


FACTS = Facts(
    summary="sigmoid scores, and a bias without a gradient that balances the choice (DeepSeek-V3)",
    losses=dict(sequence=0.0001),
    options=("renormalize", "bias_rate", "n_groups", "top_groups", "group_score", "gate_scale"),
    settings={"1 group of 2": dict(n_groups=2, top_groups=1, gate_scale=2.5)},
    evaluation="the same as in training; the biases do not change",
    has_bias=True,
    kept_scores=4,
    forward_scores=2,
    backward_scores=3,
    explorer=Rule(numbers=chosen_by, shares="log_TE", chosen_by="sigmoid + bias", gate="the sigmoid of the score"),
)


def weights(config, std):
    """One score per expert, linear in the token; and its bias, which starts at 0 and is changed by `after_step`."""
    return {"w_router_DE": Weight((config.d_model, config.n_experts), std),
            "bias_E": Weight((config.n_experts,), 0.0)}


class SigmoidBiasCache(NamedTuple):
    """The caches of the scores, of their logarithms, of the gates, and of the probabilities.

    logit_TE: cache of the log-sigmoid.   softmax: prob_TE.   gates: GatesCache (raw) or SharesCache (renormalized).
    """

    linear: ops.ProductCache
    sigmoid: np.ndarray
    log_sigmoid: np.ndarray
    softmax: np.ndarray
    gates: gates.GatesCache | gates.SharesCache
    gate_scale: float


def forward(x_TD, weights, config, tokens, training=False, rng=None, replay=None):
    """The K experts with the highest score + bias; the gates come from the scores alone.

        s = sigmoid(x W);  choose by s + b;  g = scale * s / sum over the K chosen of s

                                                        [DeepSeek-V3, arXiv:2412.19437, sec. 2.1.2]
    n_groups, top_groups: a token's experts are in few groups of experts, so that it is sent to few nodes.  The losses
    use s / sum of s as the distribution over all experts.  Both quotients are computed as softmaxes of log s, so the
    ratios survive however small all scores of a token are.  Returns a Routing, cache.
    """
    logit_TE, linear = ops.linear_forward(x_TD, weights["w_router_DE"])
    score_TE, sigmoid = ops.sigmoid_forward(logit_TE)
    log_TE, log_sigmoid = ops.log_sigmoid_forward(logit_TE)
    prob_TE, softmax = ops.softmax_forward(log_TE)
    expert_TK = _chosen(score_TE.real, weights["bias_E"].real, logit_TE.real, config, replay)
    if config.gates_sum_to_one:
        assigned, weighed = gates.shares_forward(log_TE, expert_TK, tokens.mask_T)
    else:
        assigned, weighed = gates.gates_forward(score_TE, expert_TK, tokens.mask_T, False)
    token_A, expert_A, rank_A, gate_A = assigned
    result = routing.dropless_routing(token_A, expert_A, rank_A, config.gate_scale * gate_A, logit_TE, prob_TE, tokens)
    return result, SigmoidBiasCache(linear, sigmoid, log_sigmoid, softmax, weighed, config.gate_scale)


def backward(grad, cache):
    """Gradients of x_TD and, as a dict, of the weights; the bias only chooses and gets none.  grad: RoutingGrad."""
    dgate_A, dlogit_TE = cache.gate_scale * grad.dgate_A, grad.dlogit_TE
    dlog_TE = ops.softmax_backward(grad.dprob_TE, cache.softmax)  # prob = softmax(log)
    if isinstance(cache.gates, gates.SharesCache):
        dlog_TE += gates.shares_backward(dgate_A, cache.gates)
    else:
        dlogit_TE = dlogit_TE + ops.sigmoid_backward(gates.gates_backward(dgate_A, cache.gates), cache.sigmoid)
    dlogit_TE = dlogit_TE + ops.log_sigmoid_backward(dlog_TE, cache.log_sigmoid)
    dx_TD, dw_router_DE = ops.linear_backward(dlogit_TE, cache.linear)
    return dx_TD, {"w_router_DE": dw_router_DE, "bias_E": np.zeros_like(dlogit_TE[0])}


def after_step(weights, count_E, config):
    """The weights that change after an optimizer step: a bias goes down if its expert's load is above average, else up.

        b_e -/+ rate                                            [DeepSeek-V3, arXiv:2412.19437, sec. 2.1.2]

    count_E: the step's assignments of each expert, before capacity.
    """
    bias_E = weights["bias_E"]
    step_E = config.bias_rate * np.sign(count_E.mean() - count_E)
    return {"bias_E": bias_E + step_E.astype(bias_E.dtype)}


def _chosen(score_TE, bias_E, logit_TE, config, replay):
    """The K best by score + bias.  Where sums are equal after rounding, the logits decide."""
    biased_TE, faint_T = score_TE + bias_E, _faint(score_TE)
    expert_TK = gates.top_k_experts(within_groups(biased_TE, config), config.top_k, replay)
    if replay is None and faint_T.any():
        ties = logit_TE[faint_T]
        expert_TK[faint_T] = _best(within_groups(biased_TE[faint_T], config, ties), ties, config.top_k)
    return expert_TK


def _faint(score_TE):
    """Tokens with a score so small that adding it to a bias can be lost in rounding, or so close to 1 that its last
    digit is more than 1 % of the distance.  Returns faint_T."""
    eps = np.finfo(score_TE.dtype).eps
    return (score_TE.min(axis=1) < eps) | (1 - score_TE.max(axis=1) < 100 * eps)


def _best(score_TE, tie_TE, top_k):
    """Like `gates.top_k_experts`, but ties go to the larger tie_TE, and then to the expert with the lowest number."""
    return np.lexsort((-tie_TE, -score_TE), axis=-1)[:, :top_k]


def within_groups(score_TE, config, tie_TE=None):
    """The scores, and -inf for the experts outside a token's best groups.

    A group's score is the sum of its best experts' scores; GROUP_SCORES says how many.  Ties go to the group with the
    largest tie_TE.  The excluded get -inf rather than 0, since a score can be negative.
    """
    if config.top_groups == config.n_groups:
        return score_TE
    by_group = score_TE.reshape(len(score_TE), config.n_groups, -1)
    n_best = GROUP_SCORES[config.group_score](config)
    group_score = -np.sort(-by_group, axis=2)[:, :, :n_best].sum(axis=2)
    if tie_TE is None:
        groups = gates.top_k_experts(group_score, config.top_groups)
    else:
        groups = _best(group_score, tie_TE.reshape(by_group.shape).max(axis=2), config.top_groups)
    allowed = np.zeros(group_score.shape, bool)
    np.put_along_axis(allowed, groups, True, axis=1)
    return np.where(allowed[:, :, None], by_group, -np.inf).reshape(score_TE.shape)
