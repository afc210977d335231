"""Validation loss against steps."""

from itertools import cycle

import numpy as np

from minimoe.plots import figures, palette


@figures.picture
def losses(curves, title):
    """Validation loss against steps.

    curves: name -> (steps, ce), arrays of one length, or ce with one row per seed.
    """
    figure = figures.new_figure(8.5, 4.4, title)
    axis = figure.subplots()
    for (name, (steps, ce)), (shade, line) in zip(curves.items(), cycle(palette.MODEL_STYLES), strict=False):
        ce = np.atleast_2d(ce)
        axis.plot(steps, ce.mean(axis=0), line, color=shade, lw=2.2, label=name)
        if len(ce) > 1:
            axis.fill_between(steps, ce.min(axis=0), ce.max(axis=0), color=shade, alpha=0.2, lw=0)
    axis.set(xlabel="optimizer steps", ylabel="validation loss (nats per token)")
    axis.legend(frameon=False, title=f"mean and range of {len(ce)} seeds" if len(ce) > 1 else None)
    figures.plain(axis)
    return figure
