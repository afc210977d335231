"""Pictures of load balancing: who gets the work, what an even load does to the loss, which expert reads which text."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from minimoe.plots import figures, palette

WIDTH = 7.5  # inches, which at 100 dots an inch is what a page shows without scaling
MARKS = "osD^vPX*<>"


def load_bands(steps, rows, title):
    """Share of the assignments of each expert while training, a band an expert: a row a model, a column a seed.

    steps: of the records.   rows: label -> load, [seeds, records, E], shares that sum to 1 over the experts.
    """
    n_seeds = max(len(load) for load in rows.values())
    figure = Figure(figsize=(WIDTH, 1.9 * len(rows) + 1), layout="constrained")
    axes = figure.subplots(len(rows), n_seeds, sharex=True, sharey=True, squeeze=False)
    for axis, seed in zip(axes[0], range(n_seeds), strict=True):
        axis.set_title(f"seed {seed}", fontsize=10)
    for row, (label, of_seeds) in zip(axes, rows.items(), strict=True):
        for axis, load in zip(row, of_seeds, strict=True):
            _bands(axis, steps, load)
        row[0].set_ylabel(label, fontsize=9)
    for axis in axes[-1]:
        axis.set_xlabel("optimiser steps", fontsize=9)
    figure.suptitle(title, color=palette.INK, fontsize=11)
    return figure


def _bands(axis, steps, load):
    """One band an expert; at the right the numbers of those that can be seen there."""
    top = np.cumsum(load, axis=1)
    for e in range(load.shape[1]):
        base = top[:, e] - load[:, e]
        axis.fill_between(steps, base, top[:, e], color=palette.colour(e), lw=0.4, edgecolor="white")
        if load[-1, e] > 0.06:
            axis.annotate(str(e), (1.015, (base[-1] + top[-1, e]) / 2), xycoords=("axes fraction", "data"),
                          va="center", fontsize=9, color=palette.INK)
    axis.margins(x=0)
    axis.set(ylim=(0, 1))
    axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    figures.plain(axis)


def load_against_loss(results, title, even=1.0):
    """Whether an even load goes with a low loss: a small mark a seed, a large one at their mean.

    results: label -> (load of the busiest expert in multiples of an even load, loss in nats per token), one entry a
    seed each.   even: where the dotted line stands, the load of all experts if they share the work evenly.
    """
    figure = Figure(figsize=(WIDTH, 3.9), layout="constrained")
    axis = figure.subplots()
    for i, (label, (busiest, loss)) in enumerate(results.items()):
        shade, mark = palette.colour(i), MARKS[i % len(MARKS)]
        shade = palette.INK if i >= len(palette.EXPERT_COLOURS) else shade
        axis.plot(busiest, loss, mark, color=shade, ms=5, alpha=0.7, mew=0)
        axis.plot(np.mean(busiest), np.mean(loss), mark, color=shade, ms=11, mec=palette.INK, mew=1, label=label)
    axis.axvline(even, color=palette.INK, lw=1, ls=":")
    axis.set(xlabel="load of the busiest expert (multiples of an even load; dotted: even)",
             ylabel="validation loss (nats per token)")
    figures.plain(axis)
    figure.legend(loc="outside right center", frameon=False, fontsize=9, labelspacing=0.9,
                  title="large: mean of the seeds", title_fontsize=9)
    figure.suptitle(title, color=palette.INK, fontsize=11)
    return figure


def text_by_expert(rows, domains, title):
    """Where each domain's tokens go: a map of domains and experts, a row a model, a column a seed.

    rows: label -> load, [seeds, domains, E], shares that sum to 1 over the experts.
    """
    n_seeds = max(len(load) for load in rows.values())
    figure = Figure(figsize=(WIDTH, 1.75 * len(rows) + 0.9), layout="constrained")
    axes = figure.subplots(len(rows), n_seeds, sharex=True, sharey=True, squeeze=False)
    for axis, seed in zip(axes[0], range(n_seeds), strict=True):
        axis.set_title(f"seed {seed}", fontsize=10)
    for row, (label, of_seeds) in zip(axes, rows.items(), strict=True):
        for axis, load in zip(row, of_seeds, strict=True):
            image = axis.imshow(load, vmin=0, vmax=1, cmap="cividis", aspect="auto")
            for (d, e), share in np.ndenumerate(load):
                axis.text(e, d, f"{share:.0%}", ha="center", va="center", fontsize=9,
                          color="white" if share < 0.5 else "black")
            axis.set(xticks=range(load.shape[1]), yticks=range(len(domains)), yticklabels=domains)
        row[0].set_ylabel(label, fontsize=10)
    for axis in axes[-1]:
        axis.set_xlabel("expert", fontsize=9)
    figure.colorbar(image, ax=axes, label="share of the domain's assignments", shrink=0.8,
                    format=PercentFormatter(1, decimals=0))
    figure.suptitle(title, color=palette.INK, fontsize=11)
    return figure
