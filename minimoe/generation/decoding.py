"""Prefill and decode: read the prompt in one pass, then continue one token at a time with a KV cache.

    logit_V, decoder = start(params, config, prompt_S, room)    prefill
    logit_V = step(decoder, token, position)                    decode, for each token after the prompt

A single token always finds room, so its experts are called directly, without queues.  Its key and value go to the next
free place in arrays with room for the whole sequence.  So the cost of a token depends on the earlier tokens only in
attention, which reads each cached key and value once.  The router is that of `moe_forward`.
"""

import math
from typing import NamedTuple

import numpy as np

from minimoe import model, parameters, require
from minimoe.config import ModelConfig
from minimoe.moe import dense, experts, feed_forward, routers
from minimoe.moe.routing import Tokens
from minimoe.nn import attention, ops


class Layer(NamedTuple):
    """The weights of one block, looked up once per sequence, and the KV cache of the sequence so far.

    w_qkv: weights of queries, keys and values side by side, [D, (H + 2G) P].  w_out: [H P, D].
    k_GMP, v_GMP: M is the room.  kind: from `ModelConfig.layer_kinds`.  shared: of the shared experts; often none.
    """

    attention_gain_D: np.ndarray
    w_qkv: np.ndarray
    w_out: np.ndarray
    k_GMP: np.ndarray
    v_GMP: np.ndarray
    kind: str
    gain_D: np.ndarray
    weights: dict
    shared: dict


class Decoder(NamedTuple):
    """A model that reads one sequence.

    rope: `rope_table` of every position that there is room for.  read_M: which positions have been read.
    """

    config: ModelConfig
    w_VD: np.ndarray
    rope: tuple
    layers: list
    gain_D: np.ndarray
    w_head_DV: np.ndarray
    read_M: np.ndarray


def start(params, config, tokens_S, room):
    """Prefill: read the beginning of a sequence.

    tokens_S: at least one token.  room: the largest number of tokens that the sequence will have, including these.
    Returns logit_V of the token after them, and the Decoder, which owns its KV cache.
    Raises ValueError if there is no room for the tokens, or params or tokens do not fit the config.
    """
    model.check_params(params, config)
    tokens_S = model.check_tokens(require.array("tokens_S", tokens_S, "iu", 1)[None], config, "tokens_S")[0]
    require.whole("room", room, 1)
    if len(tokens_S) > room:
        raise ValueError(f"room = {room}: tokens_S already has {len(tokens_S)} tokens")
    (logit_TV, _), cache = model.model_forward(params, tokens_S[None], config)
    rope = attention.rope_table(np.arange(room), config.head_width, config.rope_theta, logit_TV.real.dtype)
    layers = [_layer(parameters.scope(params, f"layers.{i}."), kind, block.attention, room)
              for i, (kind, block) in enumerate(zip(config.layer_kinds, cache.blocks, strict=True))]
    w_VD = params["embed.w_VD"]
    w_head_DV = w_VD.T if config.tie_embeddings else params["head.w_DV"]
    read_M = np.arange(room) < len(tokens_S)
    return logit_TV[-1], Decoder(config, w_VD, rope, layers, params["final.gain_D"], w_head_DV, read_M)


def _layer(weights, kind, read, room):
    """One block.  read: the cache of its attention over the prompt."""
    mix, own = parameters.scope(weights, "attention."), parameters.scope(weights, f"{kind}.")
    D = len(mix["gain_D"])
    w_qkv = np.concatenate([mix[name].reshape(D, -1) for name in ("w_q_DHP", "w_k_DGP", "w_v_DGP")], axis=1)
    return Layer(mix["gain_D"], w_qkv, mix["w_o_HPD"].reshape(-1, D),
                 _with_room(read.k_BGMP[0], room), _with_room(read.v_BGMP[0], room),
                 kind, own["gain_D"], own, parameters.scope(own, "shared."))


def _with_room(kept_GSP, room):
    G, S, P = kept_GSP.shape
    kept_GMP = np.empty((G, room, P), kept_GSP.dtype)
    kept_GMP[:, :S] = kept_GSP
    return kept_GMP


def step(decoder, token, position):
    """Decode: read one more token, the one at `position` of the sequence, counted from 0.  Returns logit_V of the next.

    Changes the decoder's cache at that position and nothing else.  Later positions are ignored, so a sequence may
    continue again from an earlier position.  Raises ValueError if there is no such position or token, or if an earlier
    position has not been read.
    """
    config, room = decoder.config, len(decoder.read_M)
    if not 0 <= position < room:
        raise ValueError(f"position = {position}: must be in [0, {room}), the room that the sequence was started with")
    if not decoder.read_M[:position].all():
        raise ValueError(f"position = {position}: none has been read at {decoder.read_M.argmin()}")
    if not 0 <= token < config.vocab_size:
        raise ValueError(f"token = {token}: must be in [0, {config.vocab_size})")
    decoder.read_M[position] = True
    tokens = Tokens(np.ones(1, bool), np.zeros(1, int), np.array([position]), np.array([token]))
    rope = [table_MP[position:position + 1] for table_MP in decoder.rope]
    x_1D, _ = ops.embedding_forward(tokens.id_T, decoder.w_VD)
    for layer in decoder.layers:
        x_1D = x_1D + _attend(_norm(x_1D, layer.attention_gain_D, config.norm_eps), layer, config, rope, position)
        x_1D = x_1D + _feed(_norm(x_1D, layer.gain_D, config.norm_eps), layer, config, tokens)
    return (_norm(x_1D, decoder.gain_D, config.norm_eps) @ decoder.w_head_DV)[0]


def _norm(x_1D, gain_D, eps):
    """`ops.rmsnorm_forward` of one token, in a third of the time: the only divisor is folded into the gain."""
    x_D = x_1D[0]
    return x_1D * (gain_D / np.sqrt(x_D @ x_D / len(x_D) + eps))


def _attend(x_1D, layer, config, rope, position):
    """Attention of a single query.  It may read every key, since no later token exists yet."""
    H, G, P = config.n_heads, config.kv_heads, config.head_width
    heads = (x_1D @ layer.w_qkv).reshape(1, H + 2 * G, 1, P)
    turned, _ = attention.rope_forward(heads[:, :H + G], *rope)
    layer.k_GMP[:, position], layer.v_GMP[:, position] = turned[0, H:, 0], heads[0, H + G:, 0]
    k_GMP, v_GMP = layer.k_GMP[:, :position + 1], layer.v_GMP[:, :position + 1]
    q_GQP = turned[:, :H].reshape(G, H // G, P) * (1 / math.sqrt(P))
    weight_GQM, _ = ops.softmax_forward(q_GQP @ k_GMP.swapaxes(1, 2))
    return (weight_GQM @ v_GMP).reshape(1, H * P) @ layer.w_out


def _feed(x_1D, layer, config, tokens):
    """The outputs of the token's experts, weighted by their gates, plus the shared ones; or of a router-less layer."""
    if layer.kind != "moe":
        (y_1D, _), _ = feed_forward.kind_forward(x_1D, layer.weights, config, layer.kind, tokens)
        return y_1D
    routing, _ = routers.POLICIES[config.router].forward(x_1D, layer.weights, config, tokens)
    w_gate_EDF, w_up_EDF, w_down_EFD = (layer.weights[name] for name in experts.NAMES)
    y_1D = dense.dense_forward(x_1D, layer.shared)[0] if layer.shared else 0
    for e, gate in zip(routing.expert_A.tolist(), routing.gate_A, strict=True):
        out_1D, _ = ops.swiglu_forward(x_1D, w_gate_EDF[e], w_up_EDF[e], w_down_EFD[e])
        y_1D = y_1D + gate * out_1D
    return y_1D
