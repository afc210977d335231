"""Detects when numbers stop being finite: at which step, and where first."""

import numpy as np

from minimoe import parameters
from minimoe.moe import losses
from minimoe.training import optimizer


class Diverged(ValueError):
    """The loss or a gradient is no longer finite: at which step, and where it began."""


def finite_norm(grads, step):
    """The norm of all gradients together.  step: steps done before.  Raises Diverged if it is not finite."""
    norm = optimizer.global_norm(grads)
    if not np.isfinite(norm):
        name = _first_name(grads)
        where = (f"the first number that is not finite is in the gradient of {name}" if name else
                 "its numbers are finite, but too large to square")
        raise Diverged(f"step {step + 1}: the gradient is {norm}; {where}")
    return norm


def check_parameters(state):
    """Raise Diverged unless all parameters are finite, so that training can resume from them."""
    name = _first_name(state.params)
    if name is not None:
        raise Diverged(f"step {state.step}: the parameter {name} is no longer finite")


def first_not_finite(params, cache):
    """Where the first number that is not finite occurs, in the order of the forward pass.

    params: flat dict.  cache: of `model.objective_forward`.  Returns words for a message.
    """
    name = _first_name(params)
    if name is not None:
        return f"the parameter {name}"
    return _in_model(cache.model, cache.losses.config) or _in_losses(cache.losses)


def _in_model(cache, config):
    for i, block in enumerate(cache.blocks):
        for part in block._fields:
            if not _all_finite(getattr(block, part)):
                return f"layer {i}, {part.replace('feed_forward', config.layer_kinds[i]).replace('_', ' ')}"
    return None if _all_finite(cache.norm) else "the final norm"


def _in_losses(cache):
    if not _all_finite(cache.ce):
        return "the head"
    for i, layer in zip(cache.config.moe_layers, cache.layers, strict=True):
        for name, loss in losses.auxiliary_forward(layer.routing, cache.config)[0].items():
            if not np.isfinite(loss):
                return f"layer {i}, router {name}-loss"
    return "the sum of the losses"


def _first_name(arrays):
    return next((name for name, array in arrays.items() if not np.isfinite(array).all()), None)


def _all_finite(tree):
    return all(np.isfinite(array).all() for array in parameters.arrays_in(tree))
