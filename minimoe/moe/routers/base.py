"""BASE: the assignment of equally many tokens to each expert with the largest sum of scores.  No loss to balance."""

import numpy as np

from minimoe.moe import routing
from minimoe.moe.routers import softmax_topk
from minimoe.nn import ops

CAUSAL = False
CAUSAL_IN_EVALUATION = True
NEEDS_TOKEN_IDS = False
EVALUATION = "the best expert of each token by itself"

PRICE_ROUNDS = 60

weights = softmax_topk.weights


def forward(x_TD, weights, config, tokens, training=False, rng=None, replay=None):
    """One expert a token: in training by balanced assignment, else the best.

        maximise the sum of x_t . w_e(t), every expert having T / E tokens;  g = sigmoid(x . w_e)

                                                        [BASE, arXiv:2103.16716, sec. 3]
    In the paper y = g E(x) + (1 - g) x with the residual inside E; with our block's residual outside that is
    x + g E(x).  If E does not divide T, loads differ by one.  Returns a Routing, cache.
    """
    logit_TE, linear_cache = ops.linear_forward(x_TD, weights["w_router_DE"])
    prob_TE, softmax_cache = ops.softmax_forward(logit_TE)
    score_TE, sigmoid_cache = ops.sigmoid_forward(logit_TE)
    expert_TK = routing.best(logit_TE, 1)
    if training:
        expert_TK[tokens.mask_T, 0] = balanced(logit_TE.real[tokens.mask_T])
    if replay is not None:
        expert_TK[replay.token_A, replay.rank_A] = replay.expert_A
    token_A, expert_A, rank_A = routing.by_token(expert_TK, tokens.mask_T)
    gate_A = score_TE[token_A, expert_A]
    result = routing.without_limit(token_A, expert_A, rank_A, gate_A, logit_TE, prob_TE, tokens)
    return result, (linear_cache, softmax_cache, sigmoid_cache, token_A, expert_A)


def backward(grad, cache):
    """Gradients of x_TD and, as a dict, of the weights.  grad: RoutingGrad."""
    linear_cache, softmax_cache, sigmoid_cache, token_A, expert_A = cache
    dscore_TE = np.zeros_like(grad.dprob_TE)
    dscore_TE[token_A, expert_A] = grad.dgate_A
    dlogit_TE = grad.dlogit_TE + ops.softmax_backward(grad.dprob_TE, softmax_cache)
    dlogit_TE = dlogit_TE + ops.sigmoid_backward(dscore_TE, sigmoid_cache)
    dx_TD, dw_router_DE = ops.linear_backward(dlogit_TE, linear_cache)
    return dx_TD, {"w_router_DE": dw_router_DE}


def balanced(score_TE):
    """The expert of each token in the assignment with the largest sum of scores, loads even to within one.

    Taking the best of score - price is the best assignment for the loads that it gives, whatever the prices.  So
    prices first bring the loads as near to even as they can; what is left moves at the least loss.  Moving a token from
    expert e to f loses score_te - score_tf; the least loss that takes a unit of load from e to f is a shortest path of
    such moves.  After each the assignment is the best for its loads (successive shortest paths), so this is exact, but
    for sums that differ by rounding error.  Returns expert_T.
    """
    score_TE = score_TE.astype(np.float64)  # else rounding error can look like a gain, for ever
    n_tokens, n_experts = score_TE.shape
    if n_tokens == 0:
        return np.zeros(0, int)
    expert_T = (score_TE - _prices(score_TE)).argmax(axis=1)
    low, tiny = n_tokens // n_experts, 1e-12 * float(np.ptp(score_TE))
    while True:
        count_E = np.bincount(expert_T, minlength=n_experts)
        # -1: must give, or take, a token; 0: may; 1: must not
        give_E, take_E = np.sign(low + 1 - count_E), np.sign(count_E - low)
        loss_EE, token_EE = _moves(score_TE, expert_T)
        loss_EE, next_EE = _shortest_paths(loss_EE, tiny)
        need_EE = give_E[:, None] + take_E
        e, last = divmod(np.lexsort((loss_EE.ravel(), need_EE.ravel()))[0], n_experts)
        if need_EE[e, last] > 0 or need_EE[e, last] == 0 and not loss_EE[e, last] < -tiny:
            return expert_T
        moved = []
        while e != last:
            moved.append((token_EE[e, next_EE[e, last]], next_EE[e, last]))
            e = next_EE[e, last]
        for token, expert in moved:
            expert_T[token] = expert


def _prices(score_TE):
    """Prices at which nearly as many tokens prefer each expert: up where too many do, by ever smaller steps."""
    price_E, step = np.zeros(score_TE.shape[1], score_TE.dtype), float(score_TE.std())
    for _ in range(PRICE_ROUNDS):
        count_E = np.bincount((score_TE - price_E).argmax(axis=1), minlength=len(price_E))
        price_E += step * (count_E / count_E.mean() - 1)
        step *= 0.9
    return price_E


def _moves(score_TE, expert_T):
    """The least loss of moving one token of expert e to f, and which token that is.  Returns loss_EE, token_EE."""
    n_experts = score_TE.shape[1]
    loss_EE, token_EE = np.full((n_experts, n_experts), np.inf), np.zeros((n_experts, n_experts), int)
    for e in range(n_experts):
        own = np.flatnonzero(expert_T == e)
        if len(own):
            loss = score_TE[own, e, None] - score_TE[own]
            loss_EE[e], token_EE[e] = loss.min(axis=0), own[loss.argmin(axis=0)]
    return loss_EE, token_EE


def _shortest_paths(loss_EE, tiny):
    """The least loss over all paths, and the next expert on each.        [Floyd 1962]  Returns loss_EE, next_EE."""
    next_EE = np.tile(np.arange(len(loss_EE)), (len(loss_EE), 1))
    for via in range(len(loss_EE)):
        detour_EE = loss_EE[:, via, None] + loss_EE[via]
        shorter_EE = detour_EE < loss_EE - tiny
        loss_EE = np.where(shorter_EE, detour_EE, loss_EE)
        next_EE = np.where(shorter_EE, next_EE[:, via, None], next_EE)
    return loss_EE, next_EE
