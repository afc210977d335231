"""One token at a time: how a text goes on once its beginning has been read.

    logit_V, decoder = start(params, config, prompt_S, room)
    logit_V = step(decoder, token, position)                    for each token after the prompt

A token alone always finds room, so its experts are called as they are, without queues; and its key and value go to the
next free place of arrays with room for the whole text.  So what a token costs depends on the text before it in
attention alone, which reads each earlier key and value once.  The router is the one of `moe_forward`.
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
    """The weights of one block, looked up once a text, and the keys and values of the text so far.

    w_qkv: those of queries, keys and values side by side, [D, (H + 2G) P].  w_out: [H P, D].
    k_GMP, v_GMP: M is the room.  kind: of `ModelConfig.layer_kinds`.  shared: of the shared experts; often none.
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
    """A model that reads one text.

    rope: `rope_table` of every position that there is room for.  read_M: whether there has been a token at it.
    """

    config: ModelConfig
    w_VD: np.ndarray
    rope: tuple
    layers: list
    gain_D: np.ndarray
    w_head_DV: np.ndarray
    read_M: np.ndarray


def start(params, config, tokens_S, room):
    """Read the beginning of a text.

    tokens_S: at least one token.  room: the most tokens that the text will have, these included.
    Returns logit_V of the token after them, and the Decoder, which owns its keys and values.
    Raises ValueError if there is no room for the tokens, or params or tokens do not fit the config.
    """
    model.check_params(params, config)
    tokens_S = model.check_tokens(require.array("tokens_S", tokens_S, "iu", 1)[None], config, "tokens_S")[0]
    require.whole("room", room, 1)
    if len(tokens_S) > room:
        raise ValueError(f"room = {room}: tokens_S has {len(tokens_S)} tokens already")
    (logit_TV, _), cache = model.model_forward(params, tokens_S[None], config)
    rope = attention.rope_table(np.arange(room), config.head_width, config.rope_theta, logit_TV.real.dtype)
    layers = [_layer(parameters.scope(params, f"layers.{i}."), kind, block.attention, room)
              for i, (kind, block) in enumerate(zip(config.layer_kinds, cache.blocks, strict=True))]
    w_VD = params["embed.w_VD"]
    w_head_DV = w_VD.T if config.tie_embeddings else params["head.w_DV"]
    read_M = np.arange(room) < len(tokens_S)
    return logit_TV[-1], Decoder(config, w_VD, rope, layers, params["final.gain_D"], w_head_DV, read_M)


def _layer(weights, kind, read, room):
    """One block.  read: the cache of its attention to the beginning of the text."""
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
    """Read one more token, the one at `position` of the text, counted from 0.  Returns logit_V of the next.

    Changes what the decoder keeps of that position, and nothing else.  What stands behind it is not looked at, so a
    text may be taken up again from an earlier position.  Raises ValueError if there is no such place, or no token
    before it, or no such token.
    """
    config, room = decoder.config, len(decoder.read_M)
    if not 0 <= position < room:
        raise ValueError(f"position = {position}: must be in [0, {room}), the room that the text was started with")
    if not decoder.read_M[:position].all():
        raise ValueError(f"position = {position}: no token has been read at {decoder.read_M.argmin()}")
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
    """`ops.rmsnorm_forward` of one token, in a third of its time: with one number to divide by, the gain takes it."""
    x_D = x_1D[0]
    return x_1D * (gain_D / np.sqrt(x_D @ x_D / len(x_D) + eps))


def _attend(x_1D, layer, config, rope, position):
    """Attention of the one query there is: it may look at every key, since the future is not there yet."""
    H, G, P = config.n_heads, config.kv_heads, config.head_width
    heads = (x_1D @ layer.w_qkv).reshape(1, H + 2 * G, 1, P)
    turned, _ = attention.rope_forward(heads[:, :H + G], *rope)
    layer.k_GMP[:, position], layer.v_GMP[:, position] = turned[0, H:, 0], heads[0, H + G:, 0]
    k_GMP, v_GMP = layer.k_GMP[:, :position + 1], layer.v_GMP[:, :position + 1]
    q_GQP = turned[:, :H].reshape(G, H // G, P) * (1 / math.sqrt(P))
    weight_GQM, _ = ops.softmax_forward(q_GQP @ k_GMP.swapaxes(1, 2))
    return (weight_GQM @ v_GMP).reshape(1, H * P) @ layer.w_out


def _feed(x_1D, layer, config, tokens):
    """What the token's experts say, weighted by their gates, and the shared ones; or a layer without a router."""
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
