"""The whole model: by hand, against a slow loop and a dense block, by the complex step; what it may see and keep."""

import math
import types
from dataclasses import replace

import numpy as np
import pytest

from minimoe import batches, gradcheck, model, parameters
from minimoe.config import ModelConfig
from minimoe.moe.capacity import ORDERS
from minimoe.moe.losses import LOSSES
from minimoe.moe.routers import ROUTERS
from minimoe.moe.routing import Tokens, zero_gradient
from minimoe.nn import attention, ops

CONFIG = ModelConfig(vocab_size=11, d_model=8, n_layers=2, n_heads=2, n_kv_heads=1, d_hidden=6, n_experts=4, top_k=2,
                     max_sequence=9, balance_coef=0.5, z_coef=0.3)
VARIANTS = {
    "dropless": CONFIG,
    "tied": replace(CONFIG, tie_embeddings=True),
    "raw gates": replace(CONFIG, renormalize=False),
    "one expert a token": replace(CONFIG, top_k=1),
    "dense": replace(CONFIG, n_experts=1, top_k=1),
    "room for all": replace(CONFIG, capacity_factor=100, eval_capacity_factor=100),
    "shared experts": replace(CONFIG, n_shared_experts=2),
    "first layer dense": replace(CONFIG, first_dense_layers=1, d_dense=5),
    "every second layer": replace(CONFIG, moe_every=2),
} | {f"drop by {order}": replace(CONFIG, capacity_factor=0.6, eval_capacity_factor=0.6, drop_order=order)
     for order in ORDERS}
DROPLESS = [name for name, config in VARIANTS.items() if config.capacity_factor is None]


def with_router(name):
    """CONFIG with another router, with little room, and with every loss that it can have."""
    coefs = {f"{loss}_coef": 0.2 for loss in LOSSES if loss != "load" or name == "noisy_topk"}
    room = {} if ROUTERS[name].FACTS.soft else dict(capacity_factor=0.6, eval_capacity_factor=0.6)
    return replace(CONFIG, router=name, top_k=ROUTERS[name].FACTS.top_k or 2, n_devices=2, **coefs, **room)


VARIANTS |= {f"router {name}": with_router(name) for name in ROUTERS}
NOISY = {"switch", "noisy_topk", "gshard", "st_moe", "random"}
"""Routers that draw numbers for each token of a batch in training, so that padding changes who gets which."""


def parameters_of(names):
    return [pytest.param(VARIANTS[name], id=name) for name in names]


each_variant = pytest.mark.parametrize("config", parameters_of(VARIANTS))
each_dropless = pytest.mark.parametrize("config", parameters_of(DROPLESS))
each_quiet = pytest.mark.parametrize(
    "config", parameters_of(name for name, config in VARIANTS.items() if config.router not in NOISY))
each_dtype = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def batch_of(config=CONFIG, sequences=3, length=7, seed=0):
    """Random tokens_BS and targets_BS."""
    return np.random.default_rng(seed).integers(0, config.vocab_size, (2, sequences, length))


def step(params, tokens_BS, targets_BS, config, mask_BS=None):
    return batches.loss_and_grads(params, tokens_BS, targets_BS, config, mask_BS, rng=np.random.default_rng(0))


def numbers(losses):
    """ce, the auxiliary losses by name, total."""
    return [losses.ce, *(loss for _, loss in sorted(losses.auxiliary.items())), losses.total]


def assert_close(left, right, tolerance=1e-12):
    """Two dicts of gradients are the same up to rounding."""
    assert left.keys() == right.keys()
    assert {name: error for name in left if not (error := gradcheck.error(left[name], right[name])) < tolerance} == {}


def assert_equal(left, right):
    """Two dicts of gradients are the same bit for bit."""
    assert left.keys() == right.keys()
    for name in left:
        np.testing.assert_array_equal(left[name], right[name], name, strict=True)


def padded(array_BS, fill, extra=2):
    return np.pad(array_BS, ((0, 0), (0, extra)), constant_values=fill)


def rows_of_past(cache):
    return [(block.attention.k_BGMP, block.attention.v_BGMP) for block in cache.blocks]


def rotations(config, length):
    return attention.rope_table(np.arange(length), config.d_head, config.rope_theta, np.float64)


def slow_logits(params, tokens_S, config):
    """One sequence through the model, its tokens through the experts that work on them one at a time."""
    x_SD = params["embed.w_VD"][tokens_S]
    for i in range(config.n_layers):
        w = parameters.scope(params, f"layers.{i}.")
        normed_SD, _ = ops.rmsnorm_forward(x_SD, w["attention.gain_D"], config.norm_eps)
        mixed, _ = attention.attention_forward(normed_SD[None], parameters.scope(w, "attention."),
                                               rotations(config, len(tokens_S)))
        x_SD = x_SD + mixed[0]
        kind = config.layer_kinds[i]
        normed_SD, _ = ops.rmsnorm_forward(x_SD, w[f"{kind}.gain_D"], config.norm_eps)
        x_SD = x_SD + np.array([slow_feed_forward(x_D, w, config, kind) for x_D in normed_SD])
    normed_SD, _ = ops.rmsnorm_forward(x_SD, params["final.gain_D"], config.norm_eps)
    return normed_SD @ (params["embed.w_VD"].T if config.tie_embeddings else params["head.w_DV"])


def slow_feed_forward(x_D, w, config, kind):
    """A token's experts, and what every token uses."""
    always = {"moe": "moe.shared.", "dense": "dense."}[kind]
    y_D = slow_experts(x_D, w, config) if kind == "moe" else np.zeros_like(x_D)
    if always + "w_up_DJ" in w:
        names = ("w_gate_DJ", "w_up_DJ", "w_down_JD")
        y_D = y_D + ops.swiglu_forward(x_D[None], *(w[always + name] for name in names))[0][0]
    return y_D


def slow_experts(x_D, w, config):
    """The K experts with the largest probabilities, each on this token alone."""
    score_E = [math.exp(x_D @ w_D) for w_D in w["moe.w_router_DE"].T]
    best = sorted(range(config.n_experts), key=lambda e: -score_E[e])[:config.top_k]
    total = sum(score_E[e] for e in best) if config.gates_sum_to_one else sum(score_E)
    experts = zip(*(w[f"moe.{name}"] for name in ("w_gate_EDF", "w_up_EDF", "w_down_EFD")), strict=True)
    out_ED = [ops.swiglu_forward(x_D[None], *expert)[0][0] for expert in experts]
    return sum(score_E[e] / total * out_ED[e] for e in best)


def dense_block(x_TD, w, config, batch, dy_TD):
    """The block of a dense model, forward and backward: output, and gradients of the stream and the weights."""
    normed_TD, norm1 = ops.rmsnorm_forward(x_TD, w["attention.gain_D"], config.norm_eps)
    normed_BSD = normed_TD.reshape(batch, -1, config.d_model)
    mixed_BSD, attended = attention.attention_forward(
        normed_BSD, parameters.scope(w, "attention."), rotations(config, normed_BSD.shape[1]))
    x_TD = x_TD + mixed_BSD.reshape(x_TD.shape)
    normed_TD, norm2 = ops.rmsnorm_forward(x_TD, w["moe.gain_D"], config.norm_eps)
    names = ["moe.w_gate_EDF", "moe.w_up_EDF", "moe.w_down_EFD"]
    out_TD, fed = ops.swiglu_forward(normed_TD, *(w[name][0] for name in names))

    dnormed_TD, *dexpert = ops.swiglu_backward(dy_TD, fed)
    grads = {name: dw[None] for name, dw in zip(names, dexpert, strict=True)}
    dstream_TD, grads["moe.gain_D"] = ops.rmsnorm_backward(dnormed_TD, norm2)
    dx_TD = dy_TD + dstream_TD
    dnormed_BSD, dattention = attention.attention_backward(dx_TD.reshape(normed_BSD.shape), attended)
    dstream_TD, grads["attention.gain_D"] = ops.rmsnorm_backward(dnormed_BSD.reshape(x_TD.shape), norm1)
    return x_TD + out_TD, dx_TD + dstream_TD, grads | parameters.unscope(dattention, "attention.")


def flat_params(config):
    """A model whose stream is (1, 0, 0, 0) everywhere: the embedding alone, since no block adds anything to it.

    Its mean square is 1/4, so (with no eps to speak of) every normalised token is (2, 0, 0, 0).
    """
    params = {name: np.zeros(weight.shape) for name, weight in model.weights(config).items()}
    params |= {name: np.ones_like(array) for name, array in params.items() if name.endswith("gain_D")}
    params["embed.w_VD"][:, 0] = 1
    return params


def test_the_weights_of_a_model_have_their_shapes_and_spreads():
    """D = 4, H = 2, P = 2, G = 1, F = 3, E = 5, V = 7, L = 2.

    The spread is 1/sqrt(D) = 0.5, and 0.5 / sqrt(2L) = 0.25 for what writes to the stream.
    """
    config = ModelConfig(vocab_size=7, d_model=4, n_layers=2, n_heads=2, n_kv_heads=1, d_hidden=3, n_experts=5, top_k=2)
    layer = {
        "attention.gain_D": ((4,), None), "attention.w_q_DHP": ((4, 2, 2), 0.5),
        "attention.w_k_DGP": ((4, 1, 2), 0.5), "attention.w_v_DGP": ((4, 1, 2), 0.5),
        "attention.w_o_HPD": ((2, 2, 4), 0.25),
        "moe.gain_D": ((4,), None), "moe.w_router_DE": ((4, 5), 0.5), "moe.w_gate_EDF": ((5, 4, 3), 0.5),
        "moe.w_up_EDF": ((5, 4, 3), 0.5), "moe.w_down_EFD": ((5, 3, 4), 0.25)}
    expected = {f"layers.{i}.{name}": weight for i in range(2) for name, weight in layer.items()}
    expected |= {"embed.w_VD": ((7, 4), 0.5), "final.gain_D": ((4,), None), "head.w_DV": ((4, 7), 0.5)}
    assert model.weights(config) == expected
    del expected["head.w_DV"]
    assert model.weights(replace(config, tie_embeddings=True)) == expected


def test_the_names_of_a_layer_tell_its_kind():
    """Of four layers the first is dense; of the others every second one is a mixture: the third."""
    config = replace(CONFIG, n_layers=4, first_dense_layers=1, moe_every=2)
    kinds = {tuple(name.split(".")[1:3]) for name in model.weights(config) if name.startswith("layers.")}
    assert kinds == {(str(i), kind) for i in range(4) for kind in ("attention", "moe" if i == 2 else "dense")}
    soft = model.weights(replace(CONFIG, router="soft", first_dense_layers=1))
    assert {name.split(".")[2] for name in soft if name.startswith("layers.")} == {"attention", "dense", "soft"}


def test_there_is_one_routing_for_each_layer_that_has_a_router():
    config = replace(CONFIG, n_layers=5, first_dense_layers=1, moe_every=2)
    _, routings = model.forward(gradcheck.random_params(config), batch_of()[0], config)
    assert len(routings) == 2
    config = VARIANTS["router soft"]
    assert model.forward(gradcheck.random_params(config), batch_of()[0], config)[1] == []


def test_models_that_differ_in_their_experts_start_with_the_same_attention():
    few, many = (model.init_params(replace(CONFIG, n_experts=n), seed=5) for n in (2, 4))
    name = "layers.1.attention."
    assert_equal(parameters.scope(few, name), parameters.scope(many, name))


def test_a_model_starts_in_float32_from_seed_0():
    assert_equal(model.init_params(CONFIG), model.init_params(CONFIG, seed=0, dtype=np.float32))


@each_dtype
def test_a_model_starts_from_its_seed(dtype):
    first, again, other = (model.init_params(CONFIG, seed, dtype) for seed in (1, 1, 2))
    assert_equal(first, again)
    assert (first["embed.w_VD"] != other["embed.w_VD"]).all()
    assert {array.dtype for array in first.values()} == {np.dtype(dtype)}


def test_every_loss_by_hand():
    """Two layers of two experts; their logits are (0, 0) and, router weight 1/2 times token 2, (1, 1).

    ce: no head, so all V = 5 tokens are equally likely.   balance: P is uniform, so 2 * (f_0 + f_1) / 2 = 1.
    z: logsumexp is ln 2 and 1 + ln 2, so the mean over layers of its square.
    """
    config = ModelConfig(vocab_size=5, d_model=4, n_layers=2, n_heads=1, n_experts=2, top_k=1, norm_eps=1e-30,
                         balance_coef=0.25, z_coef=0.5)
    params = flat_params(config)
    params["layers.1.moe.w_router_DE"][0] = 0.5
    losses, _ = batches.loss_and_grads(params, *batch_of(config), config)
    z = (math.log(2) ** 2 + (1 + math.log(2)) ** 2) / 2
    np.testing.assert_allclose(numbers(losses), [math.log(5), 1, z, math.log(5) + 0.25 + 0.5 * z], 1e-14)


def test_layers_collapsed_onto_opposite_experts_are_not_balanced():
    """Logits (+-100, -+100): in each layer f = P = (1, 0) or (0, 1), so its balance is 2 * 1 * 1 = 2.

    Pooled over the layers f = P = (1/2, 1/2) would give 1 and see nothing.
    """
    config = ModelConfig(vocab_size=5, d_model=4, n_layers=2, n_heads=1, n_experts=2, top_k=1, norm_eps=1e-30)
    params = flat_params(config)
    params["layers.0.moe.w_router_DE"][0] = 50, -50
    params["layers.1.moe.w_router_DE"][0] = -50, 50
    losses, _ = batches.loss_and_grads(params, *batch_of(config), config)
    assert math.isclose(losses.balance, 2, rel_tol=1e-14)


@each_dropless
def test_logits_against_a_loop(config):
    params, (tokens_BS, _) = gradcheck.random_params(config), batch_of(config)
    logits_BSV, _ = model.forward(params, tokens_BS, config)
    np.testing.assert_allclose(logits_BSV, [slow_logits(params, tokens_S, config) for tokens_S in tokens_BS],
                               atol=1e-12)


def test_the_reported_ce_is_the_cross_entropy_of_the_logits_alone():
    params, (tokens_BS, targets_BS) = gradcheck.random_params(CONFIG), batch_of()
    losses, _ = batches.loss_and_grads(params, tokens_BS, targets_BS, CONFIG)
    logits_BSV, _ = model.forward(params, tokens_BS, CONFIG)
    slow = [math.log(sum(math.exp(x) for x in logits_BSV[b, s])) - logits_BSV[b, s, targets_BS[b, s]]
            for b, s in np.ndindex(tokens_BS.shape)]
    assert math.isclose(losses.ce, sum(slow) / len(slow), rel_tol=1e-13)


@pytest.mark.parametrize(("balance_coef", "z_coef"), [(0, 0), (0.01, 0), (0, 0.01), (2, 3)])
def test_the_objective_is_the_weighted_sum_of_what_is_reported(balance_coef, z_coef):
    params, batch = gradcheck.random_params(CONFIG), batch_of()
    losses, _ = batches.loss_and_grads(params, *batch, replace(CONFIG, balance_coef=balance_coef, z_coef=z_coef))
    plain, _ = batches.loss_and_grads(params, *batch, CONFIG)
    assert numbers(losses)[:3] == numbers(plain)[:3]
    assert losses.total == losses.ce + (balance_coef * losses.balance + z_coef * losses.z)
    assert losses.auxiliary == {"balance": losses.balance, "z": losses.z}


@pytest.mark.parametrize("tie_embeddings", [False, True])
@pytest.mark.parametrize("capacity_factor", [None, 0.6])
def test_every_gradient_is_that_of_the_complex_step(tie_embeddings, capacity_factor):
    config = replace(CONFIG, d_hidden=3, n_experts=3, tie_embeddings=tie_embeddings, capacity_factor=capacity_factor)
    report = gradcheck.check_model(config)
    assert report.ok, report
    assert {row.name for row in report.rows if row.length > 1e-3} == model.weights(config).keys()
    (_, routings), _ = model.objective_forward(
        gradcheck.random_params(config), *gradcheck.random_batch(config), config, training=True)
    assert all(routing.kept_A.all() == (capacity_factor is None) for routing in routings)


@pytest.mark.parametrize("fields", [dict(router="soft"), dict(first_dense_layers=2)])
def test_without_a_router_there_is_no_loss_but_the_cross_entropy(fields):
    config = replace(CONFIG, **fields)
    losses, _ = step(gradcheck.random_params(config), *batch_of(), config)
    assert losses.auxiliary == {}
    assert (losses.balance, losses.z, losses.total) == (0, 0, losses.ce)


def test_a_dense_layer_counts_in_no_mean_over_layers():
    """Of two layers one has a router: the mean is that one's loss, not half of it."""
    config = VARIANTS["first layer dense"]
    losses, _ = step(gradcheck.random_params(config), *batch_of(), config)
    _, [routing] = model.forward(gradcheck.random_params(config), batch_of()[0], config)
    lse_T = np.log(np.exp(routing.logit_TE).sum(axis=1))
    assert math.isclose(losses.z, (lse_T ** 2).mean(), rel_tol=1e-13)


def test_a_load_of_the_whole_step_takes_the_place_of_each_layers_own():
    """balance = mean over layers of E * sum f P; with f = (0, 1, 0, 0) that is E times the mean probability of 1."""
    (logit_TV, routings), _ = model.model_forward(gradcheck.random_params(CONFIG), batch_of()[0], CONFIG)
    load_LE = np.array([[0.0, 1.0, 0.0, 0.0]] * 2)
    losses, _ = model.losses_forward(logit_TV, routings, batch_of()[1], CONFIG, load_LE=load_LE)
    expected = np.mean([4 * routing.prob_TE[:, 1].mean() for routing in routings])
    assert math.isclose(losses.balance, expected, rel_tol=1e-13)


def test_after_a_step_the_biases_of_layers_with_a_router_move_by_their_own_loads():
    """Loads of 4, 1, 1, 2 have a mean of 2: down, up, up, as it is."""
    config = replace(VARIANTS["router sigmoid_bias"], n_layers=3, moe_every=2, bias_rate=0.25)
    params = model.init_params(config) | {"layers.1.moe.bias_E": np.array([1, 2, 3, 4], np.float32)}
    changed = model.after_step(params, np.array([[4, 1, 1, 2]]), config)
    assert {name: array.tolist() for name, array in changed.items()} == {
        "layers.1.moe.bias_E": [0.75, 2.25, 3.25, 4]}
    assert params["layers.1.moe.bias_E"].tolist() == [1, 2, 3, 4]
    assert changed["layers.1.moe.bias_E"].dtype == np.float32


@pytest.mark.parametrize("config", parameters_of(name for name, config in VARIANTS.items()
                                                 if config.router != "sigmoid_bias"))
def test_after_a_step_nothing_else_moves(config):
    count_LE = np.ones((len(config.moe_layers), config.n_experts), int)
    assert model.after_step(model.init_params(config), count_LE, config) == {}


def test_the_gradient_is_a_multiple_of_that_of_the_objective():
    _, cache = model.objective_forward(gradcheck.random_params(CONFIG), *batch_of(), CONFIG)
    grads = model.objective_backward(1.0, cache)
    assert_close(model.objective_backward(-3.0, cache), {name: -3 * grad for name, grad in grads.items()})


def test_training_one_expert_is_training_the_dense_model():
    config = VARIANTS["dense"]
    params, batch = gradcheck.random_params(config), batch_of(config)
    losses, grads = step(params, *batch, config)
    plain, plain_grads = step(params, *batch, replace(config, balance_coef=0.0, z_coef=0.0))
    assert losses.total == losses.ce == plain.total
    assert_equal(grads, plain_grads)
    assert not grads["layers.0.moe.w_router_DE"].any()


@pytest.mark.parametrize("wrong", [[[1.0]], np.ones((16, 16), int)])
def test_parameters_that_are_no_floating_point_arrays_are_refused(wrong):
    params = gradcheck.random_params(CONFIG) | {"head.w_DV": wrong}
    with pytest.raises(ValueError, match="head.w_DV.*must be an array of floating point numbers"):
        model.forward(params, batch_of()[0], CONFIG)


def test_one_expert_is_exactly_a_dense_block():
    config = VARIANTS["dense"]
    weights = parameters.scope(gradcheck.random_params(config), "layers.0.")
    x_TD, dy_TD = np.random.default_rng(0).normal(size=(2, 3 * 5, config.d_model))
    of_batch = Tokens.of_batch(np.zeros((3, 5), int))
    (y_TD, routing), cache = model.block_forward(x_TD, weights, config, "moe", of_batch, rotations(config, 5))
    dx_TD, grads = model.block_backward(dy_TD, zero_gradient(routing), cache, batch=3)
    dense_y_TD, dense_dx_TD, dense_grads = dense_block(x_TD, weights, config, 3, dy_TD)
    np.testing.assert_array_equal(y_TD, dense_y_TD)
    np.testing.assert_array_equal(dx_TD, dense_dx_TD)
    assert not grads.pop("moe.w_router_DE").any()
    assert_equal(grads, dense_grads)


@each_dropless
@pytest.mark.parametrize("length", range(1, 7))
def test_the_logits_of_a_prefix_are_those_of_the_whole(config, length):
    params, (tokens_BS, _) = gradcheck.random_params(config), batch_of(config)
    whole_BSV, _ = model.forward(params, tokens_BS, config)
    prefix_BSV, _ = model.forward(params, tokens_BS[:, :length], config)
    np.testing.assert_allclose(prefix_BSV, whole_BSV[:, :length], atol=1e-12)


def test_capacity_by_position_keeps_the_future_out():
    config = VARIANTS["drop by position"]
    for seed in range(20):
        params, (tokens_BS, _) = gradcheck.random_params(config, seed), batch_of(config, sequences=1, seed=seed)
        changed_BS = tokens_BS.copy()
        changed_BS[:, -1] = (changed_BS[:, -1] + 1) % config.vocab_size
        before_BSV, after_BSV = (model.forward(params, tokens, config)[0] for tokens in (tokens_BS, changed_BS))
        np.testing.assert_allclose(before_BSV[:, :-1], after_BSV[:, :-1], atol=1e-12)
        assert (before_BSV[:, -1] != after_BSV[:, -1]).all()


@each_dropless
def test_sequences_do_not_see_each_other(config):
    params, (tokens_BS, _) = gradcheck.random_params(config), batch_of(config)
    together_BSV, _ = model.forward(params, tokens_BS, config)
    alone_BSV = [model.forward(params, tokens_S[None], config)[0][0] for tokens_S in tokens_BS]
    np.testing.assert_allclose(together_BSV, alone_BSV, atol=1e-12)


@each_dropless
def test_the_order_of_the_batch_does_not_matter(config):
    params, (tokens_BS, targets_BS), order_B = gradcheck.random_params(config), batch_of(config), [2, 0, 1]
    logits_BSV, _ = model.forward(params, tokens_BS, config)
    permuted_BSV, _ = model.forward(params, tokens_BS[order_B], config)
    np.testing.assert_allclose(permuted_BSV, logits_BSV[order_B], atol=1e-12)
    losses, grads = batches.loss_and_grads(params, tokens_BS, targets_BS, config)
    permuted_losses, permuted_grads = batches.loss_and_grads(params, tokens_BS[order_B], targets_BS[order_B], config)
    np.testing.assert_allclose(numbers(permuted_losses), numbers(losses), 1e-13)
    assert_close(permuted_grads, grads)


@each_quiet
def test_padding_changes_no_loss_and_no_gradient(config):
    """Appended and masked tokens also fill no expert: who is dropped stays the same."""
    params, batch = gradcheck.random_params(config), batch_of(config)
    mask_BS = padded(np.ones(batch[0].shape, bool), False)
    losses, grads = step(params, *batch, config)
    padded_losses, padded_grads = step(params, *(padded(array_BS, 4) for array_BS in batch), config, mask_BS)
    np.testing.assert_allclose(numbers(padded_losses), numbers(losses), 1e-13)
    assert_close(padded_grads, grads)


@each_variant
def test_padding_changes_no_logit_and_no_decision(config):
    params, (tokens_BS, _) = gradcheck.random_params(config), batch_of(config)
    mask_BS = padded(np.ones(tokens_BS.shape, bool), False)
    logits_BSV, routings = model.forward(params, tokens_BS, config)
    padded_BSV, padded_routings = model.forward(params, padded(tokens_BS, 4), config, mask_BS)
    np.testing.assert_allclose(padded_BSV[:, :-2], logits_BSV, atol=1e-12)
    for plain, routing in zip(routings, padded_routings, strict=True):
        np.testing.assert_array_equal(np.flatnonzero(mask_BS)[plain.token_A], routing.token_A)
        for name in ("expert_A", "rank_A", "slot_A", "kept_A", "count_E", "load_E", "capacity"):
            np.testing.assert_array_equal(getattr(plain, name), getattr(routing, name), name)


@each_variant
def test_what_stands_in_the_padding_does_not_matter(config):
    params, batch = gradcheck.random_params(config), batch_of(config)
    mask_BS = padded(np.ones(batch[0].shape, bool), False)
    first, second = (step(params, *(padded(array_BS, fill) for array_BS in batch), config, mask_BS) for fill in (0, 9))
    assert first[0] == second[0]
    assert_equal(first[1], second[1])


def test_rows_of_different_lengths_count_token_by_token():
    """Rows of 7 and 3 tokens: the mean over all 10 is 7/10 of the one row's ce and 3/10 of the other's."""
    params, (tokens_BS, targets_BS) = gradcheck.random_params(CONFIG), batch_of(sequences=2)
    mask_BS = np.arange(7) < [[7], [3]]
    losses, _ = batches.loss_and_grads(params, tokens_BS, targets_BS, CONFIG, mask_BS)
    long, short = (batches.loss_and_grads(params, tokens_BS[b:b + 1, :n], targets_BS[b:b + 1, :n], CONFIG)[0].ce
                   for b, n in enumerate((7, 3)))
    assert math.isclose(losses.ce, 0.7 * long + 0.3 * short, rel_tol=1e-13)


@each_variant
def test_evaluation_twice_is_the_same_bit_for_bit(config):
    params, (tokens_BS, _) = gradcheck.random_params(config), batch_of(config)
    (first_BSV, routings), (second_BSV, again) = (model.forward(params, tokens_BS, config) for _ in range(2))
    np.testing.assert_array_equal(first_BSV, second_BSV)
    assert gradcheck.flips(routings, again) == 0


@each_variant
def test_what_happens_between_two_steps_does_not_change_the_second(config):
    params, batch = gradcheck.random_params(config), batch_of(config)
    losses, grads = step(params, *batch, config)
    model.forward(params, batch_of(config, seed=1)[0], config)
    batches.loss_and_grads(params, *batch_of(config, seed=2), config, training=False)
    losses_again, grads_again = step(params, *batch, config)
    assert losses == losses_again
    assert_equal(grads, grads_again)


@each_variant
def test_backward_can_be_called_twice(config):
    params, rng = gradcheck.random_params(config), np.random.default_rng(0)
    _, cache = model.objective_forward(params, *batch_of(config), config, training=True, rng=rng)
    first = {name: grad.copy() for name, grad in model.objective_backward(1.0, cache).items()}
    assert_equal(first, model.objective_backward(1.0, cache))


@each_variant
def test_nothing_that_is_passed_in_is_written_to(config):
    params, batch = types.MappingProxyType(gradcheck.random_params(config)), batch_of(config)
    mask_BS = np.ones(batch[0].shape, bool)
    for array in (*params.values(), *batch, mask_BS):
        array.flags.writeable = False
    step(params, *batch, config, mask_BS)
    model.forward(params, batch[0], config, mask_BS)


@each_variant
@each_dtype
def test_the_dtype_stays(config, dtype):
    params, batch = model.init_params(config, dtype=dtype), batch_of(config)
    logits_BSV, routings = model.forward(params, batch[0], config)
    losses, grads = step(params, *batch, config)
    seen = [logits_BSV, *numbers(losses), *grads.values()]
    seen += [array for r in routings for array in (r.gate_A, r.prob_TE, r.logit_TE, r.weight_T)]
    assert {array.dtype for array in seen} == {np.dtype(dtype)}


@each_variant
def test_gradients_have_the_names_and_shapes_of_the_parameters(config):
    params = model.init_params(config)
    _, grads = step(params, *batch_of(config), config)
    assert {name: grad.shape for name, grad in grads.items()} == {name: array.shape for name, array in params.items()}


def test_training_and_evaluation_have_each_their_own_room():
    """T = 21 tokens and K = 2 of E = 4: a factor 0.5 leaves ceil(0.5 * 42 / 4) = 6 slots, a factor 0.1 leaves 2."""
    config = replace(CONFIG, capacity_factor=0.5, eval_capacity_factor=0.1)
    params, batch = gradcheck.random_params(config), batch_of(config)
    assert {routing.capacity for routing in model.forward(params, batch[0], config)[1]} == {2}
    wide, narrow = (batches.loss_and_grads(params, *batch, replace(config, capacity_factor=factor))[0]
                    for factor in (0.5, 0.1))
    assert batches.loss_and_grads(params, *batch, config, training=True)[0] == wide
    assert batches.loss_and_grads(params, *batch, config, training=False)[0] == narrow != wide


@each_dropless
@pytest.mark.parametrize("split", range(1, 7))
def test_keys_and_values_of_the_past_give_the_logits_of_the_whole(config, split):
    params, (tokens_BS, _) = gradcheck.random_params(config), batch_of(config)
    logits_BSV, _ = model.forward(params, tokens_BS, config)
    _, cache = model.model_forward(params, tokens_BS[:, :split], config)
    (rest_TV, _), _ = model.model_forward(params, tokens_BS[:, split:], config, pasts=rows_of_past(cache))
    np.testing.assert_allclose(rest_TV.reshape(3, 7 - split, -1), logits_BSV[:, split:], atol=1e-12)


@each_variant
def test_a_replay_of_its_own_decisions_changes_nothing(config):
    params, (tokens_BS, _) = gradcheck.random_params(config), batch_of(config)
    (logit_TV, routings), _ = model.model_forward(params, tokens_BS, config)
    (replayed_TV, _), _ = model.model_forward(params, tokens_BS, config, replays=routings)
    np.testing.assert_array_equal(replayed_TV, logit_TV)


@pytest.mark.parametrize("config", parameters_of(["drop by position", "first layer dense", "every second layer"]))
def test_a_replay_takes_over_the_decisions_of_another_model(config):
    tokens_BS, _ = batch_of()
    (_, routings), (_, others) = (model.forward(gradcheck.random_params(config, seed), tokens_BS, config)
                                  for seed in (0, 1))
    (_, replayed), _ = model.model_forward(gradcheck.random_params(config, 1), tokens_BS, config, replays=routings)
    assert gradcheck.flips(routings, replayed) == 0 < gradcheck.flips(routings, others)


def train(params, tokens_BS, config, mask_BS=None):
    return batches.loss_and_grads(params, tokens_BS, np.zeros((2, 4), int), config, mask_BS)


each_entrance = pytest.mark.parametrize("call", [model.forward, train])

TOKENS_BS = np.arange(8).reshape(2, 4)
BAD_TOKENS = [
    (TOKENS_BS - 1, r"has values from -1 to 6: must be in \[0, 11\)"),
    (TOKENS_BS + 4, r"has values from 4 to 11: must be in \[0, 11\)"),
    (TOKENS_BS * 1.0, r"has shape \(2, 4\) and dtype float64: must be whole numbers"),
    (TOKENS_BS > 1, r"has shape \(2, 4\) and dtype bool: must be whole numbers"),
    (TOKENS_BS[0], r"has shape \(4,\) and dtype int64: must be whole numbers, \[batch, sequence\]"),
    (TOKENS_BS[None], r"has shape \(1, 2, 4\) and dtype int64: must be whole numbers, \[batch, sequence\]"),
    (TOKENS_BS[:, :0], r"has shape \(2, 0\) .* at least one of each"),
    (TOKENS_BS[:0], r"has shape \(0, 4\) .* at least one of each"),
    (np.zeros((2, 10), int), "has 10 tokens a sequence: max_sequence is 9"),
]
BAD_MASKS = [
    (np.ones((2, 4), int), r"has shape \(2, 4\) and dtype int64: must be bool"),
    (np.ones((2, 3), bool), r"has shape \(2, 3\) and dtype bool: must be bool, like tokens_BS \(2, 4\)"),
    (np.ones(4, bool), r"has shape \(4,\)"),
    (np.array([[True] * 4, [False, True, True, True]]), "has padding before text"),
    (np.array([[True] * 4, [True, False, True, False]]), "has padding before text"),
    (np.array([[True] * 4, [False] * 4]), "has padding before text"),
]


@each_entrance
@pytest.mark.parametrize(("tokens_BS", "message"), BAD_TOKENS)
def test_tokens_that_do_not_fit_are_refused(call, tokens_BS, message):
    with pytest.raises(ValueError, match="^tokens_BS " + message):
        call(model.init_params(CONFIG), tokens_BS, CONFIG)


@pytest.mark.parametrize(("targets_BS", "message"), BAD_TOKENS)
def test_targets_that_do_not_fit_are_refused(targets_BS, message):
    with pytest.raises(ValueError, match="^targets_BS " + message):
        batches.loss_and_grads(model.init_params(CONFIG), TOKENS_BS, targets_BS, CONFIG)


@pytest.mark.parametrize("shape", [(2, 3), (4, 2), (1, 8)])
def test_targets_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=rf"^targets_BS has shape \({shape[0]}, {shape[1]}\), tokens_BS \(2, 4\)"):
        batches.loss_and_grads(model.init_params(CONFIG), TOKENS_BS, np.zeros(shape, int), CONFIG)


@each_entrance
@pytest.mark.parametrize(("mask_BS", "message"), BAD_MASKS)
def test_a_mask_that_does_not_fit_is_refused(call, mask_BS, message):
    with pytest.raises(ValueError, match="^mask_BS " + message):
        call(model.init_params(CONFIG), TOKENS_BS, CONFIG, mask_BS)


@each_entrance
def test_missing_and_unknown_parameters_are_refused_by_name(call):
    params = model.init_params(CONFIG)
    params["head.w_VD"] = params.pop("head.w_DV")
    with pytest.raises(ValueError, match=r"missing \['head.w_DV'\], unknown \['head.w_VD'\]"):
        call(params, TOKENS_BS, CONFIG)


@each_entrance
def test_a_head_for_a_model_without_one_is_refused(call):
    with pytest.raises(ValueError, match=r"missing \[\], unknown \['head.w_DV'\]"):
        call(model.init_params(CONFIG), TOKENS_BS, VARIANTS["tied"])


@each_entrance
def test_a_missing_parameter_is_refused_by_name(call):
    params = model.init_params(CONFIG)
    del params["layers.1.moe.gain_D"]
    with pytest.raises(ValueError, match=r"missing \['layers.1.moe.gain_D'\], unknown \[\]"):
        call(params, TOKENS_BS, CONFIG)


@each_entrance
def test_a_misshapen_parameter_is_refused_by_name(call):
    params = model.init_params(CONFIG)
    params["head.w_DV"] = params["head.w_DV"].T
    with pytest.raises(ValueError, match=r"params\['head.w_DV'\] has shape \(11, 8\), the config wants \(8, 11\)"):
        call(params, TOKENS_BS, CONFIG)


def test_a_random_order_needs_a_generator_in_training_alone():
    config = VARIANTS["drop by random"]
    params, batch = model.init_params(config), batch_of(config)
    with pytest.raises(ValueError, match="drop_order = 'random' needs rng"):
        batches.loss_and_grads(params, *batch, config)
    batches.loss_and_grads(params, *batch, config, training=False)


def test_lists_are_taken_as_arrays():
    params, mask = model.init_params(CONFIG), [[True, True], [True, False]]
    from_lists = batches.loss_and_grads(params, [[1, 2], [3, 4]], [[2, 3], [4, 5]], CONFIG, mask)
    tokens = np.array([[[1, 2], [3, 4]], [[2, 3], [4, 5]]])
    from_arrays = batches.loss_and_grads(params, *tokens, CONFIG, np.array(mask))
    assert from_lists[0] == from_arrays[0]
    assert_equal(from_lists[1], from_arrays[1])
