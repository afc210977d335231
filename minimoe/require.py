"""Checks of arguments: each raises ValueError with the name, the value and what would be right."""

import math
import reprlib
from collections.abc import Mapping
from numbers import Real

import numpy as np


def fail(name, value, right):
    """Raise the ValueError.  The value is shortened, since a whole array would be of no help."""
    raise ValueError(f"{name} = {reprlib.repr(value)}: must be {right}")


def whole(name, value, least=0, most=None):
    """Require a whole number within limits, not True or False.  Returns it."""
    fits = isinstance(value, (int, np.integer)) and not isinstance(value, (bool, np.bool_))
    if not fits or value < least or most is not None and value > most:
        fail(name, value, f"a whole number, {least} or more" if most is None else
             f"a whole number from {least} to {most}")
    return value


def number(name, value, right="a finite number of 0 or more", least=0, most=math.inf):
    """Require a finite real number within limits.  right: what it has to be, in words.  Returns it."""
    fits = isinstance(value, (Real, np.floating)) and not isinstance(value, (bool, np.bool_))
    if not fits or not (math.isfinite(value) and least <= value <= most):
        fail(name, value, right)
    return value


def one_of(name, value, known):
    """Require a key of a dict.  Returns it."""
    if not isinstance(value, str) or value not in known:
        fail(name, value, f"one of {', '.join(map(str, known))}")
    return value


def record(name, value, kind):
    """Require an instance of a class, such as ModelConfig.  Returns it."""
    if not isinstance(value, kind):
        fail(name, value, f"a {kind.__name__}")
    return value


def mapping(name, value):
    """Require a dict of arrays by name.  Returns it."""
    if not isinstance(value, Mapping):
        fail(name, value, "a dict, name -> array")
    return value


def function(name, value):
    """Require a callable.  Returns it."""
    if not callable(value):
        fail(name, value, "a function")
    return value


def sequence(name, value):
    """Require a list, a tuple or an array.  Returns it as a list."""
    if isinstance(value, (str, bytes, Mapping)) or not hasattr(value, "__iter__") or np.ndim(value) == 0:
        fail(name, value, "a list")
    return list(value)


def generator(name, value, optional=True):
    """Require a numpy.random.Generator or an object with its methods, or None if it is optional.  Returns it."""
    if not (optional and value is None or callable(getattr(value, "random", None))):
        fail(name, value, f"a numpy.random.Generator{' or None' if optional else ''}")
    return value


def array(name, value, kinds="fciu", ndim=None):
    """The value as an array of numbers.  kinds: letters of `numpy.dtype.kind`.  ndim: how many axes it must have."""
    try:
        found = np.asarray(value)
    except ValueError:
        raise ValueError(f"{name} has rows of different lengths: must be an array") from None
    if found.dtype.kind not in kinds or ndim is not None and found.ndim != ndim:
        axes = "" if ndim is None else f" with {ndim} {'axis' if ndim == 1 else 'axes'}"
        raise ValueError(f"{name} has shape {found.shape} and dtype {found.dtype}: must be an array of "
                         f"{'whole numbers' if kinds == 'iu' else 'numbers'}{axes}")
    return found
