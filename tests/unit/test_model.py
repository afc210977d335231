"""The whole model: by hand, against a slow loop; what it may see, what padding may not change, what it refuses."""

import math
from dataclasses import replace

import numpy as np
import pytest

from minimoe import batches, gradcheck, model, parameters
from minimoe.config import ModelConfig
from minimoe.moe import losses, routers
from minimoe.moe.routing import zero_gradient
from minimoe.nn import attention, ops
from tests import cases

CONFIG = ModelConfig(vocab_size=11, d_model=8, n_layers=2, n_heads=2, n_kv_heads=1, d_hidden=6, n_experts=4, top_k=2,
                     max_sequence=9, balance_coef=0.5, z_coef=0.3)
DROPLESS = {
    "softmax": CONFIG, "raw gates, tied": replace(CONFIG, renormalize=False, tie_embeddings=True),
    "one expert": replace(CONFIG, n_experts=1, top_k=1),
    "shared": replace(CONFIG, top_k=1, n_shared_experts=2, first_dense_layers=1, d_dense=5),
    "every second layer": replace(CONFIG, moe_every=2, n_layers=4)}
SMALL_ROOM = dict(capacity_factor=0.6, eval_capacity_factor=0.6)


def with_every_loss(router):
    """CONFIG with a different router, with a low capacity, and with every loss that it can have."""
    coefs = {f"{loss}_coef": 0.2 for loss in cases.losses_for(router)}
    room = {} if routers.ROUTERS[router].FACTS.soft else SMALL_ROOM
    return cases.with_router(CONFIG, router, n_devices=2, **coefs, **room)


ROUTED = {router: with_every_loss(router) for router in routers.ROUTERS}
NOISY = {"switch", "noisy_topk", "gshard", "st_moe", "random"}
"""Routers that draw numbers for each token of a batch in training, so that padding changes which token gets which."""
EVERY = DROPLESS | ROUTED | {f"drop by {order}": replace(CONFIG, drop_order=order, **SMALL_ROOM)
                             for order in ("position", "rank", "priority", "random")}

each_dropless = pytest.mark.parametrize("name", DROPLESS)
each = pytest.mark.parametrize("name", EVERY)


def batch_of(sequences=3, length=7, seed=0):
    """Random tokens_BS and targets_BS."""
    return np.random.default_rng(seed).integers(0, 11, (2, sequences, length))


def step(params, tokens_BS, targets_BS, config, mask_BS=None):
    return batches.loss_and_grads(params, tokens_BS, targets_BS, config, mask_BS, rng=np.random.default_rng(0))


def numbers(result):
    """ce, the auxiliary losses by name, total."""
    return [result.ce, *(loss for _, loss in sorted(result.auxiliary.items())), result.total]


def slow_logits(params, tokens_S, config):
    """One sequence through the model, and its tokens through their experts one at a time."""
    x_SD = params["embed.w_VD"][tokens_S]
    rope = attention.rope_table(np.arange(len(tokens_S)), config.head_width, config.rope_theta, np.float64)
    for i, kind in enumerate(config.layer_kinds):
        w = parameters.scope(params, f"layers.{i}.")
        normed_SD, _ = ops.rmsnorm_forward(x_SD, w["attention.gain_D"], config.norm_eps)
        mixed, _ = attention.attention_forward(normed_SD[None], parameters.scope(w, "attention."), rope)
        x_SD = x_SD + mixed[0]
        normed_SD, _ = ops.rmsnorm_forward(x_SD, w[f"{kind}.gain_D"], config.norm_eps)
        x_SD = x_SD + np.array([slow_feed_forward(x_D, parameters.scope(w, f"{kind}."), config) for x_D in normed_SD])
    normed_SD, _ = ops.rmsnorm_forward(x_SD, params["final.gain_D"], config.norm_eps)
    return normed_SD @ (params["embed.w_VD"].T if config.tie_embeddings else params["head.w_DV"])


def slow_feed_forward(x_D, w, config):
    """A token's K most probable experts, each on this token alone, and the shared ones."""
    y_D = 0 * x_D
    if "w_router_DE" in w:
        prob_E = cases.softmax(x_D @ w["w_router_DE"])
        best = sorted(range(config.n_experts), key=lambda e: -prob_E[e])[:config.top_k]
        total = sum(prob_E[e] for e in best) if config.gates_sum_to_one else 1
        y_D = sum(prob_E[e] / total * cases.expert(x_D, w, e) for e in best)
    for prefix in ("", "shared."):
        if f"{prefix}w_up_DJ" in w:
            always = [w[f"{prefix}{name}"] for name in ("w_gate_DJ", "w_up_DJ", "w_down_JD")]
            y_D = y_D + ops.swiglu_forward(x_D[None], *always)[0][0]
    return y_D


def flat_params(config):
    """A model whose stream is (1, 0, 0, 0) everywhere: the embedding alone, since no block adds anything to it.

    Its mean square is 1/4, so (with no eps to speak of) every normalized token is (2, 0, 0, 0).
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
    kinds = {tuple(name.split(".")[1:3]) for name in model.weights(replace(
        CONFIG, n_layers=3, first_dense_layers=1, router="soft")) if name.startswith("layers.")}
    assert kinds == {(str(i), kind) for i in range(3) for kind in ("attention", "soft" if i else "dense")}


def test_a_model_starts_in_float32_from_seed_0_and_its_experts_change_no_attention():
    start = model.init_params(CONFIG)
    cases.assert_equal(start, model.init_params(CONFIG, seed=0, dtype=np.float32))
    other = model.init_params(replace(CONFIG, n_experts=2), seed=0)
    cases.assert_equal(*(parameters.scope(params, "layers.1.attention.") for params in (start, other)))
    assert (start["embed.w_VD"] != model.init_params(CONFIG, seed=1)["embed.w_VD"]).all()


def test_every_loss_by_hand():
    """Two layers of two experts; their logits are (0, 0) and, router weight 1/2 times token 2, (1, 1).

    ce: no head, so all V = 5 tokens are equally likely.   balance: P is uniform, so 2 * (f_0 + f_1) / 2 = 1.
    z: logsumexp is ln 2 and 1 + ln 2, so the mean over layers of its square.

    Then logits (+-100, -+100): in each layer f = P = (1, 0) or (0, 1), so its balance is 2 * 1 * 1 = 2.  Pooled over
    the layers f = P = (1/2, 1/2) would give 1 and see nothing.
    """
    config = ModelConfig(vocab_size=5, d_model=4, n_layers=2, n_heads=1, n_experts=2, top_k=1, norm_eps=1e-30,
                         balance_coef=0.25, z_coef=0.5)
    params, batch = flat_params(config), batch_of() % 5
    params["layers.1.moe.w_router_DE"][0] = 0.5
    z = (math.log(2) ** 2 + (1 + math.log(2)) ** 2) / 2
    result, _ = step(params, *batch, config)
    np.testing.assert_allclose(numbers(result), [math.log(5), 1, z, math.log(5) + 0.25 + 0.5 * z], 1e-14)
    params["layers.0.moe.w_router_DE"][0], params["layers.1.moe.w_router_DE"][0] = (50, -50), (-50, 50)
    assert math.isclose(step(params, *batch, config)[0].balance, 2, rel_tol=1e-14)


@each_dropless
def test_logits_equal_a_loop(name):
    config, tokens_BS = DROPLESS[name], batch_of()[0]
    params = gradcheck.random_params(config)
    logits_BSV, _ = model.forward(params, tokens_BS, config)
    np.testing.assert_allclose(logits_BSV, [slow_logits(params, tokens_S, config) for tokens_S in tokens_BS],
                               atol=1e-12)


def test_the_reported_ce_is_that_of_the_logits_alone_and_the_objective_adds_each_loss_by_its_weight():
    plain = cases.with_router(CONFIG, "noisy_topk", n_devices=2, **{f"{name}_coef": 0.0 for name in losses.LOSSES})
    config = replace(plain, **{f"{name}_coef": 0.1 * (i + 1) for i, name in enumerate(losses.LOSSES)})
    params, (tokens_BS, targets_BS) = gradcheck.random_params(config), batch_of()
    logits_BSV, _ = model.forward(params, tokens_BS, config)
    slow = [math.log(sum(math.exp(x) for x in logits_BSV[b, s])) - logits_BSV[b, s, targets_BS[b, s]]
            for b, s in np.ndindex(tokens_BS.shape)]
    result, without = (batches.loss_and_grads(params, tokens_BS, targets_BS, c, training=False)[0]
                       for c in (config, plain))
    assert math.isclose(result.ce, sum(slow) / len(slow), rel_tol=1e-13)
    assert result.ce == without.ce == without.total
    total = result.ce + sum(0.1 * (i + 1) * result.auxiliary[name] for i, name in enumerate(losses.LOSSES))
    assert math.isclose(result.total, total, rel_tol=1e-13)
    assert (result.balance, result.z) == (result.auxiliary["balance"], result.auxiliary["z"])


def test_each_layer_has_its_own_loss_and_a_dense_layer_counts_in_no_mean():
    """balance = mean over layers of E * sum f P; with f = (0, 1, 0, 0) that is E times the mean probability of 1."""
    config, (tokens_BS, targets_BS) = DROPLESS["every second layer"], batch_of()
    (logit_TV, routings), _ = model.model_forward(gradcheck.random_params(config), tokens_BS, config)
    result, _ = model.losses_forward(logit_TV, routings, targets_BS, config,
                                     step=losses.Step(tokens_BS.size, np.eye(4)[[1, 2]], tokens_BS.size))
    assert len(routings) == 2
    expected = np.mean([4 * r.prob_TE[:, e].mean() for r, e in zip(routings, (1, 2), strict=True)])
    assert math.isclose(result.balance, expected, rel_tol=1e-13)
    squares = [np.log(np.exp(r.logit_TE).sum(axis=1)) ** 2 for r in routings]
    assert math.isclose(result.z, np.mean(squares), rel_tol=1e-13)


@pytest.mark.parametrize("fields", [dict(router="soft"), dict(first_dense_layers=2)], ids=str)
def test_without_a_router_there_is_no_routing_and_no_loss_but_the_cross_entropy(fields):
    config = replace(CONFIG, **fields)
    params = gradcheck.random_params(config)
    result, _ = step(params, *batch_of(), config)
    assert (result.auxiliary, result.balance, result.z, result.total) == ({}, 0, 0, result.ce)
    assert model.forward(params, batch_of()[0], config)[1] == []
    assert model.after_step(params, np.zeros((0, 4)), config) == {}


def test_after_a_step_the_biases_of_layers_with_a_router_move_by_their_own_loads():
    """Layers: dense, dense, moe, dense, moe.  Loads of 4, 1, 1, 2 have a mean of 2: down, up, up, as it is."""
    config = replace(ROUTED["sigmoid_bias"], n_layers=5, first_dense_layers=1, moe_every=2, bias_rate=0.25)
    params = model.init_params(config) | {"layers.2.moe.bias_E": np.array([1, 2, 3, 4], np.float32)}
    changed = model.after_step(params, np.array([[4, 1, 1, 2], [0, 1, 0, 0]]), config)
    assert {name: array.tolist() for name, array in changed.items()} == {
        "layers.2.moe.bias_E": [0.75, 2.25, 3.25, 4], "layers.4.moe.bias_E": [0.25, -0.25, 0.25, 0.25]}
    assert params["layers.2.moe.bias_E"].tolist() == [1, 2, 3, 4]
    assert model.after_step(params, np.ones((2, 4)), CONFIG) == {}


def test_the_gradient_is_a_multiple_of_that_of_the_objective_and_of_one_expert_that_of_the_dense_model():
    _, cache = model.objective_forward(gradcheck.random_params(CONFIG), *batch_of(), CONFIG)
    grads = model.objective_backward(1.0, cache)
    expected = {name: -3 * grad for name, grad in grads.items()}
    cases.assert_same_gradients(model.objective_backward(-3.0, cache), expected)
    assert gradcheck.check_model(DROPLESS["raw gates, tied"], most=2).ok
    config = DROPLESS["one expert"]
    result, grads = step(gradcheck.random_params(config), *batch_of(), config)
    assert result.total == result.ce and not grads["layers.0.moe.w_router_DE"].any()


def test_the_pull_of_the_losses_and_a_replay_reach_the_layer_that_they_are_meant_for():
    config = DROPLESS["every second layer"]
    params, (tokens_BS, _) = gradcheck.random_params(config), batch_of()
    (logit_TV, routings), cache = model.model_forward(params, tokens_BS, config)
    first, second = (zero_gradient(r) for r in routings)
    first = first._replace(dlogit_TE=np.ones((21, 4)) * [1, 0, 0, 0])
    grads = model.model_backward(np.zeros_like(logit_TV), [first, second], cache)
    for r, i in zip(routings, (1, 3), strict=True):
        normed_TD = cache.blocks[i].feed_forward_norm.unit_TD * params[f"layers.{i}.moe.gain_D"]
        np.testing.assert_allclose(r.logit_TE, normed_TD @ params[f"layers.{i}.moe.w_router_DE"], rtol=1e-12)
        pulled_D = normed_TD.sum(axis=0) if i == 1 else np.zeros(8)
        np.testing.assert_allclose(grads[f"layers.{i}.moe.w_router_DE"].T, [pulled_D, *np.zeros((3, 8))], rtol=1e-12)
    turned = {key: array[:, ::-1] if key.endswith("w_router_DE") else array for key, array in params.items()}
    (_, otherwise), _ = model.model_forward(turned, tokens_BS, config)
    (_, again), _ = model.model_forward(turned, tokens_BS, config, replays=routings)
    assert gradcheck.flips(routings, again) == 0 < gradcheck.flips(routings, otherwise)


@each_dropless
def test_a_prefix_a_sequence_alone_and_another_order_of_the_batch_give_the_same_logits(name):
    config, (tokens_BS, targets_BS), order_B = DROPLESS[name], batch_of(), [2, 0, 1]
    params = gradcheck.random_params(config)
    whole_BSV, _ = model.forward(params, tokens_BS, config)
    for some, expected_BSV in ((tokens_BS[:, :1], whole_BSV[:, :1]), (tokens_BS[:, :4], whole_BSV[:, :4]),
                               (tokens_BS[1:2], whole_BSV[1:2]), (tokens_BS[order_B], whole_BSV[order_B])):
        np.testing.assert_allclose(model.forward(params, some, config)[0], expected_BSV, atol=1e-12)
    result, grads = step(params, tokens_BS, targets_BS, config)
    permuted, permuted_grads = step(params, tokens_BS[order_B], targets_BS[order_B], config)
    np.testing.assert_allclose(numbers(permuted), numbers(result), 1e-13)
    cases.assert_same_gradients(permuted_grads, grads)


@each_dropless
@pytest.mark.parametrize("split", [1, 4])
def test_keys_and_values_of_the_past_give_the_logits_of_the_whole(name, split):
    config, (tokens_BS, _) = DROPLESS[name], batch_of()
    params = gradcheck.random_params(config)
    logits_BSV, _ = model.forward(params, tokens_BS, config)
    _, cache = model.model_forward(params, tokens_BS[:, :split], config)
    pasts = [(block.attention.k_BGMP, block.attention.v_BGMP) for block in cache.blocks]
    (rest_TV, _), _ = model.model_forward(params, tokens_BS[:, split:], config, pasts=pasts)
    np.testing.assert_allclose(rest_TV.reshape(3, 7 - split, -1), logits_BSV[:, split:], atol=1e-12)


def test_capacity_by_position_keeps_the_future_out():
    config = EVERY["drop by position"]
    for seed in range(20):
        params, (tokens_BS, _) = gradcheck.random_params(config, seed), batch_of(sequences=1, seed=seed)
        changed_BS = tokens_BS.copy()
        changed_BS[:, -1] = (changed_BS[:, -1] + 1) % 11
        before_BSV, after_BSV = (model.forward(params, tokens, config)[0] for tokens in (tokens_BS, changed_BS))
        np.testing.assert_allclose(before_BSV[:, :-1], after_BSV[:, :-1], atol=1e-12)
        assert (before_BSV[:, -1] != after_BSV[:, -1]).all()


@each
def test_padding_changes_no_logit_no_decision_no_loss_and_no_gradient_whatever_it_holds(name):
    """Appended and masked tokens also fill no expert: which is dropped stays the same."""
    config, batch = EVERY[name], batch_of()
    params, mask_BS = gradcheck.random_params(config), np.arange(9) < np.full((3, 1), 7)
    padded, other = ([np.pad(ids_BS, ((0, 0), (0, 2)), constant_values=fill) for ids_BS in batch] for fill in (4, 9))
    logits_BSV, routings = model.forward(params, batch[0], config)
    padded_BSV, padded_routings = model.forward(params, padded[0], config, mask_BS)
    np.testing.assert_allclose(padded_BSV[:, :-2], logits_BSV, atol=1e-12)
    for plain, r in zip(routings, padded_routings, strict=True):
        np.testing.assert_array_equal(np.flatnonzero(mask_BS)[plain.token_A], r.token_A)
        for field in ("expert_A", "rank_A", "slot_A", "kept_A", "count_E", "load_E", "capacity"):
            np.testing.assert_array_equal(getattr(plain, field), getattr(r, field), field)
    (result, grads), (padded_result, padded_grads), (same, same_grads) = (
        step(params, *batch, config), step(params, *padded, config, mask_BS), step(params, *other, config, mask_BS))
    assert same == padded_result
    cases.assert_equal(same_grads, padded_grads)
    if config.router not in NOISY:
        np.testing.assert_allclose(numbers(padded_result), numbers(result), 1e-13)
        cases.assert_same_gradients(padded_grads, grads)


def test_rows_of_different_lengths_count_token_by_token():
    """Rows of 7 and 3 tokens: the mean over all 10 is 7/10 of the one row's ce and 3/10 of the other's."""
    params, (tokens_BS, targets_BS) = gradcheck.random_params(CONFIG), batch_of(sequences=2)
    result, _ = step(params, tokens_BS, targets_BS, CONFIG, np.arange(7) < [[7], [3]])
    long, short = (step(params, tokens_BS[b:b + 1, :n], targets_BS[b:b + 1, :n], CONFIG)[0].ce
                   for b, n in enumerate((7, 3)))
    assert math.isclose(result.ce, 0.7 * long + 0.3 * short, rel_tol=1e-13)
    one = tokens_BS[:1, :1], targets_BS[:1, :1]
    (alone, _), _ = model.objective_forward(params, *one, CONFIG)
    assert math.isclose(alone.ce, step(params, *one, CONFIG)[0].ce, rel_tol=1e-13)


@each
def test_evaluation_twice_is_the_same_bit_for_bit_and_changes_no_later_step(name):
    config, batch = EVERY[name], batch_of()
    params = gradcheck.random_params(config)
    result, grads = step(params, *batch, config)
    first_BSV, second_BSV = (model.forward(params, batch[0], config)[0] for _ in range(2))
    np.testing.assert_array_equal(first_BSV, second_BSV)
    batches.loss_and_grads(params, *batch_of(seed=2), config, training=False)
    result_again, grads_again = step(params, *batch, config)
    assert result == result_again and grads.keys() == params.keys()
    cases.assert_equal(grads, grads_again)


def test_training_and_evaluation_have_each_their_own_room():
    """T = 21 tokens and K = 2 of E = 4: a factor 0.5 leaves ceil(0.5 * 42 / 4) = 6 slots, a factor 0.1 leaves 2."""
    config = replace(CONFIG, capacity_factor=0.5, eval_capacity_factor=0.1)
    params, batch = gradcheck.random_params(config), batch_of()
    assert {r.capacity for r in model.forward(params, batch[0], config)[1]} == {2}
    wide, narrow = (step(params, *batch, replace(config, capacity_factor=factor))[0] for factor in (0.5, 0.1))
    assert batches.loss_and_grads(params, *batch, config)[0] == wide
    assert batches.loss_and_grads(params, *batch, config, training=False)[0] == narrow != wide


TOKENS_BS, PARAMS = np.arange(8).reshape(2, 4), model.init_params(CONFIG)
BAD_TOKENS = [
    (TOKENS_BS - 1, r"has values from -1 to 6: must be in \[0, 11\)"),
    (TOKENS_BS + 4, r"has values from 4 to 11: must be in \[0, 11\)"),
    (TOKENS_BS * 1.0, r"has shape \(2, 4\) and dtype float64: must be whole numbers"),
    (TOKENS_BS > 1, r"has shape \(2, 4\) and dtype bool: must be whole numbers"),
    (TOKENS_BS[0], r"has shape \(4,\) and dtype int64: must be whole numbers, \[batch, sequence\]"),
    (TOKENS_BS[:, :0], r"has shape \(2, 0\) .* at least one of each"),
    (np.zeros((2, 10), int), "has 10 tokens .* max_sequence is 9")]
BAD_MASKS = [
    (np.ones((2, 4), int), r"has shape \(2, 4\) and dtype int64: must be bool"),
    (np.ones((2, 3), bool), r"has shape \(2, 3\) and dtype bool: must be bool, like tokens_BS \(2, 4\)"),
    *((np.array([[True] * 4, row]), "has padding before text") for row in (
        [False, True, True, True], [True, False, True, False], [False] * 4))]
BAD_PARAMS = [
    ({"head.w_VD": PARAMS["head.w_DV"]}, r"missing \[\], unknown \['head.w_VD'\]"),
    ({"head.w_DV": [[1.0]]}, r"params\['head.w_DV'\] is list: must be an array of floating point numbers"),
    ({"head.w_DV": np.ones((8, 11), int)}, r"params\['head.w_DV'\] is int64: must be an array of floating"),
    ({"head.w_DV": PARAMS["head.w_DV"].T}, r"params\['head.w_DV'\] has shape \(11, 8\), .* \(8, 11\)")]


@pytest.mark.parametrize(("tokens_BS", "message"), BAD_TOKENS)
def test_tokens_and_targets_that_do_not_fit_are_refused(tokens_BS, message):
    with pytest.raises(ValueError, match="^tokens_BS " + message):
        model.forward(PARAMS, tokens_BS, CONFIG)
    with pytest.raises(ValueError, match="^targets_BS " + message):
        batches.loss_and_grads(PARAMS, TOKENS_BS, tokens_BS, CONFIG)
    model.forward(PARAMS, TOKENS_BS + 3, CONFIG)  # up to 10


@pytest.mark.parametrize(("mask_BS", "message"), BAD_MASKS)
def test_a_mask_that_does_not_fit_is_refused(mask_BS, message):
    for call in (model.forward, lambda params, *rest: batches.loss_and_grads(params, TOKENS_BS, *rest)):
        with pytest.raises(ValueError, match="^mask_BS " + message):
            call(PARAMS, TOKENS_BS, CONFIG, mask_BS)


@pytest.mark.parametrize(("changed", "message"), BAD_PARAMS)
def test_parameters_that_do_not_fit_are_refused_by_name(changed, message):
    with pytest.raises(ValueError, match=message):
        model.forward(PARAMS | changed, TOKENS_BS, CONFIG)
    with pytest.raises(ValueError, match=r"missing \['layers.1.moe.gain_D'\], unknown \[\]"):
        batches.loss_and_grads({name: array for name, array in PARAMS.items() if name != "layers.1.moe.gain_D"},
                               TOKENS_BS, TOKENS_BS, CONFIG)


def test_targets_of_a_different_shape_and_a_random_order_without_a_generator_are_refused():
    with pytest.raises(ValueError, match=r"^targets_BS has shape \(2, 3\), tokens_BS \(2, 4\)"):
        batches.loss_and_grads(PARAMS, TOKENS_BS, np.zeros((2, 3), int), CONFIG)
    with pytest.raises(ValueError, match="drop_order = 'random' needs rng"):
        batches.loss_and_grads(PARAMS, TOKENS_BS, TOKENS_BS, EVERY["drop by random"])


def test_lists_are_taken_as_arrays():
    mask = [[True, True], [True, False]]
    from_lists = batches.loss_and_grads(PARAMS, [[1, 2], [3, 4]], [[2, 3], [4, 5]], CONFIG, mask)
    tokens = np.array([[[1, 2], [3, 4]], [[2, 3], [4, 5]]])
    from_arrays = batches.loss_and_grads(PARAMS, *tokens, CONFIG, np.array(mask))
    assert from_lists[0] == from_arrays[0]
    cases.assert_equal(from_lists[1], from_arrays[1])
