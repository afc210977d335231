"""Models, steps, runs and presets that are so small that a run or a whole experiment takes a second."""

import functools
import math
from dataclasses import replace

import numpy as np
from matplotlib import layout_engine

from minimoe import cost, model
from minimoe.config import PRESETS, ModelConfig, TrainConfig
from minimoe.experiments.compare import Entry
from minimoe.moe import routers
from minimoe.plots import figures
from minimoe.training import corpus, data, loop, optimizer
from tests import cases

MODEL = ModelConfig(vocab_size=32, d_model=8, n_layers=2, n_heads=2, n_kv_heads=1, d_hidden=6, n_experts=4, top_k=2,
                    max_sequence=8)
DENSE = replace(MODEL, n_experts=1, top_k=1)
BY_ROUTER = {name: cases.with_router(MODEL, name) for name in routers.ROUTERS}
RANDOM_DROPS = replace(MODEL, capacity_factor=1.0, eval_capacity_factor=1.0, drop_order="random")
TRAINING = TrainConfig(n_steps=6, batch=3, sequence=8, warmup_steps=2, learning_rate=0.02, eval_every=3, eval_batches=4,
                       record_every=2)
CORPUS = data.build(corpus.clusters(length=300), 8)
EMBEDDED = functools.cache(data.embedded_corpus)
"""The short texts, once they are `shrink`ed."""


def new(config=MODEL, text=CORPUS, **training):
    """A run before its first step."""
    return loop.new_state(config, replace(TRAINING, **training), text)


def trained(config=MODEL, **training):
    """A run after its last step."""
    return loop.train(new(config, **training), CORPUS)


def in_float64(state):
    """The same run before its first step, with more digits."""
    params = {name: array.astype(float) for name, array in state.params.items()}
    return replace(state, params=params, moments=optimizer.start_moments(params))


def first_batches(n):
    """The first batches that a run draws, and the state of the generator after them."""
    rng = np.random.default_rng(TRAINING.seed)
    return [data.sample(CORPUS.train, rng, TRAINING.batch, TRAINING.sequence) for _ in range(n)], rng


def numbers(state):
    """Everything in a run except its times, in a form that == compares bit by bit."""
    history = {name: values for name, values in state.history.items() if name != "seconds"}
    trees = enumerate((state.params, *state.moments, history, state.masks, state.traces))
    arrays = {(i, name): np.asarray(array).tobytes() for i, tree in trees for name, array in tree.items()}
    return state.step, state.rng.bit_generator.state, arrays


def slow_ce(params, config, tokens_BS, targets_BS):
    """Mean of -log softmax(logit)[target], token by token."""
    logits_BSV, _ = model.forward(params, tokens_BS, config)
    rows = zip(logits_BSV.reshape(-1, config.vocab_size).tolist(), targets_BS.ravel().tolist(), strict=True)
    return np.mean([math.log(sum(map(math.exp, logits))) - logits[target] for logits, target in rows])


def entry(name, total, flops, *ces, active=None, seconds=10.0, budget="steps", steps=100):
    """One model at one budget, as in the comparison with dense models, with made-up numbers."""
    return Entry(name, budget, steps, cost.Parameters(total, active or total, 0, 0), flops, seconds, np.array(ces))


def coarse(monkeypatch):
    """Pictures of few pixels, whose words may overlap: for tests that do not look at them."""
    monkeypatch.setattr(figures, "DPI", 30)
    monkeypatch.setattr(layout_engine.ConstrainedLayoutEngine, "execute", lambda *_: None)


def shrink(monkeypatch, **training):
    """Short texts, coarse pictures, and every preset a model of width 16 that trains six steps.

    What differs between presets stays.
    """
    coarse(monkeypatch)
    monkeypatch.setattr(corpus, "EMBEDDED_CHARACTERS", 30_000)
    monkeypatch.setattr(data, "embedded_corpus", EMBEDDED)
    narrow = {"d_model": 16, "n_layers": 2, "n_heads": 2, "d_hidden": 8, "max_sequence": 16}
    brief = {"n_steps": 6, "batch": 2, "sequence": 16, "groups": 2, "warmup_steps": 1, "eval_every": 3,
             "eval_batches": 2, "record_every": 2}
    for name, (of_model, of_training) in list(PRESETS.items()):
        monkeypatch.setitem(PRESETS, name, (of_model | narrow, of_training | brief | training))


def printed(function, *arguments, **options):
    """Everything that a command says, as one text."""
    lines = []
    function(*arguments, say=lines.append, **options)
    return "\n".join(lines)
