"""Expert choice: the experts choose the tokens.  Balanced by design but not causal: tokens compete with later ones."""

from typing import NamedTuple

import numpy as np

from minimoe.moe import capacity, routing
from minimoe.moe.facts import Facts, Rule
from minimoe.moe.routers import softmax_topk
from minimoe.nn import ops

FACTS = Facts(
    summary="each expert takes the tokens that it scores highest, and so looks into the future",
    k_is_mean=True,
    causal=False,
    causal_in_evaluation=False,
    evaluation="the same as in training: over all tokens of the batch",
    forward_scores=3,
    explorer=Rule("experts"),
)

weights = softmax_topk.weights


class ExpertChoiceCache(NamedTuple):
    """The caches of the scores and the probabilities, and which pairs are chosen."""

    linear: ops.ProductCache
    softmax: np.ndarray
    token_A: np.ndarray
    expert_A: np.ndarray


def forward(x_TD, weights, config, tokens, training=False, rng=None, replay=None):
    """Each expert takes the C = K T / E tokens with the highest probability for it; a token may get 0 to E experts.

        S = softmax(x W);  g = S of the pairs that are chosen           [Zhou 2022, arXiv:2202.09368, eq. 1]

    K is the mean number of experts per token, the paper's c.  Ties go to the earlier token.
    Returns a Routing, cache.
    """
    logit_TE, linear = ops.linear_forward(x_TD, weights["w_router_DE"])
    prob_TE, softmax = ops.softmax_forward(logit_TE)
    if replay is None:
        token_A, expert_A, rank_A = _choose(prob_TE.real, config.top_k, tokens.mask_T)
    else:
        token_A, expert_A, rank_A = replay.token_A, replay.expert_A, replay.rank_A
    gate_A = prob_TE[token_A, expert_A]
    result = routing.dropless_routing(token_A, expert_A, rank_A, gate_A, logit_TE, prob_TE, tokens)
    return result, ExpertChoiceCache(linear, softmax, token_A, expert_A)


def backward(grad, cache):
    """Gradients of x_TD and, as a dict, of the weights.  grad: RoutingGrad."""
    dprob_TE = grad.dprob_TE.copy()
    dprob_TE[cache.token_A, cache.expert_A] += grad.dgate_A  # pairs are distinct, so += loses nothing
    dlogit_TE = grad.dlogit_TE + ops.softmax_backward(dprob_TE, cache.softmax)
    dx_TD, dw_router_DE = ops.linear_backward(dlogit_TE, cache.linear)
    return dx_TD, {"w_router_DE": dw_router_DE}


def _choose(prob_TE, top_k, mask_T):
    """token_A, expert_A, rank_A, token by token, the most probable expert of a token first."""
    n_tokens, n_experts = int(mask_T.sum()), prob_TE.shape[1]
    room = capacity.capacity(top_k * n_tokens, n_tokens, n_experts, 1) if n_tokens else 0
    order_TE = np.argsort(np.where(mask_T[:, None], -prob_TE, np.inf), axis=0, kind="stable")
    token_A = order_TE[:room].ravel()
    expert_A = np.tile(np.arange(n_experts), room)
    order_A = np.lexsort((expert_A, -prob_TE[token_A, expert_A], token_A))
    token_A, expert_A = token_A[order_A], expert_A[order_A]
    first_A = np.searchsorted(token_A, token_A)
    return token_A, expert_A, np.arange(len(token_A)) - first_A
