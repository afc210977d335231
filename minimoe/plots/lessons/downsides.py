"""Pictures of what an MoE costs compared with two dense models, and of the ways in which runs fail."""

import numpy as np

from minimoe.cost import quantities
from minimoe.plots import figures, palette

MARKS = ((palette.DENSE, "s"), (palette.MOE, "D"), (palette.LARGE_DENSE, "o"))
"""Colour and marker of a small dense model, an MoE and a large dense model."""

SIZES = {"s": 12, "D": 7.5, "o": 12}
"""Size of each marker: the MoE's is the smallest, so that one sees what it lies on."""


@figures.picture
def relative_costs(rows, names, title):
    """How far from a small dense model to a large one an MoE is, cost by cost, on a logarithmic scale.

        place = log(moe / small) / log(large / small),   so that 0 is the small one and 1 the large one

    Args:
        rows: label -> (small, moe, large, unit); each a number, or an array of one entry per seed: its mean counts, and
            its entries are small marks.  unit: None is none, and three decimals.
        names: of small, MoE and large.
        title: words.
    """
    figure = figures.new_figure(8, 0.42 * len(rows) + 1.9, title, 12)
    axis = figure.subplots()
    whole = [_draw_costs(axis, y, values, unit) for y, (*values, unit) in enumerate(rows.values())]
    figures.name_rows(axis, list(rows), whole)
    axis.set(xticks=[0, 0.5, 1], xticklabels=["as the\nsmall one", "half-way", "as the\nlarge one"])
    for name, (shade, mark) in zip(names, MARKS, strict=True):
        axis.plot([], [], mark, color=shade, ms=SIZES[mark], label=name)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    figures.plain(axis)
    return figure


def _draw_costs(axis, y, values, unit):
    """One row; returns its three numbers in words."""
    seeds = [np.atleast_1d(of_model) for of_model in values]
    low, middle, high = means = [float(of_model.mean()) for of_model in seeds]
    axis.plot([0, 1], [y, y], "-", color=palette.GREY_CC, lw=1, zorder=1)
    for mean, of_model, (shade, mark) in zip(means, seeds, MARKS, strict=True):
        place, *places = np.log(np.array([mean, *of_model]) / low) / np.log(high / low)
        axis.plot(place, y, mark, color=shade, ms=SIZES[mark], zorder=4 if shade == palette.MOE else 3)
        if len(of_model) > 1:
            axis.plot(places, np.full(len(places), y + 0.28), "|", color=shade, ms=7, mew=1.5)
    return " | ".join(f"{mean:.3f}" if unit is None else quantities.short(mean, unit) for mean in means)


@figures.picture
def alarms(raised, modes, title):
    """Which failures the doctor sees in which runs: one row per failure, one column per run.

    Args:
        raised: name of the runs -> for each mode how many seeds raise the alarm, and of how many that could be judged;
            both stand in the cell.
        modes: names of the failures.
        title: words.
    """
    figure = figures.new_figure(8, 0.38 * len(modes) + 1.5)
    axis = figure.subplots()
    for x, of_run in enumerate(raised.values()):
        for y, (bad, judged) in enumerate(of_run):
            face = palette.ALARMS[(bad > 0) + (bad == judged > 0)]
            axis.barh(y, 0.94, left=x - 0.47, height=0.88, color=face)
            words = f"ALARM {bad}/{judged}" if bad else "ok" if judged else "–"
            axis.text(x, y, words, ha="center", va="center", fontsize=9, fontweight="bold" if bad else "normal",
                      color=palette.ink_on(face))
    axis.set(xticks=range(len(raised)), xticklabels=list(raised), yticks=range(len(modes)), yticklabels=modes,
             xlim=(-0.5, len(raised) - 0.5), ylim=(len(modes) - 0.5, -0.5), title=title)
    axis.xaxis.tick_top()
    figures.frameless(axis)
    return figure
