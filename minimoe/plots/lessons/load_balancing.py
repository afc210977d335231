"""Pictures of load balancing: shares of the work, what an even load does to the loss, which expert reads which text."""

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.ticker import PercentFormatter

from minimoe.plots import expert_load, figures, palette

WIDTH = 7.5  # inches, which at 100 dots per inch is what a page shows without scaling
MARKS = "osD^vPX*<>"
SHARES = LinearSegmentedColormap.from_list("shares", [palette.WHITE, palette.BLUE])  # nothing is white
LINES = ("-", "--", ":", "-.")


@figures.picture
def load_bands(steps, rows, title):
    """Share of the assignments of each expert while training, one row per model, one column per seed.

    Args:
        steps: of the records.
        rows: label -> load, [seeds, records, E], shares that sum to 1 over the experts.
        title: words.
    """
    n_seeds = max(len(load) for load in rows.values())
    figure = figures.new_figure(WIDTH, 1.9 * len(rows) + 1, title, 11)
    axes = figure.subplots(len(rows), n_seeds, sharex=True, sharey=True, squeeze=False)
    for axis, seed in zip(axes[0], range(n_seeds), strict=True):
        axis.set_title(f"seed {seed}", fontsize=10)
    for row, (label, of_seeds) in zip(axes, rows.items(), strict=True):
        for axis, load in zip(row, of_seeds, strict=True):
            expert_load.stack_shares(axis, steps, load, 1.015, 0.06)
            axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        row[0].set_ylabel(label, fontsize=9)
    for axis in axes[-1]:
        axis.set_xlabel("training steps", fontsize=9)
    return figure


@figures.picture
def busiest_experts(curves, title):
    """How much the busiest expert does while training: one line per version, the range of its seeds as a band.

    Args:
        curves: label -> load of the busiest expert in multiples of an even load, [seeds, steps].
        title: words.
    """
    figure = figures.new_figure(WIDTH, 3.4)
    axis, highest = figure.subplots(), max(curve.max() for curve in curves.values())
    ends = sorted(curves, key=lambda label: curves[label][:, -8:].mean())
    place = -np.inf
    for label in ends:  # names from the bottom up, none on another
        shade, line = palette.color((0, 1, 2, 5)[[*curves].index(label) % 4]), LINES[[*curves].index(label) % 4]
        curve, steps = curves[label], range(curves[label].shape[1])
        axis.plot(steps, curve.mean(axis=0), line, color=shade, lw=2.2)
        axis.fill_between(steps, curve.min(axis=0), curve.max(axis=0), alpha=0.2, lw=0, color=shade)
        place = max(place + highest / 12, curve[:, -8:].mean())
        axis.annotate(label, (1.01, place), xycoords=("axes fraction", "data"), va="center", fontsize=9.5)
    axis.set(xlabel="steps (band: range of the seeds)", ylim=(0, 1.05 * highest), title=title,
             ylabel="load of the busiest expert\n(multiples of an even load)")
    axis.margins(x=0)
    figures.plain(axis)
    return figure


@figures.picture
def pushes(load_E, push_E, prob_T, push_T, title):
    """What the balance loss does: the load of each expert, the push on its scores, and the push on surer tokens.

    Args:
        load_E: share of the assignments of each expert.
        push_E: minus the gradient of its scores, summed over the tokens.
        prob_T: probability that each token gives to a crowded expert.
        push_T: the gradient of its score, times T.
        title: words.
    """
    figure, E = figures.new_figure(8, 3.1, title, 12), len(load_E)
    loads, arrows, curve = figure.subplots(1, 3)
    shades = [palette.color(e) for e in range(E)]
    loads.bar(range(E), load_E, color=shades)
    loads.axhline(1 / E, color=palette.INK, ls=":", lw=1)
    loads.set(xlabel="expert (dotted: even)", ylabel="load (share of assignments)", xticks=range(E),
              title="the load of each expert")
    arrows.axhline(0, color=palette.INK, lw=1)
    for e in range(E):
        arrows.annotate("", (e, push_E[e]), (e, 0), arrowprops=dict(arrowstyle="-|>", lw=3, color=shades[e]))
    arrows.set(xlim=(-0.6, E - 0.4), ylim=(1.2 * push_E.min(), 1.4 * push_E.max()), xticks=range(E), xlabel="expert",
               ylabel="push (minus gradient)", title="the push on each expert")
    curve.plot(prob_T, push_T, color=palette.color(4), lw=2.5)
    curve.set(xlabel="probability of the\ncrowded expert", ylabel="push away from it", title="the push on one token")
    curve.set_ylim(bottom=0)
    for axis in figure.axes:
        axis.title.set_fontsize(10.5)
        figures.plain(axis)
    return figure


@figures.picture
def biases(load, bias, title):
    """Loads that even out while the biases of the experts move: one line per expert, its number at the right.

    Args:
        load: in multiples of an even load, [steps, E].
        bias: added to the scores, [steps, E].
        title: words.
    """
    figure = figures.new_figure(WIDTH, 3.2, title, 12)
    left, right = figure.subplots(1, 2)
    last, (n_steps, E) = bias[-1], bias.shape
    for e in range(E):
        for axis, values in ((left, load), (right, bias)):
            axis.plot(values[:, e], color=palette.color(e), lw=1.8)
    for place, e in zip(np.linspace(last.min(), last.max(), E), np.argsort(last, kind="stable"), strict=True):
        right.annotate(f"expert {e}", (n_steps - 1, last[e]), (1.04, place), fontsize=9.5, va="center",
                       textcoords=("axes fraction", "data"),
                       arrowprops=dict(arrowstyle="-", lw=0.8, color=palette.color(e)))
    left.axhline(1, color=palette.INK, ls=":", lw=1)
    left.set(xlabel="steps", ylabel="load (multiples of an even load)")
    right.set(xlabel="steps", ylabel="bias (added to the score)")
    for axis in (left, right):
        figures.plain(axis)
    return figure


@figures.picture
def remedies(results, title):
    """Load of the busiest expert above, loss below, one column per remedy; a line joins the runs of one seed.

    Args:
        results: label -> (load of the busiest expert in multiples of an even load, loss in nats per token), each with
            one entry per seed.
        title: words.
    """
    figure = figures.new_figure(8, 4.8, title, 12)
    axes = figure.subplots(2, 1, sharex=True, height_ratios=(2, 3))
    for axis, of_seeds in zip(axes, (np.array(numbers).T for numbers in zip(*results.values(), strict=True)),
                              strict=True):
        for seed, of_seed in enumerate(of_seeds):
            axis.plot(of_seed, MARKS[seed % len(MARKS)] + "-", color=palette.color((4, 5, 2)[seed % 3]), ms=7, lw=1.3,
                      label=f"seed {seed}")
        axis.grid(axis="x", color=palette.PALE_GRID, lw=0.8)
        figures.plain(axis)
    axes[0].axhline(1, color=palette.INK, lw=1, ls=":")
    axes[0].set(ylabel="load of the busiest\nexpert (1: even)", ylim=(0.5, None))
    axes[1].set(ylabel="loss (nats per token)", xticks=range(len(results)),
                xticklabels=[label.replace(" ", "\n", 1).replace(", ", ",\n") for label in results])
    axes[1].legend(frameon=False, ncols=len(of_seeds), loc="upper left")
    axes[1].margins(y=0.15)
    return figure


@figures.picture
def text_by_expert(rows, domains, title):
    """Where each domain's tokens go: a map of domains and experts, one row per model, one column per seed; dark: many.

    Args:
        rows: label -> load, [seeds, domains, E], shares that sum to 1 over the experts.
        domains: their names.
        title: words.
    """
    n_seeds = max(len(load) for load in rows.values())
    figure = figures.new_figure(WIDTH, 1.75 * len(rows) + 0.9, title, 11)
    axes = figure.subplots(len(rows), n_seeds, sharex=True, sharey=True, squeeze=False)
    for axis, seed in zip(axes[0], range(n_seeds), strict=True):
        axis.set_title(f"seed {seed}", fontsize=10)
    for row, (label, of_seeds) in zip(axes, rows.items(), strict=True):
        for axis, load in zip(row, of_seeds, strict=True):
            image = axis.imshow(load, vmin=0, vmax=1, cmap=SHARES, aspect="auto")
            for (d, e), share in np.ndenumerate(load):
                axis.text(e, d, f"{share:.0%}", ha="center", va="center", fontsize=9,
                          color="white" if share > 0.6 else "black")
            axis.set(xticks=range(load.shape[1]), yticks=range(len(domains)), yticklabels=domains)
        row[0].set_ylabel(label, fontsize=10)
    for axis in axes[-1]:
        axis.set_xlabel("expert", fontsize=9)
    figure.colorbar(image, ax=axes, label="share of the domain's assignments", shrink=0.8,
                    format=PercentFormatter(1, decimals=0))
    return figure
