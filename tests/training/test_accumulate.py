"""The gradients of a step over its micro-batches; the biases that it moves; that looking moves nothing."""

import weakref
from dataclasses import replace

import numpy as np
import pytest

from minimoe import generation, gradcheck, model, names
from minimoe import params as parameters
from minimoe.config import ModelConfig, TrainConfig
from minimoe.training import accumulate, corpus, data, loop
from minimoe.training.data import Batch

CONFIG = ModelConfig(vocab_size=32, d_model=8, n_layers=2, n_heads=2, n_kv_heads=1, d_hidden=6, n_experts=4, top_k=2,
                     max_sequence=8, balance_coef=0.5, z_coef=0.3)
GLOBAL = replace(CONFIG, global_balance=True)
TRAINING = TrainConfig(n_steps=6, batch=3, sequence=8, warmup_steps=2, learning_rate=0.02, eval_every=3, eval_batches=2)
TEXT = data.build(corpus.clusters(length=300), 8)

each_way = pytest.mark.parametrize("config", [CONFIG, GLOBAL], ids=["each by itself", "global balance"])


def micro_batches(n=3, sequences=2):
    rng = np.random.default_rng(0)
    return [Batch(*rng.integers(0, 32, (2, sequences, 7)), np.zeros(sequences, int)) for _ in range(n)]


def joined(batches):
    """One big batch of all sequences."""
    return Batch(*(np.concatenate(arrays) for arrays in zip(*batches, strict=True)))


def gradients(config, batches, look=None, params=None):
    params = gradcheck.random_params(config) if params is None else params
    return accumulate.gradients(params, batches, config, np.random.default_rng(0), look)


def assert_close(left, right, tolerance=1e-12):
    assert left.keys() == right.keys()
    assert {name: error for name in left if not (error := gradcheck.error(left[name], right[name])) < tolerance} == {}


def noted(monkeypatch):
    """The calls of forward and backward from now on, in order."""
    calls = []

    def spied(letter, function):
        def spy(*arguments, **options):
            calls.append(letter)
            return function(*arguments, **options)
        return spy

    monkeypatch.setattr(model, "model_forward", spied("F", model.model_forward))
    monkeypatch.setattr(model, "objective_backward", spied("B", model.objective_backward))
    return calls


def new(router, **training):
    """A run before its first step."""
    config = replace(CONFIG, router=router, top_k=names.ROUTERS[router].top_k or 2)
    return loop.new_state(config, replace(TRAINING, **training), TEXT)


def biases(params):
    return {name: array for name, array in params.items() if name.endswith("bias_E")}


@each_way
def test_of_one_micro_batch_they_are_its_gradients(config):
    batch, = micro_batches(1)
    losses, routings, grads = gradients(config, [batch])
    expected, expected_grads = model.loss_and_grads(gradcheck.random_params(config), batch.tokens_BS,
                                                    batch.targets_BS, config, rng=np.random.default_rng(0))
    assert losses == [expected]
    assert [len(of_batch) for of_batch in routings] == [2]
    assert_close(grads, expected_grads)


def test_they_are_the_mean_over_micro_batches():
    batches, params, rng = micro_batches(), gradcheck.random_params(CONFIG), np.random.default_rng(0)
    parts = [model.loss_and_grads(params, b.tokens_BS, b.targets_BS, CONFIG, rng=rng) for b in batches]
    losses, _, grads = gradients(CONFIG, batches)
    assert losses == [part for part, _ in parts]
    assert_close(grads, {name: sum(part[name] for _, part in parts) / 3 for name in grads})


def test_with_global_balance_they_are_those_of_one_big_batch():
    batches = micro_batches()
    losses, _, grads = gradients(GLOBAL, batches)
    (big,), _, expected = gradients(CONFIG, [joined(batches)])
    assert_close(grads, expected)
    for name in ("ce", "balance", "z", "total"):
        np.testing.assert_allclose(np.mean([getattr(part, name) for part in losses]), getattr(big, name), rtol=1e-12)


def test_the_load_of_all_counts_every_assignment_once_though_some_micro_batches_have_more():
    """GShard leaves second choices out at random: a mean of the loads would give each micro-batch the same weight."""
    batches = micro_batches()
    losses, all_routings, _ = gradients(replace(GLOBAL, router="gshard"), batches)
    assert len({len(routings[0].token_A) for routings in all_routings}) > 1
    count_LE = sum(np.array([r.count_E for r in routings]) for routings in all_routings)
    all_LE = count_LE / count_LE.sum(axis=1, keepdims=True)
    means_LE = np.mean([[r.load_E for r in routings] for routings in all_routings], axis=0)
    for part, routings in zip(losses, all_routings, strict=True):
        by_count, by_mean = (np.mean([4 * load_LE[i] @ r.prob_TE.mean(axis=0) for i, r in enumerate(routings)])
                             for load_LE in (all_LE, means_LE))
        np.testing.assert_allclose(part.balance, by_count, rtol=1e-12)
        assert abs(by_mean - by_count) > 1e-6


def test_without_it_they_are_not_since_each_micro_batch_has_to_be_even_by_itself():
    batches = micro_batches()
    losses, _, grads = gradients(CONFIG, batches)
    (big,), _, expected = gradients(CONFIG, [joined(batches)])
    router = "layers.0.moe.w_router_DE"
    assert gradcheck.error(grads[router], expected[router]) > 1e-3
    assert np.mean([part.balance for part in losses]) > big.balance
    np.testing.assert_allclose(np.mean([part.ce for part in losses]), big.ce, rtol=1e-12)


def test_without_a_balance_loss_both_ways_are_the_same_and_draw_the_same_chances():
    config = replace(CONFIG, router="noisy_topk", balance_coef=0, importance_coef=0.4, load_coef=0.6)
    (losses, routings, grads), (same, same_routings, same_grads) = (
        gradients(replace(config, global_balance=is_global), micro_batches()) for is_global in (False, True))
    assert [part.total for part in losses] == [part.total for part in same]
    for of_batch, same_of_batch in zip(routings, same_routings, strict=True):
        assert [r.expert_A.tolist() for r in of_batch] == [r.expert_A.tolist() for r in same_of_batch]
    assert_close(grads, same_grads, 1e-15)


def test_micro_batches_have_different_chances():
    config, batch = replace(CONFIG, router="random"), micro_batches(1)[0]
    _, ((first, _), (second, _)), _ = gradients(config, [batch, batch])
    assert first.expert_A.tolist() != second.expert_A.tolist()


def test_each_backward_follows_its_forward(monkeypatch):
    calls = noted(monkeypatch)
    gradients(CONFIG, micro_batches())
    assert "".join(calls) == "FBFBFB"


def test_global_balance_has_to_see_all_before_the_first_backward(monkeypatch):
    calls = noted(monkeypatch)
    gradients(GLOBAL, micro_batches())
    assert "".join(calls) == "FFFBBB"


@pytest.mark.parametrize(("config", "expected"), [(CONFIG, [0, 0, 0, 0]), (GLOBAL, [0, 1, 2, 3])],
                         ids=["each by itself", "global balance"])
def test_no_forward_pass_is_kept_when_the_next_one_begins_unless_the_balance_is_global(config, expected, monkeypatch):
    """Watched are the logits, and what attention in the first block and the cross-entropy have kept."""
    forward, losses_forward, watched, alive = model.model_forward, model.losses_forward, [], []

    def spy(*arguments, **options):
        alive.append(sum(any(array() is not None for array in arrays) for arrays in watched))
        (logit_TV, routings), cache = forward(*arguments, **options)
        inner = [array for array in parameters.arrays_in(cache.blocks[0].attention)
                 if not any(np.shares_memory(array, param) for param in arguments[0].values())]
        assert inner
        watched.append([weakref.ref(array) for array in (logit_TV, *inner)])
        return (logit_TV, routings), cache

    def spy_losses(*arguments, **options):
        losses, cache = losses_forward(*arguments, **options)
        inner = [array for array in parameters.arrays_in(cache[1]) if array.ndim == 2]
        assert inner
        watched.append([weakref.ref(array) for array in inner])
        return losses, cache

    monkeypatch.setattr(model, "model_forward", spy)
    monkeypatch.setattr(model, "losses_forward", spy_losses)
    gradients(config, micro_batches(4))
    assert alive == expected


@each_way
def test_a_look_comes_before_each_backward_with_what_the_backward_gets(config, monkeypatch):
    calls, seen = noted(monkeypatch), []

    def look(losses, cache):
        calls.append("L")
        seen.append((losses, cache))

    losses, _, _ = gradients(config, micro_batches(2), look)
    assert "".join(calls).replace("F", "") == "LBLB"
    assert [part for part, _ in seen] == losses
    assert all(grad.shape for _, cache in seen for grad in model.objective_backward(1.0, cache).values())


def test_a_look_that_raises_ends_the_step_before_the_backward(monkeypatch):
    calls = noted(monkeypatch)

    def look(losses, cache):
        raise loop.Diverged("no")

    with pytest.raises(loop.Diverged):
        gradients(CONFIG, micro_batches(), look)
    assert calls == ["F"]


@pytest.mark.parametrize("fields", [dict(router="soft"), dict(first_dense_layers=2), dict(n_experts=1, top_k=1),
                                    dict(first_dense_layers=1)], ids=str)
def test_global_balance_asks_for_nothing_where_there_is_no_router(fields):
    config = replace(GLOBAL, **fields)
    _, routings, grads = gradients(config, micro_batches())
    assert [len(of_batch) for of_batch in routings] == [len(config.moe_layers)] * 3
    assert grads.keys() == model.weights(config).keys()


def test_a_run_with_global_balance_has_more_than_one_micro_batch_a_step():
    with pytest.raises(ValueError, match="^global_balance = True: .*accumulate = 1"):
        loop.new_state(GLOBAL, TRAINING, TEXT)
    state = loop.new_state(GLOBAL, replace(TRAINING, accumulate=2), TEXT)
    loop.step_once(state, TEXT)
    assert state.step == 1


@each_way
def test_nothing_that_was_passed_in_is_changed(config):
    params, batches = gradcheck.random_params(config), micro_batches()
    for array in (*params.values(), *parameters.arrays_in(batches)):
        array.flags.writeable = False
    gradients(config, batches, params=params)


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
    """The routings of the micro-batches of the first step, one list a micro-batch."""
    config, rng = state.model_config, np.random.default_rng(TRAINING.seed)
    batches = [data.sample(TEXT.train, rng, 3, 8) for _ in range(state.train_config.accumulate)]
    return [model.model_forward(state.params, b.tokens_BS, config, training=True, rng=rng)[0][1] for b in batches]


def towards_even(count_E):
    """How a bias moves in one step of rate 0.001."""
    return np.sign(count_E.mean() - count_E) * np.float32(0.001)


def test_a_bias_goes_by_the_load_of_the_whole_step():
    state = new("sigmoid_bias", accumulate=3)
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
    generation.generate(looked_at.params, config, [1, 2, 3], 12, seed=5)
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
    batches = [data.sample(TEXT.train, rng, 3, 8) for _ in range(2)]
    losses, _, _ = accumulate.gradients(params, batches, state.model_config, rng)
    for name in ("balance", "z", "importance", "load", "sequence"):
        assert state.history[name] == [np.mean([part.auxiliary[name] for part in losses])]
