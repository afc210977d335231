"""The entropy loss: what the router's entropy lacks of log E."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minimoe import gradcheck
from minimoe.moe import gates, losses, routing
from minimoe.moe.routing import Tokens
from minimoe.nn import ops


def distributed(prob_TE, mask_T=None):
    """A Routing with these probabilities."""
    prob_TE = np.array(prob_TE)
    tokens = Tokens.anonymous(np.ones(len(prob_TE), bool) if mask_T is None else np.array(mask_T))
    token_A, expert_A, rank_A = gates.assignments_by_token(np.argsort(-prob_TE.real, axis=1)[:, :1], tokens.mask_T)
    return routing.dropless_routing(token_A, expert_A, rank_A, prob_TE[token_A, expert_A], np.zeros_like(prob_TE),
                                 prob_TE, tokens)


def entropy(prob_TE, mask_T=None):
    return losses.entropy_forward(distributed(prob_TE, mask_T))[0]


def gradient(prob_TE, mask_T=None, dloss=1.0):
    return losses.entropy_backward(dloss, losses.entropy_forward(distributed(prob_TE, mask_T))[1])


def test_entropy_by_hand():
    # H(1/2, 1/4, 1/4, 0) = 1/2 ln 2 + 2 (1/4 ln 4) = 3/2 ln 2, and log E = 2 ln 2;  H(1/2, 1/2, 0, 0) = ln 2
    np.testing.assert_allclose(entropy([[1 / 2, 1 / 4, 1 / 4, 0], [1 / 2, 1 / 2, 0, 0]]), (0.5 + 1) / 2 * np.log(2))


def test_entropy_equals_a_loop_over_the_real_tokens():
    prob_TE, mask_T = np.random.default_rng(0).dirichlet(np.ones(5), 6), [True, True, False, True, True, False]
    total = sum(np.log(5) + sum(p * np.log(p) for p in prob_TE[t]) for t in (0, 1, 3, 4))
    np.testing.assert_allclose(entropy(prob_TE, mask_T), total / 4, rtol=1e-12)


def test_entropy_gradient_by_hand():
    # (log p + 1) / T over two real tokens
    dprob_TE = gradient([[1 / 4, 3 / 4], [1 / 2, 1 / 2], [0.1, 0.9]], [True, True, False], dloss=2.0)
    np.testing.assert_allclose(dprob_TE, [np.log([1 / 4, 3 / 4]) + 1, np.log([1 / 2, 1 / 2]) + 1, [0, 0]])


@pytest.mark.parametrize("E", [1, 2, 8])
def test_a_router_that_knows_nothing_lacks_nothing(E):
    prob_TE = np.full((3, E), 1 / E)
    np.testing.assert_allclose(entropy(prob_TE), 0, atol=1e-15)
    np.testing.assert_allclose(ops.softmax_backward(gradient(prob_TE), prob_TE), 0, atol=1e-16)


def test_a_router_that_is_sure_lacks_log_e():
    np.testing.assert_allclose(entropy(np.eye(4)), np.log(4))


def test_a_probability_of_0_has_a_finite_gradient():
    np.testing.assert_array_equal(gradient(np.eye(4)), np.full((4, 4), 1 / 4))  # log 1 + 1, and 1 in place of log 0


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(-800, 800), min_size=1, max_size=9))
def test_entropy_is_between_0_and_log_e(logit_E):
    prob_TE, _ = ops.softmax_forward(np.array([logit_E]))
    assert -1e-14 < entropy(prob_TE) < np.log(len(logit_E)) + 1e-14


def test_it_is_the_divergence_from_the_uniform_distribution():
    prob_TE = np.random.default_rng(0).dirichlet(np.ones(5), 6)
    divergence = np.mean([sum(p * np.log(p / (1 / 5)) for p in prob_E) for prob_E in prob_TE])
    np.testing.assert_allclose(entropy(prob_TE), divergence, rtol=1e-12)


def test_a_step_down_the_loss_raises_the_entropy_of_every_token():
    logit_TE = np.random.default_rng(0).normal(size=(6, 5))
    before_TE, _ = ops.softmax_forward(logit_TE)
    after_TE, _ = ops.softmax_forward(logit_TE - 0.1 * ops.softmax_backward(gradient(before_TE), before_TE))
    before_T, after_T = (-(p_TE * np.log(p_TE)).sum(axis=1) for p_TE in (before_TE, after_TE))
    assert (after_T > before_T).all()


def test_gradient_of_the_probabilities():
    arrays = {"prob_TE": np.random.default_rng(0).dirichlet(np.ones(5), 6)}
    mask_T = np.arange(6) != 2
    report = gradcheck.check_pair("entropy", lambda prob_TE: losses.entropy_forward(distributed(prob_TE, mask_T)),
                                  losses.entropy_backward, arrays)
    assert report.ok, report


def test_the_choice_of_experts_does_not_matter():
    assert entropy([[0.2, 0.3, 0.5]]) == pytest.approx(entropy([[0.5, 0.2, 0.3]]), rel=1e-14)
