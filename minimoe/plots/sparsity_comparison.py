"""The ways to be sparse next to smaller dense models: loss against what a model costs."""

import numpy as np
from matplotlib.transforms import ScaledTranslation

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
    figure = figures.new_figure(9, 5.6)
    axis, sparse = figure.subplots(), [name for name in families if name != dense]
    curves = [name for name in sparse if len(families[name]) > 1]
    styles = {dense: (palette.BLACK, "s")} | {
        name: (palette.colour(n), MARKS[n % len(MARKS)]) for n, name in enumerate(sparse)}
    for name in (dense, *sparse):
        points = sorted(families[name], key=lambda point: point[0])
        x, mean, low, high = (np.array(column) for column in zip(*(
            (cost_of, ce.mean(), ce.min(), ce.max()) for cost_of, ce in points), strict=True))
        shade, mark = styles[name]
        line, _, bars = axis.errorbar(x, mean, (mean - low, high - mean), marker=mark, color=shade, elinewidth=1,
                                      ms=7, lw=4 if name == dense else 1.2, alpha=0.35 if name == dense else 1,
                                      zorder=1 if name == dense else 2, label=name)
        if name in curves:  # a little to the side, so that bars of equal cost do not hide each other
            side = ScaledTranslation((curves.index(name) - (len(curves) - 1) / 2) / 40, 0, figure.dpi_scale_trans)
            for artist in (line, *bars):
                artist.set_transform(artist.get_transform() + side)
    axis.set(xscale="log", xlabel=cost, ylabel="validation loss (nats per token; bars: range of the seeds)")
    figures.name_powers(axis.xaxis, quantities.short)
    axis.set_title(title, fontsize=11)
    axis.grid(color=palette.GRID, lw=0.6)
    figures.plain(axis)
    figure.legend(loc="outside right upper", frameon=False)
    return figure
