"""The auxiliary losses together: which are computed and when, where their gradients go, what they weigh."""

from dataclasses import replace

import numpy as np
import pytest

from minimoe import batches, model
from minimoe.config import ModelConfig
from minimoe.moe import gates, layer, losses, routers, routing
from minimoe.moe.routing import Tokens

CONFIG = ModelConfig(vocab_size=7, d_model=8, n_layers=2, n_heads=2, d_hidden=4, n_experts=4, max_sequence=8,
                     n_devices=2)
PAIRS = [(router, name) for router in routers.ROUTERS if router not in ("hash", "random", "uniform", "soft")
         for name in losses.LOSSES if name != "load" or router == "noisy_topk"]
"""Each router that learns, with each loss that it can have."""

each_loss = pytest.mark.parametrize("name", losses.LOSSES)


def with_router(router, **fields):
    return replace(CONFIG, router=router, top_k=routers.ROUTERS[router].FACTS.top_k or 2, **fields)


def alone(name, coef=1.0):
    """Fields that give one loss a weight and the others none."""
    return {f"{other}_coef": coef * (other == name) for other in losses.LOSSES}


def noisy(**fields):
    """A configuration for which every loss is defined."""
    return with_router("noisy_topk", **fields)


def routed(config, n_padding=0, dtype=np.float64):
    """The Routing, and the cache of the layer, of two sequences of five random tokens, with padding after each."""
    rng = np.random.default_rng(0)
    weights = {name: rng.normal(size=w.shape).astype(dtype) for name, w in layer.weights(config, 1.0, 1.0).items()}
    x_BSD = rng.normal(size=(2, 5, config.d_model)).astype(dtype)
    x_BSD = np.concatenate([x_BSD, np.full((2, n_padding, config.d_model), 3, dtype)], axis=1)
    mask_BS = np.broadcast_to(np.arange(5 + n_padding) < 5, x_BSD.shape[:2])
    tokens = Tokens.of_batch(np.zeros(mask_BS.shape, int), mask_BS)
    (_, r), cache = layer.moe_forward(x_BSD.reshape(-1, config.d_model), weights, config, tokens,
                                      training=config.router != "noisy_topk", rng=rng)
    return r, cache


def values(r, config=CONFIG, load_E=None):
    return losses.auxiliary_forward(r, config, load_E)[0]


def grads(r, config, dlosses):
    """The RoutingGrad as a dict."""
    return losses.auxiliary_backward(dlosses, losses.auxiliary_forward(r, config)[1])._asdict()


def collapsed(expert, n_tokens=3, n_experts=2):
    """The Routing of tokens that are all sure of one expert."""
    prob_TE = np.eye(n_experts)[[expert] * n_tokens]
    tokens = Tokens.anonymous(np.ones(n_tokens, bool))
    assignments = gates.assignments_by_token(np.full((n_tokens, 1), expert), tokens.mask_T)
    return routing.dropless_routing(*assignments, np.ones(n_tokens), np.zeros_like(prob_TE), prob_TE, tokens)


def layer_losses(routings, config, **options):
    """Losses of a batch whose logits are all 0."""
    n_tokens = routings[0].n_tokens
    logit_TV = np.zeros((n_tokens, config.vocab_size))
    return model.losses_forward(logit_TV, routings, np.zeros((1, n_tokens), int), config, **options)[0]


def random_model(config):
    """float64 parameters, tokens_BS, targets_BS."""
    rng = np.random.default_rng(0)
    params = {name: a + 0.3 * rng.normal(size=a.shape) for name, a in model.init_params(config, 0, float).items()}
    return params, *rng.integers(0, config.vocab_size, (2, 3, 7))


def test_every_loss_of_the_configuration_is_computed_and_no_other():
    assert losses.LOSSES.keys() == losses.LOSSES.keys()


@each_loss
def test_a_loss_moves_the_one_array_that_the_table_says(name):
    config = noisy(**alone(name))
    r, _ = routed(config)
    moved = {of for of, grad in grads(r, config, {name: 1.0}).items() if grad.any()}
    assert moved == {losses.LOSSES[name].gradient}


def test_all_losses_with_a_weight_are_returned_by_name():
    config = noisy(**dict.fromkeys((f"{name}_coef" for name in losses.LOSSES), 0.5))
    assert values(routed(config)[0], config).keys() == losses.LOSSES.keys()


@each_loss
def test_a_loss_is_returned_under_its_own_name(name):
    config = noisy(**alone(name))
    r, _ = routed(config)
    arguments = {"device": (2,)}.get(name, ())
    assert values(r, config)[name] == losses.LOSSES[name].forward(r, *arguments)[0]


def test_without_weights_balance_and_z_are_computed_and_nothing_else(monkeypatch):
    seen = []
    for name, loss in losses.LOSSES.items():
        def spy(r, *arguments, name=name, forward=loss.forward):
            seen.append(name)
            return forward(r, *arguments)
        monkeypatch.setitem(losses.LOSSES, name, loss._replace(forward=spy))
    r, _ = routed(noisy(**alone(None)))
    assert values(r, noisy(**alone(None))).keys() == {"balance", "z"}
    assert seen == ["balance", "z"]
    values(r, noisy(**alone("entropy")))
    assert seen[2:] == ["balance", "z", "entropy"]


def test_the_given_load_is_for_the_balance_loss_alone():
    config = with_router("softmax_topk", **dict.fromkeys(("balance_coef", "device_coef", "sequence_coef"), 1.0))
    r, load_E = routed(config)[0], np.array([0.7, 0.3, 0, 0])
    own, given = values(r, config), values(r, config, load_E)
    np.testing.assert_allclose(given["balance"], 4 * load_E @ r.prob_TE.mean(axis=0), rtol=1e-12)
    assert given["balance"] != own["balance"]
    assert {name: given[name] for name in ("z", "device", "sequence")} == {
        name: own[name] for name in ("z", "device", "sequence")}


def test_a_loss_that_nobody_weighs_pulls_at_nothing():
    config = noisy(**alone("entropy"))
    for grad in grads(routed(config)[0], config, {"balance": 0.0, "z": 0.0, "entropy": 0.0}).values():
        np.testing.assert_array_equal(grad, 0)


def test_the_pulls_of_several_losses_add_up():
    config = noisy(**dict.fromkeys((f"{name}_coef" for name in losses.LOSSES), 0.5))
    r, _ = routed(config)
    dlosses = {name: 0.3 + 0.1 * i for i, name in enumerate(losses.LOSSES)}
    parts = [grads(r, config, {name: dloss}) for name, dloss in dlosses.items()]
    for of, grad in grads(r, config, dlosses).items():
        np.testing.assert_allclose(grad, sum(part[of] for part in parts), rtol=1e-12, atol=1e-17, err_msg=of)


@each_loss
def test_appended_padding_changes_no_loss_and_gets_no_gradient(name):
    config = noisy(**alone(name))
    (r, _), (padded, _) = routed(config), routed(config, n_padding=3)
    np.testing.assert_allclose(values(padded, config)[name], values(r, config)[name], rtol=1e-14)
    for of, grad in grads(padded, config, {name: 1.0}).items():
        if of != "dgate_A":  # padding has no assignments
            np.testing.assert_array_equal(grad.reshape(2, 8, 4)[:, 5:], 0)
            grad = grad.reshape(2, 8, 4)[:, :5].reshape(10, 4)
        np.testing.assert_allclose(grad, grads(r, config, {name: 1.0})[of], rtol=1e-12, atol=1e-17, err_msg=of)


@each_loss
def test_a_batch_of_padding_alone_has_finite_losses_and_no_gradient(name):
    config = noisy(**alone(name))
    r, _ = routed(config)
    nowhere = dict.fromkeys(("token_A", "expert_A", "rank_A", "slot_A"), np.zeros(0, int))
    empty = replace(r, **nowhere, gate_A=r.gate_A[:0], kept_A=np.zeros(0, bool),
                    tokens=replace(r.tokens, mask_T=np.zeros(10, bool)))
    assert values(empty, config)[name] == 0
    for grad in grads(empty, config, {name: 1.0}).values():
        np.testing.assert_array_equal(grad, 0)


@each_loss
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_stays_nothing_is_changed_and_backward_runs_twice(name, dtype):
    config = noisy(**alone(name))
    r, _ = routed(config, dtype=dtype)
    for array in (*vars(r).values(), *vars(r.tokens).values()):
        if isinstance(array, np.ndarray):
            array.flags.writeable = False
    (loss, cache) = losses.auxiliary_forward(r, config)
    first, second = (losses.auxiliary_backward({name: 0.5}, cache) for _ in range(2))
    assert loss[name].dtype == dtype
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b, strict=True)
        assert a.dtype == dtype


@pytest.mark.parametrize(("router", "name"), PAIRS)
def test_each_loss_alone_moves_the_router_of_its_layer_and_none_above(router, name):
    config = with_router(router, n_experts=6, n_devices=3, **alone(name))
    params, *batch = random_model(config)
    tokens_BS, targets_BS = (array_BS[:2, :5] for array_BS in batch)  # 10 or 20 assignments are uneven on 3 devices
    (logit_TV, routings), cache = model.model_forward(params, tokens_BS, config, training=True,
                                                      rng=np.random.default_rng(0))
    _, pulls = model.losses_backward(1.0, model.losses_forward(logit_TV, routings, targets_BS, config)[1])
    nobody = [routing.zero_gradient(r) for r in routings]
    even = router == "expert_choice" and name in ("balance", "device")  # every load is the same, whatever the router
    for i in range(2):
        pulled = model.model_backward(np.zeros_like(logit_TV), nobody[:i] + [pulls[i]] + nobody[i + 1:], cache)
        moved = [np.linalg.norm(pulled[f"layers.{j}.moe.w_router_DE"]) for j in range(2)]
        assert moved[i] < 1e-14 if even else moved[i] > 1e-6
        assert not any(moved[i + 1:])


@pytest.mark.parametrize("router", ["hash", "random", "uniform"])
def test_a_router_that_looks_at_no_vector_is_not_moved_by_any_loss(router):
    config = with_router(router, **{f"{name}_coef": 1.0 for name in losses.LOSSES if name != "load"})
    r, cache = routed(config)
    pull = losses.auxiliary_backward(dict.fromkeys(values(r, config), 1.0), losses.auxiliary_forward(r, config)[1])
    dx_TD, _ = layer.moe_backward(np.zeros((10, config.d_model)), pull, cache)
    np.testing.assert_array_equal(dx_TD, 0)


def test_layers_that_collapse_onto_opposite_experts_are_not_even_together():
    # each layer has f = P = (1, 0), so a balance of 2; pooled over layers f = P = 1/2, which would be 1
    config = replace(CONFIG, n_experts=2, top_k=1, n_devices=1)
    assert layer_losses([collapsed(0), collapsed(1)], config).balance == 2


def test_a_loss_is_the_mean_over_the_layers_that_have_a_router():
    config = replace(CONFIG, n_layers=4, first_dense_layers=1, n_experts=2, top_k=1, n_devices=1, balance_coef=0.5,
                     z_coef=0)
    even = replace(collapsed(0), prob_TE=np.full((3, 2), 0.5))
    result = layer_losses([collapsed(0), even, collapsed(1)], config)
    np.testing.assert_allclose(result.balance, (2 + 1 + 2) / 3)
    np.testing.assert_allclose(result.total, np.log(7) + 0.5 * 5 / 3)


def test_each_layer_has_its_own_load_of_the_whole_step():
    # P = (1, 0) and (0, 1): 2 * 0.25 * 1 and 2 * 0.5 * 1
    config = replace(CONFIG, n_experts=2, top_k=1, n_devices=1)
    result = layer_losses([collapsed(0), collapsed(1)], config, load_LE=np.array([[0.25, 0.75], [0.5, 0.5]]))
    np.testing.assert_allclose(result.balance, (0.5 + 1) / 2)


@each_loss
def test_the_reported_cross_entropy_never_contains_a_loss(name):
    params, tokens_BS, targets_BS = random_model(noisy())
    without, _ = batches.loss_and_grads(params, tokens_BS, targets_BS, noisy(**alone(None)), training=False)
    with_, _ = batches.loss_and_grads(params, tokens_BS, targets_BS, noisy(**alone(name, 7.0)), training=False)
    assert with_.ce == without.ce == without.total
    np.testing.assert_allclose(with_.total - with_.ce, 7 * with_.auxiliary[name], rtol=1e-12)
    assert with_.auxiliary[name] > 0.01


def test_the_objective_is_the_cross_entropy_and_each_loss_by_its_weight():
    coefs = {name: 0.1 * (i + 1) for i, name in enumerate(losses.LOSSES)}
    config = noisy(**{f"{name}_coef": coef for name, coef in coefs.items()})
    params, tokens_BS, targets_BS = random_model(config)
    result, _ = batches.loss_and_grads(params, tokens_BS, targets_BS, config, rng=np.random.default_rng(0))
    expected = result.ce + sum(coefs[name] * result.auxiliary[name] for name in losses.LOSSES)
    np.testing.assert_allclose(result.total, expected, rtol=1e-12)


@pytest.mark.parametrize("config", [replace(CONFIG, router="soft"), replace(CONFIG, first_dense_layers=2)],
                         ids=["soft", "dense"])
def test_without_routers_there_are_no_losses_but_the_cross_entropy(config):
    params, tokens_BS, targets_BS = random_model(config)
    result, _ = batches.loss_and_grads(params, tokens_BS, targets_BS, config)
    assert (result.auxiliary, result.balance, result.z, result.total) == ({}, 0, 0, result.ce)


@pytest.mark.parametrize("router", routers.ROUTERS)
def test_unsaid_weights_are_those_that_the_router_is_used_with(router):
    expected = dict.fromkeys(losses.LOSSES, 0.0) | routers.ROUTERS[router].FACTS.losses
    if router == "soft":
        expected = dict.fromkeys(losses.LOSSES, 0.0)
    assert with_router(router).loss_coefs == expected


def test_the_usual_weights_are_those_of_the_papers():
    # Shazeer 2017: importance and load 0.1;  Switch: 0.01;  OLMoE: 0.01 and 0.001;  DeepSeek-V3: 0.0001
    used = {router: {name: coef for name, coef in with_router(router).loss_coefs.items() if coef}
            for router in ("noisy_topk", "switch", "softmax_topk", "sigmoid_bias", "base")}
    assert used == {"noisy_topk": {"importance": 0.1, "load": 0.1}, "switch": {"balance": 0.01},
                    "softmax_topk": {"balance": 0.01, "z": 0.001}, "sigmoid_bias": {"sequence": 0.0001}, "base": {}}


@each_loss
@pytest.mark.parametrize("coef", [0, 0.25])
def test_a_weight_that_is_said_takes_the_place_of_the_usual_one_and_of_no_other(name, coef):
    usual = noisy().loss_coefs
    assert noisy(**{f"{name}_coef": coef}).loss_coefs == usual | {name: coef}


@each_loss
@pytest.mark.parametrize("fields", [dict(n_experts=1, top_k=1, n_devices=1), dict(first_dense_layers=2)],
                         ids=["one expert", "dense"])
def test_where_there_is_nothing_to_choose_no_loss_weighs_anything(name, fields):
    config = replace(CONFIG, router="noisy_topk", **fields | {f"{name}_coef": 0.5})
    assert config.loss_coefs == dict.fromkeys(losses.LOSSES, 0.0)
