"""Causal attention with rotary position embeddings and grouped queries; its cache is also the KV cache of generation.

    q, k, v = x W_q, x W_k, x W_v       rotate q and k by their positions
    y = softmax(q k^T / sqrt(P), future = -inf) v W_o          [Vaswani 2017, arXiv:1706.03762, eq. 1]

Each group of H/G query heads shares one key head and one value head [GQA, arXiv:2305.13245].
"""

import math
from typing import NamedTuple

import numpy as np

from minimoe.nn import ops
from minimoe.parameters import Weight


def weights(config, std, out_std):
    """The parameters of one attention layer.  std, out_std: initial spread of the input and output weights."""
    D, H, G, P = config.d_model, config.n_heads, config.kv_heads, config.head_width
    return {
        "w_q_DHP": Weight((D, H, P), std),
        "w_k_DGP": Weight((D, G, P), std),
        "w_v_DGP": Weight((D, G, P), std),
        "w_o_HPD": Weight((H, P, D), out_std),
    }


class AttentionCache(NamedTuple):
    """What the backward needs, step by step.

    k_BGMP, v_BGMP: generation continues from them, as the KV cache of a `Decoder` or the `past` of the next call.
    """

    k_BGMP: np.ndarray
    v_BGMP: np.ndarray
    split_q: ops.ProductCache
    split_k: ops.ProductCache
    split_v: ops.ProductCache
    rope: "Rope"
    attend: "AttendCache"
    merge: ops.ProductCache
    has_past: bool


def attention_forward(x_BSD, weights, rope, past=None):
    """Mix each token with the tokens before it.

    Args:
        x_BSD: the normalized tokens.
        weights: name -> array, those of `weights`.
        rope: `rope_table` of the positions.
        past: (k_BGMP, v_BGMP) of an earlier call whose tokens come before these; None at the start of a sequence.
    Returns y_BSD, cache.
    """
    q_BHSP, split_q = split_heads_forward(x_BSD, weights["w_q_DHP"])
    k_BGSP, split_k = split_heads_forward(x_BSD, weights["w_k_DGP"])
    v_BGSP, split_v = split_heads_forward(x_BSD, weights["w_v_DGP"])
    q_BHSP, _ = rope_forward(q_BHSP, *rope)
    k_BGSP, _ = rope_forward(k_BGSP, *rope)
    k_BGMP = k_BGSP if past is None else np.concatenate([past[0], k_BGSP], axis=2)
    v_BGMP = v_BGSP if past is None else np.concatenate([past[1], v_BGSP], axis=2)
    mix_BHSP, attend = attend_forward(q_BHSP, k_BGMP, v_BGMP)
    y_BSD, merge = merge_heads_forward(mix_BHSP, weights["w_o_HPD"])
    return y_BSD, AttentionCache(k_BGMP, v_BGMP, split_q, split_k, split_v, rope, attend, merge, past is not None)


def attention_backward(dy_BSD, cache):
    """Gradients of x_BSD and, as a dict, of the weights.

    Raises ValueError after a forward with a past: the earlier tokens' gradients would be lost.
    """
    if cache.has_past:
        raise ValueError("attention_backward: the forward pass had a past, which is for generation and has no gradient")
    dmix_BHSP, dw_o_HPD = merge_heads_backward(dy_BSD, cache.merge)
    dq_BHSP, dk_BGMP, dv_BGMP = attend_backward(dmix_BHSP, cache.attend)
    dq_BHSP = rope_backward(dq_BHSP, cache.rope)
    dk_BGMP = rope_backward(dk_BGMP, cache.rope)
    dx_BSD, dw_q_DHP = split_heads_backward(dq_BHSP, cache.split_q)
    dx_k_BSD, dw_k_DGP = split_heads_backward(dk_BGMP, cache.split_k)
    dx_v_BSD, dw_v_DGP = split_heads_backward(dv_BGMP, cache.split_v)
    dx_BSD += dx_k_BSD  # q, k and v all read x
    dx_BSD += dx_v_BSD
    return dx_BSD, {"w_q_DHP": dw_q_DHP, "w_k_DGP": dw_k_DGP, "w_v_DGP": dw_v_DGP, "w_o_HPD": dw_o_HPD}


class AttendCache(NamedTuple):
    """Queries, keys, values, the weight of each value for each query, and the weighted means of the values."""

    q_BGQP: np.ndarray
    k_BGMP: np.ndarray
    v_BGMP: np.ndarray
    weight_BGMQ: np.ndarray
    mix_BGQP: np.ndarray


def attend_forward(q_BHSP, k_BGMP, v_BGMP):
    """Each query reads a mean of the values, weighted by how well their keys match: softmax(q k^T / sqrt(P)) v.

    The queries are those of the last S of the M positions.  The H/G heads that share a key head are stacked as
    additional queries of that head, Q = H/G * S, so that nothing is copied.  Keys come before queries in the scores,
    since NumPy adds up columns several times faster than rows.  Returns mix_BHSP, cache.
    """
    q_BHSP, k_BGMP, v_BGMP = (ops.floats(name, x) for name, x in (
        ("q_BHSP", q_BHSP), ("k_BGMP", k_BGMP), ("v_BGMP", v_BGMP)))
    B, H, S, P = q_BHSP.shape
    G, M = k_BGMP.shape[1:3]
    q_BGQP = q_BHSP.reshape(B, G, H // G * S, P) * (1 / math.sqrt(P))
    score_BGMQ = k_BGMP @ q_BGQP.swapaxes(2, 3)
    future_MS = np.tril(np.full((M, S), -np.inf, score_BGMQ.real.dtype), k=S - M - 1)
    score_BGMQ += np.tile(future_MS, H // G)  # exp(-inf) = 0: the future has exactly no weight
    weight_BGMQ, _ = ops.softmax_forward(score_BGMQ, axis=2)
    mix_BGQP = weight_BGMQ.swapaxes(2, 3) @ v_BGMP
    return mix_BGQP.reshape(B, H, S, P), AttendCache(q_BGQP, k_BGMP, v_BGMP, weight_BGMQ, mix_BGQP)


def attend_backward(dmix_BHSP, cache):
    """Gradients of q_BHSP, k_BGMP and v_BGMP; those of a shared head are summed over the queries stacked on it.

    The mean of dweight that the softmax needs is computed from mix, which is smaller: sum_m weight dweight = dmix . mix
                                                        [FlashAttention, arXiv:2205.14135, appendix B.2]
    """
    dmix_BGQP = dmix_BHSP.reshape(cache.mix_BGQP.shape)
    dv_BGMP = cache.weight_BGMQ @ dmix_BGQP  # mix = weight.T @ v
    dscore_BGMQ = cache.v_BGMP @ dmix_BGQP.swapaxes(2, 3)
    dscore_BGMQ -= np.einsum("bgqp,bgqp->bgq", dmix_BGQP, cache.mix_BGQP)[:, :, None]
    dscore_BGMQ *= cache.weight_BGMQ  # weight = softmax(score)
    dk_BGMP = dscore_BGMQ @ cache.q_BGQP  # score = k @ (q / sqrt(P)).T
    dq_BGQP = dscore_BGMQ.swapaxes(2, 3) @ cache.k_BGMP
    dq_BGQP *= 1 / math.sqrt(cache.k_BGMP.shape[3])
    return dq_BGQP.reshape(dmix_BHSP.shape), dk_BGMP, dv_BGMP


def split_heads_forward(x_BSD, w_DHP):
    """Project each token to H heads of width P: q = x W, heads first.  Returns q_BHSP, cache."""
    x_BSD, w_DHP = ops.floats("x_BSD", x_BSD), ops.floats("w_DHP", w_DHP)
    B, S, D = x_BSD.shape
    H, P = w_DHP.shape[1:]
    q_BSHP = (x_BSD.reshape(B * S, D) @ w_DHP.reshape(D, H * P)).reshape(B, S, H, P)
    return q_BSHP.swapaxes(1, 2), ops.ProductCache(x_BSD, w_DHP)


def split_heads_backward(dq_BHSP, cache):
    """Gradients of x_BSD and w_DHP."""
    B, S, D = cache.x.shape
    H, P = cache.w.shape[1:]
    dq_rows = dq_BHSP.swapaxes(1, 2).reshape(B * S, H * P)  # q = heads of (x @ w)
    dx_BSD = (dq_rows @ cache.w.reshape(D, H * P).T).reshape(B, S, D)
    return dx_BSD, (cache.x.reshape(B * S, D).T @ dq_rows).reshape(D, H, P)


def merge_heads_forward(mix_BHSP, w_HPD):
    """Put the heads side by side and project back to the width of the model.  Returns y_BSD, cache."""
    mix_BHSP, w_HPD = ops.floats("mix_BHSP", mix_BHSP), ops.floats("w_HPD", w_HPD)
    B, H, S, P = mix_BHSP.shape
    mix_rows = mix_BHSP.swapaxes(1, 2).reshape(B * S, H * P)
    y_BSD = (mix_rows @ w_HPD.reshape(H * P, -1)).reshape(B, S, -1)
    return y_BSD, ops.ProductCache(mix_rows, w_HPD)


def merge_heads_backward(dy_BSD, cache):
    """Gradients of mix_BHSP and w_HPD."""
    B, S, D = dy_BSD.shape
    H, P = cache.w.shape[:2]
    dy_TD = dy_BSD.reshape(B * S, D)
    dmix_BSHP = (dy_TD @ cache.w.reshape(H * P, D).T).reshape(B, S, H, P)  # y = mix_rows @ w
    return dmix_BSHP.swapaxes(1, 2), (cache.x.T @ dy_TD).reshape(H, P, D)


class Rope(NamedTuple):
    """Cosine and sine of every position's angles: the table of rotations, and the cache of a rotation too."""

    cos_SP: np.ndarray
    sin_SP: np.ndarray


def rope_table(position_S, head_width, theta, dtype):
    """Cosine and sine of the angle position * theta^(-2i/P) of each pair i, repeated for both halves of the head.

                                                        [RoFormer, arXiv:2104.09864, eq. 15; pairs (i, i + P/2)]
    theta: base of the wavelengths.  Returns a Rope.
    """
    frequency = theta ** (-np.arange(0, head_width, 2) / head_width)
    angle = np.outer(position_S, frequency)
    angle_SP = np.concatenate([angle, angle], axis=1)
    return Rope(np.cos(angle_SP).astype(dtype), np.sin(angle_SP).astype(dtype))


def rope_forward(x_BHSP, cos_SP, sin_SP):
    """Rotate each pair (x_i, x_{i+P/2}) by the angle of its position, so that q.k depends on the distance alone.

    Returns the rotated x_BHSP, cache.
    """
    x_BHSP, cos_SP, sin_SP = (ops.floats(name, x) for name, x in (
        ("x_BHSP", x_BHSP), ("cos_SP", cos_SP), ("sin_SP", sin_SP)))
    return x_BHSP * cos_SP + _swapped(x_BHSP, sin_SP, -1), Rope(cos_SP, sin_SP)


def rope_backward(dy_BHSP, cache):
    """Gradient of x_BHSP: the transpose of a rotation is the rotation by the opposite angle."""
    return dy_BHSP * cache.cos_SP + _swapped(dy_BHSP, cache.sin_SP, 1)


def _swapped(x_BHSP, sin_SP, sign):
    """(a, b) -> (sign b sin, -sign a sin) for the two halves of each head."""
    halves = (*x_BHSP.shape[:-1], 2, x_BHSP.shape[-1] // 2)
    swapped = x_BHSP.reshape(halves)[..., ::-1, :]
    signed = sin_SP.reshape(len(sin_SP), *halves[-2:]) * np.array([[sign], [-sign]], sin_SP.dtype)
    return (swapped * signed).reshape(x_BHSP.shape)
