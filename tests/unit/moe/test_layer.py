"""The whole layer: by hand, against a loop and against GShard's dense tensors, and its gradients in every set-up."""

import math
from dataclasses import is_dataclass, replace

import numpy as np
import pytest

from minimoe import gradcheck
from minimoe.config import ModelConfig
from minimoe.moe import capacity, layer, losses
from minimoe.moe.capacity import ORDERS
from minimoe.moe.routing import RoutingGrad, Tokens, zero_gradient
from minimoe.nn import ops

CONFIG = ModelConfig(d_model=6, n_heads=1, d_hidden=7, n_experts=4, top_k=2)
TIGHT = replace(CONFIG, capacity_factor=0.6)
ROUTER, EXPERTS = "w_router_DE", ("w_gate_EDF", "w_up_EDF", "w_down_EFD")


def random_layer(config, n_tokens=11, dtype=np.float64):
    """x_TD, weights, dy_TD."""
    rng = np.random.default_rng(0)
    weights = {name: rng.normal(size=w.shape).astype(dtype) for name, w in layer.weights(config, 1.0, 1.0).items()}
    x_TD, dy_TD = (rng.normal(size=(n_tokens, config.d_model)).astype(dtype) for _ in range(2))
    return x_TD, weights, dy_TD


def forward(x_TD, weights, config, mask_T=None, **options):
    """y_TD, Routing, cache."""
    mask_T = np.ones(len(x_TD), bool) if mask_T is None else mask_T
    (y_TD, routing), cache = layer.moe_forward(x_TD, weights, config, Tokens.anonymous(mask_T), **options)
    return y_TD, routing, cache


def train(x_TD, weights, config, mask_T=None):
    return forward(x_TD, weights, config, mask_T, training=True, rng=np.random.default_rng(0))


def backward(dy_TD, routing, cache, balance=0.0, z=0.0):
    """dx_TD and dweights, of the task and so much of each auxiliary loss."""
    dprob_TE = losses.balance_backward(balance, losses.balance_forward(routing)[1])
    dlogit_TE = losses.z_backward(z, losses.z_forward(routing)[1])
    grad = zero_gradient(routing)._replace(dprob_TE=dprob_TE, dlogit_TE=dlogit_TE)
    return layer.moe_backward(dy_TD, grad, cache)


def assert_close(got, expected):
    """Two dicts of arrays that differ by rounding at most."""
    assert got.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(got[name], array, rtol=1e-12, atol=1e-12, err_msg=name)


def assert_equal(got, expected):
    """Two dicts of arrays that do not differ at all."""
    assert got.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(got[name], array, err_msg=name)


def expert(x_D, weights, e):
    """What expert e makes of one token."""
    gate_F, up_F = x_D @ weights["w_gate_EDF"][e], x_D @ weights["w_up_EDF"][e]
    return (gate_F / (1 + np.exp(-gate_F)) * up_F) @ weights["w_down_EFD"][e]


def hand_case(n_tokens):
    """Tokens (ln 3, 0): probabilities 1/4 and 3/4; silu(ln 3) = 3/4 ln 3; experts 7.5 (ln 3)^2 and -3 (ln 3)^2."""
    weights = {"w_router_DE": np.array([[0.0, 1.0], [0.0, 0.0]]), "w_gate_EDF": np.ones((2, 2, 1)),
               "w_up_EDF": np.array([[[2.0], [0.0]], [[4.0], [0.0]]]),
               "w_down_EFD": np.array([[[5.0, 0.0]], [[-1.0, 0.0]]])}
    return np.array([[math.log(3), 0.0]] * n_tokens), weights


def test_two_choices_by_hand():
    config = ModelConfig(d_model=2, n_heads=1, d_hidden=1, n_experts=2, top_k=2)
    y_TD, _, _ = forward(*hand_case(1), config)
    np.testing.assert_allclose(y_TD, [[(7.5 / 4 - 3 * 3 / 4) * math.log(3) ** 2, 0]])


def test_one_choice_without_room_for_the_second_token_by_hand():
    config = ModelConfig(d_model=2, n_heads=1, d_hidden=1, n_experts=2, top_k=1, capacity_factor=1.0)
    y_TD, routing, _ = train(*hand_case(2), config)
    assert routing.capacity == 1  # 1.0 * 2 / 2
    np.testing.assert_allclose(y_TD, [[-3 * 3 / 4 * math.log(3) ** 2, 0], [0, 0]])


@pytest.mark.parametrize("order", ORDERS)
def test_equals_a_loop_over_assignments(order):
    x_TD, weights, _ = random_layer(TIGHT)
    y_TD, r, _ = train(x_TD, weights, replace(TIGHT, drop_order=order))
    expected_TD = np.zeros_like(x_TD)
    for token, e, gate, kept in zip(r.token_A, r.expert_A, r.gate_A, r.kept_A, strict=True):
        if kept:
            expected_TD[token] += gate * expert(x_TD[token], weights, e)
    np.testing.assert_allclose(y_TD, expected_TD, rtol=1e-12, atol=1e-12)


CASES = gradcheck.layer_cases()
LIMITED = {config.router: name for name, config in CASES.items()
           if config.capacity_factor is not None and config.top_k < config.n_experts}
"""Router -> one set-up in which it drops some."""


@pytest.mark.parametrize(("case", "objective"), [(case, objective) for case in CASES
                                                 for objective in gradcheck.checks.objectives_of(CASES[case])])
def test_gradients(case, objective):
    report = gradcheck.check_layer(CASES[case], objective)
    assert report.ok, report


@pytest.mark.parametrize("case", [*LIMITED.values(), "sigmoid_bias, 1 group of 2", "dense", "soft, K=2"])
def test_gradients_number_by_number(case):
    report = gradcheck.check_layer(CASES[case], one_by_one=True)
    assert report.ok, report
    assert all(row.checked == math.prod(row.shape) for row in report.rows)


def einsum_experts(x_TD, weights, dispatch_TEC, combine_TEC, dy_TD):
    """The layer behind the router as GShard writes it: every expert computes all its slots, filled or not.

        y_td = sum_ec combine_tec expert_e(sum_s dispatch_sec x_sd)     [Lepikhin 2020, arXiv:2006.16668, algorithm 1]

    Returns y_TD and the gradients dx_TD, dweights and dgate_TE.
    """
    w_gate_EDF, w_up_EDF, w_down_EFD = (weights[name] for name in EXPERTS)
    rows_ECD = np.einsum("tec,td->ecd", dispatch_TEC, x_TD)
    gate_ECF, up_ECF = rows_ECD @ w_gate_EDF, rows_ECD @ w_up_EDF
    sigmoid_ECF = 1 / (1 + np.exp(-gate_ECF))
    h_ECF = gate_ECF * sigmoid_ECF * up_ECF
    out_ECD = h_ECF @ w_down_EFD
    y_TD = np.einsum("tec,ecd->td", combine_TEC, out_ECD)

    dgate_TE = np.einsum("td,ecd,tec->te", dy_TD, out_ECD, dispatch_TEC)
    dout_ECD = np.einsum("tec,td->ecd", combine_TEC, dy_TD)
    dh_ECF = np.einsum("ecd,efd->ecf", dout_ECD, w_down_EFD)
    dgate_ECF = dh_ECF * up_ECF * sigmoid_ECF * (1 + gate_ECF * (1 - sigmoid_ECF))
    dup_ECF = dh_ECF * gate_ECF * sigmoid_ECF
    drows_ECD = np.einsum("ecf,edf->ecd", dgate_ECF, w_gate_EDF) + np.einsum("ecf,edf->ecd", dup_ECF, w_up_EDF)
    dweights = {"w_gate_EDF": np.einsum("ecd,ecf->edf", rows_ECD, dgate_ECF),
                "w_up_EDF": np.einsum("ecd,ecf->edf", rows_ECD, dup_ECF),
                "w_down_EFD": np.einsum("ecf,ecd->efd", h_ECF, dout_ECD)}
    return y_TD, np.einsum("tec,ecd->td", dispatch_TEC, drows_ECD), dweights, dgate_TE


def dense_router_backward(x_TD, w_router_DE, chosen_TE, renormalize, dgate_TE):
    """dx_TD and dw_router_DE of gate = chosen * p, divided by its sum over a token if renormalised."""
    prob_TE = np.exp(x_TD @ w_router_DE)
    prob_TE /= prob_TE.sum(axis=1, keepdims=True)
    dprob_TE = chosen_TE * dgate_TE
    if renormalize:
        sum_T1 = (chosen_TE * prob_TE).sum(axis=1, keepdims=True)
        mean_T1 = (chosen_TE * prob_TE * dgate_TE).sum(axis=1, keepdims=True) / sum_T1
        dprob_TE = chosen_TE * (dgate_TE - mean_T1) / sum_T1
    dlogit_TE = prob_TE * (dprob_TE - (prob_TE * dprob_TE).sum(axis=1, keepdims=True))
    return dlogit_TE @ w_router_DE.T, x_TD.T @ dlogit_TE


@pytest.mark.parametrize("renormalize", [True, False])
@pytest.mark.parametrize("order", ORDERS)
def test_output_and_gradients_equal_those_of_dense_one_hot_tensors(order, renormalize):
    x_TD, weights, dy_TD = random_layer(TIGHT)
    y_TD, r, cache = train(x_TD, weights, replace(TIGHT, drop_order=order, renormalize=renormalize))
    dx_TD, dweights = backward(dy_TD, r, cache)
    chosen_TE = np.zeros((11, 4))
    chosen_TE[r.token_A, r.expert_A] = 1
    y_dense_TD, dx_dense_TD, dexperts, dgate_TE = einsum_experts(x_TD, weights, *r.one_hot(), dy_TD)
    dx_router_TD, dw_router_DE = dense_router_backward(x_TD, weights[ROUTER], chosen_TE, renormalize, dgate_TE)
    assert not r.kept_A.all()
    assert_close({"y_TD": y_TD, "dx_TD": dx_TD} | dweights,
                 {"y_TD": y_dense_TD, "dx_TD": dx_dense_TD + dx_router_TD, ROUTER: dw_router_DE} | dexperts)


def test_every_expert_with_raw_gates_is_the_softmax_mixture():
    config = replace(CONFIG, top_k=4, renormalize=False)
    x_TD, weights, _ = random_layer(config)
    y_TD, _, _ = forward(x_TD, weights, config)
    prob_TE = np.exp(x_TD @ weights[ROUTER])
    prob_TE /= prob_TE.sum(axis=1, keepdims=True)
    mixture_TD = [sum(prob_TE[t, e] * expert(x_TD[t], weights, e) for e in range(4)) for t in range(11)]
    np.testing.assert_allclose(y_TD, mixture_TD, rtol=1e-12, atol=1e-12)


def test_one_expert_is_the_dense_block_exactly():
    config = replace(CONFIG, n_experts=1, top_k=1)
    x_TD, weights, dy_TD = random_layer(config)
    y_TD, routing, cache = forward(x_TD, weights, config)
    dense_TD, dense_cache = ops.swiglu_forward(x_TD, *(weights[name][0] for name in EXPERTS))
    np.testing.assert_array_equal(y_TD, dense_TD)
    dx_TD, dweights = backward(dy_TD, routing, cache)
    assert not dweights.pop(ROUTER).any()
    dense = ops.swiglu_backward(dy_TD, dense_cache)
    assert_equal({"x_TD": dx_TD} | {name: array[0] for name, array in dweights.items()},
                 dict(zip(("x_TD", *EXPERTS), dense, strict=True)))


def test_experts_permuted_with_the_router_columns_change_nothing():
    order_E = [2, 0, 3, 1]
    x_TD, weights, dy_TD = random_layer(TIGHT)
    permuted = {name: array[:, order_E] if name == ROUTER else array[order_E] for name, array in weights.items()}
    y_TD, routing, cache = train(x_TD, weights, TIGHT)
    y_new_TD, routing_new, cache_new = train(x_TD, permuted, TIGHT)
    dx_TD, dweights = backward(dy_TD, routing, cache, balance=1.0, z=1.0)
    dx_new_TD, dweights_new = backward(dy_TD, routing_new, cache_new, balance=1.0, z=1.0)
    expected = {name: array[:, order_E] if name == ROUTER else array[order_E] for name, array in dweights.items()}
    assert_close({"y_TD": y_new_TD, "dx_TD": dx_new_TD} | dweights_new, {"y_TD": y_TD, "dx_TD": dx_TD} | expected)


def test_permuted_tokens_are_permuted_outputs_when_none_is_dropped():
    x_TD, weights, _ = random_layer(CONFIG)
    order_T = np.random.default_rng(1).permutation(11)
    y_TD, y_permuted_TD = forward(x_TD, weights, CONFIG)[0], forward(x_TD[order_T], weights, CONFIG)[0]
    np.testing.assert_allclose(y_permuted_TD, y_TD[order_T], rtol=1e-12, atol=1e-12)


def test_later_tokens_change_nothing_when_none_is_dropped():
    x_TD, weights, _ = random_layer(CONFIG)
    y_TD, y_first_TD = forward(x_TD, weights, CONFIG)[0], forward(x_TD[:5], weights, CONFIG)[0]
    np.testing.assert_allclose(y_first_TD, y_TD[:5], rtol=1e-12, atol=1e-12)


def test_an_idle_expert_has_a_gradient_of_zeros():
    x_TD, weights, dy_TD = random_layer(CONFIG)
    x_TD = np.abs(x_TD)
    weights[ROUTER][:, 3] = -100  # with positive tokens, far below the others
    _, routing, cache = forward(x_TD, weights, CONFIG)
    _, dweights = backward(dy_TD, routing, cache)
    assert routing.count_E[3] == 0
    for name in EXPERTS:
        np.testing.assert_array_equal(dweights[name][3], np.zeros_like(weights[name][3]))


def test_the_task_teaches_a_router_that_makes_one_choice():
    config = replace(CONFIG, top_k=1)
    x_TD, weights, dy_TD = random_layer(config)
    _, routing, cache = forward(x_TD, weights, config)
    assert np.abs(backward(dy_TD, routing, cache)[1][ROUTER]).min() > 1e-3


@pytest.mark.parametrize("loss", ["balance", "z"])
def test_each_auxiliary_loss_alone_teaches_the_router_and_no_expert(loss):
    x_TD, weights, dy_TD = random_layer(CONFIG)
    _, routing, cache = forward(x_TD, weights, CONFIG)
    dx_TD, dweights = backward(np.zeros_like(dy_TD), routing, cache, **{loss: 1.0})
    assert np.linalg.norm(dweights[ROUTER]) > 1e-3
    assert np.linalg.norm(dx_TD) > 1e-3
    assert not any(dweights[name].any() for name in EXPERTS)


def test_when_all_are_dropped_the_layer_adds_nothing_and_learns_from_the_auxiliary_losses_alone():
    x_TD, weights, dy_TD = random_layer(TIGHT)
    _, routing, cache = train(x_TD, weights, TIGHT)
    auxiliary = backward(np.zeros_like(dy_TD), routing, cache, balance=1.0, z=1.0)
    late = replace(routing, slot_A=routing.slot_A + 11)  # everybody queues behind the last slot
    y_TD, routing, cache = forward(x_TD, weights, TIGHT, training=True, replay=late)
    dx_TD, dweights = backward(dy_TD, routing, cache, balance=1.0, z=1.0)
    assert not routing.kept_A.any()
    np.testing.assert_array_equal(y_TD, np.zeros_like(x_TD))
    assert_equal({"x_TD": dx_TD} | dweights, {"x_TD": auxiliary[0]} | auxiliary[1])
    assert dweights[ROUTER].any()


def test_padding_changes_nothing_and_gets_nothing():
    x_TD, weights, dy_TD = random_layer(CONFIG)
    mask_T = np.arange(11) < 8
    y_TD, routing, cache = forward(x_TD, weights, CONFIG, mask_T)
    dx_TD, dweights = backward(dy_TD, routing, cache, balance=1.0, z=1.0)
    y_short_TD, routing, cache = forward(x_TD[:8], weights, CONFIG)
    dx_short_TD, dweights_short = backward(dy_TD[:8], routing, cache, balance=1.0, z=1.0)
    assert_close({"y_TD": y_TD[:8], "dx_TD": dx_TD[:8]} | dweights,
                 {"y_TD": y_short_TD, "dx_TD": dx_short_TD} | dweights_short)
    assert not y_TD[8:].any()
    assert not dx_TD[8:].any()


def test_a_batch_of_padding_gives_zeros():
    x_TD, weights, dy_TD = random_layer(TIGHT)
    y_TD, routing, cache = train(x_TD, weights, TIGHT, np.zeros(11, bool))
    dx_TD, dweights = backward(dy_TD, routing, cache, balance=1.0, z=1.0)
    assert len(routing.token_A) == 0
    assert_equal({"y_TD": y_TD, "dx_TD": dx_TD} | dweights,
                 {"y_TD": 0 * x_TD, "dx_TD": 0 * x_TD} | {name: 0 * array for name, array in weights.items()})


def test_training_and_evaluation_have_capacities_of_their_own():
    config = replace(CONFIG, capacity_factor=0.5, eval_capacity_factor=1.5)
    x_TD, weights, _ = random_layer(config, n_tokens=12)
    assert train(x_TD, weights, config)[1].capacity == 3  # 0.5 * 24 / 4
    assert forward(x_TD, weights, config)[1].capacity == 9  # 1.5 * 24 / 4


def test_a_training_capacity_drops_nothing_in_evaluation():
    x_TD, weights, _ = random_layer(TIGHT)
    assert not train(x_TD, weights, TIGHT)[1].kept_A.all()
    y_TD, routing, _ = forward(x_TD, weights, TIGHT)
    assert routing.kept_A.all()
    np.testing.assert_array_equal(y_TD, forward(x_TD, weights, CONFIG)[0])


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("training", [True, False])
def test_the_drop_order_is_the_configured_one_but_never_random_in_evaluation(training, order):
    config = replace(CONFIG, capacity_factor=0.5, eval_capacity_factor=0.5, drop_order=order)
    x_TD, weights, _ = random_layer(config)
    _, routing, _ = forward(x_TD, weights, config, training=training, rng=np.random.default_rng(0))
    used = "position" if order == "random" and not training else order
    expected, _ = capacity.keep_forward(routing, 2, 0.5, used, np.random.default_rng(0))
    np.testing.assert_array_equal(routing.slot_A, expected.slot_A)


def test_random_order_needs_a_generator_in_training_alone():
    config = replace(CONFIG, capacity_factor=0.5, eval_capacity_factor=0.5, drop_order="random")
    x_TD, weights, _ = random_layer(config)
    np.testing.assert_array_equal(forward(x_TD, weights, config)[0], forward(x_TD, weights, config)[0])
    with pytest.raises(ValueError, match="needs rng"):
        forward(x_TD, weights, config, training=True)


@pytest.mark.parametrize("order", ORDERS)
def test_replay_reproduces_the_same_input_exactly(order):
    config = replace(TIGHT, drop_order=order)
    x_TD, weights, _ = random_layer(config)
    y_TD, routing, _ = train(x_TD, weights, config)
    y_again_TD, again, _ = forward(x_TD, weights, config, training=True, replay=routing)
    np.testing.assert_array_equal(y_again_TD, y_TD)
    flat, flat_again = (vars(r) | vars(r.tokens) | {"tokens": 0} for r in (routing, again))
    assert_equal(flat_again, flat)


@pytest.mark.parametrize("order", ORDERS)
def test_replay_holds_choices_and_slots_at_another_input(order):
    config = replace(TIGHT, drop_order=order)
    x_TD, weights, _ = random_layer(config)
    _, first, _ = train(x_TD, weights, config)
    _, live, _ = train(-x_TD, weights, config)
    _, replayed, _ = forward(-x_TD, weights, config, training=True, replay=first)
    for name in ("token_A", "expert_A", "rank_A", "slot_A", "kept_A"):
        np.testing.assert_array_equal(getattr(replayed, name), getattr(first, name))
    assert (live.expert_A != first.expert_A).any()
    np.testing.assert_array_equal(replayed.prob_TE, live.prob_TE)
    assert (replayed.gate_A != first.gate_A).all()


@pytest.mark.parametrize("order", ORDERS)
def test_float32_stays_float32(order):
    config = replace(TIGHT, drop_order=order)
    x_TD, weights, dy_TD = random_layer(config, dtype=np.float32)
    y_TD, r, cache = train(x_TD, weights, config)
    dx_TD, dweights = backward(dy_TD, r, cache, balance=0.5, z=0.5)
    arrays = y_TD, r.gate_A, r.logit_TE, r.prob_TE, dx_TD, *dweights.values()
    assert {array.dtype for array in arrays} == {np.dtype(np.float32)}


@pytest.mark.parametrize("order", ORDERS)
def test_nothing_passed_in_is_changed_and_backward_can_be_called_twice(order):
    config = replace(TIGHT, drop_order=order)
    x_TD, weights, dy_TD = random_layer(config)
    mask_T = np.arange(11) != 4
    _, replay, _ = train(x_TD, weights, config, mask_T)
    grad = RoutingGrad(*(np.random.default_rng(seed).normal(size=shape)
                                 for seed, shape in enumerate([20, (11, 4), (11, 4), (11, 4)])))
    inputs = x_TD, mask_T, dy_TD, *grad, *weights.values(), *arrays_in(replay)
    for array in inputs:
        array.flags.writeable = False
    for options in (dict(rng=np.random.default_rng(0)), dict(replay=replay)):
        _, _, cache = forward(x_TD, weights, config, mask_T, training=True, **options)
        (dx_TD, dweights), (dx_again_TD, dweights_again) = (
            layer.moe_backward(dy_TD, grad, cache) for _ in range(2))
        assert_equal({"x_TD": dx_again_TD} | dweights_again, {"x_TD": dx_TD} | dweights)


def arrays_in(tree):
    """Every array that a cache keeps alive, in records computed ones too, and the one behind each view."""
    if isinstance(tree, np.ndarray):
        yield tree
        yield from arrays_in(tree.base)
    elif isinstance(tree, (tuple, list)):
        for part in tree:
            yield from arrays_in(part)
    elif isinstance(tree, dict):
        yield from arrays_in(list(tree.values()))
    elif is_dataclass(tree):
        yield from arrays_in(vars(tree))


@pytest.mark.parametrize("factor", [None, 1.0])
def test_nothing_of_tokens_times_experts_times_slots_is_kept(factor):
    T, D, E, F = 600, 8, 12, 10
    config = ModelConfig(d_model=D, n_heads=1, d_hidden=F, n_experts=E, top_k=2, capacity_factor=factor)
    x_TD, weights, dy_TD = random_layer(config, n_tokens=T)
    _, routing, cache = train(x_TD, weights, config)
    backward(dy_TD, routing, cache)
    arrays = list(arrays_in(cache))
    rows = routing.kept_A.sum()
    assert {id(x_TD), *map(id, (routing.row_TK, routing.kept_N, routing.prob_TE))} <= set(map(id, arrays))
    assert max(array.size for array in arrays) <= max(rows * F, T * D * 2, E * D * F)


def test_shared_experts_work_on_every_token_without_a_gate():
    config = replace(TIGHT, n_shared_experts=2)
    x_TD, weights, _ = random_layer(config)
    y_TD, routing, _ = train(x_TD, weights, config)
    routed_TD, alone, _ = train(x_TD, weights, TIGHT)
    gate_TJ, up_TJ = x_TD @ weights["shared.w_gate_DJ"], x_TD @ weights["shared.w_up_DJ"]
    shared_TD = (gate_TJ / (1 + np.exp(-gate_TJ)) * up_TJ) @ weights["shared.w_down_JD"]
    np.testing.assert_allclose(y_TD, routed_TD + shared_TD, rtol=1e-12, atol=1e-12)
    assert routing.expert_A.tolist() == alone.expert_A.tolist()


def test_the_layer_owns_shared_experts_as_wide_as_all_of_them_together():
    shared = layer.weights(replace(CONFIG, n_shared_experts=3), 0.25, 0.125)
    assert {name: weight for name, weight in shared.items() if name not in layer.weights(CONFIG, 0.25, 0.125)} == {
        "shared.w_gate_DJ": ((6, 21), 0.25), "shared.w_up_DJ": ((6, 21), 0.25), "shared.w_down_JD": ((21, 6), 0.125)}


def test_the_layer_owns_a_router_and_experts():
    std = {name: weight.std for name, weight in layer.weights(CONFIG, 0.25, 0.125).items()}
    assert std == {"w_router_DE": 0.25, "w_gate_EDF": 0.25, "w_up_EDF": 0.25, "w_down_EFD": 0.125}
