"""Tokens to expert-sorted rows, and back.

    rows_ND   [ expert 0's tokens | expert 1's tokens | ... ]        in the order of Routing.kept_N

Both directions are gathers: a row copies its token, and a token reads its experts' rows.  So duplicates lose nothing.
"""

from typing import NamedTuple

import numpy as np

from minimoe.moe.routing import Routing


def dispatch_forward(x_TD, routing):
    """Copy each token to one row for each expert that keeps it.  Returns rows_ND, cache."""
    return x_TD.take(routing.token_A[routing.kept_N], axis=0), routing


def dispatch_backward(drows_ND, cache):
    """Gradient of x_TD: a token was copied to K rows, so their gradients are summed."""
    routing = cache
    return _sum_rows(drows_ND, routing)


class CombineCache(NamedTuple):
    """The experts' outputs and their gates, both in row order, and the Routing that the rows belong to."""

    out_ND: np.ndarray
    gate_N: np.ndarray
    routing: Routing


def combine_forward(out_ND, routing):
    """Each token's sum of gate * output over the experts that kept it.  Returns y_TD, cache."""
    gate_N = routing.gate_A[routing.kept_N]
    return _sum_rows(gate_N[:, None] * out_ND, routing), CombineCache(out_ND, gate_N, routing)


def combine_backward(dy_TD, cache):
    """Gradients of out_ND and of the kept gates, both in row order."""
    dy_ND = dy_TD.take(cache.routing.token_A[cache.routing.kept_N], axis=0)  # y_t = sum gate * out
    dgate_N = np.einsum("nd,nd->n", dy_ND, cache.out_ND)
    dy_ND *= cache.gate_N[:, None]
    return dy_ND, dgate_N


def _sum_rows(rows_ND, routing):
    """The sum of each token's rows.  A token with fewer than K rows reads a row of zeros at index N instead."""
    padded = rows_ND
    if len(rows_ND) < routing.row_TK.size:
        padded = np.concatenate([rows_ND, np.zeros((1, rows_ND.shape[1]), rows_ND.dtype)])
    total_TD = padded.take(routing.row_TK[:, 0], axis=0)
    for row_T in routing.row_TK.T[1:]:
        total_TD += padded.take(row_T, axis=0)
    return total_TD
