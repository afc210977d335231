"""Soft MoE: against a loop over slots and tokens, what a slot is made of, and what it sees that it should not."""

from dataclasses import replace

import numpy as np
import pytest

from minimoe import gradcheck, model
from minimoe.config import ModelConfig
from minimoe.moe import feed_forward, soft
from minimoe.moe.routing import Tokens
from minimoe.nn import ops

CONFIG = ModelConfig(vocab_size=7, d_model=6, n_layers=2, n_heads=1, d_hidden=5, n_experts=3, top_k=2, max_sequence=7,
                     router="soft")  # 2 * 7 // 3 = 4 slots an expert
EXPERTS = "w_gate_EDF", "w_up_EDF", "w_down_EFD"


def lengths(*lengths_B, extra=0):
    """Tokens of sequences of these lengths, filled up with padding to the longest, and so much more."""
    mask_BS = np.arange(max(lengths_B) + extra) < np.array(lengths_B)[:, None]
    return Tokens.of_batch(np.zeros(mask_BS.shape, int), mask_BS)


def random_layer(tokens, config=CONFIG, dtype=np.float64):
    """x_TD, weights."""
    rng = np.random.default_rng(0)
    weights = {name: rng.normal(size=w.shape).astype(dtype) for name, w in soft.weights(config, 1.0, 1.0).items()}
    return rng.normal(size=(len(tokens.mask_T), config.d_model)).astype(dtype), weights


def forward(x_TD, weights, tokens):
    return soft.soft_forward(x_TD, weights, tokens)[0]


def unit(x_D):
    return x_D / np.sqrt((x_D * x_D).sum())


def softmax(scores):
    e = np.exp(np.array(scores) - max(scores))
    return e / e.sum()


def expert(x_D, weights, e):
    """What expert e makes of one vector."""
    gate_F, up_F = x_D @ weights["w_gate_EDF"][e], x_D @ weights["w_up_EDF"][e]
    return (gate_F / (1 + np.exp(-gate_F)) * up_F) @ weights["w_down_EFD"][e]


def slow_sequence(x_SD, weights):
    """One sequence without padding, slot by slot and token by token."""
    _, E, C = weights["w_slot_DEC"].shape
    slots = [(e, c) for e in range(E) for c in range(C)]
    scores = {(e, c): [weights["scale_1"][0] * unit(x_D) @ unit(weights["w_slot_DEC"][:, e, c]) for x_D in x_SD]
              for e, c in slots}
    out = [expert(softmax(scores[slot]) @ x_SD, weights, slot[0]) for slot in slots]
    return np.array([softmax([scores[slot][t] for slot in slots]) @ out for t in range(len(x_SD))])


def mixing(x_TD, weights, tokens):
    """The weights of tokens in slots, dispatch_BMS, and those of slots in tokens, combine_BSM."""
    _, cache = soft.soft_forward(x_TD, weights, tokens)
    return cache[7], cache[8]


def test_one_expert_with_one_slot_by_hand():
    # unit vectors (1, 0), (0, 1), slot (1, 0), scale ln 3: scores ln 3 and 0, so the slot is 3/4 (2, 0) + 1/4 (0, 4)
    # = (1.5, 1);  gate 1.5, up 1: h = silu(1.5), which both tokens get times (2, -1), since there is no other slot
    weights = {"w_slot_DEC": np.array([5.0, 0.0]).reshape(2, 1, 1), "scale_1": np.array([np.log(3)]),
               "w_gate_EDF": np.array([[[1.0], [0.0]]]), "w_up_EDF": np.array([[[0.0], [1.0]]]),
               "w_down_EFD": np.array([[[2.0, -1.0]]])}
    h = 1.5 / (1 + np.exp(-1.5))
    y_TD = forward(np.array([[2.0, 0.0], [0.0, 4.0]]), weights, lengths(2))
    np.testing.assert_allclose(y_TD, [[2 * h, -h]] * 2, rtol=1e-10)


def test_it_equals_a_loop_over_slots_and_tokens():
    tokens = lengths(7, 7)
    x_TD, weights = random_layer(tokens)
    expected = np.concatenate([slow_sequence(x_SD, weights) for x_SD in np.split(x_TD, 2)])
    np.testing.assert_allclose(forward(x_TD, weights, tokens), expected, rtol=1e-10)


def test_with_padding_it_equals_a_loop_over_what_is_text():
    tokens = lengths(5, 3, 1)
    x_TD, weights = random_layer(tokens)
    y_BSD, x_BSD = (array.reshape(3, 5, 6) for array in (forward(x_TD, weights, tokens), x_TD))
    for b, length in enumerate((5, 3, 1)):
        np.testing.assert_allclose(y_BSD[b, :length], slow_sequence(x_BSD[b, :length], weights), rtol=1e-10)


def test_a_slot_is_a_weighted_mean_of_the_text_and_a_token_one_of_the_slots():
    tokens = lengths(5, 3)
    dispatch_BMS, combine_BSM = mixing(*random_layer(tokens), tokens)
    assert dispatch_BMS.shape == (2, 12, 5)
    np.testing.assert_allclose(dispatch_BMS.sum(axis=2), 1, rtol=1e-14)
    np.testing.assert_allclose(combine_BSM.sum(axis=2), 1, rtol=1e-14)
    assert (dispatch_BMS[0] > 0).all() and (dispatch_BMS[1, :, :3] > 0).all()
    np.testing.assert_array_equal(dispatch_BMS[1, :, 3:], 0)


def test_appended_padding_changes_no_token():
    tokens, longer = lengths(4, 4), lengths(4, 4, extra=2)
    x_TD, weights = random_layer(tokens)
    padded_BSD = np.concatenate([x_TD.reshape(2, 4, 6), np.full((2, 2, 6), 9.0)], axis=1)
    y_BSD = forward(padded_BSD.reshape(-1, 6), weights, longer).reshape(2, 6, 6)
    np.testing.assert_allclose(y_BSD[:, :4].reshape(8, 6), forward(x_TD, weights, tokens), rtol=1e-12)


def test_what_padding_says_reaches_no_weight():
    tokens = lengths(5, 3)
    x_TD, weights = random_layer(tokens)
    dy_TD = np.random.default_rng(1).normal(size=x_TD.shape) * tokens.mask_T[:, None]
    dx_TD, dweights = soft.soft_backward(dy_TD, soft.soft_forward(x_TD, weights, tokens)[1])
    np.testing.assert_array_equal(dx_TD[~tokens.mask_T], 0)
    other_TD = np.where(tokens.mask_T[:, None], x_TD, 9.0)
    _, others = soft.soft_backward(dy_TD, soft.soft_forward(other_TD, weights, tokens)[1])
    for name, dweight in dweights.items():
        np.testing.assert_allclose(others[name], dweight, rtol=1e-10, atol=1e-14, err_msg=name)


def test_the_sequences_of_a_batch_do_not_see_each_other():
    tokens = lengths(5, 5)
    x_TD, weights = random_layer(tokens)
    other_TD = np.concatenate([x_TD[:5], -3 * x_TD[5:]])
    np.testing.assert_array_equal(forward(other_TD, weights, tokens)[:5], forward(x_TD, weights, tokens)[:5])
    assert (forward(other_TD, weights, tokens)[5:] != forward(x_TD, weights, tokens)[5:]).all()


def test_the_order_of_the_tokens_does_not_matter():
    tokens, order = lengths(5), [3, 0, 4, 1, 2]
    x_TD, weights = random_layer(tokens)
    np.testing.assert_allclose(forward(x_TD[order], weights, tokens), forward(x_TD, weights, tokens)[order], rtol=1e-12)


@pytest.mark.parametrize("factor", [1e-3, 100.0])
def test_the_length_of_a_token_or_of_a_slot_vector_changes_no_score(factor):
    tokens = lengths(5)
    x_TD, weights = random_layer(tokens)
    longer = weights | {"w_slot_DEC": factor * weights["w_slot_DEC"]}
    for a, b in zip(mixing(factor * x_TD, longer, tokens), mixing(x_TD, weights, tokens), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)  # 1e-12 stands under the root


def test_a_scale_of_0_mixes_all_tokens_evenly():
    tokens = lengths(5)
    x_TD, weights = random_layer(tokens)
    y_TD = forward(x_TD, weights | {"scale_1": np.zeros(1)}, tokens)
    mean = np.mean([expert(x_TD.mean(axis=0), weights, e) for e in range(3)], axis=0)
    np.testing.assert_allclose(y_TD, np.tile(mean, (5, 1)), rtol=1e-12)


def test_a_sequence_of_padding_alone_gives_finite_numbers_and_changes_no_other():
    tokens, with_empty = lengths(5, 3), lengths(5, 3, 0)
    x_TD, weights = random_layer(with_empty)
    y_TD, cache = soft.soft_forward(x_TD, weights, with_empty)
    assert np.isfinite(y_TD).all()
    np.testing.assert_allclose(y_TD[:10], forward(x_TD[:10], weights, tokens), rtol=1e-12)
    dx_TD, dweights = soft.soft_backward(np.ones_like(y_TD) * with_empty.mask_T[:, None], cache)
    assert all(np.isfinite(array).all() for array in (dx_TD, *dweights.values()))


def test_a_token_of_zeros_gives_finite_numbers():
    tokens = lengths(4)
    x_TD, weights = random_layer(tokens)
    y_TD, cache = soft.soft_forward(0 * x_TD, weights, tokens)
    assert all(np.isfinite(array).all() for array in (y_TD, soft.soft_backward(y_TD + 1, cache)[0]))


def test_it_looks_into_the_future():
    params = gradcheck.random_params(CONFIG)
    tokens_BS, _ = gradcheck.random_batch(CONFIG)
    changed_BS = tokens_BS.copy()
    changed_BS[:, -1] = (changed_BS[:, -1] + 1) % 7
    (before_BSV, routings), (after_BSV, _) = (model.forward(params, t, CONFIG) for t in (tokens_BS, changed_BS))
    assert (abs(after_BSV - before_BSV)[:, :-1].max(axis=2) > 1e-6).all()
    assert routings == []


def test_appended_padding_changes_no_logit_of_the_text():
    params = gradcheck.random_params(CONFIG)
    tokens_BS = gradcheck.random_batch(CONFIG)[0][:, :5]
    padded_BS, mask_BS = np.pad(tokens_BS, ((0, 0), (0, 2))), np.arange(7) < np.full((2, 1), 5)
    logits_BSV, _ = model.forward(params, padded_BS, CONFIG, mask_BS)
    np.testing.assert_allclose(logits_BSV[:, :5], model.forward(params, tokens_BS, CONFIG)[0], rtol=1e-10)


@pytest.mark.parametrize(("fields", "expected"), [
    (dict(n_experts=8, top_k=2, max_sequence=64), 16),  # 2 * 64 / 8
    (dict(n_experts=8, top_k=1, max_sequence=64), 8),
    (dict(n_experts=3, top_k=2, max_sequence=7), 4),  # 14 / 3, rounded down
    (dict(n_experts=8, top_k=1, max_sequence=4), 1),  # never none
    (dict(n_experts=1, top_k=1, max_sequence=5), 5),
])
def test_slots_are_as_many_as_the_assignments_of_the_longest_sequence_would_be(fields, expected):
    config = replace(CONFIG, **fields)
    assert soft.slots_per_expert(config) == expected
    assert soft.weights(config, 1.0, 1.0)["w_slot_DEC"].shape == (6, fields["n_experts"], expected)


def test_its_parameters_are_a_vector_a_slot_one_scale_and_the_experts():
    shapes = {name: w.shape for name, w in soft.weights(CONFIG, 1.0, 1.0).items()}
    assert shapes == {"w_slot_DEC": (6, 3, 4), "scale_1": (1,), "w_gate_EDF": (3, 6, 5), "w_up_EDF": (3, 6, 5),
                      "w_down_EFD": (3, 5, 6)}


def test_the_scale_starts_at_one():
    assert model.init_params(CONFIG)["layers.0.soft.scale_1"].tolist() == [1]


def test_every_slot_and_every_expert_learns_from_every_token():
    tokens = lengths(5)
    x_TD, weights = random_layer(tokens)
    for t in range(5):
        dy_TD = np.where(np.arange(5)[:, None] == t, 1.0, 0) * np.ones(6)
        dx_TD, dweights = soft.soft_backward(dy_TD, soft.soft_forward(x_TD, weights, tokens)[1])
        assert (abs(dx_TD).max(axis=1) > 1e-9).all()
        assert (abs(dweights["w_slot_DEC"]).max(axis=0) > 1e-9).all()
        for name in EXPERTS:
            assert (abs(dweights[name]).max(axis=(1, 2)) > 1e-9).all()


def test_gradient_of_the_layer():
    tokens = lengths(5, 3, 0)
    x_TD, weights = random_layer(tokens)
    real_T1 = tokens.mask_T[:, None]

    def value(*arrays):
        y_TD, cache = soft.soft_forward(arrays[0], dict(zip(weights, arrays[1:], strict=True)), tokens)
        return real_T1 * y_TD, cache

    def backward(dy_TD, cache):
        dx_TD, dweights = soft.soft_backward(real_T1 * dy_TD, cache)
        return dx_TD, *(dweights[name] for name in weights)

    report = gradcheck.check_pair("soft", value, backward, {"x_TD": x_TD} | weights)
    assert report.ok, report


def test_gradient_of_unit_vectors():
    arrays = {"x_BSD": np.random.default_rng(0).normal(size=(2, 3, 4))}
    report = gradcheck.check_pair("unit", soft.unit_forward, soft.unit_backward, arrays)
    assert report.ok, report


def test_gradient_of_a_whole_model():
    report = gradcheck.check_model(CONFIG, most=4)
    assert report.ok, report


def test_unit_vectors_have_length_one():
    x_BSD = np.random.default_rng(0).normal(size=(2, 3, 4))
    unit_BSD, _ = soft.unit_forward(x_BSD)
    np.testing.assert_allclose((unit_BSD ** 2).sum(axis=-1), 1, rtol=1e-10)
    np.testing.assert_allclose(unit_BSD * np.sqrt((x_BSD ** 2).sum(axis=-1, keepdims=True)), x_BSD, rtol=1e-10)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_stays_nothing_is_changed_and_backward_runs_twice(dtype):
    tokens = lengths(5, 3)
    x_TD, weights = random_layer(tokens, dtype=dtype)
    for array in (x_TD, *weights.values()):
        array.flags.writeable = False
    y_TD, cache = soft.soft_forward(x_TD, weights, tokens)
    (dx_TD, dweights), (again_TD, again) = (soft.soft_backward(y_TD, cache) for _ in range(2))
    assert {array.dtype for array in (y_TD, dx_TD, *dweights.values())} == {np.dtype(dtype)}
    np.testing.assert_array_equal(dx_TD, again_TD)
    for name in weights:
        np.testing.assert_array_equal(dweights[name], again[name])


def test_a_layer_without_a_routing_takes_no_pull_from_losses():
    tokens = lengths(5)
    x_TD, weights = random_layer(tokens)
    (y_TD, r), cache = feed_forward.kind_forward(x_TD, weights, CONFIG, "soft", tokens, training=True)
    assert r is None
    np.testing.assert_array_equal(y_TD, forward(x_TD, weights, tokens))
    dx_TD, dweights = feed_forward.kind_backward(y_TD, None, cache)
    expected_TD, _ = soft.soft_backward(y_TD, soft.soft_forward(x_TD, weights, tokens)[1])
    np.testing.assert_array_equal(dx_TD, expected_TD)
    assert dweights.keys() == weights.keys()


def test_with_one_slot_for_all_every_token_gets_the_same():
    tokens = lengths(4)
    x_TD, weights = random_layer(tokens, replace(CONFIG, n_experts=1, top_k=1, max_sequence=1))
    y_TD = forward(x_TD, weights, tokens)
    np.testing.assert_allclose(y_TD, np.tile(y_TD[0], (4, 1)), rtol=1e-14)
    slot_SD = softmax([weights["scale_1"][0] * unit(x_D) @ unit(weights["w_slot_DEC"][:, 0, 0]) for x_D in x_TD]) @ x_TD
    expected, _ = ops.swiglu_forward(slot_SD[None], *(weights[name][0] for name in EXPERTS))
    np.testing.assert_allclose(y_TD[:1], expected, rtol=1e-10)
