"""E experts, each the SwiGLU block of a dense model, over rows sorted by expert.

The weights are stacked, [E, D, F]; expert e sees the rows from start_e to start_e + count_e and no others, so the
cost is that of the rows and not of the number of experts.  (The gate in w_gate_EDF is SwiGLU's, inside an expert; the
router's gates weigh whole experts.)
"""

import numpy as np

from minimoe.nn import ops
from minimoe.params import Weight

NAMES = ("w_gate_EDF", "w_up_EDF", "w_down_EFD")


def weights(config, std, out_std):
    """The parameters of the experts of one layer.  std, out_std: spread of the first values, and of the output's."""
    E, D, F = config.n_experts, config.d_model, config.d_hidden
    return {
        "w_gate_EDF": Weight((E, D, F), std),
        "w_up_EDF": Weight((E, D, F), std),
        "w_down_EFD": Weight((E, F, D), out_std),
    }


def experts_forward(rows_ND, weights, count_E):
    """Each expert works on its own rows.  count_E: rows of each expert.  Returns out_ND, cache."""
    w_gate_EDF, w_up_EDF, w_down_EFD = (weights[name] for name in NAMES)
    out_ND, caches = np.empty(rows_ND.shape, np.result_type(rows_ND, w_gate_EDF, w_up_EDF, w_down_EFD)), {}
    for e, rows in _rows_of_each(count_E):
        out_ND[rows], caches[e] = ops.swiglu_forward(rows_ND[rows], w_gate_EDF[e], w_up_EDF[e], w_down_EFD[e])
    return out_ND, (caches, (w_gate_EDF, w_up_EDF, w_down_EFD), count_E)


def experts_backward(dout_ND, cache):
    """Gradients of rows_ND and, as a dict, of the weights.  An expert without rows has a gradient of zeros."""
    caches, weights, count_E = cache
    drows_ND = np.empty_like(dout_ND)
    dw_gate_EDF, dw_up_EDF, dw_down_EFD = dweights = [np.empty_like(w) for w in weights]
    for e, rows in _rows_of_each(count_E):
        into = dw_gate_EDF[e], dw_up_EDF[e], dw_down_EFD[e]
        drows_ND[rows], *_ = ops.swiglu_backward(dout_ND[rows], caches[e], into)
    for dw in dweights:
        dw[count_E == 0] = 0
    return drows_ND, dict(zip(NAMES, dweights, strict=True))


def _rows_of_each(count_E):
    """(expert, its rows) of the experts that have any."""
    stop = 0
    for e, count in enumerate(count_E.tolist()):
        if count > 0:
            yield e, slice(stop, stop + count)
        stop += count
