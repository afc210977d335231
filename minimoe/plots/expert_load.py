"""Where the assignments go: each expert's share while training, and domain by domain."""

import numpy as np
from matplotlib.figure import Figure

from minimoe.plots import figures, palette


def load_over_time(steps, load, title):
    """Share of the assignments of each expert, layer by layer, while training.

    steps: of the records.  load: [records, L, E], shares before capacity.
    """
    n_layers, n_experts = load.shape[1:]
    figure = Figure(figsize=(10, 2.3 * n_layers + 1), layout="constrained")
    axes = np.atleast_1d(figure.subplots(n_layers, 1, sharex=True, sharey=True))
    for layer, axis in enumerate(axes):
        top = np.zeros(len(steps))
        for expert in range(n_experts):
            base, top = top, top + load[:, layer, expert]
            axis.fill_between(steps, base, top, color=palette.colour(expert), lw=0.4, edgecolor="white")
            if top[-1] - base[-1] > 0.03:
                axis.annotate(str(expert), (1.005, (base[-1] + top[-1]) / 2), xycoords=("axes fraction", "data"),
                              va="center", fontsize=9, color=palette.INK)
        axis.margins(x=0)
        axis.set(ylim=(0, 1), ylabel=f"layer {layer}\nshare of assignments")
        figures.plain(axis)
    axes[-1].set_xlabel(f"optimiser steps (at the right: numbers of the experts; an even share is {1 / n_experts:.1%})")
    figure.suptitle(title, color=palette.INK, fontsize=13)
    return figure


def load_by_domain(load, domains, title):
    """Where each domain's tokens go: bars an expert, one panel a layer.

    load: [domains, L, E], shares that sum to 1 over the experts.
    """
    _, n_layers, n_experts = load.shape
    figure = Figure(figsize=(10, 2.1 * n_layers + 1), layout="constrained")
    axes = np.atleast_1d(figure.subplots(n_layers, 1, sharex=True, sharey=True))
    width = 0.8 / len(domains)
    for layer, axis in enumerate(axes):
        bars = []
        for d in range(len(domains)):
            shade, hatch = palette.DOMAIN_STYLES[d % len(palette.DOMAIN_STYLES)]
            bars.append(axis.bar(np.arange(n_experts) + (d - (len(domains) - 1) / 2) * width, load[d, layer], width,
                                 color=shade, hatch=hatch, edgecolor="white"))
        axis.axhline(1 / n_experts, color=palette.INK, lw=1, ls=":")
        axis.set(ylabel=f"layer {layer}\nshare of assignments")
        figures.plain(axis)
        if layer == 0:
            axis.legend(bars, domains, frameon=False, ncols=len(domains), loc="upper right")
    axes[-1].set(xlabel="expert (dotted: an even split)", xticks=range(n_experts))
    figure.suptitle(title, color=palette.INK, fontsize=13)
    return figure
