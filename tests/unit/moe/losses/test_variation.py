"""The losses of even shares: CV^2 and its slope, the importance of experts, and their expected load."""

from dataclasses import replace

import numpy as np
import pytest

from minimoe.config import ModelConfig
from minimoe.moe import losses
from minimoe.moe.losses import variation
from minimoe.moe.routers import noisy_topk
from minimoe.moe.routing import Tokens
from tests import cases

NOISY = ModelConfig(d_model=4, n_heads=1, n_experts=5, top_k=2, router="noisy_topk")


def cv2(x_E):
    return variation.variation_forward(np.array(x_E, float))[0]


def slope(x_E, dloss=1.0):
    return variation.variation_backward(dloss, variation.variation_forward(np.array(x_E, float))[1])


def chances(chance_TE, mask_T=None):
    """A Routing with these chances."""
    return replace(cases.routed(chance_TE, mask=mask_T), chance_TE=np.array(chance_TE))


def noisy(top_k=2):
    """The noisy router's output for random tokens, one of them padding."""
    rng, config = np.random.default_rng(0), replace(NOISY, top_k=top_k)
    weights = {name: rng.normal(size=w.shape) for name, w in noisy_topk.weights(config, 1.0).items()}
    tokens = Tokens.anonymous(np.arange(11) != 5)
    return noisy_topk.forward(rng.normal(size=(11, 4)), weights, config, tokens, training=True, rng=rng)[0]


def test_variation_and_its_slope_by_hand():
    """1, 2, 3: mean 2, variance (1 + 0 + 1) / 3, so 1/6.  7 of 0, 0, 7, 0: mean 7/4, variance 3 * 49/16, so 3.

    CV^2 = E sum x^2 / (sum x)^2 - 1, so its slope at 1, 2, 3 is 2 E x / 36 - 2 E 14 / 216 = x / 6 - 7 / 18.
    """
    np.testing.assert_allclose([cv2([1, 2, 3]), cv2([0, 0, 7, 0])], [1 / 6, 3])
    np.testing.assert_allclose(slope([1, 2, 3], 18.0), [-4, -1, 2])


def test_the_variance_is_that_of_a_population_and_only_ratios_count():
    x_E = np.random.default_rng(0).random(7)
    np.testing.assert_allclose(cv2(x_E), x_E.var(ddof=0) / x_E.mean() ** 2, rtol=1e-12)
    np.testing.assert_allclose(7 / 6 * cv2(x_E), x_E.var(ddof=1) / x_E.mean() ** 2, rtol=1e-12)
    np.testing.assert_allclose(cv2(1e-8 * x_E), cv2(x_E), rtol=1e-12)
    np.testing.assert_allclose(slope(1e-8 * x_E), slope(x_E) * 1e8, rtol=1e-12)
    np.testing.assert_allclose(slope(x_E) @ x_E, 0, atol=1e-14)
    cases.assert_gradient(variation.variation_forward, variation.variation_backward, x_E=x_E)


@pytest.mark.parametrize("share", [2.0, 0.3, 1e-8, 0.0])
def test_even_shares_have_no_variation_and_a_finite_slope_of_0(share):
    """That of a standard deviation would not vanish: near 1 + e, 1 - e, 1 the slope of CV^2 is 2 e / 3."""
    np.testing.assert_allclose(cv2([share] * 8), 0, atol=1e-30)
    np.testing.assert_array_equal(slope([share] * 8), 0)
    np.testing.assert_allclose(slope([1 + 1e-9, 1 - 1e-9, 1]), [2e-9 / 3, -2e-9 / 3, 0], rtol=1e-6, atol=1e-16)


def test_importance_by_hand_pushes_all_gates_of_an_expert_alike():
    """Sums of gates 1.4, 0.1, 0.5: mean 2/3, mean square 2.22/3 = 0.74, so CV^2 = 0.74 * 9/4 - 1.

    Assignments (0, 0), (0, 1), (1, 0), (1, 2); slope 2 E x / (sum x)^2 - 2 E sum x^2 / (sum x)^3, E = 3, sums 2, 2.22.
    """
    loss, cache = losses.importance_forward(cases.routed([[0.9, 0.1, 0], [0.5, 0, 0.5]], 2))
    np.testing.assert_allclose(loss, 0.665)
    expected_A = [6 * x / 4 - 6 * 2.22 / 8 for x in (1.4, 0.1, 1.4, 0.5)]
    np.testing.assert_allclose(losses.importance_backward(1.0, cache), expected_A)


@pytest.mark.parametrize(("gate_TE", "importance", "load"), [
    ([[0.8, 0], [0, 0.2], [0, 0.2], [0, 0.2], [0, 0.2]], 0, 0.36),  # 1 and 4 tokens: mean 2.5, variance 1.5^2
    ([[0.8, 0.2], [0.8, 0.2]], 0.36, 0)])  # sums 1.6 and 0.4: mean 1, variance 0.6^2
def test_one_large_gate_is_as_important_as_many_small_ones_but_not_the_same_load(gate_TE, importance, load):
    r = cases.routed(gate_TE, np.count_nonzero(gate_TE[0]))
    np.testing.assert_allclose([losses.importance_forward(r)[0], cv2(r.load_E)], [importance, load], atol=1e-30)


def test_importance_equals_a_loop_over_assignments_and_its_gradient_is_right():
    r, sum_E = noisy(), np.zeros(5)
    for e, gate in zip(r.expert_A, r.gate_A, strict=True):
        sum_E[e] += gate
    np.testing.assert_allclose(losses.importance_forward(r)[0], np.var(sum_E) / np.mean(sum_E) ** 2, rtol=1e-12)
    cases.assert_gradient(lambda gate_A: losses.importance_forward(replace(r, gate_A=gate_A)),
                          losses.importance_backward, gate_A=r.gate_A)


def test_load_and_its_gradient_by_hand_without_padding():
    """Expected loads 1.5, 0.5: mean 1, variance 0.25; slope 2 E x / (sum x)^2 - 2 E sum x^2 / (sum x)^3 = x - 1.25."""
    loss, cache = losses.load_forward(chances([[0.5, 0.25], [1, 0.25], [0.3, 0.7]], [True, True, False]))
    np.testing.assert_allclose(loss, 0.25)
    np.testing.assert_allclose(losses.load_backward(2.0, cache), [[0.5, -1.5], [0.5, -1.5], [0, 0]])


def test_load_is_even_when_all_experts_are_chosen_and_its_gradient_is_right():
    loss, cache = losses.load_forward(noisy(top_k=5))
    assert loss == 0 and not losses.load_backward(1.0, cache).any()
    r = noisy()
    cases.assert_gradient(lambda chance_TE: losses.load_forward(replace(r, chance_TE=chance_TE)), losses.load_backward,
                          chance_TE=r.chance_TE)


def test_a_router_without_noise_has_no_expected_load():
    with pytest.raises(ValueError, match="the load loss needs chance_TE, which router 'noisy_topk' has"):
        losses.load_forward(cases.routed([[1, 0]]))
