"""The comparison of MoE and dense as a whole: it trains, tells and draws, and can be taken up where it was."""

import json
import re
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from minimoe import parameters
from minimoe.analysis import bench
from minimoe.config import ModelConfig, TrainConfig
from minimoe.experiments import compare, wording
from minimoe.training import checkpoint, corpus, data, loop

MOE = ModelConfig(vocab_size=10, d_model=8, n_layers=1, n_heads=2, d_hidden=4, n_experts=8, top_k=2, max_sequence=6)
HALF_ACTIVE, ACTIVE, HALF_TOTAL, TOTAL, TWICE = ("dense, half of active", "dense, same active", "dense, half of total",
                                                 "dense, same total", "dense, twice total")
NAMES = [HALF_ACTIVE, ACTIVE, HALF_TOTAL, TOTAL, TWICE, "MoE, 2 of 4", "MoE, 2 of 8", "MoE, 2 of 16"]
N_STEPS = 6
RUNS = ["dense-half-of-active", "dense-same-active", "dense-half-of-total", "dense-same-total", "dense-twice-total",
        "moe-2-of-4", "moe-2-of-8", "moe-2-of-16"]
PATHS = [f"runs/{folder}-{N_STEPS}-steps/seed0/checkpoint.npz" for folder in RUNS]
TIMES = Path("runs/seconds.json")


def few_steps(quick, seeds, vocab_size):
    training = TrainConfig(n_steps=N_STEPS, batch=2, sequence=8, warmup_steps=1, eval_every=3, eval_batches=2,
                           record_every=2, checkpoint_every=2)
    return compare.Plan(replace(MOE, vocab_size=vocab_size, max_sequence=8), training, seeds, Path("runs"),
                        Path("figures/compare.png"), Path("kept/compare.npz"))


def shrink(patch):
    """A plan of a few steps, and the head of the text."""
    patch.setattr(compare, "plan", few_steps)
    patch.setattr(corpus, "EMBEDDED_CHARACTERS", 20_000)


def compared(*options):
    """What the comparison prints."""
    said = []
    compare.main(*options, say=said.append)
    return "\n".join(said)


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """The folder of a finished comparison of one seed, and what it said.  Steps are timed, in one round."""
    folder, step_seconds = tmp_path_factory.mktemp("compare"), bench.step_seconds
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        shrink(patch)
        patch.setattr(bench, "step_seconds", lambda *options, **bar: step_seconds(*options, rounds=1, **bar))
        return SimpleNamespace(folder=folder, said=compared(False, 1))


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Every test is in a folder of its own, and no step is timed: a model needs 10 ms for a step, all alike."""
    monkeypatch.chdir(tmp_path)
    shrink(monkeypatch)
    monkeypatch.setattr(bench, "step_seconds", lambda configs, *_, **__: dict.fromkeys(configs, 0.01))


@pytest.fixture
def finished(first):
    """This folder is a copy of the finished comparison's."""
    shutil.copytree(first.folder, ".", dirs_exist_ok=True)


@pytest.fixture
def no_pictures(monkeypatch):
    monkeypatch.setattr(compare, "_draw", lambda *_: None)


@pytest.fixture
def no_training(monkeypatch):
    monkeypatch.setattr(loop, "train", lambda *_: pytest.fail("trained again"))


def learnt(folder="."):
    """What each model has learnt at equal steps."""
    return [parameters.flatten(checkpoint.load(Path(folder) / path).params) for path in PATHS]


def interrupt_at(patch, batch):
    """Ctrl-C while that training batch, counted over all models, is drawn."""
    drawn, data_sample = [], data.sample

    def sample(streams, *options):
        drawn.append(len(streams) == 2)  # evaluation takes one domain at a time
        if drawn[-1] and sum(drawn) == batch:
            signal.raise_signal(signal.SIGINT)
        return data_sample(streams, *options)

    patch.setattr(data, "sample", sample)


def test_a_comparison_trains_prints_and_draws(first):
    assert all((first.folder / path).exists() for path in PATHS)
    assert (first.folder / "figures/compare.png").read_bytes().startswith(b"\x89PNG\r\n")
    assert "Training 8 models" in first.said and "Picture: figures/compare.png" in first.said
    assert all(f"MoE, 2 of {n}: " in first.said for n in (4, 8, 16))
    assert first.said.endswith(wording.on_seeds(1))


def test_the_table_tells_the_loss_of_each_run_and_its_gap_to_the_moe(first):
    rows = [re.split(r" {2,}", line) for line in first.said.split("\n") if re.match("(steps|FLOPs|time)  ", line)]
    assert [(row[0], row[1]) for row in rows] == [*(("steps", name) for name in NAMES),
                                                  *((b, name) for b in ("FLOPs", "time") for name in (ACTIVE, TOTAL))]

    def loss(name, steps):
        path = few_steps(False, 1, 9).path(name, steps, 0)
        return checkpoint.load(first.folder / path).history["eval_ce"][-1]

    for _, name, steps, *_, ce, gap, agree in (row for row in rows if row[1] != "MoE, 2 of 8"):
        assert ce == f"{loss(name, int(steps)):.3f}"
        assert gap == f"{loss(name, int(steps)) - loss('MoE, 2 of 8', N_STEPS):+.3f}" and agree == "1 of 1"


def test_a_run_of_another_budget_has_a_schedule_of_its_own(first):
    """Its learning rate falls over its own steps; all else is as it was."""
    found = [checkpoint.load(path) for path in first.folder.rglob("checkpoint.npz")]
    for state in found:
        assert state.finished and len(state.history["ce"]) == state.train_config.n_steps
        assert replace(state.train_config, n_steps=N_STEPS) == few_steps(False, 1, 9).training
    assert len({state.train_config.n_steps for state in found}) > 1
    assert len({state.data_digest for state in found}) == 1


def test_all_models_see_the_same_batches_in_the_same_order(monkeypatch, no_pictures):
    seen, data_sample = [], data.sample

    def sample(streams, *options):
        batch = data_sample(streams, *options)
        if len(streams) == 2:
            seen.append(batch.tokens_BS)
        return batch

    monkeypatch.setattr(data, "sample", sample)
    compared(True, 1)
    batches = np.array(seen[:8 * N_STEPS]).reshape(8, N_STEPS, -1)
    np.testing.assert_array_equal(batches, batches[:1].repeat(8, axis=0))
    assert len(np.unique(batches[0], axis=0)) == N_STEPS


def test_a_quick_comparison_says_that_it_compares_nothing(finished, no_training):
    said = compared(True, 1)
    assert said.endswith("Far too short to compare anything: this shows that all works.")
    assert "worth a dense model" not in said and "The claim" not in said


@pytest.mark.usefixtures("finished", "no_training")
def test_a_second_comparison_trains_nothing_and_says_the_same(first):
    said = compared(False, 1)
    assert all(f"finished earlier ({path})" in said for path in PATHS)

    def table(text):
        return [line for line in text.split("\n") if re.match("(at equal|steps|FLOPs|time)  ", line)]

    assert table(said) == table(first.said)


@pytest.mark.usefixtures("finished", "no_pictures")
def test_a_fresh_comparison_trains_again_to_the_same(first):
    before = [Path(path).stat().st_mtime_ns for path in PATHS]
    said = compared(True, 1, True)
    assert "earlier" not in said
    assert all(Path(path).stat().st_mtime_ns > time for path, time in zip(PATHS, before, strict=True))
    np.testing.assert_equal(learnt(), learnt(first.folder))


@pytest.mark.usefixtures("no_pictures")
def test_an_interrupted_comparison_goes_on_where_it_was(first, monkeypatch):
    """The 14th batch is the second of the third model."""
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt, match="half of total, 6 steps.*after step 2"):
        interrupt_at(patch, 2 * N_STEPS + 2)
        compared(True, 1)
    assert not Path(PATHS[3]).exists()
    said = compared(True, 1)
    assert f"{ACTIVE}, 6 steps, seed 0: finished earlier ({PATHS[1]})" in said
    assert f"{HALF_TOTAL}, 6 steps, seed 0: goes on from step 2 ({PATHS[2]})" in said
    np.testing.assert_equal(learnt(), learnt(first.folder))


@pytest.mark.usefixtures("finished", "no_pictures")
def test_another_number_of_seeds_goes_on_with_what_is_there(monkeypatch):
    said = compared(True, 2)
    assert all(f"finished earlier ({path})" in said for path in PATHS)
    assert all(Path(path.replace("seed0", "seed1")).exists() for path in PATHS)
    monkeypatch.setattr(loop, "train", lambda *_: pytest.fail("trained again"))
    compared(True, 1)
    compared(True, 2)


def test_threads_are_those_of_the_training_and_of_its_timing(monkeypatch, no_pictures):
    seen, timed, train, seconds = [], [], loop.train, bench.step_seconds
    monkeypatch.setattr(loop, "train", lambda *options: seen.append(options[-1]) or train(*options))
    monkeypatch.setattr(bench, "step_seconds", lambda *options, **_: timed.append(options[1:]) or seconds(*options))
    compared(True, 1, False, 2)
    assert set(seen) == {2}
    [(training, text, threads)] = timed
    assert (training, threads) == (few_steps(True, 1, 9).training, 2) and len(text.held_out) == 2


def timings(patch, seconds):
    """A list that grows with each timing, and all models need so long for a step."""
    asked = []
    patch.setattr(bench, "step_seconds", lambda configs, *_, **__: asked.append(1) or dict.fromkeys(configs, seconds))
    return asked


@pytest.mark.usefixtures("finished", "no_pictures")
def test_steps_are_timed_once_and_again_when_fresh(monkeypatch):
    kept = json.loads(TIMES.read_text("utf-8"))
    assert list(kept) == NAMES and all(0 < seconds < 10 for seconds in kept.values())
    asked = timings(monkeypatch, 0.5)
    compared(True, 1)
    assert json.loads(TIMES.read_text("utf-8")) == kept and not asked
    assert re.search(r"steps +MoE, 2 of 8 .* 3  ", compared(True, 1, True))  # 6 steps of half a second
    assert json.loads(TIMES.read_text("utf-8")) == dict.fromkeys(NAMES, 0.5) and asked == [1]


@pytest.mark.usefixtures("finished", "no_pictures")
@pytest.mark.parametrize("kept", [{}, dict.fromkeys(NAMES[1:], 0.1), dict.fromkeys([*NAMES, "another"], 0.1)])
def test_times_of_other_models_are_measured_anew(monkeypatch, kept):
    TIMES.write_text(json.dumps(kept), "utf-8")
    asked = timings(monkeypatch, 0.25)
    compared(True, 1)
    assert json.loads(TIMES.read_text("utf-8")) == dict.fromkeys(NAMES, 0.25) and asked == [1]


def test_without_anything_kept_the_command_that_keeps_it_is_named(monkeypatch):
    monkeypatch.setattr(compare, "kept", lambda of=compare.kept: of("kept"))
    with pytest.raises(ValueError, match="compare.npz.*python -m minimoe compare"):
        compare.figure(say=pytest.fail)


@pytest.mark.usefixtures("finished", "no_training")
def test_the_figure_alone_is_the_same_bytes_again_and_needs_no_run(first, monkeypatch):
    for folder in ("figures", "runs"):
        shutil.rmtree(folder)
    monkeypatch.setattr(compare, "kept", lambda of=compare.kept: of("kept"))
    said = []
    compare.figure(said.append)
    assert said == ["wrote figures/compare.png"]
    assert Path(said[0].split()[1]).read_bytes() == (first.folder / "figures/compare.png").read_bytes()


@pytest.mark.usefixtures("finished", "no_pictures")
@pytest.mark.parametrize("path", [PATHS[0], PATHS[6]])
def test_runs_of_another_kind_are_refused_and_fresh_is_the_way_out(monkeypatch, path):
    other = checkpoint.load(path)
    other.train_config = replace(other.train_config, learning_rate=0.1)
    checkpoint.save(path, other)
    with pytest.raises(ValueError, match=f"{path} is a run of another kind.*--fresh"):
        compared(True, 1)
    compared(True, 1, True)
    assert "earlier" in compared(True, 1)


def test_what_is_kept_of_a_comparison_is_the_comparison(monkeypatch):
    seen = []
    monkeypatch.setattr(compare, "_keep", lambda what, entries, keep=compare._keep: (
        seen.append(entries), keep(what, entries)))
    monkeypatch.setattr(compare, "_draw", lambda what, entries, remark="": seen.append(remark))
    compare.main(seeds=2, say=lambda words: None)
    entries, remark = seen
    found = compare.kept("kept")
    assert [(e.name, e.budget, e.steps, e.parameters) for e in found] == [
        (e.name, e.budget, e.steps, e.parameters) for e in entries]
    for one, other in zip(found, entries, strict=True):
        np.testing.assert_allclose(one.ce, other.ce, rtol=1e-6)
        np.testing.assert_allclose(one.curve, other.curve, rtol=1e-6)
        np.testing.assert_array_equal(one.curve_step, other.curve_step)
        np.testing.assert_allclose((one.flops, one.seconds), (other.flops, other.seconds), rtol=1e-6)
        assert one.curve.shape == (2, len(one.curve_step)) and one.curve_step[-1] == one.steps
    assert remark == ""
