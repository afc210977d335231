"""Training that is killed at random moments, again and again, and resumed; and folders taken away while it trains."""

import shutil
import time

import numpy as np

from minimoe.training import checkpoint
from tests.benchmarks.attacks import attempt

TRAIN = ["train", "--text", "words.txt", "--run", "run"]
START = [*TRAIN, "--preset", "tiny", "--n-steps", "60", "--accumulate", "4", "--eval-every", "8", "--eval-batches", "2",
         "--checkpoint-every", "1", "--capacity-factor", "1", "--drop-order", "random"]
PATH = "run/checkpoint.npz"


def attack(rng, folder, quick):
    """(case, problem or None) of each attempt."""
    undisturbed, took = made(folder / "undisturbed"), 0.0
    began = time.monotonic()
    attempt.finished(attempt.started(START, undisturbed))
    took, expected = time.monotonic() - began, outcome(undisturbed / PATH)
    for i in range(2 if quick else 8):
        where = made(folder / f"killed{i}")
        for life in range(4):
            yield f"kill {i}.{life}", _killed(rng.uniform(0.2, 1) * took, where)
        end = attempt.finished(attempt.started(_again(where), where))
        yield f"resume {i}", attempt.problem(end, (0,)) or differences(where / PATH, expected)
    for i in range(1 if quick else 3):
        yield f"folder taken {i}", _taken(made(folder / f"taken{i}"), rng, expected)


def made(folder):
    """A new folder with a text."""
    folder.mkdir()
    (folder / "words.txt").write_text(attempt.WORDS, "utf-8")
    return folder


def _again(folder):
    return [*TRAIN, "--resume"] if (folder / PATH).exists() else START


def _killed(seconds, folder):
    process = attempt.started(_again(folder), folder)
    time.sleep(seconds)
    process.kill()
    attempt.finished(process)
    return unreadable(folder / PATH)


def unreadable(path):
    """What is wrong with a checkpoint that may be missing, or None."""
    try:
        if path.exists():
            checkpoint.load(path)
    except ValueError as error:
        return f"damaged: {error}"
    return None


def outcome(path):
    """All that a run has come to, but for the seconds that it took: name -> bytes."""
    state = checkpoint.load(path)
    groups = {"param": state.params, "mean": state.moments[0], "square": state.moments[1], "history": state.history}
    return {f"{group} {name}": np.array(value).tobytes() for group, values in groups.items()
            for name, value in values.items() if name != "seconds"} | {"rng": str(state.rng.bit_generator.state)}


def differences(path, expected):
    """What differs from a run to which nothing happened, or None; and nothing lies about."""
    if [found.name for found in path.parent.iterdir()] != [path.name]:
        return f"left behind: {sorted(found.name for found in path.parent.iterdir())}"
    found = outcome(path)
    return ", ".join(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name)) or None


def _taken(folder, rng, expected):
    """The folder of a run is removed, and another process begins there: the first must not touch what is not its own.
    """
    first = attempt.started(START, folder)
    while not (folder / PATH).exists() and first.poll() is None:
        time.sleep(0.001)
    time.sleep(rng.uniform(0, 0.1))
    shutil.rmtree(folder / "run", ignore_errors=True)
    second = attempt.started(START, folder)
    one, other = attempt.finished(first), attempt.finished(second)
    kept = {0: 2, 2: 0}  # one of them has the folder and finishes, and the other says that it has lost it
    if one.status not in kept or other.status != kept[one.status]:
        return f"status {one.status} and {other.status}: {one.err[-200:]} {other.err[-200:]}"
    return attempt.problem(one) or attempt.problem(other) or differences(folder / PATH, expected)
