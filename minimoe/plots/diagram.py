"""Boxes, lines and words of a diagram, in points from the top left corner, for a light page or a dark one.

Words of SMALL points or more are readable on a phone, where a picture of WIDTH points is 340 pixels wide.
"""

import numpy as np
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, PathPatch
from matplotlib.path import Path

from minimoe.plots import palette

WIDTH = 648
"""Width of a diagram in points: 9 inches."""

LARGE, MEDIUM, SMALL = 26, 21, 18
"""Sizes of words, points."""


def canvas(figure, theme):
    """The only axis of a figure, which fills it: x to the right and y down, in points.  The title is at the top."""
    width, height = 72 * figure.get_size_inches()
    figure.set_facecolor(theme.page)
    if title := figure.get_suptitle():
        figure.suptitle(title, x=0.5, y=1 - 12 / height, va="top", color=theme.ink, fontsize=LARGE, fontweight="bold")
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set(xlim=(0, width), ylim=(height, 0))
    axis.axis("off")
    return axis


def words(axis, x, y, text, shade, size=SMALL, **options):
    """Words around (x, y), on one baseline for letters with and without descenders; options of `axis.text`."""
    down = 0 if "va" in options else 0.35 * size
    usual = {"ha": "center", "va": "baseline", "color": shade, "fontsize": size}
    return axis.text(x, y + down, text, **(usual | options))


def box(axis, x, y, width, height, face, edge, line="-", thickness=1.4):
    """A box with round corners; (x, y) is its upper left corner."""
    patch = FancyBboxPatch((x + 4, y + 4), width - 8, height - 8, boxstyle="round,pad=4", facecolor=face,
                           edgecolor=edge, linestyle=line, linewidth=thickness, mutation_aspect=1)
    axis.add_patch(patch)
    return patch


def arrow(axis, points, shade, thickness=3.0):
    """An arrow along the straight lines between points."""
    axis.add_patch(FancyArrowPatch(path=Path(points), arrowstyle="-|>,head_length=0.35,head_width=0.22",
                                   mutation_scale=30, facecolor=shade, edgecolor=shade, linewidth=thickness,
                                   joinstyle="miter", capstyle="butt", shrinkA=0, shrinkB=0))


def flow(axis, start, end, shade, edge, thickness=5.0):
    """A curve that leaves its start and meets its end from the side, with an edge so that it is visible on any page."""
    (x, y), (right, below) = start, end
    middle = (x + right) / 2
    curve = Path([(x, y), (middle, y), (middle, below), (right, below)], [Path.MOVETO, *[Path.CURVE4] * 3])
    _edged(axis, curve, shade, edge, thickness)


def stroke(axis, start, end, shade, edge, thickness=5.0):
    """A straight line with an edge."""
    _edged(axis, Path([start, end]), shade, edge, thickness)


def _edged(axis, path, shade, edge, thickness):
    for width, paint in ((thickness + 2, edge), (thickness, shade)):
        axis.add_patch(PathPatch(path, facecolor="none", edgecolor=paint, linewidth=width, capstyle="butt"))


def cross(axis, x, y, radius, shade):
    """Two strokes that cross something out."""
    for sign in (-1, 1):
        axis.plot([x - radius, x + radius], [y - sign * radius, y + sign * radius], color=shade, lw=3.5,
                  solid_capstyle="round")


def plus(axis, x, y, theme, radius=14):
    """A sum: a circle with a plus in it."""
    axis.plot(x, y, "o", ms=2 * radius, mfc=theme.page, mec=theme.ink, mew=1.8)
    axis.plot(x, y, "+", ms=radius, mec=theme.ink, mew=2.4)


def expert_box(axis, place, expert, theme, text=None, used=True):
    """A box in the color of an expert with its number, or a pale one if no token uses it.

    place: x, y, width, height.
    """
    x, y, width, height = place
    face, ink = (palette.color(expert), palette.ink(expert)) if used else (theme.idle, theme.soft)
    box(axis, x, y, width, height, face, theme.ink if used else theme.soft, "-" if used else (0, (3, 3)),
        1.4 if used else 1.0)
    words(axis, x + width / 2, y + height / 2, str(expert) if text is None else text, ink, MEDIUM,
          fontweight="bold" if used else "normal")


def spread(n, gap):
    """Positions around 0, at distances of `gap`."""
    return gap * (np.arange(n) - (n - 1) / 2)
