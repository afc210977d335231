"""An attack on the program: kills, signals, full disks, hostile checkpoints, nonsense in commands, files and calls.

    python -m tests.benchmarks.attack                    # a quarter of an hour: what was tried, what went wrong
    python -m tests.benchmarks.attack --quick --seed 3 --only files calls

The program promises this: a run that is killed and resumed equals an undisturbed run, bit by bit; a command ends with
status 0, 1, 2 or 130, and reports what is wrong in one short line; a call raises ValueError; and nothing takes long, or
much memory.  Linux only.
"""

import argparse
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from minimoe import terminal
from tests.benchmarks.attacks import calls, checkpoints, commands, disk, kills, signals, texts

SECTIONS = {"kills": kills.attack, "signals": signals.attack, "disk": disk.attack,
            "checkpoints": checkpoints.attack, "commands": commands.attack, "files": texts.attack,
            "calls": calls.attack}
"""Name -> (random.Random, folder, quick) -> (case, problem or None) of each attempt."""


def campaign(names, seed, quick, folder, say=print):
    """Run the sections and print their table.  Returns how many attempts went wrong."""
    rows, wrong = [("section", "tried", "right", "wrong", "seconds", "the worst case")], 0
    for name in names:
        started = time.perf_counter()
        (folder / name).mkdir()
        judged, problems = 0, []
        for case, problem in SECTIONS[name](random.Random(f"{seed} {name}"), folder / name, quick):
            judged += 1
            if problem:
                problems.append(f"{case}: {problem}")
                say(f"{name}: {problems[-1]}")
        wrong += len(problems)
        rows.append((name, judged, judged - len(problems), len(problems),
                     f"{time.perf_counter() - started:.0f}", _first(problems)))
    say(terminal.table(rows, left=(0, 5)))
    return wrong


def _first(problems):
    """The worst case: a hang is worse than a traceback, which is worse than other messages."""
    order = sorted(problems, key=lambda line: ("hangs" not in line, "traceback" not in line))
    return " ".join(order[0].split())[:120] if order else "-"


def main(words=None):
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=0, help="seed of the random moments and values (default: 0)")
    parser.add_argument("--quick", action="store_true", help="a tenth of the attempts")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), metavar="SECTION")
    options = parser.parse_args(words)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background, and its children, ignore it
    folder = Path(tempfile.mkdtemp())
    try:
        return 1 if campaign(options.only, options.seed, options.quick, folder) else 0
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
