"""Balanced assignment: every expert gets the same number of tokens, and the sum of scores is the largest possible."""

import numpy as np

from minimoe import require

PRICE_ROUNDS = 60


def balanced_assignment(score_TE):
    """The expert of each token in the assignment with the largest sum of scores, where loads differ by at most one.

    Whatever the prices, choosing the expert with the best score - price gives the best assignment for the loads that
    result.  So prices first make the loads as even as they can, and the remaining tokens move at the least loss.
    Moving a token from expert e to f loses score_te - score_tf; the least loss of moving one unit of load from e to f
    is a shortest path of such moves.  After each move the assignment is the best for its loads (successive shortest
    paths).  So the method is exact, except for sums that differ by rounding error.  Returns expert_T.
    """
    score_TE = require.array("score_TE", score_TE, "fiu", 2)
    score_TE = score_TE.astype(np.float64)  # otherwise rounding error can look like a gain forever
    n_tokens, n_experts = score_TE.shape
    if n_tokens == 0:
        return np.zeros(0, int)
    expert_T = (score_TE - _prices(score_TE)).argmax(axis=1)
    low, tiny = n_tokens // n_experts, 1e-12 * float(np.ptp(score_TE))
    while True:
        count_E = np.bincount(expert_T, minlength=n_experts)
        loss_EE, token_EE = _moves(score_TE, expert_T)
        loss_EE, next_EE = _shortest_paths(loss_EE, tiny)
        e, last = _best_move(loss_EE, count_E, low, tiny)
        if e is None:
            return expert_T
        moved = []
        while e != last:
            moved.append((token_EE[e, next_EE[e, last]], next_EE[e, last]))
            e = next_EE[e, last]
        for token, expert in moved:
            expert_T[token] = expert


def _best_move(loss_EE, count_E, low, tiny):
    """The pair of experts between which a unit of load should move, at the least loss; None if the loads are right."""
    give_E, take_E = np.sign(low + 1 - count_E), np.sign(count_E - low)  # -1: must give, or take; 0: may; 1: must not
    need_EE = give_E[:, None] + take_E
    first = np.lexsort((loss_EE.ravel(), need_EE.ravel()))[0]  # by need, then by loss
    e, last = np.unravel_index(first, loss_EE.shape)
    helps = need_EE[e, last] < 0 or need_EE[e, last] == 0 and loss_EE[e, last] < -tiny
    return (e, last) if helps else (None, None)


def _prices(score_TE):
    """Prices at which about as many tokens prefer each expert: raised where too many do, in shrinking steps."""
    price_E, step = np.zeros(score_TE.shape[1], score_TE.dtype), float(score_TE.std())
    for _ in range(PRICE_ROUNDS):
        count_E = np.bincount((score_TE - price_E).argmax(axis=1), minlength=len(price_E))
        price_E += step * (count_E / count_E.mean() - 1)
        step *= 0.9
    return price_E


def _moves(score_TE, expert_T):
    """The least loss of moving one token from expert e to f, and which token that is.  Returns loss_EE, token_EE."""
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
