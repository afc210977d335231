"""Where the assignments go: each expert's share during training, and by domain."""

import numpy as np

from minimoe.plots import figures, palette


@figures.picture
def load_over_time(steps, load, title):
    """Share of the assignments of each expert, layer by layer, during training.

    steps: of the records.  load: [records, L, E], shares before capacity.
    """
    n_layers, n_experts = load.shape[1:]
    figure = figures.new_figure(8.5, 2 * n_layers + 1, title)
    axes = np.atleast_1d(figure.subplots(n_layers, 1, sharex=True, sharey=True))
    for layer, axis in enumerate(axes):
        stack_shares(axis, steps, load[:, layer], 1.005, 0.03)
        axis.set_ylabel(f"layer {layer}\nshare of assignments")
    axes[-1].set_xlabel(f"optimizer steps (right: number of the expert; an even share is {1 / n_experts:.1%})")
    return figure


def stack_shares(axis, steps, load, x, thin):
    """One band per expert, stacked up to 1; on the right the numbers of the visible ones.

    Args:
        steps: of the records.
        load: [records, E], shares that sum to 1 over the experts.
        x: position of the numbers, in widths of the axis.
        thin: bands with a final share up to this have no number.
    """
    for expert, top in enumerate(np.cumsum(load, axis=1).T):
        base = top - load[:, expert]
        axis.fill_between(steps, base, top, color=palette.color(expert), lw=0.4, edgecolor="white")
        if top[-1] - base[-1] > thin:
            axis.annotate(str(expert), (x, (base[-1] + top[-1]) / 2), xycoords=("axes fraction", "data"),
                          va="center", fontsize=9, color=palette.INK)
    axis.margins(x=0)
    axis.set_ylim(0, 1)
    figures.plain(axis)


@figures.picture
def load_by_domain(loads, domains, title):
    """Where each domain's tokens go: one column per model, one panel per layer, one bar per expert and domain.

    loads: name of a model -> [domains, L, E], shares that sum to 1 over the experts.
    """
    _, n_layers, n_experts = next(iter(loads.values())).shape
    figure = figures.new_figure(10, 1.6 * n_layers + 1, title)
    axes = figure.subplots(n_layers, len(loads), sharex=True, sharey=True, squeeze=False)
    axes[0, 0].set_ylim(0, 1.25 * max(load.max() for load in loads.values()))  # room for the legend
    for column, (name, load) in zip(axes.T, loads.items(), strict=True):
        bars = _domain_bars(column, load)
        column[0].set_title(name)
        column[-1].set(xlabel="expert (dotted: an even split)", xticks=range(n_experts))
    axes[0, -1].legend(bars, domains, frameon=False, ncols=len(domains), loc="upper right")
    for layer, axis in enumerate(axes[:, 0]):
        axis.set_ylabel(f"layer {layer}\nshare of assignments")
    return figure


def _domain_bars(axes, load):
    """One panel per layer; returns the bars of the last one, by domain.  load: [domains, L, E]."""
    n_domains, _, n_experts = load.shape
    width = 0.8 / n_domains
    for layer, axis in enumerate(axes):
        bars = []
        for d in range(n_domains):
            shade, hatch = palette.DOMAIN_STYLES[d % len(palette.DOMAIN_STYLES)]
            bars.append(axis.bar(np.arange(n_experts) + (d - (n_domains - 1) / 2) * width, load[d, layer], width,
                                 color=shade, hatch=hatch, edgecolor="white"))
        axis.axhline(1 / n_experts, color=palette.INK, lw=1, ls=":")
        figures.plain(axis)
    return bars
