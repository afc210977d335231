"""Ctrl-C at every moment: while the program is imported, in a step, in the write of a checkpoint, in a lesson."""

import os
import signal
import time

from tests.benchmarks.attacks import attempt, kills

COMMANDS = (["cost"], ["train", "--help"], ["rosetta"], ["cost", "--list"])


def attack(rng, folder, quick):
    """(case, problem or None) of each attempt."""
    for i in range(4 if quick else 40):
        wait, words = rng.uniform(0.03, 0.5), COMMANDS[i % len(COMMANDS)]
        process = attempt.started(words, folder)
        time.sleep(wait)
        process.send_signal(signal.SIGINT)
        end = attempt.finished(process)
        yield f"{' '.join(words)}, Ctrl-C after {wait:.3f} s", _ended(end)
    for i in range(2 if quick else 20):
        where = kills.made(folder / f"twice{i}")
        yield f"Ctrl-C twice in training {i}", _twice(where, rng)
    for _ in range(1 if quick else 6):
        wait = rng.uniform(0.3, 4)
        process = attempt.started(["lessons", "02", "--check"], folder, start_new_session=True)
        time.sleep(wait)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the kernel gets it too
        yield f"lessons, Ctrl-C after {wait:.2f} s", _ended(attempt.finished(process))


def _ended(end):
    if "Traceback" in end.err and ("minimoe/" not in end.err or "import interrupts" in end.err):
        return None  # Python itself was not ready
    return attempt.problem(end, (0, 130))


def _twice(folder, rng):
    process = attempt.started(kills.START, folder)
    while not (folder / kills.PATH).exists() and process.poll() is None:
        time.sleep(0.001)
    for _ in range(2):
        time.sleep(rng.uniform(0, 0.02))
        process.send_signal(signal.SIGINT)
    end = attempt.finished(process)
    return attempt.problem(end, (130,)) or kills.unreadable(folder / kills.PATH)
