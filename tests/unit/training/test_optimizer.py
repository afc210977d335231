"""AdamW, its learning rate and clipping: by hand, and number by number against a plain loop."""

import math
from dataclasses import replace

import numpy as np
import pytest

from minimoe.config import TrainConfig
from minimoe.training import optimizer

CONFIG = TrainConfig(n_steps=11, warmup_steps=4, learning_rate=0.5, min_learning_rate=0.1, weight_decay=0.3, beta1=0.8,
                     beta2=0.95, adam_eps=1e-3)
SHAPES = {"w_DF": (5, 7), "w_EDF": (2, 3, 4), "gain_D": (5,), "turned_FD": (7, 5)}


def arrays(seed, scale=1.0, dtype=np.float64):
    """One random array for each of SHAPES."""
    rng = np.random.default_rng(seed)
    return {name: (scale * rng.standard_normal(shape)).astype(dtype) for name, shape in SHAPES.items()}


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


@pytest.mark.parametrize("n_steps, warmup_steps, rates", [
    # fifths of the peak; then 0.1 + 0.4 (1 + cos) / 2 at 0, 60, 90, 120 and 180 degrees; and if training went on
    (11, 4, {0: 0.1, 3: 0.4, 4: 0.5, 6: 0.4, 7: 0.3, 8: 0.2, 10: 0.1, 11: 0.1}),
    (3, 0, {0: 0.5, 1: 0.3, 2: 0.1}),
    (2, 0, {0: 0.5, 1: 0.1}),
    (4, 3, {0: 0.125, 1: 0.25, 2: 0.375, 3: 0.5}),  # nothing is left to divide by
])
def test_learning_rate_by_hand(n_steps, warmup_steps, rates):
    config = replace(CONFIG, n_steps=n_steps, warmup_steps=warmup_steps)
    assert {step: optimizer.learning_rate(step, config) for step in rates} == pytest.approx(rates, rel=1e-14)


def test_norm_by_hand():
    # 1 + 4 + 4 + 16 = 25
    assert optimizer.global_norm({"a_DF": np.array([[1.0, -2], [2, 0]]), "b_D": np.array([4.0])}) == 5
    assert optimizer.global_norm({"a_DF": np.zeros((2, 3))}) == 0


@pytest.mark.parametrize("norm, limit, scale", [(8.0, 2.0, 0.25), (0.5, 0.25, 0.5), (2.0, 2.0, 1), (1.0, 2.0, 1),
                                                (0.0, 2.0, 1)])
def test_clipping_by_hand(norm, limit, scale):
    assert optimizer.clip_scale(norm, limit) == scale


def test_the_first_step_by_hand():
    # t = 1: m / (1 - b1) = g and v / (1 - b2) = g^2, so the step is lr * (g / (|g| + eps) + decay * w)
    # with lr 0.1: 2 - 0.1 * (4 / 4.001 + 0.3 * 2);  the gain does not decay
    params = {"w_DF": np.array([[2.0]]), "gain_D": np.array([2.0])}
    moments = optimizer.start_moments(params)
    optimizer.adamw_update(params, {"w_DF": np.array([[4.0]]), "gain_D": np.array([-4.0])}, moments, 0, CONFIG)
    np.testing.assert_allclose(params["w_DF"], 2 - 0.1 * (4 / 4.001 + 0.6), rtol=1e-14)
    np.testing.assert_allclose(params["gain_D"], 2 + 0.1 * 4 / 4.001, rtol=1e-14)
    np.testing.assert_allclose([moments[0]["w_DF"][0, 0], moments[1]["w_DF"][0, 0]], [0.2 * 4, 0.05 * 16], rtol=1e-14)


@pytest.mark.parametrize("scale", [1.0, 0.37])
def test_five_steps_equal_a_loop_over_numbers(scale, monkeypatch):
    """In chunks of 10: `w_EDF` is two chunks and a bit; `turned_FD`, column by column in memory, is taken whole."""
    monkeypatch.setattr(optimizer, "CHUNK", 10)
    start, gradients = arrays(0), [arrays(seed, scale=10.0 ** -seed) for seed in range(1, 6)]
    params = arrays(0)
    params["turned_FD"] = np.asfortranarray(params["turned_FD"])
    moments = optimizer.start_moments(params)
    for step, grads in enumerate(gradients):
        for grad in grads.values():
            grad.flags.writeable = False
        optimizer.adamw_update(params, grads, moments, step, CONFIG, scale)
    for name, w in start.items():
        decay = CONFIG.weight_decay if w.ndim > 1 else 0
        numbers = zip(w.flat, *(grads[name].flat for grads in gradients), strict=True)
        expected = [slow_adamw(first, rest, decay, CONFIG, scale) for first, *rest in numbers]
        np.testing.assert_allclose(params[name].ravel(), expected, rtol=1e-12, atol=1e-12)


def test_moments_start_at_zero_and_every_type_stays():
    params = arrays(0, dtype=np.float32)
    moments = optimizer.start_moments(params)
    assert [{name: (m.shape, m.any()) for name, m in moment.items()} for moment in moments] == 2 * [
        {name: (w.shape, False) for name, w in params.items()}]
    optimizer.adamw_update(params, arrays(1, dtype=np.float32), moments, 0, CONFIG, 0.5)
    assert {array.dtype for tree in (params, *moments) for array in tree.values()} == {np.dtype(np.float32)}
