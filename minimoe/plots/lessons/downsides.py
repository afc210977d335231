"""Pictures of what an MoE costs compared with dense models, and of the ways in which runs fail."""

import numpy as np

from minimoe.cost import quantities
from minimoe.plots import figures, palette

MARKS = ((palette.DENSE, "s"), (palette.MOE, "D"), (palette.LARGE_DENSE, "o"))
"""Color and marker of a small dense model, an MoE and a large dense model."""

SIZES = {"s": 12, "D": 7.5, "o": 12}
"""Size of each marker: the MoE's is the smallest, so that one sees what it lies on."""


@figures.picture
def step_memory(held, title):
    """What a training step keeps in memory: one bar per model, one piece per kind, in MB.

    Args:
        held: name of a model -> kind -> bytes.
        title: words.
    """
    figure = figures.new_figure(7.8, 0.42 * len(held) + 1.5)
    axis, left = figure.subplots(), np.zeros(len(held))
    for i, kind in enumerate(next(iter(held.values()))):
        size = np.array([of_model[kind] for of_model in held.values()]) / 1e6
        bars = axis.barh(range(len(held)), size, left=left, color=palette.color(i), ec="white", label=kind)
        axis.bar_label(bars, fmt="%.1f", label_type="center", fontsize=9, color=palette.ink(i))
        left += size
    figures.name_rows(axis, list(held), [f"{size:.1f}" for size in left])
    axis.set(xlabel="kept during a training step (MB)", title=title)
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    figures.plain(axis)
    return figure


@figures.picture
def savings(saved, share, title, band=(4, 10)):
    """How many times fewer FLOPs a sparse model takes than a dense one of its size: one row per model.

    One mark per way to count.  The band is what the claim promises.  At the right: the share of parameters that is
    active.

    Args:
        saved: name of a count -> times, one entry per model; nan is none.
        share: name of a model -> active parameters over all.
        title: words.
        band: ends of the claim, times.
    """
    figure = figures.new_figure(8, 0.36 * len(share) + 1.8)
    axis = figure.subplots()
    axis.axvspan(*band, color=palette.YELLOW, alpha=0.3, lw=0)
    values = np.array(list(saved.values()), float)
    axis.hlines(range(len(share)), np.nanmin(values, axis=0), np.nanmax(values, axis=0), color=palette.GRAY_BB, lw=2,
                zorder=1)
    looks = ((palette.INK, "|", 16), (palette.BLUE, "o", 8), (palette.VERMILION, "D", 7))
    for (name, times), (shade, mark, size) in zip(saved.items(), looks, strict=True):
        axis.plot(times, range(len(share)), mark, color=shade, ms=size, mew=2 if mark == "|" else 1, label=name)
    axis.set(xscale="log", title=title, xlabel="times fewer FLOPs (yellow: the claim); at the right the active share")
    figures.name_rows(axis, list(share), [f"{active:.0%}" for active in share.values()])
    figures.name_powers(axis.xaxis, "{:g}".format, (1, 2, 3, 4, 6, 8))
    axis.grid(axis="x", color=palette.PALE_GRID, lw=0.6)
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    figures.plain(axis)
    return figure


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
    axis.plot([0, 1], [y, y], "-", color=palette.GRAY_CC, lw=1, zorder=1)
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
