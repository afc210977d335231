"""Kinds of sparsity compared with smaller dense models: loss against the cost of a model."""

from typing import NamedTuple

import numpy as np
from matplotlib.patheffects import withStroke

from minimoe.cost import quantities
from minimoe.plots import figures, palette

COLUMNS = 5


class Point(NamedTuple):
    """One model.   name: at its mark.   cost: of one.   ce: loss of each seed.   better: than dense in every seed."""

    name: str
    cost: float
    ce: np.ndarray
    better: bool


@figures.picture
def losses(families, dense, cost, title):
    """Loss against cost, one panel per way to be sparse: a small dot per seed, a large mark at the mean.

    The gray line joins smaller dense models; full marks are better than them in every seed.

    Args:
        families: name -> list of Points.
        dense: Points of the dense models.
        cost: words of the cost, with its unit.
        title: words.
    """
    rows = -(-len(families) // COLUMNS)
    figure = figures.new_figure(11, 2.4 * rows + 1.4, title, 12)
    axes = figure.subplots(rows, COLUMNS, sharex=True, sharey=True, squeeze=False)
    for axis, (name, points) in zip(axes.flat, families.items(), strict=False):
        _line(axis, dense, palette.GRAY_AA, "s", lw=3, ms=4)
        _line(axis, points, palette.BLUE, "o", lw=1.5, ms=9)
        for place, point in enumerate(sorted(points, key=lambda point: point.cost)):
            aside = 7 * (place - (len(points) - 1) / 2)  # so that names of near points do not touch
            end, up, side = (point.ce.min(), -5, "top") if point.better else (point.ce.max(), 5, "bottom")
            axis.annotate(point.name, (point.cost, end), (aside, up), textcoords="offset points", ha="center", va=side,
                          fontsize=9, color=palette.INK, fontweight="bold" if point.better else None,
                          path_effects=[withStroke(linewidth=2.5, foreground=palette.WHITE)])
        axis.set_title(name, fontsize=11, fontweight="bold" if any(point.better for point in points) else None)
        axis.set_xscale("log")
        figures.name_powers(axis.xaxis, quantities.short, (1, 3))
        axis.grid(color=palette.PALE_GRID, lw=0.6)
        axis.margins(x=0.12, y=0.14)
        figures.plain(axis)
    for axis in axes.flat[len(families):]:
        axis.set_axis_off()
    axes[-1, (len(families) - 1) % COLUMNS // 2].set_xlabel(cost)
    figure.supylabel("validation loss (nats per token)", fontsize=10, color=palette.INK)
    figure.legend(handles=_legend(axes[0, 0]), loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return figure


def _line(axis, points, shade, mark, **style):
    points = sorted(points, key=lambda point: point.cost)
    axis.plot([point.cost for point in points], [point.ce.mean() for point in points], color=shade, lw=style["lw"],
              zorder=1)
    for point in points:
        axis.plot(np.full(len(point.ce), point.cost), point.ce, ".", color=shade, mec=palette.WHITE, mew=0.5, ms=7,
                  zorder=3)
        axis.plot(point.cost, point.ce.mean(), mark, ms=style["ms"], zorder=2, mec=shade, mew=1.5,
                  color=shade if point.better else palette.WHITE)


def _legend(axis):
    """One handle for each mark."""
    kinds = {"smaller dense models": dict(color=palette.GRAY_AA, marker="s", lw=3, ms=4),
             "a seed": dict(color=palette.BLUE, marker=".", lw=0, ms=7, mec=palette.WHITE),
             "the mean": dict(color=palette.WHITE, mec=palette.BLUE, marker="o", lw=0, ms=9, mew=1.5),
             "better than dense in every seed": dict(color=palette.BLUE, marker="o", lw=0, ms=9)}
    return [axis.plot([], [], label=words, **style)[0] for words, style in kinds.items()]
