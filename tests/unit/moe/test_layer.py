"""The MoE layer: five steps by hand, against loops, at its limits; dropped tokens, padding, and every gradient."""

import math
from dataclasses import replace

import numpy as np
import pytest

from minimoe import gradcheck, parameters
from minimoe.config import ModelConfig
from minimoe.moe import capacity, dense, layer, losses
from minimoe.moe.routing import Tokens
from minimoe.nn import ops
from tests import cases

CONFIG = ModelConfig(d_model=6, n_heads=1, d_hidden=7, n_experts=4, top_k=2)
TIGHT = replace(CONFIG, capacity_factor=0.6)
ROUTER = "w_router_DE"


def random_layer(config):
    """x_TD, weights, dy_TD of 11 tokens."""
    x_TD, dy_TD = np.random.default_rng(1).normal(size=(2, 11, config.d_model))
    return x_TD, cases.random_weights(layer.weights(config, 1.0, 1.0)), dy_TD


def forward(x_TD, weights, config, mask_T=None, **options):
    """y_TD, Routing, cache."""
    tokens = Tokens.anonymous(np.ones(len(x_TD), bool) if mask_T is None else mask_T)
    (y_TD, r), cache = layer.moe_forward(x_TD, weights, config, tokens, **options)
    return y_TD, r, cache


def train(x_TD, weights, config, mask_T=None):
    return forward(x_TD, weights, config, mask_T, training=True, rng=np.random.default_rng(0))


def backward(dy_TD, r, cache, push=0.0):
    """Gradients by name: of the task, and of so much of the balance loss and the z-loss."""
    grad = losses.auxiliary_backward(dict(balance=push, z=push), losses.auxiliary_forward(r, CONFIG)[1])
    dx_TD, dweights = layer.moe_backward(dy_TD, grad, cache)
    return {"x_TD": dx_TD} | dweights


def test_the_five_steps_by_hand():
    """Tokens a, a, b with a = (ln 3, 0) and b = (-ln 3, 0): probabilities (1/4, 3/4) and (3/4, 1/4), the best is taken.

    Room for ceil(0.5 * 3 / 2) = 1: the second a is dropped.  silu(ln 3) = 3/4 ln 3 and silu(-ln 3) = -1/4 ln 3, so
    expert 0 = silu(x) * 2x * 5 makes 2.5 (ln 3)^2 of b, and expert 1 = silu(x) * 4x * -1 makes -3 (ln 3)^2 of a.
    """
    config = ModelConfig(d_model=2, n_heads=1, d_hidden=1, n_experts=2, top_k=1, capacity_factor=0.5)
    weights = {ROUTER: np.array([[0.0, 1.0], [0.0, 0.0]]), "w_gate_EDF": np.array([[[1.0], [0.0]]] * 2),
               "w_up_EDF": np.array([[[2.0], [0.0]], [[4.0], [0.0]]]),
               "w_down_EFD": np.array([[[5.0, 0.0]], [[-1.0, 0.0]]])}
    x_TD = math.log(3) * np.array([[1, 0], [1, 0], [-1, 0]])
    y_TD, r, _ = train(x_TD, weights, config)
    assert (r.token_A.tolist(), r.expert_A.tolist(), r.rank_A.tolist()) == ([0, 1, 2], [1, 1, 0], [0, 0, 0])  # route
    np.testing.assert_allclose(r.gate_A, [3 / 4] * 3)
    assert (r.capacity, r.slot_A.tolist(), r.kept_A.tolist()) == (1, [0, 1, 0], [True, False, True])  # keep
    assert r.kept_N.tolist() == [2, 0]  # dispatch: expert 0 has the third assignment, expert 1 the first
    square = math.log(3) ** 2  # experts, and combine
    np.testing.assert_allclose(y_TD, [[-3 * 3 / 4 * square, 0], [0, 0], [2.5 * 3 / 4 * square, 0]])


@pytest.mark.parametrize("order", capacity.ORDERS)
def test_equals_a_loop_over_assignments_of_which_the_kept_alone_count(order):
    x_TD, weights, _ = random_layer(TIGHT)
    y_TD, r, _ = train(x_TD, weights, replace(TIGHT, drop_order=order))
    expected_TD = np.zeros_like(x_TD)
    for token, e, gate, kept in zip(r.token_A, r.expert_A, r.gate_A, r.kept_A, strict=True):
        expected_TD[token] += kept * gate * cases.expert(x_TD[token], weights, e)
    np.testing.assert_allclose(y_TD, expected_TD, rtol=1e-12, atol=1e-12)
    assert not r.kept_A.all()


def test_when_all_are_dropped_the_layer_adds_exactly_0_and_learns_from_the_auxiliary_losses_alone():
    x_TD, weights, dy_TD = random_layer(TIGHT)
    _, r, cache = train(x_TD, weights, TIGHT)
    auxiliary = backward(0 * dy_TD, r, cache, push=1.0)
    late = replace(r, slot_A=r.slot_A + 11)  # every assignment queues behind the last slot
    y_TD, r, cache = forward(x_TD, weights, TIGHT, training=True, replay=late)
    assert not r.kept_A.any() and not y_TD.any()
    cases.assert_equal(backward(dy_TD, r, cache, push=1.0), auxiliary)
    assert auxiliary[ROUTER].any() and not any(auxiliary[name].any() for name in cases.EXPERTS)


def test_one_expert_is_the_dense_block_exactly():
    x_TD, weights, dy_TD = random_layer(config := replace(CONFIG, n_experts=1, top_k=1))
    y_TD, r, cache = forward(x_TD, weights, config)
    dense_TD, dense_cache = ops.swiglu_forward(x_TD, *(weights[name][0] for name in cases.EXPERTS))
    grads = backward(dy_TD, r, cache)
    assert not grads.pop(ROUTER).any()
    expected = dict(zip(("x_TD", *cases.EXPERTS), ops.swiglu_backward(dy_TD, dense_cache), strict=True))
    np.testing.assert_array_equal(y_TD, dense_TD)
    cases.assert_equal({name: grad.reshape(expected[name].shape) for name, grad in grads.items()}, expected)


def test_all_experts_with_raw_gates_are_the_softmax_mixture_and_copies_of_one_are_scaled_by_the_sum_of_gates():
    x_TD, weights, _ = random_layer(CONFIG)
    prob_TE = np.array([cases.softmax(logit_E) for logit_E in x_TD @ weights[ROUTER]])
    mixture_TD = sum(prob_TE[:, [e]] * cases.expert(x_TD, weights, e) for e in range(4))
    y_TD, _, _ = forward(x_TD, weights, replace(CONFIG, top_k=4, renormalize=False))
    np.testing.assert_allclose(y_TD, mixture_TD, rtol=1e-12, atol=1e-12)
    alike = weights | {name: np.repeat(weights[name][:1], 4, axis=0) for name in cases.EXPERTS}
    for renormalize, sum_T in ((True, np.ones(11)), (False, np.sort(prob_TE)[:, -2:].sum(axis=1))):
        y_TD, _, _ = forward(x_TD, alike, replace(CONFIG, renormalize=renormalize))
        np.testing.assert_allclose(y_TD, sum_T[:, None] * cases.expert(x_TD, weights, 0), rtol=1e-11)


def test_experts_permuted_with_the_router_columns_change_nothing():
    def permuted(arrays, order=(2, 0, 3, 1)):
        return {name: array.take(order, 1 if name == ROUTER else 0) if name != "x_TD" else array
                for name, array in arrays.items()}

    x_TD, weights, dy_TD = random_layer(TIGHT)
    (y_TD, *kept), (new_TD, *kept_new) = (train(x_TD, w, TIGHT) for w in (weights, permuted(weights)))
    np.testing.assert_allclose(new_TD, y_TD, rtol=1e-12, atol=1e-12)
    cases.assert_close(backward(dy_TD, *kept_new, push=1.0), permuted(backward(dy_TD, *kept, push=1.0)))


def test_padding_and_later_tokens_change_nothing_and_padding_gets_nothing():
    x_TD, weights, dy_TD = random_layer(CONFIG)
    y_TD, *kept = forward(x_TD, weights, CONFIG, np.arange(11) < 8)
    short_TD, *kept_short = forward(x_TD[:8], weights, CONFIG)
    grads, expected = backward(dy_TD, *kept, push=1.0), backward(dy_TD[:8], *kept_short, push=1.0)
    assert not y_TD[8:].any() and not grads["x_TD"][8:].any()
    cases.assert_close(grads | {"x_TD": grads["x_TD"][:8], "y": y_TD[:8]}, expected | {"y": short_TD})
    np.testing.assert_allclose(forward(x_TD, weights, CONFIG)[0][:8], short_TD, rtol=1e-12, atol=1e-12)


def test_the_capacity_of_training_drops_nothing_in_evaluation_and_a_replay_keeps_every_decision():
    config = replace(TIGHT, drop_order="random")
    x_TD, weights, _ = random_layer(config)
    np.testing.assert_array_equal(forward(x_TD, weights, config)[0], forward(x_TD, weights, CONFIG)[0])
    (y_TD, first, _), (_, live, _) = train(x_TD, weights, config), train(-x_TD, weights, config)
    np.testing.assert_array_equal(forward(x_TD, weights, config, training=True, replay=first)[0], y_TD)
    replayed = forward(-x_TD, weights, config, training=True, replay=first)[1]
    for name in ("token_A", "expert_A", "rank_A", "slot_A", "kept_A"):
        np.testing.assert_array_equal(getattr(replayed, name), getattr(first, name))
    assert (live.expert_A != first.expert_A).any() and (replayed.prob_TE == live.prob_TE).all()


@pytest.mark.parametrize(("n", "width"), [(1, 7), (3, 21)])
def test_shared_experts_work_on_every_token_without_a_gate(n, width):
    """Also on tokens that every routed expert dropped; and their width is that of all of them together."""
    config = replace(CONFIG, n_shared_experts=n, capacity_factor=0.1)
    assert layer.weights(config, 0.5, 0.25) == layer.weights(CONFIG, 0.5, 0.25) | {
        "shared.w_gate_DJ": ((6, width), 0.5), "shared.w_up_DJ": ((6, width), 0.5),
        "shared.w_down_JD": ((width, 6), 0.25)}
    x_TD, weights, _ = random_layer(config)
    y_TD, r, _ = train(x_TD, weights, config)
    routed_TD, _, _ = train(x_TD, weights, replace(config, n_shared_experts=0))
    shared_TD, _ = dense.dense_forward(x_TD, parameters.scope(weights, "shared."))
    dropped_T = np.bincount(r.token_A, r.kept_A, 11) == 0
    assert dropped_T.sum() >= 11 - 4
    np.testing.assert_array_equal(y_TD[dropped_T], shared_TD[dropped_T])
    np.testing.assert_allclose(y_TD, routed_TD + shared_TD, rtol=1e-12)


SETTINGS = [
    "softmax_topk, K=2, drop by rank", "softmax_topk, K=E, raw, dropless", "softmax_topk, 2 shared experts",
    "softmax_topk, empty slots computed", "softmax_topk, slots of the busiest", "switch, K=1, drop by position",
    "switch, without jitter", "noisy_topk, K=1, drop by rank", "noisy_topk, K=E, raw, dropless", "soft, K=2", "dense",
    "gshard, K=2, drop by random", "st_moe, K=2, raw, drop by position", "sigmoid_bias, 1 group of 2",
    "sigmoid_bias, K=2, raw, drop by priority", "expert_choice, K=2, dropless", "expert_choice, K=1, drop by position",
    "sinkhorn, K=1, drop by rank", "base, K=1, drop by position", "hash, K=2, dropless", "random, K=2, drop by rank",
    "uniform, K=E, dropless"]
"""One of each router, and one of each option; `python -m minimoe gradcheck` runs them all."""


@pytest.mark.parametrize(("name", "objective"), [(name, "all together") for name in SETTINGS] + [
    ("noisy_topk, K=2, drop by priority", objective) for objective in gradcheck.OBJECTIVES])
def test_gradients(name, objective):
    report = gradcheck.check_layer(gradcheck.layer_cases()[name], objective)
    assert report.ok, report
