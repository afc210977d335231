"""The transformer block whose feed-forward network is an MoE, with the numbers of one token on it."""

import numpy as np

from minimoe import parameters
from minimoe.moe import experts
from minimoe.plots import diagram, figures, palette

STREAM, NORM, LEFT, RIGHT = 50, 98, 244, 626
"""Left ends of the residual stream, the norms and the experts; right end of the experts (points from the left)."""

TOKEN, ATTENTION, JOIN_1, LAYER, ROUTER, BARS, EXPERTS, GATES, JOIN_2, OUT, WEIGHTS = (
    84, 140, 186, 226, 266, 380, 424, 488, 524, 568, 606)
"""Distances from the top (points)."""


@figures.picture
def transformer_block(routing, token, text, weights, title, theme=palette.LIGHT):
    """One token on its way through a transformer block: attention, then a router that sends it to K of E experts.

    Args:
        routing: the block's Routing.
        token: index of the token.
        text: names of all tokens, such as the characters of a text.
        weights: name -> array, the parameters of the block: "attention.*" and "moe.*".
        title: words.
        theme: of `palette`.
    """
    figure = figures.new_figure(diagram.WIDTH / 72, 672 / 72, title, layout=None)
    axis = diagram.canvas(figure, theme)
    _draw_stream(axis, text, token, theme)
    _draw_attention(axis, theme)
    _draw_router(axis, routing, token, theme)
    _draw_experts(axis, routing, token, theme)
    _draw_weights(axis, weights, set(routing.expert_A[routing.token_A == token].tolist()), theme)
    return figure


def used_parameters(weights, chosen):
    """Number of parameters of a block that a token uses, and of all parameters.

    weights: name -> array.   chosen: the experts of the token.
    """
    stacked = {name: array for name, array in weights.items() if name.split(".")[-1] in experts.NAMES}
    total, in_experts = parameters.count(weights), parameters.count(stacked)
    n_experts = len(next(iter(stacked.values())))
    return total - in_experts * (n_experts - len(chosen)) // n_experts, total


def middles(n_experts):
    """The center of each expert from the left, and the distance between centers (points)."""
    step = (RIGHT - LEFT) / n_experts
    return LEFT + step * (np.arange(n_experts) + 0.5), step


def _draw_stream(axis, text, token, theme):
    """The token, and the stream to which the outputs of attention and the experts are added."""
    diagram.box(axis, STREAM - 26, TOKEN - 22, 52, 44, theme.box, theme.ink)
    diagram.words(axis, STREAM, TOKEN, text[token], theme.ink, diagram.LARGE, fontweight="bold", family="monospace")
    diagram.words(axis, STREAM + 40, TOKEN, f"a token, after “{''.join(text[:token])}”", theme.ink, ha="left")
    axis.plot([STREAM] * 2, [TOKEN + 22, OUT], color=theme.line, lw=8, solid_capstyle="butt", zorder=0)
    diagram.arrow(axis, [(STREAM, OUT - 10), (STREAM, OUT + 14)], theme.line, 6)
    for y in (JOIN_1, JOIN_2):
        diagram.plus(axis, STREAM, y, theme)
    diagram.words(axis, STREAM - 24, (JOIN_1 + JOIN_2) / 2, "residual stream", theme.soft, rotation=90, va="center")


def _named_box(axis, x, y, width, name, theme):
    diagram.box(axis, x, y - 20, width, 40, theme.box, theme.ink)
    diagram.words(axis, x + width / 2, y, name, theme.ink)


def _draw_norm(axis, y, theme):
    diagram.arrow(axis, [(STREAM, y), (NORM - 2, y)], theme.line)
    _named_box(axis, NORM, y, 112, "RMSNorm", theme)
    diagram.arrow(axis, [(NORM + 112, y), (LEFT - 2, y)], theme.line)


def _draw_attention(axis, theme):
    _draw_norm(axis, ATTENTION, theme)
    _named_box(axis, LEFT, ATTENTION, RIGHT - LEFT, "attention", theme)
    middle = (LEFT + RIGHT) / 2
    diagram.arrow(axis, [(middle, ATTENTION + 20), (middle, JOIN_1), (STREAM + 16, JOIN_1)], theme.line)


def _draw_router(axis, routing, token, theme):
    """The probability of each expert as a bar, and arrows from the highest ones to their experts."""
    _draw_norm(axis, ROUTER, theme)
    diagram.words(axis, LEFT, LAYER, "MoE layer, in place of the FFN", theme.ink, ha="left", fontweight="bold")
    diagram.box(axis, LEFT, ROUTER - 20, RIGHT - LEFT, BARS - ROUTER + 28, theme.box, theme.ink)
    diagram.words(axis, (LEFT + RIGHT) / 2, ROUTER, "router", theme.ink)
    diagram.words(axis, LEFT - 12, BARS - 12, "probability", theme.soft, ha="right")
    diagram.words(axis, LEFT - 12, (BARS + EXPERTS) / 2 + 4, f"top-{routing.n_ranks}", theme.soft, ha="right")
    chosen, prob_E = set(routing.expert_A[routing.token_A == token].tolist()), routing.prob_TE[token]
    middle_E, step = middles(routing.n_experts)
    for e, (x, p) in enumerate(zip(middle_E, prob_E, strict=True)):
        height = max(62 * p / prob_E.max(), 1.5)
        axis.bar(x, -height, 0.62 * step, BARS, color=palette.color(e) if e in chosen else theme.idle,
                 edgecolor=theme.ink if e in chosen else theme.soft, lw=1.2)
        diagram.words(axis, x, BARS - height - 5, f"{p:.2f}".lstrip("0"), theme.ink if e in chosen else theme.soft,
                      va="bottom", fontweight="bold" if e in chosen else "normal")
        if e in chosen:
            diagram.stroke(axis, (x, BARS + 9), (x, EXPERTS), palette.color(e), theme.ink)


def _draw_experts(axis, routing, token, theme):
    """The experts, and the gates by which their outputs are weighted and summed."""
    diagram.words(axis, LEFT - 12, EXPERTS + 22, "experts", theme.soft, ha="right")
    diagram.words(axis, LEFT - 12, GATES + 6, "gates", theme.soft, ha="right")
    middle_E, step = middles(routing.n_experts)
    gates = {int(routing.expert_A[a]): routing.gate_A[a] for a in np.flatnonzero(routing.token_A == token)}
    diagram.arrow(axis, [(max(middle_E[e] for e in gates) + 3.5, JOIN_2), (STREAM + 16, JOIN_2)], theme.line)
    for e, x in enumerate(middle_E):
        if e in gates:
            diagram.stroke(axis, (x, EXPERTS + 44), (x, JOIN_2 - 1.5), palette.color(e), theme.ink)
            diagram.words(axis, x + 9, GATES + 6, f"× {gates[e]:.2f}", theme.ink, ha="left", fontweight="bold")
        diagram.expert_box(axis, (x - 0.46 * step, EXPERTS, 0.92 * step, 44), e, theme, used=e in gates)


def _draw_weights(axis, weights, chosen, theme):
    """A bar as long as the block has parameters: attention, the router, and each expert; used ones in color."""
    used, total = used_parameters(weights, chosen)
    diagram.words(axis, NORM, WEIGHTS, f"this token uses {used:,} of {total:,} parameters ({used / total:.0%})",
                  theme.ink, ha="left")
    attention = parameters.count(parameters.scope(weights, "attention."))
    n_experts = len(next(array for name, array in weights.items() if name.split(".")[-1] in experts.NAMES))
    expert = (total - used) // max(n_experts - len(chosen), 1)
    sizes = [attention, total - attention - n_experts * expert] + [expert] * n_experts
    ends = NORM + (RIGHT - NORM) * np.cumsum([0, *sizes]) / total
    for part, (left, right) in enumerate(zip(ends[:-1], ends[1:], strict=True), start=-2):
        idle = part >= 0 and part not in chosen
        shade = theme.idle if idle else palette.color(part) if part >= 0 else theme.line
        axis.bar((left + right) / 2, 34, right - left, WEIGHTS + 18, color=shade,
                 edgecolor=theme.soft if idle else theme.ink, lw=1)
        if part != -1:  # the router is too thin for words
            name = "attention" if part == -2 else str(part)
            diagram.words(axis, (left + right) / 2, WEIGHTS + 35, name,
                          theme.soft if idle else palette.ink_on(shade), fontweight="normal" if idle else "bold")
