"""Shared by all pictures: how a figure is set up, how its axes look, and how it is written.

Functions that draw take plain arrays and return a matplotlib Figure; `save` writes it.
"""

import contextlib
import functools

import matplotlib
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import LogFormatter, LogLocator, NullLocator

from minimoe import files
from minimoe.plots import palette

DPI = 160
"""Pixels per inch of a written figure."""


@contextlib.contextmanager
def default_style():
    """A block in which matplotlib uses its own defaults.

    A user's matplotlibrc would change the bytes of a picture, or require TeX, which may fail after minutes of training.
    """
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        yield


def picture(function):
    """Decorates a function that returns a Figure: it is drawn in matplotlib's default style, and its words are text.

    So dollar signs in a name do not turn it into a formula, which could fail.  The figure's label is the first
    paragraph of the function's docstring, which says what the picture shows: see `describe`.
    """
    @functools.wraps(function)
    def drawn(*arguments, **options):
        with default_style():
            figure = function(*arguments, **options)
        _no_formulas(figure)
        figure.set_label(function.__doc__.split("\n\n")[0])
        return figure
    return drawn


def describe(figure):
    """A picture in words, for readers who cannot see it: its title, or those of its panels, and what it shows.

    What it shows is the label that `picture` gave it, or without one the words at its axes.
    """
    titles = [figure.get_suptitle()] if figure.get_suptitle() else [axis.get_title() for axis in figure.axes]
    seen = [figure.get_label()] if figure.get_label() else [
        words for axis in figure.axes for words in (axis.get_xlabel(), axis.get_ylabel())]
    sentences = (" ".join("; ".join(filter(None, words)).split()) for words in (titles, seen))
    return " ".join(words if words[-1] in ".?!" else f"{words}." for words in sentences if words)


def new_figure(width, height, title=None, size=13, layout="constrained"):
    """A Figure with its title above all panels.

    Args:
        width, height: inches.
        title: words, or None for pictures of one panel, whose axis has the title.
        size: size of the title, points.
        layout: matplotlib's; "constrained" arranges panels so that no words overlap.
    """
    figure = Figure(figsize=(width, height), layout=layout)
    if title is not None:
        figure.suptitle(title, color=palette.INK, fontsize=size)
    return figure


def plain(axis):
    """Remove the box, and use ink that is not quite black."""
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(colors=palette.INK)
    axis.title.set_color(palette.INK)


def frameless(axis):
    """Label the rows and columns of a table of cells, without a frame and without ticks."""
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0, colors=palette.INK)
    axis.title.set_color(palette.INK)


def scale(shades):
    """A color map through these colors, from 0 to the largest."""
    return LinearSegmentedColormap.from_list("shades", shades)


def name_rows(axis, names, words=None):
    """Rows 0, 1, ... from the top: a name on the left of each, and words on the right if there are any."""
    axis.set(yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.4, -0.6))
    if words is not None:
        right = axis.secondary_yaxis("right")
        right.set(yticks=range(len(names)), yticklabels=words)
        frameless(right)


def name_powers(ticks, words, subs=(1, 2, 5)):
    """Label a logarithmic axis at round numbers, without minor ticks.

    Args:
        ticks: `axis.xaxis` or `axis.yaxis`.
        words: number -> its words.
        subs: multiples of each power of ten that are labeled.
    """
    ticks.set_major_locator(LogLocator(subs=subs))
    ticks.set_major_formatter(lambda number, _: words(number))
    ticks.set_minor_locator(NullLocator())


def check_path(path):
    """Raise ValueError unless the path is that of a PNG; for commands that work long before they save a figure."""
    files.check_ending(path, "the figure", ".png")


def save(figure, path):
    """Write a PNG under a temporary name and rename it; the same figure gives the same bytes.

    Raises ValueError if the path does not end in .png, or the folder or the disk does not allow it.
    """
    check_path(path)
    _no_formulas(figure)
    with files.written(path, "the figure") as temporary, default_style():
        figure.savefig(temporary, format="png", dpi=DPI, facecolor=figure.get_facecolor(), metadata={"Software": None})


def _no_formulas(figure):
    """Show all words literally, except matplotlib's powers of ten at the ticks of logarithmic axes."""
    axes = [axis for both in figure.findobj(Axes) for axis in (both.xaxis, both.yaxis)]
    powers = {label for axis in axes if isinstance(axis.get_major_formatter(), LogFormatter)
              for label in axis.findobj(Text) if label is not axis.label}
    for words in set(figure.findobj(Text)) - powers:
        words.set_parse_math(False)
