"""Progress on standard error: of a run, with loss, tokens per second, drops and balance; and of measurements.

On a screen it is a bar, drawn by rich; in a log file or a pipe it is an occasional line of plain text.
"""

import contextlib
import functools
import sys
import time

import numpy as np

from minimoe import terminal

SCREEN_SECONDS, LOG_SECONDS = 0.5, 10.0
"""Seconds between two updates of a bar, and between two lines of a log, which needs fewer."""


@contextlib.contextmanager
def bar(state, label):
    """An `on_step` for `loop.train` that shows how far the run is.  label: name of the run."""
    config = state.train_config
    tokens_per_step = config.batch * config.sequence * config.accumulate

    model = state.model_config
    chooses = bool(model.moe_layers) and model.n_experts > 1  # a dense model has no balance

    def words():
        recent = {name: np.mean(state.history[name][-20:]) for name in ("ce", "seconds", "drop", "balance")}
        parts = [f"loss {recent['ce']:.3f}", f"{tokens_per_step / recent['seconds']:,.0f} tokens/s"]
        parts += [f"dropped {recent['drop']:.1%}"] * (chooses and model.capacity_factor is not None)
        return ", ".join(parts + [f"balance {recent['balance']:.3f}"] * chooses)

    with _counted(label, config.n_steps, "steps", state.step, words) as count:
        yield lambda state: count()


def rounds(n, label="timing", unit="rounds"):
    """Counts n rounds of measurements, as `range` does, and shows the progress."""
    with _counted(label, n, unit) as count:
        for i in range(n):
            yield i
            count()


@contextlib.contextmanager
def _counted(label, total, unit, done=0, words=lambda: ""):
    """A function to call after each step, which shows the count and the current words if an update is due."""
    label = terminal.printable(label, sys.stderr)
    screen = sys.stderr.isatty() and _console(sys.stderr).is_interactive
    wait, shown = (SCREEN_SECONDS, 0.0) if screen else (LOG_SECONDS, time.monotonic())
    with (_drawn if screen else _printed)(label, total, unit, done) as show:

        def count():
            nonlocal done, shown
            done += 1
            now = time.monotonic()
            if now - shown >= wait or done == total:
                shown = now
                show(done, words())

        yield count


@contextlib.contextmanager
def _printed(label, total, unit, start):
    stream, began = sys.stderr, time.monotonic()

    def show(done, words):
        left = (time.monotonic() - began) / (done - start) * (total - done)
        parts = f"{label}: {done} of {total} {unit}", f"{left:.0f} s left" * (done < total), words
        with contextlib.suppress(OSError):  # a run must not end because its progress cannot be shown
            print(", ".join(filter(None, parts)), file=stream, flush=True)

    yield show


@contextlib.contextmanager
def _drawn(label, total, unit, start):
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.table import Column

    def column(text):
        return TextColumn(text, markup=False)

    words = TextColumn("{task.fields[words]}", markup=False, table_column=Column())  # this column may wrap
    steps = column(f"{{task.completed}}/{{task.total}} {unit}")
    left = TimeRemainingColumn(compact=True, elapsed_when_finished=True)
    columns = column("{task.description}"), BarColumn(10), steps, left, words
    # drawn in this thread, after a step: a separate thread would take time from the training
    with Progress(*columns, console=_console(sys.stderr), auto_refresh=False, redirect_stdout=False,
                           redirect_stderr=False) as bars:
        task = bars.add_task(label, total=total, completed=start, words="")
        yield lambda done, words: bars.update(task, completed=done, words=words, refresh=True)


@functools.lru_cache(1)
def _console(stream):
    """One display for all bars of a stream, so that a nested bar is drawn below the outer one."""
    from rich.console import Console
    return Console(file=stream, force_jupyter=False)
