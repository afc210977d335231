"""Pictures of what a MoE costs beside two dense models, and of the ways in which runs fail."""

import numpy as np
from matplotlib.figure import Figure

from minimoe.cost.report import quantity
from minimoe.plots import figures, palette

SMALL, LARGE, MOE = "#0072B2", "#009E73", "#D55E00"
"""A dense model of equal active size, one of equal total size, and the MoE between the two."""

MARKS = ((SMALL, "s"), (MOE, "D"), (LARGE, "o"))
"""Colour and marker of small, MoE and large."""

SIZES = {"s": 12, "D": 7.5, "o": 12}
"""Size of each marker: the MoE's is the smallest, so that one sees what it stands on."""


def between(rows, names, title):
    """How far from a small dense model to a large one a MoE is, cost by cost, on a logarithmic scale.

        place = log(moe / small) / log(large / small),   so that 0 is the small one and 1 the large one

    rows: label -> (small, moe, large, unit); each a number, or an array of one entry a seed: its mean counts, and its
    entries are small marks.   unit: None is none, and three decimals.   names: of small, MoE and large.
    """
    figure = Figure(figsize=(8, 0.42 * len(rows) + 1.9), layout="constrained")
    axis = figure.subplots()
    whole = [_between(axis, y, values, unit) for y, (*values, unit) in enumerate(rows.values())]
    axis.set(yticks=range(len(rows)), yticklabels=list(rows), ylim=(len(rows) - 0.4, -0.6), xticks=[0, 0.5, 1],
             xticklabels=["as the\nsmall one", "half-way", "as the\nlarge one"])
    right = axis.secondary_yaxis("right")
    right.set(yticks=range(len(rows)), yticklabels=whole)
    right.tick_params(length=0, colors=palette.INK)
    right.spines[:].set_visible(False)
    for name, (shade, mark) in zip(names, MARKS, strict=True):
        axis.plot([], [], mark, color=shade, ms=SIZES[mark], label=name)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    figures.plain(axis)
    figure.suptitle(title, color=palette.INK, fontsize=12)
    return figure


def _between(axis, y, values, unit):
    """One row; returns its three numbers in words."""
    seeds = [np.atleast_1d(of_model) for of_model in values]
    low, middle, high = means = [float(of_model.mean()) for of_model in seeds]
    axis.plot([0, 1], [y, y], "-", color="#cccccc", lw=1, zorder=1)
    for mean, of_model, (shade, mark) in zip(means, seeds, MARKS, strict=True):
        place, *places = np.log(np.array([mean, *of_model]) / low) / np.log(high / low)
        axis.plot(place, y, mark, color=shade, ms=SIZES[mark], zorder=4 if shade == MOE else 3)
        if len(of_model) > 1:
            axis.plot(places, np.full(len(places), y + 0.28), "|", color=shade, ms=7, mew=1.5)
    return " | ".join(f"{mean:.3f}" if unit is None else quantity(mean, unit) for mean in means)


def alarms(raised, modes, title):
    """Which failures the doctor sees in which runs: a row a failure, a column a run, in it how many seeds.

    raised: name of the runs -> for each mode how many seeds raise the alarm, and of how many that could be judged.
    modes: names of the failures.
    """
    figure = Figure(figsize=(8, 0.38 * len(modes) + 1.5), layout="constrained")
    axis = figure.subplots()
    for x, of_run in enumerate(raised.values()):
        for y, (bad, judged) in enumerate(of_run):
            face = "#f4f4f4" if not bad else MOE if bad == judged else "#f3c6a5"
            axis.barh(y, 0.94, left=x - 0.47, height=0.88, color=face)
            words = f"ALARM {bad}/{judged}" if bad else "ok" if judged else "–"
            axis.text(x, y, words, ha="center", va="center", fontsize=9, fontweight="bold" if bad else "normal",
                      color=palette.ink_on(face))
    axis.set(xticks=range(len(raised)), xticklabels=list(raised), yticks=range(len(modes)), yticklabels=modes,
             xlim=(-0.5, len(raised) - 0.5), ylim=(len(modes) - 0.5, -0.5), title=title)
    axis.xaxis.tick_top()
    axis.tick_params(length=0)
    figures.plain(axis)
    axis.spines[:].set_visible(False)
    return figure
