"""DeepSeek-V3's router: sigmoid scores, a bias that only chooses, groups, and the balance that the bias finds."""

import math

import numpy as np
import pytest

from minimoe.config import ModelConfig
from minimoe.moe import routing
from minimoe.moe.routers import sigmoid_bias
from minimoe.moe.routing import Tokens
from tests import cases

HAND_TE = np.array([[math.log(3), 0.0, -math.log(3)]])
"""Sigmoids 3/4, 1/2, 1/4."""
LOGIT_TE = np.random.default_rng(0).normal(size=(40, 8))
GROUPED_TE = np.array([[0.9, 0.1, 0.5, 0.6, 0.4, 0.65, 0.3, 0.2]])
"""Scores of four groups of two."""


def routed(logit_TE, bias_E, **options):
    """A Routing."""
    return cases.route("sigmoid_bias", logit_TE, weights={"bias_E": np.array(bias_E, float)}, **options)[0]


def sigmoid(z):
    return 1 / (1 + math.exp(-z))


@pytest.mark.parametrize(("bias_E", "top_k", "experts", "gate_A"), [
    ([0, 0, 0], 2, [0, 1], [3 / 5, 2 / 5]),  # 3/4 and 1/2 of 5/4
    ([0, 0, 0], 1, [0], [3 / 4]),  # one raw gate is the score
    ([0, 0, 0.6], 2, [2, 0], [1 / 4, 3 / 4]),  # score + bias = 0.75, 0.5, 0.85; the score alone weighs: 1/4 of 1
    ([0, 0.3, 0], 1, [1], [1 / 2]),  # the score 1/2 comes to 0.8; on the logit 0.3 would not lift 0 over ln 3 = 1.1
])
def test_choices_and_gates_by_hand(bias_E, top_k, experts, gate_A):
    r = routed(HAND_TE, bias_E, top_k=top_k)
    assert cases.choices(r) == [experts]
    np.testing.assert_allclose(r.gate_A, gate_A, rtol=1e-15)
    np.testing.assert_allclose(r.prob_TE, [[1 / 2, 1 / 3, 1 / 6]], rtol=1e-15)  # shares of all scores, for the losses


@pytest.mark.parametrize("options", [dict(top_k=2), dict(top_k=3, renormalize=False), dict(top_k=1)])
def test_equals_a_loop_over_tokens(options):
    bias_E = np.random.default_rng(1).normal(size=8)
    r = routed(LOGIT_TE, bias_E, gate_scale=1.5, **options)
    expected = []
    for t, logit_E in enumerate(LOGIT_TE):
        score_E = [sigmoid(z) for z in logit_E]
        chosen = sorted(range(8), key=lambda e, score_E=score_E: -score_E[e] - bias_E[e])[:options["top_k"]]
        total = sum(score_E[e] for e in chosen) if options == dict(top_k=2) else 1
        expected += [(t, e, k, 1.5 * score_E[e] / total) for k, e in enumerate(chosen)]
    np.testing.assert_allclose(np.transpose([r.token_A, r.expert_A, r.rank_A, r.gate_A]), expected, rtol=1e-12)


def test_no_gradient_moves_the_bias():
    r, cache = cases.route("sigmoid_bias", LOGIT_TE, weights={"bias_E": np.arange(8.0)})
    pull = routing.RoutingGrad(np.ones_like(r.gate_A), *(np.ones_like(LOGIT_TE) for _ in range(3)))
    _, dweights = sigmoid_bias.backward(pull, cache)
    np.testing.assert_array_equal(dweights["bias_E"], np.zeros(8))
    assert dweights["w_router_DE"].any()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("level", [-1e4, -500, -75, -20, 0])
def test_gates_of_scores_two_apart_do_not_depend_on_their_level(level, dtype):
    """sigmoid(-75) = 3e-33, and sigmoid(-500) is 0 in float32.  Far down the ratio is e^2: 0.8808 and 0.1192."""
    logit_TE = np.array([[level - 9, level - 2, level - 9, level]], dtype)
    with np.errstate(all="raise", under="ignore"):
        r, cache = cases.route("sigmoid_bias", logit_TE, weights={"bias_E": np.zeros(4, dtype)})
        pull = routing.RoutingGrad(np.array([1, 0], dtype), *(np.zeros((1, 4), dtype) for _ in range(3)))
        _, dweights = sigmoid_bias.backward(pull, cache)
    ratio = math.exp(2) * (1 + math.exp(level - 2)) / (1 + math.exp(level))
    slope = ratio / (1 + ratio) ** 2  # of g by log s; and that of log s by its score is 1 - s
    assert cases.choices(r) == [[3, 1]] and r.gate_A.dtype == dweights["w_router_DE"].dtype == dtype
    tolerance = 1e-13 if dtype == np.float64 else 1e-6
    np.testing.assert_allclose(r.gate_A, [ratio / (1 + ratio), 1 / (1 + ratio)], rtol=tolerance)
    np.testing.assert_allclose(dweights["w_router_DE"][0], [
        0, -slope * sigmoid(2 - level), 0, slope * sigmoid(-level)], rtol=tolerance)
    np.testing.assert_allclose(r.prob_TE[0, 3] / r.prob_TE[0, 1], ratio, rtol=tolerance)


@pytest.mark.parametrize(("level", "renormalize"), [
    (-800, True), (-75, True), (-1, True), (0, True), (20, True), (-75, False), (-1, False), (0, False), (20, False)])
def test_gradients_of_scores_at_any_level_are_those_of_the_complex_step(level, renormalize):
    """Raw gates have slopes as small as sigmoid(-|level|), which the objective makes up for."""
    config = ModelConfig(d_model=6, n_heads=1, n_experts=5, router="sigmoid_bias", gate_scale=2.5,
                         renormalize=renormalize)
    rng, tokens = np.random.default_rng(0), Tokens.anonymous(np.ones(7, bool))
    x_TD, bias_E = np.hstack([np.ones((7, 1)), rng.normal(size=(7, 5))]), 0.1 * rng.normal(size=5)
    w_DE = np.vstack([np.full(5, float(level)), rng.normal(size=(5, 5))])
    random_A, random_TE = rng.normal(size=14) * (1 if renormalize else math.exp(abs(level))), rng.normal(size=(7, 5))

    def forward(x_TD, w_DE):
        r, cache = sigmoid_bias.forward(x_TD, {"w_router_DE": w_DE, "bias_E": bias_E}, config, tokens)
        return (random_A * r.gate_A).sum() + (random_TE * r.prob_TE).sum(), cache

    def backward(dy, cache):
        grad = routing.RoutingGrad(dy * random_A, dy * random_TE, *(np.zeros((7, 5)) for _ in range(2)))
        dx_TD, dweights = sigmoid_bias.backward(grad, cache)
        return dx_TD, dweights["w_router_DE"]

    cases.assert_gradient(forward, backward, x_TD=x_TD, w_DE=w_DE)


def test_of_scores_too_small_for_their_biases_the_better_is_chosen():
    """With a bias of 0.5 the scores e^-75, e^-80 and e^-90 leave no trace in the sum."""
    logit_TE, bias_E = np.array([[-90.0, -80, -75, -85]]), [0.5, 0.5, 0.5, 0.6]
    assert cases.choices(routed(logit_TE, bias_E, top_k=3)) == [[3, 2, 1]]
    grouped = dict(top_k=2, n_groups=2, top_groups=1)
    assert cases.choices(routed(logit_TE - 700, [0.5] * 4, **grouped)) == [[2, 3]]
    assert cases.choices(routed(logit_TE, [0.5, 0.6, 0.5, 0.5], **grouped)) == [[1, 0]]


@pytest.mark.parametrize(("dtype", "level"), [(np.float64, 40), (np.float64, 36), (np.float32, 17), (np.float32, 16)])
def test_of_scores_that_round_to_the_same_number_next_to_1_the_better_is_chosen(dtype, level):
    """1 - sigmoid(40) is 4e-18, of 36 2e-16: numbers are 1e-16 apart there.  In float32, 1e-7 of 16, and 6e-8 apart."""
    logit_TE = (level + np.linspace(0, 0.7, 8)[None]).astype(dtype)
    for room, chosen in (({}, [7, 6]), (dict(n_groups=2, top_groups=1), [7, 6])):
        r = cases.route("sigmoid_bias", logit_TE, weights={"bias_E": np.zeros(8, dtype)}, top_k=2, **room)[0]
        assert cases.choices(r) == [chosen]


@pytest.mark.parametrize(("top_k", "top_groups", "bias_E", "top2", "paper"), [
    (4, 2, [0] * 8, [5, 3, 2, 4], [5, 3, 2, 4]),  # sums of two: 1.0, 1.1, 1.05, 0.5; so the best of all, 0.9, is out
    (2, 2, [0] * 8, [5, 3], [0, 5]),  # of one, as in the paper: 0.9, 0.6, 0.65, 0.3
    (1, 2, [0] * 8, [5], [0]),  # never less than one
    (2, 1, [0, 0, 0, 0, 0, 0, 5, 5], [6, 7], [6, 7]),  # groups are chosen with the bias
    (4, 4, [0] * 8, [0, 5, 3, 2], [0, 5, 3, 2])])  # all groups are no limit
def test_groups_by_hand(top_k, top_groups, bias_E, top2, paper):
    for group_score, expected in (("top2", top2), ("paper", paper)):
        r = routed(np.log(GROUPED_TE / (1 - GROUPED_TE)), bias_E, top_k=top_k, n_groups=4, top_groups=top_groups,
                   **dict(group_score=group_score) if group_score == "paper" else {})
        assert cases.choices(r) == [expected]
        total = GROUPED_TE[0, expected].sum() if top_k > 1 else 1
        np.testing.assert_allclose(r.gate_A * total, GROUPED_TE[0, expected])


@pytest.mark.parametrize("bias", [0, -5])
@pytest.mark.parametrize(("top_k", "group_score", "n_best"), [
    (4, "top2", 2), (4, "paper", 2), (2, "top2", 2), (2, "paper", 1), (6, "top2", 2), (6, "paper", 3)])
def test_groups_equal_a_loop(bias, top_k, group_score, n_best):
    """Of four groups of three.  With a bias of -5 every sum is negative; an expert outside must not count as 0."""
    logit_TE = np.random.default_rng(0).normal(size=(40, 12))
    bias_E = bias + 0.2 * np.random.default_rng(1).normal(size=12)
    r = routed(logit_TE, bias_E, top_k=top_k, n_groups=4, top_groups=2, group_score=group_score)
    for t, logit_E in enumerate(logit_TE):
        biased_E = [sigmoid(z) + b for z, b in zip(logit_E, bias_E, strict=True)]
        groups = [sorted(range(3 * g, 3 * g + 3), key=lambda e, biased_E=biased_E: -biased_E[e]) for g in range(4)]
        groups.sort(key=lambda group, biased_E=biased_E: -sum(biased_E[e] for e in group[:n_best]))
        experts = sorted(groups[0] + groups[1], key=lambda e, biased_E=biased_E: -biased_E[e])
        assert cases.choices(r)[t] == experts[:top_k]


def test_after_a_step_overloaded_experts_go_down_and_underloaded_up_by_hand():
    """Counts 5, 1, 3, 3 with a mean of 3; nothing but the bias changes, and it keeps its type."""
    config = cases.one_hot_config("sigmoid_bias", np.zeros((2, 4)), bias_rate=0.125)
    assert sigmoid_bias.weights(config, 0.5) == {"w_router_DE": ((2, 4), 0.5), "bias_E": ((4,), 0)}
    before_E = np.array([1, 1, -1, 0], np.float32)
    weights = {"bias_E": before_E, "w_router_DE": np.ones((2, 4))}
    after = sigmoid_bias.after_step(weights, np.array([5, 1, 3, 3]), config)
    assert after.keys() == {"bias_E"} and after["bias_E"].dtype == np.float32
    assert after["bias_E"].tolist() == [0.875, 1.125, -1.0, 0.0]
    assert before_E.tolist() == [1, 1, -1, 0]


def test_on_a_stream_of_tokens_the_bias_alone_balances_a_lopsided_router():
    """Tokens have a mean of (1, 1, ...), and every weight of an expert leans its own way: its logit is -2, ..., 2.

    At a hundredth per step, 150 steps move a bias by up to 1.5, more than all scores.  Largest over mean load, of
    20 batches of 512 tokens, 2 of 8 experts each: with even chances each expert has 2560 and a spread of 2 %.
    """
    rng = np.random.default_rng(0)
    config = ModelConfig(d_model=8, n_heads=1, n_experts=8, router="sigmoid_bias", bias_rate=0.01)
    weights = {"w_router_DE": 0.2 * rng.normal(size=(8, 8)) + np.linspace(-2, 2, 8) / 8, "bias_E": np.zeros(8)}
    tokens, count_NE = Tokens.anonymous(np.ones(512, bool)), []
    for _ in range(170):
        r, _ = sigmoid_bias.forward(rng.normal(size=(512, 8)) + 1, weights, config, tokens, training=True)
        count_NE.append(r.count_E)
        weights |= sigmoid_bias.after_step(weights, r.count_E, config)
    first_E, last_E = count_NE[0], sum(count_NE[-20:])
    assert first_E.max() / first_E.mean() > 2
    assert last_E.max() / last_E.mean() < 1.1
