"""Choices to assignments: the gate of a chosen expert is its score, as it is or as a share of the token's choices."""

import numpy as np

from minimoe.moe import routing


def assign_forward(score_TE, expert_TK, sent, renormalize):
    """The assignments of tokens to their K chosen experts, with their gates.

        raw: g = s                                              [OLMoE, arXiv:2409.02060, sec. 2]
        renormalised: g = s / sum over the K chosen of s        [Mixtral, arXiv:2401.04088, sec. 2.1]

    expert_TK: all different in a row.  sent: which choices become assignments, [T, K]; or mask_T, for all of a real
    token's.  A choice that is not sent still counts in the sum.  Returns (token_A, expert_A, rank_A, gate_A), cache.
    """
    token_A, expert_A, rank_A = routing.by_token(expert_TK, sent)
    rows_T1 = np.arange(len(score_TE))[:, None]
    gate_TK = score_TE[rows_T1, expert_TK]
    sum_T1 = None
    if renormalize:
        sum_T1 = gate_TK.sum(axis=1, keepdims=True)
        gate_TK /= sum_T1
    cache = token_A, rank_A, gate_TK, sum_T1, rows_T1, expert_TK, score_TE
    return (token_A, expert_A, rank_A, gate_TK[token_A, rank_A]), cache


def assign_backward(dgate_A, cache):
    """Gradient of score_TE: 0 for experts that were not chosen."""
    token_A, rank_A, gate_TK, sum_T1, rows_T1, expert_TK, score_TE = cache
    dgate_TK = np.zeros_like(gate_TK)
    dgate_TK[token_A, rank_A] = dgate_A
    if sum_T1 is not None:  # gate = s / sum s: only the ratios of the chosen count
        dgate_TK -= (dgate_TK * gate_TK).sum(axis=1, keepdims=True)
        dgate_TK /= sum_T1
    dscore_TE = np.zeros_like(score_TE)
    dscore_TE[rows_T1, expert_TK] = dgate_TK
    return dscore_TE
