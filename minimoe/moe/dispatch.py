"""Tokens to expert-sorted rows, and back.

    rows_ND   [ expert 0's tokens | expert 1's tokens | ... ]        in the order of Routing.kept_N

Both ways are gathers: a row copies its token, and a token reads its experts' rows, so nothing is lost by duplicates.
"""

import numpy as np


def dispatch_forward(x_TD, routing):
    """Copy each token to one row for each expert that keeps it.  Returns rows_ND, cache."""
    return x_TD.take(routing.token_A[routing.kept_N], axis=0), routing


def dispatch_backward(drows_ND, cache):
    """Gradient of x_TD: a token was copied to K rows, so their gradients add up."""
    routing = cache
    return _sum_rows(drows_ND, routing)


def combine_forward(out_ND, routing):
    """Each token's sum of gate * output over the experts that kept it.  Returns y_TD, cache."""
    gate_N = routing.gate_A[routing.kept_N]
    return _sum_rows(gate_N[:, None] * out_ND, routing), (out_ND, gate_N, routing)


def combine_backward(dy_TD, cache):
    """Gradients of out_ND and of the kept gates, both in row order."""
    out_ND, gate_N, routing = cache
    dy_ND = dy_TD.take(routing.token_A[routing.kept_N], axis=0)  # y_t = sum gate * out
    dgate_N = np.einsum("nd,nd->n", dy_ND, out_ND)
    dy_ND *= gate_N[:, None]
    return dy_ND, dgate_N


def _sum_rows(rows_ND, routing):
    """The sum of each token's rows.  Where it has fewer than K, a row of zeros at the index N stands for nothing."""
    padded = rows_ND
    if len(rows_ND) < routing.row_TK.size:
        padded = np.concatenate([rows_ND, np.zeros((1, rows_ND.shape[1]), rows_ND.dtype)])
    total_TD = padded.take(routing.row_TK[:, 0], axis=0)
    for row_T in routing.row_TK.T[1:]:
        total_TD += padded.take(row_T, axis=0)
    return total_TD
