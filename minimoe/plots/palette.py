"""The colours of every picture.  Colour-blind safe; experts are named by number as well as by colour.

No matplotlib: a terminal and a web page paint with these colours too.
"""

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
