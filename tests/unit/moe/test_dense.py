"""The dense block: SwiGLU under its own names, and its width."""

import numpy as np
import pytest

from minimoe.config import ModelConfig
from minimoe.moe import dense
from minimoe.nn import ops
from tests import cases

CONFIG = ModelConfig(d_model=6, n_heads=1, d_hidden=5, n_experts=4, top_k=2, n_shared_experts=1)


def test_by_hand():
    """gate ln 3, up 2: silu(ln 3) = 3/4 ln 3, so h = 3/2 ln 3."""
    weights = {"w_gate_DJ": np.array([[1.0], [0]]), "w_up_DJ": np.array([[0.0], [1]]),
               "w_down_JD": np.array([[4.0, -2.0]])}
    y_TD, _ = dense.dense_forward(np.array([[np.log(3), 2.0]]), weights)
    np.testing.assert_allclose(y_TD, [[6 * np.log(3), -3 * np.log(3)]])


def test_it_is_swiglu_and_so_is_its_gradient():
    weights = cases.random_weights(dense.weights(CONFIG, 1.0, 1.0))
    x_TD, dy_TD = np.random.default_rng(1).normal(size=(2, 7, 6))
    y_TD, cache = dense.dense_forward(x_TD, weights)
    dx_TD, dweights = dense.dense_backward(dy_TD, cache)
    expected_TD, swiglu_cache = ops.swiglu_forward(x_TD, weights["w_gate_DJ"], weights["w_up_DJ"], weights["w_down_JD"])
    names = "x", "w_gate_DJ", "w_up_DJ", "w_down_JD"
    cases.assert_equal({"y": y_TD, "x": dx_TD} | dweights, {"y": expected_TD} | dict(
        zip(names, ops.swiglu_backward(dy_TD, swiglu_cache), strict=True)))


@pytest.mark.parametrize(("width", "expected"), [(None, 15), (3, 3)])  # (top_k + 1 shared) * 5, unless it is given
def test_its_weights_have_their_shapes_and_spreads(width, expected):
    assert dense.weights(CONFIG, 0.5, 0.25, width) == {
        "w_gate_DJ": ((6, expected), 0.5), "w_up_DJ": ((6, expected), 0.5), "w_down_JD": ((expected, 6), 0.25)}
