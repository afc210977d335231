"""The machine that runs every experiment: a table of variants, some seeds of each, one training run per cell.

    experiment = Experiment("width", "does width pay?", variants, seeds=3, folder=Path("runs/width"), measure=measure)
    results = run(experiment, corpus)           # trains what is missing, resumes what is unfinished
    results.measured["narrow"]["loss"]          # an array with one row per seed

A cell is one variant with one seed.  It has a folder of its own, so it can be interrupted and resumed, and its numbers
do not depend on where it runs: here, or in the processes of any `concurrent.futures.Executor`, on one machine or many.
"""

from collections.abc import Callable
from concurrent import futures
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from minimoe import terminal
from minimoe.config import ModelConfig, TrainConfig
from minimoe.training import runs


class Variant(NamedTuple):
    """What one label of an experiment trains.  A budget is part of it: `train.n_steps`.

    folder: below the experiment's; None is the label's own name.  Variants with one folder share their runs.
    """

    model: ModelConfig
    train: TrainConfig
    folder: str | None = None


class Cell(NamedTuple):
    """One training run."""

    label: str
    seed: int
    words: str
    folder: Path
    model: ModelConfig
    train: TrainConfig


@dataclass(frozen=True)
class Experiment:
    """A question, and the runs that answer it.

    Args:
        name: of its command, archive and figure.
        question: what it asks, in words.
        variants: label -> Variant.
        seeds: runs of each variant.
        folder: where the runs are.
        measure: (TrainState, Corpus) -> dict of name -> number or array, what is kept of one finished run.
        archive: file that keeps the measured numbers; None keeps none.
        figure: the picture; None if it has none.
    """

    name: str
    question: str
    variants: dict[str, Variant]
    seeds: int
    folder: Path
    measure: Callable
    archive: Path | None = None
    figure: Path | None = None

    def cells(self, label):
        """The Cells of a label, one per seed."""
        variant = self.variants[label]
        folder = self.folder / (variant.folder or slug(label))
        return [Cell(label, seed, label if self.seeds == 1 else f"{label}, seed {seed}", runs.seed_folder(folder, seed),
                     variant.model, replace(variant.train, seed=seed)) for seed in range(self.seeds)]

    def states(self, label):
        """The TrainStates of a label's runs, one per seed, as they are on disk."""
        return [runs.load(cell.folder) for cell in self.cells(label)]


class Failure(NamedTuple):
    """A cell that could not be finished, and why."""

    cell: Cell
    error: Exception


class Results(NamedTuple):
    """What was measured, and what failed.

    measured: label -> name -> array with one row per seed; without the labels of which a seed failed.
    """

    measured: dict
    failures: list

    def require_all(self):
        """Raise ValueError that names the first failures, if there are any."""
        if self.failures:
            shown = "; ".join(f"{failure.cell.words}: {failure.error}" for failure in self.failures[:3])
            more = f"; and {len(self.failures) - 3} more" if len(self.failures) > 3 else ""
            runs_failed = "1 run failed" if len(self.failures) == 1 else f"{len(self.failures)} runs failed"
            raise ValueError(f"{runs_failed}, the others are kept: {shown}{more}")


class Here(futures.Executor):
    """The Executor that runs each call at once, in this process, so that Ctrl-C reaches the run."""

    def submit(self, function, /, *arguments, **options):
        """A Future that is done.  An interruption is raised, not kept in it."""
        future = futures.Future()
        try:
            future.set_result(function(*arguments, **options))
        except Exception as error:
            future.set_exception(error)
        return future


def run(experiment, corpus, fresh=False, threads=1, say=terminal.say, executor=None):
    """Train and measure the cells of an experiment that are missing, and return the Results of all.

    Args:
        experiment: an Experiment.
        corpus: the Corpus that all train on.
        fresh: whether to train again what is there.
        threads: of each run, see `loop.train`; no number depends on it.
        say: prints a line.
        executor: any `concurrent.futures.Executor` whose workers see the same files; None runs the cells here, one
            after another, with a progress bar each.

    A cell that fails is reported, and loses no other.  Raises KeyboardInterrupt after Ctrl-C; the same call resumes.
    """
    here = executor is None
    executor = Here() if here else executor
    submitted = {}  # folder -> Future: variants that share a folder share their runs
    try:
        for cell in _in_order(experiment):
            if cell.folder not in submitted:
                submitted[cell.folder] = executor.submit(
                    run_cell, cell, corpus, experiment.measure, fresh, threads, say if here else None)
        return _collect(experiment, submitted, say, here)
    finally:
        for future in submitted.values():
            future.cancel()


def _in_order(experiment):
    """All cells, seed by seed: an experiment that is interrupted has some seeds of every variant."""
    return [cell for of_seed in zip(*map(experiment.cells, experiment.variants), strict=True) for cell in of_seed]


def run_cell(cell, corpus, measure, fresh=False, threads=1, say=None):
    """Finish one cell and measure it: name -> array.  This is what an executor's worker does."""
    state = runs.finish(cell.folder, cell.words, cell.model, cell.train, corpus, fresh, say, threads)
    return _measured(state, measure, corpus)


def measure_finished(experiment, corpus, command):
    """Measure runs that are there: label -> name -> array with one row per seed.

    command: what trains them, for a message.  Raises ValueError for the first that is missing, not finished or of
    another kind.
    """
    return {label: _stack([
        _measured(runs.load_finished(cell.folder, cell.model, cell.train, corpus, command), experiment.measure, corpus)
        for cell in experiment.cells(label)]) for label in experiment.variants}


def _measured(state, measure, corpus):
    return {name: np.asarray(value) for name, value in measure(state, corpus).items()}


def _collect(experiment, submitted, say, here):
    """Results of cells that run: reported as they end, gathered in the order of the table."""
    cell_of = {cell.folder: cell for label in experiment.variants for cell in reversed(experiment.cells(label))}
    folder_of = {future: folder for folder, future in submitted.items()}
    measured, failures = {}, {}
    for future in futures.as_completed(folder_of):
        folder = folder_of[future]
        cell, error = cell_of[folder], future.exception()
        if error is None:
            measured[folder] = future.result()
            if not here:
                say(f"{cell.words}: finished")
        else:
            failures[folder] = Failure(cell, error)
            say(f"{cell.words}: FAILED: {error}")
    rows = {label: [cell.folder for cell in experiment.cells(label)] for label in experiment.variants}
    whole = {label: _stack([measured[folder] for folder in folders]) for label, folders in rows.items()
             if all(folder in measured for folder in folders)}
    return Results(whole, [failures[folder] for folder in submitted if folder in failures])


def _stack(measured):
    """One dict of arrays with a row per seed, of one dict per seed."""
    return {name: np.array([one[name] for one in measured]) for name in measured[0]}


def slug(label):
    """A label as the name of a folder: "K = 1, no loss" is k-1-no-loss."""
    return label.replace(",", "").replace(" = ", "-").replace(" ", "-").lower()

