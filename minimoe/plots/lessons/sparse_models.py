"""Pictures of what a sparse model is: which weights a token uses, and how many parameters and FLOPs that makes."""

import numpy as np
from matplotlib.colors import to_rgb

from minimoe.plots import figures, palette

SERIES = ((palette.BLUE, "o", 12), (palette.VERMILION, "s", 8.5), (palette.GREEN, "^", 7))
"""Color, marker and size of each series of dots: later ones are smaller, so that one shows inside the other."""


@figures.picture
def used_weights(blocks, tokens, title):
    """Every weight of feed-forward networks as a small square, colored where the token of its row of panels uses it.

    Args:
        blocks: name -> (used, E).  used: [T, 3, D, J] booleans, for each token and each of the three matrices; a column
            is a hidden unit.  E: experts that share out the hidden units; above each stands its column of the router,
            which every token uses.  1: a dense block, which has no router.
        tokens: their names.
        title: words.
    """
    figure = figures.new_figure(7.6, 1.75 * len(tokens) + 1.1, title, 12)
    widths = [used.shape[3] for used, _ in blocks.values()]
    axes = figure.subplots(len(tokens), len(blocks), squeeze=False, width_ratios=widths)
    for row, token in enumerate(tokens):
        for axis, (name, (used, E)) in zip(axes[row], blocks.items(), strict=True):
            D = used.shape[2]
            axis.pcolormesh(_painted(used[row], E), edgecolors=palette.WHITE, linewidth=0.6)
            axis.set(ylim=(4 * D + 3, 0), xticks=[], yticks=[], title=name if row == 0 else "")
            if E > 1:
                _number_experts(axis, used[row], E)
            figures.frameless(axis)
            axis.tick_params(labelsize=9)
            axis.title.set_fontsize(10)
        middles = [D + 1 + D / 2 + matrix * (D + 1) for matrix in range(3)]
        axes[row, 0].set_yticks(middles, ["gate", "up", "down"])
        axes[row, 0].set_ylabel(f"token {token}", fontsize=11, fontweight="bold", color=palette.INK)
    figure.supxlabel("a square is a weight; dark or colored: the token uses it; pale: it does not", fontsize=10,
                     color=palette.INK)
    return figure


def _painted(used, E):
    """The colors of one panel: the router above the three matrices, with a row of nothing before each of these."""
    _, D, J = used.shape
    image = np.full((4 * D + 3, J, 3), to_rgb(palette.WHITE))
    shade_J3 = np.array([to_rgb(palette.color(unit * E // J) if E > 1 else palette.SHARED) for unit in range(J)])
    for matrix in range(3):
        top = (D + 1) * (matrix + 1)
        image[top:top + D] = np.where(used[matrix][:, :, None], shade_J3, to_rgb(palette.IDLE))
    if E > 1:
        image[:D, _middle(E, J)] = to_rgb(palette.SHARED)
    return image


def _middle(E, J):
    """The middle column of each expert."""
    return np.arange(E) * (J // E) + J // E // 2


def _number_experts(axis, used, E):
    """The number of each expert below it, bold if the token uses it; and the router's name."""
    _, D, J = used.shape
    axis.set_xticks(_middle(E, J) + 0.5, range(E))
    for label, unit in zip(axis.get_xticklabels(), _middle(E, J), strict=True):
        label.set(fontweight="bold" if used[:, :, unit].any() else "normal")
    axis.set_yticks([D / 2], ["router"])


@figures.picture
def twins(parameters, work, title):
    """A model next to its dense twins: parameters, used by a token or idle, and FLOPs per token, part by part.

    Args:
        parameters: name -> (active, idle).
        work: name -> part -> FLOPs per token, parts as in `palette.PARTS`.
        title: words.
    """
    figure = figures.new_figure(7.8, 0.45 * len(parameters) + 1.9, title, 12)
    left, right = figure.subplots(1, 2, sharey=True)
    for row, (active, idle) in enumerate(parameters.values()):
        left.barh(row, active / 1e6, color=palette.SHARED, label="used by a token")
        left.barh(row, idle / 1e6, left=active / 1e6, color=palette.IDLE, edgecolor=palette.GRAY_88, lw=0, hatch="///",
                  label="idle")
    seen = {}
    for row, of_part in enumerate(work.values()):
        start = 0.0
        for part in (part for part in palette.PARTS if of_part.get(part)):
            bar = right.barh(row, of_part[part] / 1e6, left=start, color=palette.PARTS[part],
                             edgecolor=palette.WHITE, lw=0.6)
            seen.setdefault(part, bar)
            start += of_part[part] / 1e6
    figures.name_rows(left, list(parameters))
    left.set_xlabel("parameters (millions)")
    right.set_xlabel("forward FLOPs per token (millions)")
    handles, labels = left.get_legend_handles_labels()
    shown = [part for part in palette.PARTS if part in seen]
    style = dict(frameon=False, fontsize=9, loc="lower center", bbox_to_anchor=(0.5, 1), columnspacing=1)
    left.legend(handles[:2], labels[:2], ncols=2, **style)
    words = [{"dense": "dense FFN"}.get(part, part) for part in shown]
    right.legend([seen[part] for part in shown], words, ncols=3, handlelength=1, **style)
    for axis in (left, right):
        figures.plain(axis)
    return figure


@figures.picture
def dots(rows, series, words, xlabel, title):
    """A mark for each series in each row, on a scale where equal steps are equal ratios, joined by a line.

    Args:
        rows: names.
        series: name -> numbers, one per row, above 0, or nan for none.
        words: what stands at the right of each row.
        xlabel, title: words.

    Raises ValueError for more series than there are signs for.
    """
    if not 1 <= len(series) <= len(SERIES):
        raise ValueError(f"series = {len(series)}: must be 1 to {len(SERIES)}, each with a sign of its own")
    figure = figures.new_figure(7.6, 0.34 * len(rows) + 1.7, title, 12)
    axis = figure.subplots()
    values = np.array([series[name] for name in series], float)
    ends = np.nanmin(values, axis=0), np.nanmax(values, axis=0)
    axis.hlines(range(len(rows)), *ends, color=palette.GRAY_BB, lw=2, zorder=1)
    for (name, numbers), (shade, mark, size) in zip(series.items(), SERIES, strict=False):
        axis.plot(numbers, range(len(rows)), mark, color=shade, ms=size, label=name, markeredgecolor=palette.WHITE)
    axis.set(xscale="log", xlabel=xlabel)
    figures.name_rows(axis, rows, words)
    figures.name_powers(axis.xaxis, "{:g}".format, (1, 2, 5) if np.nanmax(values) < 100 * np.nanmin(values) else (1,))
    axis.grid(axis="x", color=palette.PALE_GRID, lw=0.6)
    figures.plain(axis)
    figure.legend(loc="outside lower center", ncols=len(series), frameon=False)
    return figure
