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


def test_no_more_than_one_forward_pass_is_kept_when_the_next_one_begins(monkeypatch):
    forward, logits, alive = model.model_forward, [], []

    def spy(*arguments, **options):
        alive.append(sum(logit() is not None for logit in logits))
        result = forward(*arguments, **options)
        logits.append(weakref.ref(result[0][0]))
        return result

    monkeypatch.setattr(model, "model_forward", spy)
    gradients(CONFIG, micro_batches(4))
    assert max(alive) <= 1
    alive.clear()
    gradients(GLOBAL, micro_batches(4))
    assert alive == [0, 1, 2, 3]


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


def test_a_bias_goes_by_the_load_of_the_whole_step():
    state = new("sigmoid_bias", accumulate=3)
    rng = np.random.default_rng(TRAINING.seed)
    batches = [data.sample(TEXT.train, rng, 3, 8) for _ in range(3)]
    count_LE = 0
    for batch in batches:
        _, routings = model.forward(state.params, batch.tokens_BS, state.model_config)
        count_LE = count_LE + np.array([r.count_E for r in routings])
    loop.step_once(state, TEXT)
    for i in range(2):
        expected_E = np.sign(count_LE[i].mean() - count_LE[i]) * np.float32(0.001)
        np.testing.assert_allclose(state.params[f"layers.{i}.moe.bias_E"], expected_E, rtol=1e-6)


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
