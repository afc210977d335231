"""Pictures of what is cut from a trained model: masks of one matrix, the loss they cost, and what each cut saves."""

import numpy as np

from minimoe.plots import figures, palette

STYLES = ((palette.GRAY_77, "o", ":"), (palette.ORANGE, "s", "--"), (palette.BLUE, "D", "-"),
          (palette.GREEN, "^", "-."), (palette.VERMILION, "v", "-"))
"""Color, marker and line of the first five methods of a picture."""


@figures.picture
def deaths(rise_F, title):
    """The rise of the loss when each neuron of an expert dies, in order: green bars, if it falls.

    Args:
        rise_F: nats per token.
        title: words.
    """
    figure = figures.new_figure(7.8, 3, title, 12)
    axis, order = figure.subplots(), np.argsort(rise_F, kind="stable")
    axis.bar(range(len(rise_F)), 1000 * rise_F[order], edgecolor=palette.WHITE,
             color=[palette.GREEN if rise < 0 else palette.VERMILION for rise in rise_F[order]])
    axis.axhline(0, color=palette.INK, lw=0.8)
    axis.set_xticks(range(len(rise_F)), order, fontsize=8)
    axis.set(xlabel="the neuron that dies, in the order of the damage",
             ylabel="rise of the loss\n(nats per 1,000 tokens)")
    figures.plain(axis)
    return figure


@figures.picture
def masked_weights(w_DF, mask_DF, title, group=4):
    """One matrix under several masks: a square is a weight, the darker the larger; white squares are cut.

    Args:
        w_DF: the matrix.
        mask_DF: name -> mask of it, True = kept.
        title: words.
        group: inputs between two heavy lines.
    """
    D, F = w_DF.shape
    size_DF = np.abs(w_DF)
    least = min(size_DF[kept_DF].min() for kept_DF in mask_DF.values())
    figure = figures.new_figure(8.6, 1.75 * D / F + 1.3, title, 12)
    axes = np.atleast_1d(figure.subplots(1, len(mask_DF), sharey=True))
    for axis, (name, kept_DF) in zip(axes, mask_DF.items(), strict=True):
        shown = axis.imshow(np.where(kept_DF, size_DF, np.nan), cmap="cividis_r", vmin=least, vmax=size_DF.max(),
                            interpolation="nearest")
        axis.set_xticks(np.arange(F + 1) - 0.5, minor=True)
        axis.set_yticks(np.arange(D + 1) - 0.5, minor=True)
        axis.grid(which="minor", color=palette.PALE_GRID, lw=0.4)
        for d in range(group, D, group):
            axis.axhline(d - 0.5, color=palette.GRAY_66, lw=0.8)
        axis.tick_params(which="both", colors=palette.INK, labelsize=8, length=0)
        axis.spines[:].set_color(palette.GRAY_66)
        low, high = kept_DF.sum(axis=0).min(), kept_DF.sum(axis=0).max()
        each = f"{low}" if low == high else f"{low} to {high}"
        axis.set_title(f"{name}\n{each} left per output", color=palette.INK, fontsize=10)
        axis.set_xlabel("output", color=palette.INK)
    axes[0].set_ylabel("input", color=palette.INK)
    figure.colorbar(shown, ax=axes, aspect=40, label="size of the weight that is left")
    return figure


@figures.picture
def loss_by_sparsity(sparsity, ce_NS, levels, title):
    """Loss of a pruned model by the share of zeros, one line per method: the mean over draws, a band of their range.

    Args:
        sparsity: shares of zeros.
        ce_NS: method -> [draws of the calibration text, shares], nats per token.
        levels: words -> loss to compare with, a horizontal line.
        title: words.
    """
    figure = figures.new_figure(7.5, 3.8)
    axis = figure.subplots()
    for (name, ce), (shade, marker, line) in zip(ce_NS.items(), STYLES, strict=False):
        axis.plot(sparsity, ce.mean(axis=0), line, marker=marker, color=shade, lw=2, ms=6, label=name)
        axis.fill_between(sparsity, ce.min(axis=0), ce.max(axis=0), color=shade, alpha=0.25, lw=0)
    for words, level in levels.items():
        axis.axhline(level, color=palette.INK, lw=1)
        axis.annotate(words, (0.5, level), (0, -3), xycoords=("axes fraction", "data"), textcoords="offset points",
                      ha="center", va="top", fontsize=9, color=palette.INK)
    axis.xaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    axis.set(xticks=sparsity, xlabel="zeros (share of the pruned matrices' weights)", ylabel="loss (nats per token)",
             title=title)
    axis.margins(y=0.08)
    axis.legend(frameon=False)
    figures.plain(axis)
    return figure


@figures.picture
def cuts(cut_NC, dense, title):
    """Loss against the parameters and against the FLOPs that are left: one line per thing that is cut, from a star.

    Args:
        cut_NC: what is cut -> (names of the points, share of parameters, share of FLOPs, loss in nats per token), an
            array of each.
        dense: loss of the model before, which has 1 of both.
        title: words.
    """
    figure = figures.new_figure(8.4, 4.4, title, 12)
    axes = figure.subplots(1, 2, sharey=True)
    for axis, words, column in zip(axes, ("parameters that are left", "FLOPs per token that NumPy computes"), (1, 2),
                                   strict=True):
        for (name, cut), (shade, marker, line) in zip(cut_NC.items(), STYLES, strict=False):
            axis.plot([1, *cut[column]], [dense, *cut[3]], line, marker=marker, color=shade, lw=1.8, ms=6, label=name)
            for own, x, y in zip(cut[0], cut[column], cut[3], strict=True):
                axis.annotate(own, (x, y), (5, -3), textcoords="offset points", va="top", fontsize=8.5, color=shade)
        axis.plot(1, dense, "*", color=palette.INK, ms=13)
        axis.set(xlim=(1.04, min(min(cut[column]) for cut in cut_NC.values()) - 0.1), xlabel=f"{words} (share)")
        axis.xaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
        axis.grid(color=palette.PALE_GRID, lw=0.6)
        figures.plain(axis)
    axes[0].set_ylabel("loss (nats per token)")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(cut_NC), frameon=False,
                  fontsize=9)
    return figure
