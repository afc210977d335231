"""DeepSeek-V3's router: scores of their own, a bias that only chooses, groups, and the balance that the bias finds.

Most tests route one-hot tokens, x = identity: then the router's weights are its scores.
"""

import math

import numpy as np
import pytest

from minimoe.config import ModelConfig
from minimoe.moe import routing
from minimoe.moe.routers import sigmoid_bias
from minimoe.moe.routing import Tokens
from tests.one_hot import choices, config_for, route

# Sigmoids 3/4, 1/2, 1/4.
HAND_TE = np.array([[math.log(3), 0.0, -math.log(3)]])
LOGIT_TE = np.random.default_rng(0).normal(size=(40, 8))


def route_biased(logit_TE, bias_E, **options):
    """A Routing."""
    return route("sigmoid_bias", logit_TE, weights={"bias_E": np.array(bias_E, float)}, **options)[0]


def sigmoid(z):
    return 1 / (1 + math.exp(-z))


def test_gates_are_shares_of_the_chosen_scores_by_hand():
    r = route_biased(HAND_TE, [0, 0, 0])
    assert choices(r) == [[0, 1]]
    np.testing.assert_allclose(r.gate_A, [3 / 5, 2 / 5], rtol=1e-15)  # 3/4 and 1/2 of 5/4


def test_probabilities_for_the_losses_are_shares_of_all_scores_by_hand():
    np.testing.assert_allclose(route_biased(HAND_TE, [9, 0, 0]).prob_TE, [[1 / 2, 1 / 3, 1 / 6]], rtol=1e-15)


def test_the_bias_chooses_and_the_score_alone_weighs_by_hand():
    """Score + bias = 0.75, 0.5, 0.85: the third comes first, with a gate of 1/4 of 1/4 + 3/4."""
    r = route_biased(HAND_TE, [0, 0, 0.6])
    assert choices(r) == [[2, 0]]
    np.testing.assert_allclose(r.gate_A, [1 / 4, 3 / 4], rtol=1e-15)


def test_the_bias_stands_beside_the_score_and_not_beside_the_logit():
    """0.3 lifts the score 1/2 over 3/4; on the logit it would not lift 0 over ln 3 = 1.1."""
    assert choices(route_biased(HAND_TE, [0, 0.3, 0], top_k=1)) == [[1]]


def test_one_raw_gate_is_the_score():
    r = route_biased(HAND_TE, [0, 0, 0], top_k=1)
    np.testing.assert_allclose(r.gate_A, [3 / 4], rtol=1e-15)


@pytest.mark.parametrize("options", [dict(top_k=2), dict(top_k=3, renormalize=False), dict(top_k=1)])
def test_equals_a_loop_over_tokens(options):
    bias_E = np.random.default_rng(1).normal(size=8)
    r = route_biased(LOGIT_TE, bias_E, gate_scale=1.5, **options)
    expected = []
    for t, logit_E in enumerate(LOGIT_TE):
        score_E = [sigmoid(z) for z in logit_E]
        chosen = sorted(range(8), key=lambda e, score_E=score_E: -score_E[e] - bias_E[e])[:options["top_k"]]
        total = sum(score_E[e] for e in chosen) if options == dict(top_k=2) else 1
        expected += [(t, e, k, 1.5 * score_E[e] / total) for k, e in enumerate(chosen)]
    np.testing.assert_allclose(np.transpose([r.token_A, r.expert_A, r.rank_A, r.gate_A]), expected, rtol=1e-12)


def test_the_same_bias_for_all_changes_nothing():
    plain, moved = (route_biased(LOGIT_TE, np.full(8, bias)) for bias in (0.0, 0.25))
    assert choices(moved) == choices(plain)
    np.testing.assert_array_equal(moved.gate_A, plain.gate_A)


def test_a_large_bias_draws_every_token_and_leaves_the_scores():
    plain, drawn = (route_biased(LOGIT_TE, [0, 0, 0, bias, 0, 0, 0, 0]) for bias in (0, 5))
    assert (drawn.expert_A[drawn.rank_A == 0] == 3).all()
    assert plain.count_E[3] < 20
    score_TE = 1 / (1 + np.exp(-LOGIT_TE))
    score_TK = score_TE[drawn.token_A, drawn.expert_A].reshape(40, 2)
    np.testing.assert_allclose(drawn.gate_A.reshape(40, 2), score_TK / score_TK.sum(axis=1, keepdims=True), rtol=1e-13)
    np.testing.assert_array_equal(drawn.prob_TE, plain.prob_TE)


def test_the_scale_is_a_factor_on_the_gates_and_on_nothing_else():
    plain, scaled = (route_biased(LOGIT_TE, np.zeros(8), gate_scale=scale) for scale in (1.0, 2.5))
    np.testing.assert_allclose(scaled.gate_A, 2.5 * plain.gate_A, rtol=1e-15)
    np.testing.assert_array_equal(scaled.prob_TE, plain.prob_TE)


def test_no_gradient_moves_the_bias():
    r, cache = route("sigmoid_bias", LOGIT_TE, weights={"bias_E": np.arange(8.0)})
    _, dweights = sigmoid_bias.backward(
        routing.RoutingGrad(np.ones_like(r.gate_A), *(np.ones_like(LOGIT_TE) for _ in range(3))), cache)
    np.testing.assert_array_equal(dweights["bias_E"], np.zeros(8))
    assert dweights["w_router_DE"].any()


@pytest.mark.parametrize("top_k", [2, 3])
def test_a_token_that_every_expert_scores_0_has_equal_gates_and_finite_gradients(top_k):
    """sigmoid(-200) = 1e-87 is 0 in float32: shares of it would be 0 / 0.  The other token's gates stay."""
    config = ModelConfig(d_model=2, n_heads=1, n_experts=4, top_k=top_k, router="sigmoid_bias")
    logit_TE = np.array([[-200] * 4, [0, 1, 2, 3]], np.float32)
    weights = {"w_router_DE": logit_TE, "bias_E": np.zeros(4, np.float32)}
    with np.errstate(all="raise", under="ignore"):
        r, cache = sigmoid_bias.forward(np.eye(2, dtype=np.float32), weights, config, Tokens.anonymous(np.ones(2, bool)))
        uneven = routing.RoutingGrad(np.arange(2 * top_k, dtype=np.float32),
                                     *(np.arange(8, dtype=np.float32).reshape(2, 4) for _ in range(3)))
        dx_TD, dweights = sigmoid_bias.backward(uneven, cache)
    gate_TK = r.gate_A.reshape(2, top_k)
    np.testing.assert_allclose(gate_TK[0], 1 / top_k, rtol=1e-6)
    np.testing.assert_allclose(r.prob_TE[0], 1 / 4, rtol=1e-6)
    score_K = [sigmoid(z) for z in (3, 2, 1)[:top_k]]
    np.testing.assert_allclose(gate_TK[1], np.array(score_K) / sum(score_K), rtol=1e-6)
    assert r.gate_A.dtype == np.float32
    for gradient in (dx_TD, dweights["w_router_DE"]):
        assert gradient.dtype == np.float32 and np.isfinite(gradient).all()


def group_config(**options):
    return config_for("sigmoid_bias", np.zeros((2, 8)), **options)


# Groups of two.  With 4 choices in 2 groups a group counts by its two best: 1.0, 1.1, 1.05 and 0.5.
GROUPED_TE = np.array([[0.9, 0.1, 0.5, 0.6, 0.4, 0.65, 0.3, 0.2]])


def test_the_best_groups_are_those_with_the_largest_sums_by_hand():
    """So the best expert of all, 0.9, is out."""
    allowed_TE = sigmoid_bias.within_groups(GROUPED_TE, group_config(top_k=4, n_groups=4, top_groups=2))
    out = -math.inf
    assert allowed_TE.tolist() == [[out, out, 0.5, 0.6, 0.4, 0.65, out, out]]


def test_experts_are_chosen_within_the_best_groups_by_hand():
    logit_TE = np.log(GROUPED_TE / (1 - GROUPED_TE))
    r = route_biased(logit_TE, np.zeros(8), top_k=4, n_groups=4, top_groups=2)
    assert choices(r) == [[5, 3, 2, 4]]
    np.testing.assert_allclose(r.gate_A, np.array([0.65, 0.6, 0.5, 0.4]) / 2.15, rtol=1e-13)


def test_with_one_choice_a_group_the_best_expert_of_each_counts_by_hand():
    """2 choices in 2 groups: groups count 0.9, 0.6, 0.65 and 0.3, so the first and the third."""
    logit_TE = np.log(GROUPED_TE / (1 - GROUPED_TE))
    assert choices(route_biased(logit_TE, np.zeros(8), top_k=2, n_groups=4, top_groups=2)) == [[0, 5]]


def test_fewer_choices_than_groups_still_count_one_expert_a_group():
    logit_TE = np.log(GROUPED_TE / (1 - GROUPED_TE))
    assert choices(route_biased(logit_TE, np.zeros(8), top_k=1, n_groups=4, top_groups=2)) == [[0]]


def test_groups_are_chosen_with_the_bias():
    logit_TE = np.log(GROUPED_TE / (1 - GROUPED_TE))
    bias_E = [0, 0, 0, 0, 0, 0, 5, 5]
    assert choices(route_biased(logit_TE, bias_E, top_k=2, n_groups=4, top_groups=1)) == [[6, 7]]


def test_all_groups_allowed_is_no_limit():
    limited = route_biased(LOGIT_TE, np.zeros(8), top_k=4, n_groups=4, top_groups=4)
    assert choices(limited) == choices(route_biased(LOGIT_TE, np.zeros(8), top_k=4))


@pytest.mark.parametrize("bias", [0, -5])
def test_groups_equal_a_loop(bias):
    """With a bias of -5 every biased score is negative, and an expert outside of the groups must not count as 0."""
    rng = np.random.default_rng(1)
    bias_E = bias + 0.2 * rng.normal(size=8)
    r = route_biased(LOGIT_TE, bias_E, top_k=4, n_groups=4, top_groups=2)
    for t, logit_E in enumerate(LOGIT_TE):
        biased_E = [sigmoid(z) + b for z, b in zip(logit_E, bias_E, strict=True)]
        groups = [(2 * g, 2 * g + 1) for g in range(4)]
        groups.sort(key=lambda pair, biased_E=biased_E: -sum(biased_E[e] for e in pair))
        experts = sorted(groups[0] + groups[1], key=lambda e, biased_E=biased_E: -biased_E[e])
        assert choices(r)[t] == experts


@pytest.mark.parametrize(("top_k", "top_groups"), [(4, 2), (2, 1), (3, 2), (6, 3), (3, 3)])
def test_a_token_never_uses_more_groups_than_allowed(top_k, top_groups):
    r = route_biased(LOGIT_TE, np.random.default_rng(1).normal(size=8) - 1, top_k=top_k, n_groups=4,
                     top_groups=top_groups)
    used = [len({e // 2 for e in experts}) for experts in choices(r)]
    assert max(used) <= top_groups
    assert all(len(set(experts)) == top_k for experts in choices(r))


def test_after_a_step_overloaded_experts_go_down_and_underloaded_up_by_hand():
    """Counts 5, 1, 3, 3 with a mean of 3."""
    config = config_for("sigmoid_bias", np.zeros((2, 4)), bias_rate=0.125)
    before_E = np.array([1.0, 1.0, -1.0, 0.0])
    after = sigmoid_bias.after_step({"bias_E": before_E}, np.array([5, 1, 3, 3]), config)
    assert after["bias_E"].tolist() == [0.875, 1.125, -1.0, 0.0]
    assert before_E.tolist() == [1.0, 1.0, -1.0, 0.0]


def test_after_a_step_nothing_but_the_bias_changes_and_it_keeps_its_type():
    config = config_for("sigmoid_bias", np.zeros((2, 4)))
    weights = {"bias_E": np.zeros(4, np.float32), "w_router_DE": np.ones((2, 4), np.float32)}
    after = sigmoid_bias.after_step(weights, np.array([5, 1, 3, 3]), config)
    assert after.keys() == {"bias_E"} and after["bias_E"].dtype == np.float32


def test_the_bias_starts_at_zero():
    config = ModelConfig(d_model=6, n_heads=1, n_experts=5, router="sigmoid_bias")
    assert sigmoid_bias.weights(config, 0.25) == {"w_router_DE": ((6, 5), 0.25), "bias_E": ((5,), 0)}


def stream(weights, config, n_steps, rng):
    """Steps on random tokens in which nothing but the bias learns: the weights, and the Routings."""
    everyone, routings = Tokens.anonymous(np.ones(512, bool)), []
    for _ in range(n_steps):
        r, _ = sigmoid_bias.forward(rng.normal(size=(512, 8)) + 1, weights, config, everyone, training=True)
        routings.append(r)
        weights = weights | sigmoid_bias.after_step(weights, r.count_E, config)
    return weights, routings


def test_on_a_stream_of_tokens_the_bias_alone_balances_a_lopsided_router_and_leaves_the_gates():
    """Tokens have a mean of (1, 1, ...), and every weight of an expert leans its own way: its logit is -2, ..., 2.

    At a hundredth a step, 150 steps move a bias by up to 1.5, more than all scores.  Largest over mean load, of
    20 batches of 512 tokens, 2 of 8 experts each: with even chances each expert has 2560 and a spread of 2 %.
    """
    rng = np.random.default_rng(0)
    config = ModelConfig(d_model=8, n_heads=1, n_experts=8, router="sigmoid_bias", bias_rate=0.01)
    weights = {"w_router_DE": 0.2 * rng.normal(size=(8, 8)) + np.linspace(-2, 2, 8) / 8, "bias_E": np.zeros(8)}
    w_router_DE = weights["w_router_DE"].copy()
    weights, routings = stream(weights, config, 170, rng)
    first_E, last_E = (sum(r.count_E for r in part) for part in (routings[:1], routings[-20:]))
    assert first_E.max() / first_E.mean() > 2
    assert last_E.max() / last_E.mean() < 1.1
    assert np.ptp(weights["bias_E"]) > 0.2

    last = routings[-1]
    score_TK = 1 / (1 + np.exp(-last.logit_TE[last.token_A, last.expert_A].reshape(512, 2)))
    np.testing.assert_allclose(last.gate_A.reshape(512, 2), score_TK / score_TK.sum(axis=1, keepdims=True), rtol=1e-12)
    np.testing.assert_array_equal(weights["w_router_DE"], w_router_DE)
