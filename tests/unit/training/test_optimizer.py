"""AdamW, its learning rate and clipping: by hand, and number by number against a plain loop."""

import math

import numpy as np
import pytest

from minimoe.config import TrainConfig
from minimoe.training import optimizer

CONFIG = TrainConfig(n_steps=11, warmup_steps=4, learning_rate=0.5, min_learning_rate=0.1, weight_decay=0.3, beta1=0.8,
                     beta2=0.95, adam_eps=1e-3)
SHAPES = {"w_DF": (5, 7), "w_EDF": (2, 3, 4), "gain_D": (5,), "w_VD": (211, 313)}


def arrays(seed, scale=1.0, dtype=np.float64):
    """One random array for each of SHAPES; w_VD has 66043 numbers, two chunks and a bit."""
    rng = np.random.default_rng(seed)
    return {name: (scale * rng.standard_normal(shape)).astype(dtype) for name, shape in SHAPES.items()}


def copy_of(tree):
    return {name: array.copy() for name, array in tree.items()}


def slow_adamw(w, gradients, decay, config, scale):
    """[arXiv:1711.05101, algorithm 2] for one number: what it is after a step on each of its gradients."""
    m = v = 0.0
    for t, g in enumerate(gradients, start=1):
        g *= scale
        m = config.beta1 * m + (1 - config.beta1) * g
        v = config.beta2 * v + (1 - config.beta2) * g * g
        m_hat, v_hat = m / (1 - config.beta1 ** t), v / (1 - config.beta2 ** t)
        w -= optimizer.learning_rate(t - 1, config) * (m_hat / (math.sqrt(v_hat) + config.adam_eps) + decay * w)
    return w


@pytest.mark.parametrize("step, expected", [
    (0, 0.1),  # 0.5 * 1/5
    (3, 0.4),  # 0.5 * 4/5, the end of the warmup
    (4, 0.5),  # the peak
    (6, 0.4),  # a third of the way from 4 to 10: 0.1 + 0.4 * (1 + cos 60°) / 2
    (7, 0.3),  # halfway: 0.1 + 0.4 / 2
    (8, 0.2),  # two thirds: 0.1 + 0.4 * (1 - 1/2) / 2
    (10, 0.1),  # the last
    (11, 0.1),  # and if one went on
])
def test_learning_rate_by_hand(step, expected):
    assert optimizer.learning_rate(step, CONFIG) == pytest.approx(expected, rel=1e-14)


def test_learning_rate_without_warmup_starts_at_the_peak():
    config = TrainConfig(n_steps=3, warmup_steps=0, learning_rate=0.5, min_learning_rate=0.1)
    assert [optimizer.learning_rate(step, config) for step in range(3)] == pytest.approx([0.5, 0.3, 0.1], rel=1e-14)


def test_two_steps_are_the_peak_and_the_minimum():
    config = TrainConfig(n_steps=2, warmup_steps=0, learning_rate=0.5, min_learning_rate=0.1)
    assert [optimizer.learning_rate(step, config) for step in range(2)] == pytest.approx([0.5, 0.1], rel=1e-14)


def test_a_warmup_as_long_as_the_run_never_divides_by_zero():
    config = TrainConfig(n_steps=4, warmup_steps=3, learning_rate=0.5, min_learning_rate=0.1)
    rates = [optimizer.learning_rate(step, config) for step in range(4)]
    assert rates == pytest.approx([0.125, 0.25, 0.375, 0.5], rel=1e-14)


def test_norm_by_hand():
    # 1 + 4 + 4 + 16 = 25
    assert optimizer.global_norm({"a_DF": np.array([[1.0, -2], [2, 0]]), "b_D": np.array([4.0])}) == 5


def test_norm_of_zero_gradients_is_zero():
    assert optimizer.global_norm({"a_DF": np.zeros((2, 3))}) == 0


def test_clipping_by_hand():
    assert optimizer.clip_scale(norm=8.0, limit=2.0) == 0.25
    assert optimizer.clip_scale(norm=0.5, limit=0.25) == 0.5
    assert optimizer.clip_scale(norm=2.0, limit=2.0) == 1
    assert optimizer.clip_scale(norm=1.0, limit=2.0) == 1
    assert optimizer.clip_scale(norm=0.0, limit=2.0) == 1


def test_clipped_gradients_have_the_norm_of_the_limit():
    grads = arrays(0)
    scale = optimizer.clip_scale(optimizer.global_norm(grads), 3.0)
    assert optimizer.global_norm({name: scale * grad for name, grad in grads.items()}) == pytest.approx(3, rel=1e-12)


def test_moments_start_at_zero_like_their_parameters():
    params = arrays(0, dtype=np.float32)
    for moment in optimizer.start_moments(params):
        assert {name: (m.shape, m.dtype, m.any()) for name, m in moment.items()} == {
            name: (w.shape, w.dtype, False) for name, w in params.items()}


def test_the_first_step_by_hand():
    # t = 1: m / (1 - b1) = g and v / (1 - b2) = g^2, so the step is lr * (g / (|g| + eps) + decay * w)
    # with lr 0.1: 2 - 0.1 * (4 / 4.001 + 0.3 * 2);  the gain does not decay
    params, grads = {"w_DF": np.array([[2.0]]), "gain_D": np.array([2.0])}, {"w_DF": np.array([[4.0]]),
                                                                         "gain_D": np.array([-4.0])}
    moments = optimizer.start_moments(params)
    optimizer.adamw_update(params, grads, moments, 0, CONFIG)
    np.testing.assert_allclose(params["w_DF"], 2 - 0.1 * (4 / 4.001 + 0.6), rtol=1e-14)
    np.testing.assert_allclose(params["gain_D"], 2 + 0.1 * 4 / 4.001, rtol=1e-14)
    np.testing.assert_allclose([moments[0]["w_DF"][0, 0], moments[1]["w_DF"][0, 0]], [0.2 * 4, 0.05 * 16], rtol=1e-14)


@pytest.mark.parametrize("scale", [1.0, 0.37])
def test_five_steps_equal_a_loop_over_numbers(scale):
    start, gradients = arrays(0), [arrays(seed, scale=10.0 ** -seed) for seed in range(1, 6)]
    params, moments = copy_of(start), optimizer.start_moments(start)
    for step, grads in enumerate(gradients):
        optimizer.adamw_update(params, grads, moments, step, CONFIG, scale)
    for name, w in start.items():
        decay = CONFIG.weight_decay if w.ndim > 1 else 0
        numbers = zip(w.flat, *(grads[name].flat for grads in gradients), strict=True)
        expected = [slow_adamw(first, rest, decay, CONFIG, scale) for first, *rest in numbers]
        np.testing.assert_allclose(params[name].ravel(), expected, rtol=1e-12, atol=1e-12)


def test_decay_alone_shrinks_matrices_and_leaves_gains():
    start = arrays(0)
    params, zeros = copy_of(start), {name: np.zeros_like(w) for name, w in start.items()}
    optimizer.adamw_update(params, zeros, optimizer.start_moments(params), 4, CONFIG)  # learning rate 0.5
    for name, w in start.items():
        np.testing.assert_allclose(params[name], w * (1 - 0.5 * 0.3) if w.ndim > 1 else w, rtol=1e-15)


def test_chunks_make_no_difference(monkeypatch):
    whole, parts = arrays(0), arrays(0)
    optimizer.adamw_update(parts, arrays(1), optimizer.start_moments(parts), 0, CONFIG)
    monkeypatch.setattr(optimizer, "CHUNK", 1 << 20)
    optimizer.adamw_update(whole, arrays(1), optimizer.start_moments(whole), 0, CONFIG)
    assert all(np.array_equal(whole[name], parts[name]) for name in whole)


def test_float32_stays_float32():
    params, grads = arrays(0, dtype=np.float32), arrays(1, dtype=np.float32)
    moments = optimizer.start_moments(params)
    optimizer.adamw_update(params, grads, moments, 0, CONFIG, 0.5)
    assert {array.dtype for tree in (params, *moments) for array in tree.values()} == {np.dtype(np.float32)}


def test_gradients_are_left_as_they_were():
    params, grads = arrays(0), arrays(1)
    before = copy_of(grads)
    optimizer.adamw_update(params, grads, optimizer.start_moments(params), 0, CONFIG, 0.5)
    assert all(np.array_equal(grads[name], before[name]) for name in grads)


def test_columns_first_in_memory_makes_no_difference():
    plain, turned = arrays(0), {name: np.asfortranarray(w) for name, w in arrays(0).items()}
    for params in (plain, turned):
        optimizer.adamw_update(params, arrays(1), optimizer.start_moments(params), 0, CONFIG)
    assert all(np.array_equal(plain[name], turned[name]) for name in plain)
