"""The checks of whole models: every number of a small one, one direction, and what a flip does to a difference."""

import re
from dataclasses import replace

import numpy as np
import pytest

from minimoe import gradcheck, model
from minimoe.gradcheck import models, numeric
from minimoe.moe import losses
from tests import cases

SMALL = gradcheck.SMALL
ALL_LOSSES = {f"{name}_coef": 0.1 * (i + 1) for i, name in enumerate(losses.LOSSES)} | dict(n_devices=3)


def test_every_number_of_a_model_is_right():
    config = replace(SMALL, n_layers=1, d_model=8, n_kv_heads=1, n_heads=2, d_hidden=3, max_sequence=5)
    found = gradcheck.check_model(config)
    assert found.ok and found.worst < 1e-12, found
    assert {row.name: row.shape for row in found.rows} == {n: w.shape for n, w in model.weights(config).items()}
    assert all(row.checked == np.prod(row.shape) and row.length > 1e-3 for row in found.rows)


@pytest.mark.parametrize(("fields", "groups"), [
    (dict(tie_embeddings=True, n_experts=1, top_k=1), 1), (dict(capacity_factor=0.7, drop_order="random"), 1),
    (dict(n_layers=3, first_dense_layers=1, n_shared_experts=1, tie_embeddings=True), 1),
    (dict(n_layers=3, moe_every=2, d_dense=3), 1), (dict(router="soft", first_dense_layers=1), 1),
    (dict(router="noisy_topk", capacity_factor=0.7) | ALL_LOSSES, 1), (dict(capacity_factor=0.7), 2),
    (dict(capacity_factor=0.7, global_balance=True), 2), (dict(router="noisy_topk", global_balance=True), 2)], ids=str)
def test_models_with_every_option_are_right(monkeypatch, fields, groups):
    """Along a random direction in each tensor, which all of its numbers share."""
    monkeypatch.setattr(numeric, "compare", lambda *given, most: numeric.compare_directions(*given, count=1))
    config = replace(SMALL, **fields)
    found = gradcheck.check_model(config, groups=groups)
    assert found.ok and found.worst < 1e-12, found
    silent = {row.name.split(".")[-1] for row in found.rows if not row.length > 1e-6}
    assert silent <= ({"w_router_DE"} if config.n_experts == 1 else set())  # none is right by being 0


def test_of_a_large_model_five_thousand_entries_are_checked(monkeypatch):
    """Of each of the 13 tensors at most ceil(5000 / 13) = 385; the objective is one that costs nothing."""
    monkeypatch.setattr(models, "_objective_in_groups", lambda *_: lambda params: 0j)
    found = gradcheck.check_model(replace(SMALL, n_layers=1, vocab_size=300))
    assert [row.checked for row in found.rows] == [min(np.prod(row.shape), 385) for row in found.rows]
    assert re.fullmatch(r"whole model, 1\d,\d\d\d parameters, objective: ce \+ balance \+ z", found.title)


def test_one_random_direction_is_right_and_flips_nothing():
    found = gradcheck.check_direction()
    assert found.ok and found.worst < 1e-6 == found.rows[0].tolerance
    assert found.notes == ["0 routing flips"]


def test_a_routing_flip_is_reported_and_neither_frozen_routing_nor_the_complex_step_has_any():
    live, frozen = gradcheck.check_flips()
    assert not live.ok
    assert frozen.ok and frozen.worst < 1e-7 == frozen.rows[0].tolerance
    flipped, size = re.match(r"(\d+) of (\d+) steps changed a choice: a routing flip", live.notes[0]).groups()
    assert 0 < int(flipped) < int(size) == 16 * 3
    name, batch = "layers.0.moe.w_router_DE", gradcheck.random_batch(SMALL)
    params = models._near_tie(gradcheck.random_params(SMALL), batch, SMALL, name)
    (_, [routing, _]), cache = model.objective_forward(params, *batch, SMALL)
    logit_E = np.sort(routing.logit_TE[0])
    np.testing.assert_allclose(logit_E[1] - logit_E[0], 1e-6, rtol=1e-6)  # K = 2 of 3
    found = gradcheck.compare("", lambda p: model.objective_forward(p, *batch, SMALL)[0][0].total, params,
                              {name: model.objective_backward(1.0, cache)[name]})
    assert found.ok


@pytest.mark.parametrize(("fields", "words"), [
    (dict(top_k=3), "top_k = 3: must be less than n_experts = 3"),
    (dict(n_experts=1, top_k=1), "top_k = 1: must be less than n_experts = 1"),
    (dict(router="hash"), "router = 'hash': layer 0"), (dict(first_dense_layers=1), "layer 0 must have a router")])
def test_where_no_choice_can_flip_it_is_said(fields, words):
    with pytest.raises(ValueError, match=words):
        gradcheck.check_flips(replace(SMALL, **fields))


def test_without_a_flip_live_and_frozen_routing_have_the_same_difference():
    name, seen = "layers.0.moe.w_router_DE", []
    params, batch = gradcheck.random_params(SMALL), gradcheck.random_batch(SMALL)

    def total(arrays, replays=None):
        (losses_, routings), _ = model.objective_forward(arrays, *batch, SMALL, replays=replays)
        seen.append(routings)
        return losses_.total

    total(params)
    entries = range(params[name].size)
    live = gradcheck.central_difference(total, params, name, entries)
    assert all(gradcheck.flips(seen[0], routings) == 0 for routings in seen)
    frozen = gradcheck.central_difference(lambda arrays: total(arrays, seen[0]), params, name, entries)
    np.testing.assert_array_equal(live, frozen)


def test_flips_by_hand():
    """Two tokens, top 1 of 3.  One changes its expert, the other loses its place; in the second layer nothing."""
    before = cases.routed(np.full((2, 3), 1 / 3), expert_TK=[[0], [1]])
    other_expert = replace(before, expert_A=np.array([2, 1]))
    dropped = replace(other_expert, kept_A=np.array([True, False]))
    found = [gradcheck.flips([before, before], [after, before]) for after in (before, other_expert, dropped)]
    assert found == [0, 1, 2]


def test_the_small_model_hides_nothing():
    """It has all that a model has, no gain is 1, and no two experts or sequences are alike."""
    params = gradcheck.random_params(SMALL)
    gains = [array for name, array in params.items() if name.endswith("gain_D")]
    assert len(gains) == 2 * SMALL.n_layers + 1 == 5 and not any((gain == 1).any() for gain in gains)
    assert len(np.unique(params["layers.0.moe.w_up_EDF"], axis=0)) == SMALL.n_experts
    assert 1 < SMALL.kv_heads < SMALL.n_heads and 1 < SMALL.top_k < SMALL.n_experts
    assert SMALL.head_width == 4  # two pairs, each with its own wavelength
    assert min(SMALL.balance_coef, SMALL.z_coef) > 0.1
    for array in gradcheck.random_batch(SMALL):
        assert array.shape == (2, 9) and not np.array_equal(*array)
