"""The parameters that can be pruned, each viewed as a stack of matrices [N, inputs, outputs]: N experts, or 1.

Masks and shares belong to matrices, so each expert has its own; the heads of attention are concatenated.
"""

import difflib
import re
from collections.abc import Iterable

import numpy as np

from minimoe import model, require
from minimoe.moe import dense, experts
from minimoe.nn import attention

FEED_FORWARD = experts.NAMES + dense.NAMES


def names(config, given=None):
    """The parameters to prune: those of attention and of the feed-forward networks, or the given ones.

    Embedding, head, norms and routers stay dense unless they are given.  The start of names up to a dot, such as
    layers.0.moe, stands for the parameters of attention and feed-forward networks below it; head, for its matrix.
    Raises ValueError for a name that is not a parameter, or a parameter that is not a matrix.
    """
    weights = model.weights(config)
    inside = (*attention.weights(config, 1.0, 1.0), *FEED_FORWARD)
    usual = [name for name in weights if name.split(".")[-1] in inside]
    if given is None:
        return usual
    given = [given] if isinstance(given, str) else list(given) if isinstance(given, Iterable) else [given]
    if not all(isinstance(name, str) for name in given):
        require.fail("names", given, "names of parameters")
    given = list(dict.fromkeys(whole for name in given for whole in _below(name, usual, weights)))
    for name in given:
        if name == "head.w_DV" and config.tie_embeddings:
            raise ValueError("names: there is no head.w_DV, since the head is the embedding (tie_embeddings = True): "
                             "name embed.w_VD")
        if name not in weights:
            raise ValueError(f"names: there is no parameter {name!r}{_known(name, weights)}")
        if len(weights[name].shape) < 2:
            raise ValueError(f"names: {name} is a vector; only matrices are pruned")
    if not given:
        raise ValueError("names = []: there is nothing to prune")
    return given


def _below(name, usual, weights):
    """The parameters that a name stands for: those that begin with it, or itself."""
    below = [whole for whole, array in weights.items() if whole.startswith(f"{name}.") and len(array.shape) > 1]
    return [whole for whole in below if whole in usual] or below or [name]


def _known(name, weights):
    """The nearest names, or else all of matrices, with N for the number of a layer."""
    whole = [name for name, array in weights.items() if len(array.shape) > 1]
    known = {*whole, *(name.rpartition(".")[0] for name in whole)}
    near = difflib.get_close_matches(name, sorted(known), n=2, cutoff=0.6)
    known = dict.fromkeys(re.sub(r"^layers\.\d+", "layers.N", name) for name in whole)
    return f"; did you mean {' or '.join(near)}?" if near else f"; there are {', '.join(known)}"


def shape(name, axes):
    """(N, inputs, outputs) of the parameter: from the letters at the end of its name.  axes: its shape."""
    letters = name.rpartition("_")[2]
    if letters.startswith("E") and len(axes) == 3:
        return tuple(axes)
    inputs = int(np.prod(axes[:2])) if letters == "HPD" else axes[0]
    return 1, inputs, int(np.prod(axes)) // inputs


def stack(name, array):
    """The array as [N, inputs, outputs]; a view, if it is contiguous."""
    return array.reshape(shape(name, array.shape))
