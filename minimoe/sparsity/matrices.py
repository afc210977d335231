"""The parameters that can be pruned, each viewed as a stack of matrices [N, inputs, outputs]: N experts, or 1.

Masks and shares belong to matrices, so each expert has its own; the heads of attention are concatenated.
"""

from collections.abc import Iterable

import numpy as np

from minimoe import model, require
from minimoe.moe import dense, experts
from minimoe.nn import attention

FEED_FORWARD = experts.NAMES + dense.NAMES


def names(config, given=None):
    """The parameters to prune: those of attention and of the feed-forward networks, or the given ones.

    Embedding, head, norms and routers stay dense unless they are given.
    Raises ValueError for a name that is not a parameter, or a parameter that is not a matrix.
    """
    weights = model.weights(config)
    if given is None:
        inside = (*attention.weights(config, 1.0, 1.0), *FEED_FORWARD)
        return [name for name in weights if name.split(".")[-1] in inside]
    given = [given] if isinstance(given, str) else list(given) if isinstance(given, Iterable) else [given]
    if not all(isinstance(name, str) for name in given):
        require.fail("names", given, "names of parameters")
    given = list(dict.fromkeys(given))
    for name in given:
        if name == "head.w_DV" and config.tie_embeddings:
            raise ValueError("names: there is no head.w_DV, since the head is the embedding (tie_embeddings = True)")
        if name not in weights:
            raise ValueError(f"names: there is no parameter {name!r}")
        if len(weights[name].shape) < 2:
            raise ValueError(f"names: {name} is a vector; only matrices are pruned")
    if not given:
        raise ValueError("names = []: there is nothing to prune")
    return given


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
