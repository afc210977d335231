"""Training: what a step does, that a resumed run is the run itself, and how a run ends that cannot go on."""

import itertools
import math
import re
import signal
import threading
from dataclasses import replace

import numpy as np
import pytest

from minimoe import batches, model
from minimoe.config import ModelConfig, TrainConfig
from minimoe.moe import telemetry
from minimoe.names import ROUTERS
from minimoe.training import checkpoint, corpus, data, loop, optimizer

MOE = ModelConfig(vocab_size=32, d_model=8, n_layers=2, n_heads=2, n_kv_heads=1, d_hidden=6, n_experts=4, top_k=2,
                  max_sequence=8)
DENSE = replace(MOE, n_experts=1, top_k=1)
RANDOM_DROPS = replace(MOE, capacity_factor=1.0, eval_capacity_factor=1.0, drop_order="random")
TRAINING = TrainConfig(n_steps=6, batch=3, sequence=8, warmup_steps=2, learning_rate=0.02, eval_every=3, eval_batches=4,
                       record_every=2)
TEXT = data.build(corpus.clusters(length=300), 8)
ROUTER = ("router_load", "router_drop", "router_entropy", "router_margin", "router_dead", "router_logit")

each_model = pytest.mark.parametrize("config", [MOE, DENSE], ids=["sparse", "dense"])


def new(config=MOE, **training):
    return loop.new_state(config, replace(TRAINING, **training), TEXT)


def trained(config=MOE, **training):
    return loop.train(new(config, **training), TEXT)


def numbers(state):
    """All that a run has made, but for the time that it took, in a form that == compares bit for bit."""
    history = {name: values for name, values in state.history.items() if name != "seconds"}
    trees = enumerate((state.params, *state.moments, history))
    arrays = {(i, name): np.asarray(array).tobytes() for i, tree in trees for name, array in tree.items()}
    return state.step, state.rng.bit_generator.state, arrays


def in_float64(state):
    params = {name: array.astype(float) for name, array in state.params.items()}
    return replace(state, params=params, moments=optimizer.start_moments(params))


def first_batches(n, training=TRAINING):
    """The batches that a run draws first."""
    rng = np.random.default_rng(training.seed)
    return [data.sample(TEXT.train, rng, training.batch, training.sequence) for _ in range(n)]


def slow_ce(params, config, tokens_BS, targets_BS):
    """Mean of -log softmax(logit)[target], token by token."""
    logits_BSV, _ = model.forward(params, tokens_BS, config)
    rows = zip(logits_BSV.reshape(-1, config.vocab_size).tolist(), targets_BS.ravel().tolist(), strict=True)
    return np.mean([math.log(sum(map(math.exp, logits))) - logits[target] for logits, target in rows])


def ctrl_c_after(step):
    def on_step(state):
        if state.step == step:
            signal.raise_signal(signal.SIGINT)
    return on_step


def poisoned(name, value):
    """A run after two steps with one parameter made `value`."""
    state = new()
    for _ in range(2):
        loop.step_once(state, TEXT)
    state.params[name][...] = value
    return state


def divergence_of(state, path=None):
    with pytest.raises(loop.Diverged) as caught:
        loop.train(state, TEXT, path)
    return str(caught.value)


@each_model
def test_the_loss_falls(config):
    ce = trained(config, n_steps=60, batch=8).history["ce"]
    assert np.mean(ce[-5:]) < ce[0] - 1


def test_a_step_is_clipped_adamw_on_the_gradient_of_the_batch():
    state, training = in_float64(new(clip_norm=0.1)), replace(TRAINING, clip_norm=0.1)
    params, [batch] = {name: array.copy() for name, array in state.params.items()}, first_batches(1)
    moments = optimizer.start_moments(params)
    _, grads = batches.loss_and_grads(params, batch.tokens_BS, batch.targets_BS, MOE)
    norm = math.sqrt(sum((grad ** 2).sum() for grad in grads.values()))
    optimizer.adamw_update(params, grads, moments, 0, training, 0.1 / norm)
    loop.step_once(state, TEXT)
    assert state.history["grad_norm"] == [pytest.approx(norm, rel=1e-12)] and norm > 0.1
    for name in params:
        np.testing.assert_allclose(state.params[name], params[name], rtol=1e-12, atol=1e-15)


def test_accumulated_gradients_are_the_mean_over_micro_batches():
    state = in_float64(new(accumulate=2, clip_norm=1e9))
    results = [batches.loss_and_grads(state.params, batch.tokens_BS, batch.targets_BS, MOE)
               for batch in first_batches(2)]
    loop.step_once(state, TEXT)
    for name, mean in state.moments[0].items():  # after the first step, (1 - beta1) times the gradient
        expected = (results[0][1][name] + results[1][1][name]) / 2
        np.testing.assert_allclose(mean / (1 - TRAINING.beta1), expected, rtol=1e-12, atol=1e-15)
    for name in ("ce", "balance", "z"):
        expected = np.mean([getattr(losses, name) for losses, _ in results])
        assert state.history[name] == [pytest.approx(expected, rel=1e-12)]


def test_every_step_has_one_entry_and_every_record_one():
    history = trained(n_steps=7, eval_every=3, record_every=2).history
    every_step, evaluations, records = range(1, 8), [3, 6, 7], [1, 3, 5, 7]
    assert history.keys() >= {"ce", "balance", "z", "grad_norm", "seconds", "drop", *ROUTER,
                              "eval_ce", "eval_ce_domain", "eval_load", "eval_drop"}
    assert history["eval_step"] == evaluations and history["router_step"] == records
    steps_of = {"eval": evaluations, "router": records}
    for name, values in history.items():
        assert len(values) == len(steps_of.get(name.split("_")[0], every_step)), name


def test_a_loss_that_has_a_weight_has_an_entry_too():
    history = trained(replace(MOE, entropy_coef=0.1), n_steps=2).history
    assert len(history["entropy"]) == 2 and "sequence" not in history


@pytest.mark.parametrize("config", [replace(MOE, router="soft"), replace(MOE, first_dense_layers=2)],
                         ids=["soft", "dense layers"])
def test_a_model_without_a_router_trains_and_has_the_same_entries_with_nothing_in_them(config):
    history, usual = trained(config).history, trained().history
    assert {name for name in usual if "grad" not in name} <= history.keys()
    assert {len(history[name]) for name in ("balance", "z", "drop")} == {6}
    assert set(history["balance"] + history["z"] + history["drop"] + history["eval_drop"]) == {0}
    for name in (*ROUTER, "eval_load"):
        assert np.array(history[name]).size == 0 and len(history[name]) == len(usual[name])


@pytest.mark.parametrize("router", ROUTERS)
def test_every_router_trains(router):
    """From about log 32 = 3.47 nats; and what is left to chance comes from the seed."""
    config = replace(MOE, router=router, top_k=ROUTERS[router].top_k or 2)
    first, second = (trained(config, n_steps=40) for _ in range(2))
    assert np.mean(first.history["ce"][-5:]) < first.history["ce"][0] - 0.5
    assert numbers(first) == numbers(second)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_moves_the_biases_by_the_loads_of_all_its_micro_batches(accumulate):
    config = replace(MOE, router="sigmoid_bias", bias_rate=0.25)
    state = new(config, accumulate=accumulate)
    loads = [model.forward(state.params, batch.tokens_BS, config)[1] for batch in first_batches(accumulate)]
    loop.step_once(state, TEXT)
    for i in range(2):
        count_E = sum(routings[i].count_E for routings in loads)  # 24 tokens a batch with 2 experts each: 12 on average
        expected = [0.25 if count < 12 * accumulate else -0.25 if count > 12 * accumulate else 0 for count in count_E]
        assert state.params[f"layers.{i}.moe.bias_E"].tolist() == expected and any(expected)


def test_the_router_record_is_the_summary_of_the_batch():
    config = replace(MOE, capacity_factor=0.7)
    state, [batch] = new(config), first_batches(1)
    (_, routings), _ = model.objective_forward(state.params, batch.tokens_BS, batch.targets_BS, config, training=True)
    loop.step_once(state, TEXT)
    for name, expected in zip(ROUTER, telemetry.summarize(routings), strict=True):
        np.testing.assert_array_equal(state.history[name][0], expected)
    assert state.history["drop"] == [pytest.approx(np.mean([telemetry.drop_rate(r) for r in routings]))] != [0]


@each_model
def test_the_reported_loss_is_the_cross_entropy_alone(config):
    config = replace(config, balance_coef=10.0, z_coef=10.0)
    state, [batch] = in_float64(new(config)), first_batches(1)
    expected = slow_ce(state.params, config, batch.tokens_BS, batch.targets_BS)
    loop.step_once(state, TEXT)
    assert state.history["ce"] == [pytest.approx(expected, rel=1e-12)]


@each_model
def test_evaluation_by_hand_on_texts_of_one_character(config):
    # every piece of such a text is the same, so one will do; 30 and 90 characters weigh 1 to 3
    config = replace(config, eval_capacity_factor=0.5, balance_coef=10.0)
    held_out = tuple(np.full(length, token) for token, length in ((3, 30), (5, 90)))
    text = data.Corpus(TEXT.tokenizer, ("short", "long"), (np.full(50, 9),) * 2, held_out)
    params = in_float64(new(config)).params
    result = loop.evaluate(params, text, config, TRAINING)
    pieces = [np.full((TRAINING.batch, TRAINING.sequence), token) for token in (3, 5)]
    ce_domain = [slow_ce(params, config, piece, piece) for piece in pieces]
    routings = [model.forward(params, piece, config)[1] for piece in pieces]
    np.testing.assert_allclose(result["ce_domain"], ce_domain, rtol=1e-12)
    assert result["ce"] == pytest.approx((ce_domain[0] + 3 * ce_domain[1]) / 4, rel=1e-12)
    np.testing.assert_allclose(result["load"], [[r.load_E for r in layers] for layers in routings], rtol=1e-12)
    # half the room for all: of an expert that all 24 tokens want, 24 * K * 0.5 / E are kept
    drop = np.mean([np.mean(~r.kept_A) for layers in routings for r in layers])
    assert result["drop"] == pytest.approx(drop, rel=1e-12) and drop >= 0.5


@pytest.mark.parametrize("eval_batches, per_domain", [(4, 1), (5, 2), (1, 1)])
def test_evaluation_batches_are_spread_over_the_domains(eval_batches, per_domain, monkeypatch):
    drawn, sample = [], data.sample

    def noted(streams, *rest):
        drawn.append(streams[0][0] // 8)  # which alphabet
        return sample(streams, *rest)

    monkeypatch.setattr(data, "sample", noted)
    loop.evaluate(new().params, TEXT, MOE, replace(TRAINING, eval_batches=eval_batches))
    assert [len(list(group)) for _, group in itertools.groupby(drawn)] == [per_domain] * 4


def test_evaluation_is_the_same_at_every_call_and_changes_nothing():
    state = trained(RANDOM_DROPS)
    before = numbers(state)
    first, second = (loop.evaluate(state.params, TEXT, RANDOM_DROPS, state.train_config) for _ in range(2))
    assert first.keys() == second.keys() and all(np.array_equal(first[name], second[name]) for name in first)
    assert numbers(state) == before


def test_evaluating_more_often_changes_no_step():
    often, seldom = trained(RANDOM_DROPS, n_steps=4, eval_every=1), trained(RANDOM_DROPS, n_steps=4, eval_every=4)
    assert len(often.history["eval_ce"]) == 4 > len(seldom.history["eval_ce"])
    assert often.history["ce"] == seldom.history["ce"]
    assert all(np.array_equal(often.params[name], seldom.params[name]) for name in often.params)


def test_the_seed_decides_the_first_weights_and_the_draws():
    first, second = new(seed=0), new(seed=1)
    assert not np.array_equal(first.params["head.w_DV"], second.params["head.w_DV"])
    assert first.rng.random() != second.rng.random()


def test_the_same_seed_trains_the_same_model():
    assert numbers(trained()) == numbers(trained()) != numbers(trained(seed=1))


@pytest.mark.parametrize("config, accumulate", [
    (MOE, 1), (MOE, 2), (RANDOM_DROPS, 2), (DENSE, 1), (replace(MOE, global_balance=True), 2),
    *((replace(MOE, router=name, top_k=router.top_k or 2), 1) for name, router in ROUTERS.items())])
def test_a_resumed_run_is_the_run_itself_bit_for_bit(tmp_path, config, accumulate):
    path = tmp_path / "checkpoint.npz"
    straight = loop.train(new(config, accumulate=accumulate), TEXT,
                          on_step=lambda state: state.step == 3 and checkpoint.save(path, state))
    resumed = checkpoint.load(path)
    assert resumed.step == 3
    assert numbers(loop.train(resumed, TEXT)) == numbers(straight)


def test_checkpoints_are_saved_every_so_often_and_at_the_end(tmp_path):
    path, steps = tmp_path / "checkpoint.npz", []
    loop.train(new(n_steps=5, checkpoint_every=2), TEXT, path,
               lambda state: steps.append(checkpoint.load(path).step if path.exists() else None))
    assert steps == [None, None, 2, 2, 4] and checkpoint.load(path).step == 5


def test_a_finished_run_stays_as_it_is():
    state = trained()
    before = numbers(state)
    assert numbers(loop.train(state, TEXT)) == before


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("name", ["embed.w_VD", "layers.1.moe.w_router_DE", "final.gain_D"])
def test_a_parameter_that_is_not_finite_is_named_with_the_step(name, value):
    assert re.fullmatch(r"step 3: the loss is (nan|inf|-inf); the first number that is not finite is in the parameter "
                        + name, divergence_of(poisoned(name, value)))


@pytest.mark.parametrize("name, place", [
    ("layers.1.attention.w_v_DGP", "layer 1, attention"),
    ("layers.0.moe.w_up_EDF", "layer 0, moe"),
    ("head.w_DV", "the head"),
])
def test_an_overflow_is_found_where_it_begins(name, place):
    message = divergence_of(poisoned(name, 3e38))
    assert message.startswith("step 3: the loss is ") and message.endswith(f" not finite is in {place}")


@pytest.mark.parametrize("config, layer, kind", [
    (MOE, 0, "moe"), (MOE, 1, "moe"), (replace(MOE, first_dense_layers=1), 0, "dense"),
    (replace(MOE, first_dense_layers=1), 1, "moe"), (replace(MOE, router="soft"), 1, "soft")])
@pytest.mark.parametrize("part, words", [("attention_norm", "attention norm"), ("attention", "attention"),
                                         ("feed_forward_norm", "{} norm"), ("feed_forward", "{}")])
def test_each_part_of_a_layer_has_its_words(config, layer, kind, part, words):
    state, [batch] = new(config), first_batches(1)
    _, (cache, of_losses) = model.objective_forward(state.params, batch.tokens_BS, batch.targets_BS, config,
                                                    training=True)
    blocks = list(cache.blocks)
    blocks[layer] = blocks[layer]._replace(**{part: (np.ones(3), {"deep": [np.array([1, np.nan])]})})
    spoilt = cache._replace(blocks=blocks, norm=(np.array(np.inf),))
    assert loop.first_not_finite(state.params, (spoilt, of_losses)) == f"layer {layer}, {words.format(kind)}"
    spoilt = cache._replace(norm=(np.array(np.inf),))
    assert loop.first_not_finite(state.params, (spoilt, of_losses)) == "the final norm"


@pytest.mark.parametrize("learning_rate", [1e10, 1e20, 1e30])
def test_too_high_a_learning_rate_diverges_at_a_step_and_a_place(learning_rate):
    message = divergence_of(new(learning_rate=learning_rate))
    assert re.match(r"step [2-6]: .* is in (layer \d, |the final norm|the head|the gradient of \w+\.)", message)


def test_a_gradient_too_long_for_its_type_is_reported_even_if_each_number_is_finite():
    """The norm of numbers around 1e25 overflows in float32."""
    state = new()
    state.params["final.gain_D"] *= np.float32(1e25)
    message = divergence_of(state)
    assert message.startswith("step 1: the gradient is inf") and "None" not in message


def test_divergence_leaves_the_last_good_checkpoint(tmp_path):
    path = tmp_path / "checkpoint.npz"
    assert divergence_of(new(learning_rate=1e10, checkpoint_every=1), path).startswith("step 2")
    state = new(learning_rate=1e10)
    loop.step_once(state, TEXT)
    assert numbers(checkpoint.load(path)) == numbers(state)


@pytest.mark.parametrize("learning_rate, reason", [
    (1e39, "the parameter embed.w_VD is no longer finite"),
    (1e10, "the loss on the held-out text is nan"),
])
def test_a_last_step_that_diverges_is_not_a_finished_run(tmp_path, learning_rate, reason):
    path, state = tmp_path / "checkpoint.npz", new(learning_rate=learning_rate, n_steps=1, warmup_steps=0)
    assert divergence_of(state, path) == f"step 1: {reason}"
    assert not path.exists() and "eval_ce" not in state.history


def test_parameters_that_are_not_finite_are_not_saved(tmp_path):
    path = tmp_path / "checkpoint.npz"
    state = new(learning_rate=1e39, warmup_steps=0, checkpoint_every=1)
    assert divergence_of(state, path) == "step 1: the parameter embed.w_VD is no longer finite"
    assert not path.exists()


def test_another_text_is_refused():
    other = data.build(corpus.clusters(length=300, seed=1), 8)
    with pytest.raises(ValueError, match="the text is not the one that this run was trained on"):
        loop.train(new(), other)


def test_a_vocabulary_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="vocab_size = 33: the text has 32 characters"):
        new(replace(MOE, vocab_size=33))


def test_training_sequences_longer_than_the_context_are_refused():
    with pytest.raises(ValueError, match="sequence = 9: must be at most max_sequence = 8"):
        new(sequence=9)
    assert new(sequence=8).step == 0


def test_ctrl_c_finishes_the_step_and_saves_it(tmp_path):
    path, handler = tmp_path / "checkpoint.npz", signal.getsignal(signal.SIGINT)
    state = new()
    with pytest.raises(loop.Interrupted, match="stopped after step 2"):
        loop.train(state, TEXT, path, ctrl_c_after(2))
    assert state.step == 2 and numbers(checkpoint.load(path)) == numbers(state)
    assert signal.getsignal(signal.SIGINT) is handler
    assert numbers(loop.train(checkpoint.load(path), TEXT)) == numbers(trained())


def test_ctrl_c_without_a_path_stops_too():
    with pytest.raises(loop.Interrupted):
        loop.train(new(), TEXT, on_step=ctrl_c_after(1))


def test_ctrl_c_in_the_last_step_lets_the_run_finish(tmp_path):
    path = tmp_path / "checkpoint.npz"
    assert loop.train(new(), TEXT, path, ctrl_c_after(6)).finished
    assert checkpoint.load(path).finished


def test_a_second_ctrl_c_stops_at_once(tmp_path):
    def twice(state):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt) as caught:
        loop.train(new(), TEXT, tmp_path / "checkpoint.npz", twice)
    assert caught.type is KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGINT) is handler


def test_the_signal_handler_is_restored_after_an_error():
    handler = signal.getsignal(signal.SIGINT)
    divergence_of(poisoned("final.gain_D", np.nan))
    assert signal.getsignal(signal.SIGINT) is handler


def test_training_works_outside_of_the_main_thread():
    state = new()
    thread = threading.Thread(target=loop.train, args=(state, TEXT))
    thread.start()
    thread.join()
    assert numbers(state) == numbers(trained())


def test_what_is_left_to_chance_draws_from_the_generator_of_the_run(monkeypatch):
    """Each group of each step has chances of its own; they are the same when the run is begun again."""
    seen, forward = [], model.model_forward
    monkeypatch.setattr(model, "model_forward",
                        lambda *a, **more: seen.append(more["rng"].random()) or forward(*a, **more))
    for seed in (0, 0, 1):
        state = new(groups=3, accumulate=2, seed=seed)
        loop.step_once(state, TEXT)
        loop.step_once(state, TEXT)
    first, again, other = np.array(seen).reshape(3, 12)
    assert first.tolist() == again.tolist()
    assert len({*first, *other}) == 24


@pytest.mark.parametrize(("change", "words"), [
    (dict(balance_coef=1e40), "the sum of the losses"), (dict(z_coef=1e-3), "layer 0, router z-loss"),
    (dict(z_coef=1e-3, first_dense_layers=1), "layer 1, router z-loss")])
def test_a_loss_that_overflows_by_itself_is_told_from_the_head(change, words):
    text = data.build(corpus.clusters(length=200), 8)
    config = ModelConfig(vocab_size=32, d_model=8, n_layers=2, n_heads=2, d_hidden=4, n_experts=3, max_sequence=8,
                         **change)
    state = loop.new_state(config, TrainConfig(n_steps=1, batch=2, sequence=8), text)
    if "z_coef" in change:
        state.params[f"layers.{config.moe_layers[0]}.moe.w_router_DE"] *= np.float32(1e22)
    with np.errstate(over="ignore", invalid="ignore"), pytest.raises(loop.Diverged, match=words):
        loop.step_once(state, text)


def test_two_processes_do_not_train_in_one_folder(tmp_path):
    with checkpoint.only_trainer(tmp_path / "checkpoint.npz"):
        second = checkpoint.only_trainer(tmp_path / "checkpoint.npz")
        with pytest.raises(checkpoint.CheckpointError, match="another process is training in"), second:
            pass
    with checkpoint.only_trainer(tmp_path / "checkpoint.npz"):
        assert list(tmp_path.iterdir()) == []
