"""Pictures of one small batch on its way to the experts: what the router prefers, and the queues."""

from matplotlib.patches import Rectangle

from minimoe.plots import figures, palette


@figures.picture
def probabilities(prob_TE, expert_TK, names, title):
    """One bar per token, cut into the router's probability of each expert; the chosen experts have their number.

    Args:
        prob_TE: each row sums to 1.
        expert_TK: the chosen experts, best first; they stand at the right too.
        names: of the tokens.
        title: words.
    """
    figure = figures.new_figure(7.5, 0.34 * len(names) + 1.2)
    axis = figure.subplots()
    for t, chosen in enumerate(expert_TK.tolist()):
        left = 0.0
        for e, share in enumerate(prob_TE[t].tolist()):
            axis.barh(t, share, left=left, color=palette.color(e), edgecolor=palette.WHITE,
                      alpha=1 if e in chosen else 0.35)
            if e in chosen and share > 0.03:
                axis.text(left + share / 2, t, e, color=palette.ink(e), ha="center", va="center", fontweight="bold",
                          fontsize=11)
            left += share
    figures.name_rows(axis, names, [f"to {' and '.join(map(str, chosen))}" for chosen in expert_TK.tolist()])
    axis.set(xlim=(0, 1), xlabel="probability of each expert (pale: not chosen)", title=title)
    axis.title.set_fontsize(12)
    figures.plain(axis)
    return figure


@figures.picture
def queues(queue_E, capacity, names, title):
    """The queue in front of each expert: a box is a token, the first comer at the left; hatched boxes are dropped.

    Args:
        queue_E: for each expert, the tokens that want it, in the order in which they come.
        capacity: slots of each expert; a slot that no token takes is dotted.
        names: of the tokens.
        title: words.
    """
    longest = max(capacity, *map(len, queue_E))
    figure = figures.new_figure(7.5, 0.52 * len(queue_E) + 1.2)
    axis = figure.subplots()
    for e, queue in enumerate(queue_E):
        for place in range(max(capacity, len(queue))):
            style = dict(facecolor=palette.color(e), edgecolor=palette.INK)
            if place >= capacity:
                style = dict(facecolor=palette.WHITE, edgecolor=palette.DROPPED, hatch="////")
            elif place >= len(queue):
                style = dict(facecolor=palette.WHITE, edgecolor=palette.LIMIT, ls=":")
            axis.add_patch(Rectangle((place + 0.04, e - 0.36), 0.92, 0.72, **style))
            if place < len(queue):
                box = dict(facecolor=palette.WHITE, edgecolor="none", pad=2) if place >= capacity else None
                axis.text(place + 0.5, e, names[queue[place]], ha="center", va="center", fontsize=11, bbox=box,
                          color=palette.INK if place >= capacity else palette.ink(e))
    axis.axvline(capacity, color=palette.INK, lw=2)
    figures.name_rows(axis, range(len(queue_E)))
    axis.set(xlim=(0, longest), xticks=[place + 0.5 for place in range(longest)], xticklabels=range(1, longest + 1),
             xlabel=f"place in the queue (capacity {capacity}; behind the line: dropped)", ylabel="expert", title=title)
    axis.title.set_fontsize(12)
    figures.frameless(axis)
    return figure
