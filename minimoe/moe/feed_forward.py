"""What stands after attention in a block: a Mixture of Experts, one dense block, or a Soft MoE."""

from minimoe.moe import dense, layer, soft

KINDS = {"moe": layer, "dense": dense, "soft": soft}


def weights(config, kind, std, out_std):
    """The parameters of the feed-forward part of one layer."""
    return KINDS[kind].weights(config, std, out_std)


def kind_forward(x_TD, weights, config, kind, tokens, **routing_options):
    """The feed-forward part of one block.  kind: of `ModelConfig.layer_kinds`.  routing_options: see `moe_forward`.

    Returns (y_TD, Routing or None), cache.
    """
    if kind == "moe":
        out, cache = layer.moe_forward(x_TD, weights, config, tokens, **routing_options)
        return out, (kind, cache)
    y_TD, cache = dense.dense_forward(x_TD, weights) if kind == "dense" else soft.soft_forward(x_TD, weights, tokens)
    return (y_TD, None), (kind, cache)


def kind_backward(dy_TD, grad, cache):
    """Gradients of x_TD and, as a dict, of the weights."""
    kind, cache = cache
    if kind == "moe":
        return layer.moe_backward(dy_TD, grad, cache)
    return dense.dense_backward(dy_TD, cache) if kind == "dense" else soft.soft_backward(dy_TD, cache)
