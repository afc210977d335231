"""One step: clipped AdamW on the mean gradient of all its groups, and what a step does besides."""

import math
from dataclasses import replace

import numpy as np
import pytest

from minimoe import batches, model
from minimoe.training import loop, optimizer
from tests import small

BALANCED = replace(small.MODEL, balance_coef=5.0, z_coef=0.3)


def after_a_step(config, **training):
    """A run in float64 after its first step."""
    state = small.in_float64(small.new(config, **training))
    loop.step_once(state, small.CORPUS)
    return state


def test_a_step_is_clipped_adamw_on_the_gradient_of_the_batch():
    start, ([batch], _) = small.in_float64(small.new(BALANCED)), small.first_batches(1)
    _, grads = batches.loss_and_grads(start.params, batch.tokens_BS, batch.targets_BS, BALANCED)
    norm = math.sqrt(sum((grad ** 2).sum() for grad in grads.values()))
    state = after_a_step(BALANCED, clip_norm=0.1)
    optimizer.adamw_update(start.params, grads, start.moments, 0, small.TRAINING, 0.1 / norm)
    assert state.history["grad_norm"] == [pytest.approx(norm, rel=1e-12)] and norm > 0.1
    for name, w in start.params.items():
        np.testing.assert_allclose(state.params[name], w, rtol=1e-12, atol=1e-15)


def test_the_reported_loss_is_the_cross_entropy_alone():
    config = replace(small.MODEL, balance_coef=10.0, z_coef=10.0)
    start, ([batch], _) = small.in_float64(small.new(config)), small.first_batches(1)
    expected = small.slow_ce(start.params, config, batch.tokens_BS, batch.targets_BS)
    assert after_a_step(config).history["ce"] == [pytest.approx(expected, rel=1e-12)]


@pytest.mark.parametrize("cut", [dict(accumulate=2), dict(groups=2, batch=6), dict(accumulate=2, batch=2, groups=2)],
                         ids=str)
def test_accumulated_groups_of_one_balance_equal_one_large_batch(cut):
    """With loads counted over the whole step (`global_balance`), and the same pieces of text drawn."""
    cut_up = after_a_step(replace(BALANCED, global_balance=True), clip_norm=1e9, **cut)
    whole = after_a_step(BALANCED, clip_norm=1e9, batch=cut.get("batch", 3) * cut.get("accumulate", 1))
    for name in ("ce", "balance", "z", "grad_norm"):
        assert cut_up.history[name] == pytest.approx(whole.history[name], rel=1e-12)
    for name, mean in whole.moments[0].items():  # after the first step, (1 - beta1) times the gradient
        np.testing.assert_allclose(cut_up.moments[0][name], mean, rtol=1e-11, atol=1e-15)


def test_without_global_balance_each_micro_batch_has_a_balance_of_its_own():
    params, (drawn, rng) = small.new(small.BY_ROUTER["noisy_topk"]).params, small.first_batches(2)
    config = replace(small.BY_ROUTER["noisy_topk"], sequence_coef=0.1)
    parts = [part for batch in drawn for part in batches.cut(batch.tokens_BS, batch.targets_BS, 1)]
    losses = batches.gradients(params, parts, config, rng).losses
    state = small.new(config, accumulate=2)
    loop.step_once(state, small.CORPUS)
    for name in ("balance", "z", "importance", "load", "sequence"):  # every loss that the router is trained with
        assert state.history[name] == [np.mean([part.auxiliary[name] for part in losses])]
    assert not {"entropy", "device"} & state.history.keys()


def test_a_bias_goes_by_the_load_of_the_whole_step_and_by_nothing_else():
    """By the requested load, although each expert has room for one of its group's 16 assignments; with a gradient or a
    decay it would not move by whole rates."""
    config = replace(small.BY_ROUTER["sigmoid_bias"], bias_rate=0.25, capacity_factor=0.25)
    state, (drawn, _) = small.new(config, accumulate=2, groups=3, weight_decay=10.0), small.first_batches(2)
    groups = [group_BS for batch in drawn for group_BS in np.split(batch.tokens_BS, 3)]
    routings = [model.model_forward(state.params, group_BS, config, training=True)[0][1] for group_BS in groups]
    loop.step_once(state, small.CORPUS)
    for i in range(2):
        count_E = sum(of_group[i].count_E for of_group in routings)  # 48 tokens with 2 experts each: 24 on average
        assert not np.array_equal(count_E, sum(of_group[i].kept_count_E for of_group in routings))
        expected = [0.25 if count < 24 else -0.25 if count > 24 else 0 for count in count_E]
        assert state.params[f"layers.{i}.moe.bias_E"].tolist() == expected and any(expected)
        assert not any(moment[f"layers.{i}.moe.bias_E"].any() for moment in state.moments)
