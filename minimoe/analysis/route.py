"""Routing as text for a terminal: tokens on the colour of their expert, and the ledger of every decision."""

from itertools import groupby

from minimoe.plots import palette


def coloured(text, experts, colour=True):
    """The text with each character on the colour of its expert; without colour, the experts' numbers beneath.

    experts: the expert of each character, -1 for none.  Returns lines to print.
    """
    lines = []
    start = 0
    for line in text.split("\n"):
        numbers = [int(e) for e in experts[start:start + len(line)]]
        if colour:
            lines.append("".join(_paint(c, e) for c, e in zip(line, numbers, strict=True)))
        else:
            lines += [line, "".join(_digit(e) for e in numbers)]
        start += len(line) + 1
    return "\n".join(lines)


def legend(n_experts, colour=True):
    """One line that names the experts in their colours."""
    names = [f" {e} " for e in range(n_experts)]
    return "experts: " + "".join(_paint(name, e) if colour else name for e, name in enumerate(names))


def ledger(rows, text):
    """The ledger as a table: layer, token, its experts with their gates, and whether each kept it and why."""
    lines = ["layer  token        experts: gate, kept or dropped and why"]
    for (layer, token), group in groupby(rows, key=lambda row: (row.layer, row.token)):
        experts = "   ".join(f"{r.expert}: {r.gate:.2f} {'kept' if r.kept else 'DROPPED'} ({r.why})" for r in group)
        lines.append(f"{layer:5}  {token:5} {text[token]!r:<5} {experts}")
    return "\n".join(lines)


def _paint(text, expert):
    if expert < 0:
        return text
    return f"\x1b[48;2;{_rgb(palette.colour(expert))};38;2;{_rgb(palette.ink(expert))}m{text}\x1b[0m"


def _rgb(colour):
    return ";".join(str(int(colour[i:i + 2], 16)) for i in (1, 3, 5))


def _digit(expert):
    return "-" if expert < 0 else "0123456789abcdefghijklmnopqrstuvwxyz"[expert % 36]
