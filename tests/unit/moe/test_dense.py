"""The dense block: SwiGLU under names of its own, and how wide it is."""

from dataclasses import replace

import numpy as np
import pytest

from minimoe import gradcheck
from minimoe.config import ModelConfig
from minimoe.moe import dense
from minimoe.nn import ops

CONFIG = ModelConfig(d_model=6, n_heads=1, d_hidden=5, n_experts=4, top_k=2)


def random_block(dtype=np.float64):
    """x_TD, weights, dy_TD."""
    rng = np.random.default_rng(0)
    weights = {name: rng.normal(size=w.shape).astype(dtype) for name, w in dense.weights(CONFIG, 1.0, 1.0).items()}
    x_TD, dy_TD = rng.normal(size=(2, 7, 6)).astype(dtype)
    return x_TD, weights, dy_TD


def test_it_is_swiglu():
    x_TD, weights, dy_TD = random_block()
    y_TD, cache = dense.dense_forward(x_TD, weights)
    expected_TD, swiglu_cache = ops.swiglu_forward(x_TD, weights["w_gate_DJ"], weights["w_up_DJ"], weights["w_down_JD"])
    np.testing.assert_array_equal(y_TD, expected_TD)
    dx_TD, dweights = dense.dense_backward(dy_TD, cache)
    expected = ops.swiglu_backward(dy_TD, swiglu_cache)
    assert list(dweights) == ["w_gate_DJ", "w_up_DJ", "w_down_JD"]
    for got, array in zip((dx_TD, *dweights.values()), expected, strict=True):
        np.testing.assert_array_equal(got, array)


def test_by_hand():
    # gate ln 3, up 2: silu(ln 3) = 3/4 ln 3, so h = 3/2 ln 3
    weights = {"w_gate_DJ": np.array([[1.0], [0]]), "w_up_DJ": np.array([[0.0], [1]]),
               "w_down_JD": np.array([[4.0, -2.0]])}
    y_TD, _ = dense.dense_forward(np.array([[np.log(3), 2.0]]), weights)
    np.testing.assert_allclose(y_TD, [[6 * np.log(3), -3 * np.log(3)]])


@pytest.mark.parametrize(("fields", "expected"), [
    ({}, 10),  # top_k * d_hidden = 2 * 5
    (dict(top_k=1), 5),
    (dict(n_shared_experts=1), 15),  # (2 + 1) * 5
    (dict(n_experts=1, top_k=1), 5),
    (dict(d_dense=7), 7),
    (dict(d_dense=1, n_shared_experts=3), 1),
])
def test_its_width_is_that_of_the_experts_of_a_token_unless_set(fields, expected):
    config = replace(CONFIG, **fields)
    assert config.dense_width == expected
    shapes = {name: w.shape for name, w in dense.weights(config, 1.0, 1.0).items()}
    assert shapes == {"w_gate_DJ": (6, expected), "w_up_DJ": (6, expected), "w_down_JD": (expected, 6)}


def test_a_width_that_is_said_is_taken():
    assert dense.weights(CONFIG, 1.0, 1.0, width=3)["w_down_JD"].shape == (3, 6)


def test_what_writes_to_the_stream_has_its_own_spread():
    assert {name: w.std for name, w in dense.weights(CONFIG, 0.5, 0.25).items()} == {
        "w_gate_DJ": 0.5, "w_up_DJ": 0.5, "w_down_JD": 0.25}


def test_gradient():
    x_TD, weights, _ = random_block()

    def backward(dy_TD, cache):
        dx_TD, dweights = dense.dense_backward(dy_TD, cache)
        return dx_TD, *dweights.values()

    report = gradcheck.check_pair("dense", lambda x_TD, *arrays: dense.dense_forward(
        x_TD, dict(zip(weights, arrays, strict=True))), backward, {"x_TD": x_TD} | weights)
    assert report.ok, report


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_stays_and_nothing_passed_in_is_changed(dtype):
    x_TD, weights, dy_TD = random_block(dtype)
    for array in (x_TD, dy_TD, *weights.values()):
        array.flags.writeable = False
    y_TD, cache = dense.dense_forward(x_TD, weights)
    dx_TD, dweights = dense.dense_backward(dy_TD, cache)
    assert {array.dtype for array in (y_TD, dx_TD, *dweights.values())} == {np.dtype(dtype)}
