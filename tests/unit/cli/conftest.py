"""A command as its user types it: within the process, in a folder of its own in which runs and texts are there."""

import shlex
import shutil
from pathlib import Path

import pytest

from minimoe import cli
from minimoe.config import preset
from minimoe.training import checkpoint, corpus, data, loop, runs

FILES = {"words.txt": b"The cat sat on the mat, if x: the hat\n" * 30,
         "other words.txt": b"if x: the hat, The mat sat on the cat\n" * 30, "short.txt": b"to be or not to be\n"}


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """A folder with FILES, a finished run, and half a run (3 of 6 steps), both on words.txt."""
    folder = tmp_path_factory.mktemp("made")
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    text = data.build(corpus.from_files([folder / "words.txt"]), sequence=32)
    config, training = preset("tiny", dict(vocab_size=len(text.tokenizer)), dict(n_steps=6, eval_batches=2))
    state = loop.new_state(config, training, text)
    for _ in range(3):
        loop.step_once(state, text)
    checkpoint.save(runs.checkpoint_path(folder / "runs/half"), state)
    loop.train(state, text, runs.checkpoint_path(folder / "runs/done"))
    return folder


@pytest.fixture
def run(made, tmp_path, monkeypatch, capsys):
    """A function that runs a command in a copy of that folder: exit status, standard output, standard error."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)

    def command(line):
        try:
            status = cli.main(shlex.split(line))
        except SystemExit as stop:
            status = stop.code
        return status, *capsys.readouterr()

    return command


@pytest.fixture
def refused(run):
    """A function that runs a command which must fail with status 2, and change no file: its one message, unwrapped."""

    def contents():
        return {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}

    def command(line):
        before = contents()
        status, out, err = run(line)
        assert (status, out) == (2, "") and contents() == before
        first, *rest = err.splitlines()
        assert first.startswith("minimoe: error: ") and all(line.startswith("  ") for line in rest), err
        assert all(len(line) <= 80 or " " not in line.strip() for line in (first, *rest)), err
        return " ".join(err.split())

    return command


@pytest.fixture
def untrained(run):
    """A function that makes a run of one step with these options of `train`, on the made-up language."""
    return lambda options: run(f"train --preset tiny --n-steps 1 --eval-batches 1 --clusters --run new {options}")
