"""The auxiliary losses: their value, scale and gradient."""

from dataclasses import replace

import numpy as np
import pytest

from minimoe import gradcheck
from minimoe.config import ModelConfig
from minimoe.moe import capacity, gates, losses, routing
from minimoe.moe.routers import softmax_topk
from minimoe.moe.routing import Tokens
from minimoe.nn import ops

PAIRS = {"balance": (losses.balance_forward, losses.balance_backward, "prob_TE"),
         "z": (losses.z_forward, losses.z_backward, "logit_TE")}


def routed(logit_TE, top_k=1, mask_T=None):
    """The Routing that the top-K router makes of these logits."""
    T, E = logit_TE.shape
    mask_T = np.ones(T, bool) if mask_T is None else mask_T
    best_TK = np.argsort(-logit_TE, axis=1, kind="stable")[:, :top_k]
    assignments = gates.assignments_by_token(best_TK, mask_T)
    gate_A = np.ones(len(assignments[0]), logit_TE.dtype)
    return routing.dropless_routing(*assignments, gate_A, logit_TE, ops.softmax_forward(logit_TE)[0],
                                 Tokens.anonymous(mask_T))


def random_routing(top_k=2, dtype=np.float64):
    """Ten tokens, the fourth and the last padding, and five experts that are far from balanced."""
    rng = np.random.default_rng(0)
    logit_TE = rng.normal(size=(10, 5)) + np.array([2, 1, 0, 0, -9])  # nobody wants the last expert
    return routed(logit_TE.astype(dtype), top_k, ~np.isin(np.arange(10), (3, 9)))


def balance(r):
    return losses.balance_forward(r)[0]


def z(r):
    return losses.z_forward(r)[0]


def balance_dlogit(r):
    return ops.softmax_backward(losses.balance_backward(1.0, losses.balance_forward(r)[1]), r.prob_TE)


def test_balance_by_hand():
    # choices 2, 2, 0: f = 1/3, 0, 2/3;  3 P = 1/6 + 1/8 + 4/8, 2/6 + 2/8 + 2/8, 3/6 + 5/8 + 2/8 = 19/24, 20/24, 33/24
    # 3 * (1/3 * 19/72 + 2/3 * 33/72) = 85/72
    r = routed(np.log([[1, 2, 3], [1, 2, 5], [4, 2, 2]]))
    np.testing.assert_allclose(balance(r), 85 / 72)
    np.testing.assert_allclose(losses.balance_backward(2.0, losses.balance_forward(r)[1]), [[2 / 3, 0, 4 / 3]] * 3)


def test_balance_is_below_one_when_the_unsure_are_many():
    # f = 0.6, 0.4;  P = (6 * 0.51 + 4 * 0.01) / 10, ... = 0.31, 0.69;  2 * (0.186 + 0.276) = 0.924
    np.testing.assert_allclose(balance(routed(np.log([[0.51, 0.49]] * 6 + [[0.01, 0.99]] * 4))), 0.924)


def test_balance_is_one_when_the_load_is_uniform():
    logit_TE = np.random.default_rng(0).normal(size=(4, 4))
    np.fill_diagonal(logit_TE, 3)  # token t chooses expert t, and the probabilities are what they are
    np.testing.assert_allclose(balance(routed(logit_TE)), 1)


def test_balance_is_one_when_the_mean_probability_is_uniform():
    np.testing.assert_allclose(balance(routed(np.zeros((7, 4)))), 1)  # ties: all seven go to expert 0


def test_balance_is_the_number_of_experts_when_the_router_has_collapsed():
    np.testing.assert_allclose(balance(routed(np.array([[50.0, 0, 0, 0]] * 6))), 4)


def test_balance_equals_a_loop_over_tokens():
    r = random_routing()
    f_E, p_E = np.zeros(5), np.zeros(5)
    for t in range(10):
        if r.mask_T[t]:
            f_E[np.argsort(-r.logit_TE[t])[:2]] += 1 / 16
            p_E += np.exp(r.logit_TE[t]) / np.exp(r.logit_TE[t]).sum() / 8
    np.testing.assert_allclose(balance(r), 5 * sum(f_E * p_E), rtol=1e-12)


def test_z_by_hand():
    # sums of e^logit are 8 and 2, so the loss is the mean of (ln 8)^2 and (ln 2)^2: (9 + 1) / 2 (ln 2)^2
    np.testing.assert_allclose(z(routed(np.log([[1, 2, 5], [0.5, 0.5, 1]]))), 5 * np.log(2) ** 2)


def test_z_equals_a_loop_over_tokens():
    r = random_routing()
    squares = [np.log(sum(np.exp(score) for score in r.logit_TE[t])) ** 2 for t in np.flatnonzero(r.mask_T)]
    np.testing.assert_allclose(z(r), sum(squares) / 8, rtol=1e-12)


def test_z_of_large_scores_does_not_overflow():
    np.testing.assert_allclose(z(routed(np.array([[1e4, 0.0], [-1e4, -2e4]]))), 1e8)


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("K", [1, 2, 5])
def test_gradient_of_what_the_loss_reads(name, K):
    forward, backward, of = PAIRS[name]
    r = random_routing(K)
    arrays = {of: getattr(r, of)}
    report = gradcheck.check_pair(name, lambda array: forward(replace(r, **{of: array})), backward, arrays)
    assert report.ok, report


@pytest.mark.parametrize("loss_of", [balance, z])
@pytest.mark.parametrize("K", [1, 3])
def test_gradient_of_the_router_from_one_loss_alone(loss_of, K):
    rng = np.random.default_rng(0)
    arrays = {"x_TD": rng.normal(size=(7, 4)), "w_router_DE": rng.normal(size=(4, 5))}
    config = ModelConfig(d_model=4, n_heads=1, n_experts=5, top_k=K)

    def route(arrays):
        weights = {"w_router_DE": arrays["w_router_DE"]}
        return softmax_topk.forward(arrays["x_TD"], weights, config, Tokens.anonymous(np.arange(7) != 2))

    r, cache = route(arrays)
    if loss_of is balance:
        pull = dict(dprob_TE=losses.balance_backward(1.0, losses.balance_forward(r)[1]))
    else:
        pull = dict(dlogit_TE=losses.z_backward(1.0, losses.z_forward(r)[1]))
    dx_TD, dweights = softmax_topk.backward(routing.zero_gradient(r)._replace(**pull), cache)
    report = gradcheck.compare("router", lambda a: loss_of(route(a)[0]), arrays, {"x_TD": dx_TD} | dweights)
    assert report.ok, report
    assert np.linalg.norm(dweights["w_router_DE"]) > 1e-3


@pytest.mark.parametrize("K", [1, 2])
def test_balance_gradient_by_its_formula(K):
    # dlogit_te = (E/T) p_te (f_e - sum_i f_i p_ti) with f a constant, over the 8 real tokens
    r = random_routing(K)
    expected_TE = 5 / 8 * r.prob_TE * (r.load_E - (r.prob_TE @ r.load_E)[:, None]) * r.mask_T[:, None]
    np.testing.assert_allclose(balance_dlogit(r), expected_TE, rtol=1e-12, atol=1e-17)


def test_balance_gradient_of_a_token_sums_to_zero():
    np.testing.assert_allclose(balance_dlogit(random_routing()).sum(axis=1), 0, atol=1e-16)


def test_balance_gradient_is_zero_at_uniform_load():
    r = routed(np.array([[2.0, 1.0, 0.0], [0.0, 3.0, 1.0], [-1.0, 0.0, 1.0]]))
    assert r.load_E.tolist() == [1 / 3] * 3
    np.testing.assert_allclose(balance_dlogit(r), 0, atol=1e-16)


def test_balance_gradient_moves_probability_from_the_most_to_the_least_loaded():
    dlogit_TE = balance_dlogit(random_routing(1))
    assert dlogit_TE[0, 0] > 0 > dlogit_TE[0, 4]


def test_loads_that_sum_to_k_give_k_times_the_loss():
    r = random_routing(3)
    load_E, mean_prob_E = r.count_E / r.mask_T.sum(), r.prob_TE[r.mask_T].mean(axis=0)
    np.testing.assert_allclose(5 * load_E @ mean_prob_E, 3 * balance(r), rtol=1e-12)


def test_mean_probability_is_over_all_experts_even_those_never_chosen():
    r = random_routing()
    mean_prob_E = r.weight_T @ r.prob_TE
    assert r.count_E[4] == 0
    assert mean_prob_E[4] > 0
    np.testing.assert_allclose(mean_prob_E.sum(), 1)


def test_the_balance_with_the_load_of_more_tokens_than_these_by_hand():
    # choices 2, 2, 0 as above, so 3 P = 19/24, 20/24, 33/24; with f = 1/2, 1/2, 0: (19 + 20) / 48 = 39/48
    r, load_E = routed(np.log([[1, 2, 3], [1, 2, 5], [4, 2, 2]])), np.array([1 / 2, 1 / 2, 0])
    loss, cache = losses.balance_forward(r, load_E)
    np.testing.assert_allclose(loss, 39 / 48)
    np.testing.assert_allclose(losses.balance_backward(2.0, cache), [[1, 1, 0]] * 3)  # 2 * 3 * f / T


def test_the_balance_with_its_own_load_given_is_the_balance():
    r = random_routing()
    assert losses.balance_forward(r, r.load_E)[0] == balance(r)


def test_losses_do_not_depend_on_capacity():
    r = random_routing()
    limited, _ = capacity.keep_forward(r, 2, 0.3, "position")
    assert not limited.kept_A.all()
    assert (balance(limited), z(limited)) == (balance(r), z(r))


def test_z_gradient_by_its_formula():
    # dlogit = (2/T) lse p, over the 8 real tokens
    r = random_routing()
    lse_T1 = np.log(np.exp(r.logit_TE).sum(axis=1, keepdims=True))
    expected_TE = 2 / 8 * lse_T1 * r.prob_TE * r.mask_T[:, None]
    np.testing.assert_allclose(losses.z_backward(1.0, losses.z_forward(r)[1]), expected_TE, rtol=1e-12)


def test_raising_all_scores_leaves_the_routing_and_the_balance_alone_but_not_z():
    low = random_routing()
    high = routed(low.logit_TE + 3, 2, low.mask_T)
    assert high.expert_A.tolist() == low.expert_A.tolist()
    np.testing.assert_allclose(high.prob_TE, low.prob_TE, rtol=1e-12)
    np.testing.assert_allclose(balance(high), balance(low), rtol=1e-12)
    lse_T = np.log(np.exp(low.logit_TE[low.mask_T]).sum(axis=1))
    np.testing.assert_allclose(z(high), ((lse_T + 3) ** 2).mean(), rtol=1e-12)
    assert abs(z(high) - z(low)) > 1


@pytest.mark.parametrize("name", PAIRS)
def test_padding_changes_no_loss_and_gets_no_gradient(name):
    forward, backward, _ = PAIRS[name]
    logit_TE = np.random.default_rng(0).normal(size=(6, 4))
    padding_TE = np.random.default_rng(1).normal(size=(3, 4)) + 5
    loss, cache = forward(routed(logit_TE, 2))
    padded_loss, padded_cache = forward(routed(np.concatenate([logit_TE, padding_TE]), 2, np.arange(9) < 6))
    np.testing.assert_allclose(padded_loss, loss, rtol=1e-14)
    gradient_TE = backward(1.0, padded_cache)
    np.testing.assert_allclose(gradient_TE[:6], backward(1.0, cache), rtol=1e-14)
    np.testing.assert_array_equal(gradient_TE[6:], 0)


@pytest.mark.parametrize("name", PAIRS)
def test_a_batch_of_padding_has_no_loss_and_no_gradient(name):
    forward, backward, _ = PAIRS[name]
    loss, cache = forward(routed(np.ones((3, 4)), 2, np.zeros(3, bool)))
    assert loss == 0
    np.testing.assert_array_equal(backward(1.0, cache), np.zeros((3, 4)))


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_stays_and_nothing_passed_in_is_changed(name, dtype):
    forward, backward, _ = PAIRS[name]
    r = random_routing(dtype=dtype)
    for array in (*vars(r).values(), r.mask_T):
        if isinstance(array, np.ndarray):
            array.flags.writeable = False
    loss, cache = forward(r)
    first_TE, second_TE = (backward(0.5, cache) for _ in range(2))
    assert loss.dtype == first_TE.dtype == dtype
    np.testing.assert_array_equal(first_TE, second_TE)
