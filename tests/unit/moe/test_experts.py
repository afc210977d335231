"""The experts: E SwiGLU blocks, each on its own rows."""

import math

import numpy as np
import pytest

from minimoe import gradcheck
from minimoe.config import ModelConfig
from minimoe.moe import experts
from minimoe.nn import ops

COUNT_E = np.array([3, 0, 5, 1])  # expert 1 is idle


def random_case(dtype=np.float64):
    """rows_ND and weights of four experts, D = 5, F = 6."""
    rng = np.random.default_rng(0)
    shapes = {"w_gate_EDF": (4, 5, 6), "w_up_EDF": (4, 5, 6), "w_down_EFD": (4, 6, 5)}
    weights = {name: rng.normal(size=shape).astype(dtype) for name, shape in shapes.items()}
    return rng.normal(size=(9, 5)).astype(dtype), weights


def test_two_experts_by_hand():
    # x = ln 3: sigmoid(x) = 3/4 and silu(x) = 3/4 ln 3.  With gate weight 1, out = silu(x) * up x * down.
    weights = {"w_gate_EDF": np.ones((2, 1, 1)), "w_up_EDF": np.array([[[2.0]], [[4.0]]]),
               "w_down_EFD": np.array([[[5.0]], [[-1.0]]])}
    out_ND, _ = experts.experts_forward(np.full((3, 1), math.log(3)), weights, np.array([1, 2]))
    square = math.log(3) ** 2
    np.testing.assert_allclose(out_ND, [[7.5 * square], [-3 * square], [-3 * square]])


def test_equals_a_loop_over_rows():
    rows_ND, weights = random_case()
    out_ND, _ = experts.experts_forward(rows_ND, weights, COUNT_E)
    for row_D, out_D, e in zip(rows_ND, out_ND, [0, 0, 0, 2, 2, 2, 2, 2, 3], strict=True):
        gate_F, up_F = row_D @ weights["w_gate_EDF"][e], row_D @ weights["w_up_EDF"][e]
        expected_D = (gate_F / (1 + np.exp(-gate_F)) * up_F) @ weights["w_down_EFD"][e]
        np.testing.assert_allclose(out_D, expected_D, rtol=1e-12)


def test_gradients_with_an_idle_expert():
    rows_ND, weights = random_case()

    def forward(rows_ND, *arrays):
        return experts.experts_forward(rows_ND, dict(zip(weights, arrays, strict=True)), COUNT_E)

    def backward(dout_ND, cache):
        drows_ND, dweights = experts.experts_backward(dout_ND, cache)
        return drows_ND, *(dweights[name] for name in weights)

    report = gradcheck.check_pair("experts", forward, backward, {"rows_ND": rows_ND} | weights)
    assert report.ok, report


def test_an_idle_expert_has_a_gradient_of_zeros():
    rows_ND, weights = random_case()
    out_ND, cache = experts.experts_forward(rows_ND, weights, COUNT_E)
    _, dweights = experts.experts_backward(np.ones_like(out_ND), cache)
    for name, array in weights.items():
        assert dweights[name].shape == array.shape
        np.testing.assert_array_equal(dweights[name].any(axis=(1, 2)), [True, False, True, True])


def test_idle_experts_keep_nothing_for_the_backward_and_their_gradient_is_zero_whatever_the_others_is():
    rows_ND, weights = random_case()
    for count_E, busy in ((COUNT_E, [0, 2, 3]), ([0, 9, 0, 0], [1]), ([0, 0, 0, 9], [3]), ([5, 4, 0, 0], [0, 1])):
        out_ND, cache = experts.experts_forward(rows_ND, weights, np.array(count_E))
        assert sorted(cache[0]) == busy
        drows_ND, dweights = experts.experts_backward(np.full_like(out_ND, np.nan), cache)
        assert np.isnan(drows_ND).all()
        for dw in dweights.values():
            assert np.flatnonzero(np.isnan(dw).all(axis=(1, 2))).tolist() == busy
            assert not dw[np.setdiff1d(np.arange(4), busy)].any()


def test_an_expert_works_on_its_own_rows_alone():
    rows_ND, weights = random_case()
    out_ND, _ = experts.experts_forward(rows_ND, weights, COUNT_E)
    others = {name: array.copy() for name, array in weights.items()}
    for array in others.values():
        array[2] += 1
    changed_ND, _ = experts.experts_forward(rows_ND, others, COUNT_E)
    np.testing.assert_array_equal((changed_ND != out_ND).any(axis=1), [False] * 3 + [True] * 5 + [False])


def test_one_expert_is_the_dense_block_exactly():
    rows_ND, weights = random_case()
    one = {name: array[:1] for name, array in weights.items()}
    out_ND, cache = experts.experts_forward(rows_ND, one, np.array([9]))
    dense_ND, dense_cache = ops.swiglu_forward(rows_ND, *(array[0] for array in one.values()))
    np.testing.assert_array_equal(out_ND, dense_ND)
    drows_ND, dweights = experts.experts_backward(out_ND, cache)
    for got, dense in zip((drows_ND, *(dweights[n][0] for n in one)), ops.swiglu_backward(out_ND, dense_cache),
                          strict=True):
        np.testing.assert_array_equal(got, dense)


def test_no_rows_give_no_output_and_zero_gradients():
    rows_ND, weights = random_case()
    out_ND, cache = experts.experts_forward(rows_ND[:0], weights, np.zeros(4, int))
    drows_ND, dweights = experts.experts_backward(out_ND, cache)
    assert out_ND.shape == drows_ND.shape == (0, 5)
    assert not any(array.any() for array in dweights.values())


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_stays_and_nothing_passed_in_is_changed(dtype):
    rows_ND, weights = random_case(dtype)
    dout_ND = np.random.default_rng(1).normal(size=rows_ND.shape).astype(dtype)
    for array in (rows_ND, dout_ND, *weights.values()):
        array.flags.writeable = False
    out_ND, cache = experts.experts_forward(rows_ND, weights, COUNT_E)
    (drows_ND, dweights), (drows_again_ND, dweights_again) = (
        experts.experts_backward(dout_ND, cache) for _ in range(2))
    assert {array.dtype for array in (out_ND, drows_ND, *dweights.values())} == {np.dtype(dtype)}
    np.testing.assert_array_equal(drows_again_ND, drows_ND)
    for name in weights:
        np.testing.assert_array_equal(dweights_again[name], dweights[name])


SLOTS = [5, 6, 9]
"""As many as the busiest expert of COUNT_E has, and more."""


def loop_with_slots(rows_ND, weights, count_E, n_slots):
    """Each expert's buffer, slot by slot: a row of its own or zeros.  Returns the outputs of all E * n_slots slots."""
    out_ESD, row = np.zeros((len(count_E), n_slots, rows_ND.shape[1])), 0
    for e, count in enumerate(count_E):
        for slot in range(n_slots):
            x_D = np.zeros(rows_ND.shape[1])
            if slot < count:
                x_D, row = rows_ND[row], row + 1
            gate_F, up_F = x_D @ weights["w_gate_EDF"][e], x_D @ weights["w_up_EDF"][e]
            out_ESD[e, slot] = (gate_F / (1 + np.exp(-gate_F)) * up_F) @ weights["w_down_EFD"][e]
    return out_ESD


@pytest.mark.parametrize("n_slots", SLOTS)
def test_experts_with_slots_equal_a_loop_over_slots(n_slots):
    rows_ND, weights = random_case()
    out_ND, cache = experts.experts_forward(rows_ND, weights, COUNT_E, n_slots)
    expected_ESD = loop_with_slots(rows_ND, weights, COUNT_E, n_slots)
    full = [(0, 0), (0, 1), (0, 2), (2, 0), (2, 1), (2, 2), (2, 3), (2, 4), (3, 0)]
    np.testing.assert_allclose(out_ND, [expected_ESD[where] for where in full], rtol=1e-12)
    assert not any(expected_ESD[e, slot].any() for e in range(4) for slot in range(n_slots) if (e, slot) not in full)
    assert [len(cache[0][e][0]) for e in range(4)] == [n_slots] * 4  # every slot is computed


@pytest.mark.parametrize("count_E", [COUNT_E, np.array([0, 0, 9, 0]), np.array([2, 3, 2, 2])])
@pytest.mark.parametrize("n_slots", [9, 12])
def test_slots_change_no_output_and_no_gradient(count_E, n_slots):
    rows_ND, weights = random_case()
    dout_ND = np.random.default_rng(1).normal(size=rows_ND.shape)
    (out_ND, cache), (padded_ND, padded_cache) = (
        experts.experts_forward(rows_ND, weights, count_E, n) for n in (None, n_slots))
    (drows_ND, dweights), (dpadded_ND, dpadded) = (
        experts.experts_backward(dout_ND, c) for c in (cache, padded_cache))
    np.testing.assert_allclose(padded_ND, out_ND, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(dpadded_ND, drows_ND, rtol=1e-12, atol=1e-12)
    assert dpadded.keys() == dweights.keys() == weights.keys()
    for name in weights:
        np.testing.assert_allclose(dpadded[name], dweights[name], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("n_slots", SLOTS)
def test_gradients_with_slots_and_an_idle_expert(n_slots):
    rows_ND, weights = random_case()

    def forward(rows_ND, *arrays):
        return experts.experts_forward(rows_ND, dict(zip(weights, arrays, strict=True)), COUNT_E, n_slots)

    def backward(dout_ND, cache):
        drows_ND, dweights = experts.experts_backward(dout_ND, cache)
        return drows_ND, *(dweights[name] for name in weights)

    report = gradcheck.check_pair("experts with slots", forward, backward, {"rows_ND": rows_ND} | weights)
    assert report.ok, report


def test_an_idle_expert_with_slots_has_a_gradient_of_zeros():
    rows_ND, weights = random_case()
    out_ND, cache = experts.experts_forward(rows_ND, weights, COUNT_E, 5)
    _, dweights = experts.experts_backward(np.ones_like(out_ND), cache)
    for name, array in weights.items():
        assert dweights[name].shape == array.shape
        np.testing.assert_array_equal(dweights[name].any(axis=(1, 2)), [True, False, True, True])


def test_an_idle_expert_with_slots_has_a_gradient_of_zeros_even_if_its_weights_are_no_numbers():
    rows_ND, weights = random_case()
    for array in weights.values():
        array[1] = np.nan
    out_ND, cache = experts.experts_forward(rows_ND, weights, COUNT_E, 5)
    drows_ND, dweights = experts.experts_backward(out_ND, cache)
    assert np.isfinite(out_ND).all() and np.isfinite(drows_ND).all()
    assert not any(dw[1].any() for dw in dweights.values())


def test_no_rows_in_slots_give_no_output_and_zero_gradients():
    rows_ND, weights = random_case()
    for n_slots in (0, 3):  # without a limit the busiest of idle experts has none
        out_ND, cache = experts.experts_forward(rows_ND[:0], weights, np.zeros(4, int), n_slots)
        drows_ND, dweights = experts.experts_backward(out_ND, cache)
        assert len(cache[0]) == (4 if n_slots else 0)
        assert out_ND.shape == drows_ND.shape == (0, 5)
        assert not any(array.any() for array in dweights.values())


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.complex128])
@pytest.mark.parametrize("n_slots", [None, 7])
def test_dtype_stays_with_slots_and_nothing_passed_in_is_changed(dtype, n_slots):
    rows_ND, weights = random_case(dtype)
    dout_ND = np.random.default_rng(1).normal(size=rows_ND.shape).astype(dtype)
    for array in (rows_ND, dout_ND, *weights.values()):
        array.flags.writeable = False
    out_ND, cache = experts.experts_forward(rows_ND, weights, COUNT_E, n_slots)
    drows_ND, dweights = experts.experts_backward(dout_ND, cache)
    assert {array.dtype for array in (out_ND, drows_ND, *dweights.values())} == {np.dtype(dtype)}


def test_complex_numbers_go_through_slots_as_they_do_without():
    rows_ND, weights = random_case(complex)
    rows_ND = rows_ND + 1e-3j * np.random.default_rng(2).normal(size=rows_ND.shape)
    plain_ND, padded_ND = (experts.experts_forward(rows_ND, weights, COUNT_E, n)[0] for n in (None, 6))
    assert plain_ND.imag.any()
    np.testing.assert_allclose(padded_ND, plain_ND, rtol=1e-12)


def test_weights_are_stacked_and_the_last_has_a_spread_of_its_own():
    config = ModelConfig(d_model=6, n_heads=1, n_experts=5, d_hidden=7)
    assert experts.weights(config, 0.25, 0.125) == {
        "w_gate_EDF": ((5, 6, 7), 0.25), "w_up_EDF": ((5, 6, 7), 0.25), "w_down_EFD": ((5, 7, 6), 0.125)}
