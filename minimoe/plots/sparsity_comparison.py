"""The ways to be sparse next to smaller dense models: loss against what a model costs."""

import numpy as np

from minimoe.cost import quantities
from minimoe.plots import figures, palette

MARKS = "oD^vPX*<>h"
"""One for each way, so that none is told by its colour alone."""


@figures.picture
def losses(families, dense, cost, title):
    """Loss against cost: one line per way to be sparse, the range of its seeds at each model.

    Args:
        families: name -> list of (cost, loss of each seed).
        dense: the family of dense models, which is a broad line below the others.
        cost: words of the cost, with its unit.
        title: words.
    """
    figure = figures.new_figure(10, 6)
    axis, sparse = figure.subplots(), [name for name in families if name != dense]
    styles = {dense: (palette.BLACK, "s")} | {
        name: (palette.colour(n), MARKS[n % len(MARKS)]) for n, name in enumerate(sparse)}
    for name in (dense, *sparse):
        points = sorted(families[name], key=lambda point: point[0])
        x, mean, low, high = (np.array(column) for column in zip(*(
            (cost_of, ce.mean(), ce.min(), ce.max()) for cost_of, ce in points), strict=True))
        shade, mark = styles[name]
        axis.errorbar(x, mean, (mean - low, high - mean), marker=mark, color=shade, lw=4 if name == dense else 1.2,
                      elinewidth=1, ms=7, alpha=0.35 if name == dense else 1, zorder=1 if name == dense else 2,
                      label=name)
    axis.set(xscale="log", xlabel=cost, ylabel="validation loss (nats per token; bars: range of the seeds)")
    figures.name_powers(axis.xaxis, quantities.short)
    axis.set_title(title, fontsize=11)
    axis.grid(color=palette.GRID, lw=0.6)
    figures.plain(axis)
    figure.legend(loc="outside right upper", frameon=False)
    return figure
