"""Choices and their gates: which K experts a token uses, and the weight of each.

The gate of a chosen expert is its score, either unchanged or divided by the sum over the token's chosen experts.
"""

from typing import NamedTuple

import numpy as np

from minimoe import require
from minimoe.nn import ops


def top_k_experts(score_TE, top_k, replay=None):
    """The K experts with the highest scores for each token, best first; ties go to the expert with the lowest number.

    No gradient flows through a choice.

    Args:
        score_TE: the larger, the better.
        top_k: K.
        replay: a Routing whose choices are used instead, where it has any.
    Returns expert_TK.  Raises ValueError unless K is from 1 to E.
    """
    score_TE = require.array("score_TE", ops.floats("score_TE", score_TE), ndim=2)
    require.whole("top_k", top_k, 1, score_TE.shape[1])
    lowest = np.finfo(score_TE.real.dtype).min
    left_TE = np.where(score_TE.real > lowest, score_TE.real, lowest)  # -inf then means: already taken
    if replay is not None:
        left_TE[replay.token_A, replay.expert_A] = np.inf  # ahead of all others, so that no expert is chosen twice
    expert_TK, rows_T = np.empty((len(left_TE), top_k), int), np.arange(len(left_TE))
    for k in range(top_k):  # K searches for the maximum: cheaper than sorting all E
        expert_TK[:, k] = left_TE.argmax(axis=1)
        left_TE[rows_T, expert_TK[:, k]] = -np.inf
    if replay is not None:
        expert_TK[replay.token_A, replay.rank_A] = replay.expert_A
    return expert_TK


def assignments_by_token(expert_TK, sent):
    """Assignments of a router that gives each token K experts, token by token, best first.

    sent: which choices become assignments, [T, K]; or mask_T, for all choices of real tokens.
    Returns token_A, expert_A, rank_A.
    """
    expert_TK, sent = require.array("expert_TK", expert_TK, "iu", ndim=2), np.asarray(sent)
    sent_TK = np.empty(expert_TK.shape, bool)
    sent_TK[:] = sent.reshape(len(expert_TK), -1)
    token_A, rank_A = sent_TK.nonzero()
    return token_A, expert_TK[sent_TK], rank_A


class GatesCache(NamedTuple):
    """The assignments, and the gates and scores that they come from.

    sum_T1: the divisor of the gates; None for raw gates.   rows_T1: the number of each row.
    """

    token_A: np.ndarray
    rank_A: np.ndarray
    gate_TK: np.ndarray
    sum_T1: np.ndarray | None
    rows_T1: np.ndarray
    expert_TK: np.ndarray
    score_TE: np.ndarray


def gates_forward(score_TE, expert_TK, sent, renormalize):
    """The assignments of tokens to their K chosen experts, with their gates.

        raw: g = s                                              [OLMoE, arXiv:2409.02060, sec. 2]
        renormalized: g = s / sum over the K chosen of s        [Mixtral, arXiv:2401.04088, sec. 2.1]

    Args:
        score_TE: the scores that the gates are computed from.
        expert_TK: the choices of each token, all different.
        sent: which choices become assignments, [T, K]; or mask_T, for all choices of real tokens.  Choices that are
            not sent still count in the sum.
        renormalize: whether each token's gates are divided by their sum.
    Returns (token_A, expert_A, rank_A, gate_A), cache.  Raises ValueError if scores to renormalize sum to 0.
    """
    score_TE = ops.floats("score_TE", score_TE)
    token_A, expert_A, rank_A = assignments_by_token(expert_TK, sent)
    rows_T1 = np.arange(len(score_TE))[:, None]
    gate_TK = score_TE[rows_T1, expert_TK]
    sum_T1 = None
    if renormalize:
        sum_T1 = gate_TK.sum(axis=1, keepdims=True)
        if not sum_T1.all():
            token = int((sum_T1[:, 0] == 0).argmax())
            raise ValueError(f"score_TE: the scores of the experts of token {token} sum to 0: cannot be renormalized")
        gate_TK /= sum_T1
    cache = GatesCache(token_A, rank_A, gate_TK, sum_T1, rows_T1, expert_TK, score_TE)
    return (token_A, expert_A, rank_A, gate_TK[token_A, rank_A]), cache


def gates_backward(dgate_A, cache):
    """Gradient of score_TE: 0 for experts that were not chosen."""
    dgate_TK = np.zeros_like(cache.gate_TK)
    dgate_TK[cache.token_A, cache.rank_A] = dgate_A
    if cache.sum_T1 is not None:  # gate = s / sum s: depends on the ratios of the chosen scores alone
        dgate_TK -= (dgate_TK * cache.gate_TK).sum(axis=1, keepdims=True)
        dgate_TK /= cache.sum_T1
    dscore_TE = np.zeros_like(cache.score_TE)
    dscore_TE[cache.rows_T1, cache.expert_TK] = dgate_TK
    return dscore_TE


class SharesCache(NamedTuple):
    """The assignments, the gates, the number of each row, and the number of experts."""

    token_A: np.ndarray
    rank_A: np.ndarray
    gate_TK: np.ndarray
    rows_T1: np.ndarray
    expert_TK: np.ndarray
    n_experts: int


def shares_forward(log_TE, expert_TK, sent):
    """Renormalized gates, from the logarithms of the scores.

        g = s / sum over the K chosen of s = softmax over the K chosen of log s

    The ratios survive even where all scores are too small for floating point.  This matters for a router whose chosen
    experts need not be those with the highest scores.
    log_TE: up to a constant per token.  Other arguments: see `gates_forward`.
    Returns (token_A, expert_A, rank_A, gate_A), cache.
    """
    log_TE = ops.floats("log_TE", log_TE)
    token_A, expert_A, rank_A = assignments_by_token(expert_TK, sent)
    rows_T1 = np.arange(len(log_TE))[:, None]
    gate_TK, _ = ops.softmax_forward(log_TE[rows_T1, expert_TK])
    cache = SharesCache(token_A, rank_A, gate_TK, rows_T1, expert_TK, log_TE.shape[1])
    return (token_A, expert_A, rank_A, gate_TK[token_A, rank_A]), cache


def shares_backward(dgate_A, cache):
    """Gradient of log_TE: 0 for experts that were not chosen."""
    dgate_TK = np.zeros_like(cache.gate_TK)
    dgate_TK[cache.token_A, cache.rank_A] = dgate_A
    dlog_TE = np.zeros((len(dgate_TK), cache.n_experts), dgate_TK.dtype)
    dlog_TE[cache.rows_T1, cache.expert_TK] = ops.softmax_backward(dgate_TK, cache.gate_TK)
    return dlog_TE
