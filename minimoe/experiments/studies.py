"""Small runs that take too long for the lessons themselves, with the results of each study in one file.

The files are committed under notebooks/results, so that the lessons run without training; `python -m minimoe studies`
makes them again.  All models are one small MoE, the preset `lessons`, with one thing changed at a time: a remedy, a
capacity, or the granularity of the experts.  Models with one expert per token have experts twice as wide, that is, the
same work and more parameters.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from minimoe import terminal
from minimoe.analysis import explorer
from minimoe.config import preset
from minimoe.experiments import archive, engine, wording
from minimoe.experiments.engine import Experiment, Variant
from minimoe.training import checkpoint, data, evaluation, runs
from minimoe.training.threads import workers

MODEL, MODEL_STEPS = archive.MODEL, 2000
"""The model that the lessons and the explorer use, and its number of steps."""

EXPLORER = Path("figures/explorer.html")

FACTORS = (0.5, 0.75, 1.0, 1.25, 1.5, 2.0, None)
"""Capacity factors with which models are evaluated; None is dropless."""


class Study(NamedTuple):
    """Models that differ in one thing.

    question: in words.   changes: label -> fields of ModelConfig that differ.   measure: see `engine.Experiment`.
    """

    question: str
    changes: dict
    measure: Callable


def _history(state, corpus):
    """The routers' statistics at every record, and the loss at every evaluation."""
    kept = {"ce": "eval_ce", "eval_step": "eval_step", "step": "router_step", "load": "router_load",
            "entropy": "router_entropy", "balance": "balance", "drop": "drop"}
    return {name: np.array(state.history[of]) for name, of in kept.items()}


def _at_other_capacities(state, corpus):
    """Loss and drops on held-out text with each of FACTORS, whatever the training used; and drops in training."""
    with workers(2) as each:
        found = [evaluation.evaluate(state.params, corpus, replace(state.model_config, eval_capacity_factor=factor),
                                     state.train_config, each) for factor in FACTORS]
    return {"ce": np.array([one["ce"] for one in found]), "drop": np.array([one["drop"] for one in found]),
            "training_drop": np.array(state.history["drop"]),
            "drop_position": np.array([one["drop_position"] for one in found])}


def _losses(state, corpus):
    """The loss at every evaluation."""
    return {"ce": np.array(state.history["eval_ce"]), "eval_step": np.array(state.history["eval_step"])}


ALONE = dict(balance_coef=0.0, z_coef=0.0)
"""No auxiliary loss but those given with it."""

STUDIES = {
    "balance": Study("what keeps the experts busy?", {
        "no loss": ALONE,
        "balance 0.01": ALONE | dict(balance_coef=0.01),
        "balance 0.1": ALONE | dict(balance_coef=0.1),
        "z 0.001 alone": ALONE | dict(z_coef=0.001),
        "importance 0.1": ALONE | dict(importance_coef=0.1),
        "noise, importance and load": dict(router="noisy_topk"),
        "bias 0.01": dict(router="sigmoid_bias", bias_rate=0.01, sequence_coef=0.0),
        "K = 1, no loss": ALONE | dict(top_k=1, d_hidden=64),
        "K = 1, balance 0.01": ALONE | dict(top_k=1, d_hidden=64, balance_coef=0.01),
    }, _history),
    "capacity": Study("how much room do experts need?", {
        "dropless" if factor is None else f"capacity {factor:g}": dict(capacity_factor=factor)
        for factor in (0.5, 0.75, 1.0, 1.25, 2.0, None)}, _at_other_capacities),
    "granularity": Study("do fine-grained and shared experts help?", {
        "dense": dict(n_experts=1, top_k=1, d_hidden=64),
        "2 of 8": {},
        "4 of 16": dict(n_experts=16, top_k=4, d_hidden=16),
        "8 of 32": dict(n_experts=32, top_k=8, d_hidden=8),
        "3 of 15, 1 shared": dict(n_experts=15, top_k=3, d_hidden=16, n_shared_experts=1),
        "6 of 30, 2 shared": dict(n_experts=30, top_k=6, d_hidden=8, n_shared_experts=2),
    }, _losses),
}
"""Name -> Study.  A result is the file of that name."""


def _nothing(state, corpus):
    return {}


def experiments(quick, seeds, vocab_size):
    """The studies' Experiments, first the lessons' model; or quick ones, far too short to learn anything from."""
    base, training = preset("lessons", {"vocab_size": vocab_size})
    n_steps, root, results = MODEL_STEPS, Path("runs/studies"), archive.WRITTEN
    if quick:
        training = replace(training, n_steps=4, eval_every=2, eval_batches=2, record_every=2, warmup_steps=2)
        n_steps, root = 4, Path("runs/studies-quick")
        results = root / "results"
    long = replace(training, n_steps=n_steps, warmup_steps=min(100, n_steps // 2))
    model_alone = Experiment("model", "what does one model learn?", {MODEL: Variant(base, long)}, 1, root / "model",
                             _nothing, archive=runs.checkpoint_path(results / MODEL))
    return [model_alone, *(
        Experiment(name, study.question, {label: Variant(replace(base, **changes), training)
                                          for label, changes in study.changes.items()},
                   seeds, root / name, study.measure, archive=results / f"{name}.npz")
        for name, study in STUDIES.items())]


def main(quick=False, seeds=3, fresh=False, threads=1, say=terminal.say):
    """Train what is not trained yet, and write the results.

    quick: the small version.  seeds: runs of each model.  fresh: train again what is there.  threads: see `loop.train`.
    say: prints.
    """
    corpus = data.embedded_corpus()
    model_alone, *studies = experiments(quick, seeds, len(corpus.tokenizer))
    n_steps = model_alone.variants[MODEL].train.n_steps
    n_models = sum(len(study.variants) for study in studies)
    say(f"Training {n_models} models, {wording.of_seeds(seeds)} each, and one for {n_steps} steps.\n"
        "Interrupt when you like: the same command resumes.\n")
    if quick:
        say(f"{wording.too_short(n_steps)}\n")
    engine.run(model_alone, corpus, fresh, threads, say).require_all()
    _keep_model(model_alone.states(MODEL)[0], model_alone.archive)
    for study in studies:
        found = engine.run(study, corpus, fresh, threads, lambda line, study=study: say(f"{study.name}, {line}"))
        found.require_all()
        archive.write(study.archive, found.measured)
        say(f"{study.question} {study.archive}")


def _keep_model(state, path):
    """A finished run without AdamW's moments, two thirds of its file, since it will not be trained further."""
    empty = {name: np.zeros_like(array) for name, array in state.params.items()}
    checkpoint.save(path, replace(state, moments=(empty, empty)), compressed=True)


def figure(say=terminal.say):
    """Write the router explorer of the lessons' model, for the README."""
    explorer.save(explorer.page(model(), run="the lessons' model"), EXPLORER)
    say(f"wrote {EXPLORER}")


def model(folder=archive.FOLDER):
    """The TrainState of the lessons' trained model.  Raises CheckpointError if it does not exist."""
    return checkpoint.load(runs.checkpoint_path(Path(folder) / MODEL))
