"""Pictures of what experts have learned, each next to a control: a model that has not learned, or random routing."""

import numpy as np
from matplotlib.colors import to_hex

from minimoe.plots import figures, palette

CONTROLS = (("D", palette.VERMILION, "trained"), ("|", palette.BLUE, "untrained, one mark per seed"),
            ("x", palette.GRAY_66, "random routing"))
"""Marker, color and name of a trained model and of its two controls."""


@figures.picture
def information(trained, untrained, random, most, labels, title):
    """What an expert tells about its tokens: one panel per layer, one row per label, a mark for each model, in nats.

    A vertical line in each row is the most that there is to tell.

    Args:
        trained, random: nats of information, [labels, layers].
        untrained: the same of several untrained models, [models, labels, layers].
        most: nats that are possible, per label.
        labels: names of the labels.
        title: words.
    """
    figure = figures.new_figure(8, 0.36 * len(labels) + 1.9, title, 12)
    rows = np.arange(len(labels))
    for layer, axis in enumerate(figure.subplots(1, trained.shape[1], sharey=True, squeeze=False)[0]):
        axis.vlines(most, rows - 0.35, rows + 0.35, color=palette.INK, lw=1.5)
        axis.plot(trained[:, layer], rows, "D", color=palette.VERMILION, ms=7)
        for one in untrained:
            axis.plot(one[:, layer], rows + 0.15, "|", color=palette.BLUE, ms=11)
        axis.plot(random[:, layer], rows - 0.2, "x", color=palette.GRAY_66, ms=7)
        figures.name_rows(axis, labels)
        axis.set(xlim=(-0.06, 1.05 * max(most)), title=f"layer {layer}", xlabel="nats")
        axis.grid(axis="x", color=palette.PALE_GRID, lw=0.6)
        figures.plain(axis)
    handles = [axis.plot([], [], mark, color=shade, ms=8, label=name)[0] for mark, shade, name in CONTROLS]
    handles.append(axis.plot([], [], "-", color=palette.INK, label="the most there is")[0])
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
    return figure


@figures.picture
def characters(panels, highest, title):
    """Which expert takes which character: one row per expert, one column per character, dark where most of them go.

    Args:
        panels: heading -> (characters, share of each one's assignments that each expert has, [characters, E]).
        highest: share of the darkest color.
        title: words.
    """
    figure = figures.new_figure(8, 2.5 * len(panels) + 0.5, title, 12)
    axes = np.atleast_1d(figure.subplots(len(panels), 1))
    for axis, (heading, (names, share)) in zip(axes, panels.items(), strict=True):
        image = axis.imshow(share.T, cmap=figures.scale(palette.WEIGHTS), vmin=0, vmax=highest, aspect="auto")
        axis.set(xticks=range(len(names)), xticklabels=names, yticks=range(share.shape[1]), ylabel="expert",
                 title=heading)
        axis.tick_params(axis="x", labelfontfamily="monospace", length=0)
    figure.colorbar(image, ax=list(axes), label="share of the character's assignments", shrink=0.6)
    return figure


@figures.picture
def domains(panels, names, title):
    """How two kinds of text are spread over the experts: one panel per model, one bar per expert and kind of text.

    Args:
        panels: heading -> share of each domain's assignments that each expert has, [domains, E].
        names: of the domains.
        title: words.
    """
    figure = figures.new_figure(8, 3.1, title, 12)
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axis, (heading, load_DE) in zip(axes, panels.items(), strict=True):
        expert_E, width = np.arange(load_DE.shape[1]), 0.8 / len(names)
        for d, (load_E, (shade, hatch)) in enumerate(zip(load_DE, palette.DOMAIN_STYLES, strict=False)):
            axis.bar(expert_E + (d - (len(names) - 1) / 2) * width, load_E, width, color=shade, hatch=hatch,
                     edgecolor="white", label=names[d])
        axis.axhline(1 / len(expert_E), color=palette.INK, lw=1, ls=":")
        axis.set(xticks=expert_E, xlabel="expert (dotted: an even share)", title=heading)
        figures.plain(axis)
    axes[0].set_ylabel("share of the domain's assignments")
    axes[-1].legend(frameon=False)
    return figure


@figures.picture
def settling(steps, there_NL, churn_NL, chance, title):
    """When routing settles: at each step the share of the final choices that are there already, and next to it churn.

    Args:
        steps: of the records, the first is 0.
        there_NL: share of the last record's choices, at each record and in each layer.
        churn_NL: share of the choices that changed since the record before, without the first.
        chance: what two random choices have in common.
        title: words.
    """
    figure = figures.new_figure(8, 3.4, title, 12)
    left, right = figure.subplots(1, 2)
    for layer, (shade, line) in enumerate(palette.MODEL_STYLES[:there_NL.shape[1]]):
        left.plot(steps, there_NL[:, layer], line, color=shade, lw=2, label=f"layer {layer}")
        right.plot(steps[1:], churn_NL[:, layer], line, color=shade, lw=2)
    left.axhline(chance, color=palette.INK, lw=1)
    left.annotate("random choices", (steps[-1], chance), (0, 4), textcoords="offset points", ha="right",
                  color=palette.INK)
    left.set(ylim=(0, 1.02), ylabel="share of the final choices", title="already there")
    right.set(ylim=(0, None), ylabel="share of the choices", title="churn since the last record")
    for axis in (left, right):
        axis.set_xlabel("optimizer steps")
        figures.plain(axis)
    left.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 0.32))
    return figure


@figures.picture
def damage(harm_LE, error_LE, title):
    """What switching off one expert does to the loss: one cell per expert, dark where the loss rises most.

    Args:
        harm_LE: rise of the loss, nats.
        error_LE: its standard error.
        title: words.
    """
    figure = figures.new_figure(8, 0.75 * len(harm_LE) + 1)
    axis = figure.subplots()
    image = axis.imshow(harm_LE, cmap=figures.scale(palette.WEIGHTS), vmin=0, aspect="auto")
    for layer, e in np.ndindex(harm_LE.shape):
        axis.text(e, layer, f"+{harm_LE[layer, e]:.3f}\n±{error_LE[layer, e]:.3f}", ha="center", va="center",
                  fontsize=9, color=palette.ink_on(to_hex(image.cmap(image.norm(harm_LE[layer, e])))))
    layers = range(len(harm_LE))
    axis.set(xticks=range(harm_LE.shape[1]), yticks=layers, yticklabels=[f"layer {layer}" for layer in layers],
             xlabel="expert that is switched off", title=title)
    figures.frameless(axis)
    figure.colorbar(image, label="rise of the loss (nats)")
    return figure


@figures.picture
def wrong_experts(off_L, wrong_LM, together_L, title):
    """No experts, the wrong ones, and renumbered ones: three bars per layer, how much each raises the loss.

    Args:
        off_L: rise of the loss with all experts of a layer switched off, nats.
        wrong_LM: with its experts exchanged, one entry per way to do so.
        together_L: with the router's columns exchanged in the same way.
        title: words.
    """
    figure = figures.new_figure(8, 3.2)
    axis, layers = figure.subplots(), np.arange(len(off_L))
    axis.bar(layers - 0.25, off_L, 0.25, color=palette.GRAY_99, label="no experts: the layer's are switched off")
    axis.bar(layers, wrong_LM.mean(axis=1), 0.25, color=palette.VERMILION, hatch="//", edgecolor="white",
             label="the wrong experts (one dot per exchange)")
    for layer, wrong_M in enumerate(wrong_LM):
        axis.plot(np.full(len(wrong_M), layer), wrong_M, "o", color=palette.INK, ms=4)
    axis.bar(layers + 0.25, together_L, 0.25, color=palette.BLUE, edgecolor=palette.BLUE, lw=2,
             label="experts and router exchanged together")
    axis.set(xticks=layers, xticklabels=[f"layer {layer}" for layer in layers], ylabel="rise of the loss (nats)",
             title=title)
    axis.legend(frameon=False)
    figures.plain(axis)
    return figure
