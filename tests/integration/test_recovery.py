"""A run that was killed, interrupted or out of disk space, and then resumed, equals a run without any accident."""

import os
import random
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import minimoe
from minimoe.training import checkpoint

ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(minimoe.__file__).parents[1])}
WORDS = "the cat sat on the mat, if x: the hat\n" * 60
RESUME = ["train", "--resume", "--text", "my words.txt", "--run", "my run"]
START = ["train", *RESUME[2:], "--preset", "tiny", "--n-steps", "40", "--accumulate", "4", "--eval-every", "8",
         "--eval-batches", "2", "--checkpoint-every", "5", "--capacity-factor", "1", "--drop-order", "random"]
CHECKPOINT = Path("my run/checkpoint.npz")


def start(folder, command, program=("-m", "minimoe"), **options):
    return subprocess.Popen([sys.executable, *program, *command], cwd=folder, env=ENVIRONMENT, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, encoding="utf-8", **options)


def finish(process):
    """Exit status, and the last message of standard error, unwrapped; none if it was killed before it wrote one."""
    _, err = process.communicate(timeout=60)
    return process.returncode, " ".join(re.split(r"\n(?! )", err.strip())[-1].split())


def saved(folder):
    """When the checkpoint was written; 0 without one."""
    path = folder / CHECKPOINT
    return path.stat().st_mtime_ns if path.exists() else 0


def wait_for_a_checkpoint(process, folder):
    before = saved(folder)
    while saved(folder) == before:
        assert process.poll() is None, process.communicate()
        time.sleep(0.001)


def outcome(folder):
    """Everything that a run produced, except its times: name -> array or value."""
    state = checkpoint.load(folder / CHECKPOINT)
    groups = {"param": state.params, "mean": state.moments[0], "square": state.moments[1], "history": state.history}
    flat = {f"{group} {name}": np.array(value) for group, values in groups.items() for name, value in values.items()}
    return flat | {"step": state.step, "rng": state.rng.bit_generator.state, "history seconds": None}


def assert_same(folder, other):
    left, right = outcome(folder), outcome(other)
    assert left.keys() == right.keys()
    for name in left:
        np.testing.assert_array_equal(left[name], right[name], name, strict=isinstance(left[name], np.ndarray))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "my words.txt").write_text(WORDS, "utf-8")
    return tmp_path


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The folder of the undisturbed run, which has curves."""
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "my words.txt").write_text(WORDS, "utf-8")
    assert finish(start(folder, START))[0] == 0
    seen = outcome(folder)
    assert seen["step"] == len(set(seen["history ce"])) == 40
    assert list(seen["history eval_step"]) == [8, 16, 24, 32, 40] and len(set(seen["history eval_ce"])) == 5
    return folder


def test_a_run_killed_again_and_again_is_the_run_that_was_not_killed(folder, undisturbed):
    """Each life gets as far as a checkpoint, and a random moment further; five steps take about 0.1 s."""
    rng = random.Random(0)
    for command in [START, RESUME, RESUME, RESUME]:
        process = start(folder, command)
        wait_for_a_checkpoint(process, folder)
        time.sleep(rng.uniform(0, 0.1))
        process.kill()
        assert finish(process)[0] == -signal.SIGKILL
    assert finish(start(folder, RESUME))[0] == 0
    assert_same(folder, undisturbed)


KILLED_IN = {
    "half of the file is written": "zipfile.ZipFile.close = kill",
    "the file is written, but has not its name": "os.replace = kill",
    "the file has its name": "rename = os.replace; os.replace = lambda *names: (rename(*names), kill())",
}


@pytest.mark.parametrize("moment", KILLED_IN)
def test_a_run_killed_while_it_saves_is_the_run_that_was_not_killed(folder, undisturbed, moment):
    """From the second checkpoint on: before the first there is nothing to resume."""
    program = f"""
import os, signal, sys, zipfile
from minimoe import cli
from minimoe.training import checkpoint
save = checkpoint.save

def kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def save_and_be_killed(path, state, **options):
    if path.exists():
        {KILLED_IN[moment]}
    save(path, state, **options)

checkpoint.save = save_and_be_killed
cli.main()
"""
    status, _ = finish(start(folder, START, ["-c", program]))
    assert status == -signal.SIGKILL
    assert checkpoint.load(folder / CHECKPOINT).step == (10 if moment == "the file has its name" else 5)
    assert finish(start(folder, RESUME))[0] == 0
    assert_same(folder, undisturbed)
    assert os.listdir((folder / CHECKPOINT).parent) == [CHECKPOINT.name]


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """A folder with a run that Ctrl-C ended after its first checkpoint, its exit status and its last words."""
    folder = tmp_path_factory.mktemp("interrupted")
    (folder / "my words.txt").write_text(WORDS, "utf-8")
    process = start(folder, START)
    wait_for_a_checkpoint(process, folder)
    process.send_signal(signal.SIGINT)
    return folder, *finish(process)


def test_an_interrupted_run_saves_the_step_that_it_names_and_the_printed_command_finishes_it(
        interrupted, undisturbed, tmp_path):
    """As printed, by a shell; but `python` is the one that runs this test."""
    folder, status, words = interrupted
    step = int(re.search(r"stopped after step (\d+)", words)[1])
    assert status == 130 and 5 <= step < 40 and checkpoint.load(folder / CHECKPOINT).step == step
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    command = re.search(r"python (-m minimoe train --resume .*)", words)[1]
    done = subprocess.run(f"{shlex.quote(sys.executable)} {command}", shell=True, cwd=tmp_path, env=ENVIRONMENT,
                          capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    assert_same(tmp_path, undisturbed)


def test_a_full_disk_leaves_the_checkpoint_before(interrupted, undisturbed, tmp_path):
    folder, *_ = interrupted
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    before = (tmp_path / CHECKPOINT).read_bytes()
    status, words = finish(start(tmp_path, RESUME, preexec_fn=lambda: full_disk(len(before) // 2)))
    assert status == 2 and f"cannot write the checkpoint {CHECKPOINT}" in words
    assert (tmp_path / CHECKPOINT).read_bytes() == before
    assert os.listdir((tmp_path / CHECKPOINT).parent) == [CHECKPOINT.name]
    assert finish(start(tmp_path, RESUME))[0] == 0
    assert_same(tmp_path, undisturbed)


def test_a_full_disk_leaves_no_half_of_a_first_checkpoint(folder):
    status, words = finish(start(folder, START, preexec_fn=lambda: full_disk(20_000)))
    assert status == 2 and f"cannot write the checkpoint {CHECKPOINT}" in words
    assert [path for path in folder.rglob("*") if path.is_file()] == [folder / "my words.txt"]


def full_disk(size):
    """No file of this process grows beyond `size` bytes: writing fails half-way, as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
