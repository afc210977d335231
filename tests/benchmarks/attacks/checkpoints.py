"""Checkpoints that lie: fields and arrays of other types, sizes and values, archives that are forged, flipped bytes."""

import itertools
import json
import math
import shutil

import numpy as np

from minimoe.training import checkpoint
from tests.benchmarks.attacks import archives, attempt, kills

PATH = "run/checkpoint.npz"
READERS = (["doctor", "run"], ["generate", "--run", "run", "--n-tokens", "3", "--temperature", "0"],
           ["route", "the cat", "--run", "run"], ["cost", "--run", "run", "--text", "words.txt"],
           [*kills.TRAIN, "--resume"])
HUGE = 10**30
WRONG = (None, True, -1, 0, 1.5, math.nan, math.inf, HUGE, "", "x", "x" * 10**6, [], [1], {}, {"a": 1}, [[]] * 3)
"""Values for any field of the header."""
NEVER = (-1, math.nan, math.inf, "x", "x" * 10**6, [1], {"a": 1}, [[]] * 3)
"""Values that no field of a configuration has."""


def attack(rng, folder, quick):
    """(case, problem or None) of each attempt."""
    good = kills.made(folder / "good")
    attempt.command(kills.START, good)
    header, arrays = read(good / PATH)
    where = kills.made(folder / "bad")
    cases = [*_headers(rng, header, arrays), *_arrays(header, arrays), *archives.cases(header, arrays)]
    for case, change in rng.sample(cases, 15) if quick else cases:
        shutil.rmtree(where / "run", ignore_errors=True)
        (where / "run").mkdir()
        change(where / PATH)
        for words in rng.sample(READERS, 1 if "header" in case else 2):
            end = attempt.command(words, where, 10)
            yield f"{case}, {words[0]}", attempt.problem(end, (2,)) or (
                "slow" if end.seconds > 3 else None)
    shutil.rmtree(where / "run")
    (where / "run").mkdir()
    yield from _flips(rng, good / PATH, where / PATH, 20 if quick else 200)
    for i in range(5 if quick else 60):
        whole = (good / PATH).read_bytes()
        (where / PATH).write_bytes(whole[:rng.randrange(len(whole))])
        yield f"cut {i}", _refused(where / PATH)


def read(path):
    """Header and arrays of a checkpoint."""
    with np.load(path) as file:
        arrays = dict(file)
    return json.loads(arrays.pop("header").tobytes()), arrays


def _refused(path):
    try:
        checkpoint.load(path)
    except ValueError as error:
        return None if len(str(error)) < attempt.LONGEST else f"{len(str(error))} characters"
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    return "accepted"


def _flips(rng, good, bad, n):
    whole = good.read_bytes()
    for _ in range(n):
        place = rng.choice([rng.randrange(len(whole)), rng.randrange(len(whole) - 3000, len(whole))])
        bit = rng.randrange(8)
        bad.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1:])
        problem = _refused(bad)
        yield f"bit {bit} of byte {place} of {len(whole)} flipped", problem


def _headers(rng, header, arrays):
    """(name, function that writes it to a path) of checkpoints whose header lies."""
    for words, fields in _fields(rng, header):
        changed = header | {"sealed": False} | fields
        yield f"header {words}", lambda path, changed=changed: archives.write(path, changed, arrays)
    for name in header.keys() - {"sealed"}:
        left = {key: value for key, value in header.items() if key != name}
        yield f"header without {name}", lambda path, left=left: archives.write(path, left, arrays)


def _fields(rng, header):
    """(name, fields to change)."""
    yield from _configurations(rng, header)
    for name in sorted(header.keys() - {"sealed"}):
        yield from ((f"{name} = {repr(value)[:30]}", {name: value}) for value in WRONG if value != header[name])
    rng_state = header["rng"]
    for value in (-1, 2**128, 2**200, 1.5, "1", None):
        yield f"rng state {value}", {"rng": rng_state | {"state": rng_state["state"] | {"state": value}}}
        yield f"rng inc {value}", {"rng": rng_state | {"state": rng_state["state"] | {"inc": value}}}
        yield f"rng uinteger {value}", {"rng": rng_state | {"has_uint32": 1, "uinteger": value}}
        yield f"rng has_uint32 {value}", {"rng": rng_state | {"has_uint32": value}}
    letters = header["characters"]
    for words, value in (("list", [*letters]), ("twice", letters[0] + letters[0] + letters[2:]),
                         ("unsorted", letters[::-1]), ("numbers", [ord(c) for c in letters])):
        yield f"characters {words}", {"characters": value}


def _configurations(rng, header):
    for config in ("model_config", "train_config"):
        for name in header[config]:
            for value in rng.sample(NEVER, 3):
                yield f"{config}.{name} = {repr(value)[:30]}", {config: header[config] | {name: value}}
    for name, n in itertools.product(("n_layers", "vocab_size", "n_experts"), (10**5, 10**7, 10**9)):
        yield f"{name} = {n}", {"model_config": header["model_config"] | {name: n}}


def _arrays(header, arrays):
    """(name, function that writes it to a path) of checkpoints whose arrays no run has."""
    for words, changed in (*_parameters(arrays), *_history(arrays)):
        whole = {name: array for name, array in (arrays | changed).items() if array is not None}
        listed = header | {"sealed": False, "arrays": sorted(whole)}
        yield words, lambda path, listed=listed, whole=whole: archives.write(path, listed, whole)


def _parameters(arrays):
    """(name, arrays to change; None is taken out)."""
    for group, entry in itertools.product(("params", "mean", "square"), ("layers.0.moe.w_router_DE", "final.gain_D")):
        name = f"{group}/{entry}"
        of = arrays[name]
        spoiled = of.copy()
        spoiled.flat[-1] = np.nan
        yield from ((f"{name} {words}", {name: array}) for words, array in (
            ("NaN", spoiled), ("infinite", np.full_like(of, np.inf)), ("complex", of + 1j), ("whole", of.astype(int)),
            ("truth", of > 0), ("text", of.astype(str)), ("times", of.astype(int).astype("M8[s]")),
            ("deep", of[None]), ("one number", np.float32(1)), ("empty", of[:0]), ("long", np.concatenate([of, of])),
            ("record", np.zeros(of.shape, [("a", "f4")])), ("missing", None)))
    yield "negative second moment", {"square/final.gain_D": np.full_like(of, -1e-9)}
    yield "an unknown parameter", {"params/more": of}
    yield "an unknown group", {"more": of}


def _history(arrays):
    """(name, arrays to change; None is taken out)."""
    for name in ("ce", "router_load", "router_step", "eval_ce", "eval_load", "eval_experts", "seconds", "eval_step",
                 "router_entropy", "eval_information_token", "router_drop_position"):
        array = arrays[f"history/{name}"]
        yield from ((f"history {name} {words}", {f"history/{name}": other}) for words, other in (
            ("number", np.float64(1)), ("text", array.astype(str)), ("complex", array.astype(complex)),
            ("empty", array[:0]), ("flat", array.reshape(-1)[:-1]), ("deep", array[..., None]),
            ("times", array.astype(int).astype("M8[s]")), ("long", np.concatenate([array, array]))))
    yield "history ce NaN", {"history/ce": np.full_like(arrays["history/ce"], np.nan)}
    yield "history without ce", {"history/ce": None}
