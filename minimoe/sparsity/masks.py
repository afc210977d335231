"""Which weights are kept: bool arrays, True = kept.  They use counts rather than thresholds, so ties do not matter."""

import math

import numpy as np

from minimoe import require


def lowest(score, n_zeros):
    """Remove exactly n_zeros weights, those with the lowest scores; ties remove the lowest index first.

    score: any shape.  Returns a mask of its shape.
    Raises ValueError if a score is not a number, or n_zeros is not a whole number from 0 to the number of scores.
    """
    score = require.array("score", score)
    require.whole("n_zeros", n_zeros, 0, score.size)
    return _without_lowest(score.reshape(1, -1), n_zeros).reshape(score.shape)


def per_output(score_DF, sparsity):
    """Remove floor(D * sparsity) weights of each output, so that all outputs keep equally many.  Returns mask_DF.

    sparsity: share of the D inputs.  score_DF may have leading axes.  Raises ValueError unless it is in [0, 1).
    """
    check_sparsity(sparsity)
    score_DF = _matrices(score_DF)
    n_zeros = math.floor(score_DF.shape[-2] * sparsity)
    return _without_lowest(score_DF.swapaxes(-1, -2), n_zeros).swapaxes(-1, -2)


def n_of_m(score_DF, kept, group):
    """Keep exactly `kept` of each `group` consecutive inputs of each output, such as 2 of 4.  Returns mask_DF.

                                                            [Mishra 2021, arXiv:2104.08378, sec. 3]
    The name counts kept weights; the code of Wanda and SparseGPT counts pruned ones.  score_DF may have leading axes.
    Raises ValueError unless 1 <= kept <= group and the group divides the inputs.
    """
    score_DF = _matrices(score_DF)
    D = score_DF.shape[-2]
    check_pattern((kept, group), D)
    score_FD = score_DF.swapaxes(-1, -2)
    groups = score_FD.reshape(*score_FD.shape[:-1], D // group, group)
    return _without_lowest(groups, group - kept).reshape(score_FD.shape).swapaxes(-1, -2)


def apply(arrays, masks):
    """A new dict in which masked numbers are exactly 0; arrays without a mask are not copied.

    arrays: name -> array, parameters or their gradients, since a mask is its own backward.
    Raises ValueError if a mask has no array or does not fit it.
    """
    check(masks, arrays)
    return arrays | {name: np.where(mask, arrays[name], arrays[name].dtype.type(0)) for name, mask in masks.items()}


def check(masks, arrays):
    """Raise ValueError unless each mask is bool and has the name and shape of one of the arrays."""
    require.mapping("arrays", arrays)
    for name, mask in require.mapping("masks", masks).items():
        if name not in arrays:
            raise ValueError(f"masks[{name!r}]: there is no such parameter")
        if not isinstance(mask, np.ndarray) or mask.dtype != bool or mask.shape != arrays[name].shape:
            found = f"{mask.dtype} {mask.shape}" if isinstance(mask, np.ndarray) else type(mask).__name__
            raise ValueError(f"masks[{name!r}] is {found}: must be bool {arrays[name].shape}")


def check_sparsity(sparsity):
    """Raise ValueError unless sparsity is a number in [0, 1)."""
    number = isinstance(sparsity, (int, float, np.integer, np.floating)) and not isinstance(sparsity, bool)
    if not number or not 0 <= sparsity < 1:
        raise ValueError(f"sparsity = {sparsity!r}: must be a share of the weights, from 0 to below 1")


def check_pattern(pattern, n_inputs):
    """Raise ValueError unless pattern is (kept, group) with 1 <= kept <= group, and group divides n_inputs."""
    numbers = isinstance(pattern, (tuple, list)) and len(pattern) == 2 and all(
        isinstance(n, (int, np.integer)) and not isinstance(n, bool) for n in pattern)
    if not numbers or not 1 <= pattern[0] <= pattern[1]:
        raise ValueError(f"pattern = {pattern!r}: must be (kept, group), whole numbers with 1 <= kept <= group")
    if n_inputs % pattern[1]:
        raise ValueError(f"pattern = {tuple(pattern)}: groups of {pattern[1]} do not divide {n_inputs} inputs")


def _matrices(score_DF):
    """The scores as an array with inputs and outputs.  Raises ValueError if there are none."""
    score_DF = require.array("score_DF", score_DF)
    if score_DF.ndim < 2:
        raise ValueError(f"score_DF has shape {score_DF.shape}: must be [..., inputs, outputs]")
    return score_DF


def _without_lowest(score, n_zeros):
    """The mask without the n_zeros lowest scores of each last axis."""
    if np.isnan(score).any():
        raise ValueError("score has entries that are not a number")
    mask = np.ones(score.shape, bool)
    order = np.argsort(score, axis=-1, kind="stable")
    np.put_along_axis(mask, order[..., :n_zeros], False, axis=-1)
    return mask
