"""The experts: E SwiGLU blocks, each on its own rows, and with slots that hold zeros."""

import math

import numpy as np
import pytest

from minimoe.config import ModelConfig
from minimoe.moe import experts
from minimoe.nn import ops
from tests import cases

COUNT_E = np.array([3, 0, 5, 1])  # expert 1 is idle
CONFIG = ModelConfig(d_model=6, n_heads=1, n_experts=4, d_hidden=5)


def random_case():
    """rows_ND and weights of four experts."""
    weights = cases.random_weights(experts.weights(CONFIG, 1.0, 1.0))
    return np.random.default_rng(1).normal(size=(9, 6)), weights


@pytest.fixture
def computed(monkeypatch):
    """How many rows each expert with rows has computed, in order."""
    forward, rows = ops.swiglu_forward, []
    monkeypatch.setattr(ops, "swiglu_forward", lambda x_TD, *weights: rows.append(len(x_TD)) or forward(x_TD, *weights))
    return rows


def test_two_experts_by_hand():
    """x = ln 3: sigmoid(x) = 3/4 and silu(x) = 3/4 ln 3.  With gate weight 1, out = silu(x) * up x * down."""
    weights = {"w_gate_EDF": np.ones((2, 1, 1)), "w_up_EDF": np.array([[[2.0]], [[4.0]]]),
               "w_down_EFD": np.array([[[5.0]], [[-1.0]]])}
    out_ND, _ = experts.experts_forward(np.full((3, 1), math.log(3)), weights, np.array([1, 2]))
    square = math.log(3) ** 2
    np.testing.assert_allclose(out_ND, [[7.5 * square], [-3 * square], [-3 * square]])


@pytest.mark.parametrize("n_slots", [None, 5, 9])
def test_equals_a_loop_over_rows_and_only_slots_add_work(n_slots, computed):
    rows_ND, weights = random_case()
    out_ND, _ = experts.experts_forward(rows_ND, weights, COUNT_E, n_slots)
    owner_N = np.repeat(np.arange(4), COUNT_E)
    expected_ND = [cases.expert(row_D, weights, e) for row_D, e in zip(rows_ND, owner_N, strict=True)]
    np.testing.assert_allclose(out_ND, expected_ND, rtol=1e-12)
    assert computed == ([3, 5, 1] if n_slots is None else [n_slots] * 4)


@pytest.mark.parametrize("n_slots", [None, 5, 7])
def test_gradients_with_an_idle_expert(n_slots):
    rows_ND, weights = random_case()
    cases.assert_gradients(lambda x, w: experts.experts_forward(x, w, COUNT_E, n_slots), experts.experts_backward,
                           rows_ND, weights)


@pytest.mark.parametrize("n_slots", [None, 9])
@pytest.mark.parametrize(("count_E", "busy"), [
    ([3, 0, 5, 1], [0, 2, 3]), ([0, 9, 0, 0], [1]), ([0, 0, 0, 9], [3]), ([5, 4, 0, 0], [0, 1])])
def test_an_idle_expert_has_a_gradient_of_zeros_whatever_the_others_have(count_E, busy, n_slots):
    rows_ND, weights = random_case()
    for array in weights.values():
        array[np.setdiff1d(np.arange(4), busy)] = np.nan
    out_ND, cache = experts.experts_forward(rows_ND, weights, np.array(count_E), n_slots)
    assert np.isfinite(out_ND).all()
    drows_ND, dweights = experts.experts_backward(np.full_like(out_ND, np.nan), cache)
    assert np.isnan(drows_ND).all()
    for name, dw in dweights.items():
        assert dw.shape == weights[name].shape
        assert np.flatnonzero(np.isnan(dw).all(axis=(1, 2))).tolist() == busy
        assert not dw[np.setdiff1d(np.arange(4), busy)].any()


@pytest.mark.parametrize(("n_slots", "expected"), [(None, []), (0, []), (1, [1] * 4)])
def test_no_rows_give_no_output_and_zero_gradients(n_slots, expected, computed):
    """Without a limit the busiest of idle experts has 0 slots."""
    rows_ND, weights = random_case()
    out_ND, cache = experts.experts_forward(rows_ND[:0], weights, np.zeros(4, int), n_slots)
    drows_ND, dweights = experts.experts_backward(out_ND, cache)
    assert computed == expected
    assert out_ND.shape == drows_ND.shape == (0, 6)
    assert not any(array.any() for array in dweights.values())


def test_weights_are_stacked_and_the_last_has_a_spread_of_its_own():
    assert experts.weights(CONFIG, 0.25, 0.125) == {
        "w_gate_EDF": ((4, 6, 5), 0.25), "w_up_EDF": ((4, 6, 5), 0.25), "w_down_EFD": ((4, 5, 6), 0.125)}
