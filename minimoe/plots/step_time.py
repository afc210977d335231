"""How the time of a training step is spent."""

import numpy as np

from minimoe.plots import figures, palette


@figures.picture
def time_by_part(seconds, parts, title):
    """How the time of a training step is spent: one bar for the step, and below the layers, forward and backward.

    seconds: (layer, part, way) -> seconds; layer is None outside the layers, way forward, backward or update.
    parts: their names, in the order in which they are stacked.
    """
    layers, total = sorted({layer for layer, _, _ in seconds} - {None}), sum(seconds.values())
    figure = figures.new_figure(10, 0.4 * len(layers) + 3.6, title)
    axes = figure.subplot_mosaic([["step"] * 2, ["forward", "backward"]], height_ratios=(1, 0.8 + 0.3 * len(layers)))
    ends = {"step": np.zeros(1), "forward": np.zeros(len(layers)), "backward": np.zeros(len(layers))}
    for i, name in enumerate(parts):
        share = sum(t for (_, part, _), t in seconds.items() if part == name) / total
        lengths = {way: np.array([1000 * seconds.get((layer, name, way), 0.0) for layer in layers])
                   for way in ("forward", "backward")} | {"step": np.array([100 * share])}
        for panel, length in lengths.items():
            bars = axes[panel].barh(range(len(length)), length, left=ends[panel], color=palette.color(i),
                                    edgecolor="white", hatch="" if i % 2 else "//", label=name)
            ends[panel] = ends[panel] + length
        if share > 0.03:
            words = f"{name}\n{share:.0%}" if share > 0.015 * len(name) else f"{share:.0%}"
            axes["step"].bar_label(bars, [words], label_type="center", color=palette.ink(i),
                                   bbox={"facecolor": palette.color(i), "edgecolor": "none", "pad": 1})
    axes["step"].set(xlabel=f"share of a training step (%), of {1000 * total:.1f} ms on one thread", xlim=(0, 100),
                     yticks=[])
    for way in ("forward", "backward"):
        axes[way].set(xlabel=f"{way} pass of each layer (milliseconds)", yticks=range(len(layers)),
                      yticklabels=[f"layer {layer}" for layer in layers], ylim=(len(layers) - 0.5, -0.5),
                      xlim=(0, 1.02 * max(*ends["forward"], *ends["backward"])))
    for axis in axes.values():
        figures.plain(axis)
    figure.legend(*axes["step"].get_legend_handles_labels(), loc="outside lower center", ncols=len(parts),
                  frameon=False, fontsize=9, columnspacing=1.2, handlelength=1.5)
    return figure
