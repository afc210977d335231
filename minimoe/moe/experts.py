"""E experts, each a SwiGLU network as in a dense model, applied to rows sorted by expert.

The weights are stacked, [E, D, F].  Expert e sees the rows from start_e to start_e + count_e and no others, so the
cost depends on the number of rows, not on the number of experts.  (The gate in w_gate_EDF is SwiGLU's, inside an
expert; the router's gates weight whole experts.)
"""

from typing import NamedTuple

import numpy as np

from minimoe.nn import ops
from minimoe.parameters import Weight

NAMES = ("w_gate_EDF", "w_up_EDF", "w_down_EFD")


def weights(config, std, out_std):
    """The parameters of the experts of one layer.  std, out_std: initial spread of the input and output weights."""
    E, D, F = config.n_experts, config.d_model, config.d_hidden
    return {
        "w_gate_EDF": Weight((E, D, F), std),
        "w_up_EDF": Weight((E, D, F), std),
        "w_down_EFD": Weight((E, F, D), out_std),
    }


class ExpertsCache(NamedTuple):
    """Expert -> cache, for experts that have rows; the weights; the number of rows of each expert and of its buffer."""

    swiglu: dict
    w_gate_EDF: np.ndarray
    w_up_EDF: np.ndarray
    w_down_EFD: np.ndarray
    count_E: np.ndarray
    n_slots: int | None


def experts_forward(rows_ND, weights, count_E, n_slots=None):
    """Apply each expert to its own rows.

    Args:
        rows_ND: the copied tokens, sorted by expert.
        weights: name -> array, those of `weights`.
        count_E: number of rows of each expert.
        n_slots: number of rows that each expert computes, zeros after its own, as systems with fixed-size buffers do.
            The results are the same; the work is that of E * n_slots rows [GShard, arXiv:2006.16668, sec. 3.2].
            None: only its own rows.
    Returns out_ND, cache.
    """
    rows_ND = ops.floats("rows_ND", rows_ND)
    w_gate_EDF, w_up_EDF, w_down_EFD = (ops.floats(name, weights[name]) for name in NAMES)
    out_ND = np.empty(rows_ND.shape, np.result_type(rows_ND, w_gate_EDF, w_up_EDF, w_down_EFD))
    caches = {}
    for e, rows in _rows_of_each(count_E, n_slots):
        x_rows = _padded(rows_ND[rows], n_slots)
        out_rows, caches[e] = ops.swiglu_forward(x_rows, w_gate_EDF[e], w_up_EDF[e], w_down_EFD[e])
        out_ND[rows] = out_rows[:count_E[e]]
    return out_ND, ExpertsCache(caches, w_gate_EDF, w_up_EDF, w_down_EFD, count_E, n_slots)


def experts_backward(dout_ND, cache):
    """Gradients of rows_ND and, as a dict, of the weights.  An expert without rows gets a gradient of zeros."""
    dout_ND = ops.floats("dout_ND", dout_ND)
    drows_ND = np.empty_like(dout_ND)
    dweights = {name: np.empty_like(getattr(cache, name)) for name in NAMES}
    for e, rows in _rows_of_each(cache.count_E, cache.n_slots):
        own = [dw[e] for dw in dweights.values()]
        drows, *_ = ops.swiglu_backward(_padded(dout_ND[rows], cache.n_slots), cache.swiglu[e], own)
        drows_ND[rows] = drows[:cache.count_E[e]]
    for dw in dweights.values():
        dw[cache.count_E == 0] = 0
    return drows_ND, dweights


def _padded(rows, n_slots):
    """The rows of one expert, followed by zeros if it has slots to fill."""
    if n_slots is None:
        return rows
    return np.concatenate([rows, np.zeros((n_slots - len(rows), rows.shape[1]), rows.dtype)])


def _rows_of_each(count_E, n_slots=None):
    """(expert, its rows) for each expert that has rows, or slots to compute."""
    stop = 0
    for e, count in enumerate(count_E.tolist()):
        if count > 0 or n_slots:
            yield e, slice(stop, stop + count)
        stop += count
