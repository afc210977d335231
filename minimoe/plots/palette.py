"""The colors of every picture, each defined once.  Safe for color-blind readers; experts have numbers as well.

No matplotlib: the terminal and the explorer use these colors too.
"""

from typing import NamedTuple

ORANGE, SKY_BLUE, GREEN, YELLOW = "#E69F00", "#56B4E9", "#009E73", "#F0E442"
BLUE, VERMILION, PURPLE, BLACK = "#0072B2", "#D55E00", "#CC79A7", "#000000"
"""The palette of Okabe and Ito, by their names."""

WHITE, PALE_VERMILION, PALE_BLUE, NAVY = "#ffffff", "#f3c6a5", "#cfe6f5", "#0b1f3a"

GRAY_22, GRAY_33, GRAY_44, GRAY_66, GRAY_77 = "#222222", "#333333", "#444444", "#666666", "#777777"
GRAY_88, GRAY_99, GRAY_AA, GRAY_BB = "#888888", "#999999", "#aaaaaa", "#bbbbbb"
GRAY_CC, GRAY_DD, GRAY_E4, GRAY_E8, GRAY_EE, GRAY_F4 = "#cccccc", "#dddddd", "#e4e4e4", "#e8e8e8", "#eeeeee", "#f4f4f4"
"""Grays, named by their byte."""

INK = GRAY_22
"""The color of words and axes: not quite black."""

GRID, PALE_GRID, LIMIT = GRAY_DD, GRAY_E4, GRAY_77
"""Lines of a grid, and a line that marks a limit."""

EXPERT_COLORS = (ORANGE, SKY_BLUE, GREEN, YELLOW, BLUE, VERMILION, PURPLE, GRAY_99)
"""Okabe and Ito's palette with gray in place of black, so that text can stand on every color."""

MOE, DENSE, LARGE_DENSE = VERMILION, BLUE, GREEN
"""An MoE and a dense model; of two dense models DENSE is the small one."""

MODEL_STYLES = ((MOE, "-"), (DENSE, "--"), (LARGE_DENSE, ":"))
"""Color and line of the first three models of a picture."""

DOMAIN_STYLES = ((GRAY_33, ""), (GRAY_AA, "///"), (GRAY_77, "..."), (GRAY_CC, "xxx"))
"""Color and hatch of each domain."""

PARTS = {"experts": BLUE, "shared experts": SKY_BLUE, "dense": GREEN, "attention": ORANGE, "attention scores": YELLOW,
         "keys and values": VERMILION, "router": BLACK, "head": PURPLE, "embedding": GRAY_99, "positions": GRAY_BB,
         "norms": GRAY_DD}
"""Part of a model -> its color in every picture of costs, in the order in which they are stacked."""

WEIGHTS, PALE_WEIGHTS = (WHITE, SKY_BLUE, BLUE, NAVY), (PALE_BLUE, SKY_BLUE, BLUE, NAVY)
"""From nothing, which is white, to the most, which is dark; and from next to nothing, where nothing is left blank."""

ROUTER_STYLES = {"causal": (BLUE, "o"), "causal in evaluation": (GREEN, "s"), "sees the future": (GRAY_99, "x")}
"""Kind of router -> its color and marker."""

FORWARD, BACKWARD = GRAY_77, VERMILION
"""Arrows of numbers in the forward pass, and of gradients in the backward pass."""

DROPPED, FRAME = VERMILION, VERMILION
"""Assignments beyond the capacity, and frames around highlighted cells."""

LOST = (GRAY_E8, ORANGE, BLUE)
"""None, some or all of a token's assignments lost, from light to dark."""

ALARMS = (GRAY_F4, PALE_VERMILION, VERMILION)
"""An alarm in none, some or all of the seeds."""

IDLE, SHARED = GRAY_E4, GRAY_44
"""A weight that the token does not use, and one that every token uses."""


class Theme(NamedTuple):
    """What differs between a light page and a dark one; the experts' colors do not.

    page: the background.   ink: words and outlines.   soft: words of less weight.   line: the residual stream.
    box: inside of a box.   idle: parts that the token does not use.   dropped: assignments without room.
    """

    page: str
    ink: str
    soft: str
    line: str
    box: str
    idle: str
    dropped: str


LIGHT = Theme(WHITE, INK, GRAY_66, GRAY_99, GRAY_F4, GRAY_E4, "#b34700")
DARK = Theme("#0d1117", "#e6edf3", "#9da7b3", "#6e7681", "#212830", "#2b323b", "#ff8c42")
"""GitHub's two backgrounds, and readable colors on them."""


def color(expert):
    """The color of an expert; colors repeat from the ninth expert on, and the number tells them apart."""
    return EXPERT_COLORS[expert % len(EXPERT_COLORS)]


def ink(expert):
    """Black or white, whichever is easier to read on the expert's color."""
    return ink_on(color(expert))


def ink_on(shade):
    """Black or white, whichever is easier to read on a color, "#rrggbb"."""
    red, green, blue = (int(shade[i:i + 2], 16) for i in (1, 3, 5))
    return BLACK if 0.299 * red + 0.587 * green + 0.114 * blue > 100 else WHITE
