"""Validation of what a checkpoint claims about its run, since a file may come from anywhere."""

import re

import numpy as np

from minimoe import model, parameters
from minimoe.config import ModelConfig, TrainConfig, earlier, fields


def once(pairs):
    """A dict of JSON's (key, value) pairs.  Raises ValueError if a key occurs twice."""
    record = dict(pairs)
    if len(record) < len(pairs):
        raise ValueError("a field occurs twice")
    return record


class Header:
    """The fields of a header, with their types and ranges checked.

    model_config, train_config, characters, domains, data_digest, rng, step: see `checkpoint.TrainState`.
    Raises KeyError, TypeError or ValueError for values that no run can have.
    """

    def __init__(self, header):
        for name in ("model_config", "train_config"):
            fields.require(isinstance(header[name], dict), name, header[name], "must be a record of fields")
        self.model_config = ModelConfig(**earlier.completed(header["model_config"]))
        self.train_config = TrainConfig(**header["train_config"])
        self.characters, self.step, self.rng = header["characters"], header["step"], _generator(header["rng"])
        self.domains, self.data_digest = header["domains"], header["data_digest"]
        self._check_text()
        if type(self.step) is not int or not 0 <= self.step <= self.train_config.n_steps:
            raise ValueError(f"step = {fields.shown(self.step)} of n_steps = {self.train_config.n_steps}")

    def _check_text(self):
        fields.require(isinstance(self.characters, str) and [*self.characters] == sorted(set(self.characters)),
                       "characters", self.characters, "must be text, with each character once, in order of code points")
        if self.model_config.vocab_size != len(self.characters):
            raise ValueError(f"vocab_size = {self.model_config.vocab_size}, but it knows {len(self.characters)} "
                             "characters")
        names = self.domains if isinstance(self.domains, list) else []
        fields.require(names and all(isinstance(name, str) for name in names) and len(set(names)) == len(names),
                       "domains", self.domains, "must be a list of different names")
        fields.require(isinstance(self.data_digest, str) and re.fullmatch("[0-9a-f]{16}", self.data_digest),
                       "data_digest", self.data_digest, "must be 16 hexadecimal digits")
        self.domains = tuple(names)


def _generator(state):
    """The generator with this state; NumPy accepts some states that no generator can have."""
    rng = np.random.default_rng()
    try:
        rng.bit_generator.state = state
        good = rng.bit_generator.state == state and state["state"]["inc"] % 2 == 1 and state["has_uint32"] in (0, 1)
    except (ArithmeticError, KeyError, TypeError, ValueError):
        good = False
    fields.require(good, "rng", state, "must be a state of numpy's PCG64")
    return rng


def shapes(config, names, groups, partial=()):
    """Name -> shape of the parameters, each of which must be in every group except the last, the history.

    names: of all arrays, "group/name", and "header".   groups: their names.   partial: groups that hold only some
    parameters.  Raises ValueError.
    """
    fields.require(config.n_layers <= len(names), "n_layers", config.n_layers, f"the file has {len(names)} arrays")
    expected = {name: weight.shape for name, weight in model.weights(config).items()}
    for group in groups[:-1]:
        fields.require_names(group, parameters.scope(dict.fromkeys(names), f"{group}/"), expected)
    known = tuple(f"{group}/" for group in groups)
    some = {"header", *(f"{group}/{name}" for group in partial for name in expected)}
    unknown = [name for name in names if name not in some and not name.startswith(known)]
    if unknown:
        raise ValueError(f"unknown arrays: {fields.listed(unknown)}")
    return expected


def real(name, array, not_negative):
    """Return the array.  Raises ValueError unless its numbers are real and finite, and not negative if required."""
    if array.dtype.kind != "f":
        raise ValueError(f"{name} has dtype {array.dtype}: must be real numbers")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} is not finite: it contains {array[~np.isfinite(array)][0]}")
    if not_negative and (array < 0).any():
        raise ValueError(f"{name} contains {array.min()}: must not be negative")
    return array
