"""Pictures of capacity: slots and drops, which tokens lost an expert and what they pay, training against evaluation."""

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
        axis.bar(e, kept, color=palette.color(e), edgecolor="white")
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

    lost: name -> array [sequences, positions] of 0 (nothing), 1 or 2 (both assignments of the token lost).
    """
    rows = -(-len(lost) // 2)
    figure = figures.new_figure(7.8, 1.9 * rows + 0.8, title, 12)
    axes = np.atleast_2d(figure.subplots(rows, 2, sharex=True, sharey=True))
    for axis, (name, lost_BS) in zip(axes.flat, lost.items(), strict=False):
        axis.imshow(lost_BS, cmap=ListedColormap(palette.LOST), vmin=0, vmax=2, aspect="auto", interpolation="nearest")
        axis.set(title=f"{name}: {(lost_BS == 2).sum()} tokens lost both", yticks=range(0, len(lost_BS), 3))
        axis.title.set(color=palette.INK, fontsize=11)
        axis.tick_params(colors=palette.INK)
    for axis in axes.flat[len(lost):]:
        axis.set_axis_off()
    for axis in axes[-1]:
        axis.set_xlabel("position (characters)")
    for axis in axes[:, 0]:
        axis.set_ylabel("sequence")
    figure.legend(handles=[Patch(facecolor=shade, label=f"lost {words}", edgecolor=palette.LIMIT) for shade, words in
                           zip(palette.LOST, ("nothing", "one of two", "both"), strict=True)],
                  loc="outside lower center", ncols=3, frameon=False)
    return figure


@figures.picture
def drops_and_work(factors, drop, work, title):
    """What a capacity factor costs: the share of assignments dropped, and next to it the rows computed per useful row.

    Args:
        factors: capacity factors.
        drop, work: name -> share of the assignments, and rows, [factors, routings]; up to three names.
        title: words.
    """
    figure = figures.new_figure(8, 3.4, title, 12)
    panels = {"assignments dropped (%)": (drop, 100), "rows computed per useful row": (work, 1)}
    for axis, (label, (values, unit)) in zip(figure.subplots(1, 2), panels.items(), strict=True):
        for (name, of_name), (shade, line) in zip(values.items(), palette.MODEL_STYLES, strict=False):
            axis.plot(factors, unit * of_name.mean(axis=1), line, color=shade, lw=2.2, label=name)
            axis.fill_between(factors, unit * of_name.min(axis=1), unit * of_name.max(axis=1), color=shade, alpha=0.2)
        axis.axvline(1, color=palette.INK, lw=0.8, ls=":")
        axis.set(xlabel="capacity factor (1: room for an even load)", ylabel=label)
        figures.plain(axis)
    figure.axes[0].legend(frameon=False, title="line: mean, band: range")
    return figure


@figures.picture
def extra_losses(points, title):
    """What tokens pay for lost gates: extra loss against the sum of their dropped gates, one line per drop order.

    Args:
        points: name -> rows of (sum of dropped gates, extra loss in nats, its standard error).
        title: words.
    """
    figure = figures.new_figure(7.5, 3.8)
    axis = figure.subplots()
    for i, (name, rows) in enumerate(points.items()):
        axis.errorbar(*rows.T, marker="osD^"[i % 4], capsize=3, lw=1.8, label=name,
                      color=palette.color((5, 4, 2, 6)[i % 4]))
    axis.axhline(0, color=palette.INK, lw=0.8)
    axis.set(xlabel="sum of the token's dropped gates over all layers", ylabel="extra loss (nats)", title=title)
    axis.legend(frameon=False, title="order (bars: standard error)")
    figures.plain(axis)
    return figure


@figures.picture
def leaks(changed, title, least=0.01):
    """How far a change of the last character moves earlier predictions: one panel per drop order, one bar per position.

    Args:
        changed: name -> largest change of a probability after each character, percentage points.
        title: words.
        least: where the logarithmic axis begins; what is below counts as unchanged.
    """
    figure = figures.new_figure(8, 3.4, title, 12)
    ticks = [least * 10**power for power in range(5)]
    for axis, (name, of_name) in zip(figure.subplots(1, len(changed), sharey=True), changed.items(), strict=True):
        axis.bar(range(len(of_name)), np.maximum(of_name, least / 10), color=palette.color(5), width=1)
        axis.set(yscale="log", ylim=(least, ticks[-1]), yticks=ticks, yticklabels=[f"{tick:g}" for tick in ticks])
        axis.set(xlabel="position (characters)", title=name)
        axis.title.set_fontsize(10)
        figures.plain(axis)
    figure.axes[0].set_ylabel("largest change of a probability\n(percentage points, log scale)")
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
