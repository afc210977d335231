"""A MoE layer at its edges, for every router; shared and finer experts; what a step changes; what is refused."""

import re
from dataclasses import replace

import numpy as np
import pytest

from minimoe import cost, model
from minimoe.config import ModelConfig
from minimoe.moe import dense, layer, routers, routing
from minimoe.moe.routing import Tokens
from minimoe.nn import ops

CONFIG = ModelConfig(vocab_size=7, d_model=6, n_layers=1, n_heads=1, d_hidden=4, n_experts=4, top_k=2, max_sequence=8)
EXPERTS = "w_gate_EDF", "w_up_EDF", "w_down_EFD"
ROUTERS = [name for name in routers.ROUTERS if name != "soft"]
SIGMOID = "sigmoid_bias", "base"
"""Routers whose gate of a single expert is a sigmoid."""
NOT_ONE = "switch", "st_moe", "expert_choice", "base"
"""Routers whose gates do not sum to 1 for every token."""

each_router = pytest.mark.parametrize("router", ROUTERS)


def with_router(router, **fields):
    """K is 2, or what the router insists on."""
    fields = dict(top_k=routers.ROUTERS[router].FACTS.top_k or 2) | fields
    return replace(CONFIG, router=router, **fields)


def tokens_of(n_tokens):
    return Tokens.of_batch(np.arange(n_tokens)[None] % 7)


def random_layer(config, n_tokens=11):
    """x_TD, weights, dy_TD."""
    rng = np.random.default_rng(0)
    weights = {name: rng.normal(size=w.shape) for name, w in layer.weights(config, 1.0, 1.0).items()}
    x_TD, dy_TD = rng.normal(size=(2, n_tokens, config.d_model))
    return x_TD, weights, dy_TD


def forward(x_TD, weights, config, training=False):
    """y_TD, Routing, cache."""
    (y_TD, r), cache = layer.moe_forward(x_TD, weights, config, tokens_of(len(x_TD)), training=training,
                                         rng=np.random.default_rng(0))
    return y_TD, r, cache


def swiglu(x_TD, weights, e):
    """What expert e makes of all tokens."""
    return ops.swiglu_forward(x_TD, *(weights[name][e] for name in EXPERTS))[0]


def alike(weights):
    """The same weights with expert 0 in the place of every expert."""
    return weights | {name: np.repeat(weights[name][:1], len(weights[name]), axis=0) for name in EXPERTS}


@pytest.mark.parametrize("router", [name for name in ROUTERS if name not in SIGMOID])
@pytest.mark.parametrize("training", [True, False])
def test_one_expert_is_a_plain_swiglu_block(router, training):
    config = with_router(router, n_experts=1, top_k=1)
    x_TD, weights, dy_TD = random_layer(config)
    y_TD, r, cache = forward(x_TD, weights, config, training)
    expected_TD, swiglu_cache = ops.swiglu_forward(x_TD, *(weights[name][0] for name in EXPERTS))
    np.testing.assert_allclose(y_TD, expected_TD, rtol=1e-14)
    dx_TD, dweights = layer.moe_backward(dy_TD, routing.zero_gradient(r), cache)
    expected = ops.swiglu_backward(dy_TD, swiglu_cache)
    for got, array in zip((dx_TD, *(dweights[name][0] for name in EXPERTS)), expected, strict=True):
        np.testing.assert_allclose(got, array, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("router", SIGMOID)
def test_one_expert_whose_score_shares_1_with_no_other_keeps_its_gate(router):
    config = with_router(router, n_experts=1, top_k=1)
    x_TD, weights, _ = random_layer(config)
    gate_T1 = 1 / (1 + np.exp(-x_TD @ weights["w_router_DE"]))
    np.testing.assert_allclose(forward(x_TD, weights, config)[0], gate_T1 * swiglu(x_TD, weights, 0), rtol=1e-12)


@pytest.mark.parametrize("router", ["softmax_topk", "noisy_topk", "sinkhorn", "expert_choice", "gshard"])
def test_with_all_experts_and_raw_gates_it_is_the_softmax_mixture(router):
    n_experts = routers.ROUTERS[router].FACTS.top_k or 4
    raw = dict(renormalize=False) if "renormalize" in routers.ROUTERS[router].FACTS.options else {}
    config = with_router(router, n_experts=n_experts, top_k=n_experts, **raw)
    x_TD, weights, _ = random_layer(config)
    prob_TE = np.exp(x_TD @ weights["w_router_DE"])
    prob_TE /= prob_TE.sum(axis=1, keepdims=True)
    expected_TD = sum(prob_TE[:, e, None] * swiglu(x_TD, weights, e) for e in range(n_experts))
    np.testing.assert_allclose(forward(x_TD, weights, config)[0], expected_TD, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("router", [name for name in ROUTERS if name not in ("hash", "random", "uniform")])
def test_the_numbers_of_the_experts_mean_nothing(router, training):
    config = with_router(router, capacity_factor=0.8)
    x_TD, weights, dy_TD = random_layer(config)
    order = [2, 0, 3, 1]
    training = training and router != "noisy_topk"  # its noise is drawn expert by expert
    moved = {name: array[:, order] if name.endswith("DE") else array[order] for name, array in weights.items()}
    (y_TD, r, cache), (moved_TD, moved_r, moved_cache) = (forward(x_TD, w, config, training) for w in (weights, moved))
    np.testing.assert_allclose(moved_TD, y_TD, rtol=1e-11, atol=1e-13)
    assert [order[e] for e in moved_r.expert_A] == r.expert_A.tolist()
    dx_TD, dweights = layer.moe_backward(dy_TD, routing.zero_gradient(r), cache)
    moved_dx_TD, moved_dweights = layer.moe_backward(dy_TD, routing.zero_gradient(moved_r), moved_cache)
    np.testing.assert_allclose(moved_dx_TD, dx_TD, rtol=1e-10, atol=1e-12)
    for name, dweight in dweights.items():
        expected = dweight[:, order] if name.endswith("DE") else dweight[order]
        np.testing.assert_allclose(moved_dweights[name], expected, rtol=1e-10, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("router", [name for name in ROUTERS if name not in NOT_ONE])
def test_copies_of_a_dense_block_are_the_dense_block_where_gates_sum_to_one(router):
    config = with_router(router)
    x_TD, weights, _ = random_layer(config)
    weights = alike(weights)
    y_TD, _, _ = forward(x_TD, weights, config, training=router not in ("gshard", "noisy_topk"))
    np.testing.assert_allclose(y_TD, swiglu(x_TD, weights, 0), rtol=1e-12)


@pytest.mark.parametrize("router", ["softmax_topk", "noisy_topk", "gshard", "st_moe", "sigmoid_bias", "sinkhorn",
                                    "expert_choice", "switch", "base"])
def test_copies_of_a_dense_block_are_scaled_by_the_sum_of_raw_gates(router):
    raw = dict(renormalize=False) if "renormalize" in routers.ROUTERS[router].FACTS.options else {}
    config = with_router(router, **raw)
    x_TD, weights, _ = random_layer(config)
    weights = alike(weights)
    y_TD, r, _ = forward(x_TD, weights, config)
    sum_T = np.bincount(r.token_A, r.gate_A, 11)
    assert np.ptp(sum_T) > 0.01
    np.testing.assert_allclose(y_TD, sum_T[:, None] * swiglu(x_TD, weights, 0), rtol=1e-12)


@pytest.mark.parametrize("router", [name for name in ROUTERS if name != "expert_choice"])
def test_an_idle_expert_has_a_gradient_of_zeros(router):
    config = with_router(router, n_experts=8)
    x_TD, weights, dy_TD = random_layer(config, n_tokens=3)  # 3 tokens have at most 6 experts
    _, r, cache = forward(x_TD, weights, config, training=True)
    _, dweights = layer.moe_backward(dy_TD, routing.zero_gradient(r), cache)
    idle = r.count_E == 0
    assert 2 <= idle.sum() < 8
    for name in EXPERTS:
        np.testing.assert_array_equal(dweights[name][idle], 0)
        assert (abs(dweights[name][~idle]).max(axis=(1, 2)) > 0).all()


def test_an_expert_that_chooses_is_never_idle():
    config = with_router("expert_choice", n_experts=8)
    x_TD, weights, _ = random_layer(config, n_tokens=3)
    assert forward(x_TD, weights, config)[1].count_E.tolist() == [1] * 8  # 2 * 3 / 8, rounded up


def test_two_shared_experts_are_the_sum_of_two_blocks():
    config, width = replace(CONFIG, n_shared_experts=2), CONFIG.d_hidden
    x_TD, weights, _ = random_layer(config)
    y_TD, _, _ = forward(x_TD, weights, config)
    routed_TD, _, _ = forward(x_TD, weights, CONFIG)
    gate_DJ, up_DJ, down_JD = (weights[f"shared.{name}"] for name in dense.NAMES)
    assert gate_DJ.shape == (6, 2 * width)
    parts = [ops.swiglu_forward(x_TD, gate_DJ[:, half], up_DJ[:, half], down_JD[half])[0]
             for half in (slice(0, width), slice(width, None))]
    np.testing.assert_allclose(y_TD, routed_TD + sum(parts), rtol=1e-11, atol=1e-13)


@each_router
def test_shared_experts_are_added_to_what_any_router_gives(router):
    config = with_router(router, n_shared_experts=1)
    x_TD, weights, dy_TD = random_layer(config)
    (y_TD, r, cache), (routed_TD, _, own) = (forward(x_TD, weights, c, training=True)
                                             for c in (config, with_router(router)))
    shared_TD, shared = dense.dense_forward(x_TD, {name: weights[f"shared.{name}"] for name in dense.NAMES})
    np.testing.assert_allclose(y_TD, routed_TD + shared_TD, rtol=1e-12, atol=1e-13)
    (dx_TD, dweights), (routed_dx_TD, _), (shared_dx_TD, dshared) = (
        layer.moe_backward(dy_TD, routing.zero_gradient(r), cache),
        layer.moe_backward(dy_TD, routing.zero_gradient(r), own), dense.dense_backward(dy_TD, shared))
    np.testing.assert_allclose(dx_TD, routed_dx_TD + shared_dx_TD, rtol=1e-12, atol=1e-12)
    for name in dense.NAMES:
        np.testing.assert_array_equal(dweights[f"shared.{name}"], dshared[name])


def test_a_token_that_every_expert_dropped_still_has_the_shared_ones():
    config = replace(CONFIG, n_shared_experts=1, capacity_factor=0.1)  # room for one token in each expert
    x_TD, weights, _ = random_layer(config)
    y_TD, r, _ = forward(x_TD, weights, config, training=True)
    dropped_T = np.bincount(r.token_A, r.kept_A, 11) == 0
    shared_TD, _ = dense.dense_forward(x_TD, {name: weights[f"shared.{name}"] for name in dense.NAMES})
    assert dropped_T.sum() >= 11 - 4
    np.testing.assert_array_equal(y_TD[dropped_T], shared_TD[dropped_T])


def test_without_what_routed_experts_put_out_only_the_shared_ones_remain():
    config = replace(CONFIG, n_shared_experts=1)
    x_TD, weights, _ = random_layer(config)
    silent = weights | {"w_down_EFD": 0 * weights["w_down_EFD"]}
    shared_TD, _ = dense.dense_forward(x_TD, {name: weights[f"shared.{name}"] for name in dense.NAMES})
    np.testing.assert_array_equal(forward(x_TD, silent, config)[0], shared_TD)


def test_no_shared_experts_have_no_parameters():
    assert layer.weights(CONFIG, 1.0, 1.0).keys() == {"w_router_DE", *EXPERTS}


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_finer_experts_have_the_same_parameters_and_flops(parts):
    finer = CONFIG.finer(parts)
    assert (finer.n_experts, finer.top_k, finer.d_hidden) == (4 * parts, 2 * parts, 4 // parts)

    def expert_parameters(config):
        return sum(np.prod(w.shape) for name, w in layer.weights(config, 1.0, 1.0).items() if name in EXPERTS)

    def expert_flops(config):
        """FLOPs of a forward pass but for the router's: 2 D E a token, of which there are 2 * 5."""
        return cost.count(config, 2, 5).forward_flops - 2 * config.d_model * config.n_experts * 10

    assert expert_parameters(finer) == expert_parameters(CONFIG) == 3 * 4 * 6 * 4  # matrices * E * D * F
    assert expert_flops(finer) == expert_flops(CONFIG)


def test_finer_experts_keep_the_width_of_shared_experts_and_dense_layers():
    config = replace(CONFIG, n_shared_experts=1)
    finer = config.finer(2)
    assert finer.n_shared_experts == 2
    assert finer.dense_width == config.dense_width == 12  # (2 + 1) * 4 = (4 + 2) * 2
    assert layer.weights(finer, 1.0, 1.0)["shared.w_up_DJ"] == layer.weights(config, 1.0, 1.0)["shared.w_up_DJ"]


def test_finer_experts_change_nothing_else():
    config = replace(CONFIG, balance_coef=0.3, capacity_factor=1.5, n_devices=2)
    assert config.finer(1) == config
    finer = config.finer(2)
    assert replace(finer, n_experts=4, top_k=2, d_hidden=4) == config


@pytest.mark.parametrize("parts", [3, 8, 0, -2, 2.0, "2", None])
def test_experts_that_cannot_be_divided_so_are_refused(parts):
    with pytest.raises(ValueError, match=re.escape(f"finer = {parts!r}: must divide d_hidden = 4")):
        CONFIG.finer(parts)


def frozen_params(config):
    """float64 parameters that nobody can change in place."""
    params = model.init_params(config, dtype=np.float64)
    for array in params.values():
        array.flags.writeable = False
    return params


@pytest.mark.parametrize("router", [name for name in ROUTERS if name != "sigmoid_bias"])
def test_after_a_step_most_routers_change_nothing(router):
    config = with_router(router, n_layers=2)
    assert model.after_step(frozen_params(config), np.array([[3, 1, 0, 4], [2, 2, 2, 2]]), config) == {}


def test_after_a_step_only_a_bias_changes_and_nothing_in_place():
    config = with_router("sigmoid_bias", n_layers=2)
    params = frozen_params(config)
    changed = model.after_step(params, np.array([[3, 1, 0, 4], [2, 2, 2, 2]]), config)
    # means 2 and 2: above it down, below it up, on it nowhere
    assert {name: (array / 0.001).round(9).tolist() for name, array in changed.items()} == {
        "layers.0.moe.bias_E": [-1, 1, 1, -1], "layers.1.moe.bias_E": [0, 0, 0, 0]}
    assert not any(np.shares_memory(array, params[name]) for name, array in changed.items())


def test_a_step_changes_the_bias_of_the_layer_whose_load_it_is():
    # dense, dense, moe, dense, moe
    config = with_router("sigmoid_bias", n_layers=5, first_dense_layers=1, moe_every=2, bias_rate=0.5)
    changed = model.after_step(model.init_params(config), np.array([[1, 1, 1, 5], [5, 1, 1, 1]]), config)
    assert {name: array.tolist() for name, array in changed.items()} == {
        "layers.2.moe.bias_E": [0.5, 0.5, 0.5, -0.5], "layers.4.moe.bias_E": [-0.5, 0.5, 0.5, 0.5]}
    assert {array.dtype for array in changed.values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize("router", ["softmax_topk", "soft"])
def test_a_model_without_routers_has_nothing_to_change(router):
    config = replace(CONFIG, router=router, first_dense_layers=0 if router == "soft" else 1)
    assert model.after_step(model.init_params(config), np.zeros((0, 4)), config) == {}


REFUSED = [
    (dict(load_coef=0.1), "load_coef = 0.1: the expected load is a matter of noise, which router 'softmax_topk' has "
                          "none of; noisy_topk has"),
    (dict(router="hash", load_coef=1), "load_coef = 1: the expected load is a matter of noise, which router 'hash'"),
    (dict(jitter=0.5), "jitter = 0.5: router 'softmax_topk' has no use for it; switch would"),
    (dict(router="noisy_topk", jitter=0.0), "jitter = 0.0: router 'noisy_topk' has no use for it; switch would"),
    (dict(router="switch", top_k=1, jitter=1.0), "jitter = 1.0: must be below 1"),
    (dict(router="switch", top_k=1, jitter=-0.1), "jitter = -0.1: must be a finite number of 0 or more"),
    (dict(router="hash", renormalize=True), "renormalize = True: router 'hash' has no use for it; softmax_topk, "),
    (dict(router="hash", renormalize=False), "renormalize = False: router 'hash' has no use for it"),
    (dict(router="switch", top_k=1, renormalize=False), "renormalize = False: router 'switch' has no use for it"),
    (dict(router="expert_choice", renormalize=True), "renormalize = True: router 'expert_choice' has no use for it"),
    (dict(router="switch"), "top_k = 2: router 'switch' always takes 1"),
    (dict(router="base"), "top_k = 2: router 'base' always takes 1"),
    (dict(router="gshard", top_k=1), "top_k = 1: router 'gshard' always takes 2"),
    (dict(router="st_moe", top_k=3), "top_k = 3: router 'st_moe' always takes 2"),
    (dict(bias_rate=0.5), "bias_rate = 0.5: router 'softmax_topk' has no use for it; sigmoid_bias would"),
    (dict(router="sigmoid_bias", bias_rate=-1e-3), "bias_rate = -0.001: must be a finite number of 0 or more"),
    (dict(gate_scale=2.0), "gate_scale = 2.0: router 'softmax_topk' has no use for it; sigmoid_bias would"),
    (dict(router="sigmoid_bias", gate_scale=0), "gate_scale = 0: must be a finite number above 0"),
    (dict(n_groups=2), "n_groups = 2: router 'softmax_topk' has no use for it; sigmoid_bias would"),
    (dict(router="sigmoid_bias", n_groups=3), "n_groups = 3: must divide n_experts = 4"),
    (dict(router="sigmoid_bias", n_groups=2, top_groups=3), "top_groups = 3: there are only n_groups = 2"),
    (dict(router="sigmoid_bias", n_groups=4, top_groups=1),
     "top_groups = 1: so few groups have 1 experts, fewer than top_k = 2"),
    (dict(router="sigmoid_bias", n_groups=0), "n_groups = 0: must be a whole number, 1 or more"),
    (dict(n_devices=3), "n_devices = 3: must divide n_experts = 4"),
    (dict(n_devices=0), "n_devices = 0: must be a whole number, 1 or more"),
    (dict(router="soft", capacity_factor=1.0), "capacity_factor = 1.0: router 'soft' has no assignments to limit"),
    (dict(first_dense_layers=2), "first_dense_layers = 2: there are only n_layers = 1"),
    (dict(first_dense_layers=-1), "first_dense_layers = -1: must be a whole number, 0 or more"),
    (dict(n_shared_experts=-1), "n_shared_experts = -1: must be a whole number, 0 or more"),
    (dict(n_shared_experts=True), "n_shared_experts = True: must be a whole number, 0 or more"),
    (dict(moe_every=0), "moe_every = 0: must be a whole number, 1 or more"),
    (dict(d_dense=0), "d_dense = 0: must be a whole number, 1 or more"),
    (dict(global_balance=1), "global_balance = 1: must be True or False"),
    (dict(entropy_coef=-0.1), "entropy_coef = -0.1: must be a finite number of 0 or more"),
    (dict(sequence_coef="1"), "sequence_coef = '1': must be a finite number of 0 or more"),
]


@pytest.mark.parametrize(("fields", "message"), REFUSED, ids=[str(fields) for fields, _ in REFUSED])
def test_options_that_do_not_go_together_are_refused_with_the_field_its_value_and_what_would_be_right(fields, message):
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        replace(CONFIG, **fields)


def test_the_limit_that_cannot_be_is_named_whether_of_training_or_of_evaluation():
    with pytest.raises(ValueError, match="^eval_capacity_factor = 2.0: router 'soft' has no assignments to limit"):
        replace(CONFIG, router="soft", eval_capacity_factor=2.0)


@pytest.mark.parametrize("fields", [
    dict(router="switch", top_k=1, jitter=0), dict(router="gshard", n_experts=1, top_k=1),
    dict(router="sigmoid_bias", n_groups=2, top_groups=1), dict(router="sigmoid_bias", n_groups=4, top_groups=4),
    dict(router="noisy_topk", load_coef=0.5), dict(load_coef=0), dict(n_devices=4), dict(first_dense_layers=1),
    dict(moe_every=9), dict(router="sinkhorn", top_k=1), dict(router="sigmoid_bias", bias_rate=0),
    dict(router="soft", balance_coef=0.5)], ids=str)
def test_options_at_the_edge_are_accepted(fields):
    config = replace(CONFIG, **fields)
    model.forward(model.init_params(config), np.zeros((1, 3), int), config)
