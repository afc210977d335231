"""Soft MoE: tokens are not routed.  Each expert works on slots, which are weighted means of all tokens of a sequence.

Nothing is dropped, nothing jumps, and every gradient is dense.  But a slot contains later tokens too, so the model
cannot generate text.
"""

from typing import NamedTuple

import numpy as np

from minimoe.moe import experts
from minimoe.moe.facts import Facts
from minimoe.nn import ops
from minimoe.parameters import Weight

FACTS = Facts(
    summary="Soft MoE, experts work on weighted means of all tokens, and so look into the future",
    soft=True,
    causal=False,
    causal_in_evaluation=False,
)

def slots_per_expert(config):
    """C, such that the experts do as much work as K experts per token would, on the longest sequence."""
    return max(1, config.top_k * config.max_sequence // config.n_experts)


def weights(config, std, out_std):
    """The parameters: one vector per slot, one scale, and the experts."""
    shape = config.d_model, config.n_experts, slots_per_expert(config)
    return {"w_slot_DEC": Weight(shape, std), "scale_1": Weight((1,), None)} | experts.weights(config, std, out_std)


class SoftCache(NamedTuple):
    """The intermediate results of `soft_forward`, under the same names; there are Z = E * C slots."""

    x_BSD: np.ndarray
    unit_BSD: np.ndarray
    unit: "UnitCache"
    slot_ZD: np.ndarray
    slot: "UnitCache"
    cosine_BSZ: np.ndarray
    scale_1: np.ndarray
    dispatch_BZS: np.ndarray
    combine_BSZ: np.ndarray
    experts: experts.ExpertsCache
    out_BZD: np.ndarray


def soft_forward(x_TD, weights, tokens):
    """Mix tokens into slots, apply the experts to the slots, and mix the slots back into tokens.

        logit = unit(x) . (scale * unit(w_slot))
        slot = sum over tokens of dispatch * x,  dispatch = softmax of the logits over tokens
        y = sum over slots of combine * expert(slot),  combine = softmax of the logits over slots

                                                        [Puigcerver 2023, arXiv:2308.00951, sec. 2.1 and 2.3]
    Args:
        x_TD: the normalized tokens.
        weights: name -> array, those of `weights`.
        tokens: Tokens, which describes the tokens; padding is in no slot.
    Returns y_TD, cache.
    """
    (D, E, C), B = weights["w_slot_DEC"].shape, tokens.n_sequences
    x_BSD = x_TD.reshape(B, -1, D)
    unit_BSD, unit = unit_forward(x_BSD)
    slot_ZD, slot = unit_forward(weights["w_slot_DEC"].reshape(D, E * C).T)
    cosine_BSZ = unit_BSD @ slot_ZD.T
    logit_BSZ = weights["scale_1"] * cosine_BSZ
    absent_BS1 = _absent(tokens)
    dispatch_BZS, _ = ops.softmax_forward(np.where(absent_BS1, -np.inf, logit_BSZ).swapaxes(1, 2))
    combine_BSZ, _ = ops.softmax_forward(logit_BSZ)
    rows_ND = (dispatch_BZS @ x_BSD).reshape(B, E, C, D).swapaxes(0, 1).reshape(-1, D)  # sorted by expert
    out_ND, worked = experts.experts_forward(rows_ND, weights, np.full(E, B * C))
    out_BZD = out_ND.reshape(E, B, C, D).swapaxes(0, 1).reshape(B, E * C, D)
    y_BSD = combine_BSZ @ out_BZD
    cache = SoftCache(x_BSD, unit_BSD, unit, slot_ZD, slot, cosine_BSZ, weights["scale_1"], dispatch_BZS, combine_BSZ,
                      worked, out_BZD)
    return y_BSD.reshape(x_TD.shape), cache


def soft_backward(dy_TD, cache):
    """Gradients of x_TD and, as a dict, of the weights."""
    B, _, D = cache.x_BSD.shape
    E = len(cache.experts.count_E)
    C = len(cache.slot_ZD) // E
    dy_BSD = dy_TD.reshape(cache.x_BSD.shape)
    dout_BZD = cache.combine_BSZ.swapaxes(1, 2) @ dy_BSD  # y = combine @ out
    dlogit_BSZ = ops.softmax_backward(dy_BSD @ cache.out_BZD.swapaxes(1, 2), cache.combine_BSZ)
    dout_ND = dout_BZD.reshape(B, E, C, D).swapaxes(0, 1).reshape(-1, D)
    drows_ND, dexperts = experts.experts_backward(dout_ND, cache.experts)
    drows_BZD = drows_ND.reshape(E, B, C, D).swapaxes(0, 1).reshape(B, E * C, D)
    dx_BSD = cache.dispatch_BZS.swapaxes(1, 2) @ drows_BZD  # rows = dispatch @ x
    dlogit_BSZ += ops.softmax_backward(drows_BZD @ cache.x_BSD.swapaxes(1, 2), cache.dispatch_BZS).swapaxes(1, 2)
    dcosine_BSZ = cache.scale_1 * dlogit_BSZ  # logit = scale * cosine
    dx_BSD += unit_backward(dcosine_BSZ @ cache.slot_ZD, cache.unit)  # cosine = unit @ slot
    dunit_ZD = dcosine_BSZ.reshape(-1, E * C).T @ cache.unit_BSD.reshape(-1, D)
    dslot_ZD = unit_backward(dunit_ZD, cache.slot)
    dscale_1 = (dlogit_BSZ * cache.cosine_BSZ).sum().reshape(1)
    dweights = {"w_slot_DEC": dslot_ZD.T.reshape(D, E, C), "scale_1": dscale_1}
    return dx_BSD.reshape(dy_TD.shape), dweights | dexperts


class UnitCache(NamedTuple):
    """The vectors of length 1, and their scale factors."""

    unit: np.ndarray
    scale: np.ndarray


def unit_forward(x_TD):
    """Scale each vector to length 1, however short or long it is; zeros stay zeros.  Any number of leading axes.

    Each vector is first divided by its largest number, since squares could overflow or vanish.  Returns unit_TD, cache.
    """
    x_TD = ops.floats("x_TD", x_TD)
    top_T1, low_T1 = x_TD.real.max(axis=-1, keepdims=True), x_TD.real.min(axis=-1, keepdims=True)
    size_T1 = np.where(top_T1 > -low_T1, top_T1, -low_T1)
    is_zero_T1 = size_T1 == 0
    size_T1 = np.where(is_zero_T1, 1, size_T1).astype(x_TD.real.dtype)
    unit_TD = x_TD / size_T1
    length_T1 = np.sqrt((unit_TD * unit_TD).sum(axis=-1, keepdims=True) + is_zero_T1)
    scale_T1 = 1 / (size_T1 * length_T1)
    unit_TD /= length_T1
    return unit_TD, UnitCache(unit_TD, scale_T1)


def unit_backward(dunit_TD, cache):
    """Gradient of x_TD: the part along the vector is subtracted, since the length does not change."""
    along_T1 = (dunit_TD * cache.unit).sum(axis=-1, keepdims=True)
    return cache.scale * (dunit_TD - cache.unit * along_T1)


def _absent(tokens):
    """Which tokens are padding; none in a sequence of padding alone, since a softmax over no tokens is not a number."""
    real_BS = tokens.mask_T.reshape(tokens.n_sequences, -1)
    return (~real_BS & real_BS.any(axis=1, keepdims=True))[:, :, None]
