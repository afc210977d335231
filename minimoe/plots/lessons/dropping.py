"""Pictures of capacity: the room in each expert, which tokens lost an expert, and training against evaluation."""

import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.patches import Patch, Rectangle

from minimoe.plots import figures, palette


@figures.picture
def slots(count_E, capacity, title):
    """One bar per expert: filled up to the capacity, hatched what is dropped above it, dotted the slots left empty.

    Args:
        count_E: assignments that want each expert.
        capacity: slots of each.
        title: words.
    """
    figure = figures.new_figure(7.5, 3.4)
    axis, kept_E = figure.subplots(), np.minimum(count_E, capacity)
    for e, (wanted, kept) in enumerate(zip(count_E, kept_E, strict=True)):
        axis.bar(e, kept, color=palette.colour(e), edgecolor="white")
        axis.bar(e, wanted - kept, bottom=kept, color="white", edgecolor=palette.DROPPED, hatch="////")
        axis.bar(e, capacity - kept, bottom=kept, color="white", edgecolor=palette.LIMIT, ls=":")
        if wanted != capacity:
            words = f"{wanted - capacity}\ndropped" if wanted > capacity else f"{capacity - wanted}\nempty"
            axis.annotate(words, (e, max(wanted, capacity)), (0, 3), textcoords="offset points", ha="center",
                          va="bottom", fontsize=9, color=palette.INK)
        axis.text(e, kept / 2, kept, ha="center", va="center", color=palette.ink(e))
    axis.axhline(capacity, color=palette.INK, lw=1.2)
    axis.annotate(f"capacity {capacity}", (1.005, capacity), xycoords=("axes fraction", "data"), va="center",
                  fontsize=9, color=palette.INK)
    axis.set(xticks=range(len(count_E)), xlabel="expert", ylabel="assignments", title=title)
    axis.margins(y=0.15)
    figures.plain(axis)
    return figure


@figures.picture
def lost_assignments(lost, title):
    """Which tokens lost what: one panel per name, one row per sequence, one column per position; dark: everything.

    lost: name -> array [sequences, places] of 0 (nothing), 1 (some) or 2 (all assignments of the token lost).
    """
    rows = -(-len(lost) // 2)
    figure = figures.new_figure(7.8, 1.9 * rows + 0.8, title, 12)
    axes = np.atleast_2d(figure.subplots(rows, 2, sharex=True, sharey=True))
    for axis, (name, lost_BS) in zip(axes.flat, lost.items(), strict=False):
        axis.imshow(lost_BS, cmap=ListedColormap(palette.LOST), vmin=0, vmax=2, aspect="auto", interpolation="nearest")
        axis.set(title=f"{name}: {(lost_BS == 2).sum()} lost all", yticks=range(0, len(lost_BS), 3))
        axis.title.set(color=palette.INK, fontsize=11)
        axis.tick_params(colors=palette.INK)
    for axis in axes.flat[len(lost):]:
        axis.set_axis_off()
    for axis in axes[-1]:
        axis.set_xlabel("place in the text (characters)")
    for axis in axes[:, 0]:
        axis.set_ylabel("text of the batch")
    figure.legend(handles=[Patch(facecolor=shade, label=f"lost {words}", edgecolor=palette.LIMIT) for shade, words in
                           zip(palette.LOST, ("nothing", "one of two", "both"), strict=True)],
                  loc="outside lower center", ncols=3, frameon=False)
    return figure


@figures.picture
def loss_matrix(ce_ntf, trained, evaluated, title):
    """Loss of models trained with one capacity and evaluated with another: mean over seeds, and their range.

    A frame: the same capacity in both.  A star: the lowest mean of a column, the best training for that evaluation.

    Args:
        ce_ntf: [seeds, trained, evaluated], nats.
        trained, evaluated: labels.
        title: words.
    """
    figure = figures.new_figure(7.8, 0.62 * len(trained) + 1.5)
    axis, mean, low, high = figure.subplots(), ce_ntf.mean(axis=0), ce_ntf.min(axis=0), ce_ntf.max(axis=0)
    shown = axis.imshow(mean, cmap="cividis_r", aspect="auto")
    best = mean.argmin(axis=0)
    for t, of_training in enumerate(trained):
        for f, of_evaluation in enumerate(evaluated):
            red, green, blue, _ = shown.cmap(shown.norm(mean[t, f]), bytes=True)
            star = " *" if best[f] == t else ""
            axis.text(f, t, f"{mean[t, f]:.2f}{star}\n±{(high[t, f] - low[t, f]) / 2:.2f}", ha="center", va="center",
                      fontsize=9, color=palette.ink_on(f"#{red:02x}{green:02x}{blue:02x}"))
            if of_training == of_evaluation:
                axis.add_patch(Rectangle((f - 0.47, t - 0.47), 0.94, 0.94, fill=False, edgecolor=palette.FRAME, lw=2.5))
    axis.set(xticks=range(len(evaluated)), xticklabels=evaluated, xlabel="capacity factor in evaluation",
             yticks=range(len(trained)), yticklabels=trained, ylabel="capacity factor in training", title=title)
    axis.title.set_fontsize(11)
    figures.frameless(axis)
    figure.colorbar(shown, label="validation loss (nats per token)")
    return figure
