"""The machine that runs experiments: what is missing is run, what is there is taken, on any executor."""

import multiprocessing
import pickle
import time
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from minimoe.experiments import compare, engine, executors, routers, sparsity, studies, tour
from minimoe.experiments.engine import Experiment, Variant
from minimoe.training import checkpoint, loop, runs
from tests import small
from tests.small import CORPUS, MODEL, TRAINING

BRIEF = replace(TRAINING, n_steps=3, eval_batches=1)


def measure(state, corpus):
    """Two numbers and an array of a run, and the corpus that it saw."""
    return {"ce": state.history["eval_ce"][-1], "seed": state.train_config.seed, "loss": state.history["ce"],
            "digest": corpus.digest}


@pytest.fixture
def experiment(tmp_path):
    wide = replace(MODEL, d_hidden=10)
    return Experiment("width", "does width pay?", {
        "narrow": Variant(MODEL, BRIEF), "K = 1, wide": Variant(wide, BRIEF),
        "wide; longer": Variant(wide, replace(BRIEF, n_steps=4), "long")}, 2, tmp_path / "runs", measure)


def run(experiment, **options):
    lines = []
    return engine.run(experiment, CORPUS, say=lines.append, **options), lines


def assert_same(one, other):
    assert one.keys() == other.keys()
    for label in one:
        for name, rows in one[label].items():
            np.testing.assert_array_equal(rows, other[label][name])


def test_each_cell_is_the_run_that_training_alone_makes_in_a_folder_and_with_a_row_per_seed(experiment):
    results, _ = run(experiment)
    assert list(results.measured) == list(experiment.variants) and results.failures == []
    for label, variant in experiment.variants.items():
        alone = [small.trained(variant.model, n_steps=variant.train.n_steps, seed=seed, eval_batches=1)
                 for seed in range(2)]
        measured = results.measured[label]
        np.testing.assert_array_equal(measured["loss"], [state.history["ce"] for state in alone])
        assert measured["ce"].tolist() == [state.history["eval_ce"][-1] for state in alone]
        assert measured["seed"].tolist() == [0, 1] and set(measured["digest"]) == {CORPUS.digest}
    found = [folder.relative_to(experiment.folder).as_posix() for folder in runs.find(experiment.folder)]
    assert found == [f"{name}/seed{seed}" for name in ("k-1-wide", "long", "narrow") for seed in (0, 1)]
    assert [state.train_config.seed for state in experiment.states("wide; longer")] == [0, 1]
    assert experiment.states("wide; longer")[0].step == 4
    assert [cell.words for cell in experiment.cells("narrow")] == ["narrow, seed 0", "narrow, seed 1"]
    assert [cell.words for cell in replace(experiment, seeds=1).cells("narrow")] == ["narrow"]  # one needs no number


def test_what_is_there_is_taken_and_what_is_missing_is_run(experiment, monkeypatch):
    first, _ = run(replace(experiment, seeds=1))
    trained, train = [], loop.train
    monkeypatch.setattr(loop, "train", lambda state, *rest, **more: (
        trained.append((state.model_config.d_hidden, state.train_config.seed)), train(state, *rest, **more))[1])
    both, lines = run(experiment)
    assert trained == [(6, 1), (10, 1), (10, 1)]
    assert sum("finished earlier" in line for line in lines) == 3
    assert_same({label: {name: rows[:1] for name, rows in measured.items()}
                 for label, measured in both.measured.items()}, first.measured)
    run(experiment, fresh=True)
    assert len(trained) == 3 + 6


def test_an_unfinished_run_is_resumed_to_the_same_numbers(experiment):
    whole, _ = run(experiment)
    cell = experiment.cells("narrow")[1]
    half = loop.new_state(cell.model, cell.train, CORPUS)
    for _ in range(2):
        loop.step_once(half, CORPUS)
    loop._record_evaluation(half, CORPUS, map)
    checkpoint.save(runs.checkpoint_path(cell.folder), half)
    again, lines = run(experiment)
    assert any(line.startswith("narrow, seed 1: resumes at step 2") for line in lines)
    assert_same(again.measured, whole.measured)


def test_labels_with_one_folder_share_their_runs(experiment, monkeypatch):
    shared = replace(experiment, variants=dict.fromkeys(("steps", "FLOPs"), Variant(MODEL, BRIEF, "one")))
    calls, finish = [], runs.finish
    monkeypatch.setattr(runs, "finish", lambda folder, *rest: (calls.append(folder), finish(folder, *rest))[1])
    results, _ = run(shared)
    assert len(calls) == 2
    assert_same({"x": results.measured["steps"]}, {"x": results.measured["FLOPs"]})


def test_any_executor_gives_the_same_numbers_and_says_what_has_ended(experiment, tmp_path):
    seen = []
    here, _ = run(experiment, ended=lambda cell, measured, left: seen.append(
        (cell.words, measured["ce"].item(), len(runs.find(experiment.folder)))))
    assert seen == [(f"{label}, seed {n}", here.measured[label]["ce"][n], 3 * n + i + 1) for n in (0, 1)
                    for i, label in enumerate(experiment.variants)]  # each when it is there, before the next begins
    later = []
    for name, pool, ended in (
            ("threads", ThreadPoolExecutor, lambda cell, *rest: later.append((cell.words, rest[0]["ce"], rest[1]))),
            ("processes", executors.side_by_side, None)):
        with pool(2) as executor:
            there, lines = run(replace(experiment, folder=tmp_path / name), executor=executor, ended=ended)
        assert_same(there.measured, here.measured)
    assert sorted(row[:2] for row in later) == sorted(row[:2] for row in seen)
    assert [row[2] for row in later] == [*range(len(seen))][::-1]
    assert sorted(line.rpartition(", seed ")[0] for line in lines) == sorted([*experiment.variants] * 2)
    assert [line.rpartition(": ")[2] for line in lines] == [
        *(f"finished, {n} to go" for n in range(len(lines) - 1, 0, -1)), "finished"]


def test_an_interruption_ends_the_processes_at_once(experiment):
    with pytest.raises(KeyboardInterrupt), executors.side_by_side(2) as executor:
        slow = [executor.submit(time.sleep, 60) for _ in range(2)]
        executor.submit(abs, 0)
        while not all(future.running() for future in slow):
            time.sleep(0.01)
        raise KeyboardInterrupt
    assert not multiprocessing.active_children() and all(future.exception() for future in slow)
    with pytest.raises(ValueError, match="processes = 0: must be 1 or more"), executors.side_by_side(0):
        pass


def test_what_every_experiment_measures_can_travel_to_other_processes():
    compared, (sparse, _) = compare.models(True, 50), sparsity.experiment(True, 1, 50)
    assert [pickle.loads(pickle.dumps(cell)).label for label in sparse.variants for cell in sparse.cells(label)]
    for experiment in (sparse, tour.experiment(True, 1, 50), routers.experiment(True, 1, 50),
                       *studies.experiments(True, 1, 50),
                       compare.experiment(True, 1, compared, dict.fromkeys(compared.all, 1.0))):
        assert pickle.loads(pickle.dumps(experiment.measure)) is experiment.measure


@pytest.mark.parametrize(("fields", "message"), [
    (dict(seeds=0), "seeds = 0: must be a whole number, 1 or more"), (dict(seeds=2.0), "seeds = 2.0: "),
    (dict(variants={"a, b": Variant(MODEL, BRIEF), "a b": Variant(MODEL, replace(BRIEF, n_steps=9))}),
     "variants 'a, b' and 'a b' differ and have one folder, ")])
def test_an_experiment_that_would_lose_a_variant_is_refused(experiment, fields, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        replace(experiment, **fields)


def test_a_cell_that_fails_is_reported_loses_no_other_and_is_tried_again(experiment):
    bad = replace(experiment, variants=experiment.variants | {
        "diverges": Variant(MODEL, replace(BRIEF, learning_rate=1e30, clip_norm=1e30))})
    said = []
    results = engine.run(bad, CORPUS, say=lambda line: said.append((line, len(runs.find(bad.folder)))))
    assert list(results.measured) == list(experiment.variants)
    assert [failure.cell.words for failure in results.failures] == ["diverges, seed 0", "diverges, seed 1"]
    assert [found for line, found in said if "FAILED: step " in line] == [3, 6]  # said as it happens
    with pytest.raises(ValueError, match=r"^2 runs failed, the rest are kept: diverges, seed 0: step \d.*; diverg"):
        results.require_all()
    mended = replace(bad, variants=bad.variants | {"diverges": Variant(MODEL, BRIEF)})
    again, _ = run(mended)
    again.require_all()
    assert list(again.measured) == list(mended.variants)


def test_a_label_of_which_one_seed_fails_is_left_out(experiment):
    class Odd(Exception):
        """Cannot be sent from a process to another."""
        def __init__(self, one, two):
            super().__init__(one)

    def measure_or_fail(state, corpus):
        if state.train_config.n_steps == 4:
            return {"odd": np.zeros(state.train_config.seed)}
        if (state.model_config.d_hidden, state.train_config.seed) == (6, 1):
            raise Odd("no number", 2)
        return measure(state, corpus)

    results, _ = run(replace(experiment, measure=measure_or_fail))
    assert list(results.measured) == ["K = 1, wide"] and pickle.loads(pickle.dumps(results.failures))
    with pytest.raises(ValueError, match="^2 runs failed, the rest are kept: narrow, seed 1: Odd: no number; "
                                         "wide; longer, seed 0: its seeds have different shapes"):
        results.require_all()


def test_an_interruption_stops_at_once_and_names_the_way_on(experiment, monkeypatch):
    def interrupted(*_, **__):
        raise loop.Interrupted("stopped after step 3")

    monkeypatch.setattr(loop, "train", interrupted)
    with pytest.raises(KeyboardInterrupt, match="^narrow, seed 0: stopped after step 3; the same command resumes"):
        run(experiment)


class Later(Executor):
    """Keeps its calls and runs none, as a queue that is full does; the last one interrupts."""

    def __init__(self):
        self.futures = []

    def submit(self, function, /, *arguments, **options):
        if len(self.futures) == 5:
            raise KeyboardInterrupt
        self.futures.append(Future())
        return self.futures[-1]


def test_what_waits_in_a_pool_is_canceled_when_interrupted(experiment):
    pool = Later()
    with pytest.raises(KeyboardInterrupt):
        run(experiment, executor=pool)
    assert [future.cancelled() for future in pool.futures] == [True] * 5


def test_finished_runs_are_measured_again_and_unfinished_ones_refused(experiment):
    with pytest.raises(ValueError, match="there is no checkpoint"):
        engine.measure_finished(experiment, CORPUS, "the command")
    results, _ = run(experiment)
    assert_same(engine.measure_finished(experiment, CORPUS, "the command"), results.measured)
    longer = replace(experiment, variants={"narrow": Variant(MODEL, replace(BRIEF, n_steps=9))})
    with pytest.raises(ValueError, match="a different run"):
        engine.measure_finished(longer, CORPUS, "the command")


def with_half(state, train, corpus):
    """A run that begins with half of each weight of another."""
    return loop.new_state(state.model_config, train, corpus, {name: w / 2 for name, w in state.params.items()})


def test_a_run_that_begins_with_another_waits_for_it_wherever_it_runs_and_fails_with_it(experiment, tmp_path):
    longer = replace(BRIEF, n_steps=4)
    chain = replace(experiment, seeds=1, variants={
        "first": Variant(MODEL, BRIEF), "half": Variant(MODEL, longer, start=engine.Start("first", with_half)),
        "quarter": Variant(MODEL, BRIEF, start=engine.Start("half", with_half))})
    here, lines = run(chain)
    start, (half,) = runs.load(tmp_path / "runs/first/seed0"), chain.states("half")
    state = loop.train(with_half(start, longer, CORPUS), CORPUS)
    assert state.history["eval_step"] == [0, 3, 4] and small.numbers(state) == small.numbers(half)
    with ThreadPoolExecutor(3) as executor:
        there, _ = run(replace(chain, folder=tmp_path / "threads"), executor=executor)
    assert_same(there.measured, here.measured)
    wrong = replace(chain, folder=tmp_path / "wrong", variants=chain.variants | {
        "half": Variant(replace(MODEL, d_hidden=9), longer, start=engine.Start("first", with_half))})
    results, _ = run(wrong)
    assert [failure.cell.label for failure in results.failures] == ["half", "quarter"]
    assert "a different run" in str(results.failures[0].error) and "no checkpoint" in str(results.failures[1].error)
    with pytest.raises(ValueError, match="^variant 'half' starts from 'quarter', which does not come earlier$"):
        replace(chain, variants={"half": Variant(MODEL, BRIEF, start=engine.Start("quarter", with_half))})
