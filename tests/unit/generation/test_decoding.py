"""Decoding: each step's logits are those of the full forward pass, and it writes only to its own position."""

from dataclasses import replace

import numpy as np
import pytest

from minimoe import gradcheck, model, parameters
from minimoe.config import ModelConfig
from minimoe.generation import decoding, sampling
from tests import small

VARIANTS = {name: config for name, config in small.BY_ROUTER.items() if sampling.causal(config)} | {
    "raw gates": replace(small.MODEL, renormalize=False),
    "experts in groups": replace(small.BY_ROUTER["sigmoid_bias"], gate_scale=2.5, n_groups=2, top_groups=1),
    "no router": small.DENSE,
    "layers of both kinds": replace(small.MODEL, n_layers=4, first_dense_layers=1, d_dense=7, moe_every=2,
                                    n_shared_experts=1),
    "grouped queries, tied": replace(small.MODEL, n_heads=4, n_kv_heads=2, tie_embeddings=True),
    "other constants": replace(small.MODEL, n_kv_heads=None, rope_theta=7.0, norm_eps=0.3),
    "training drops": replace(small.MODEL, capacity_factor=0.5, drop_order="priority"),
}
TEXT_S = np.random.default_rng(0).integers(0, 32, 8)


def params_of(config, dtype=np.float64):
    """Random, read-only parameters, including gains and biases."""
    params = {name: array.astype(dtype) for name, array in gradcheck.random_params(config).items()}
    for array in params.values():
        array.flags.writeable = False
    return params


PARAMS = params_of(small.MODEL)


def decoded(params, config, text_S, n_first, room=None):
    """logit_TV from the n_first-th token on, the rest read step by step; and the Decoder."""
    logit_V, decoder = decoding.start(params, config, text_S[:n_first], room or len(text_S))
    logits = [logit_V] + [decoding.step(decoder, text_S[i], i) for i in range(n_first, len(text_S))]
    return np.array(logits), decoder


def keys_and_values(decoder):
    return [array for layer in decoder.layers for array in (layer.k_GMP, layer.v_GMP)]


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
def test_each_step_is_that_of_the_full_forward_pass(config):
    params = params_of(config)
    (expected, _), cache = model.model_forward(params, TEXT_S[None], config)
    of_attention = [array_BGMP[0] for block in cache.blocks
                    for array_BGMP in (block.attention.k_BGMP, block.attention.v_BGMP)]
    for n_first in (1, 4):
        logits, decoder = decoded(params, config, TEXT_S, n_first)
        np.testing.assert_allclose(logits, expected[n_first - 1:], rtol=1e-12, atol=1e-12)
        for own, full in zip(keys_and_values(decoder), of_attention, strict=True):
            np.testing.assert_allclose(own, full, rtol=1e-12, atol=1e-12)
    assert np.ptp(expected) > 1


def test_two_tokens_by_hand():
    """One layer, head and expert; embeddings (3, 4) and (4, 3), both of root mean square 5 / sqrt 2.

    Keys of 0 give both tokens the weight 1/2.  Values are the normalized tokens, sqrt 2 (3, 4) / 5 and
    sqrt 2 (4, 3) / 5, so the mean is sqrt 2 (0.7, 0.7); it is written to the stream 10 / sqrt 2 times: (4 + 7, 3 + 7).
    The expert writes 0.  The head reads the normalized stream: (11, 10) / sqrt((121 + 100) / 2).
    """
    config = ModelConfig(vocab_size=2, d_model=2, n_layers=1, n_heads=1, d_hidden=1, n_experts=1, top_k=1,
                         max_sequence=2, norm_eps=1e-300)
    params = {name: np.zeros(w.shape) for name, w in model.weights(config).items()}
    params |= {name: np.ones_like(array) for name, array in params.items() if name.endswith("gain_D")}
    params["embed.w_VD"] = np.array([[3.0, 4.0], [4.0, 3.0]])
    params["layers.0.attention.w_v_DGP"] = np.eye(2).reshape(2, 1, 2)
    params["layers.0.attention.w_o_HPD"] = 10 / np.sqrt(2) * np.eye(2).reshape(1, 2, 2)
    params["head.w_DV"] = np.eye(2)
    logits, _ = decoded(params, config, np.array([0, 1]), 1)
    np.testing.assert_allclose(logits[1], np.array([11, 10]) / np.sqrt(110.5), rtol=1e-15)


def test_a_step_writes_to_its_own_position_alone_and_looks_at_none_behind_it():
    expected, _ = decoded(PARAMS, small.MODEL, TEXT_S, 2)
    logit_V, decoder = decoding.start(PARAMS, small.MODEL, TEXT_S[:2], 8)
    own = [decoder.read_M, *keys_and_values(decoder)]
    for array in parameters.arrays_in(decoder):
        array.flags.writeable = any(array is mine for mine in own)
    for array in keys_and_values(decoder):
        array[:, 2:] = np.nan
    for i in range(2, 8):
        before = [array.copy() for array in keys_and_values(decoder)]
        np.testing.assert_array_equal(decoding.step(decoder, TEXT_S[i], i), expected[i - 1])
        for now_GMP, old_GMP in zip(keys_and_values(decoder), before, strict=True):
            changed_M = ~((now_GMP == old_GMP) | np.isnan(now_GMP)).all(axis=(0, 2))
            assert np.flatnonzero(changed_M).tolist() == [i]
    assert all(now is mine for now, mine in zip(keys_and_values(decoder), own[1:], strict=True))


def test_there_is_the_room_that_was_asked_for_and_more_of_it_changes_nothing():
    tight, decoder = decoded(PARAMS, small.MODEL, TEXT_S, 2)
    assert {array.shape for array in keys_and_values(decoder)} == {(1, 8, 4)}  # one head, eight places, 8 / 2 numbers
    assert {table_MP.shape for table_MP in decoder.rope} == {(8, 4)}
    np.testing.assert_array_equal(decoded(PARAMS, small.MODEL, TEXT_S, 2, room=50)[0], tight)


@pytest.mark.parametrize("position", [0, 4])
def test_a_text_can_go_on_otherwise_from_an_earlier_position(position):
    _, decoder = decoded(PARAMS, small.MODEL, TEXT_S, 2)
    other_S = np.concatenate([TEXT_S[:position], (TEXT_S[position:7] + 1) % 32])
    again = [decoding.step(decoder, other_S[i], i) for i in range(position, 7)]
    expected = model.forward(PARAMS, other_S[None], small.MODEL)[0][0, position:]
    np.testing.assert_allclose(again, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("dtype", "rtol"), [(np.float32, 1e-3), (np.complex128, 1e-12)])
def test_the_type_of_the_parameters_is_the_type_of_everything(dtype, rtol):
    for name in ("layers of both kinds", "experts in groups", "grouped queries, tied", "noisy_topk"):
        config = VARIANTS[name]
        logits, decoder = decoded(params_of(config, dtype), config, TEXT_S, 2)
        assert {logits.dtype} | {array.dtype for array in keys_and_values(decoder)} == {np.dtype(dtype)}
        np.testing.assert_allclose(logits, decoded(params_of(config), config, TEXT_S, 2)[0], rtol=rtol, atol=rtol)


@pytest.mark.parametrize("token, position, message", [
    (1, -1, r"position = -1: must be in \[0, 5\)"), (1, 5, r"position = 5: must be in \[0, 5\)"),
    (1, 3, "position = 3: none has been read at 2"), (1, 4, "position = 4: none has been read at 2"),
    (-1, 2, r"token = -1: must be in \[0, 32\)"), (32, 2, r"token = 32: must be in \[0, 32\)")])
def test_a_place_or_a_token_that_cannot_be_is_refused(token, position, message):
    _, decoder = decoding.start(PARAMS, small.MODEL, TEXT_S[:2], 5)
    with pytest.raises(ValueError, match=f"^{message}"):
        decoding.step(decoder, token, position)
    decoding.step(decoder, 1, 2)  # nothing was written down of what was refused
    with pytest.raises(ValueError, match="room = 1: tokens_S already has 2 tokens"):
        decoding.start(PARAMS, small.MODEL, TEXT_S[:2], 1)
