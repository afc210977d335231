"""What all pictures share: how they are written, and how their axes look.

Functions that draw take plain arrays and return a matplotlib Figure; `save` writes it.
"""

from minimoe import files
from minimoe.plots import palette


def check_path(path):
    """Raise ValueError unless the path is that of a PNG; for what takes long before it has a figure to save."""
    files.check_ending(path, "the figure", ".png")


def save(figure, path):
    """Write a PNG under a temporary name and rename it; the same figure gives the same bytes.

    Raises ValueError if the path does not end in .png, or the folder or the disk does not allow it.
    """
    check_path(path)
    with files.written(path, "the figure") as temporary:
        figure.savefig(temporary, format="png", dpi=160, facecolor="white", metadata={"Software": None})


def plain(axis):
    """No box, and ink that is not quite black."""
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(colors=palette.INK)
    axis.title.set_color(palette.INK)
