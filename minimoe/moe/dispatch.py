"""Tokens to expert-sorted rows, and back.

    rows_ND   [ expert 0's tokens | expert 1's tokens | ... ]        in the order of Routing.kept_N

Both ways are gathers: a row copies its token, and a token reads its experts' rows, so nothing is lost by duplicates.
"""

import numpy as np


def dispatch_forward(x_TD, routing):
    """Copy each token to one row for each expert that keeps it.  Returns rows_ND, cache."""
    return x_TD[routing.token_A[routing.kept_N]], routing


def dispatch_backward(drows_ND, cache):
    """Gradient of x_TD: a token was copied to K rows, so their gradients add up."""
    routing = cache
    return _sum_rows(drows_ND, routing.row_TK)


def combine_forward(out_ND, routing):
    """Each token's sum of gate * output over the experts that kept it.  Returns y_TD, cache."""
    gate_N = routing.gate_A[routing.kept_N]
    return _sum_rows(gate_N[:, None] * out_ND, routing.row_TK), (out_ND, gate_N, routing)


def combine_backward(dy_TD, cache):
    """Gradients of out_ND and of the kept gates, both in row order."""
    out_ND, gate_N, routing = cache
    dy_ND = dy_TD[routing.token_A[routing.kept_N]]  # y_t = sum gate * out
    return gate_N[:, None] * dy_ND, (dy_ND * out_ND).sum(axis=1)


def _sum_rows(rows_ND, row_TK):
    """sum_k rows[row_TK[:, k]], with a row of zeros at the index N."""
    zeros_1D = np.zeros((1, rows_ND.shape[1]), rows_ND.dtype)
    padded = np.concatenate([rows_ND, zeros_1D])
    total_TD = padded[row_TK[:, 0]]
    for row_T in row_TK.T[1:]:
        total_TD += padded[row_T]
    return total_TD
