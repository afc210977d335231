"""Text in the colors of its experts."""

from matplotlib.patches import Rectangle

from minimoe.plots import figures, palette


@figures.picture
def coloured_text(pieces, n_experts, title):
    """Characters in the color of their first-choice expert, whose number stands below each.

    pieces: list of (heading, text, expert of each character).
    """
    legend = 7 + 2.2 * n_experts  # the width of the line with the names of the experts
    width = max(legend, *(len(line) + 1 for _, text, _ in pieces for line in text.split("\n")))
    rows = sum(len(text.split("\n")) + 1.2 for _, text, _ in pieces) + 1.6
    figure = figures.new_figure(10, 0.5 + rows * 0.36, title, layout=None)
    axis = figure.add_axes((0.02, 0.01, 0.96, 0.99 - 0.5 / figure.get_figheight()))
    axis.set(xlim=(0, width), ylim=(rows, 0))
    axis.axis("off")
    axis.text(0, 0.6, "expert", fontsize=10, color=palette.INK, va="center")
    for expert in range(n_experts):
        _draw_cell(axis, 7 + 2.2 * expert, 0.6, str(expert), expert, 2)
    y = 1.8
    for heading, text, experts in pieces:
        axis.text(0, y, heading, fontsize=10, color=palette.INK, va="center", style="italic")
        y = _draw_lines(axis, text, experts, y + 0.9) + 0.3
    return figure


def _draw_lines(axis, text, experts, y):
    """One cell per character, a new row at each line break; returns the next free row."""
    x = 0
    for character, expert in zip(text, experts, strict=True):
        if character == "\n":
            _draw_cell(axis, x, y, "↵", expert, number=True)
            x, y = 0, y + 1
        else:
            _draw_cell(axis, x, y, character, expert, number=True)
            x += 1
    return y + 1


def _draw_cell(axis, x, y, character, expert, width=1.0, number=False):
    axis.add_patch(Rectangle((x, y - 0.45), width, 0.9, facecolor=palette.color(expert), edgecolor="white",
                             linewidth=0.5))
    axis.text(x + width / 2, y - 0.12 * number, character, ha="center", va="center", family="monospace", fontsize=10,
              color=palette.ink(expert))
    if number:
        axis.text(x + width / 2, y + 0.28, str(expert), ha="center", va="center", fontsize=6.5,
                  color=palette.ink(expert))
