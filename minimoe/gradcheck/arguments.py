"""Validation of what a caller gives to the checker: arrays, gradients, and the function itself."""

import traceback
import warnings
from collections.abc import Hashable, Iterator, Mapping

import numpy as np

from minimoe import require

LOST = "function loses the imaginary part of its arrays, which carries the slope in a complex step"

ANY = "?bBiufcmMOSUV"
"""The letters of all kinds of dtype."""


class LostImaginaryPartError(ValueError):
    """The function drops the imaginary part of its arrays, which carries the slope in a complex step."""


def real_arrays(arrays, checked):
    """A copy of a dict of arrays.  Floating point arrays, and those to be checked, become float64; others stay.

    Whole numbers to be checked become float64 too, since a step of 1e-5 would be rounded off.  Raises ValueError if
    there is no array, no array of a name in `checked`, or an array to be checked that is not of real numbers.
    """
    if not isinstance(arrays, Mapping) or not arrays:
        require.fail("arrays", arrays, "a dict, name -> array, of at least one")
    for name in checked:
        if not isinstance(name, Hashable) or name not in arrays:
            require.fail("name", name, f"one of {', '.join(map(str, arrays))}")
    return {name: _float64(name, array, name in checked) for name, array in arrays.items()}


def without_slope(arrays):
    """Names of the arrays of whole numbers or masks, if there are other arrays too."""
    arrays = require.mapping("arrays", arrays)
    found = [name for name, array in arrays.items()
             if require.array(f"arrays[{name!r}]", array, ANY).dtype.kind in "iub"]
    return found if len(found) < len(arrays) else []


def _float64(name, array, checked):
    found = require.array(f"arrays[{name!r}]", array, ANY)
    if found.dtype.kind == "f" or checked and found.dtype.kind in "iu":
        return found.astype(np.float64)
    if found.dtype.kind in "iu":
        return found
    if checked:
        raise ValueError(f"arrays[{name!r}] has dtype {found.dtype}: must be real numbers, to be checked in float64")
    return array


def gradients_by_name(grads, names):
    """The gradients that a backward returned, as a dict.  None marks a missing one.

    grads: a tuple or list in the order of the names, one array if there is one name, or a dict.
    Raises ValueError for a generator.
    """
    if isinstance(grads, Iterator):
        raise ValueError(f"backward returned a {type(grads).__name__}: must be gradients, in a tuple, a list or a dict")
    if isinstance(grads, Mapping):
        return dict.fromkeys(names) | dict(grads)
    several = isinstance(grads, tuple) or isinstance(grads, list) and (
        len(names) > 1 or any(isinstance(grad, np.ndarray) for grad in grads))
    grads = list(grads) if several else [grads]
    surplus = [f"gradient {i + 1}" for i in range(len(names), len(grads))]
    return dict.fromkeys(names) | dict(zip([*names, *surplus], grads, strict=False))


def problem_of(grad, array, arrays):
    """Why a gradient is obviously wrong, in words; "" if it has to be measured.  array: None if there is none."""
    if array is None:
        return f"no array has this name; the names are {', '.join(map(str, arrays))}"
    if grad is None:
        return "it has no gradient"
    try:
        found = np.asarray(grad)
    except ValueError:
        return "the gradient has rows of different lengths"
    if found.shape != array.shape:
        return f"the gradient has shape {found.shape}, the array {array.shape}"
    if found.dtype.kind not in "fiu":
        return f"the gradient has dtype {found.dtype}: must be real numbers"
    if not np.isfinite(found).all():
        return f"the gradient is not finite in {(~np.isfinite(found)).sum():,} of {found.size:,} numbers"
    return ""


class Watched:
    """A function of a dict of arrays that gets copies of them.  changed: names of arrays that it wrote to."""

    def __init__(self, function):
        self.function, self.changed = function, set()

    def __call__(self, arrays):
        """The function's value.  Raises ValueError unless it is a single number in float64."""
        given = {name: array.copy() if isinstance(array, np.ndarray) else array for name, array in arrays.items()}
        value = np.asarray(self.function(dict(given)))
        self.changed |= {name for name, array in given.items()
                         if isinstance(array, np.ndarray) and array.tobytes() != arrays[name].tobytes()}
        if value.size != 1 or value.dtype.kind not in "fciu":
            raise ValueError(f"function returned shape {value.shape} and dtype {value.dtype}: must be one number")
        if value.dtype in (np.float16, np.float32, np.complex64):
            raise ValueError(f"function returned {value.dtype} for float64 arrays: that rounds away what is measured")
        return value.reshape(())[()]

    def on_complex_numbers(self, arrays):
        """The value for complex arrays.  Raises LostImaginaryPartError if the function drops their imaginary part."""
        with warnings.catch_warnings():
            warnings.simplefilter("error", np.exceptions.ComplexWarning)
            try:
                return self(arrays)
            except (TypeError, np.exceptions.ComplexWarning) as error:
                place = traceback.extract_tb(error.__traceback__)[-1]
                raise LostImaginaryPartError(
                    f"{LOST}: {error} (line {place.lineno} of {place.name}: {place.line})") from error


def watched(function, arrays):
    """The function, wrapped in Watched.  Raises ValueError if it gives different values for the same arrays."""
    if isinstance(function, Watched):
        return function
    function = Watched(require.function("function", function))
    values = np.array([function(arrays) for _ in range(2)])
    if np.isfinite(values).all() and abs(values[1] - values[0]) > 1e-9 * abs(values).max():
        raise ValueError(f"function gave {values[0]:g} and {values[1]:g} for the same arrays: "
                         "its random choices must be the same in each call")
    return function
