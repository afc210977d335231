"""Pictures of what routers decide: one panel per router, one column per token, one row per expert."""

import numpy as np
from matplotlib.patches import Rectangle

from minimoe.plots import figures, palette


@figures.picture
def weight_maps(weight_TE, text, title, changed=None, columns=2, label="weight of the expert for the token"):
    """How much each expert counts for each token; white is not at all.  Right of a row: how many tokens it has.

    Args:
        weight_TE: name -> array [T, E], from 0 to 1.
        text: T characters.
        title: words.
        changed: name -> bool [T, E], cells to frame; or None.
        columns: panels side by side.
        label: what the colour means.
    """
    n_experts, rows = next(iter(weight_TE.values())).shape[1], -(-len(weight_TE) // columns)
    figure = figures.new_figure(8, rows * (0.13 * n_experts + 0.55) + 0.9, title, 12)
    axes = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    for axis, (name, of_TE) in zip(axes, weight_TE.items(), strict=False):
        shown = axis.imshow(np.where(of_TE > 0, of_TE, np.nan).T, cmap="cividis_r", vmin=0, vmax=1, aspect="auto",
                            interpolation="nearest")
        _draw_grid(axis, of_TE, text)
        axis.set_title(name, color=palette.INK, fontsize=10)
        for token, expert in np.argwhere(changed[name]) if changed else ():
            axis.add_patch(Rectangle((token - 0.5, expert - 0.5), 1, 1, fill=False, edgecolor=palette.FRAME, lw=2))
    for axis in axes[len(weight_TE):]:
        axis.set_axis_off()
    for axis in axes[::columns]:
        axis.set_ylabel("expert", color=palette.INK, fontsize=9)
    height = figure.get_figheight()
    figure.colorbar(shown, ax=axes, location="bottom", aspect=60, label=label, fraction=0.3 / height, pad=0.1 / height)
    return figure


def _draw_grid(axis, weight_TE, text):
    """Characters below, numbers of the experts at the left, their tokens at the right, lines between the cells."""
    n_tokens, n_experts = weight_TE.shape
    axis.set_xticks(range(n_tokens), ["␣" if character == " " else character for character in text], fontsize=9)
    axis.set_yticks(range(0, n_experts, 2 if n_experts > 4 else 1))
    axis.set_xticks(np.arange(n_tokens + 1) - 0.5, minor=True)
    axis.set_yticks(np.arange(n_experts + 1) - 0.5, minor=True)
    axis.grid(which="minor", color=palette.PALE_GRID, lw=0.5)
    axis.tick_params(which="both", colors=palette.INK, labelsize=9, length=0)
    axis.spines[:].set_color(palette.GREY_BB)
    for expert, count in enumerate((weight_TE > 0).sum(axis=0)):
        axis.text(n_tokens - 0.2, expert, count, ha="left", va="center", fontsize=7.5, color=palette.INK)
