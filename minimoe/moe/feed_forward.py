"""The feed-forward network (FFN) after attention in a block: a Mixture of Experts, one dense network, or a Soft MoE."""

from collections.abc import Callable
from typing import NamedTuple

from minimoe.moe import dense, layer, soft


class Kind(NamedTuple):
    """A kind of feed-forward network.  All kinds are called in the same way:

    weights(config, std, out_std)  -> name -> Weight
    forward(x_TD, weights, config, tokens, **routing_options)  -> (y_TD, Routing or None), cache
    backward(dy_TD, grad, cache)  -> dx_TD, dweights.   grad: RoutingGrad; None where there is no Routing.
    """

    weights: Callable
    forward: Callable
    backward: Callable


def _without_routing(y_TD, cache):
    return (y_TD, None), cache


KINDS = {
    "moe": Kind(
        layer.weights,
        lambda x_TD, weights, config, tokens, **options: layer.moe_forward(x_TD, weights, config, tokens, **options),
        lambda dy_TD, grad, cache: layer.moe_backward(dy_TD, grad, cache)),
    "dense": Kind(
        dense.weights,
        lambda x_TD, weights, config, tokens, **options: _without_routing(*dense.dense_forward(x_TD, weights)),
        lambda dy_TD, grad, cache: dense.dense_backward(dy_TD, cache)),
    "soft": Kind(
        soft.weights,
        lambda x_TD, weights, config, tokens, **options: _without_routing(*soft.soft_forward(x_TD, weights, tokens)),
        lambda dy_TD, grad, cache: soft.soft_backward(dy_TD, cache)),
}
"""Name in `ModelConfig.layer_kinds` -> Kind."""


class FeedForwardCache(NamedTuple):
    """The kind of the layer, a name of KINDS, and the cache of its forward."""

    kind: str
    cache: tuple


def weights(config, kind, std, out_std):
    """The parameters of the feed-forward network of one layer."""
    return KINDS[kind].weights(config, std, out_std)


def kind_forward(x_TD, weights, config, kind, tokens, **routing_options):
    """The feed-forward network of one block.

    Args:
        x_TD: the normalized tokens.
        weights: name -> array, those of `weights` for this kind.
        config: ModelConfig.
        kind: a name of KINDS.
        tokens: Tokens, which describes the tokens.
        routing_options: training, rng and replay of `moe_forward`.
    Returns (y_TD, Routing or None), cache.
    """
    out, cache = KINDS[kind].forward(x_TD, weights, config, tokens, **routing_options)
    return out, FeedForwardCache(kind, cache)


def kind_backward(dy_TD, grad, cache):
    """Gradients of x_TD and, as a dict, of the weights."""
    return KINDS[cache.kind].backward(dy_TD, grad, cache.cache)
