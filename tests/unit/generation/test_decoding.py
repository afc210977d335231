"""Decoding: each step's logits are those of the full forward pass, and it writes to its own place and nowhere else."""

from dataclasses import replace

import numpy as np
import pytest

from minimoe import model, parameters
from minimoe.config import ModelConfig
from minimoe.generation import decoding
from minimoe.moe import routers
from minimoe.moe.routers import ROUTERS

CONFIG = ModelConfig(vocab_size=11, d_model=12, n_layers=2, n_heads=3, d_hidden=6, n_experts=4, top_k=2,
                     max_sequence=10)
VARIANTS = {f"router {name}": replace(CONFIG, router=name, top_k=ROUTERS[name].FACTS.top_k or 2)
            for name, policy in routers.POLICIES.items() if policy.FACTS.causal_in_evaluation}
VARIANTS |= {
    "one expert a token": replace(CONFIG, top_k=1),
    "all experts": replace(CONFIG, top_k=4),
    "raw gates": replace(CONFIG, renormalize=False),
    "scaled gates": replace(CONFIG, router="sigmoid_bias", gate_scale=2.5, n_groups=2, top_groups=1),
    "no router": replace(CONFIG, n_experts=1, top_k=1),
    "shared experts": replace(CONFIG, n_shared_experts=2),
    "dense layers": replace(CONFIG, first_dense_layers=2, d_dense=7),
    "first layer dense": replace(CONFIG, first_dense_layers=1),
    "every second layer, with a shared expert": replace(CONFIG, n_layers=4, moe_every=2, n_shared_experts=1),
    "grouped queries": replace(CONFIG, n_heads=6, n_kv_heads=2),
    "one key head": replace(CONFIG, n_heads=6, n_kv_heads=1),
    "tied": replace(CONFIG, tie_embeddings=True),
    "other constants": replace(CONFIG, rope_theta=7.0, norm_eps=0.3),
    "training drops": replace(CONFIG, capacity_factor=0.5, drop_order="priority"),
}
each_variant = pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
TEXT_S = np.random.default_rng(0).integers(0, 11, 10)


def params_of(config, dtype=np.float64):
    """Random parameters, gains and biases too."""
    rng = np.random.default_rng(0)
    return {name: (array + 0.5 * rng.normal(size=array.shape)).astype(dtype)
            for name, array in model.init_params(config, 0, np.float64).items()}


def decoded(params, config, text_S, n_first, room=None):
    """logit_TV from the n_first-th token on, the rest read step by step; and the Decoder."""
    logit_V, decoder = decoding.start(params, config, text_S[:n_first], room or len(text_S))
    logits = [logit_V] + [decoding.step(decoder, text_S[i], i) for i in range(n_first, len(text_S))]
    return np.array(logits), decoder


def places(decoder):
    """Where in memory each array of keys or values begins, and how large it is."""
    return [(array.ctypes.data, array.shape) for layer in decoder.layers for array in (layer.k_GMP, layer.v_GMP)]


@each_variant
@pytest.mark.parametrize("n_first", [1, 4, 10])
def test_each_step_has_the_logits_of_the_full_forward_pass(config, n_first):
    params = params_of(config)
    logits, _ = decoded(params, config, TEXT_S, n_first)
    expected = model.forward(params, TEXT_S[None], config)[0][0, n_first - 1:]
    np.testing.assert_allclose(logits, expected, rtol=1e-12, atol=1e-12)
    assert np.ptp(expected) > 1


@each_variant
def test_keys_and_values_are_those_of_the_full_forward_pass(config):
    params = params_of(config)
    _, decoder = decoded(params, config, TEXT_S, 3)
    _, cache = model.model_forward(params, TEXT_S[None], config)
    for layer, block in zip(decoder.layers, cache.blocks, strict=True):
        np.testing.assert_allclose(layer.k_GMP, block.attention.k_BGMP[0], rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(layer.v_GMP, block.attention.v_BGMP[0], rtol=1e-12, atol=1e-12)


def test_two_tokens_by_hand():
    """D = 2, one head, one expert, one layer; the text is tokens 0, 1, with embeddings (3, 4) and (4, 3), both of
    root mean square 5 / sqrt 2, and the position turns nothing but keys that are 0.

    Keys of 0 give both tokens the weight 1/2.  Values are the normalised tokens, sqrt 2 (3, 4) / 5 and
    sqrt 2 (4, 3) / 5, so the mean is sqrt 2 (0.7, 0.7); it is written to the stream 10 / sqrt 2 times:
    (4 + 7, 3 + 7) = (11, 10).  The expert writes 0.  The head reads the normalised stream:
    (11, 10) / sqrt((121 + 100) / 2).
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


@each_variant
def test_nothing_that_was_passed_in_is_changed(config):
    params, text_S = params_of(config), TEXT_S.copy()
    for array in (text_S, *params.values()):
        array.flags.writeable = False
    decoded(params, config, text_S, 2)


@each_variant
def test_keys_and_values_are_the_decoders_own_and_the_rest_of_it_is_never_written_to(config):
    params = params_of(config)
    _, decoder = decoding.start(params, config, TEXT_S[:2], 10)
    own = [decoder.read_M, *(array for layer in decoder.layers for array in (layer.k_GMP, layer.v_GMP))]
    assert not any(np.shares_memory(mine, array) for mine in own for array in params.values())
    for array in parameters.arrays_in(decoder):
        array.flags.writeable = any(array is mine for mine in own)
    for i in range(2, 10):
        decoding.step(decoder, TEXT_S[i], i)


def test_a_step_writes_to_its_own_position_alone_and_into_the_same_arrays():
    _, decoder = decoding.start(params_of(CONFIG), CONFIG, TEXT_S[:2], 10)
    at_first = places(decoder)
    for layer in decoder.layers:
        layer.k_GMP[:, 2:], layer.v_GMP[:, 2:] = 99, 99
    for i in range(2, 10):
        before = [(layer.k_GMP.copy(), layer.v_GMP.copy()) for layer in decoder.layers]
        decoding.step(decoder, TEXT_S[i], i)
        for layer, olds in zip(decoder.layers, before, strict=True):
            for now_GMP, old_GMP in zip((layer.k_GMP, layer.v_GMP), olds, strict=True):
                changed_M = (now_GMP != old_GMP).any(axis=(0, 2))
                assert np.flatnonzero(changed_M).tolist() == [i]
    assert places(decoder) == at_first


def test_what_lies_in_the_room_that_is_not_used_yet_does_not_matter():
    params = params_of(CONFIG)
    _, decoder = decoding.start(params, CONFIG, TEXT_S[:3], 10)
    for layer in decoder.layers:
        layer.k_GMP[:, 3:], layer.v_GMP[:, 3:] = np.nan, np.nan
    logit_V = decoding.step(decoder, TEXT_S[3], 3)
    np.testing.assert_allclose(logit_V, model.forward(params, TEXT_S[None, :4], CONFIG)[0][0, -1], rtol=1e-12)


def test_the_arrays_have_the_room_that_was_asked_for():
    _, decoder = decoding.start(params_of(CONFIG), CONFIG, TEXT_S[:2], 5)
    assert {shape for _, shape in places(decoder)} == {(3, 5, 4)}  # three heads, five places, 12 / 3 numbers
    assert {table_MP.shape for table_MP in decoder.rope} == {(5, 4)}


def test_more_room_gives_the_same_logits():
    params = params_of(CONFIG)
    tight, _ = decoded(params, CONFIG, TEXT_S, 2)
    wide, _ = decoded(params, CONFIG, TEXT_S, 2, room=50)
    np.testing.assert_array_equal(tight, wide)


def test_a_text_can_go_on_otherwise_from_an_earlier_position():
    params = params_of(CONFIG)
    _, decoder = decoded(params, CONFIG, TEXT_S, 2)
    other_S = np.concatenate([TEXT_S[:4], (TEXT_S[4:7] + 1) % 11])
    again = [decoding.step(decoder, other_S[i], i) for i in range(4, 7)]
    np.testing.assert_allclose(again, model.forward(params, other_S[None], CONFIG)[0][0, 4:], rtol=1e-12, atol=1e-12)


def test_two_texts_do_not_disturb_each_other():
    params, other_S = params_of(CONFIG), TEXT_S[::-1]
    _, one = decoding.start(params, CONFIG, TEXT_S[:2], 10)
    _, two = decoding.start(params, CONFIG, other_S[:2], 10)
    by_turns = [(decoding.step(one, TEXT_S[i], i), decoding.step(two, other_S[i], i)) for i in range(2, 10)]
    for logits, text_S in zip(zip(*by_turns, strict=True), (TEXT_S, other_S), strict=True):
        np.testing.assert_array_equal(logits, decoded(params, CONFIG, text_S, 2)[0][1:])


@each_variant
@pytest.mark.parametrize("dtype", [np.float32, np.complex128])
def test_the_type_of_the_parameters_is_the_type_of_everything(config, dtype):
    logits, decoder = decoded(params_of(config, dtype), config, TEXT_S, 2)
    assert {logits.dtype} | {layer.v_GMP.dtype for layer in decoder.layers} == {np.dtype(dtype)}


def test_complex_parameters_that_are_real_give_the_same():
    real, _ = decoded(params_of(CONFIG), CONFIG, TEXT_S, 2)
    still, _ = decoded(params_of(CONFIG, complex), CONFIG, TEXT_S, 2)
    np.testing.assert_allclose(still, real, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("position", [-1, 5, 6])
def test_a_position_without_room_is_refused(position):
    _, decoder = decoding.start(params_of(CONFIG), CONFIG, TEXT_S[:2], 5)
    with pytest.raises(ValueError, match=rf"position = {position}: must be in \[0, 5\)"):
        decoding.step(decoder, 1, position)


def test_a_position_before_which_there_is_no_token_is_refused():
    _, decoder = decoding.start(params_of(CONFIG), CONFIG, TEXT_S[:2], 5)
    for position in (3, 4):
        with pytest.raises(ValueError, match=f"position = {position}: no token has been read at 2"):
            decoding.step(decoder, 1, position)
    decoding.step(decoder, 1, 2)
    decoding.step(decoder, 1, 3)


@pytest.mark.parametrize("token", [-1, CONFIG.vocab_size])
def test_a_token_that_is_not_in_the_vocabulary_is_refused(token):
    _, decoder = decoding.start(params_of(CONFIG), CONFIG, TEXT_S[:2], 5)
    with pytest.raises(ValueError, match=rf"token = {token}: must be in \[0, {CONFIG.vocab_size}\)"):
        decoding.step(decoder, token, 2)


def test_a_text_that_is_longer_than_its_room_is_refused():
    with pytest.raises(ValueError, match="room = 1: tokens_S has 2 tokens already"):
        decoding.start(params_of(CONFIG), CONFIG, TEXT_S[:2], 1)
