"""What a step does beside its gradients: the biases that it moves, what it writes down; that looking moves nothing."""

from dataclasses import replace

import numpy as np
import pytest

from minimoe import batches, model, names
from minimoe.config import ModelConfig, TrainConfig
from minimoe.generation import sampling
from minimoe.training import corpus, data, loop

CONFIG = ModelConfig(vocab_size=32, d_model=8, n_layers=2, n_heads=2, n_kv_heads=1, d_hidden=6, n_experts=4, top_k=2,
                     max_sequence=8, balance_coef=0.5, z_coef=0.3)
TRAINING = TrainConfig(n_steps=6, batch=3, sequence=8, warmup_steps=2, learning_rate=0.02, eval_every=3, eval_batches=2)
TEXT = data.build(corpus.clusters(length=300), 8)


def new(router, **training):
    """A run before its first step."""
    config = replace(CONFIG, router=router, top_k=names.ROUTERS[router].top_k or 2)
    return loop.new_state(config, replace(TRAINING, **training), TEXT)


def biases(params):
    return {name: array for name, array in params.items() if name.endswith("bias_E")}


def test_a_run_with_global_balance_has_more_than_one_group_a_step():
    with pytest.raises(ValueError, match="^global_balance = True: .*accumulate = 1 and groups = 1"):
        loop.new_state(replace(CONFIG, global_balance=True), TRAINING, TEXT)
    for more in (dict(accumulate=2), dict(groups=3)):
        state = loop.new_state(replace(CONFIG, global_balance=True), replace(TRAINING, **more), TEXT)
        loop.step_once(state, TEXT)
        assert state.step == 1


def test_a_bias_moves_by_whole_rates_and_neither_the_gradient_nor_the_decay_touches_it():
    state, n_moved = new("sigmoid_bias", weight_decay=10.0), 0
    rate = state.model_config.bias_rate
    for _ in range(6):
        before = {name: array.copy() for name, array in biases(state.params).items()}
        loop.step_once(state, TEXT)
        for name, bias_E in biases(state.params).items():
            moved_E = (bias_E - before[name]) / rate
            np.testing.assert_allclose(moved_E, moved_E.round(), atol=1e-3)  # in float32
            assert set(moved_E.round()) <= {-1, 0, 1}
            n_moved += np.count_nonzero(moved_E)
    assert len(biases(state.params)) == 2 and n_moved > 20
    for moments in state.moments:
        assert not any(array.any() for array in biases(moments).values())


def routed_in_the_first_step(state):
    """The routings of the groups of the first step, one list a group."""
    config, training, rng = state.model_config, state.train_config, np.random.default_rng(TRAINING.seed)
    drawn = [data.sample(TEXT.train, rng, 3, 8) for _ in range(training.accumulate)]
    parts = [part_BS for batch in drawn for part_BS in np.split(batch.tokens_BS, training.groups)]
    return [model.model_forward(state.params, part_BS, config, training=True)[0][1] for part_BS in parts]


def towards_even(count_E):
    """How a bias moves in one step of rate 0.001."""
    return np.sign(count_E.mean() - count_E) * np.float32(0.001)


@pytest.mark.parametrize("cut", [dict(accumulate=3), dict(groups=3), dict(accumulate=2, groups=3)], ids=str)
def test_a_bias_goes_by_the_load_of_the_whole_step(cut):
    state = new("sigmoid_bias", **cut)
    parts = routed_in_the_first_step(state)
    loop.step_once(state, TEXT)
    for i in range(2):
        count_E = sum(routings[i].count_E for routings in parts)
        np.testing.assert_allclose(state.params[f"layers.{i}.moe.bias_E"], towards_even(count_E), rtol=1e-6)


def test_a_bias_goes_by_what_experts_were_asked_for_and_not_by_what_they_had_room_for():
    """With room for a quarter of an even load, 48 / 4, all experts are full: they keep 3 of each micro-batch."""
    state = new("sigmoid_bias", accumulate=2)
    state = replace(state, model_config=replace(state.model_config, capacity_factor=0.25))
    parts = routed_in_the_first_step(state)
    loop.step_once(state, TEXT)
    for i in range(2):
        count_E = sum(routings[i].count_E for routings in parts)
        assert sum(routings[i].kept_count_E for routings in parts).tolist() == [6] * 4
        assert np.ptp(count_E) > 0
        np.testing.assert_allclose(state.params[f"layers.{i}.moe.bias_E"], towards_even(count_E), rtol=1e-6)


def test_with_a_rate_of_0_no_bias_ever_moves():
    state = new("sigmoid_bias")
    state = replace(state, model_config=replace(state.model_config, bias_rate=0))
    for _ in range(3):
        loop.step_once(state, TEXT)
    assert not any(array.any() for array in biases(state.params).values())


@pytest.mark.parametrize("router", ["noisy_topk", "random", "gshard", "switch"])
def test_looking_between_two_steps_does_not_change_the_next_loss(router):
    left_alone, looked_at = new(router), new(router)
    for state in (left_alone, looked_at):
        loop.step_once(state, TEXT)
    config = looked_at.model_config
    first = loop.evaluate(looked_at.params, TEXT, config, TRAINING)
    sampling.generate(looked_at.params, config, [1, 2, 3], 12, seed=5)
    assert loop.evaluate(looked_at.params, TEXT, config, TRAINING)["ce"] == first["ce"]
    for state in (left_alone, looked_at):
        loop.step_once(state, TEXT)
    for name in ("ce", "balance", "z", "grad_norm"):
        assert left_alone.history[name] == looked_at.history[name]


def test_the_history_has_every_loss_that_the_router_is_trained_with():
    state = new("noisy_topk", accumulate=2)
    state = replace(state, model_config=replace(state.model_config, sequence_coef=0.1))
    loop.step_once(state, TEXT)
    rng, params = np.random.default_rng(TRAINING.seed), model.init_params(state.model_config, TRAINING.seed)
    drawn = [data.sample(TEXT.train, rng, 3, 8) for _ in range(2)]
    parts = [part for batch in drawn for part in batches.cut(batch.tokens_BS, batch.targets_BS, 1)]
    losses = batches.gradients(params, parts, state.model_config, rng).losses
    for name in ("balance", "z", "importance", "load", "sequence"):
        assert state.history[name] == [np.mean([part.auxiliary[name] for part in losses])]
