"""Dispatch and combine: tokens go to rows sorted by expert, through the experts, and back to where they were."""

import numpy as np

from minimoe.plots import diagram, figures, palette

TOKEN, SLOT, EXPERT, GATE, OUT = 20, 206, 258, 382, 556
"""Left ends of the columns (points from the left)."""

ROW, BETWEEN, TOP = 40, 18, 126
"""Height of a slot, space between experts, and top of the first one (points)."""


@figures.picture
def dispatch_combine(routing, names, title, theme=palette.LIGHT):
    """Tokens on their way to their experts and back: rows sorted by expert, room for C of them, gates as weights.

    Args:
        routing: a Routing whose capacity has been applied.
        names: of its tokens, a character or two each.
        title: words.
        theme: of `palette`.
    """
    row_A, begin_E, bottom = _rows(routing)
    figure = figures.new_figure(diagram.WIDTH / 72, (bottom + 16) / 72, title, layout=None)
    axis = diagram.canvas(figure, theme)
    token_T = np.linspace(TOP, bottom, 2 * routing.n_tokens + 1)[1::2]
    _draw_heads(axis, routing, theme)
    _draw_lines(axis, routing, row_A, token_T, theme)
    _draw_experts(axis, routing, begin_E, theme)
    _draw_assignments(axis, routing, row_A, names, theme)
    _draw_tokens(axis, routing, token_T, names, theme)
    return figure


def _rows(routing):
    """Center of each assignment's row, top of each expert, and bottom of the last row (points from the top).

    The rows of an expert are its slots, and below them the assignments that it had no room for.
    """
    dropped_E = routing.count_E - routing.kept_count_E
    slots_E = np.maximum(routing.kept_count_E, 1) if routing.capacity is None else np.full_like(
        dropped_E, routing.capacity)
    height_E = ROW * (slots_E + dropped_E) + BETWEEN
    begin_E = TOP + np.cumsum(height_E) - height_E
    return begin_E[routing.expert_A] + ROW * (routing.slot_A + 0.5), begin_E, begin_E[-1] + height_E[-1] - BETWEEN


def _draw_heads(axis, routing, theme):
    room = "no limit" if routing.capacity is None else f"capacity C = {routing.capacity}"
    for x, head, below in ((TOKEN + 26, "tokens", ""), ((TOKEN + 52 + SLOT) / 2, "dispatch", "sort by expert"),
                           ((SLOT + GATE) / 2, "experts", room), ((GATE + OUT) / 2 + 20, "combine", "weight by gate"),
                           (OUT + 36, "tokens", "")):
        diagram.words(axis, x, 72, head, theme.ink, fontweight="bold")
        diagram.words(axis, x, 98, below, theme.soft)


def _draw_lines(axis, routing, row_A, token_T, theme):
    """From each token to its rows, and from the rows that were kept back to it, in the colors of the experts."""
    for t, y in enumerate(token_T):
        own = np.flatnonzero(routing.token_A == t)
        own = own[np.argsort(row_A[own], kind="stable")]  # so that its lines do not cross
        for a, shift in zip(own, diagram.spread(len(own), 14), strict=True):
            shade = palette.color(routing.expert_A[a])
            diagram.flow(axis, (TOKEN + 52, y + shift), (SLOT, row_A[a]), shade, theme.ink)
            if routing.kept_A[a]:
                diagram.flow(axis, (GATE + 78, row_A[a]), (OUT, y + shift), shade, theme.ink)


def _draw_experts(axis, routing, begin_E, theme):
    slots_E = np.maximum(routing.kept_count_E, 1) if routing.capacity is None else np.full_like(
        routing.count_E, routing.capacity)
    for e, (top, n_slots) in enumerate(zip(begin_E, slots_E, strict=True)):
        diagram.expert_box(axis, (EXPERT, top, GATE - EXPERT, ROW * n_slots), e, theme, f"expert {e}",
                           routing.kept_count_E[e] > 0)
        for slot in range(n_slots):
            diagram.box(axis, SLOT, top + ROW * slot, EXPERT - SLOT - 4, ROW, theme.page, theme.soft, (0, (3, 3)), 1.2)


def _draw_assignments(axis, routing, row_A, names, theme):
    """The contents of the slots, with the gates behind the expert, and dropped assignments below them."""
    for a, (t, y) in enumerate(zip(routing.token_A, row_A, strict=True)):
        middle = (SLOT + EXPERT - 4) / 2
        shade = theme.ink if routing.kept_A[a] else theme.soft
        diagram.words(axis, middle, y, names[t], shade, diagram.MEDIUM, family="monospace", fontweight="bold", zorder=3)
        if routing.kept_A[a]:
            diagram.box(axis, SLOT, y - ROW / 2, EXPERT - SLOT - 4, ROW, theme.box, theme.ink)
            diagram.words(axis, GATE + 8, y, f"× {routing.gate_A[a]:.2f}", theme.ink, ha="left", fontweight="bold")
        else:
            diagram.box(axis, SLOT, y - ROW / 2 + 2, EXPERT - SLOT - 4, ROW - 2, theme.page, theme.dropped,
                        (0, (2, 2)), 2)
            diagram.cross(axis, EXPERT + 12, y, 8, theme.dropped)
            diagram.words(axis, EXPERT + 30, y, "dropped: full", theme.dropped, ha="left", fontweight="bold")


def _draw_tokens(axis, routing, token_T, names, theme):
    """The tokens before and after; next to each one after, a bar of its gates, open where one was dropped."""
    for t, (y, name) in enumerate(zip(token_T, names, strict=True)):
        for x in (TOKEN, OUT + 20):
            diagram.box(axis, x, y - 24, 52, 48, theme.box, theme.ink)
            diagram.words(axis, x + 26, y, name, theme.ink, diagram.LARGE, family="monospace", fontweight="bold")
        own, top = np.flatnonzero(routing.token_A == t), y - 22
        for a in own[np.lexsort((routing.expert_A[own], ~routing.kept_A[own]))]:
            height, kept = 44 * routing.gate_A[a], routing.kept_A[a]
            axis.bar(OUT + 9, height, 18, top, color=palette.color(routing.expert_A[a]) if kept else theme.page,
                     edgecolor=theme.ink if kept else theme.dropped, ls="-" if kept else ":", lw=1 if kept else 1.6)
            top += height
