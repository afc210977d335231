"""The softmax top-K router: choices, gates, and both gate Jacobians.

Most tests route one-hot tokens, x = identity: then the router's weights are the logits, and their gradients too.
"""

from dataclasses import replace

import numpy as np
import pytest

from minimoe import gradcheck
from minimoe.config import ModelConfig
from minimoe.moe.routers import softmax_topk
from minimoe.moe.routing import RoutingGrad, Tokens
from minimoe.nn import ops

LOGIT_TE = np.random.default_rng(0).normal(size=(6, 5))


def config_for(logit_TE, **options):
    T, E = logit_TE.shape
    return ModelConfig(d_model=T, n_heads=1, n_experts=E, **options)


def everyone(n_tokens):
    """The Tokens of so many without padding."""
    return Tokens.anonymous(np.ones(n_tokens, bool))


def pull(dgate_A, dprob_TE, dlogit_TE):
    """A RoutingGrad; the router has no noise, so nobody pulls at a chance."""
    return RoutingGrad(dgate_A, dprob_TE, dlogit_TE, np.full_like(dprob_TE, np.nan))


def route(logit_TE, **options):
    T = len(logit_TE)
    weights = {"w_router_DE": logit_TE}
    return softmax_topk.forward(np.eye(T), weights, config_for(logit_TE, **options), everyone(T))


def dlogit_of(dgate_A, cache):
    zeros_TE = np.zeros_like(LOGIT_TE)
    return softmax_topk.backward(pull(dgate_A, zeros_TE, zeros_TE), cache)[1]["w_router_DE"]


def random_case(dtype=np.float64):
    rng = np.random.default_rng(0)
    config = ModelConfig(d_model=4, n_heads=1, n_experts=5, top_k=3)
    x_TD, w_router_DE = rng.normal(size=(7, 4)).astype(dtype), rng.normal(size=(4, 5)).astype(dtype)
    return config, x_TD, w_router_DE, Tokens.anonymous(np.arange(7) != 3)


# The second token's weights: e^logit = 4, 1, 3 of 8.  The first token's: 1, 2, 3 of 6.
HAND_TE = np.log([[1, 2, 3], [4, 1, 3]])


def test_raw_gates_by_hand():
    routing, _ = route(HAND_TE, top_k=2, renormalize=False)
    assert routing.token_A.tolist() == [0, 0, 1, 1]
    assert routing.expert_A.tolist() == [2, 1, 0, 2]
    assert routing.rank_A.tolist() == [0, 1, 0, 1]
    np.testing.assert_allclose(routing.gate_A, [3 / 6, 2 / 6, 4 / 8, 3 / 8])


def test_renormalised_gates_by_hand():
    routing, _ = route(HAND_TE, top_k=2)
    np.testing.assert_allclose(routing.gate_A, [3 / 5, 2 / 5, 4 / 7, 3 / 7])


def test_one_choice_has_the_raw_probability_as_its_gate():
    routing, _ = route(HAND_TE, top_k=1)
    assert routing.expert_A.tolist() == [2, 0]
    np.testing.assert_allclose(routing.gate_A, [3 / 6, 4 / 8])


def test_the_routing_carries_the_scores_and_their_softmax():
    routing, _ = route(HAND_TE, top_k=2)
    np.testing.assert_allclose(routing.logit_TE, HAND_TE)
    np.testing.assert_allclose(routing.prob_TE, [[1 / 6, 2 / 6, 3 / 6], [4 / 8, 1 / 8, 3 / 8]])


@pytest.mark.parametrize("renormalize", [True, False])
def test_equals_a_loop_over_tokens(renormalize):
    config, x_TD, w_router_DE, real = random_case()
    routing, _ = softmax_topk.forward(
        x_TD, {"w_router_DE": w_router_DE}, replace(config, renormalize=renormalize), real)
    expected = []
    for t in np.flatnonzero(real.mask_T):
        weight_E = [np.exp(sum(x_TD[t, d] * w_router_DE[d, e] for d in range(4))) for e in range(5)]
        best_K = sorted(range(5), key=lambda e, weight_E=weight_E: -weight_E[e])[:3]
        total = sum(weight_E[e] for e in (best_K if renormalize else range(5)))
        expected += [(t, e, k, weight_E[e] / total) for k, e in enumerate(best_K)]
    columns = routing.token_A, routing.expert_A, routing.rank_A, routing.gate_A
    np.testing.assert_allclose(np.transpose(columns), expected, rtol=1e-12)


@pytest.mark.parametrize("options", [dict(top_k=1), dict(top_k=3), dict(top_k=3, renormalize=False), dict(top_k=5)])
def test_gradients_of_gates_probabilities_and_logits(options):
    config, x_TD, w_router_DE, real = random_case()
    config = replace(config, **options)

    def forward(x_TD, w_router_DE):
        routing, cache = softmax_topk.forward(x_TD, {"w_router_DE": w_router_DE}, config, real)
        return np.concatenate([routing.gate_A, routing.prob_TE.ravel(), routing.logit_TE.ravel()]), cache

    def backward(doutput, cache):
        dgate_A, dprob, dlogit = np.split(doutput, [6 * config.top_k, 6 * config.top_k + 35])
        dx_TD, dweights = softmax_topk.backward(pull(dgate_A, dprob.reshape(7, 5), dlogit.reshape(7, 5)), cache)
        return dx_TD, dweights["w_router_DE"]

    report = gradcheck.check_pair("router", forward, backward, {"x_TD": x_TD, "w_router_DE": w_router_DE})
    assert report.ok, report


@pytest.mark.parametrize("K", [2, 3, 5])
def test_renormalised_gates_of_a_token_sum_to_one(K):
    routing, _ = route(LOGIT_TE, top_k=K)
    np.testing.assert_allclose(routing.gate_A.reshape(6, K).sum(axis=1), 1)


def test_renormalised_gates_are_the_softmax_over_the_chosen_logits():
    routing, _ = route(LOGIT_TE, top_k=3)
    chosen_TK = -np.sort(-LOGIT_TE, axis=1)[:, :3]
    np.testing.assert_allclose(routing.gate_A.reshape(6, 3), ops.softmax_forward(chosen_TK)[0], rtol=1e-12)


def test_one_raw_gate_teaches_the_router():
    routing, cache = route(LOGIT_TE, top_k=1)
    assert np.all(dlogit_of(np.ones(6), cache) != 0)


def test_renormalised_gates_teach_only_the_chosen_and_only_their_differences():
    routing, cache = route(LOGIT_TE, top_k=2)
    dlogit_TE = dlogit_of(np.random.default_rng(1).normal(size=12), cache)
    chosen_TE = routing.one_hot()[0].any(axis=2)
    np.testing.assert_allclose(dlogit_TE[~chosen_TE], 0, atol=1e-15)
    np.testing.assert_allclose(dlogit_TE.sum(axis=1), 0, atol=1e-15)
    assert np.all(np.abs(dlogit_TE[chosen_TE]) > 1e-3)


def test_raw_gates_push_the_unchosen_down():
    routing, cache = route(LOGIT_TE, top_k=2, renormalize=False)
    dgate_A = np.random.default_rng(1).normal(size=12)
    dlogit_TE = dlogit_of(dgate_A, cache)
    chosen_TE = routing.one_hot()[0].any(axis=2)
    gained_T1 = (routing.gate_A * dgate_A).reshape(6, 2).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(dlogit_TE[~chosen_TE], (-routing.prob_TE * gained_T1)[~chosen_TE], rtol=1e-12)
    np.testing.assert_allclose(dlogit_TE.sum(axis=1), 0, atol=1e-15)


@pytest.mark.parametrize("row", [[-1e30] * 5, [1e4] * 5, [0.0] * 5, [7.5] * 5])
def test_equal_scores_go_to_the_lowest_numbers(row):
    routing, _ = route(np.array([row, row]), top_k=3)
    assert routing.expert_A.tolist() == [0, 1, 2, 0, 1, 2]


def test_equal_scores_among_many_experts_go_to_the_lowest_numbers():
    logit_TE = np.random.default_rng(0).integers(0, 3, (6, 100)).astype(float)
    routing, _ = route(logit_TE, top_k=60)
    expected_TK = [sorted(range(100), key=lambda e, row_E=row_E: -row_E[e])[:60] for row_E in logit_TE]
    np.testing.assert_array_equal(routing.expert_A.reshape(6, 60), expected_TK)


def test_a_complex_step_does_not_decide_between_equal_scores():
    routing, _ = route(np.ones((2, 5)) + 1e-30j * np.arange(5), top_k=2)
    assert routing.expert_A.tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize("row, best", [
    ([-1e4, 1e4, -1e4, 1e4, -1e4], [1, 3, 0]),  # the third has probability 0, as the others left: lowest number
    ([1e4, -1e4, 0, 0, -1e30], [0, 2, 3]),
    ([-1e30, -1e30, 0, -1e30, -1e30], [2, 0, 1]),
])
def test_saturated_scores_still_choose_distinct_experts(row, best):
    routing, _ = route(np.array([row, row]), top_k=3)
    assert routing.expert_A.tolist() == best * 2


def test_negative_scores_are_ranked_like_others():
    routing, _ = route(np.array([[-5.0, -1.0, -3.0, -2.0], [-800.0, -900.0, -850.0, -999.0]]), top_k=2)
    assert routing.expert_A.tolist() == [1, 3, 0, 2]


def test_experts_of_a_token_are_distinct_in_any_batch():
    routing, _ = route(np.random.default_rng(0).integers(-1, 2, (200, 5)).astype(float), top_k=4)
    assert all(len(set(experts)) == 4 for experts in routing.expert_A.reshape(200, 4).tolist())


def test_padding_has_no_assignments():
    config, x_TD, w_router_DE, real = random_case()
    routing, _ = softmax_topk.forward(x_TD, {"w_router_DE": w_router_DE}, config, real)
    assert routing.token_A.tolist() == np.repeat([0, 1, 2, 4, 5, 6], 3).tolist()
    assert routing.tokens is real


def test_the_router_is_causal_since_a_token_is_routed_on_its_own():
    config, x_TD, w_router_DE, _ = random_case()
    weights = {"w_router_DE": w_router_DE}
    whole, _ = softmax_topk.forward(x_TD, weights, config, everyone(7))
    part, _ = softmax_topk.forward(x_TD[:4], weights, config, everyone(4))
    assert softmax_topk.FACTS.causal and softmax_topk.FACTS.causal_in_evaluation
    assert part.expert_A.tolist() == whole.expert_A[:12].tolist()
    np.testing.assert_allclose(part.gate_A, whole.gate_A[:12], rtol=1e-12)


def test_permuted_router_columns_permute_the_choices():
    order_E = np.array([3, 0, 4, 1, 2])  # new expert i is old expert order[i]
    old, _ = route(LOGIT_TE, top_k=2)
    new, _ = route(LOGIT_TE[:, order_E], top_k=2)
    assert order_E[new.expert_A].tolist() == old.expert_A.tolist()
    np.testing.assert_allclose(new.gate_A, old.gate_A, rtol=1e-12)


@pytest.mark.parametrize("renormalize", [True, False])
def test_replay_keeps_the_choices_and_computes_the_gates_anew(renormalize):
    first, _ = route(LOGIT_TE, top_k=2, renormalize=renormalize)
    config = config_for(LOGIT_TE, top_k=2, renormalize=renormalize)
    second, _ = softmax_topk.forward(np.eye(6), {"w_router_DE": -LOGIT_TE}, config, everyone(6), replay=first)
    assert second.expert_A.tolist() == first.expert_A.tolist()
    assert second.rank_A.tolist() == first.rank_A.tolist()
    weight_TK = np.exp(-LOGIT_TE)[first.token_A, first.expert_A].reshape(6, 2)
    total_T = (weight_TK if renormalize else np.exp(-LOGIT_TE)).sum(axis=1)
    np.testing.assert_allclose(second.gate_A.reshape(6, 2), weight_TK / total_T[:, None], rtol=1e-12)


def test_float32_stays_float32():
    config, x_TD, w_router_DE, real = random_case(np.float32)
    routing, cache = softmax_topk.forward(x_TD, {"w_router_DE": w_router_DE}, config, real)
    dx_TD, dweights = softmax_topk.backward(pull(routing.gate_A, routing.prob_TE, routing.logit_TE), cache)
    arrays = routing.gate_A, routing.prob_TE, routing.logit_TE, dx_TD, dweights["w_router_DE"]
    assert {array.dtype for array in arrays} == {np.dtype(np.float32)}


def test_nothing_passed_in_is_changed_and_backward_can_be_called_twice():
    config, x_TD, w_router_DE, real = random_case()
    dprob_TE, dlogit_TE = np.random.default_rng(1).normal(size=(2, 7, 5))
    dgate_A = np.random.default_rng(2).normal(size=18)
    for array in (x_TD, w_router_DE, real.mask_T, dprob_TE, dlogit_TE, dgate_A):
        array.flags.writeable = False
    _, cache = softmax_topk.forward(x_TD, {"w_router_DE": w_router_DE}, config, real)
    (dx_TD, dweights), (dx_again_TD, dweights_again) = (
        softmax_topk.backward(pull(dgate_A, dprob_TE, dlogit_TE), cache) for _ in range(2))
    np.testing.assert_array_equal(dx_again_TD, dx_TD)
    np.testing.assert_array_equal(dweights_again["w_router_DE"], dweights["w_router_DE"])


def test_the_router_owns_one_matrix():
    assert softmax_topk.weights(ModelConfig(d_model=6, n_heads=1, n_experts=5), 0.25) == {"w_router_DE": ((6, 5), 0.25)}
