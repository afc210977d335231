"""Routing as text for a terminal: tokens in the color of their expert, and the ledger of every decision."""

from itertools import groupby

from minimoe import terminal
from minimoe.moe import telemetry
from minimoe.plots import palette

ALL_KEPT = f" ({telemetry.NO_LIMIT}: all are kept)"
"""In the head of a ledger, instead of the same words in every row."""


def colored(text, experts, colors=None):
    """The text with the experts' numbers below it, and each character in the color of its expert.

    experts: the expert of each character, -1 for none.  colors: see `terminal.color_system`; None for none.  Lines that
    are too long for the terminal are broken, a tab becomes a space, and characters that the terminal cannot show, or
    would draw over the one before, are escaped.
    """
    shown, start = [], 0
    for line in text.split("\n"):
        pairs = [(_shown(c), int(e)) for c, e in zip(line, experts[start:], strict=False)]
        start += len(line) + 1
        for part in _packed(pairs, terminal.width(), length=lambda pair: terminal.columns(pair[0])) or [[]]:
            shown += _painted(part, colors)
    return "\n".join(shown)


def legend(n_experts, colors=None):
    """The experts' names in their colors, in one line if they fit."""
    names = [(f" {e} ", e) for e in range(n_experts)]
    head = "experts: "
    lines = _packed(names, terminal.width() - len(head), length=lambda pair: len(pair[0]))
    return "\n".join((" " * len(head) if i else head) + _painted(line, colors)[0] for i, line in enumerate(lines))


def ledger(rows, text):
    """The ledger as a table: layer, token, its experts with their gates, and whether and why each kept it."""
    limited = any(row.why != telemetry.NO_LIMIT for row in rows)
    cells = [("layer", "token", "", f"expert: gate{', kept or dropped and why' if limited else ALL_KEPT}")]
    room = terminal.width() - len("layer  token  '\\n'  ")
    for (layer, token), group in groupby(rows, key=lambda row: (row.layer, row.token)):
        choices = [f"{r.expert}: {r.gate:.2f}" + f" {'kept' if r.kept else 'DROPPED'} ({r.why})" * limited
                   for r in group]
        lines = ["   ".join(line) for line in _packed(choices, room, gap=3)]
        cells.append((layer, token, repr(text[token]), "\n".join(lines)))
    return terminal.table(cells, left=(2, 3))


def _shown(character):
    """A character as it stands over a number of its own."""
    shown = terminal.printable(character.expandtabs(1))
    return shown if terminal.columns(shown) else shown.encode("unicode_escape").decode("ascii")


def _packed(words, room, gap=0, length=len):
    """Lists of words, as many in each as fit into a line."""
    lines, used = [], 0
    for word in words:
        if lines and used + gap + length(word) <= room:
            lines[-1].append(word)
            used += gap + length(word)
        else:
            lines.append([word])
            used = length(word)
    return lines


def _painted(pairs, colors):
    """Two lines from pairs of characters and expert: the text, in color if there are colors, and the numbers."""
    numbers = "".join(_digit(e).ljust(terminal.columns(characters)) for characters, e in pairs).rstrip()
    if colors is None:
        return ["".join(characters for characters, _ in pairs), numbers]
    from rich.text import Text
    styles = [f"{palette.ink(e)} on {palette.color(e)}" if e >= 0 else "" for _, e in pairs]
    line = Text.assemble(*((characters, style) for (characters, _), style in zip(pairs, styles, strict=True)))
    return [terminal.rendered(line, colors), numbers]


def _digit(expert):
    return "-" if expert < 0 else "0123456789abcdefghijklmnopqrstuvwxyz"[expert % 36]
