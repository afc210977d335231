"""The losses of even shares: CV^2 and its slope, the importance of experts, and their expected load."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minimoe import gradcheck
from minimoe.config import ModelConfig
from minimoe.moe import capacity, losses, routing
from minimoe.moe.losses import variation
from minimoe.moe.routers import noisy_topk, softmax_topk
from minimoe.moe.routing import Tokens

NOISY = ModelConfig(d_model=4, n_heads=1, n_experts=5, top_k=2, router="noisy_topk")

each_share = pytest.mark.parametrize("share", [2.0, 0.3, 1e-8, 1e8])


def cv2(x_E):
    return variation.variation_forward(np.array(x_E, float))[0]


def slope(x_E, dloss=1.0):
    return variation.variation_backward(dloss, variation.variation_forward(np.array(x_E, float))[1])


def gated(gate_TE):
    """The Routing with these gates; a token goes where its gate is not 0."""
    gate_TE = np.array(gate_TE, float)
    token_A, expert_A = np.nonzero(gate_TE)
    rank_A = np.concatenate([np.arange(n) for n in np.count_nonzero(gate_TE, axis=1)])
    zeros_TE, tokens = np.zeros_like(gate_TE), Tokens.anonymous(np.ones(len(gate_TE), bool))
    return routing.dropless_routing(token_A, expert_A, rank_A, gate_TE[token_A, expert_A], zeros_TE, zeros_TE, tokens)


def chance(chance_TE, mask_T=None):
    """A Routing with these chances."""
    chance_TE = np.array(chance_TE, float)
    tokens = Tokens.anonymous(np.ones(len(chance_TE), bool) if mask_T is None else np.array(mask_T))
    return replace(gated(np.ones_like(chance_TE)), chance_TE=chance_TE, tokens=tokens)


def noisy(n_tokens=11, top_k=2, scale=1.0):
    """What the noisy router makes of random tokens, some of them padding."""
    rng, config = np.random.default_rng(0), replace(NOISY, top_k=top_k)
    weights = {name: scale * rng.normal(size=w.shape) for name, w in noisy_topk.weights(config, 1.0).items()}
    tokens = Tokens.anonymous(np.arange(n_tokens) % 6 != 5)
    return noisy_topk.forward(rng.normal(size=(n_tokens, 4)), weights, config, tokens, training=True, rng=rng)[0]


def importance(r):
    return losses.importance_forward(r)[0]


def load(r):
    return losses.load_forward(r)[0]


def test_variation_by_hand():
    np.testing.assert_allclose(cv2([1, 2, 3]), 1 / 6)  # mean 2, variance (1 + 0 + 1) / 3


def test_variation_gradient_by_hand():
    # CV^2 = E sum x^2 / (sum x)^2 - 1, so its slope is 2 E x / 36 - 2 E 14 / 216 = x / 6 - 7 / 18
    np.testing.assert_allclose(slope([1, 2, 3], 18.0), [-4, -1, 2])


def test_variation_equals_a_loop():
    x_E = np.random.default_rng(0).random(7)
    mean = sum(x_E) / 7
    np.testing.assert_allclose(cv2(x_E), sum((x - mean) ** 2 for x in x_E) / 7 / mean ** 2, rtol=1e-12)


@pytest.mark.parametrize("E", [2, 3, 8])
def test_the_variance_is_that_of_a_population_and_not_of_a_sample(E):
    x_E = np.random.default_rng(E).random(E)
    of_a_sample = x_E.var(ddof=1) / x_E.mean() ** 2
    np.testing.assert_allclose(of_a_sample, E / (E - 1) * cv2(x_E), rtol=1e-12)


def test_variation_is_one_less_than_the_number_of_experts_when_one_has_all():
    np.testing.assert_allclose(cv2([0, 0, 7, 0]), 3)  # mean 7/4, variance 49/4 - 49/16 = 3 * 49/16


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=9).filter(lambda x: sum(x) > 1e-6))
def test_variation_is_between_0_and_one_less_than_the_number_of_experts(x_E):
    assert 0 <= cv2(x_E) <= (len(x_E) - 1) * (1 + 1e-12)


@each_share
def test_even_shares_have_no_variation_and_no_slope(share):
    np.testing.assert_allclose(cv2([share] * 8), 0, atol=1e-30)
    np.testing.assert_array_equal(slope([share] * 8), 0)


def test_the_slope_near_even_shares_is_small_though_that_of_a_standard_deviation_is_not():
    # at 1 + e, 1 - e, 1: CV^2 = 2 e^2 / 3, slope 2 e / 3;  CV = e sqrt(2/3), whose slope does not vanish with e
    np.testing.assert_allclose(slope([1 + 1e-9, 1 - 1e-9, 1]), [2e-9 / 3, -2e-9 / 3, 0], rtol=1e-6, atol=1e-16)


def test_where_all_are_0_there_is_no_variation_and_no_slope():
    assert cv2([0, 0, 0]) == 0
    np.testing.assert_array_equal(slope([0, 0, 0]), 0)


@each_share
def test_only_ratios_count(share):
    x_E = np.array([1.0, 2.0, 5.0, 0.5])
    np.testing.assert_allclose(cv2(share * x_E), cv2(x_E), rtol=1e-12)
    np.testing.assert_allclose(slope(share * x_E), slope(x_E) / share, rtol=1e-12)


def test_the_slope_is_across_the_shares_since_only_ratios_count():
    x_E = np.random.default_rng(0).random(6)
    np.testing.assert_allclose(slope(x_E) @ x_E, 0, atol=1e-14)


def test_gradient_of_the_shares():
    arrays = {"x_E": np.random.default_rng(0).random(7)}
    report = gradcheck.check_pair("variation", variation.variation_forward, variation.variation_backward, arrays)
    assert report.ok, report


def test_importance_by_hand():
    # sums of gates 1.4, 0.1, 0.5: mean 2/3, mean square 2.22/3 = 0.74, so CV^2 = 0.74 * 9/4 - 1
    np.testing.assert_allclose(importance(gated([[0.9, 0.1, 0], [0.5, 0, 0.5]])), 0.665)


def test_importance_equals_a_loop_over_assignments():
    r, sum_E = noisy(), np.zeros(5)
    for expert, gate in zip(r.expert_A, r.gate_A, strict=True):
        sum_E[expert] += gate
    np.testing.assert_allclose(importance(r), np.var(sum_E) / np.mean(sum_E) ** 2, rtol=1e-12)


def test_one_large_gate_is_as_important_as_many_small_ones_but_not_the_same_load():
    r = gated([[0.8, 0], [0, 0.2], [0, 0.2], [0, 0.2], [0, 0.2]])
    np.testing.assert_allclose(importance(r), 0, atol=1e-30)
    np.testing.assert_allclose(cv2(r.load_E), 0.36)  # 1 and 4 tokens: mean 2.5, variance 1.5^2


def test_equal_loads_with_unequal_gates_are_not_equally_important():
    # sums 1.6 and 0.4: mean 1, variance 0.6^2
    np.testing.assert_allclose(importance(gated([[0.8, 0.2], [0.8, 0.2]])), 0.36)


def test_importance_is_that_of_the_router_and_not_of_those_that_found_room():
    r = noisy()
    limited, _ = capacity.keep_forward(r, 2, 0.3, "position")
    assert not limited.kept_A.all()
    assert importance(limited) == importance(r)


def test_padding_is_of_no_importance():
    rng, config = np.random.default_rng(0), replace(NOISY, router="softmax_topk")
    x_TD, weights = rng.normal(size=(6, 4)), {"w_router_DE": rng.normal(size=(4, 5))}
    all_real, real = Tokens.anonymous(np.ones(4, bool)), Tokens.anonymous(np.arange(6) < 4)
    expected = importance(softmax_topk.forward(x_TD[:4], weights, config, all_real)[0])
    np.testing.assert_allclose(importance(softmax_topk.forward(x_TD, weights, config, real)[0]), expected, rtol=1e-14)


def test_a_batch_without_assignments_has_no_importance_and_no_gradient():
    r = chance(np.ones((3, 4)), [False] * 3)
    empty = replace(r, token_A=r.token_A[:0], expert_A=r.expert_A[:0], rank_A=r.rank_A[:0], gate_A=r.gate_A[:0])
    loss, cache = losses.importance_forward(empty)
    assert loss == 0
    assert losses.importance_backward(1.0, cache).shape == (0,)


def test_importance_pushes_all_gates_of_an_expert_alike_and_down_where_there_is_most():
    r = gated([[0.9, 0.1, 0], [0.5, 0, 0.5]])
    dgate_A = losses.importance_backward(1.0, losses.importance_forward(r)[1])
    # assignments (0, 0), (0, 1), (1, 0), (1, 2); slope 2 E x / (sum x)^2 - 2 E sum x^2 / (sum x)^3, E = 3, sums 2, 2.22
    np.testing.assert_allclose(dgate_A, [6 * x / 4 - 6 * 2.22 / 8 for x in (1.4, 0.1, 1.4, 0.5)])
    assert dgate_A[0] > 0 > dgate_A[1]


def test_gradient_of_the_gates():
    r = noisy()
    report = gradcheck.check_pair("importance", lambda gate_A: losses.importance_forward(replace(r, gate_A=gate_A)),
                                  losses.importance_backward, {"gate_A": r.gate_A})
    assert report.ok, report


def test_load_by_hand():
    # expected loads 1.5, 0.5, 1, 1: mean 1, variance 2 * 0.25 / 4
    np.testing.assert_allclose(load(chance([[1, 0.25, 0.5, 0.25], [0.5, 0.25, 0.5, 0.75]])), 0.125)


def test_load_does_not_count_padding():
    r = chance([[0.75, 0.25], [0.25, 0.75], [1, 0]], [True, True, False])
    loss, cache = losses.load_forward(r)
    assert loss == 0  # 1 and 1
    np.testing.assert_array_equal(losses.load_backward(1.0, cache), 0)


def test_load_gradient_by_hand():
    # expected loads 1.5, 0.5: slope 2 E x / (sum x)^2 - 2 E sum x^2 / (sum x)^3 = x - 1.25; padding has none
    r = chance([[0.5, 0.25], [1, 0.25], [0.3, 0.7]], [True, True, False])
    dchance_TE = losses.load_backward(2.0, losses.load_forward(r)[1])
    np.testing.assert_allclose(dchance_TE, [[0.5, -1.5], [0.5, -1.5], [0, 0]])


def test_the_load_loss_makes_all_tokens_less_likely_to_choose_the_expert_that_most_may_choose():
    r = chance([[0.6, 0.4], [0.7, 0.3], [0.4, 0.6]])  # the third token too, though it is not among those
    dchance_TE = losses.load_backward(1.0, losses.load_forward(r)[1])
    assert (dchance_TE[:, 0] > 0).all() and (dchance_TE[:, 1] < 0).all()


def test_the_expected_loads_add_up_to_k_experts_a_token_only_roughly():
    # each chance is that of drawing one expert's noise again while the others keep theirs, so the chances of a token
    # are not those of one draw, in which exactly K are chosen; only on average over draws do they add up to K
    r = noisy(n_tokens=600, scale=0.5)
    total, expected = r.chance_TE[r.mask_T].sum(), 2 * r.mask_T.sum()
    np.testing.assert_allclose(total, expected, rtol=0.05)
    assert abs(total - expected) > 1e-3
    assert np.ptp(r.chance_TE.sum(axis=1)) > 0.5  # while every token has 2


def test_with_all_experts_chosen_the_expected_load_is_even():
    loss, cache = losses.load_forward(noisy(top_k=5))
    assert loss == 0
    np.testing.assert_array_equal(losses.load_backward(1.0, cache), 0)


def test_gradient_of_the_chances():
    r = noisy()
    report = gradcheck.check_pair("load", lambda chance_TE: losses.load_forward(replace(r, chance_TE=chance_TE)),
                                  losses.load_backward, {"chance_TE": r.chance_TE})
    assert report.ok, report


def test_a_router_without_noise_has_no_expected_load():
    with pytest.raises(ValueError, match="the load loss needs chance_TE, which router 'noisy_topk' has"):
        losses.load_forward(gated([[1, 0]]))
