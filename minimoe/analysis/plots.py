"""Pictures of a run.  Colour-blind safe, experts named by number as well as by colour, titles that say what is seen.

Each function takes plain arrays and returns a matplotlib Figure; `save` writes it.
"""

from itertools import cycle
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from minimoe import files

EXPERT_COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#999999")
"""Okabe and Ito's palette, grey in place of black so that text can stand on every one."""

MODEL_STYLES = (("#D55E00", "-"), ("#0072B2", "--"), ("#009E73", ":"))
DOMAIN_STYLES = (("#333333", ""), ("#aaaaaa", "///"), ("#777777", "..."), ("#cccccc", "xxx"))
INK = "#222222"


def colour(expert):
    """The colour of an expert; from the ninth on they repeat, and the number tells them apart."""
    return EXPERT_COLOURS[expert % len(EXPERT_COLOURS)]


def ink(expert):
    """Black or white, whichever is easier to read on the expert's colour."""
    return ink_on(colour(expert))


def ink_on(shade):
    """Black or white, whichever is easier to read on a colour, "#rrggbb"."""
    red, green, blue = (int(shade[i:i + 2], 16) for i in (1, 3, 5))
    return "#000000" if 0.299 * red + 0.587 * green + 0.114 * blue > 100 else "#ffffff"


def check_path(path):
    """Raise ValueError unless the path is that of a PNG; for what takes long before it has a figure to save."""
    if Path(path).suffix.lower() != ".png":
        raise ValueError(f"the figure {path}: must end in .png, since it is written as PNG")


def save(figure, path):
    """Write a PNG under a temporary name and rename it; the same figure gives the same bytes.

    Raises ValueError if the path does not end in .png, or the folder or the disk does not allow it.
    """
    check_path(path)
    try:
        with files.written(path) as temporary:
            figure.savefig(temporary, format="png", dpi=160, facecolor="white", metadata={"Software": None})
    except OSError as error:
        raise ValueError(f"cannot write the figure {path}: {error.strerror or error}") from error


def losses(curves, title):
    """Validation loss against steps, and against training FLOPs.

    curves: name -> (steps, flops, ce), arrays of one length, or ce with one row a seed.
    """
    figure = Figure(figsize=(10, 4.4), layout="constrained")
    by_step, by_flops = figure.subplots(1, 2, sharey=True)
    for (name, (steps, flops, ce)), (shade, line) in zip(curves.items(), cycle(MODEL_STYLES), strict=False):
        ce = np.atleast_2d(ce)
        for axis, x in ((by_step, steps), (by_flops, flops)):
            axis.plot(x, ce.mean(axis=0), line, color=shade, lw=2.2, label=name)
            if len(ce) > 1:
                axis.fill_between(x, ce.min(axis=0), ce.max(axis=0), color=shade, alpha=0.2, lw=0)
    by_step.set(xlabel="optimiser steps", ylabel="validation loss (nats per token)", title="the same steps")
    by_flops.set(xlabel="training FLOPs (matrix products, forward and backward)", title="the same FLOPs", xscale="log")
    by_flops.xaxis.set_minor_formatter("")
    by_step.legend(frameon=False, title=f"mean and range of {len(ce)} seeds" if len(ce) > 1 else None)
    for axis in (by_step, by_flops):
        plain(axis)
    figure.suptitle(title, color=INK, fontsize=13)
    return figure


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
            axis.fill_between(steps, base, top, color=colour(expert), lw=0.4, edgecolor="white")
            if top[-1] - base[-1] > 0.03:
                axis.annotate(str(expert), (1.005, (base[-1] + top[-1]) / 2), xycoords=("axes fraction", "data"),
                              va="center", fontsize=9, color=INK)
        axis.margins(x=0)
        axis.set(ylim=(0, 1), ylabel=f"layer {layer}\nshare of assignments")
        plain(axis)
    axes[-1].set_xlabel(f"optimiser steps (at the right: numbers of the experts; an even share is {1 / n_experts:.1%})")
    figure.suptitle(title, color=INK, fontsize=13)
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
            shade, hatch = DOMAIN_STYLES[d % len(DOMAIN_STYLES)]
            bars.append(axis.bar(np.arange(n_experts) + (d - (len(domains) - 1) / 2) * width, load[d, layer], width,
                                 color=shade, hatch=hatch, edgecolor="white"))
        axis.axhline(1 / n_experts, color=INK, lw=1, ls=":")
        axis.set(ylabel=f"layer {layer}\nshare of assignments")
        plain(axis)
        if layer == 0:
            axis.legend(bars, domains, frameon=False, ncols=len(domains), loc="upper right")
    axes[-1].set(xlabel="expert (dotted: an even split)", xticks=range(n_experts))
    figure.suptitle(title, color=INK, fontsize=13)
    return figure


ROUTER_MARKS = {"causal": ("#0072B2", "o"), "causal in evaluation": ("#009E73", "s"),
                "sees the future": ("#999999", "x")}


def routers(results, kinds, title):
    """Loss, load, drops and time of each router: a dot a seed, a bar at their mean, of times at the median.

    results: name -> record with ce, load, drop, seconds, one entry a seed.  kinds: name -> a key of ROUTER_MARKS.
    """
    names = sorted(results, key=lambda name: (kinds[name] == "sees the future", results[name].ce.mean()))
    figure = Figure(figsize=(12, 0.36 * len(names) + 2.2), layout="constrained")
    panels = {"ce": "validation loss\n(nats per token)", "load": "busiest expert\n(1 is an even load)",
              "drop": "assignments dropped\n(share)", "seconds": "median step\n(milliseconds)"}
    for axis, (field, label) in zip(figure.subplots(1, 4, sharey=True), panels.items(), strict=True):
        for row, name in enumerate(names):
            values, (shade, mark) = getattr(results[name], field), ROUTER_MARKS[kinds[name]]
            values = values * 1000 if field == "seconds" else values
            axis.plot(values, np.full(len(values), row), mark, color=shade, ms=5, alpha=0.7)
            middle = np.median(values) if field == "seconds" else np.mean(values)  # a busy machine spoils a mean
            axis.plot([middle] * 2, [row - 0.3, row + 0.3], "-", color=shade, lw=2.5)
        axis.set(xlabel=label, yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.4, -0.6))
        axis.grid(axis="x", color="#dddddd", lw=0.6)
        plain(axis)
    handles = [figure.axes[0].plot([], [], mark, color=shade, label=kind)[0]
               for kind, (shade, mark) in ROUTER_MARKS.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle(title, color=INK, fontsize=13)
    return figure


def time_by_part(seconds, parts, title):
    """Where the time of a training step goes: all of it in one bar, and that of each layer below, forward and backward.

    seconds: (layer, part, way) -> seconds; layer is None outside of the layers, way forward, backward or update.
    parts: their names, in the order in which they are stacked.
    """
    layers, total = sorted({layer for layer, _, _ in seconds} - {None}), sum(seconds.values())
    figure = Figure(figsize=(10, 0.4 * len(layers) + 3.6), layout="constrained")
    axes = figure.subplot_mosaic([["step"] * 2, ["forward", "backward"]], height_ratios=(1, 0.8 + 0.3 * len(layers)))
    ends = {"step": np.zeros(1), "forward": np.zeros(len(layers)), "backward": np.zeros(len(layers))}
    for i, name in enumerate(parts):
        share = sum(t for (_, part, _), t in seconds.items() if part == name) / total
        lengths = {way: np.array([1000 * seconds.get((layer, name, way), 0.0) for layer in layers])
                   for way in ("forward", "backward")} | {"step": np.array([100 * share])}
        for panel, length in lengths.items():
            bars = axes[panel].barh(range(len(length)), length, left=ends[panel], color=colour(i), edgecolor="white",
                                    hatch="" if i % 2 else "//", label=name)
            ends[panel] = ends[panel] + length
        if share > 0.03:
            words = f"{name}\n{share:.0%}" if share > 0.015 * len(name) else f"{share:.0%}"
            axes["step"].bar_label(bars, [words], label_type="center", color=ink(i),
                                   bbox={"facecolor": colour(i), "edgecolor": "none", "pad": 1})
    axes["step"].set(xlabel=f"share of a training step (%), of {1000 * total:.1f} ms on one thread", xlim=(0, 100),
                     yticks=[])
    for way in ("forward", "backward"):
        axes[way].set(xlabel=f"{way} pass of each layer (milliseconds)", yticks=range(len(layers)),
                      yticklabels=[f"layer {layer}" for layer in layers], ylim=(len(layers) - 0.5, -0.5),
                      xlim=(0, 1.02 * max(*ends["forward"], *ends["backward"])))
    for axis in axes.values():
        plain(axis)
    figure.legend(*axes["step"].get_legend_handles_labels(), loc="outside lower center", ncols=len(parts),
                  frameon=False, fontsize=9, columnspacing=1.2, handlelength=1.5)
    figure.suptitle(title, color=INK, fontsize=13)
    return figure


def coloured_text(pieces, n_experts, title):
    """Characters on the colour of the expert of their first choice, its number below each.

    pieces: list of (heading, text, expert of each character).
    """
    width = max(len(line) for _, text, _ in pieces for line in text.split("\n")) + 1
    rows = sum(len(text.split("\n")) + 1.2 for _, text, _ in pieces) + 1.6
    figure = Figure(figsize=(10, 0.5 + rows * 0.36))
    axis = figure.add_axes((0.02, 0.01, 0.96, 0.99 - 0.5 / figure.get_figheight()))
    axis.set(xlim=(0, width), ylim=(rows, 0))
    axis.axis("off")
    axis.text(0, 0.6, "expert", fontsize=10, color=INK, va="center")
    for expert in range(n_experts):
        _draw_cell(axis, 7 + 2.2 * expert, 0.6, str(expert), expert, 2)
    y = 1.8
    for heading, text, experts in pieces:
        axis.text(0, y, heading, fontsize=10, color=INK, va="center", style="italic")
        y = _draw_lines(axis, text, experts, y + 0.9) + 0.3
    figure.suptitle(title, color=INK, fontsize=13)
    return figure


def _draw_lines(axis, text, experts, y):
    """One cell a character, a new row at each line break; returns the next free row."""
    x = 0
    for character, expert in zip(text, experts, strict=True):
        if character == "\n":
            _draw_cell(axis, x, y, "↵", expert, number=True)
            x, y = 0, y + 1
        else:
            _draw_cell(axis, x, y, character, expert, number=True)
            x += 1
    return y + 1


def _draw_cell(axis, x, y, character, expert, width=1.0, number=False):
    axis.add_patch(Rectangle((x, y - 0.45), width, 0.9, facecolor=colour(expert), edgecolor="white", linewidth=0.5))
    axis.text(x + width / 2, y - 0.12 * number, character, ha="center", va="center", family="monospace", fontsize=10,
              color=ink(expert))
    if number:
        axis.text(x + width / 2, y + 0.28, str(expert), ha="center", va="center", fontsize=5.5, color=ink(expert))


def plain(axis):
    """No box, and ink that is not quite black."""
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(colors=INK)
    axis.title.set_color(INK)
