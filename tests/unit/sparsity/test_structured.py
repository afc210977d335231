"""A shrunken model computes what the masked one does, and is an ordinary model; what cannot be shrunk is refused."""

import itertools
import types
from dataclasses import replace

import numpy as np
import pytest

from minimoe import batches, cost, gradcheck, model, parameters
from minimoe.config import ModelConfig
from minimoe.generation import sampling
from minimoe.gradcheck import numeric
from minimoe.moe import feed_forward, routers
from minimoe.nn import ops
from minimoe.sparsity import structured
from tests import cases

CONFIG = ModelConfig(vocab_size=7, d_model=12, n_layers=3, n_heads=6, n_kv_heads=3, d_head=4, d_hidden=5, n_experts=4,
                     top_k=2, max_sequence=9)
MODELS = {
    "experts": CONFIG, "raw gates": replace(CONFIG, renormalize=False), "shared": replace(CONFIG, n_shared_experts=2),
    "sigmoid": replace(CONFIG, router="sigmoid_bias", gate_scale=2.5), "dense": replace(CONFIG, first_dense_layers=3),
    "mixed": replace(CONFIG, n_layers=4, first_dense_layers=1, moe_every=2, d_dense=8),
    "heads of their own": replace(CONFIG, n_kv_heads=None), "tied": replace(CONFIG, tie_embeddings=True)}
RNG = np.random.default_rng(0)


def some(n_kept, *shape):
    """A mask that keeps n of each row, at random."""
    order = np.argsort(RNG.random(shape), axis=-1, kind="stable")
    return np.argsort(order, axis=-1, kind="stable") < n_kept


def cuts(config):
    """Something to keep of everything that the layers have; key head 1 goes, and one query head of the others."""
    heads = {0: [1, 0, 0, 0, 0, 1], 1: [0, 1, 0, 0, 1, 0], 2: [0, 0, 1, 0, 0, 1], 3: [1, 0, 1, 0, 0, 0]}
    keep = {"heads": {i: np.array(heads[i], bool) for i in range(config.n_layers)}, "neurons": {}, "experts": {},
            "shared": {}}
    for i, kind in enumerate(config.layer_kinds):
        keep["neurons"][i] = some(4, config.dense_width) if kind == "dense" else some(3, 4, 5)
        if kind == "moe":
            keep["experts"][i] = some(3, 4)
        if kind == "moe" and config.n_shared_experts:
            keep["shared"][i] = some(6, 10)
    return {name: masks for name, masks in keep.items() if masks}


def masked(params, keep):
    """The same model in which what goes writes nothing; experts excepted."""
    new = {name: array.copy() for name, array in params.items()}
    for i, mask_H in keep.get("heads", {}).items():
        new[f"layers.{i}.attention.w_o_HPD"][~mask_H] = 0
    for i, mask in keep.get("neurons", {}).items():
        new[f"layers.{i}.moe.w_down_EFD" if mask.ndim == 2 else f"layers.{i}.dense.w_down_JD"][~mask] = 0
    for i, mask_J in keep.get("shared", {}).items():
        new[f"layers.{i}.moe.shared.w_down_JD"][~mask_J] = 0
    for i, mask_E in keep.get("experts", {}).items():  # a bias would bring back an expert without a score
        new.get(f"layers.{i}.moe.bias_E", np.zeros(4))[~mask_E] = -np.inf
    for i in np.flatnonzero(~keep.get("layers", np.ones(1, bool))):
        for name in ("attention.w_o_HPD", "moe.w_down_EFD", "dense.w_down_JD"):
            new.get(f"layers.{i}.{name}", np.zeros(1))[:] = 0
    return new


def with_scores_of_minus_infinity(page, kept_of_call):
    """A router's page that gives every expert that goes, layer by layer, a score of -inf."""
    calls = itertools.count()

    def linear(x_TD, w_DE):
        logit_TE, cache = ops.linear_forward(x_TD, w_DE)
        return np.where(kept_of_call[next(calls)], logit_TE, -np.inf), cache

    own = dict(vars(page), ops=types.SimpleNamespace(**dict(vars(ops), linear_forward=linear)))
    return types.SimpleNamespace(**vars(page) | {"forward": types.FunctionType(page.forward.__code__, own)})


@pytest.mark.parametrize("name", MODELS)
def test_a_shrunken_model_computes_what_the_masked_one_does(name, monkeypatch):
    config = MODELS[name]
    params, keep = gradcheck.random_params(config), cuts(config)
    before = {name: array.copy() for name, array in params.items()}
    tokens_BS, _ = gradcheck.random_batch(config)
    smaller, fitting = structured.shrink(params, config, keep)
    cases.assert_equal(params, before)
    model.check_params(smaller, fitting)
    assert cost.count_parameters(fitting).total == parameters.count(smaller)
    assert (fitting.n_heads, fitting.kv_heads) == (2, 2 if config.n_kv_heads else 2)
    got, _ = model.forward(smaller, tokens_BS, fitting)
    page = with_scores_of_minus_infinity(routers.POLICIES[config.router], list(keep.get("experts", {}).values()))
    monkeypatch.setitem(routers.POLICIES, config.router, page)
    expected, _ = model.forward(masked(params, keep), tokens_BS, config)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12)


def test_layers_go_whole_and_their_kinds_stay_in_an_order_that_a_configuration_has():
    config = MODELS["mixed"]  # dense, dense, moe, dense
    params, (tokens_BS, _) = gradcheck.random_params(config), gradcheck.random_batch(config)
    for kept in itertools.product([False, True], repeat=4):
        keep = {"layers": np.array(kept)}
        if kept in ((False,) * 4, (False, False, True, True)):
            continue
        smaller, fitting = structured.shrink(params, config, keep)
        assert fitting.layer_kinds == tuple(itertools.compress(config.layer_kinds, kept))
        np.testing.assert_allclose(model.forward(smaller, tokens_BS, fitting)[0],
                                   model.forward(masked(params, keep), tokens_BS, config)[0], rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="the remaining layers are moe, dense: no first_dense_layers and moe_every"):
        structured.shrink(params, config, {"layers": np.array([0, 0, 1, 1], bool)})
    same, unchanged = structured.shrink(params, config, {})
    assert unchanged == config
    cases.assert_equal(same, params)


@pytest.mark.parametrize("name", MODELS)
def test_the_gradients_of_a_shrunken_model_are_right_and_it_writes_text(name):
    params, config = structured.shrink(gradcheck.random_params(MODELS[name]), MODELS[name], cuts(MODELS[name]))
    tokens_BS, targets_BS = gradcheck.random_batch(config)
    _, grads = batches.loss_and_grads(params, tokens_BS, targets_BS, config)

    def total(arrays):
        return model.objective_forward(arrays, tokens_BS, targets_BS, config, training=True)[0][0].total

    report = numeric.compare_directions("shrunken", total, params, grads, count=1)
    assert report.ok, report
    assert len(sampling.generate(params, config, tokens_BS[0], 3, seed=0)) == tokens_BS.shape[1] + 3


def slow_output(x_TD, weights, kept, top_k):
    """Token by token: a softmax over the experts that are there, the best of them, their shares."""
    y_TD = []
    for x_D in x_TD:
        prob = dict(zip(kept, cases.softmax([x_D @ weights["w_router_DE"][:, e] for e in kept]), strict=True))
        chosen = sorted(kept, key=lambda e: -prob[e])[:top_k]
        y_TD.append(sum(prob[e] / sum(prob[c] for c in chosen) * cases.expert(x_D, weights, e) for e in chosen))
    return np.array(y_TD)


def test_the_best_experts_are_those_of_a_slow_loop():
    config = ModelConfig(d_model=6, n_heads=1, d_hidden=5, n_experts=5, top_k=2)
    weights = cases.random_weights(feed_forward.weights(config, "moe", 1.0, 1.0))
    x_TD = np.random.default_rng(1).normal(size=(11, 6))
    for n_kept in (2, 3, 4):
        error, best = min((np.sqrt(((slow_output(x_TD, weights, kept, 2) - slow_output(x_TD, weights, range(5), 2)) ** 2
                                    ).sum()), kept) for kept in itertools.combinations(range(5), n_kept))
        kept_E, found = structured.best_experts(x_TD, weights, config, n_kept)
        assert tuple(np.flatnonzero(kept_E)) == best and kept_E.dtype == bool
        assert found == pytest.approx(error, rel=1e-12)
    kept_E, error = structured.best_experts(x_TD, weights, config, 5)
    assert kept_E.all() and error == 0


def test_block_influence_by_hand():
    # two tokens: turned by 0 and by 90 degrees, mean cosine 1/2; then both turned round, mean cosine -1
    x_LTD = np.array([[[1., 0], [0, 2]], [[3, 0], [4, 0]], [[-1, 0], [-9, 0]]])
    np.testing.assert_allclose(structured.block_influence(x_LTD), [0.5, 2], rtol=0, atol=1e-15)


def mask(n, *kept):
    return np.isin(np.arange(n), kept)


@pytest.mark.parametrize(("keep", "fields", "message"), [
    ({"head": {}}, {}, "keep has head: must be among layers, heads"),
    ({"heads": {0: mask(6, 0, 1)}}, {}, "layers keep from 2 to 6 heads: must be the same number in each"),
    ({"heads": {0: mask(6, 0, 1, 2)}}, {}, r"layer 0 keeps \[2, 1, 0\] query heads of its key heads"),
    ({"heads": {0: mask(6)}}, {}, r"heads of layer 0 has shape \(6,\) and dtype bool, 0 kept"),
    ({"heads": {0: np.arange(6)}}, {}, r"dtype int64, 5 kept: must be bool, \(6,\)"),
    ({"neurons": {0: np.arange(20).reshape(4, 5) > 2}}, {}, "experts of layer 0 keep from 2 to 5 neurons"),
    ({"neurons": [np.tile(mask(5, 1), (4, 1))] * 3}, dict(n_shared_experts=1), "shared experts keep 5 neurons: must be "
                                                                             "1 x 1"),
    ({"shared": {1: mask(5, 1)}}, {}, "layer 1 is moe: it has no shared to remove"),
    ({"experts": [mask(4, 1)] * 3}, {}, "top_k = 2: 1 of 4 experts are too few for it"),
    ({"experts": [mask(4, 0, 1, 2)] * 3}, dict(router="hash"), "router = 'hash': no expert can be removed"),
    ({"experts": [mask(4, 0, 1)] * 3}, dict(router="sigmoid_bias", n_groups=2, top_groups=1),
     r"n_groups = 2: each group of experts must keep the same number; they keep \[2, 0\]"),
    ({"layers": mask(3)}, {}, "the mask of the layers"), ([], {}, r"keep = \[\]: must be a dict"),
    ({"experts": {3: mask(4, 0, 1)}}, {}, r"keep has masks of the layers \[3\]: the model has 3"),
    ({"heads": [mask(6, 1)]}, {}, "keep has 1 masks for 3 layers"), ({"heads": 2}, {}, "keep = 2: must be masks by"),
    ({"neurons": {0: [[True], [True, False]]}}, {}, "neurons of layer 0 has rows of different lengths"),
])
def test_what_cannot_be_shrunk_is_refused(keep, fields, message):
    config = replace(CONFIG, **fields)
    with pytest.raises(ValueError, match=message):
        structured.shrink(model.init_params(config), config, keep)


def test_subsets_that_cannot_be_tried_are_refused():
    config = replace(CONFIG, n_experts=40)
    weights = parameters.scope(model.init_params(config), "layers.0.moe.")
    for n_kept, message in ((20, "137,846,528,820 subsets of 40 experts are too many"), (41, "from 1 to 40")):
        with pytest.raises(ValueError, match=message):
            structured.best_experts(np.ones((2, 12)), weights, config, n_kept)
    with pytest.raises(ValueError, match="top_k = 2: 1 of 40 experts are too few"):
        structured.best_experts(np.ones((2, 12)), weights, config, 1)
    with pytest.raises(ValueError, match=r"x_TD.shape = \(0, 12\): must be \[tokens, 12\]"):
        structured.best_experts(np.ones((0, 12)), weights, config, 39)
    with pytest.raises(ValueError, match="1 tokens of length 0"):
        structured.block_influence(np.array([[[1., 0]], [[0, 0]]]))
