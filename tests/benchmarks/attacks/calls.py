"""Calls in Python with arguments of other types and sizes: a ValueError is right, or a result."""

import dataclasses
import inspect

import numpy as np

import minimoe
from minimoe import gradcheck, model
from minimoe.training import checkpoint, corpus, data, loop, runs, tokenizer
from tests import small
from tests.benchmarks.attacks import attempt

WRONG = (None, True, -1, 0, 1.5, float("nan"), 10**30, "", "x" * 10**5, b"x", [], [1], (), {}, {"a": 1}, object(), 1j,
         int, np.zeros(0), np.zeros((2, 3)), np.array(1.0), np.array(["a"]), np.array([None]), np.full((2, 3), np.nan),
         np.zeros((2, 3), int), np.zeros((2, 3), bool), np.zeros((2, 2, 2)), np.float64(2), np.int64(3))


def good_calls(folder):
    """(function, its right arguments by name) of the public face."""
    config_, params = small.MODEL, model.init_params(small.MODEL)
    tokens = np.arange(16).reshape(2, 8)
    state = small.new()
    return [
        (minimoe.init_params, dict(config=config_, seed=0, dtype=np.float32)),
        (minimoe.forward, dict(params=params, tokens_BS=tokens, config=config_, mask_BS=None)),
        (minimoe.loss_and_grads, dict(params=params, tokens_BS=tokens, targets_BS=tokens, config=config_)),
        (minimoe.generate, dict(params=params, config=config_, prompt_S=[1, 2], n_tokens=2, temperature=1.0, top_k=3,
                                top_p=0.5, seed=0)),
        (minimoe.preset, dict(name="tiny")),
        (minimoe.cost.count, dict(config=config_, batch=2, sequence=8)),
        (gradcheck.check_model, dict(config=dataclasses.replace(small.MODEL, n_layers=1))),
        (gradcheck.check_layer, dict(config=small.MODEL)),
        (tokenizer.Tokenizer, dict(characters="abc")),
        (tokenizer.Tokenizer.of, dict(text="abc")),
        (tokenizer.Tokenizer("abc").encode, dict(text="abc")),
        (data.build, dict(texts={"a": attempt.WORDS}, sequence=8)),
        (corpus.from_files, dict(paths=["x"])),
        (corpus.clusters, dict(length=100, noise=0.1, seed=0)),
        (loop.new_state, dict(model_config=config_, train_config=small.TRAINING, corpus=small.CORPUS)),
        (loop.train, dict(state=state, corpus=small.CORPUS, path=None, threads=1)),
        (checkpoint.load, dict(path=folder / "checkpoint.npz")),
        (checkpoint.save, dict(path=folder / "saved.npz", state=state)),
        (runs.find, dict(root=folder)),
    ]


def attack(rng, folder, quick):
    """(case, problem or None) of each attempt."""
    checkpoint.save(folder / "checkpoint.npz", small.new())
    calls = good_calls(folder)
    for record in (small.MODEL, small.TRAINING):
        fields = {f.name: getattr(record, f.name) for f in dataclasses.fields(record)}
        calls.append((type(record), fields))
    tried = [(function, given, name, value) for function, given in calls for name in given for value in WRONG]
    for function, given, name, value in rng.sample(tried, len(tried) // 10) if quick else tried:
        words = f"{function.__qualname__}({name}={repr(value)[:30]})"
        yield words, _problem(function, given | {name: value}, folder)


def _problem(function, given, folder):
    positional = [given[name] for name in given if name == "text" and "texts" in str(inspect.signature(function))]

    def call():
        try:
            function(*positional) if positional else function(**given)
        except ValueError as error:
            if len(str(error)) > attempt.LONGEST:
                print(f"minimoe: error: {len(str(error))} characters")
                return 3
        except MemoryError:
            return 4
        return 0

    return attempt.problem(attempt.forked(call, folder, 20), (0,))
