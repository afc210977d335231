"""Pictures of a comparison at several budgets: curves to equal ends, gaps seed by seed, what an MoE is worth."""

import numpy as np
from matplotlib.ticker import NullLocator

from minimoe.cost import quantities
from minimoe.plots import figures, palette
from minimoe.plots.lessons import downsides

LINES = ("--", "-", ":")
"""Of the small dense model, the MoE, and the large dense model."""


@figures.picture
def races(panels, names, title, highest=None):
    """Loss while training, one panel per budget: the mean of the seeds as a line, their range as a band.

    Where a curve ends is marked, the MoE on top.

    Args:
        panels: name of a budget -> (label of the x axis, the curves of small, MoE and large, each (x, ce), ce with one
            row per seed).
        names: of the three.
        title: words.
        highest: upper end of the y axis, nats; or None for what the curves need.
    """
    figure = figures.new_figure(8, 4, title, 12)
    axes = figure.subplots(1, len(panels), sharey=True)
    for axis, (budget, (label, curves)) in zip(axes, panels.items(), strict=True):
        for name, (x, ce), (shade, mark), line in zip(names, curves, downsides.MARKS, LINES, strict=True):
            mean = ce.mean(axis=0)
            axis.plot(x, mean, line, color=shade, lw=2, label=name)
            axis.plot(x[-1], mean[-1], mark, color=shade, ms=downsides.SIZES[mark] * 0.7,
                      zorder=4 if shade == palette.MOE else 3)
            axis.fill_between(x, ce.min(axis=0), ce.max(axis=0), color=shade, alpha=0.2, lw=0)
        axis.set(xlabel=label, title=f"equal {budget}", xlim=(0, 1.04 * max(x[-1] for x, _ in curves)))
        axis.grid(color=palette.PALE_GRID, lw=0.6)
        figures.plain(axis)
    axes[0].set(ylabel="held-out loss (nats per token)")
    axes[0].set_ylim(top=highest)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return figure


@figures.picture
def gaps(rows, title):
    """How far a dense model is above the MoE: one row per comparison, one dot per seed, a bar at their mean.

    At the right: the mean, and in how many seeds it has that sign.
    rows: label -> dense minus MoE, nats, one entry per seed.
    """
    figure = figures.new_figure(8, 0.5 * len(rows) + 1.5, title, 12)
    axis = figure.subplots()
    words = []
    for y, gap in enumerate(rows.values()):
        mean = gap.mean()
        shade = palette.MOE if mean > 0 else palette.DENSE
        axis.plot(gap, np.full(len(gap), y), "o", color=shade, ms=6, alpha=0.7)
        axis.plot([mean] * 2, [y - 0.3, y + 0.3], "-", color=shade, lw=2.5)
        words.append(f"{mean:+.3f}, {int((gap * mean > 0).sum())} of {len(gap)}")
    axis.axvline(0, color=palette.INK, lw=1)
    axis.set_xscale("symlog", linthresh=0.05)
    ticks = [-0.3, -0.1, -0.03, 0, 0.03, 0.1, 0.3]
    reach = max(abs(gap).max() for gap in rows.values())
    figures.name_rows(axis, list(rows), words)
    axis.set(xticks=ticks, xticklabels=[f"{tick:g}" for tick in ticks],
             xlim=(-1.3 * max(reach, 0.05), 1.3 * max(reach, 0.05)),
             xlabel="← the dense model is better      dense minus MoE, nats per token      the MoE is better →")
    axis.xaxis.set_minor_locator(NullLocator())
    axis.grid(axis="x", color=palette.PALE_GRID, lw=0.6)
    figures.plain(axis)
    return figure


@figures.picture
def effective_sizes(sizes, ce, falling, moes, title):
    """Where on the losses of a family of dense models each MoE lies.

    Args:
        sizes, ce: parameters of the dense models, and their losses, one row per model and one column per seed.
        falling: the line through them, one entry per model.
        moes: name -> (loss, size that it is worth); at an end of the family it does not meet the line, and has
            no mark.
        title: words.
    """
    figure = figures.new_figure(7.6, 4.2)
    axis = figure.subplots()
    for size, of_size in zip(sizes, ce, strict=True):
        axis.plot(np.full(len(of_size), size), of_size, "s", color=palette.DENSE, ms=4, alpha=0.5)
    axis.plot(sizes, ce.mean(axis=1), "s", color=palette.DENSE, ms=9, label="dense models (small: each seed)")
    axis.plot(sizes, falling, "-", color=palette.DENSE, lw=1.5, label="nearest line that never rises")
    for (name, (loss, size)), line, mark in zip(moes.items(), ("-", "--", ":"), "oD^", strict=False):
        inside = sizes[0] + 0.5 < size < sizes[-1] - 0.5
        met = f"worth {quantities.short(size)}" if inside else "below the line" if size > sizes[0] + 1 else "above it"
        axis.axhline(loss, color=palette.MOE, ls=line, lw=1.2, zorder=1)
        axis.plot(*([size], [loss]) if inside else ([], []), marker=mark if inside else "", color=palette.MOE, ms=10,
                  ls=line, fillstyle="none", mew=2, label=f"{name}: {met}")
    axis.set(xscale="log", xlabel="parameters of a dense model", ylabel="held-out loss (nats per token)", title=title)
    figures.name_powers(axis.xaxis, quantities.short)
    axis.margins(x=0.1)
    axis.legend(frameon=False)
    figures.plain(axis)
    return figure


@figures.picture
def training(runs, levels, title):
    """Loss of two models while training, each batch as a line and held-out text as marks, and levels to reach.

    Args:
        runs: name -> (loss of each step, steps of the evaluations, loss on held-out text), nats per token.
        levels: words -> loss, a dotted line.
        title: words.
    """
    figure = figures.new_figure(7.5, 3.6)
    axis = figure.subplots()
    for (name, (ce, eval_step, eval_ce)), shade, mark in zip(runs.items(), (palette.MOE, palette.DENSE), "Ds",
                                                             strict=True):
        axis.plot(ce, "-", color=shade, lw=0.8, alpha=0.6)
        axis.plot(eval_step, eval_ce, mark, color=shade, ms=7, fillstyle="none", mew=2, label=f"{name}, held-out text")
    for words, level in levels.items():
        axis.axhline(level, color=palette.LIMIT, lw=1, ls=":")
        axis.annotate(words, (1.01, level), xycoords=("axes fraction", "data"), fontsize=9.5, va="center")
    ticks = [0.3, 0.5, 1, 2, 4]
    axis.set(xlabel="steps", ylabel="loss (nats per token)", yscale="log", ylim=(0.3, 5), yticks=ticks,
             yticklabels=[f"{tick:g}" for tick in ticks], title=title)
    axis.yaxis.set_minor_locator(NullLocator())
    axis.legend(frameon=False, loc="upper right", bbox_to_anchor=(1, 0.7))
    figures.plain(axis)
    return figure


@figures.picture
def seed_lines(ce, title):
    """Loss of each model, one column per model: a line joins the runs of one seed, which saw the same text.

    ce: name of a model -> one loss per seed, nats per token.
    """
    figure = figures.new_figure(8, 3.6)
    axis = figure.subplots()
    for seed, of_seed in enumerate(zip(*ce.values(), strict=True)):
        axis.plot(of_seed, "osD"[seed % 3] + "-", color=palette.color((4, 5, 2)[seed % 3]), ms=7, lw=1.3,
                  label=f"seed {seed}")
    axis.plot([of_model.mean() for of_model in ce.values()], "_", color=palette.INK, ms=34, mew=2, label="mean")
    axis.set(xticks=range(len(ce)), xticklabels=[name.replace(", ", "\n") for name in ce],
             ylabel="held-out loss\n(nats per token)", title=title)
    axis.margins(x=0.08, y=0.12)
    axis.grid(axis="x", color=palette.PALE_GRID, lw=0.8)
    axis.legend(frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5)).legend_handles[-1].set_markersize(14)
    figures.plain(axis)
    return figure
