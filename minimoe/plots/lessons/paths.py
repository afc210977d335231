"""Paths of tokens through the layers, drawn as streams: a picture of which expert follows which."""

import numpy as np
from matplotlib.patches import Rectangle

from minimoe.plots import figures, palette

BLOCK = 0.12
"""Width of an expert's block, where layers are 1 apart."""

OFTEN = 2
"""A stream this many times as wide as independent choices would make it says that one layer depends on the other."""

STEPS = np.linspace(0, 1, 25)
RISE = STEPS ** 2 * (3 - 2 * STEPS)  # flat at both ends


@figures.picture
def alluvial(paths, n_experts, title):
    """Streams of tokens from layer to layer, one panel per model.

    An expert is a block as high as its share of the tokens.  A stream has the color of the expert that it leaves if it
    is at least OFTEN times as wide as with layers that choose independently, and is gray otherwise.

    Args:
        paths: heading of a panel -> the expert of each token in each layer, whole numbers [L, T].
        n_experts: of each layer.
        title: words.
    """
    figure = figures.new_figure(8, 4.4, title, 11)
    axes = np.atleast_1d(figure.subplots(1, len(paths), sharey=True))
    for axis, (heading, expert_LT) in zip(axes, paths.items(), strict=True):
        for layer, (before_T, after_T) in enumerate(zip(expert_LT, expert_LT[1:], strict=False)):
            _draw_streams(axis, layer, before_T, after_T, n_experts)
        for layer, expert_T in enumerate(expert_LT):
            _draw_blocks(axis, layer, expert_T, n_experts)
        layers = range(len(expert_LT))
        axis.set(xticks=layers, xticklabels=[f"layer {layer}" for layer in layers], ylim=(1, 0), yticks=(0, 0.5, 1),
                 xlim=(-BLOCK, len(expert_LT) - 1 + BLOCK))
        figures.frameless(axis)
        axis.set_title(heading, fontsize=10, color=palette.BLACK)
    axes[0].set_ylabel("share of the tokens")
    figure.get_layout_engine().set(wspace=0.1)  # room between the names of layers
    return figure


def streams(before_T, after_T, n_experts):
    """Shares of the tokens that go from one expert to another, and where each stream begins and ends, [E, E] each.

    At the left the streams of an expert lie in order of where they go, at the right in order of where they come from.
    """
    share_EE = np.bincount(before_T * n_experts + after_T, minlength=n_experts ** 2) / len(before_T)
    share_EE = share_EE.reshape(n_experts, n_experts)
    left_EE = share_EE.cumsum().reshape(share_EE.shape) - share_EE
    right_EE = share_EE.T.cumsum().reshape(share_EE.shape).T - share_EE
    return share_EE, left_EE, right_EE


def _draw_streams(axis, layer, before_T, after_T, n_experts):
    share_EE, left_EE, right_EE = streams(before_T, after_T, n_experts)
    x = layer + BLOCK / 2 + (1 - BLOCK) * STEPS
    chance_EE = share_EE.sum(axis=1, keepdims=True) * share_EE.sum(axis=0)
    for a, b in zip(*share_EE.nonzero(), strict=True):
        shade = palette.color(a) if share_EE[a, b] >= OFTEN * chance_EE[a, b] else palette.GRAY_CC
        top = left_EE[a, b] + (right_EE[a, b] - left_EE[a, b]) * RISE
        axis.fill_between(x, top, top + share_EE[a, b], color=shade, alpha=0.6, lw=0)


def _draw_blocks(axis, layer, expert_T, n_experts):
    top = 0.0
    for expert, share in enumerate(np.bincount(expert_T, minlength=n_experts) / len(expert_T)):
        axis.add_patch(Rectangle((layer - BLOCK / 2, top), BLOCK, share, facecolor=palette.color(expert),
                                 edgecolor="white"))
        if share > 0.035:
            axis.text(layer, top + share / 2, str(expert), ha="center", va="center", fontsize=9,
                      color=palette.ink(expert))
        top += share
