"""Contestants that take turns: each runs in its own process while the others wait.

So the memory settings, thread pools and caches of one do not affect another, and a slow moment of the machine affects
all.  Ratios are of adjacent turns.  A contestant is a context manager that builds something and yields a dict of
functions; the one named "run" is repeated.
"""

import argparse
import contextlib
import importlib
import multiprocessing
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from minimoe import terminal

WARM_UP = 3
"""Calls of `run` before anything is timed."""


class Turn(NamedTuple):
    """Seconds of each call, the result of the last one, and the process's peak of memory so far, bytes."""

    seconds: list
    result: object
    peak: int


class Contestant:
    """A process that builds what `module.build(**options)` yields, and calls its functions when asked to.

    base: the peak of its memory, bytes, when the module was imported and loaded, and nothing built.
    Raises SystemExit if it dies, after it has printed why.
    """

    def __init__(self, module, build, **options):
        context = multiprocessing.get_context("spawn")  # nothing is inherited
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, module, build, options), daemon=True)
        self.process.start()
        theirs.close()  # so that a death at the other end is seen at this one
        self.name = f"{module}.{build}"
        self.base = self._answer()

    def _answer(self):
        try:
            return self.pipe.recv()
        except EOFError:
            raise SystemExit(f"{self.name} has died: see above (for PyTorch: pip install -e '.[dev]')") from None

    def turn(self, n=1, name="run"):
        """Call a function n times.  Returns a Turn."""
        self.pipe.send((name, n))
        return Turn(*self._answer())

    def stop(self):
        """End the process."""
        self.pipe.close()
        self.process.join()


def _serve(pipe, module, build, options):
    module = importlib.import_module(module)
    getattr(module, "load", lambda: None)()
    pipe.send(peak_bytes())
    with getattr(module, build)(**options) as functions, contextlib.suppress(EOFError):
        while True:
            name, n = pipe.recv()
            calls = [timed(functions[name]) for _ in range(n)]
            pipe.send(([seconds for seconds, _ in calls], calls[-1][1], peak_bytes()))


def parser(page, turns=None):
    """A parser whose help is a page's docstring in paragraphs that fit the terminal.  turns: the default of --turns."""
    parts = [part if part.startswith(" ") else terminal.fill(" ".join(part.split())) for part in page.split("\n\n")]
    raw = argparse.ArgumentParser(description="\n\n".join(parts), formatter_class=argparse.RawDescriptionHelpFormatter)
    if turns is not None:
        raw.add_argument("--turns", type=count, default=turns, help="turns of each (default: %(default)s)")
    return raw


def count(text):
    """An option's value that counts something: 1 or more."""
    n = int(text)
    if n < 1:
        raise argparse.ArgumentTypeError(f"{n}: must be 1 or more")
    return n


def timed(function):
    """Seconds of one call, and its result."""
    started = time.perf_counter()
    result = function()
    return time.perf_counter() - started, result


def peak_bytes():
    """Peak memory of this process so far, bytes.

    From Linux's /proc, since the number of getrusage starts at what the parent process held.
    """
    line = next(line for line in Path("/proc/self/status").read_text("utf-8").splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


@contextlib.contextmanager
def together(specifications):
    """Contestants of {name: (module, build, options)}, ended in any case."""
    contestants = {}
    try:
        for name, (module, build, options) in specifications.items():
            contestants[name] = Contestant(module, build, **options)
        yield contestants
    finally:
        for contestant in contestants.values():
            contestant.stop()


def take(contestants, turns, repetitions=5):
    """Median seconds of a call in each turn, and the bytes of memory that each contestant needed above its base.

    The first call of a turn is not counted: it finds the caches full of another's data.  Returns two dicts.
    """
    seconds, memory = {name: [] for name in contestants}, {}
    for contestant in contestants.values():
        contestant.turn(WARM_UP)
    for _ in range(turns):
        for name, contestant in contestants.items():
            turn = contestant.turn(1 + repetitions)
            seconds[name].append(np.median(turn.seconds[1:]))
            memory[name] = turn.peak - contestant.base
    return {name: np.array(times) for name, times in seconds.items()}, memory


def spread(ours, theirs):
    """10th, 50th and 90th percentile of the ratio of adjacent turns."""
    return np.percentile(np.asarray(ours) / np.asarray(theirs), (10, 50, 90))


def verdict(ratio, goal, at_most=True):
    """Words for a goal: whether it is met."""
    if goal is None:
        return ""
    met = ratio <= goal if at_most else ratio >= goal
    return f"{'<=' if at_most else '>='} {goal:g} {'met' if met else 'NOT MET'}"


def table(title, subject, seconds, goals=None, unit="ms", scale=1e3):
    """Lines: the median of each contestant, and the ratio of the subject to it with its spread and goal."""
    lines = [f"{title:<44}{unit:>9}{'ratio to it':>13}{'10-90 %':>16}  goal"]
    for name, times in seconds.items():
        low, middle, high = spread(seconds[subject], times)
        ratio = "" if name == subject else f"{middle:>13.2f}{f'{low:.2f} to {high:.2f}':>16}"
        lines.append(f"{name:<44}{np.median(times) * scale:>9.2f}{ratio}  "
                     f"{verdict(middle, (goals or {}).get(name))}".rstrip())
    return "\n".join(lines)
