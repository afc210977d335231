"""Pictures of what routers decide, what they reach, and what the weights of their balance losses mean."""

import numpy as np
from matplotlib.patches import Rectangle

from minimoe.plots import figures, palette


@figures.picture
def weight_maps(weight_TE, text, title, changed=None, columns=2, label="weight of the expert for the token"):
    """How much each expert counts for each token: one panel per router, one row per expert, one column per token.

    White is not at all, the darker the more.  Right of a row: how many tokens the expert has.

    Args:
        weight_TE: name -> array [T, E], from 0 to 1.
        text: T characters.
        title: words.
        changed: name -> bool [T, E], cells to frame; or None.
        columns: panels side by side.
        label: what the color means.
    """
    n_experts, rows = next(iter(weight_TE.values())).shape[1], -(-len(weight_TE) // columns)
    figure = figures.new_figure(8, rows * (0.13 * n_experts + 0.55) + 0.9, title, 12)
    axes = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    for axis, (name, of_TE) in zip(axes, weight_TE.items(), strict=False):
        shown = axis.imshow(np.where(of_TE > 0, of_TE, np.nan).T, cmap=figures.scale(palette.PALE_WEIGHTS), vmin=0,
                            vmax=1, aspect="auto", interpolation="nearest")
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


@figures.picture
def expert_loads(count_NE, title):
    """The load of each expert, step by step: one row per expert, one column per step, white is none and dark is most.

    At the right stand the first and the last load.

    Args:
        count_NE: assignments of each expert at each step.
        title: words.
    """
    figure = figures.new_figure(7.8, 3)
    axis = figure.subplots()
    shown = axis.imshow(count_NE.T, cmap=figures.scale(palette.WEIGHTS), aspect="auto", interpolation="nearest", vmin=0)
    words = [f"{first} → {last}" for first, last in zip(count_NE[0], count_NE[-1], strict=True)]
    figures.name_rows(axis, range(count_NE.shape[1]), words)
    axis.set(xlabel="steps of the bias", ylabel="expert", title=title)
    figure.colorbar(shown, label="load (assignments)", pad=0.12)
    return figure


@figures.picture
def router_losses(results, kinds, usual, title):
    """Validation loss of each router: one row per router, one mark per seed, a bar at their mean.

    The dotted line is the dense model.  At the right: the mean, and how far it is above that of the usual router.

    Args:
        results: name -> record with ce, one entry per seed; "dense" is one of them.
        kinds: name -> a key of `palette.ROUTER_STYLES`.
        usual: name of the router to compare with.
        title: words.
    """
    names = sorted(results, key=lambda name: (kinds[name] == "sees the future", results[name].ce.mean()))
    figure = figures.new_figure(8, 0.31 * len(names) + 1.4)
    axis = figure.subplots()
    axis.axvline(results["dense"].ce.mean(), color=palette.INK, lw=1, ls=":")
    for row, name in enumerate(names):
        ce, (shade, mark) = results[name].ce, palette.ROUTER_STYLES[kinds[name]]
        axis.plot(ce, np.full(len(ce), row), mark, color=shade, ms=6, alpha=0.7)
        axis.plot([ce.mean()] * 2, [row - 0.3, row + 0.3], "-", color=shade, lw=2.5)
    for kind, (shade, mark) in palette.ROUTER_STYLES.items():
        axis.plot([], [], mark, color=shade, label=kind)
    means = [results[name].ce.mean() for name in names]
    figures.name_rows(axis, names, [f"{mean:.3f}  {mean - results[usual].ce.mean():+.3f}" for mean in means])
    axis.set(xlabel=f"validation loss (nats per token); at the right: mean, and difference from {usual}", title=title)
    axis.legend(frameon=False, loc="upper right")
    figures.plain(axis)
    return figure


@figures.picture
def translated_weights(weights, title):
    """The weight of each system's balance loss: a ring for the one that it names, a diamond for ours, on one scale.

    Args:
        weights: name -> (weight as published, weight in our units).
        title: words.
    """
    figure = figures.new_figure(7.8, 0.3 * len(weights) + 1.2)
    axis = figure.subplots()
    for row, (published, ours) in enumerate(weights.values()):
        axis.plot([published, ours], [row, row], "-", color=palette.GRAY_99, lw=2)
        axis.plot(published, row, "o", mfc="white", mec=palette.INK, ms=10)
        axis.plot(ours, row, "D", color=palette.BLUE, ms=5)
    axis.plot([], [], "o", mfc="white", mec=palette.INK, ms=10, label="as published")
    axis.plot([], [], "D", color=palette.BLUE, ms=5, label="in our units")
    figures.name_rows(axis, list(weights))
    axis.set(xscale="log", xlabel="weight of the balance loss", title=title)
    axis.legend(frameon=False)
    figures.plain(axis)
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
    axis.spines[:].set_color(palette.GRAY_BB)
    for expert, count in enumerate((weight_TE > 0).sum(axis=0)):
        axis.text(n_tokens - 0.2, expert, count, ha="left", va="center", fontsize=7.5, color=palette.INK)
