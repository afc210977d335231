"""Pictures of the cost of a loss: MoE and dense models at equal steps, equal FLOPs and equal time."""

import numpy as np
from matplotlib.collections import PathCollection

from minimoe.config.variants import DENSE_ACTIVE, DENSE_TOTAL
from minimoe.cost import quantities
from minimoe.plots import figures, palette

BUDGETS = ("steps", "FLOPs", "time")

DENSE_MARKS = {DENSE_ACTIVE: "s", DENSE_TOTAL: "D"}
"""Dense model of the right panel -> its marker."""


@figures.picture
def pareto(entries, main, title):
    """Loss against training FLOPs at equal steps, and next to it the losses at each budget; below and left is better.

    entries: of `experiments.compare`.   main: the name of the MoE that sets the budgets.
    """
    figure = figures.new_figure(9.5, 5.4, title)
    equal_steps, budgets = figure.subplots(1, 2, width_ratios=(3, 2))
    _equal_steps(equal_steps, [entry for entry in entries if entry.budget == "steps"])
    _budgets(budgets, entries, main)
    for axis, place in ((equal_steps, "upper right"), (budgets, "upper left")):
        axis.set_ylabel("validation loss (nats per token)")
        for handle in axis.legend(frameon=False, fontsize=9, loc=place).legend_handles:
            if isinstance(handle, PathCollection):
                handle.set_sizes([60])
        figures.plain(axis)
    return figure


def _equal_steps(axis, entries):
    """MoEs as rings, so that those of equal work, which lie in one place, can all be seen."""
    largest = max(entry.parameters.total for entry in entries)
    for kind, shade, mark, face in (("MoE", palette.MOE, "o", "none"), ("dense", palette.DENSE, "s", None)):
        of_kind = sorted((entry for entry in entries if entry.name.startswith(kind)), key=lambda e: e.flops)
        if not of_kind:
            continue
        mean, low, high = (np.array([summary(entry.ce) for entry in of_kind]) for summary in (np.mean, np.min, np.max))
        flops, total = (np.array(column) for column in zip(*((e.flops, e.parameters.total) for e in of_kind),
                                                           strict=True))
        axis.errorbar(flops, mean, (mean - low, high - mean), color=shade, lw=1, ls="-" if kind == "dense" else "none",
                      elinewidth=1)
        area = 40 + 500 * total / largest  # square points
        axis.scatter(flops, mean, area, marker=mark, edgecolor=shade, lw=2, zorder=3,
                     facecolor=face or shade, label=f"{kind} (line: range of the seeds)")
        _names(axis, of_kind, mean, area, shade)
    axis.set(xscale="log", xlabel="training FLOPs (matrix products, forward and backward)",
             title="equal steps (area: total parameters)")
    figures.name_powers(axis.xaxis, quantities.short)
    axis.margins(x=0.3, y=0.25)


def _names(axis, entries, mean, area, shade):
    """A name for each marker: those of MoEs in a column on the left, of dense models on the right, off the line."""
    rows = sorted(zip(mean, entries, np.sqrt(area) / 2, strict=True), key=lambda row: row[0])
    for place, (loss, entry, radius) in enumerate(rows):  # the lowest loss has the lowest name
        words = f"{entry.name.removeprefix('dense, ')}\n{quantities.short(entry.parameters.total)}"
        if entry.name.startswith("MoE"):
            axis.annotate(words, (entry.flops, loss), (0.02, 0.05 + 0.13 * place), textcoords="axes fraction",
                          fontsize=9, color=shade, va="center",
                          arrowprops={"arrowstyle": "-", "color": shade, "lw": 0.8})
        else:
            following = min(((e.flops, low) for low, e, _ in rows if e.flops > entry.flops), default=(0, loss))
            rises = following[1] > loss
            axis.annotate(words, (entry.flops, loss), (5, -radius - 2 if rises else radius + 2),
                          textcoords="offset points", fontsize=9, color=shade, va="top" if rises else "bottom")


def _budgets(axis, entries, main):
    """The MoE as a line, since it is the same run at every budget; each dense model as one dot per seed."""
    found = {(entry.name, entry.budget): entry for entry in entries}
    moe = found[main, "steps"]
    axis.axhline(moe.ce.mean(), color=palette.MOE, lw=2, label=main)
    axis.axhspan(moe.ce.min(), moe.ce.max(), color=palette.MOE, alpha=0.2, lw=0)
    for (name, mark), side in zip(DENSE_MARKS.items(), (-0.15, 0.15), strict=True):
        runs = [(place, found[name, budget]) for place, budget in enumerate(BUDGETS) if (name, budget) in found]
        for place, entry in runs:
            axis.plot(np.full(len(entry.ce), place + side), entry.ce, mark, ms=5, color=palette.DENSE, alpha=0.6,
                      fillstyle="none" if mark == "D" else "full", label=name if place == runs[0][0] else None)
            axis.plot([place + side - 0.1, place + side + 0.1], [entry.ce.mean()] * 2, color=palette.DENSE, lw=2.5)
            axis.annotate(f"{entry.steps:,}", (place + side, entry.ce.max()), (0, 5), textcoords="offset points",
                          ha="center", fontsize=8, color=palette.INK)
    axis.set(xticks=range(len(BUDGETS)), xticklabels=[f"equal\n{budget}" for budget in BUDGETS], xlim=(-0.5, 2.5),
             title="equal budgets (numbers: steps)")
    axis.margins(y=0.15)
    low, high = axis.get_ylim()
    axis.set_ylim(low, high + 0.25 * (high - low))  # room for the legend
