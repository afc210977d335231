"""The layout of runs on disk, and whether an existing run has the requested configuration."""

from dataclasses import replace

import pytest

from minimoe.training import checkpoint, corpus, data, loop, runs
from tests.small import CORPUS, MODEL, TRAINING

EXPLICIT = replace(MODEL, balance_coef=0.01, z_coef=0.001)
"""The weights that softmax_topk has by default."""
OTHER_CORPUS = data.build(corpus.clusters(length=310), 8)


def save(folder, config=MODEL, step=0):
    state = loop.new_state(config, TRAINING, CORPUS)
    if step:
        loop.train(state, CORPUS)
    checkpoint.save(runs.checkpoint_path(folder), state)


def test_runs_are_found_and_their_seeds_counted(tmp_path):
    assert runs.find(tmp_path) == runs.find("x" * 300) == [] and runs.count_seeds(tmp_path / "moe") == 0
    for seed in (1, 0):
        save(runs.seed_folder(tmp_path / "moe", seed))
    save(tmp_path / "alone")
    (tmp_path / "moe/seed2").mkdir()  # holds nothing
    assert runs.count_seeds(tmp_path / "moe") == 2
    assert [folder.relative_to(tmp_path).as_posix() for folder in runs.find(tmp_path)] == [
        "alone", "moe/seed0", "moe/seed1"]


def test_a_run_is_trained_resumed_and_taken(tmp_path, monkeypatch):
    lines = []
    whole = runs.finish(tmp_path / "whole", "it", MODEL, TRAINING, CORPUS)
    save(tmp_path / "begun")
    resumed = runs.finish(tmp_path / "begun", "it", MODEL, TRAINING, CORPUS, say=lines.append)
    assert resumed.history["ce"] == whole.history["ce"] and whole.finished
    monkeypatch.setattr(loop, "train", None)
    taken = runs.finish(tmp_path / "begun", "it", MODEL, TRAINING, CORPUS, say=lines.append)
    assert taken.history["ce"] == whole.history["ce"]
    assert [" ".join(line.split()) for line in lines] == [
        f"it: {how} ({tmp_path / 'begun/checkpoint.npz'})" for how in ("resumes at step 0", "finished earlier")]


def test_a_fresh_run_that_is_interrupted_is_resumed_without_fresh(tmp_path, monkeypatch):
    save(tmp_path, step=TRAINING.n_steps)

    def interrupted(*_, **__):
        raise loop.Interrupted("stopped after step 2")

    monkeypatch.setattr(loop, "train", interrupted)
    with pytest.raises(KeyboardInterrupt, match="^it: stopped after step 2; the same command without --fresh resumes"):
        runs.finish(tmp_path, "it", MODEL, TRAINING, CORPUS, fresh=True)


def test_a_damaged_run_is_refused_with_the_way_out(tmp_path):
    runs.checkpoint_path(tmp_path).write_bytes(b"PK")
    with pytest.raises(checkpoint.CheckpointError, match=f"delete {tmp_path} and repeat the command"):
        runs.finish(tmp_path, "it", MODEL, TRAINING, CORPUS)


@pytest.mark.parametrize("saved, asked", [(EXPLICIT, MODEL), (MODEL, EXPLICIT)])
def test_default_weights_of_losses_are_the_same_whether_given_or_not(tmp_path, saved, asked):
    save(tmp_path, saved, step=TRAINING.n_steps)
    assert runs.finish(tmp_path, "it", asked, TRAINING, CORPUS).finished


@pytest.mark.parametrize("other", [
    dict(model=replace(MODEL, balance_coef=0.02)), dict(model=replace(MODEL, z_coef=0.0)),
    dict(model=replace(MODEL, d_hidden=8)), dict(training=replace(TRAINING, seed=1)), dict(corpus=OTHER_CORPUS)])
def test_a_run_of_another_kind_is_refused(tmp_path, other):
    save(tmp_path, step=TRAINING.n_steps)
    with pytest.raises(ValueError, match="checkpoint.npz is a different run; train again with --fresh"):
        runs.finish(tmp_path, "it", other.get("model", MODEL), other.get("training", TRAINING),
                    other.get("corpus", CORPUS))


def test_only_a_finished_run_is_loaded_as_finished(tmp_path):
    save(tmp_path)
    with pytest.raises(ValueError, match="at step 0 of 6: `some command` resumes it"):
        runs.load_finished(tmp_path, MODEL, TRAINING, CORPUS, "some command")
    save(tmp_path, step=6)
    assert runs.load_finished(tmp_path, MODEL, TRAINING, CORPUS, "some command").finished
    with pytest.raises(ValueError, match="a different run"):
        runs.load_finished(tmp_path, replace(MODEL, top_k=1), TRAINING, CORPUS, "some command")
