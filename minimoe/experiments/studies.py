"""What the lessons look at and cannot train in their minute: small runs, and what is kept of each study in one file.

The files are committed under notebooks/results, so that the lessons run at once; `python -m minimoe studies` makes them
again.  All models are one small MoE, the preset `lessons`, with one remedy or one capacity changed at a time; those
with one expert a token have experts twice as wide, so as much work and more parameters.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from minimoe.analysis import explorer
from minimoe.config import ModelConfig, TrainConfig, preset
from minimoe.experiments import archive
from minimoe.training import checkpoint, corpus, data, loop, runs
from minimoe.training.threads import workers

MODEL_STEPS = 2000
"""Steps of the model that lessons and the explorer look into."""

EXPLORER = Path("figures/explorer.html")

FACTORS = (0.5, 0.75, 1.0, 1.25, 1.5, 2.0, None)
"""Capacity factors with which models are evaluated; None is dropless."""


@dataclass(frozen=True)
class Study:
    """Models that differ in one thing, some seeds of each.

    question: what it asks.   changes: label -> fields of ModelConfig that differ.   measure: (TrainState, Corpus) ->
    dict of arrays, what is kept of a run.
    """

    question: str
    changes: dict
    measure: Callable


def _history(state, text):
    """The routers at every record, and the loss at every evaluation."""
    kept = {"ce": "eval_ce", "eval_step": "eval_step", "step": "router_step", "load": "router_load",
            "entropy": "router_entropy", "balance": "balance", "drop": "drop"}
    return {name: np.array(state.history[of]) for name, of in kept.items()}


def _at_other_capacities(state, text):
    """Loss and drops on held-out text with each of FACTORS, whatever the run was trained with; drops in training."""
    with workers(2) as each:
        found = [loop.evaluate(state.params, text, replace(state.model_config, eval_capacity_factor=factor),
                               state.train_config, each) for factor in FACTORS]
    return {"ce": np.array([one["ce"] for one in found]), "drop": np.array([one["drop"] for one in found]),
            "training_drop": np.array(state.history["drop"]),
            "drop_position": np.array([one["drop_position"] for one in found])}


ALONE = dict(balance_coef=0.0, z_coef=0.0)
"""No auxiliary loss but what is said beside it."""

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
}
"""Name -> Study.  A result is the file of that name."""


@dataclass(frozen=True)
class Plan:
    """What is trained, and where it is put.  base: the MoE.  steps: of the model that is looked into.

    seeds: runs of each of the others.
    """

    base: ModelConfig
    training: TrainConfig
    steps: int
    seeds: int
    runs: Path
    archive: Path

    def path(self, study, label, seed):
        """Where the checkpoint of a model is."""
        folder = label.replace(",", "").replace(" = ", "-").replace(" ", "-").lower()
        return self.runs / study / folder / f"seed{seed}" / "checkpoint.npz"


def plan(quick, seeds, vocab_size):
    """The studies, or quick ones that show the same in seconds and are far too short to learn from."""
    base, training = preset("lessons", {"vocab_size": vocab_size})
    if quick:
        brief = replace(training, n_steps=4, eval_every=2, eval_batches=2, record_every=2, warmup_steps=2)
        return Plan(base, brief, 4, seeds, Path("runs/studies-quick"), Path("runs/studies-quick/results"))
    return Plan(base, training, MODEL_STEPS, seeds, Path("runs/studies"), archive.WRITTEN)


def main(quick=False, seeds=3, fresh=False, threads=1, say=print):
    """Train what is not trained yet, and write the results.

    quick: the small version.  seeds: runs of each model.  fresh: train again what is there.  threads: see `loop.train`.
    say: prints.
    """
    text = data.build(corpus.embedded(), TrainConfig().sequence)
    what = plan(quick, seeds, len(text.tokenizer))
    say(f"Training {sum(len(study.changes) for study in STUDIES.values())} models, {seeds} seeds each, and one for "
        f"{what.steps} steps.\nInterrupt when you like: the same command goes on from there.\n")

    def finished(study, label, config, training):
        name = f"{study}, {label}, seed {training.seed}"
        return runs.finish(what.path(study, label, training.seed), name, config, training, text, fresh, say, threads)

    long = replace(what.training, n_steps=what.steps, warmup_steps=min(100, what.steps // 2))
    _keep_model(finished("model", "moe", what.base, long), what.archive / "moe/checkpoint.npz")
    for name, study in STUDIES.items():
        kept = {}
        for label, changes in study.changes.items():
            config = replace(what.base, **changes)
            states = [finished(name, label, config, replace(what.training, seed=seed)) for seed in range(seeds)]
            kept[label] = archive.by_seed([study.measure(state, text) for state in states])
        archive.write(what.archive / f"{name}.npz", kept)
        say(f"{study.question} {what.archive / name}.npz")


def _keep_model(state, path):
    """A finished run without AdamW's moments, which would be two thirds of its file and which nothing goes on from."""
    empty = {name: np.zeros_like(array) for name, array in state.params.items()}
    checkpoint.save(path, replace(state, moments=(empty, empty)), compressed=True)


def figure(say=print):
    """Write the router explorer of the model that the lessons look into, for the README."""
    explorer.save(explorer.page(model(), run="the lessons' model"), EXPLORER)
    say(f"wrote {EXPLORER}")


def model(folder=archive.FOLDER):
    """The TrainState of the trained model that the lessons look into.  Raises CheckpointError if it is not there."""
    return checkpoint.load(Path(folder) / "moe/checkpoint.npz")
