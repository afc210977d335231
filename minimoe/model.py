"""The transformer: embedding, L blocks of attention and MoE, norm, head; and the objective that training minimizes.

    x = embed(tokens)
    x = x + attention(rmsnorm(x))        } L times
    x = x + moe(rmsnorm(x))              }
    logits = rmsnorm(x) W_head

The block is that of today's open MoE models (pre-RMSNorm, grouped-query attention with rotary embeddings, SwiGLU
experts).  Instead of the MoE a layer can have one dense feed-forward network or a Soft MoE; neither has a Routing.
"""

import math
from typing import NamedTuple

import numpy as np

from minimoe import parameters, require
from minimoe.config import ModelConfig, fields
from minimoe.moe import feed_forward, losses, routers
from minimoe.moe.routing import Tokens
from minimoe.nn import attention, ops
from minimoe.parameters import Weight


class Losses(NamedTuple):
    """The objective and its parts.  total = ce + sum of coef * auxiliary loss; report ce.

    ce: cross-entropy, nats per token.   auxiliary: name -> mean over layers, of each loss that has a weight, and
    always of "balance" (1 when uniform) and "z" (nats^2); empty without routers.
    """

    ce: float
    auxiliary: dict
    total: float

    @property
    def balance(self):
        """The load-balancing loss; 0 without routers."""
        return self.auxiliary.get("balance", 0.0)

    @property
    def z(self):
        """The router z-loss; 0 without routers."""
        return self.auxiliary.get("z", 0.0)


class BlockCache(NamedTuple):
    """What the backward of one block needs."""

    attention_norm: ops.RMSNormCache
    attention: attention.AttentionCache
    feed_forward_norm: ops.RMSNormCache
    feed_forward: feed_forward.FeedForwardCache


class ModelCache(NamedTuple):
    """What the backward of the model needs; `blocks[i].attention` also holds the KV cache of generation."""

    embed: ops.EmbeddingCache
    blocks: list
    norm: ops.RMSNormCache
    head: ops.ProductCache
    tied: bool
    batch: int


def weights(config):
    """Every parameter of the model: name -> Weight.

    Weights start with a spread of 1/sqrt(D), so that a product is about as large as its input.  Those that write to the
    residual stream start with 1/sqrt(2L) of that, since 2L of them add up there [GPT-2].
    """
    std = 1 / math.sqrt(config.d_model)
    out_std = std / math.sqrt(2 * config.n_layers)
    result = {"embed.w_VD": Weight((config.vocab_size, config.d_model), std)}
    for i, kind in enumerate(config.layer_kinds):
        gain = {"gain_D": Weight((config.d_model,), None)}
        result |= parameters.unscope(gain | attention.weights(config, std, out_std), f"layers.{i}.attention.")
        own = feed_forward.weights(config, kind, std, out_std)
        result |= parameters.unscope(gain | own, f"layers.{i}.{kind}.")
    result["final.gain_D"] = Weight((config.d_model,), None)
    if not config.tie_embeddings:
        result["head.w_DV"] = Weight((config.d_model, config.vocab_size), std)
    return result


def init_params(config, seed=0, dtype=np.float32):
    """Random parameters: a flat dict of arrays.  The same seed gives the same numbers.  Raises ValueError, by name."""
    return parameters.init(weights(require.record("config", config, ModelConfig)), seed, dtype)


def block_forward(x_TD, weights, config, kind, tokens, rope, past=None, **routing_options):
    """One block: attention, then a feed-forward network, each applied to a normalized copy and added to the stream.

    weights: name -> array, "attention.*" and those of the kind, "moe.*" or "dense.*" or "soft.*".
    tokens: Tokens.  rope, past, routing_options: see `attention_forward`, `moe_forward`.
    Returns (x_TD, Routing or None), cache.
    """
    attention_weights = parameters.scope(weights, "attention.")
    network_weights = parameters.scope(weights, f"{kind}.")
    normed_TD, attention_norm = ops.rmsnorm_forward(x_TD, attention_weights["gain_D"], config.norm_eps)
    normed_BSD = normed_TD.reshape(tokens.n_sequences, -1, x_TD.shape[1])
    mixed_BSD, attended = attention.attention_forward(normed_BSD, attention_weights, rope, past)
    x_TD = x_TD + mixed_BSD.reshape(x_TD.shape)
    normed_TD, norm = ops.rmsnorm_forward(x_TD, network_weights["gain_D"], config.norm_eps)
    (y_TD, routing), network = feed_forward.kind_forward(normed_TD, network_weights, config, kind, tokens,
                                                         **routing_options)
    return (x_TD + y_TD, routing), BlockCache(attention_norm, attended, norm, network)


def block_backward(dx_TD, grad, cache, batch):
    """Gradients of x_TD and, as a dict, of the weights.  A residual connection also passes its gradient on unchanged.

    grad: RoutingGrad of the auxiliary losses; None in a block without a router.  batch: number of sequences.
    """
    dnormed_TD, dexperts = feed_forward.kind_backward(dx_TD, grad, cache.feed_forward)
    dstream_TD, dexperts["gain_D"] = ops.rmsnorm_backward(dnormed_TD, cache.feed_forward_norm)
    dx_TD = dx_TD + dstream_TD  # x = x + moe(norm(x))
    dmixed_BSD = dx_TD.reshape(batch, -1, dx_TD.shape[1])
    dnormed_BSD, dattention = attention.attention_backward(dmixed_BSD, cache.attention)
    dstream_TD, dattention["gain_D"] = ops.rmsnorm_backward(dnormed_BSD.reshape(dx_TD.shape), cache.attention_norm)
    dx_TD = dx_TD + dstream_TD  # x = x + attention(norm(x))
    kind = cache.feed_forward.kind
    return dx_TD, parameters.unscope(dattention, "attention.") | parameters.unscope(dexperts, f"{kind}.")


def model_forward(params, tokens_BS, config, mask_BS=None, pasts=None, replays=None, **routing_options):
    """Logits of the next token after each token.

    mask_BS: False for padding, which must come after the text.  pasts: one per layer, see `attention_forward`.
    replays: one per layer that has a router; for these and the other routing_options see `moe_forward`.
    Returns (logit_TV, list of one Routing per layer that has a router), cache.
    """
    n_past = 0 if pasts is None else pasts[0][0].shape[2]
    tokens = Tokens.of_batch(tokens_BS, mask_BS, n_past)
    x_TD, embed = ops.embedding_forward(tokens.id_T, params["embed.w_VD"])
    position_S = n_past + np.arange(tokens_BS.shape[1])
    rope = attention.rope_table(position_S, config.head_width, config.rope_theta, x_TD.real.dtype)
    routings, blocks = [], []
    replay_by_layer = dict(zip(config.moe_layers, replays or [], strict=False))
    for i, (kind, past) in enumerate(zip(config.layer_kinds, pasts or [None] * config.n_layers, strict=True)):
        (x_TD, routing), block = block_forward(x_TD, parameters.scope(params, f"layers.{i}."), config, kind, tokens,
                                               rope, past, replay=replay_by_layer.get(i), **routing_options)
        routings += [] if routing is None else [routing]
        blocks.append(block)
    normed_TD, norm = ops.rmsnorm_forward(x_TD, params["final.gain_D"], config.norm_eps)
    w_head_DV = params["embed.w_VD"].T if config.tie_embeddings else params["head.w_DV"]
    logit_TV, head = ops.linear_forward(normed_TD, w_head_DV)
    return (logit_TV, routings), ModelCache(embed, blocks, norm, head, config.tie_embeddings, tokens.n_sequences)


def model_backward(dlogit_TV, grads_of_routings, cache):
    """Gradients of all parameters, as a dict.  grads_of_routings: one RoutingGrad per layer that has a router."""
    dnormed_TD, dw_head_DV = ops.linear_backward(dlogit_TV, cache.head)
    dx_TD, dgain_D = ops.rmsnorm_backward(dnormed_TD, cache.norm)
    grads, pulls = {"final.gain_D": dgain_D}, list(grads_of_routings)
    for i in reversed(range(len(cache.blocks))):
        pull = pulls.pop() if cache.blocks[i].feed_forward.kind == "moe" else None
        dx_TD, dblock = block_backward(dx_TD, pull, cache.blocks[i], cache.batch)
        grads |= parameters.unscope(dblock, f"layers.{i}.")
    grads["embed.w_VD"] = ops.embedding_backward(dx_TD, cache.embed)
    if cache.tied:
        grads["embed.w_VD"] += dw_head_DV.T  # the embedding is used twice
    else:
        grads["head.w_DV"] = dw_head_DV
    return grads


class LossesCache(NamedTuple):
    """The configuration, and the caches of the cross-entropy and of each router layer's auxiliary losses."""

    config: ModelConfig
    ce: ops.CrossEntropyCache
    layers: list


class ObjectiveCache(NamedTuple):
    """The caches of the model and of its losses."""

    model: ModelCache
    losses: LossesCache


def losses_forward(logit_TV, routings, targets_BS, config, mask_BS=None, step=None):
    """What training minimizes: total = ce + sum over losses of coef * mean over layers of loss.

    Args:
        logit_TV: the model's output.
        routings: one Routing per layer that has a router.
        targets_BS: the token that follows each token.
        config: ModelConfig, for the weights of the losses.
        mask_BS: False for padding; None is no padding.
        step: `losses.Step`, if this is one of several groups: ce, z and entropy are divided by its number of tokens,
            and for `global_balance` it has the loads of all layers.
    Returns Losses, cache.
    """
    mask_T = np.ones(targets_BS.size, bool) if mask_BS is None else mask_BS.ravel()
    n_real = max(mask_T.sum(), 1) if step is None else step.n_real
    weight_T = (mask_T / n_real).astype(logit_TV.real.dtype)
    ce, ce_cache = ops.cross_entropy_forward(logit_TV, targets_BS.ravel(), weight_T)
    layers = [losses.auxiliary_forward(r, config, step, i) for i, r in enumerate(routings)]
    names = layers[0][0] if layers else ()
    auxiliary = {name: sum(values[name] for values, _ in layers) / len(layers) for name in names}
    total = ce + sum(config.loss_coefs[name] * loss for name, loss in auxiliary.items())
    return Losses(ce, auxiliary, total), LossesCache(config, ce_cache, [cache for _, cache in layers])


def losses_backward(dtotal, cache):
    """Gradients of logit_TV, and of each Routing."""
    coefs = cache.config.loss_coefs
    pulls = [losses.auxiliary_backward({name: dtotal / len(cache.layers) * coefs[name] for name in layer.losses}, layer)
             for layer in cache.layers]
    return ops.cross_entropy_backward(dtotal, cache.ce), pulls


def objective_forward(params, tokens_BS, targets_BS, config, mask_BS=None, **options):
    """The losses of one batch.

    targets_BS: the token that follows each token.  options: training, rng and replays; for others see `model_forward`.
    Returns (Losses, list of one Routing per layer that has a router), cache.
    """
    (logit_TV, routings), model_cache = model_forward(params, tokens_BS, config, mask_BS, **options)
    result, losses_cache = losses_forward(logit_TV, routings, targets_BS, config, mask_BS)
    return (result, routings), ObjectiveCache(model_cache, losses_cache)


def objective_backward(dtotal, cache):
    """Gradients of all parameters, as a dict."""
    return model_backward(*losses_backward(dtotal, cache.losses), cache.model)


def after_step(params, count_LE, config):
    """The parameters that change after an optimizer step without a gradient, such as a router's bias; often none.

    count_LE: the step's assignments to each expert, before capacity, of each layer that has a router.
    Returns a dict with new arrays for these keys of params.
    """
    policy = routers.POLICIES.get(config.router)
    changed = {}
    if hasattr(policy, "after_step"):
        for i, count_E in zip(config.moe_layers, count_LE, strict=True):
            weights = parameters.scope(params, f"layers.{i}.moe.")
            changed |= parameters.unscope(policy.after_step(weights, count_E, config), f"layers.{i}.moe.")
    return changed


def forward(params, tokens_BS, config, mask_BS=None):
    """Evaluate the model: logits of the next token, and what each layer's router decided.

    params: name -> array, from `init_params` or a checkpoint.  tokens_BS: whole numbers in [0, V).
    mask_BS: False for padding after the text.  Raises ValueError if they do not fit the config.
    Returns logits_BSV and a list of one Routing per layer that has a router.
    """
    tokens_BS, mask_BS = check_inputs(params, config, tokens_BS, mask_BS)
    (logit_TV, routings), _ = model_forward(params, tokens_BS, config, mask_BS)
    return logit_TV.reshape(*tokens_BS.shape, -1), routings


def check_params(params, config):
    """Raise ValueError unless `params` are arrays of numbers with the names and shapes of the config."""
    require.mapping("params", params)
    require.record("config", config, ModelConfig)
    expected = weights(config)
    fields.require_names("params", params, expected)
    for name, weight in expected.items():
        array = params[name]
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "fc":
            kind = getattr(array, "dtype", type(array).__name__)
            raise ValueError(f"params[{name!r}] is {kind}: must be an array of floating point numbers")
        if array.shape != weight.shape:
            raise ValueError(f"params[{name!r}] has shape {array.shape}, the config needs {weight.shape}")


def check_tokens(tokens_BS, config, name="tokens_BS"):
    """The tokens as an array.  Raises ValueError unless they are whole numbers in [0, V), [batch, sequence]."""
    tokens_BS = np.asarray(tokens_BS)
    if tokens_BS.ndim != 2 or tokens_BS.size == 0 or tokens_BS.dtype.kind not in "iu":
        raise ValueError(f"{name} has shape {tokens_BS.shape} and dtype {tokens_BS.dtype}: must be whole numbers, "
                         "[batch, sequence], at least one of each")
    if tokens_BS.min() < 0 or tokens_BS.max() >= config.vocab_size:
        raise ValueError(f"{name} has values from {tokens_BS.min()} to {tokens_BS.max()}: must be in "
                         f"[0, {config.vocab_size})")
    if tokens_BS.shape[1] > config.max_sequence:
        raise ValueError(f"{name} has {tokens_BS.shape[1]} tokens per sequence: max_sequence is {config.max_sequence}")
    return tokens_BS


def check_inputs(params, config, tokens_BS, mask_BS):
    """Tokens and mask as arrays.  Raises ValueError if params, tokens or mask do not fit the config or each other."""
    check_params(params, config)
    tokens_BS = check_tokens(tokens_BS, config)
    if mask_BS is None:
        return tokens_BS, None
    mask_BS = np.asarray(mask_BS)
    if mask_BS.shape != tokens_BS.shape or mask_BS.dtype != bool:
        raise ValueError(f"mask_BS has shape {mask_BS.shape} and dtype {mask_BS.dtype}: must be bool, like tokens_BS "
                         f"{tokens_BS.shape}")
    if not mask_BS[:, 0].all() or (mask_BS[:, 1:] > mask_BS[:, :-1]).any():
        raise ValueError("mask_BS has padding before text: each row must be True for its text, then False")
    return tokens_BS, mask_BS
