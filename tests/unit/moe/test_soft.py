"""Soft MoE: by hand, against a loop over slots and tokens; what padding may not do; what a token sees."""

from dataclasses import replace

import numpy as np
import pytest

from minimoe.config import ModelConfig
from minimoe.moe import soft
from tests import cases

CONFIG = ModelConfig(vocab_size=7, d_model=6, n_layers=2, n_heads=1, d_hidden=5, n_experts=3, top_k=2, max_sequence=7,
                     router="soft")  # 2 * 7 // 3 = 4 slots per expert


def random_layer(tokens):
    """x_TD, weights."""
    weights = cases.random_weights(soft.weights(CONFIG, 1.0, 1.0))
    return np.random.default_rng(1).normal(size=(len(tokens.mask_T), 6)), weights


def forward(x_TD, weights, tokens):
    return soft.soft_forward(x_TD, weights, tokens)[0]


def slow_sequence(x_SD, weights):
    """One sequence without padding, slot by slot and token by token."""
    def unit(x_D):
        return x_D / np.sqrt((x_D * x_D).sum())

    _, E, C = weights["w_slot_DEC"].shape
    slots = [(e, c) for e in range(E) for c in range(C)]
    scores = {(e, c): [weights["scale_1"][0] * unit(x_D) @ unit(weights["w_slot_DEC"][:, e, c]) for x_D in x_SD]
              for e, c in slots}
    out = [cases.expert(cases.softmax(scores[slot]) @ x_SD, weights, slot[0]) for slot in slots]
    return np.array([cases.softmax([scores[slot][t] for slot in slots]) @ np.array(out) for t in range(len(x_SD))])


def test_one_expert_with_one_slot_by_hand():
    """Unit vectors (1, 0), (0, 1), slot (1, 0), scale ln 3: scores ln 3 and 0, so the slot is 3/4 (2, 0) + 1/4 (0, 4)
    = (1.5, 1);  gate 1.5, up 1: h = silu(1.5), which both tokens get times (2, -1), since there is no other slot."""
    weights = {"w_slot_DEC": np.array([5.0, 0.0]).reshape(2, 1, 1), "scale_1": np.array([np.log(3)]),
               "w_gate_EDF": np.array([[[1.0], [0.0]]]), "w_up_EDF": np.array([[[0.0], [1.0]]]),
               "w_down_EFD": np.array([[[2.0, -1.0]]])}
    h = 1.5 / (1 + np.exp(-1.5))
    y_TD = forward(np.array([[2.0, 0.0], [0.0, 4.0]]), weights, cases.lengths(2))
    np.testing.assert_allclose(y_TD, [[2 * h, -h]] * 2, rtol=1e-10)


@pytest.mark.parametrize("lengths_B", [(7, 7), (5, 3, 1), (5, 0, 4)])
def test_it_equals_a_loop_over_slots_and_tokens_whatever_padding_holds(lengths_B):
    tokens = cases.lengths(*lengths_B)
    x_TD, weights = random_layer(tokens)
    y_BSD, x_BSD = (array.reshape(len(lengths_B), -1, 6) for array in (forward(x_TD, weights, tokens), x_TD))
    assert np.isfinite(y_BSD).all()  # also of a sequence of padding alone
    for y_SD, x_SD, length in zip(y_BSD, x_BSD, lengths_B, strict=True):
        np.testing.assert_allclose(y_SD[:length], slow_sequence(x_SD[:length], weights).reshape(-1, 6), rtol=1e-10)


def test_what_padding_holds_reaches_no_weight():
    tokens = cases.lengths(5, 3, 0)
    x_TD, weights = random_layer(tokens)
    real_T1 = tokens.mask_T[:, None]
    dy_TD = np.random.default_rng(2).normal(size=x_TD.shape) * real_T1
    dx_TD, dweights = soft.soft_backward(dy_TD, soft.soft_forward(x_TD, weights, tokens)[1])
    assert not dx_TD[~tokens.mask_T].any()
    _, others = soft.soft_backward(dy_TD, soft.soft_forward(np.where(real_T1, x_TD, 9.0), weights, tokens)[1])
    cases.assert_close(others, dweights, rtol=1e-10)


def test_a_token_sees_its_whole_sequence_in_any_order_and_no_other_sequence():
    tokens, order = cases.lengths(5, 5), [3, 0, 4, 1, 2, 5, 6, 7, 8, 9]
    x_TD, weights = random_layer(tokens)
    y_TD, changed_TD = forward(x_TD, weights, tokens), x_TD.copy()
    np.testing.assert_allclose(forward(x_TD[order], weights, tokens), y_TD[order], rtol=1e-12)
    changed_TD[4] *= -3
    changed_TD = forward(changed_TD, weights, tokens)
    assert (changed_TD[:4] != y_TD[:4]).all() and (changed_TD[5:] == y_TD[5:]).all()


def test_a_token_of_zeros_gives_finite_numbers():
    tokens = cases.lengths(4)
    x_TD, weights = random_layer(tokens)
    y_TD, cache = soft.soft_forward(0 * x_TD, weights, tokens)
    assert all(np.isfinite(array).all() for array in (y_TD, soft.soft_backward(y_TD + 1, cache)[0]))


@pytest.mark.parametrize(("fields", "expected"), [
    (dict(n_experts=8, top_k=2, max_sequence=64), 16),  # 2 * 64 / 8
    (dict(n_experts=3, top_k=2, max_sequence=7), 4),  # 14 / 3, rounded down
    (dict(n_experts=8, top_k=1, max_sequence=4), 1),  # never none
])
def test_slots_are_as_many_as_the_assignments_of_the_longest_sequence_would_be(fields, expected):
    config = replace(CONFIG, **fields)
    E = config.n_experts
    assert soft.slots_per_expert(config) == expected
    assert soft.weights(config, 0.5, 0.25) == {
        "w_slot_DEC": ((6, E, expected), 0.5), "scale_1": ((1,), None), "w_gate_EDF": ((E, 6, 5), 0.5),
        "w_up_EDF": ((E, 6, 5), 0.5), "w_down_EFD": ((E, 5, 6), 0.25)}


def test_gradients():
    tokens = cases.lengths(5, 3, 0)
    x_TD, weights = random_layer(tokens)
    real_T1 = tokens.mask_T[:, None]

    def masked(x_TD, weights):
        y_TD, cache = soft.soft_forward(x_TD, weights, tokens)
        return real_T1 * y_TD, cache

    cases.assert_gradients(masked, lambda dy_TD, cache: soft.soft_backward(real_T1 * dy_TD, cache), x_TD, weights)
    x_BSD = np.random.default_rng(0).normal(size=(2, 3, 4))
    cases.assert_gradient(soft.unit_forward, soft.unit_backward, x_BSD=x_BSD)
    np.testing.assert_allclose((soft.unit_forward(x_BSD)[0] ** 2).sum(axis=-1), 1, rtol=1e-10)
    for dtype, smallest, largest in ((np.float32, 1e-35, 1e35), (float, 1e-300, 1e300)):
        for size in (smallest, 1e-7, 1e7, largest):
            unit_BSD, cache = soft.unit_forward((size * x_BSD).astype(dtype))
            assert unit_BSD.dtype == dtype
            np.testing.assert_allclose(unit_BSD, soft.unit_forward(x_BSD)[0], rtol=1e-12 if dtype is float else 1e-5)
            assert np.isfinite(soft.unit_backward(unit_BSD, cache)).all()
    assert not soft.unit_forward(np.zeros((2, 3)))[0].any()
