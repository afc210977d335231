"""Parameters are a flat dict, "layers.0.moe.w_up_EDF" -> array; gradients and moments share its keys."""

import zlib
from dataclasses import is_dataclass
from typing import NamedTuple

import numpy as np

from minimoe import require


class Weight(NamedTuple):
    """A parameter of a module: its shape and the standard deviation of its initial values; std None is a gain of 1."""

    shape: tuple[int, ...]
    std: float | None


def init(weights, seed, dtype=np.float32):
    """Draw every parameter from the normal distribution that its Weight describes.

    weights: dict of name -> Weight.  seed: whole number.  Each tensor has its own random stream, made from the seed
    and its name, so two models that differ only in their experts start with the same attention.
    Raises ValueError for a seed that is not a whole number, or a dtype that is not floating point.
    """
    require.whole("seed", seed)
    dtype = _floating(dtype)
    return {name: _draw(name, weight, seed, dtype) for name, weight in weights.items()}


def _floating(dtype):
    try:
        found = np.dtype(dtype)
    except TypeError:
        found = None
    if dtype is None or found is None or found.kind != "f":
        require.fail("dtype", dtype, "a floating point type, such as numpy.float32")
    return found


def _draw(name, weight, seed, dtype):
    if weight.std is None:
        return np.ones(weight.shape, dtype)
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    return (weight.std * rng.standard_normal(weight.shape)).astype(dtype)


def scope(params, prefix):
    """The part of a flat dict under a prefix, with the prefix removed: the weights of one module."""
    return {name.removeprefix(prefix): array for name, array in params.items() if name.startswith(prefix)}


def unscope(params, prefix):
    """The inverse of `scope`: a module's dict with the prefix added."""
    return {prefix + name: array for name, array in params.items()}


def count(params):
    """Number of parameters in a dict of arrays or of Weights."""
    return sum(int(np.prod(value.shape)) for value in _arrays(params, "params").values())


def flatten(params):
    """All parameters concatenated into one vector, in the dict's order."""
    return np.concatenate([array.ravel() for array in _arrays(params, "params").values()])


def _arrays(params, name):
    for key, array in require.mapping(name, params).items():
        if not hasattr(array, "shape"):
            require.fail(f"{name}[{key!r}]", array, "an array")
    return params


def unflatten(vector, like):
    """The inverse of `flatten`: views of the vector, with the names and shapes of `like`.

    Raises ValueError if the lengths differ.
    """
    vector = require.array("vector", vector, kinds="bfciu", ndim=1)  # masks are split up too
    if vector.size != count(_arrays(like, "like")):
        raise ValueError(f"vector has {vector.size} numbers, the parameters have {count(like)}")
    params, start = {}, 0
    for name, array in like.items():
        stop = start + array.size
        params[name] = vector[start:stop].reshape(array.shape)
        start = stop
    return params


def arrays_in(tree):
    """Every array in nested tuples, lists, dicts and records, such as a cache."""
    if isinstance(tree, np.ndarray):
        yield tree
    elif isinstance(tree, dict):
        yield from arrays_in(list(tree.values()))
    elif isinstance(tree, (tuple, list)):
        for part in tree:
            yield from arrays_in(part)
    elif is_dataclass(tree) and not isinstance(tree, type):
        yield from arrays_in(vars(tree))  # including cached properties
