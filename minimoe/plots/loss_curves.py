"""Validation loss against steps and against training FLOPs."""

from itertools import cycle

import numpy as np

from minimoe.cost import quantities
from minimoe.plots import figures, palette


@figures.picture
def losses(curves, title):
    """Validation loss against steps, and against training FLOPs.

    curves: name -> (steps, flops, ce), arrays of one length, or ce with one row per seed.
    """
    figure = figures.new_figure(10, 4.4, title)
    by_step, by_flops = figure.subplots(1, 2, sharey=True)
    for (name, (steps, flops, ce)), (shade, line) in zip(curves.items(), cycle(palette.MODEL_STYLES), strict=False):
        ce = np.atleast_2d(ce)
        for axis, x in ((by_step, steps), (by_flops, flops)):
            axis.plot(x, ce.mean(axis=0), line, color=shade, lw=2.2, label=name)
            if len(ce) > 1:
                axis.fill_between(x, ce.min(axis=0), ce.max(axis=0), color=shade, alpha=0.2, lw=0)
    by_step.set(xlabel="optimizer steps", ylabel="validation loss (nats per token)", title="at equal steps")
    by_flops.set(xlabel="training FLOPs (matrix products, forward and backward)", title="at equal FLOPs", xscale="log")
    figures.name_powers(by_flops.xaxis, quantities.short)
    by_step.legend(frameon=False, title=f"mean and range of {len(ce)} seeds" if len(ce) > 1 else None)
    for axis in (by_step, by_flops):
        figures.plain(axis)
    return figure
