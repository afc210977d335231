"""Pictures of an MoE on machines: what a step reads, how fast it decodes, how long vectors travel, and training."""

import numpy as np
from matplotlib.ticker import FixedLocator, LogLocator, NullLocator

from minimoe.plots import figures, palette

LINKS = ((palette.BLUE, "-"), (palette.VERMILION, "--"))
"""Color and line of each link between devices."""

FAMILIES = {"dense": (palette.DENSE, "s-", 8, "left"), "MoE": (palette.MOE, "D", -8, "right")}
"""First word of a model's name -> color, marker and line, and where its name stands."""


@figures.picture
def experts_used(batches, even, drawn, found, n_experts, title):
    """Experts of a layer that a step of decoding uses, against the batch size.

    Args:
        batches: sequences.
        even: experts, by formula, one entry per batch.
        drawn: (low, high), experts between which 80 % of random draws lie.
        found: name -> experts of a model's own routing.
        n_experts: of the layer.
        title: words.
    """
    figure = figures.new_figure(7.5, 3.9)
    axis = figure.subplots()
    axis.fill_between(batches, *drawn, color=palette.GRAY_CC, lw=0, label="random draws: 80 % of 1,000")
    axis.plot(batches, even, "-", color=palette.INK, lw=1.5, label="even routing, by formula")
    for place, (name, used) in enumerate(found.items()):
        axis.plot(batches, used, "os^Dv"[place % 5], color=palette.color(4 + place), ms=8 - place, label=name)
    axis.axhline(n_experts, color=palette.LIMIT, lw=1, ls=":")
    axis.annotate(f"all {n_experts}", (batches[0], n_experts), (0, -12), textcoords="offset points", fontsize=9,
                  color=palette.INK)
    axis.set(xlabel="batch size (sequences decoded together)", ylabel="experts of a layer whose\nweights a step reads",
             title=title, ylim=(0, 1.08 * n_experts))
    _doubling(axis, batches)
    axis.legend(frameon=False, loc="lower right")
    figures.plain(axis)
    return figure


@figures.picture
def speeds(batches, models, title):
    """Tokens per second of three models against the batch size; below, the second one's speed over the third one's.

    Dashed with hollow marks: weights and KV cache do not fit into the memory of the machine.

    Args:
        batches: sequences.
        models: name -> (tokens/s, whether it fits), one entry per batch each; a small dense model, an MoE, a large one.
        title: words.
    """
    figure = figures.new_figure(7.5, 5.6)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    looks = list(zip((palette.DENSE, palette.MOE, palette.LARGE_DENSE), "sDo", strict=True))
    for (name, (speed, fits)), (shade, mark) in zip(models.items(), looks, strict=True):
        _draw_fitting(above, batches, speed, fits, shade, mark, name)
    above.plot([], [], "--", color=palette.INK, label="does not fit into the memory")
    above.set(yscale="log", ylabel="tokens per second at best, whole\nbatch, from bytes and FLOPs", title=title)
    above.legend(frameon=False, loc="upper left")
    (moe, moe_fits), (large, large_fits) = list(models.values())[1:]
    times = np.asarray(moe) / np.asarray(large)
    _draw_fitting(below, batches, times, np.logical_and(moe_fits, large_fits), *looks[1], None)
    below.axhline(1, color=palette.LIMIT, lw=1, ls=":")
    below.set(ylim=(0, 1.15 * times.max()), xlabel="batch size (sequences decoded together)",
              ylabel="times as fast as the\ndense one of its size")
    _doubling(below, batches)
    for axis in (above, below):
        axis.grid(color=palette.PALE_GRID, lw=0.6)
        figures.plain(axis)
    return figure


def _draw_fitting(axis, batches, values, fits, shade, mark, name):
    """A line that is dashed, with hollow marks, from the last batch that fits."""
    values, n = np.asarray(values), int(np.sum(fits))
    axis.plot(batches[:n], values[:n], f"{mark}-", color=shade, lw=2, ms=5.5, label=name)
    axis.plot(batches[max(n - 1, 0):], values[max(n - 1, 0):], "--", color=shade, lw=2)
    axis.plot(batches[n:], values[n:], mark, color=shade, ms=5.5, mfc="white")


@figures.picture
def travel_times(links, experts, title):
    """Time for vectors to travel to an expert and back, over the time to compute it, against its width F.

        ratio = slope / F

    Args:
        links: words -> slope; one line each.
        experts: name -> width; a mark on each line, its name on the first.
        title: words.
    """
    figure = figures.new_figure(7.5, 3.8)
    axis, ends = figure.subplots(), np.array([512, 20_000])
    for (words, slope), (shade, line) in zip(links.items(), LINKS, strict=False):
        axis.plot(ends, slope / ends, line, color=shade, lw=2, label=words)
    for name, width in experts.items():
        for slope, (shade, _) in zip(links.values(), LINKS, strict=False):
            axis.plot(width, slope / width, "o", color=shade, ms=7)
        place = width, next(iter(links.values())) / width
        axis.annotate(f"{name}, {width:,}", place, (5, 3), fontsize=9, textcoords="offset points", color=palette.INK)
    axis.axhline(1, color=palette.LIMIT, ls=":")
    axis.set(title=title, xlabel="width F of one expert (numbers)", ylabel="time to travel /\ntime to compute",
             xscale="log", yscale="log", xlim=(450, 33_000), xticks=2 ** np.arange(9, 15))
    _written_out(axis)
    axis.legend(frameon=False, loc="lower left")
    figures.plain(axis)
    return figure


@figures.picture
def step_times(models, title):
    """Time of a training step against its FLOPs; dense models are joined by a line.

    models: name -> (GFLOP, milliseconds); a name begins with a word of FAMILIES.
    """
    figure = figures.new_figure(7.5, 4)
    axis = figure.subplots()
    for family, (shade, look, shift, align) in FAMILIES.items():
        of_family = sorted((*point, name) for name, point in models.items() if name.startswith(family))
        axis.plot([work for work, _, _ in of_family], [time for _, time, _ in of_family], look, color=shade, ms=8)
        for work, time, name in of_family:
            axis.annotate(name, (work, time), (shift, -4), textcoords="offset points", fontsize=9, ha=align,
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
