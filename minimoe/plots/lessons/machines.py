"""Pictures of a MoE on machines: what a step reads, how fast it writes, what devices send, how long training takes."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, NullLocator

from minimoe.plots import figures, palette
from minimoe.plots.lessons.downsides import LARGE, MOE, SMALL

LINKS = (("#0072B2", "-"), ("#D55E00", "--"))
"""Colour and line of each link between devices."""

FAMILIES = {"dense": ("#0072B2", "s-", 8, "left"), "MoE": ("#D55E00", "D", -8, "right")}
"""First word of a model's name -> colour, marker and line, and where its name stands."""


def experts_used(batches, even, drawn, found, n_experts, title):
    """Experts of a layer that a step of decoding uses, against the texts at once.

    batches: texts.   even: by formula.   drawn: of lots, (low, high), between which 80 % of the draws lie.
    found: name -> of a model's own routing, as many as there are batches.
    """
    figure = Figure(figsize=(7.5, 3.9), layout="constrained")
    axis = figure.subplots()
    axis.fill_between(batches, *drawn, color="#cccccc", lw=0, label="by lot: 80 % of 1,000 draws")
    axis.plot(batches, even, "-", color=palette.INK, lw=1.5, label="even routing, by formula")
    for place, (name, used) in enumerate(found.items()):
        axis.plot(batches, used, "os^Dv"[place % 5], color=palette.colour(4 + place), ms=8 - place, label=name)
    axis.axhline(n_experts, color="#777777", lw=1, ls=":")
    axis.annotate(f"all {n_experts}", (batches[0], n_experts), (0, -12), textcoords="offset points", fontsize=9,
                  color=palette.INK)
    axis.set(xlabel="texts written at once", ylabel="experts of a layer whose\nweights a step reads", title=title,
             ylim=(0, 1.08 * n_experts))
    _doubling(axis, batches)
    axis.legend(frameon=False, loc="lower right")
    figures.plain(axis)
    return figure


def devices(count_RR, rows_R, title):
    """What devices send each other in one layer, and the rows that each then computes.

    count_RR: vectors, [from, to], the diagonal is what stays.   rows_R: rows of each device's experts.
    """
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    sent, worked = figure.subplots(1, 2, width_ratios=(1.1, 1))
    R, largest = len(rows_R), count_RR.max()
    sent.imshow(count_RR, cmap="cividis", vmin=0)
    for i in range(R):
        for j in range(R):
            words = f"{count_RR[i, j]:,}" + ("\nstays" if i == j else "")
            sent.text(j, i, words, ha="center", va="center", fontsize=9,
                      color="black" if count_RR[i, j] > 0.6 * largest else "white")
    sent.set(xticks=range(R), yticks=range(R), xlabel="to device", ylabel="from device",
             title="vectors sent to experts")
    worked.bar(range(R), rows_R, color=palette.EXPERT_COLOURS[1], edgecolor="white")
    worked.axhline(rows_R.mean(), color=palette.INK, lw=1, ls=":")
    worked.annotate("mean", (1.01, rows_R.mean()), xycoords=("axes fraction", "data"), va="center", fontsize=9,
                    color=palette.INK)
    worked.bar_label(worked.containers[0], [f"{rows:,}" for rows in rows_R], fontsize=9)
    worked.margins(y=0.12)
    worked.set(xticks=range(R), xlabel="device", ylabel="rows to compute", title="work that arrives")
    for axis in (sent, worked):
        axis.title.set_fontsize(11)
        figures.plain(axis)
    figure.suptitle(title, color=palette.INK, fontsize=12)
    return figure


def speeds(batches, small, moe, large, names, title):
    """Tokens a second of three models against the texts at once; below, how much faster the MoE is than the large one.

    small, moe, large: tokens/s for each of the batches.   names: of the three.
    """
    figure = Figure(figsize=(7.5, 5.6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    for name, speed, shade, line in zip(names, (small, moe, large), (SMALL, MOE, LARGE), ("s--", "D-", "o:"),
                                        strict=True):
        above.plot(batches, speed, line, color=shade, lw=2, ms=5, label=name)
    above.set(yscale="log", ylabel="tokens a second, all texts", title=title)
    above.legend(frameon=False, loc="upper left")
    times = np.asarray(moe) / np.asarray(large)
    below.plot(batches, times, "D-", color=MOE, lw=2, ms=5)
    below.axhline(1, color="#777777", lw=1, ls=":")
    below.set(ylim=(0, 1.15 * times.max()), xlabel="texts written at once",
              ylabel="times as fast as the\ndense one of its size")
    _doubling(below, batches)
    for axis in (above, below):
        axis.grid(color="#e4e4e4", lw=0.6)
        figures.plain(axis)
    return figure


def travel(links, experts, title):
    """Time for vectors to travel to an expert and back, over the time to compute it, against its width F.

        ratio = slope / F

    links: words -> slope; a line each.   experts: name -> width; they stand on the first line.
    """
    figure = Figure(figsize=(7.5, 3.8), layout="constrained")
    axis, ends = figure.subplots(), np.array([512, 20_000])
    for (words, slope), (shade, line) in zip(links.items(), LINKS, strict=False):
        axis.plot(ends, slope / ends, line, color=shade, lw=2, label=words)
    for name, width in experts.items():
        place = width, next(iter(links.values())) / width
        axis.plot(*place, "o", color=LINKS[0][0], ms=7)
        axis.annotate(f"{name}, {width:,}", place, (5, 3), fontsize=9, textcoords="offset points", color=palette.INK)
    axis.axhline(1, color="#777777", ls=":")
    axis.set(title=title, xlabel="width F of one expert (numbers)", ylabel="time to travel /\ntime to compute",
             xscale="log", yscale="log", xlim=(450, 33_000), xticks=2 ** np.arange(9, 15))
    _written_out(axis)
    axis.legend(frameon=False, loc="lower left")
    figures.plain(axis)
    return figure


def steps(models, title):
    """Time of a training step against its FLOPs; dense models are joined by a line.

    models: name -> (GFLOP, milliseconds); a name begins with a word of FAMILIES.
    """
    figure = Figure(figsize=(7.5, 4), layout="constrained")
    axis = figure.subplots()
    for family, (shade, look, aside, align) in FAMILIES.items():
        of_family = sorted((*of, name) for name, of in models.items() if name.startswith(family))
        axis.plot([work for work, _, _ in of_family], [time for _, time, _ in of_family], look, color=shade, ms=8)
        for work, time, name in of_family:
            axis.annotate(name, (work, time), (aside, -4), textcoords="offset points", fontsize=9, ha=align,
                          color=palette.INK)
    axis.set(title=title, xlabel="a training step (GFLOP, forward and backward)", ylabel="its time (milliseconds)",
             xscale="log", yscale="log", xticks=2 ** np.arange(1, 5))
    axis.set_xlim(*np.array(axis.get_xlim()) * (0.6, 1.9))  # room for names
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axis.set_ylim(0.85 * min(time for _, time in models.values()), 1.2 * max(time for _, time in models.values()))
    _written_out(axis)
    figures.plain(axis)
    return figure


def _written_out(axis):
    """Numbers on both axes without powers of ten, and none on the small marks."""
    for ticks in (axis.xaxis, axis.yaxis):
        ticks.set_major_formatter(lambda n, _: f"{n:,g}")
        ticks.set_minor_locator(NullLocator())


def _doubling(axis, batches):
    """A logarithmic axis whose marks are the batches, written out."""
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_locator(FixedLocator(batches))
    axis.xaxis.set_major_formatter(lambda n, _: f"{n:,.0f}")
    axis.xaxis.set_minor_locator(NullLocator())
