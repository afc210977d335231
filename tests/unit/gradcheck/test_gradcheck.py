"""The checker is itself checked: it passes what is right, and catches one-line bugs in every backward."""

import inspect
import re
from dataclasses import replace
from functools import partial
from importlib import import_module
from pkgutil import walk_packages

import numpy as np
import pytest

from minimoe import batches, gradcheck, model, moe, nn
from minimoe.gradcheck import numeric
from minimoe.moe import capacity, dense, dispatch, experts, feed_forward, gates, layer, losses, routing, soft
from minimoe.moe.capacity import ORDERS
from minimoe.moe.losses import LOSSES, balance, scores, variation
from minimoe.moe.routers import (
    ROUTERS,
    base,
    expert_choice,
    gshard,
    hash_layers,
    noisy_topk,
    random_routing,
    sigmoid_bias,
    sinkhorn,
    softmax_topk,
    st_moe,
    switch,
    uniform,
)
from minimoe.moe.routing import Tokens
from minimoe.nn import attention, ops

TIED = replace(gradcheck.SMALL, tie_embeddings=True)
CASES = gradcheck.layer_cases()
LAYERS = [CASES[name] for name in (
    "softmax_topk, K=2, drop by position", "softmax_topk, K=2, raw, dropless", "softmax_topk, 2 shared experts",
    "softmax_topk, empty slots computed", "softmax_topk, slots of the busiest", "dense", "soft, K=2",
    "switch, K=1, drop by position", "noisy_topk, K=2, drop by position",
    "gshard, K=2, drop by position", "st_moe, K=2, raw, drop by position", "sigmoid_bias, 1 group of 2",
    "expert_choice, K=2, dropless", "sinkhorn, K=2, drop by position", "base, K=1, drop by position",
    "hash, K=2, dropless", "random, K=2, dropless", "uniform, K=2, dropless")]
"""Few set-ups that use every backward in moe/."""


def cubes(arrays):
    """sum x^3 + 5 y: by x 3 x^2, by y 5."""
    return (arrays["x"] ** 3).sum() + 5 * arrays["y"].sum()


ARRAYS = {"x": np.array([[1.0, 2.0], [-3.0, 0.5]]), "y": np.array([7.0])}
GRADS = {"x": np.array([[3.0, 12.0], [27.0, 0.75]]), "y": np.array([5.0])}


def test_the_complex_step_is_exact():
    np.testing.assert_allclose(gradcheck.complex_step(cubes, ARRAYS, "x", range(4)), [3, 12, 27, 0.75], rtol=1e-15)


def test_the_central_difference_is_off_by_the_step_squared():
    """((x + h)^3 - (x - h)^3) / 2h = 3 x^2 + h^2; a larger h would show it, at 1e-5 it is 1e-10 beside rounding."""
    np.testing.assert_allclose(gradcheck.central_difference(cubes, ARRAYS, "x", range(4)), [3, 12, 27, 0.75], atol=1e-8)


def test_the_step_of_the_central_difference_goes_both_ways(monkeypatch):
    """With h = 1: ((2 + 1)^3 - (2 - 1)^3) / 2 = (27 - 1) / 2 = 13 = 3 * 2^2 + 1^2."""
    monkeypatch.setattr(numeric, "CENTRAL_STEP", 1.0)
    assert gradcheck.central_difference(cubes, ARRAYS, "x", [1]) == [13]


def test_a_slope_along_a_direction_by_hand():
    # 3 x^2 = 3, 12, 27, 0.75: 3 * 1 + 12 * -2 + 0 + 0.75 * 4 = -18, and 27
    directions = np.array([[[1.0, -2.0], [0.0, 4.0]], [[0.0, 0.0], [1.0, 0.0]]])
    np.testing.assert_allclose(numeric.complex_directions(cubes, ARRAYS, "x", directions), [-18, 27], rtol=1e-15)


@pytest.mark.parametrize("method", [gradcheck.complex_step, gradcheck.central_difference])
def test_entries_are_counted_row_by_row(method):
    np.testing.assert_allclose(method(cubes, ARRAYS, "x", [2, 1]), [27, 12], rtol=1e-8)


@pytest.mark.parametrize("method", [gradcheck.complex_step, gradcheck.central_difference])
def test_a_numeric_derivative_leaves_the_arrays_alone(method):
    before = {name: array.copy() for name, array in ARRAYS.items()}
    method(cubes, ARRAYS, "x", range(4))
    assert all(np.array_equal(before[name], ARRAYS[name]) for name in ARRAYS)


@pytest.mark.parametrize(("analytic", "by_number", "expected"), [
    ([3, 4], [3, 4], 0),
    ([3, 4], [-3, -4], 1),  # 10 / (5 + 5)
    ([3, 0], [0, 4], 5 / 7),  # 5 / (3 + 4)
    ([3, 4], [0, 0], 1),
    ([0, 0], [0, 0], 0),
    ([4e-14, 0], [-4e-14, 0], 0),  # rounding error of 0
    ([1e-12, 0], [0, 0], 1),
    ([np.nan, 1], [1, 1], np.nan),
    ([1, 1], [np.nan, 1], np.nan)])
def test_error_by_hand(analytic, by_number, expected):
    np.testing.assert_equal(gradcheck.error(np.array(analytic, float), np.array(by_number, float)), expected)


@pytest.mark.parametrize(("error", "ok"), [(0.0, True), (9e-13, True), (1e-12, False), (1.0, False), (np.nan, False)])
def test_a_gradient_is_right_below_the_tolerance(error, ok):
    assert numeric.Row("x", (2,), 2, 1.0, error, 1e-12).ok == ok


def report(*errors):
    return numeric.Report("f", [numeric.Row("x", (2,), 2, 1.0, error, 1e-12) for error in errors])


def test_one_wrong_gradient_makes_a_report_wrong():
    assert report(0.0, 1e-15).ok
    assert not report(0.0, 1e-3, 1e-15).ok


def test_the_worst_error_is_the_largest_and_nan_is_worse():
    assert report(0.0, 1e-3, 1e-15).worst == 1e-3
    assert np.isnan(report(0.0, np.nan, 1.0).worst)
    assert not report(0.0, np.nan).ok


def test_compare_passes_the_right_gradients():
    found = gradcheck.compare("f", cubes, ARRAYS, GRADS)
    assert found.ok
    assert [(row.name, row.shape, row.checked) for row in found.rows] == [("x", (2, 2), 4), ("y", (1,), 1)]
    assert found.rows[1].length == 5


def test_compare_tells_which_gradient_is_wrong():
    found = gradcheck.compare("f", cubes, ARRAYS, GRADS | {"y": np.array([6.0])})
    assert [row.ok for row in found.rows] == [True, False]
    np.testing.assert_allclose(found.worst, 1 / 11)  # |6 - 5| / (6 + 5)


def test_random_directions_pass_the_right_gradients():
    found = numeric.compare_directions("f", cubes, ARRAYS, GRADS, notes=["a note"])
    assert found.ok
    assert [(row.name, row.shape, row.checked) for row in found.rows] == [("x", (2, 2), 4), ("y", (1,), 1)]
    assert found.rows[1].length == 5
    assert found.notes == ["a note"]


@pytest.mark.parametrize("entry", range(4))
def test_random_directions_see_one_wrong_number(entry):
    wrong = {name: grad.copy() for name, grad in GRADS.items()}
    wrong["x"].flat[entry] *= 1 + 1e-9
    assert [row.ok for row in numeric.compare_directions("f", cubes, ARRAYS, wrong).rows] == [False, True]


def test_the_random_directions_are_all_different():
    """Three right slopes do not make up for a gradient that is wrong across them: no direction is used twice."""
    seen = []

    def total(arrays):
        seen.append(arrays["x"].imag.tobytes())
        return arrays["x"].sum()

    numeric.compare_directions("f", total, {"x": np.ones(3)}, {"x": np.ones(3)}, count=5)
    assert len(set(seen)) == 5


def test_compare_checks_at_most_so_many_entries():
    """All but one of the entries are wrong, so any two that are looked at show it."""
    found = gradcheck.compare("f", cubes, ARRAYS, {"x": GRADS["x"] * [[1, 2], [2, 2]], "y": GRADS["y"]}, most=2)
    assert [(row.checked, row.ok) for row in found.rows] == [(2, False), (1, True)]


def test_the_entries_checked_are_all_different():
    seen = []

    def method(function, arrays, name, entries):
        seen.extend(entries)
        return gradcheck.complex_step(function, arrays, name, entries)

    gradcheck.compare("f", lambda arrays: arrays["x"].sum(), {"x": np.ones(50)}, {"x": np.ones(50)}, method, most=49)
    assert len(set(seen)) == 49


def test_a_report_prints_each_tensor_with_its_shape_error_and_verdict():
    grads = {"x": np.array([[3.0, 12.0], [27.0, 0.75]]), "y": np.array([6.0])}
    report = gradcheck.compare("cubes", cubes, ARRAYS, grads, most=3, notes=["a note"])
    title, head, _, x, y, note = str(report).splitlines()
    assert (title, head.split()) == ("cubes: WRONG", ["tensor", "shape", "checked", "error", "limit"])
    assert re.fullmatch(r"x +\(2, 2\) +3 of 4 +\d\.\de[-+]\d\d +1e-12 +ok", x)
    assert re.fullmatch(r"y +\(1,\) +all 1 +9\.1e-02 +1e-12 +WRONG", y)
    assert note == "a note"


def test_a_right_report_says_so_and_tells_a_gradient_of_zero():
    found = str(gradcheck.compare("flat", lambda arrays: 0 * cubes(arrays), ARRAYS, {"y": np.zeros(1)}))
    assert found.splitlines()[0] == "flat: right"
    assert found.endswith("ok (zero)")


def test_the_tolerances():
    """What is exact must agree to 1e-12; a difference of frozen routing to 1e-7; one along a whole model to 1e-6."""
    found = [gradcheck.check_ops()[0], gradcheck.check_flips()[1], gradcheck.check_direction()]
    assert [report.rows[0].tolerance for report in found] == [1e-12, 1e-7, 1e-6]


def test_the_operations_are_right():
    for found in gradcheck.check_ops():
        assert found.ok and found.worst < 1e-12, found


def test_every_number_of_the_small_model_is_right():
    found = gradcheck.check_model()
    assert found.ok and found.worst < 1e-12, found
    assert {row.name: row.shape for row in found.rows} == {
        name: weight.shape for name, weight in model.weights(gradcheck.SMALL).items()}
    assert all(row.checked == np.prod(row.shape) for row in found.rows)


ALL_LOSSES = {f"{name}_coef": 0.1 * (i + 1) for i, name in enumerate(LOSSES)} | dict(n_devices=3)


@pytest.mark.parametrize("fields", [
    dict(tie_embeddings=True), dict(n_experts=1, top_k=1), dict(top_k=1),
    dict(capacity_factor=0.7, drop_order="random"), dict(n_layers=3, first_dense_layers=1, n_shared_experts=1),
    dict(n_layers=3, moe_every=2, d_dense=3), dict(router="soft", first_dense_layers=1),
    dict(router="noisy_topk", capacity_factor=0.7) | ALL_LOSSES,
    *(dict(router=name, top_k=router.FACTS.top_k or 2) for name, router in ROUTERS.items() if name != "softmax_topk")])
def test_other_models_are_right(fields):
    found = gradcheck.check_model(replace(gradcheck.SMALL, **fields), most=10)
    assert found.ok and found.worst < 1e-12, found


def test_of_a_large_model_five_thousand_entries_are_checked(monkeypatch):
    """Of each of the 13 tensors at most ceil(5000 / 13) = 385; the objective is one that costs nothing."""
    monkeypatch.setattr(gradcheck.models, "_objective_in_groups", lambda *_: lambda params: 0j)
    found = gradcheck.check_model(replace(gradcheck.SMALL, n_layers=1, vocab_size=300))
    assert [row.checked for row in found.rows] == [min(np.prod(row.shape), 385) for row in found.rows]


def test_one_random_direction_is_right():
    found = gradcheck.check_direction()
    assert found.ok and found.worst < 1e-6
    assert found.notes == ["0 routing flips"]


def test_a_routing_flip_is_reported_and_frozen_routing_has_none():
    live, frozen = gradcheck.check_flips()
    assert not live.ok
    assert frozen.ok and frozen.worst < 1e-7
    flipped = int(re.match(r"(\d+) of \d+ steps changed a choice", live.notes[0])[1])
    assert flipped > 0


def test_the_complex_step_does_not_flip():
    """At the same near tie where the live central difference fails."""
    batch = gradcheck.random_batch(gradcheck.SMALL)
    name = "layers.0.moe.w_router_DE"
    params = gradcheck.models._near_tie(gradcheck.random_params(gradcheck.SMALL), batch, gradcheck.SMALL, name)
    _, grads = batches.loss_and_grads(params, *batch, gradcheck.SMALL)
    found = gradcheck.compare("", lambda p: model.objective_forward(p, *batch, gradcheck.SMALL)[0][0].total, params,
                              {name: grads[name]})
    assert found.ok


def test_flips_by_hand():
    """Two tokens, top 1 of 3.  One changes its expert, the other loses its place; in the second layer nothing."""
    before = routing.dropless_routing(*gates.assignments_by_token(np.array([[0], [1]]), np.ones(2, bool)), np.ones(2),
                                   np.zeros((2, 3)), np.full((2, 3), 1 / 3), Tokens.anonymous(np.ones(2, bool)))
    other_expert = replace(before, expert_A=np.array([2, 1]))
    dropped = replace(other_expert, kept_A=np.array([True, False]))
    assert gradcheck.flips([before, before], [before, before]) == 0
    assert gradcheck.flips([before, before], [other_expert, before]) == 1
    assert gradcheck.flips([before, before], [dropped, before]) == 2


def test_a_random_batch_is_two_sequences_that_are_not_alike():
    for array in gradcheck.random_batch(gradcheck.SMALL):
        assert array.shape == (2, 9)
        assert not np.array_equal(*array)


def test_no_gain_is_one():
    params = gradcheck.random_params(gradcheck.SMALL)
    gains = [array for name, array in params.items() if name.endswith("gain_D")]
    assert len(gains) == 2 * gradcheck.SMALL.n_layers + 1
    assert not any((gain == 1).any() for gain in gains)


def test_no_two_experts_are_alike():
    w_EDF = gradcheck.random_params(gradcheck.SMALL)["layers.0.moe.w_up_EDF"]
    assert len(np.unique(w_EDF, axis=0)) == gradcheck.SMALL.n_experts


def test_the_small_model_has_all_that_a_model_has():
    config = gradcheck.SMALL
    assert config.n_layers == 2
    assert 1 < config.kv_heads < config.n_heads
    assert config.d_head == 4  # two pairs, each with a wavelength of its own
    assert 1 < config.top_k < config.n_experts
    assert min(config.balance_coef, config.z_coef) > 0.1


@pytest.mark.parametrize("case", CASES)
def test_a_layer_drops_tokens_only_with_a_capacity(case):
    config = CASES[case]
    found = gradcheck.check_layer(config)
    assert found.ok and found.worst < 1e-12, found
    dropped = [int(re.match(r"(\d+) of \d+ assignments dropped", note)[1]) for note in found.notes]
    assert len(dropped) == len(config.moe_layers)
    assert any(dropped) == (config.capacity_factor is not None)


def test_the_layer_cases_have_every_router_gate_and_drop_order():
    cases = CASES.values()
    for name, router in ROUTERS.items():
        own = [config for config in cases if config.router == name]
        orders = set() if router.FACTS.soft else ORDERS.keys()
        assert {config.drop_order for config in own if config.capacity_factor is not None} == orders
        assert {config.top_k for config in own} >= ({router.FACTS.top_k} if router.FACTS.top_k else {1, 2, 4})
        gates = {True, False} if "renormalize" in router.FACTS.options else {own[0].gates_sum_to_one}
        assert {config.gates_sum_to_one for config in own} >= gates
    assert {config.layer_kinds[0] for config in cases} == {"moe", "soft", "dense"}
    assert any(config.n_shared_experts for config in cases)
    assert {config.capacity_factor is None for config in cases if config.pad_experts} == {True, False}
    assert any(config.top_groups < config.n_groups for config in cases)


def test_the_objectives_are_the_task_each_loss_and_all_together():
    assert list(gradcheck.OBJECTIVES) == ["task", *LOSSES, "all together"]
    assert gradcheck.OBJECTIVES["all together"].keys() == {"task", *LOSSES}
    assert len(set(gradcheck.OBJECTIVES["all together"].values())) == 1 + len(LOSSES)  # weights that tell them apart


@pytest.mark.parametrize(("case", "without"), [
    ("noisy_topk, K=2, dropless", set()), ("softmax_topk, K=2, dropless", {"load"}),
    ("soft, K=2", {*LOSSES, "all together"}), ("dense", {*LOSSES, "all together"})])
def test_a_layer_has_the_objectives_that_make_sense(case, without):
    assert set(gradcheck.checks.objectives_of(CASES[case])) == gradcheck.OBJECTIVES.keys() - without


GAIN_AFTER_THE_MEAN = ("dx_TD *= scale_T1", """
    dx_TD = gain_D * scale_T1 * (dy_TD - unit_TD * (dy_TD * unit_TD).mean(axis=-1, keepdims=True))""")
"""A text of `rmsnorm_backward`, and a well-known bug."""

BUGS = [
    (ops, "linear_backward", "x_TD.T @ dy_TF", "x_TD.T @ dy_TF / len(dy_TF)"),
    (ops, "linear_backward", "x_TD.T @ dy_TF", "x_TD.T @ dy_TF[::-1]"),
    (ops, "softmax_backward", "(dp_TE - expected_T1)", "dp_TE"),
    (ops, "softmax_backward", "(dp_TE * p_TE).sum(", "(dp_TE * p_TE).mean("),
    (ops, "softmax_backward", "(dp_TE * p_TE).sum(", "dp_TE.mean("),
    (ops, "softmax_backward", "return p_TE *", "return p_TE / len(p_TE) *"),
    (ops, "sigmoid_backward", " * (1 - s_TE)", ""),
    (ops, "sigmoid_backward", "1 - s_TE", "1 - s_TE * s_TE"),
    (ops, "softplus_backward", "sigmoid_forward(x_TE)[0]", "(x_TE > 0)"),
    (ops, "softplus_backward", "sigmoid_forward(x_TE)[0]", "softplus_forward(x_TE)[0]"),
    (ops, "normal_cdf_backward", "np.exp(-0.5 *", "np.exp(-"),
    (ops, "normal_cdf_backward", " * (1 / math.sqrt(2 * math.pi))", ""),
    (ops, "rmsnorm_backward", "dx_TD -= unit_TD * along_T[:, None]", "pass"),
    (ops, "rmsnorm_backward", *GAIN_AFTER_THE_MEAN),
    (ops, "rmsnorm_backward", "dy_TD * gain_D  #", "dy_TD.copy()  #"),
    (ops, "rmsnorm_backward", " / gain_D.size", ""),
    (ops, "rmsnorm_backward", "dx_TD *= scale_T1", "pass"),
    (ops, "rmsnorm_backward", 'dy_TD, unit_TD)', 'dy_TD, unit_TD) / len(dy_TD)'),
    (ops, "silu_gate_backward", "dgate_TF += sigmoid_TF", "dgate_TF = sigmoid_TF.copy()"),
    (ops, "silu_gate_backward", "dgate_TF *= silu_TF", "dgate_TF *= sigmoid_TF"),
    (ops, "silu_gate_backward", "dgate_TF *= up_TF", "pass"),
    (ops, "silu_gate_backward", "gate_TF * sigmoid_TF", "sigmoid_TF.copy()"),
    (ops, "swiglu_backward", "dx_TD += dup_TF", "dx_TD = dup_TF"),
    (ops, "swiglu_backward", "x_TD.T, dgate_TF", "x_TD.T, dup_TF"),
    (ops, "swiglu_backward", "h_TF.T, dy_TD", "gate_cache[0].T, dy_TD"),
    (ops, "embedding_backward", "dw_VD[used] = np.add.reduceat(dx_TD[order_T], starts, axis=0)",
     "dw_VD[tokens_T] += dx_TD"),
    (ops, "embedding_backward", "dx_TD[order_T]", "dx_TD"),
    (ops, "embedding_backward", "np.zeros_like(w_VD)", "np.ones_like(w_VD)"),
    (ops, "cross_entropy_backward", "dloss * weight_T", "dloss * np.full(len(weight_T), 1 / len(weight_T))"),
    (ops, "cross_entropy_backward", "dloss * weight_T", "weight_T"),
    (ops, "cross_entropy_backward", "-= 1", "-= weight_T"),
    (attention, "rope_backward", "sin_SP, 1)", "sin_SP, -1)"),
    (attention, "rope_backward", "dy_BHSP * cos_SP", "dy_BHSP"),
    (attention, "attend_backward", "1 / math.sqrt(", "1 * math.sqrt("),
    (attention, "attend_backward", "1 / math.sqrt(k_BGMP.shape[3])", "1"),
    (attention, "attend_backward", "dmix_BGQP, mix_BGQP)", "dmix_BGQP, 0 * mix_BGQP)"),
    (attention, "attend_backward", "dscore_BGMQ *= weight_BGMQ", "pass"),
    (attention, "attend_backward", "dscore_BGMQ @ q_BGQP", "dscore_BGMQ @ q_BGQP[:, ::-1]"),
    (attention, "attend_backward", "weight_BGMQ @ dmix_BGQP", "weight_BGMQ[:, ::-1] @ dmix_BGQP"),
    (attention, "split_heads_backward", "dq_BHSP.swapaxes(1, 2)", "dq_BHSP"),
    (attention, "split_heads_backward", "w_DHP.reshape(D, H * P).T", "w_DHP.reshape(H * P, D)"),
    (attention, "merge_heads_backward", "dmix_BSHP.swapaxes(1, 2)", "dmix_BSHP.reshape(B, H, S, P)"),
    (attention, "merge_heads_backward", "mix_rows.T @ dy_TD", "mix_rows.T @ dy_TD / B"),
    (attention, "attention_backward", "dx_BSD += dx_k_BSD", "pass"),
    (attention, "attention_backward", "dx_BSD += dx_v_BSD", "dx_BSD = dx_v_BSD"),
    (attention, "attention_backward", "rope_backward(dq_BHSP, cache.rope)", "dq_BHSP"),
    (attention, "attention_backward", '"w_k_DGP": dw_k_DGP', '"w_k_DGP": dw_v_DGP'),
    (gates, "assign_backward", "if sum_T1 is not None", "if False"),
    (gates, "assign_backward", "dgate_TK -= (dgate_TK * gate_TK)", "0 * (dgate_TK * gate_TK)"),
    (gates, "assign_backward", ".sum(axis=1", ".mean(axis=1"),
    (gates, "assign_backward", "dgate_TK /= sum_T1", "dgate_TK /= dgate_TK.shape[1]"),
    (gates, "assign_backward", "expert_TK] = dgate_TK", "expert_TK] = dgate_TK[:, ::-1]"),
    (gates, "assign_backward", "np.zeros_like(score_TE)", "np.ones_like(score_TE)"),
    (softmax_topk, "backward", "grad.dprob_TE + assign", "assign"),
    (softmax_topk, "backward", "grad.dprob_TE + assign.assign_backward(grad.dgate_A, assign_cache)", "grad.dprob_TE"),
    (softmax_topk, "backward", "ops.softmax_backward(dprob_TE, softmax_cache)", "dprob_TE"),
    (softmax_topk, "backward", "grad.dlogit_TE + ", ""),
    (switch, "backward", "dx_TD * factor_TD", "dx_TD"),
    (switch, "backward", "dx_TD * factor_TD", "dx_TD / factor_TD"),
    (noisy_topk, "backward", "grad.dprob_TE + assign", "assign"),
    (noisy_topk, "backward", "grad.dlogit_TE + ", ""),
    (noisy_topk, "backward", "dlogit_TE = dlogit_TE + dthreshold_TE", "pass"),
    (noisy_topk, "backward", "dclean_TE = dclean_TE + dlogit_TE", "dclean_TE = dlogit_TE"),
    (noisy_topk, "backward", "dspread_TE + noise_TE * dlogit_TE", "noise_TE * dlogit_TE"),
    (noisy_topk, "backward", "dspread_TE + noise_TE * dlogit_TE", "dspread_TE + dlogit_TE"),
    (noisy_topk, "backward", "dspread_TE + noise_TE * dlogit_TE", "dspread_TE"),
    (noisy_topk, "backward", "np.split(dw_both,", "np.split(dw_both[:, ::-1],"),
    (noisy_topk, "chance_backward", "return dclean_TE, -z_TE", "return dclean_TE, z_TE"),
    (noisy_topk, "chance_backward", " / spread_TE  #", "  #"),
    (noisy_topk, "chance_backward", "ops.normal_cdf_backward(dchance_TE, phi_cache)", "dchance_TE"),
    (noisy_topk, "chance_backward", "last_T1, -np.where(chosen_TE, 0,", "next_T1, -np.where(chosen_TE, 0,"),
    (noisy_topk, "chance_backward", "next_T1, -np.where", "next_T1, np.where"),
    (noisy_topk, "chance_backward", "(dlogit_TE, next_T1", "(dclean_TE, next_T1"),
    (gshard, "backward", "topk.backward(grad,", "topk.backward(grad._replace(dgate_A=grad.dgate_A / 2),"),
    (st_moe, "backward", "gshard.backward(grad,", "gshard.backward(grad._replace(dlogit_TE=0 * grad.dlogit_TE),"),
    (sigmoid_bias, "backward", "gate_scale * grad.dgate_A", "grad.dgate_A"),
    (sigmoid_bias, "backward", "grad.dprob_TE - expected_T1", "grad.dprob_TE"),
    (sigmoid_bias, "backward", " / sum_T1", ""),
    (sigmoid_bias, "backward", "dscore_TE += (", "dscore_TE = ("),
    (sigmoid_bias, "backward", "ops.sigmoid_backward(dscore_TE, sigmoid_cache)", "dscore_TE"),
    (sigmoid_bias, "backward", "grad.dlogit_TE + ", ""),
    (sigmoid_bias, "backward", "np.zeros_like(dlogit_TE[0])", "dlogit_TE.sum(axis=0)"),
    (expert_choice, "backward", "+= grad.dgate_A", "= grad.dgate_A"),
    (expert_choice, "backward", "grad.dprob_TE.copy()", "np.zeros_like(grad.dprob_TE)"),
    (expert_choice, "backward", "[token_A, expert_A] += grad.dgate_A", "[token_A, expert_A] += grad.dgate_A[::-1]"),
    (expert_choice, "backward", "grad.dlogit_TE + ", ""),
    (sinkhorn, "backward", "topk.backward(grad,", "topk.backward(grad._replace(dprob_TE=0 * grad.dprob_TE),"),
    (base, "backward", "grad.dlogit_TE + ", ""),
    (base, "backward", "ops.softmax_backward(grad.dprob_TE, softmax_cache)", "grad.dprob_TE"),
    (base, "backward", "dlogit_TE = dlogit_TE + ops.sigmoid", "dlogit_TE = ops.sigmoid"),
    (base, "backward", "ops.sigmoid_backward(dscore_TE, sigmoid_cache)",
     "ops.softmax_backward(dscore_TE, softmax_cache)"),
    (hash_layers, "backward", "np.zeros_like(x_TD)", "np.ones_like(x_TD)"),
    (random_routing, "backward", "hashing.backward(grad, cache)", "(cache, {})"),
    (uniform, "backward", "hashing.backward(grad, cache)", "(cache, {})"),
    (capacity, "keep_backward", "dgate_A[routing.kept_N]", "dgate_A[routing.kept_A]"),
    (capacity, "keep_backward", "np.zeros(", "np.ones("),
    (dispatch, "dispatch_backward", "_sum_rows(drows_ND,", "_sum_rows(drows_ND[::-1],"),
    (dispatch, "combine_backward", "dy_ND *= gate_N[:, None]", "pass"),
    (dispatch, "combine_backward", "dy_ND, out_ND)", "dy_ND, out_ND) / len(dy_ND)"),
    (experts, "experts_backward", "dw_gate_EDF[e], dw_up_EDF[e]", "dw_up_EDF[e], dw_gate_EDF[e]"),
    (experts, "experts_backward", "dout_ND[rows]", "dout_ND[rows][::-1]"),
    (experts, "experts_backward", "= 0", "= 1"),
    (experts, "experts_backward", "[:count_E[e]]", "[::-1][:count_E[e]][::-1]"),  # the last slots for the first
    (experts, "experts_backward", "_padded(dout_ND[rows], n_slots)", "_padded(dout_ND[rows][::-1], n_slots)[::-1]"),
    (dense, "dense_backward", "zip(NAMES, dweights", "zip((NAMES[1], NAMES[0], NAMES[2]), dweights"),
    (dense, "dense_backward", "return dx_TD,", "return dy_TD,"),
    (soft, "soft_backward", "dlogit_BSZ += ops", "dlogit_BSZ = ops"),
    (soft, "soft_backward", "scale_1 * dlogit_BSZ", "dlogit_BSZ"),
    (soft, "soft_backward", "dx_BSD += unit", "dx_BSD = unit"),
    (soft, "soft_backward", "unit_backward(dunit_ZD, slot_cache)", "dunit_ZD"),
    (soft, "soft_backward", "(dlogit_BSZ * cosine_BSZ).sum()", "(dlogit_BSZ * cosine_BSZ).mean()"),
    (soft, "soft_backward", "reshape(B, E, C, D).swapaxes(0, 1).reshape(-1, D)", "reshape(-1, D)"),
    (soft, "soft_backward", "x_BSD.swapaxes(1, 2), dispatch_BZS", "x_BSD.swapaxes(1, 2), dispatch_BZS[:, ::-1]"),
    (soft, "unit_backward", " - unit_TD * along_T1", ""),
    (soft, "unit_backward", "scale_T1 * (", "("),
    (soft, "unit_backward", ".sum(axis=-1", ".mean(axis=-1"),
    (balance, "balance_backward", "np.outer(weight_T, pull_E)",
     "np.outer(np.full(len(weight_T), 1 / len(weight_T)), pull_E)"),
    (balance, "balance_backward", "dloss * ", ""),
    (balance, "sequence_backward", "dloss * ", ""),
    (balance, "sequence_backward", "* pull_TE", "* pull_TE[::-1]"),
    (balance, "device_backward", "balance_backward(dloss,", "balance_backward(dloss / 2,"),
    (scores, "z_backward", "dloss * 2", "dloss"),
    (scores, "z_backward", "routing.weight_T * lse_T", "routing.weight_T"),
    (scores, "entropy_backward", "(log_TE + 1)", "np.exp(log_TE)"),
    (scores, "entropy_backward", "dloss * weight_T", "-dloss * weight_T"),
    (variation, "variation_backward", " - along", ""),
    (variation, "variation_backward", "dloss * 2", "dloss"),
    (variation, "variation_backward", " * mean)", ")"),
    (variation, "importance_backward", "[expert_A]", "[expert_A[::-1]]"),
    (variation, "load_backward", "mask_T[:, None] *", "np.ones_like(mask_T)[:, None] *"),
    (losses, "auxiliary_backward", "total[of] + ", ""),
    (losses, "auxiliary_backward", "if dloss != 0", "if name in ALWAYS"),
    (feed_forward, "kind_backward", "moe_backward(dy_TD", "moe_backward(2 * dy_TD"),
    (feed_forward, "kind_backward", "dense_backward(dy_TD", "dense_backward(2 * dy_TD"),
    (layer, "moe_backward", "dx_TD + dx_router_TD", "dx_TD"),
    (layer, "moe_backward", "grad.dgate_A + dgate_A", "dgate_A"),
    (layer, "moe_backward", "grad._replace(", "grad._replace(dprob_TE=0 * grad.dprob_TE, "),
    (layer, "moe_backward", "return dx_TD + dx_shared_TD", "return dx_TD"),
    (layer, "moe_backward", "dense_backward(dy_TD", "dense_backward(dx_TD"),
    (model, "block_backward", "dx_TD = dx_TD + dstream_TD  # x = x + moe", "dx_TD = dstream_TD  # x = x + moe"),
    (model, "block_backward", "dx_TD = dx_TD + dstream_TD  # x = x + attention", "pass  # x = x + attention"),
    (model, "block_backward", "cache.feed_forward_norm", "cache.attention_norm"),
    (model, "model_backward", "pulls.pop()", "pulls.pop(0)"),
    (model, "model_backward", "pulls.pop()", "pulls[0]"),
    (model, "model_backward", "reversed(range(len(cache.blocks)))", "range(len(cache.blocks))"),
    (model, "model_backward", '+= dw_head_DV.T', '= dw_head_DV.T'),
    (model, "model_backward", '["embed.w_VD"] += dw_head_DV.T', '["embed.w_VD"] += 0'),
    (model, "losses_backward", "dtotal / len(caches) *", "dtotal *"),
    (model, "losses_backward", "config.loss_coefs[name]", 'config.loss_coefs["balance"]'),
    (model, "losses_backward", "ops.cross_entropy_backward(dtotal,", "ops.cross_entropy_backward(dtotal / 2,"),
    (model, "objective_backward", "losses_backward(dtotal,", "losses_backward(2 * dtotal,"),
]
"""(module, function, a piece of its text, what a bug makes of it)"""


def is_right(module):
    """Whether the checker finds nothing wrong in the part of the code that a module belongs to."""
    if module in (ops, attention):
        return all(found.ok for found in gradcheck.check_ops())
    if module is model:
        return all(gradcheck.check_model(config, most=3).ok for config in (TIED, gradcheck.SMALL))
    own_first = sorted(LAYERS, key=lambda config: not module.__name__.endswith(f".{config.router}"))
    return all(gradcheck.check_layer(config).ok for config in own_first)


def put_in(monkeypatch, module, function, text, bug):
    source = inspect.getsource(getattr(module, function))
    assert text in source
    space = dict(vars(module))
    exec(source.replace(text, bug, 1), space)
    monkeypatch.setattr(getattr(module, function), "__code__", space[function].__code__)  # wherever it is used


@pytest.mark.parametrize("module", [ops, layer, model])
def test_without_a_bug_all_is_right(module):
    assert is_right(module)


@pytest.mark.parametrize(("module", "function", "text", "bug"), BUGS, ids=[f"{bug[1]}: {bug[3]}" for bug in BUGS])
def test_a_bug_is_caught(monkeypatch, module, function, text, bug):
    put_in(monkeypatch, module, function, text, bug)
    assert not is_right(module)


def test_every_backward_has_a_bug():
    modules = [import_module(found.name) for package in (nn, moe)
               for found in walk_packages(package.__path__, package.__name__ + ".")]
    backwards = {(module, name) for module in [*modules, model] for name, value in vars(module).items()
                 if re.fullmatch(r"(\w+_)?backward", name) and value.__module__ == module.__name__}
    assert backwards == {(module, function) for module, function, _, _ in BUGS}


def passes(pair, arrays, weight):
    """Whether an operation passes with the objective (weight * y).sum()."""
    forward, backward = getattr(ops, f"{pair}_forward"), getattr(ops, f"{pair}_backward")
    grads = backward(weight, forward(*arrays.values())[1])
    grads = dict(zip(arrays, grads if isinstance(grads, tuple) else (grads,), strict=True))
    return gradcheck.compare(pair, lambda a: (weight * forward(*a.values())[0]).sum(), arrays, grads).ok


@pytest.mark.parametrize(("text", "bug"), [
    ("return p_TE *", "return p_TE / len(p_TE) *"), ("return p_TE *", "return"),
    ("(dp_TE * p_TE).sum(", "dp_TE.mean("), ("return p_TE", "return -p_TE")])
def test_a_plain_sum_does_not_see_a_wrong_softmax(monkeypatch, text, bug):
    """Each row sums to 1 whatever x is, so the gradient of a plain sum is 0, and 0 in these ways too."""
    put_in(monkeypatch, ops, "softmax_backward", text, bug)
    rng = np.random.default_rng(0)
    arrays = {"x_TE": rng.normal(size=(11, 4))}
    assert passes("softmax", arrays, np.ones((11, 4)))
    assert not passes("softmax", arrays, rng.normal(size=(11, 4)))


def test_a_plain_sum_does_not_see_rows_out_of_order(monkeypatch):
    """All rows of its gradient are alike."""
    put_in(monkeypatch, ops, "linear_backward", "x_TD.T @ dy_TF", "x_TD.T @ dy_TF[::-1]")
    rng = np.random.default_rng(0)
    arrays = {"x_TD": rng.normal(size=(11, 5)), "w_DF": rng.normal(size=(5, 6))}
    assert passes("linear", arrays, np.ones((11, 6)))
    assert not passes("linear", arrays, rng.normal(size=(11, 6)))


@pytest.mark.parametrize(("text", "bug"), [
    ("dy_TD * gain_D  #", "dy_TD.copy()  #"), GAIN_AFTER_THE_MEAN])
def test_a_gain_of_one_does_not_see_a_gain_in_the_wrong_place(monkeypatch, text, bug):
    put_in(monkeypatch, ops, "rmsnorm_backward", text, bug)
    monkeypatch.setattr(ops, "rmsnorm_forward", partial(ops.rmsnorm_forward, eps=1e-5))
    rng = np.random.default_rng(0)
    x_TD, weight_TD = rng.normal(size=(2, 11, 5))
    assert passes("rmsnorm", {"x_TD": x_TD, "gain_D": np.ones(5)}, weight_TD)
    assert not passes("rmsnorm", {"x_TD": x_TD, "gain_D": rng.normal(size=5)}, weight_TD)


def test_the_first_weights_hide_a_gain_in_the_wrong_place(monkeypatch):
    """A model as it is initialised passes with the gain outside the mean; with random gains it does not."""
    put_in(monkeypatch, ops, "rmsnorm_backward", "dy_TD * gain_D  #", "dy_TD.copy()  #")
    assert not gradcheck.check_model(most=2).ok
    monkeypatch.setattr(gradcheck.models, "random_params", lambda config, seed: model.init_params(config, seed, float))
    assert gradcheck.check_model(most=2).ok


def shortened(check, config, groups=1, most=None):
    """A check of a whole model that tries one entry of each tensor."""
    return check(config, groups=groups, most=1)


def test_check_everything_leads_with_whether_all_are_right(monkeypatch):
    """Only the layer's checks have a capacity, so only they see that a dropped assignment gets a gradient."""
    monkeypatch.setattr(gradcheck.checks, "layer_cases", lambda: {"as it is": LAYERS[0]})
    monkeypatch.setattr(gradcheck.models, "check_model", partial(shortened, gradcheck.models.check_model))
    monkeypatch.setenv("COLUMNS", "200")
    config, right, wrong = replace(gradcheck.SMALL, n_layers=1), [], []
    assert gradcheck.check_everything(config, right.append)
    put_in(monkeypatch, capacity, "keep_backward", "np.zeros(", "np.ones(")
    assert not gradcheck.check_everything(config, wrong.append)
    objectives = len(gradcheck.checks.objectives_of(LAYERS[0]))
    assert objectives == len(gradcheck.OBJECTIVES) - 1  # without noise no load
    n_checks = len(gradcheck.check_ops()) + objectives + 4 + 1
    assert right[0].startswith(f"All {n_checks} checks are right, of ")
    assert wrong[0].startswith(f"{objectives} of {n_checks} checks are WRONG: as it is, objective task; as it is, ")
    assert all(name in right[0] for name in ("\nsoftmax ", "\nwhole model", "live routing: WRONG", *LOSSES))
    assert re.search(rf"as it is( +\d\.\de[-+]\d\d){{{objectives}}}\n", right[0])
    assert re.search(rf"as it is( +WRONG){{{objectives}}}\n", wrong[0])


def test_without_a_flip_live_and_frozen_routing_have_the_same_difference():
    config, name = gradcheck.SMALL, "layers.0.moe.w_router_DE"
    params, batch = gradcheck.random_params(config), gradcheck.random_batch(config)
    seen = []

    def total(arrays, replays=None):
        (losses_, routings), _ = model.objective_forward(arrays, *batch, config, replays=replays)
        seen.append(routings)
        return losses_.total

    total(params)
    live = gradcheck.central_difference(total, params, name, range(params[name].size))
    assert all(gradcheck.flips(seen[0], routings) == 0 for routings in seen)
    frozen = gradcheck.central_difference(lambda arrays: total(arrays, seen[0]), params, name, range(params[name].size))
    np.testing.assert_array_equal(live, frozen)
