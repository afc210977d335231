"""Pictures of load balancing: shares of the work, what an even load does to the loss, which expert reads which text."""

import numpy as np
from matplotlib.ticker import PercentFormatter

from minimoe.plots import expert_load, figures, palette

WIDTH = 7.5  # inches, which at 100 dots per inch is what a page shows without scaling
MARKS = "osD^vPX*<>"


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
        axis.set_xlabel("optimizer steps", fontsize=9)
    return figure


@figures.picture
def load_against_loss(results, title, even=1.0):
    """Whether an even load goes with a low loss: one small mark per seed, a large one at their mean.

    Args:
        results: label -> (load of the busiest expert in multiples of an even load, loss in nats per token), each with
            one entry per seed.
        title: words.
        even: where the dotted line stands, the load of all experts if they share the work evenly.
    """
    figure = figures.new_figure(WIDTH, 3.9, title, 11)
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
    return figure


@figures.picture
def text_by_expert(rows, domains, title):
    """Where each domain's tokens go: a map of domains and experts, one row per model, one column per seed.

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
    return figure
