"""Progress bars: of a training run, with loss, tokens a second, drops and balance; and of measurements."""

import contextlib
import sys

import numpy as np
from tqdm import tqdm


@contextlib.contextmanager
def bar(state, label):
    """An `on_step` for `loop.train` that draws the bar on standard error.  label: name of the run."""
    config = state.train_config
    tokens_per_step = config.batch * config.sequence * config.accumulate
    with tqdm(total=config.n_steps, initial=state.step, desc=label, unit="step", **_often()) as progress:

        def on_step(state):
            recent = {name: np.mean(state.history[name][-20:]) for name in ("ce", "seconds", "drop", "balance")}
            progress.set_postfix_str(
                f"loss {recent['ce']:.3f}, {tokens_per_step / recent['seconds']:,.0f} tokens/s, "
                f"dropped {recent['drop']:.1%}, balance {recent['balance']:.3f}", refresh=False)
            progress.update()

        yield on_step


def rounds(n, label="timing"):
    """Counts n rounds of measurements, as `range` does, and draws a bar of them on standard error."""
    return tqdm(range(n), label, unit="round", **_often())


def _often():
    seconds = 0.1 if sys.stderr.isatty() else 10  # a log file needs fewer lines than a screen
    return {"dynamic_ncols": True, "mininterval": seconds, "maxinterval": seconds}
