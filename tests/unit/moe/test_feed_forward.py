"""What stands after attention: which layer is of which kind, with which parameters and which gradients."""

from dataclasses import replace

import numpy as np
import pytest

from minimoe import gradcheck, model, parameters
from minimoe.config import ModelConfig
from minimoe.moe import dense, feed_forward, layer, routing, soft
from minimoe.moe.routing import Tokens
from minimoe.nn import ops

CONFIG = ModelConfig(vocab_size=7, d_model=8, n_layers=3, n_heads=2, d_hidden=6, n_experts=4, top_k=2, max_sequence=9,
                     balance_coef=0.5, z_coef=0.3)
EVERY_LOSS = dict(balance_coef=0.5, z_coef=0.3, importance_coef=0.4, load_coef=0.6, sequence_coef=0.2, device_coef=0.7,
                  entropy_coef=0.1, n_devices=2)
MODELS = {
    "first layer dense": dict(first_dense_layers=1),
    "every second layer": dict(moe_every=2, d_dense=5),
    "all layers dense": dict(first_dense_layers=3),
    "shared experts": dict(n_shared_experts=2, capacity_factor=0.6),
    "sigmoid scores in groups": dict(router="sigmoid_bias", n_groups=2, top_groups=1, gate_scale=2.5,
                                     sequence_coef=0.4),
    "noise, with every loss": dict(router="noisy_topk", **EVERY_LOSS),
    "soft": dict(router="soft"),
    "soft above dense": dict(router="soft", first_dense_layers=1),
    "dense, shared, every loss, tied": dict(router="noisy_topk", first_dense_layers=1, n_shared_experts=1,
                                            tie_embeddings=True, **EVERY_LOSS),
}
TOKENS = Tokens.of_batch(np.arange(10).reshape(2, 5) % 7)


def of_kind(kind):
    return replace(CONFIG, router="soft") if kind == "soft" else CONFIG


def random_layer(kind):
    """x_TD, weights, dy_TD."""
    rng = np.random.default_rng(0)
    shapes = feed_forward.weights(of_kind(kind), kind, 1.0, 1.0)
    x_TD, dy_TD = rng.normal(size=(2, 10, 8))
    return x_TD, {name: rng.normal(size=w.shape) for name, w in shapes.items()}, dy_TD


@pytest.mark.parametrize(("fields", "expected"), [
    (dict(n_layers=3), "moe moe moe"),
    (dict(n_layers=3, first_dense_layers=1), "dense moe moe"),
    (dict(n_layers=3, first_dense_layers=3), "dense dense dense"),
    (dict(n_layers=4, moe_every=2), "dense moe dense moe"),
    (dict(n_layers=5, moe_every=2), "dense moe dense moe dense"),
    (dict(n_layers=5, first_dense_layers=1, moe_every=2), "dense dense moe dense moe"),
    (dict(n_layers=7, moe_every=3), "dense dense moe dense dense moe dense"),
    (dict(n_layers=2, moe_every=3), "dense dense"),
    (dict(n_layers=3, router="soft"), "soft soft soft"),
    (dict(n_layers=4, first_dense_layers=1, moe_every=2, router="soft"), "dense dense soft dense"),
    (dict(n_layers=2, n_experts=1, top_k=1), "moe moe"),
])
def test_kinds_of_layers_by_hand(fields, expected):
    config = replace(CONFIG, **fields)
    assert config.layer_kinds == tuple(expected.split())
    assert config.moe_layers == tuple(i for i, kind in enumerate(expected.split()) if kind == "moe")


@pytest.mark.parametrize("kind", feed_forward.KINDS)
def test_each_kind_has_the_parameters_of_its_file(kind):
    module = {"moe": layer, "dense": dense, "soft": soft}[kind]
    assert feed_forward.weights(of_kind(kind), kind, 0.5, 0.25) == module.weights(of_kind(kind), 0.5, 0.25)


def assert_same(got, expected):
    """Two pairs (dx_TD, dweights) that do not differ at all."""
    np.testing.assert_array_equal(got[0], expected[0])
    assert got[1].keys() == expected[1].keys()
    for name, dweight in got[1].items():
        np.testing.assert_array_equal(dweight, expected[1][name], name)


def test_a_layer_of_experts_is_what_its_file_computes():
    x_TD, weights, dy_TD = random_layer("moe")
    (y_TD, r), cache = feed_forward.kind_forward(x_TD, weights, CONFIG, "moe", TOKENS)
    (expected_TD, _), own = layer.moe_forward(x_TD, weights, CONFIG, TOKENS)
    np.testing.assert_array_equal(y_TD, expected_TD)
    pull = routing.zero_gradient(r)._replace(dlogit_TE=np.random.default_rng(1).normal(size=r.logit_TE.shape))
    assert_same(feed_forward.kind_backward(dy_TD, pull, cache), layer.moe_backward(dy_TD, pull, own))


@pytest.mark.parametrize("kind", ["dense", "soft"])
def test_a_layer_without_a_router_is_what_its_file_computes_and_has_no_routing(kind):
    x_TD, weights, dy_TD = random_layer(kind)
    (y_TD, r), cache = feed_forward.kind_forward(x_TD, weights, of_kind(kind), kind, TOKENS)
    module, more = {"dense": (dense, ()), "soft": (soft, (TOKENS,))}[kind]
    expected_TD, own = getattr(module, f"{kind}_forward")(x_TD, weights, *more)
    assert r is None
    np.testing.assert_array_equal(y_TD, expected_TD)
    assert_same(feed_forward.kind_backward(dy_TD, None, cache),
                getattr(module, f"{kind}_backward")(dy_TD, own))


def test_names_of_parameters_tell_the_kind_of_their_layer():
    config = replace(CONFIG, first_dense_layers=1, moe_every=2)
    of_layers = [{name.split(".")[2] for name in model.weights(config) if name.startswith(f"layers.{i}.")}
                 for i in range(3)]
    assert of_layers == [{"attention", "dense"}, {"attention", "dense"}, {"attention", "moe"}]


# D = 8, F = 6, E = 4, K = 2: attention 8 + 4 * 8 * 8 = 264 with its gain, an expert 3 * 8 * 6 = 144, a router 8 * 4
@pytest.mark.parametrize(("fields", "expected"), [
    ({}, 3 * (264 + 8 + 32 + 4 * 144)),
    (dict(first_dense_layers=1), 264 + 8 + 2 * 144 + 2 * (264 + 8 + 32 + 4 * 144)),  # a dense layer is 2 * 6 wide
    (dict(first_dense_layers=3, d_dense=5), 3 * (264 + 8 + 3 * 8 * 5)),
    (dict(moe_every=2), 2 * (264 + 8 + 2 * 144) + 264 + 8 + 32 + 4 * 144),
    (dict(n_shared_experts=2), 3 * (264 + 8 + 32 + 6 * 144)),
    (dict(n_shared_experts=1, first_dense_layers=1), 264 + 8 + 3 * 144 + 2 * (264 + 8 + 32 + 5 * 144)),
    (dict(router="sigmoid_bias"), 3 * (264 + 8 + 32 + 4 + 4 * 144)),
    (dict(router="noisy_topk"), 3 * (264 + 8 + 2 * 32 + 4 * 144)),
    (dict(router="hash"), 3 * (264 + 8 + 4 * 144)),
    (dict(router="soft"), 3 * (264 + 8 + 8 * 4 * 4 + 1 + 4 * 144)),  # 2 * 9 // 4 = 4 slots an expert
])
def test_numbers_of_parameters_by_hand(fields, expected):
    # beside the layers: 7 * 8 in, 8 gains, 8 * 7 out
    assert parameters.count(model.weights(replace(CONFIG, **fields))) == expected + 7 * 8 + 8 + 8 * 7


@pytest.mark.parametrize(("fields", "n_routings"), [
    ({}, 3), (dict(first_dense_layers=1), 2), (dict(moe_every=2), 1), (dict(first_dense_layers=3), 0),
    (dict(router="soft"), 0)])
def test_there_is_one_routing_for_each_layer_with_a_router(fields, n_routings):
    config = replace(CONFIG, **fields)
    _, routings = model.forward(gradcheck.random_params(config), TOKENS.id_T.reshape(2, 5), config)
    assert len(routings) == n_routings


def test_routings_come_in_the_order_of_the_layers():
    config = replace(CONFIG, n_layers=4, moe_every=2)
    params = gradcheck.random_params(config)
    (_, routings), cache = model.model_forward(params, TOKENS.id_T.reshape(2, 5), config)
    for r, i in zip(routings, (1, 3), strict=True):
        normed_TD = cache.blocks[i].feed_forward_norm[0] * params[f"layers.{i}.moe.gain_D"]
        np.testing.assert_allclose(r.logit_TE, normed_TD @ params[f"layers.{i}.moe.w_router_DE"], rtol=1e-12)


def test_the_pull_of_the_losses_reaches_the_layer_that_it_is_meant_for():
    config = replace(CONFIG, n_layers=4, moe_every=2)
    params = gradcheck.random_params(config)
    (logit_TV, routings), cache = model.model_forward(params, TOKENS.id_T.reshape(2, 5), config)
    first, second = (routing.zero_gradient(r) for r in routings)
    first = first._replace(dlogit_TE=np.ones((10, 4)) * [1, 0, 0, 0])
    grads = model.model_backward(np.zeros_like(logit_TV), [first, second], cache)
    normed_TD = cache.blocks[1].feed_forward_norm[0] * params["layers.1.moe.gain_D"]
    np.testing.assert_allclose(grads["layers.1.moe.w_router_DE"][:, 0], normed_TD.sum(axis=0), rtol=1e-12)
    np.testing.assert_array_equal(grads["layers.1.moe.w_router_DE"][:, 1:], 0)
    np.testing.assert_array_equal(grads["layers.3.moe.w_router_DE"], 0)


def test_replayed_decisions_reach_the_layer_that_they_were_taken_in():
    config = replace(CONFIG, n_layers=4, moe_every=2)
    params, tokens_BS = gradcheck.random_params(config), TOKENS.id_T.reshape(2, 5)
    (_, there), _ = model.model_forward(params, tokens_BS, config)
    turned = {name: array[:, ::-1] if name.endswith("w_router_DE") else array for name, array in params.items()}
    (_, otherwise), _ = model.model_forward(turned, tokens_BS, config)
    (_, again), _ = model.model_forward(turned, tokens_BS, config, replays=there)
    for a, b, c in zip(there, otherwise, again, strict=True):
        assert a.expert_A.tolist() == c.expert_A.tolist() != b.expert_A.tolist()


def test_a_dense_layer_in_the_model_is_a_swiglu_block_on_the_normalised_stream():
    config = replace(CONFIG, n_layers=1, first_dense_layers=1, tie_embeddings=False)
    params = gradcheck.random_params(config)
    tokens_BS = TOKENS.id_T.reshape(2, 5)
    silent = params | {"layers.0.attention.w_o_HPD": 0 * params["layers.0.attention.w_o_HPD"]}
    x_TD = params["embed.w_VD"][tokens_BS.ravel()]
    normed_TD, _ = ops.rmsnorm_forward(x_TD, params["layers.0.dense.gain_D"], config.norm_eps)
    own = parameters.scope(params, "layers.0.dense.")
    x_TD = x_TD + ops.swiglu_forward(normed_TD, own["w_gate_DJ"], own["w_up_DJ"], own["w_down_JD"])[0]
    normed_TD, _ = ops.rmsnorm_forward(x_TD, params["final.gain_D"], config.norm_eps)
    logits_BSV, _ = model.forward(silent, tokens_BS, config)
    np.testing.assert_allclose(logits_BSV.reshape(10, 7), normed_TD @ params["head.w_DV"], rtol=1e-12)


@pytest.mark.parametrize("name", MODELS)
def test_gradient_of_a_whole_model(name):
    report = gradcheck.check_model(replace(CONFIG, **MODELS[name]), most=3)
    assert report.ok, report
    assert all(row.length > 1e-6 for row in report.rows if not row.name.endswith("bias_E"))  # none is right by being 0


def test_gradient_of_a_whole_model_with_finer_experts():
    report = gradcheck.check_model(CONFIG.finer(2), most=3)
    assert report.ok, report
    assert {row.shape for row in report.rows if row.name.endswith("w_up_EDF")} == {(8, 8, 3)}
