"""Pictures of training that is sparse from the start: a mask that changes, and the map of all ways to be sparse."""

import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.patches import Patch, Rectangle

from minimoe.plots import figures, palette

STATES = {"no weight": palette.WHITE, "there since the start": palette.GRAY_BB, "came earlier": palette.SKY_BLUE,
          "came at this change": palette.BLUE, "went at this change": palette.VERMILION}
"""What a place of a mask is at one change -> its color."""


@figures.picture
def film(mask_NDF, steps, title):
    """One matrix's mask over training: one row per rule, one frame per change, one square per weight.

    Args:
        mask_NDF: rule -> masks of the matrix at these steps, True = there.
        steps: training steps of the frames; the first is the start.
        title: words.
    """
    N, D, F = next(iter(mask_NDF.values())).shape
    width = 8.4 / N
    figure = figures.new_figure(8.4, len(mask_NDF) * (width * D / F + 0.2) + 0.75, title, 12)
    axes = figure.subplots(len(mask_NDF), N, squeeze=False)
    for row, (rule, masks) in zip(axes, mask_NDF.items(), strict=True):
        for n, axis in enumerate(row):
            state_DF = _states(masks[:n + 1])
            axis.imshow(state_DF, cmap=ListedColormap(list(STATES.values())), vmin=0, vmax=len(STATES) - 1,
                        interpolation="nearest")
            words = f"step {steps[n]}" if n == 0 else f"step {steps[n]}: {(state_DF == 3).sum()} new"
            axis.set_title(words, color=palette.INK, fontsize=9)
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_color(palette.GRAY_BB)
        row[0].set_ylabel(rule, color=palette.INK, fontsize=11)
    figure.legend(handles=[Patch(facecolor=shade, edgecolor=palette.LIMIT, label=name) for name, shade in
                           list(STATES.items())[1:]], loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return figure


def _states(mask_NDF):
    """The number in STATES of each place, at the last of these masks."""
    now = mask_NDF[-1]
    if len(mask_NDF) == 1:
        return now.astype(int)
    before = mask_NDF[-2]
    return np.select([now & ~before, now & mask_NDF.all(axis=0), now, before], [3, 1, 2, 4], 0)


@figures.picture
def seeds(ce_N, marked, title):
    """Losses of several models: one row per model, one dot per seed, a bar at the mean; red ones are sparse.

    Args:
        ce_N: model -> loss of each seed, nats per token.
        marked: names of the sparse models.
        title: words.
    """
    figure = figures.new_figure(7.8, 0.4 * len(ce_N) + 1.1, title, 12)
    axis = figure.subplots()
    for y, (name, ce) in enumerate(ce_N.items()):
        shade = palette.VERMILION if name in marked else palette.DENSE
        axis.plot(ce, np.full(len(ce), y), "o", color=shade, ms=7, alpha=0.7)
        axis.plot([ce.mean()] * 2, [y - 0.3, y + 0.3], color=shade, lw=2.5)
    axis.set_xlabel("held-out loss (nats per token)")
    axis.grid(axis="x", color=palette.PALE_GRID, lw=0.6)
    figures.name_rows(axis, list(ce_N))
    figures.plain(axis)
    return figure


WAYS = "share of the dense model; blue: less, red: more, and the bar is cut"


@figures.picture
def ways(rows, columns, title):
    """The map of the ways to be sparse: one row per way, shares of the dense model as bars, and words.

    Args:
        rows: way -> (what is cut, shares, words on the time that is saved); a share is that of the dense model.
        columns: names of the shares.
        title: words.
    """
    figure = figures.new_figure(9.6, 0.42 * len(rows) + 1.3, title, 12)
    axis, left = figure.subplots(), 1.7
    for y, (cut, shares, time) in enumerate(rows.values()):
        axis.text(0, y, cut, va="center", fontsize=9, color=palette.INK)
        for x, share in enumerate(shares, start=1):
            axis.add_patch(Rectangle((left + x, y - 0.3), 0.85, 0.6, facecolor=palette.GRAY_F4))
            axis.add_patch(Rectangle((left + x, y - 0.3), 0.85 * min(share, 1), 0.6, facecolor=_shade(share)))
            axis.text(left + x + 0.425, y, f"{share:.0%}", ha="center", va="center", fontsize=9, color=palette.INK)
        axis.text(left + len(shares) + 1.05, y, time, va="center", fontsize=9, color=palette.INK)
    heads = [(0, "what is cut", "left"), (left + len(columns) + 1.05, "time", "left"),
             *((left + x + 0.425, name, "center") for x, name in enumerate(columns, start=1))]
    for x, name, side in heads:
        axis.text(x, -0.75, name, ha=side, fontsize=9.5, fontweight="bold", color=palette.INK)
    axis.set(xlim=(-0.1, left + len(columns) + 3.6), xticks=[], xlabel=WAYS)
    figures.name_rows(axis, list(rows))
    axis.set_ylim(len(rows) - 0.4, -1.1)
    figures.frameless(axis)
    return figure


def _shade(share):
    """Blue where something is saved, red where more is needed, gray where it is the same."""
    return palette.SKY_BLUE if share < 0.97 else palette.GRAY_CC if share < 1.03 else palette.PALE_VERMILION
