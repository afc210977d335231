"""`train`: what it leaves, how it is resumed, and what it says of what stops it."""

import re
import shlex
import signal
from pathlib import Path

import numpy as np
import pytest
import threadpoolctl

from minimoe import model
from minimoe.experiments import tour
from minimoe.sparsity import masked
from minimoe.training import checkpoint, data


def test_train_reports_the_loss_and_where_it_is_saved(run):
    status, out, _ = run("train --preset tiny --n-steps 2 --clusters --run new")
    state = checkpoint.load("new/checkpoint.npz")
    assert status == 0 and state.domains == ("cluster 0", "cluster 1", "cluster 2", "cluster 3")
    assert (f"validation loss {state.history['eval_ce'][-1]:.4f} nats per token; saved in "
            f"{Path('new/checkpoint.npz')}") in out
    run("train --preset tiny --n-steps 1 --eval-batches 1")
    assert checkpoint.load("runs/train/checkpoint.npz").domains == ("english", "python")  # what is embedded


def test_a_sparse_run_tells_how_often_its_masks_change_and_how_many_weights_have_moved(run):
    _, out, err = run("train --preset tiny --n-steps 8 --eval-batches 1 --text words.txt --sparsity 0.9 --dynamic rigl "
                      "--sparsity-every 3 --run new")
    moved, kept = masked.moved(checkpoint.load("new/checkpoint.npz"))
    out = " ".join(out.split())
    assert "rigl: the masks change once, at step 3" in out and "fewer than 5 changes of the masks" in err
    assert "are zero (not 90.0%: rounded down in each matrix)" in out
    assert f"{moved:,} of the {kept:,} remaining weights ({moved / kept:.1%}) are at places that began as zero" in out


@pytest.mark.parametrize(("options", "expected"), [
    ("--text words.txt --run 'my run'", "generate route doctor"),
    ("--router expert_choice", "route doctor"), ("--router soft", ""),
    ("--router gshard --eval-capacity-factor 1", "generate route doctor"), ("--n-experts 1 --top-k 1", "generate")])
def test_the_commands_that_train_prints_work(run, options, expected):
    source = "" if "--text" in options else "--clusters"
    _, out, _ = run(f"train --preset tiny --n-steps 1 --eval-batches 1 {source} {options}")
    commands = re.findall(r"python -m minimoe (.*)", out)
    assert [command.split()[0] for command in commands] == expected.split()
    assert ("layer 0: entropy" in out) == ("doctor" in expected)  # a dense model has no router to describe
    for command in commands:
        status, out, err = run(command)
        assert (status, err) == (0, "") and out


def test_a_resumed_run_is_the_run_itself_and_a_finished_one_stays(run):
    assert "note: runs/half is at step 3 of 6" in run("doctor runs/half")[2]
    line = "train --resume --run runs/half --text words.txt --n-steps 6 --top-k 2 --d-model 32"
    status, out, _ = run(line)
    assert status == 0 and out.startswith("runs/half/checkpoint.npz: resuming from step 3 of 6\n")
    half, done = (checkpoint.load(f"runs/{name}/checkpoint.npz") for name in ("half", "done"))
    np.testing.assert_array_equal(half.history["ce"], done.history["ce"])
    before = Path("runs/half/checkpoint.npz").read_bytes()
    status, out, _ = run(line)
    assert status == 0 and "is finished: 6 steps" in out and Path("runs/half/checkpoint.npz").read_bytes() == before


@pytest.mark.parametrize("command", ["generate --run runs/half", "train --resume --run runs/half --text words.txt"])
def test_a_damaged_checkpoint_is_refused(refused, command):
    path = Path("runs/half/checkpoint.npz")
    path.write_bytes(path.read_bytes()[:-1])
    assert str(path) in refused(command)


@pytest.mark.parametrize(("options", "step", "words"), [
    # the first step makes weights of 1e30, whose products overflow in the second
    ("--learning-rate 1e30", 1, r"step 2: the gradient is (nan|inf).*layers\.\d.*new/checkpoint.npz keeps step 1;"),
    ("--learning-rate 1e30 --checkpoint-every 50", None, "step 2: the gradient is .*; nothing was saved yet;")])
def test_a_run_that_diverges_is_reported_with_its_step_and_place(run, options, step, words):
    training, path = "--preset tiny --warmup-steps 0 --checkpoint-every 1", Path("new/checkpoint.npz")
    status, _, err = run(f"train --text words.txt --run new {training} {options}")
    assert status == 2 and re.search(f"{words}.*--learning-rate", " ".join(err.split()))
    assert (checkpoint.load(path).step if path.exists() else None) == step


@pytest.mark.parametrize("text", ["--text words.txt 'other words.txt'", "--clusters"])
def test_the_command_that_an_interrupted_run_prints_resumes_it(run, monkeypatch, text):
    """The first batch that is drawn comes with a Ctrl-C."""
    def interrupt(*options):
        monkeypatch.setattr(data, "sample", sample)
        signal.raise_signal(signal.SIGINT)
        return sample(*options)

    sample = data.sample
    monkeypatch.setattr(data, "sample", interrupt)
    status, _, err = run(f"--threads 1 train --preset tiny --n-steps 2 --eval-batches 1 --run new {text}")
    assert status == 130 and checkpoint.load("new/checkpoint.npz").step == 1
    again = re.search(r"resume\s+it\s+with:\n  python -m minimoe (.*)\n", err)[1]
    assert shlex.split(again) == shlex.split(f"train --resume --run new {text}") and run(again)[0] == 0
    assert checkpoint.load("new/checkpoint.npz").finished


def test_what_stops_a_command_is_reported_in_one_line(run, monkeypatch):
    """Ctrl-C, which has a status of its own, and a model that is too large for the memory."""
    for module, name, error, line, expected in (
            (tour, "main", KeyboardInterrupt(), "", (130, "", "\nminimoe: interrupted\n")),
            (model, "init_params", MemoryError("7.28 TiB"), "train --text words.txt",
             (2, "", "minimoe: error: not enough memory: 7.28 TiB\n"))):
        def fail(*_, error=error):
            raise error

        monkeypatch.setattr(module, name, fail)
        assert run(line) == expected


def test_matrix_products_have_one_thread_while_a_command_runs(run, monkeypatch):
    def of_blas():
        return [pool["num_threads"] for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"]

    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        seen, before = [], of_blas()
        monkeypatch.setattr(tour, "main", lambda *_: seen.append(of_blas()))
        run("--threads 3")
        assert seen == [[1] * len(before)] and of_blas() == before == [2] * len(before) != []
