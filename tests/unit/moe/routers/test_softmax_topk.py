"""The softmax top-K router: choices, gates, and both gate Jacobians, of one-hot tokens whose scores are given."""

from dataclasses import replace

import numpy as np
import pytest

from minimoe.config import ModelConfig
from minimoe.moe.routers import softmax_topk
from minimoe.moe.routing import RoutingGrad, Tokens
from tests import cases

LOGIT_TE = np.random.default_rng(0).normal(size=(6, 5))
HAND_TE = np.log([[1.0, 2.0, 3.0], [4.0, 1.0, 3.0]])
"""Weights e^logit = 1, 2, 3 of 6, and 4, 1, 3 of 8."""
CONFIG = ModelConfig(d_model=4, n_heads=1, n_experts=5, top_k=3)
TOKENS = Tokens.anonymous(np.arange(7) != 3)
PULL_A = np.random.default_rng(1).normal(size=12)


def random_case():
    """x_TD and w_router_DE."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(7, 4)), rng.normal(size=(4, 5))


def pull(dgate_A, dprob_TE, dlogit_TE):
    """A RoutingGrad; the router has no noise, so chances have no gradient."""
    return RoutingGrad(dgate_A, dprob_TE, dlogit_TE, np.full_like(dprob_TE, np.nan))


def routed(logit_TE, **options):
    """The Routing of one-hot tokens, and the gradient of the scores from the gates alone as a function of dgate_A."""
    r, cache = cases.route("softmax_topk", logit_TE, **options)
    zeros_TE = np.zeros_like(logit_TE)
    return r, lambda dgate_A: softmax_topk.backward(pull(dgate_A, zeros_TE, zeros_TE), cache)[1]["w_router_DE"]


@pytest.mark.parametrize(("options", "experts", "gate_A"), [
    (dict(top_k=2, renormalize=False), [2, 1, 0, 2], [3 / 6, 2 / 6, 4 / 8, 3 / 8]),
    (dict(top_k=2), [2, 1, 0, 2], [3 / 5, 2 / 5, 4 / 7, 3 / 7]),
    (dict(top_k=1), [2, 0], [3 / 6, 4 / 8])])
def test_gates_by_hand(options, experts, gate_A):
    r, _ = routed(HAND_TE, **options)
    assert r.expert_A.tolist() == experts
    np.testing.assert_allclose(r.gate_A, gate_A)
    np.testing.assert_allclose(r.logit_TE, HAND_TE)
    np.testing.assert_allclose(r.prob_TE, [[1 / 6, 2 / 6, 3 / 6], [4 / 8, 1 / 8, 3 / 8]])


@pytest.mark.parametrize("renormalize", [True, False])
def test_equals_a_loop_over_tokens(renormalize):
    x_TD, w_router_DE = random_case()
    r, _ = softmax_topk.forward(x_TD, {"w_router_DE": w_router_DE}, replace(CONFIG, renormalize=renormalize), TOKENS)
    expected = []
    for t in (0, 1, 2, 4, 5, 6):
        weight_E = [np.exp(sum(x_TD[t, d] * w_router_DE[d, e] for d in range(4))) for e in range(5)]
        best_K = sorted(range(5), key=lambda e, weight_E=weight_E: -weight_E[e])[:3]
        total = sum(weight_E[e] for e in (best_K if renormalize else range(5)))
        expected += [(t, e, k, weight_E[e] / total) for k, e in enumerate(best_K)]
    np.testing.assert_allclose(np.transpose([r.token_A, r.expert_A, r.rank_A, r.gate_A]), expected, rtol=1e-12)


def test_renormalised_gates_are_the_softmax_of_the_chosen_scores_and_only_those_get_a_gradient():
    """dlogit of an expert that was not chosen is 0, and those of the chosen sum to 0."""
    r, dlogit_of = routed(LOGIT_TE, top_k=2)
    chosen_TK = np.sort(LOGIT_TE)[:, :-3:-1]
    np.testing.assert_allclose(r.gate_A.reshape(6, 2), [cases.softmax(row_K) for row_K in chosen_TK], rtol=1e-13)
    dlogit_TE = dlogit_of(PULL_A)
    np.testing.assert_allclose(dlogit_TE.sum(axis=1), 0, atol=1e-15)
    assert np.abs(dlogit_TE).max() > 0.1
    np.put_along_axis(dlogit_TE, r.expert_A.reshape(6, 2), 0, axis=1)
    assert np.abs(dlogit_TE).max() < 1e-16  # rounding error of 0


def test_raw_gates_give_a_gradient_to_all_scores():
    """dlogit_j of an expert that was not chosen is -p_j sum over the chosen of p_i dg_i; all sum to 0."""
    r, dlogit_of = routed(LOGIT_TE, top_k=2, renormalize=False)
    dlogit_TE, gained_T1 = dlogit_of(PULL_A), (r.gate_A * PULL_A).reshape(6, 2).sum(axis=1, keepdims=True)
    left_TE = np.ones((6, 5), bool)
    left_TE[r.token_A, r.expert_A] = False
    np.testing.assert_allclose(dlogit_TE[left_TE], (-r.prob_TE * gained_T1)[left_TE], rtol=1e-12)
    np.testing.assert_allclose(dlogit_TE.sum(axis=1), 0, atol=1e-15)


def test_the_one_gate_of_a_token_is_raw_since_p_by_p_would_teach_the_router_nothing():
    """The gradient of p is p (1 - p) for the chosen score; of a gate that is always 1 it would be 0."""
    r, dlogit_of = routed(LOGIT_TE, top_k=1)
    p_T = r.prob_TE.max(axis=1)
    np.testing.assert_allclose(r.gate_A, p_T)
    np.testing.assert_allclose(dlogit_of(np.ones(6))[r.token_A, r.expert_A], p_T * (1 - p_T), rtol=1e-12)
    with pytest.raises(ValueError, match="renormalize = True: with top_k = 1 the only gate would be p / p = 1"):
        ModelConfig(top_k=1, renormalize=True)


@pytest.mark.parametrize("options", [dict(top_k=1), dict(top_k=3), dict(top_k=3, renormalize=False), dict(top_k=5)])
def test_gradients_of_gates_probabilities_and_logits(options):
    x_TD, w_router_DE = random_case()
    config = replace(CONFIG, **options)

    def forward(x_TD, w_router_DE):
        r, cache = softmax_topk.forward(x_TD, {"w_router_DE": w_router_DE}, config, TOKENS)
        return np.concatenate([r.gate_A, r.prob_TE.ravel(), r.logit_TE.ravel()]), cache

    def backward(doutput, cache):
        dgate_A, dprob, dlogit = np.split(doutput, [6 * config.top_k, 6 * config.top_k + 35])
        dx_TD, dweights = softmax_topk.backward(pull(dgate_A, dprob.reshape(7, 5), dlogit.reshape(7, 5)), cache)
        return dx_TD, dweights["w_router_DE"]

    cases.assert_gradient(forward, backward, x_TD=x_TD, w_router_DE=w_router_DE)


def test_the_router_owns_one_matrix():
    assert softmax_topk.weights(CONFIG, 0.25) == {"w_router_DE": ((4, 5), 0.25)}
