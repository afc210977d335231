"""SparseGPT: remove weights one input at a time, and let the weights of later inputs compensate for the error.

    H = 2/T sum_t x_t x_t^T + damp * mean(diag H) * I       the cost of an error in the weights
    H^-1 = U^T U, U upper triangular
    score_df = w_df^2 / U_dd^2                              error of the output if w_df becomes 0
    w_d:  -= outer(U_d,d:, w_d / U_dd)                      for each weight that becomes 0, on it and all later ones

                                                            [Frantar & Alistarh 2023, arXiv:2301.00774, algorithm 1]
For a given mask, the weights of later inputs are a least-squares solution, given those of earlier inputs.
"""

import math

import numpy as np

from minimoe import require
from minimoe.nn import ops
from minimoe.sparsity import masks, scores


def prune(w_DF, x_TD, sparsity=None, pattern=None, block=128, damp=0.01):
    """Prune one matrix so that its outputs on the calibration vectors change little.

    Args:
        w_DF: the matrix.
        x_TD: calibration, the vectors that it multiplies; fewer than D are enough.
        sparsity: share of zeros: floor(size * sparsity) of each block of inputs, all outputs compared together.
        pattern: instead, (kept, group): how many of each group of inputs to keep, for each output.
        block: number of inputs whose mask is chosen together, 1 or more; a multiple of the group.
        damp: added to the diagonal of H, as a share of its mean.

    An input that is 0 in all of x_TD gets weights of 0, which count among the zeros of its block; the others are
    corrected as if it did not exist.
    Returns w_DF, mask_DF.  Raises ValueError for bad input, no calibration vector, or an H without an inverse.
    """
    w_DF, x_TD = ops.floats("w_DF", w_DF), ops.floats("x_TD", x_TD)
    scores.check_inputs(w_DF, x_TD)
    if not np.isfinite(w_DF).all():
        raise ValueError("w_DF has numbers that are not finite")
    D = len(w_DF)
    require.number("damp", damp)
    _check(D, sparsity, pattern, block)
    x_TD = x_TD.astype(np.float64)
    live_D = x_TD.any(axis=0)
    if not live_D.any():
        raise ValueError(f"x_TD has {len(x_TD)} tokens and all are 0: nothing to calibrate with")
    work_DF, mask_DF = np.where(live_D[:, None], w_DF, 0).astype(np.float64), np.ones(w_DF.shape, bool)
    u_DD = inverse_factor(x_TD, live_D, damp)
    for start in range(0, D, block):
        stop = min(start + block, D)
        here = slice(start, stop)
        if sparsity is not None:
            score = np.square(work_DF[here] / np.diag(u_DD)[here, None])
            mask_DF[here] = masks.lowest(score, math.floor(score.size * sparsity))
        for d in range(start, stop):
            if pattern is not None and d % pattern[1] == 0:
                group = slice(d, d + pattern[1])
                score = np.square(work_DF[group] / np.diag(u_DD)[group, None])
                mask_DF[group] = masks.n_of_m(score, *pattern)
            error_F = np.where(mask_DF[d], 0, work_DF[d]) / u_DD[d, d]
            work_DF[d:] -= np.outer(u_DD[d, d:], error_F)
            work_DF[d, ~mask_DF[d]] = 0  # exactly
    return work_DF.astype(w_DF.dtype), mask_DF


def inverse_factor(x_TD, live_D, damp):
    """U of H^-1 = U^T U over the live inputs; the others are decoupled, with 1 on the diagonal.  Returns u_DD."""
    live = x_TD[:, live_D]
    h = 2 / len(x_TD) * (live.T @ live)
    h[np.diag_indices_from(h)] += damp * np.diag(h).mean()
    u_DD = np.eye(len(live_D))
    try:
        u_DD[np.ix_(live_D, live_D)] = np.linalg.cholesky(np.linalg.inv(h)).T
    except np.linalg.LinAlgError as error:
        raise ValueError(f"damp = {damp}: the {len(x_TD)} tokens of x_TD do not span its {len(h)} inputs, so H has no "
                         "inverse; use more tokens or more damping") from error
    return u_DD


def _check(D, sparsity, pattern, block):
    if (sparsity is None) == (pattern is None):
        raise ValueError(f"sparsity = {sparsity!r}, pattern = {pattern!r}: give one of the two")
    require.whole("block", block, 1)
    if sparsity is not None:
        masks.check_sparsity(sparsity)
        return
    masks.check_pattern(pattern, D)
    if block % pattern[1] and block < D:
        raise ValueError(f"block = {block}: must be a multiple of the pattern's group of {pattern[1]}")
