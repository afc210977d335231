"""Gradients on their way back: a map of the layer with both directions, and how much of them each weight gets."""

import math

import numpy as np
from matplotlib.patches import FancyBboxPatch, Rectangle

from minimoe.plots import figures, palette

BOXES = {
    "x": (0.6, 1.9, "x\ntokens"),
    "scores": (2.7, 3.3, "scores\nlogit = x W"),
    "softmax": (5.0, 3.3, "softmax\np"),
    "gates": (7.3, 3.3, "gates\ng"),
    "choice": (5.0, 1.9, "choice\nthe K best"),
    "dispatch": (2.7, 0.5, "dispatch\nrows"),
    "experts": (5.0, 0.5, "experts\nout"),
    "combine": (7.3, 1.9, "combine\ny = Σ g out"),
    "loss": (9.6, 1.9, "loss\nL"),
}
"""Name -> where it stands, and its words."""

WIDTH, HEIGHT = 1.24, 0.66

BOTTOM = 1e-17
"""An error of 0, where axes are logarithmic."""

WAYS = [("x", "scores", "dx"), ("scores", "softmax", "dlogit"), ("softmax", "gates", "dp"),
        ("gates", "combine", "dg"), ("x", "dispatch", "dx"), ("dispatch", "experts", "drows"),
        ("experts", "combine", "dout"), ("combine", "loss", "dy")]
"""What goes forward from where to where, and the gradient that comes back."""

ONE_WAY = [("softmax", "choice"), ("choice", "gates"), ("choice", "dispatch")]
"""What goes forward and has no slope, so that nothing comes back."""


@figures.picture
def gradient_map():
    """The layer as boxes: numbers go forward along gray arrows, gradients back along orange ones, none through the
    choice.
    """
    figure = figures.new_figure(8, 3.6)
    axis = figure.subplots()
    axis.set(xlim=(-0.1, 10.3), ylim=(0, 3.85))
    axis.axis("off")
    for start, end, gradient in WAYS:
        _draw_way(axis, start, end, gradient)
    for start, end in ONE_WAY:
        _arrow(axis, *_ends(start, end), palette.FORWARD, "dotted")
    for name, (x, y, words) in BOXES.items():
        face = palette.GRAY_EE if name == "choice" else palette.WHITE
        axis.add_patch(FancyBboxPatch((x - WIDTH / 2, y - HEIGHT / 2), WIDTH, HEIGHT, boxstyle="round,pad=0.04",
                                      facecolor=face, edgecolor=palette.INK))
        axis.text(x, y, words, ha="center", va="center", fontsize=9, color=palette.INK)
    handles = [axis.plot([], [], line, color=shade, lw=2, label=words)[0] for shade, line, words in (
        (palette.FORWARD, "-", "forward"), (palette.FORWARD, ":", "forward, without a slope"),
        (palette.BACKWARD, "-", "back: gradients"))]
    axis.legend(handles=handles, frameon=False, fontsize=9, loc="lower right")
    axis.set_title("The gradient comes back along two roads, and neither leads through the choice", fontsize=11,
                   color=palette.INK)
    return figure


def _draw_way(axis, start, end, gradient):
    """Two arrows side by side, and the gradient's name next to its own."""
    tail, head = _ends(start, end)
    direction = (head - tail) / np.linalg.norm(head - tail)
    shift = 0.09 * np.array([-direction[1], direction[0]])
    _arrow(axis, tail + shift, head + shift, palette.FORWARD, "solid")
    _arrow(axis, head - shift, tail - shift, palette.BACKWARD, "solid")
    axis.text(*((tail + head) / 2 - 2.6 * shift), gradient, color=palette.BACKWARD, fontsize=9, ha="center",
              va="center", fontweight="bold")


def _ends(start, end):
    """Where an arrow leaves the box it comes from, and meets the one it goes to."""
    one, other = (np.array(BOXES[name][:2]) for name in (start, end))
    way = other - one
    inside = min(size / 2 / abs(part) for part, size in zip(way, (WIDTH + 0.14, HEIGHT + 0.14), strict=True) if part)
    return one + inside * way, other - inside * way


def _arrow(axis, tail, head, shade, line):
    axis.annotate("", head, tail, arrowprops={"arrowstyle": "-|>", "color": shade, "lw": 1.5, "linestyle": line,
                                              "shrinkA": 0, "shrinkB": 0})


@figures.picture
def turned_score(score_S, gate_SE, loss_S, name, title):
    """A token's gates, stacked, and its loss, while one score is turned up; the loss breaks where the choice changes.

    Args:
        score_S: values of the score.
        gate_SE: the gate of each expert, 0 where it is not chosen.
        loss_S: the token's loss.
        name: of the score.
        title: words.
    """
    figure = figures.new_figure(7.5, 3.1, title, 12)
    left, right = figure.subplots(1, 2)
    used = np.flatnonzero(gate_SE.any(axis=0))
    left.stackplot(score_S, gate_SE[:, used].T, colors=[palette.color(e) for e in used], edgecolor=palette.WHITE,
                   labels=[f"expert {e}" for e in used])
    left.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=len(used), frameon=False, handlelength=1, fontsize=9)
    left.set(ylabel="gates of the token (they sum to 1)", ylim=(0, 1))
    changes = np.flatnonzero(((gate_SE[1:] > 0) != (gate_SE[:-1] > 0)).any(axis=1)) + 1
    for part in np.split(np.arange(len(score_S)), changes):
        right.plot(score_S[part], loss_S[part], "-", color=palette.INK, lw=2)
    for change in changes:
        right.axvline(score_S[change], color=palette.GRAY_99, lw=1, ls=":")
    right.set(ylabel="loss of the token")
    for axis in (left, right):
        axis.set(xlabel=name, xlim=(score_S[0], score_S[-1]))
        figures.plain(axis)
    return figure


@figures.picture
def score_gradients(panels, chosen_TE, names, title):
    """Gradients of a router's scores, token by expert, one panel per cause; what was chosen has a frame.

    A cell that gets exactly nothing is gray and says 0.

    Args:
        panels: heading -> dlogit_TE; each has a color scale of its own, of roots, so that small numbers show too.
        chosen_TE: booleans.
        names: of the tokens.
        title: words.
    """
    figure = figures.new_figure(8, 0.36 * len(names) + 1.5, title, 11)
    axes = np.atleast_1d(figure.subplots(1, len(panels), sharey=True))
    for axis, (heading, dlogit_TE) in zip(axes, panels.items(), strict=True):
        root_TE = np.ma.masked_equal(np.sign(dlogit_TE) * np.sqrt(np.abs(dlogit_TE)), 0)
        end = 2 * math.sqrt(np.abs(dlogit_TE).max() or 1)  # twice the largest: words cannot be read on the dark ends
        axis.set_facecolor(palette.GRAY_DD)
        axis.imshow(root_TE, cmap="PuOr", vmin=-end, vmax=end, aspect="auto")
        _write_cells(axis, dlogit_TE, chosen_TE)
        axis.set(xticks=range(dlogit_TE.shape[1]), yticks=range(len(names)), yticklabels=names, xlabel="expert")
        axis.set_title(heading, fontsize=10)
        figures.frameless(axis)
    return figure


def _write_cells(axis, dlogit_TE, chosen_TE):
    """The number of each cell, two or more digits of the largest, and a frame where it was chosen."""
    digits = max(2, 1 - math.floor(math.log10(np.abs(dlogit_TE).max() or 1)))
    for (t, e), value in np.ndenumerate(dlogit_TE):
        axis.text(e, t, "0" if value == 0 else f"{value:+.{digits}f}", ha="center", va="center", fontsize=9,
                  color=palette.INK)
        if chosen_TE[t, e]:
            axis.add_patch(Rectangle((e - 0.46, t - 0.46), 0.92, 0.92, fill=False, edgecolor=palette.INK, lw=1.8))


@figures.picture
def errors_by_step(steps, errors, title):
    """Relative errors of numerical derivatives against their step, smaller steps to the right.

    Args:
        steps: h.
        errors: name -> error at each step; one of exactly 0 is drawn at the bottom.
        title: words.
    """
    figure = figures.new_figure(7.5, 3.4)
    axis = figure.subplots()
    for (name, error), (shade, line), mark in zip(errors.items(), palette.MODEL_STYLES, "os^", strict=False):
        axis.loglog(steps, np.maximum(error, BOTTOM), mark + line, color=shade, label=name, ms=5)
    axis.set(xlabel="step h (smaller to the right)", ylabel="relative error of the slope", ylim=(BOTTOM / 3, 30))
    axis.set_title(title, fontsize=11)
    axis.invert_xaxis()
    axis.legend(frameon=False, loc="lower left")
    figures.plain(axis)
    return figure


@figures.picture
def flips(steps, errors, flipped, title):
    """Errors of a central difference, one mark per number and step: crosses where a token changed experts.

    Args:
        steps: h.
        errors, flipped: [steps, numbers], the error of each, and whether the two steps chose differently.
        title: words.
    """
    figure = figures.new_figure(7.5, 3.6)
    axis = figure.subplots()
    spread = 10 ** np.linspace(-0.25, 0.25, errors.shape[1])  # so that marks do not lie on each other
    place = np.outer(steps, spread)
    axis.loglog(place[flipped], errors[flipped], "x", color=palette.MODEL_STYLES[0][0], ms=6,
                label="a token changed experts")
    axis.loglog(place[~flipped], errors[~flipped], "o", color=palette.MODEL_STYLES[1][0], mfc="none", ms=5,
                label="the same choices")
    for step, row in zip(steps, flipped, strict=True):
        axis.text(step, errors.max() * 10, f"{row.sum()} of {row.size}\nflipped", ha="center", fontsize=9,
                  color=palette.INK)
    axis.set(xlabel="step h (smaller to the right)", ylabel="error / typical gradient", xticks=steps,
             ylim=(errors.min() / 1e3, errors.max() * 1e3))
    axis.set_title(title, fontsize=11)
    axis.minorticks_off()
    axis.invert_xaxis()
    axis.legend(frameon=False, loc="lower left")
    figures.plain(axis)
    return figure
