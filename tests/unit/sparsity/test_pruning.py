"""A whole model pruned: which inputs count, block after block; what is left alone; of what a share is; bad input."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minimoe import gradcheck, model, parameters
from minimoe.config import ModelConfig
from minimoe.nn import attention, ops
from minimoe.sparsity import matrices, pruning, scores, sparsegpt
from tests import cases

CONFIG = ModelConfig(vocab_size=9, d_model=8, n_layers=2, n_heads=4, n_kv_heads=2, d_hidden=12, n_experts=4, top_k=2,
                     n_shared_experts=1, max_sequence=8, eval_capacity_factor=0.8)
PARAMS, RNG = gradcheck.random_params(CONFIG), np.random.default_rng(0)
TOKENS_BS = RNG.integers(0, 9, (4, 8))
NAMES = matrices.names(CONFIG)


def of_layer(i):
    return [name for name in NAMES if name.startswith(f"layers.{i}.")]


def first_inputs():
    """What the matrices of the first layer multiply, step by step; an expert's from the table of the routing."""
    w = parameters.scope(PARAMS, "layers.0.")
    x_TD = PARAMS["embed.w_VD"][TOKENS_BS.ravel()]
    normed_TD, _ = ops.rmsnorm_forward(x_TD, w["attention.gain_D"], CONFIG.norm_eps)
    rope = attention.rope_table(np.arange(8), CONFIG.head_width, CONFIG.rope_theta, float)
    plain = parameters.scope(w, "attention.") | {"w_o_HPD": np.eye(8).reshape(4, 2, 8)}  # shows what w_o multiplies
    mix_TD = attention.attention_forward(normed_TD.reshape(4, 8, 8), plain, rope)[0].reshape(-1, 8)
    x_TD = x_TD + mix_TD @ w["attention.w_o_HPD"].reshape(8, 8)
    routed_TD, _ = ops.rmsnorm_forward(x_TD, w["moe.gain_D"], CONFIG.norm_eps)
    routing = model.forward(PARAMS, TOKENS_BS, CONFIG)[1][0]
    assert not routing.kept_A.all()
    inputs = {"attention.w_q_DHP": [normed_TD], "attention.w_k_DGP": [normed_TD], "attention.w_o_HPD": [mix_TD],
              "moe.w_router_DE": [routed_TD], "moe.shared.w_up_DJ": [routed_TD], "moe.w_up_EDF": [],
              "moe.w_down_EFD": []}
    for e in range(4):
        rows = routed_TD[routing.token_A[routing.kept_A & (routing.expert_A == e)]]
        gate = rows @ w["moe.w_gate_EDF"][e]
        inputs["moe.w_up_EDF"].append(rows)
        inputs["moe.w_down_EFD"].append(gate / (1 + np.exp(-gate)) * (rows @ w["moe.w_up_EDF"][e]))
    return parameters.unscope(inputs, "layers.0.")


@pytest.mark.parametrize("method", pruning.CALIBRATED)
@pytest.mark.parametrize("config", [CONFIG, replace(CONFIG, pad_experts=True)], ids=["", "with empty slots"])
def test_each_matrix_is_pruned_by_what_it_multiplies(method, config):
    inputs = first_inputs()
    params, masks = pruning.prune(PARAMS, config, method, TOKENS_BS, 0.5, names=inputs)
    for name, rows in inputs.items():
        stacks = [matrices.stack(name, tree[name]) for tree in (PARAMS, params, masks)]
        for w_DF, new_DF, mask_DF, x_TD in zip(*stacks, rows, strict=True):
            if method == "wanda":
                lowest = np.argsort(scores.wanda(w_DF, x_TD), axis=0)[:len(w_DF) // 2]
                expected = np.ones(w_DF.shape, bool)
                np.put_along_axis(expected, lowest, False, axis=0)
                np.testing.assert_array_equal(mask_DF, expected)
                np.testing.assert_array_equal(new_DF, np.where(expected, w_DF, 0))
            else:
                np.testing.assert_allclose(new_DF, sparsegpt.prune(w_DF, x_TD, 0.5)[0], rtol=1e-6, atol=1e-9)
    assert masks.keys() == inputs.keys() and all(params[name] is PARAMS[name] for name in params.keys() - masks)


@pytest.mark.parametrize("method", pruning.CALIBRATED)
def test_a_block_is_calibrated_by_the_pruned_blocks_before_it(method):
    """The same as pruning the first alone, and then the second of a model whose first is pruned; and then the head."""
    names = [*NAMES, "head.w_DV"]
    at_once, masks = pruning.prune(PARAMS, CONFIG, method, TOKENS_BS, 0.5, names=names)
    params = PARAMS
    for part in (of_layer(0), of_layer(1), ["head.w_DV"]):
        params, _ = pruning.prune(params, CONFIG, method, TOKENS_BS, 0.5, names=part)
    cases.assert_equal(at_once, params)
    alone, _ = pruning.prune(PARAMS, CONFIG, method, TOKENS_BS, 0.5, names=of_layer(1))
    assert any((alone[name] != at_once[name]).any() for name in of_layer(1))


@cases.FEW
@given(st.floats(0, 1, exclude_max=True), st.sampled_from(list(pruning.METHODS)))
def test_zeros_are_counted_exactly(sparsity, method):
    params, masks, report = pruning.prune_and_report(PARAMS, CONFIG, method, TOKENS_BS, sparsity)
    assert list(masks) == NAMES and report.unreached == []
    for name, mask in masks.items():
        assert not params[name][~mask].any() and params[name][mask].all()
        for matrix in matrices.stack(name, mask):
            if method in ("wanda", "magnitude_per_output"):
                assert set((~matrix).sum(axis=0)) == {math.floor(len(matrix) * sparsity)}
            elif method != "magnitude_global":
                assert (~matrix).sum() == math.floor(matrix.size * sparsity)
    zeros, total = (sum(f(mask) for mask in masks.values()) for f in (lambda mask: (~mask).sum(), np.size))
    assert method != "magnitude_global" or zeros == math.floor(total * sparsity)
    n = parameters.count(PARAMS)
    assert (report.pruned, report.model) == ((total - zeros, total), (n - zeros, n))
    assert sum(share.kept for shares in report.matrices.values() for share in shares) == total - zeros


@pytest.mark.parametrize("method", pruning.METHODS)
def test_a_pattern_holds_along_the_inputs_of_every_matrix(method):
    params, masks, report = pruning.prune_and_report(PARAMS, CONFIG, method, TOKENS_BS, pattern=(1, 4))
    for name, mask in masks.items():
        N, D, F = matrices.shape(name, mask.shape)
        assert (mask.reshape(N, D // 4, 4, F).sum(axis=2) == 1).all() and not params[name][~mask].any()
    assert report.pruned.sparsity == 0.75


def test_an_expert_that_no_token_reaches_keeps_its_weights_and_is_named():
    config = replace(CONFIG, eval_capacity_factor=None, n_shared_experts=0, n_layers=1)
    params = {name: array for name, array in PARAMS.items() if name in model.weights(config)}
    reached = set(model.forward(params, TOKENS_BS[:1, :1], config)[1][0].expert_A.tolist())
    for method in pruning.CALIBRATED:
        new, masks, report = pruning.prune_and_report(params, config, method, TOKENS_BS[:1, :1], 0.5)
        for name in NAMES[4:7]:
            assert [e for e in range(4) if masks[name][e].all()] == sorted({*range(4)} - reached)
            assert all((new[name][e] == params[name][e]).all() for e in {*range(4)} - reached)
            assert [e for place, e in report.unreached if place == name] == sorted({*range(4)} - reached)
    lost = ", ".join(map(str, sorted({*range(4)} - reached)))
    words = report.words(asked=0.5)
    assert f"\nno calibration token reached the experts {lost} of layers.0.moe" in words
    assert "are zero (not 50.0%: experts that no calibration token reached keep their weights), which" in words


def test_any_kind_of_layer_can_be_pruned():
    for router, fields in (("soft", {}), ("softmax_topk", dict(first_dense_layers=1))):
        config = cases.with_router(replace(CONFIG, n_shared_experts=0, eval_capacity_factor=None), router, **fields)
        params = gradcheck.random_params(config)
        for method in pruning.CALIBRATED:
            masks = pruning.prune(params, config, method, TOKENS_BS, 0.5)[1]
            assert len(masks) == 14 and all(np.mean(mask) == 0.5 for mask in masks.values())


def test_the_report_says_of_what():
    report = pruning.prune_and_report(PARAMS, CONFIG, "magnitude", None, 0.5, names="head.w_DV").report
    n = parameters.count(PARAMS)
    assert str(report) == ("50.0% of the 72 weights of the masked matrices are zero, "
                           f"which is {36 / n:.1%} of all {n:,} parameters")
    report = pruning.prune_and_report(PARAMS, CONFIG, "magnitude", None, 0.51, names="head").report
    assert " of it are zero (not 51.0%: rounded down in each matrix), which" in report.words("it", 0.51)
    assert [name for name in NAMES if name.startswith("layers.1.moe.")] == matrices.names(CONFIG, "layers.1.moe")


PRUNED = pruning.prune(PARAMS, CONFIG, "magnitude", None, 0.5)[0]
TIED = replace(CONFIG, tie_embeddings=True)
SOFT = cases.with_router(replace(CONFIG, n_shared_experts=0, eval_capacity_factor=None), "soft")


@pytest.mark.parametrize("changed, message", [
    (dict(method="random"), "method = 'random': must be one of magnitude"),
    (dict(sparsity=1.0), "sparsity = 1.0: must be a share"), (dict(sparsity=None), "sparsity = None, pattern = None"),
    (dict(sparsity=None, pattern=(4, 2)), r"pattern = \(4, 2\): .* kept <= group$"),
    (dict(sparsity=None, pattern=(2, 5)), r"pattern = \(2, 5\): groups of 5 do not divide 8 inputs of layers.0.att"),
    (dict(tokens_BS=None), "tokens_BS = None: wanda needs calibration tokens"),
    (dict(tokens_BS=TOKENS_BS[:0]), r"tokens_BS has shape \(0, 8\)"),
    (dict(params=PRUNED, sparsity=0.25), r"sparsity = 0.25: .* share of all 3,\d+ weights, and 1,\d+ of them \(50"),
    (dict(names=["embedding.w_VD"]), "names: .* 'embedding.w_VD'; did you mean embed.w_VD"),
    (dict(names=["x"]), "names: .* 'x'; there are embed.w_VD, layers.N.attention.w_q_DHP, .* head.w_DV$"),
    (dict(names=["final.gain_D"]), "names: final.gain_D is a vector"),
    (dict(names=[]), r"names = \[\]: there is nothing"), (dict(names=7), r"names = \[7\]: must be names"),
    (dict(names=["embed.w_VD"]), "names: embed.w_VD is looked up and multiplies nothing: wanda cannot"),
    (dict(names=["embed.w_VD"], config=TIED), "names: .* and as a tied head it has two kinds of input: wanda"),
    (dict(names=["head.w_DV"], config=TIED), "names: there is no head.w_DV, since the head is the embedding"),
    (dict(names=["layers.0.soft.w_slot_DEC"], config=SOFT), "names: the vectors of layers.0.soft.w_slot")])
def test_bad_input_is_refused(changed, message):
    config = changed.get("config", CONFIG)
    arguments = dict(params=PARAMS if config is CONFIG else gradcheck.random_params(config), config=config,
                     method="wanda", tokens_BS=TOKENS_BS, sparsity=0.5)
    with pytest.raises(ValueError, match=f"^{message}"):
        pruning.prune(**arguments | changed)
