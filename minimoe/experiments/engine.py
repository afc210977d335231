"""The machine that runs every experiment: a table of variants, some seeds of each, one training run per cell.

    experiment = Experiment("width", "does width pay?", variants, seeds=3, folder=Path("runs/width"), measure=measure)
    results = run(experiment, corpus)           # trains what is missing, resumes what is unfinished
    results.measured["narrow"]["loss"]          # an array with one row per seed

A cell is one variant with one seed.  It has its own folder, so it can be interrupted and resumed.  Its numbers do not
depend on where it runs: here, or in the threads or processes of any `concurrent.futures.Executor`, on one machine or
several.
"""

from collections.abc import Callable
from concurrent import futures
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from minimoe import terminal
from minimoe.config import ModelConfig, TrainConfig
from minimoe.experiments import executors
from minimoe.training import runs


class Start(NamedTuple):
    """How a run starts from another, trained run.

    label: the variant that it starts from, with the same seed; that variant comes earlier in the table.
    make: (finished TrainState, TrainConfig, Corpus) -> TrainState before the first step; a function of a module, or a
        `functools.partial` of one, if it is to run in other processes.
    """

    label: str
    make: Callable


class Variant(NamedTuple):
    """What one label of an experiment trains.  A budget is part of it: `train.n_steps`.

    folder: below the experiment's; None is the name of the label.  Equal variants with one folder share their runs.
    start: Start, if its runs start from those of another variant; model is their new configuration.
    """

    model: ModelConfig
    train: TrainConfig
    folder: str | None = None
    start: Start | None = None


class Cell(NamedTuple):
    """One training run.  source: the Cell that it starts from, by `make`; None: it starts from random weights."""

    label: str
    seed: int
    words: str
    folder: Path
    model: ModelConfig
    train: TrainConfig
    source: "Cell | None" = None
    make: Callable | None = None


@dataclass(frozen=True)
class Experiment:
    """A question, and the runs that answer it.

    Args:
        name: name of its command, archive and figure.
        question: the question, in words.
        variants: label -> Variant.
        seeds: runs of each variant.
        folder: where the runs are.
        measure: (TrainState, Corpus) -> dict of name -> number or array, the stored results of one finished run; a
            function of a module, if it is to run in other processes.
        archive: file for the measured numbers; None stores none.
        figure: path of the picture; None if there is none.

    Raises ValueError for fewer seeds than 1, for different variants with one folder, and for a variant that starts from
    one that does not come earlier.
    """

    name: str
    question: str
    variants: dict[str, Variant]
    seeds: int
    folder: Path
    measure: Callable
    archive: Path | None = None
    figure: Path | None = None

    def __post_init__(self):
        if type(self.seeds) is not int or self.seeds < 1:
            raise ValueError(f"seeds = {self.seeds!r}: must be a whole number, 1 or more")
        label_of, before = {}, set()
        for label, variant in self.variants.items():
            source = variant.start and variant.start.label
            if source is not None and source not in before:
                raise ValueError(f"variant {label!r} starts from {source!r}, which does not come earlier")
            before.add(label)
            first = label_of.setdefault(self._folder(label), label)
            if self.variants[first]._replace(folder=None) != variant._replace(folder=None):
                raise ValueError(f"variants {first!r} and {label!r} differ and have one folder, {self._folder(label)}: "
                                 "give each its own folder")

    def _folder(self, label):
        return self.folder / (self.variants[label].folder or slug(label))

    def cells(self, label):
        """The Cells of a label, one per seed."""
        variant, folder = self.variants[label], self._folder(label)
        source, make = variant.start or (None, None)
        sources = [None] * self.seeds if source is None else self.cells(source)
        return [Cell(label, seed, label if self.seeds == 1 else f"{label}, seed {seed}", runs.seed_folder(folder, seed),
                     variant.model, replace(variant.train, seed=seed), sources[seed], make)
                for seed in range(self.seeds)]

    def states(self, label):
        """The TrainStates of a label's runs on disk, one per seed."""
        return [runs.load(cell.folder) for cell in self.cells(label)]


class Failure(NamedTuple):
    """A cell that could not be finished, and why."""

    cell: Cell
    error: Exception


class Results(NamedTuple):
    """The measurements and the failures.

    measured: label -> name -> array with one row per seed; without labels for which a seed failed.
    """

    measured: dict
    failures: list

    def require_all(self):
        """Raise ValueError that names the first failures, if there are any."""
        if self.failures:
            shown = "; ".join(f"{failure.cell.words}: {failure.error}" for failure in self.failures[:3])
            more = f"; and {len(self.failures) - 3} more" if len(self.failures) > 3 else ""
            runs_failed = "1 run failed" if len(self.failures) == 1 else f"{len(self.failures)} runs failed"
            raise ValueError(f"{runs_failed}, the rest are kept: {shown}{more}")


def run(experiment, corpus, fresh=False, threads=1, say=terminal.say, executor=None, ended=None):
    """Train and measure the cells of an experiment that are missing, and return the Results of all.

    Args:
        experiment: an Experiment.
        corpus: the Corpus that all train on.
        fresh: whether to train again, even if runs exist.
        threads: of each run, see `loop.train`; the results do not depend on it.
        say: prints a line.
        executor: any `concurrent.futures.Executor` whose workers see the same files, see `executors`; None runs the
            cells here, one after another, with a progress bar each.
        ended: called with each Cell that has ended, what was measured of it and how many are left, while others still
            train; None reports that it has finished, where no progress bar does.

    A failed cell is reported and does not affect the others.  Raises KeyboardInterrupt after Ctrl-C; repeat to resume.
    """
    here = executor is None
    executor = executors.Here() if here else executor
    ended = ended or _each_end(None if here else say)
    cell_of, running, waiting = {}, set(), _in_order(experiment)  # Future -> Cell; Futures; Cells
    try:
        while waiting or running:
            for cell in [*waiting]:
                if cell.source is not None and cell.source.folder in _folders(waiting, running, cell_of):
                    continue
                waiting.remove(cell)
                future = executor.submit(run_cell, cell, corpus, experiment.measure, fresh, threads,
                                         say if here else None)
                cell_of[future] = cell
                if here:
                    _report(future, cell, len(waiting), say, ended)
                else:
                    running.add(future)
            done, running = futures.wait(running, return_when=futures.FIRST_COMPLETED) if running else ((), running)
            for i, future in enumerate(done, 1):
                _report(future, cell_of[future], len(waiting) + len(running) + len(done) - i, say, ended)
        return _gathered(experiment, cell_of)
    finally:
        for future in cell_of:
            future.cancel()


def _folders(waiting, running, cell_of):
    """Of the runs that have not ended."""
    return {cell.folder for cell in [*waiting, *(cell_of[future] for future in running)]}


def _in_order(experiment):
    """All cells, seed by seed, so that an interrupted experiment has some seeds of every variant.

    Variants that share a folder share their runs: the cells belong to the first one.
    """
    cells = [cell for of_seed in zip(*map(experiment.cells, experiment.variants), strict=True) for cell in of_seed]
    folders = [cell.folder for cell in cells]
    return [cell for i, cell in enumerate(cells) if cell.folder not in folders[:i]]


class CellFailed(ValueError):
    """What went wrong in a cell, in words, since not every exception can travel from another process."""


def run_cell(cell, corpus, measure, fresh=False, threads=1, say=None):
    """Finish one cell and measure it: name -> array.  This is what an executor's worker does.

    Raises CellFailed.
    """
    try:
        start = None if cell.source is None else lambda: cell.make(_finished(cell.source, corpus), cell.train, corpus)
        state = runs.finish(cell.folder, cell.words, cell.model, cell.train, corpus, fresh, say, threads, start)
        return _measured(state, measure, corpus)
    except Exception as error:
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise CellFailed(f"{kind}{error}") from error


def _finished(cell, corpus):
    return runs.load_finished(cell.folder, cell.model, cell.train, corpus, "the same command")


def measure_finished(experiment, corpus, command):
    """Measure existing runs: label -> name -> array with one row per seed.

    command: what trains them, for a message.  Raises ValueError for the first one that is missing, not finished or
    different.
    """
    return {label: _stack([
        _measured(runs.load_finished(cell.folder, cell.model, cell.train, corpus, command), experiment.measure, corpus)
        for cell in experiment.cells(label)]) for label in experiment.variants}


def _measured(state, measure, corpus):
    return {name: np.asarray(value) for name, value in measure(state, corpus).items()}


def _each_end(say):
    """What is called with each cell that has ended: reports that; or does nothing, where a progress bar has done so."""
    return lambda cell, measured, left: say and say(f"{cell.words}: finished{f', {left} to go' * (left > 0)}")


def _report(future, cell, left, say, ended):
    if future.exception() is not None:
        say(terminal.fill(f"{cell.words}: FAILED: {future.exception()}", hanging="  "))
    else:
        ended(cell, future.result(), left)


def _gathered(experiment, cell_of):
    """The Results of cells that have ended, in the order of the table."""
    failures = [Failure(cell, future.exception()) for future, cell in cell_of.items() if future.exception()]
    measured = {cell.folder: future.result() for future, cell in cell_of.items() if not future.exception()}
    whole = {}
    for label in experiment.variants:
        cells = experiment.cells(label)
        if all(cell.folder in measured for cell in cells):
            try:
                whole[label] = _stack([measured[cell.folder] for cell in cells])
            except ValueError as error:
                failures.append(Failure(cells[0], CellFailed(f"its seeds have different shapes: {error}")))
    return Results(whole, failures)


def _stack(measured):
    """One dict of arrays with one row per seed, made from one dict per seed."""
    return {name: np.array([one[name] for one in measured]) for name in measured[0]}


def slug(label):
    """A label as the name of a folder: "K = 1, no loss" is k-1-no-loss."""
    return label.replace(",", "").replace(" = ", "-").replace(" ", "-").lower()

