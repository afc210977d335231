"""What a run writes down: against the gradients and routings that it was made from, for every router."""

from dataclasses import replace

import numpy as np
import pytest

from minimoe import batches, model
from minimoe.config import ModelConfig, TrainConfig
from minimoe.moe import telemetry
from minimoe.names import ROUTERS
from minimoe.training import checkpoint, corpus, data, loop, optimizer, record

MOE = ModelConfig(vocab_size=32, d_model=8, n_layers=2, n_heads=2, n_kv_heads=1, d_hidden=6, n_experts=4, top_k=2,
                  max_sequence=8)
TRAINING = TrainConfig(n_steps=4, batch=3, sequence=8, warmup_steps=2, learning_rate=0.02, eval_every=2, eval_batches=8,
                       record_every=2)
TEXT = data.build(corpus.clusters(length=300), 8)
MIXED = {name: replace(MOE, router=name, top_k=min(router.top_k or 2, 2)) for name, router in ROUTERS.items()}
MIXED |= {"the second layer": replace(MOE, first_dense_layers=1), "no layer": replace(MOE, first_dense_layers=2),
          "nine experts": replace(MOE, n_experts=9), "one expert": replace(MOE, n_experts=1, top_k=1)}


def new(config=MOE, text=TEXT, **training):
    state = loop.new_state(config, replace(TRAINING, **training), text)
    params = {name: array.astype(float) for name, array in state.params.items()}
    return replace(state, params=params, moments=optimizer.start_moments(params))


def first_batches(n):
    """The batches that a run draws first, and the generator as it is then."""
    rng = np.random.default_rng(TRAINING.seed)
    return [data.sample(TEXT.train, rng, TRAINING.batch, TRAINING.sequence) for _ in range(n)], rng


def without_losses(config):
    return replace(config, **{f"{name}_coef": 0.0 for name in config.loss_coefs})


def router_length(grads, i):
    """The length of the gradients of all weights of a layer's router."""
    return np.sqrt(sum((grad ** 2).sum() for name, grad in grads.items()
                       if name.startswith(f"layers.{i}.moe.") and not name.endswith(("_EDF", "_EFD", "gain_D"))))


def one_record(state, name):
    loop.step_once(state, TEXT)
    return state.history[f"router_{name}"][0]


@pytest.mark.parametrize("router", ["softmax_topk", "switch", "noisy_topk", "sigmoid_bias"])
def test_the_gradient_through_the_gates_is_that_of_the_task_in_the_last_layer(router):
    config = replace(MIXED[router], balance_coef=5.0, z_coef=5.0)
    state, ([batch], rng) = new(config), first_batches(1)
    _, grads = batches.loss_and_grads(state.params, *batch[:2], without_losses(config), rng=rng)
    gates_L = one_record(state, "grad_gates")
    assert gates_L[1] == pytest.approx(router_length(grads, 1), rel=1e-10)


def test_the_own_gradient_is_what_the_losses_of_the_layer_add():
    config = replace(MOE, n_layers=1, balance_coef=5.0, z_coef=5.0)
    state, ([batch], _) = new(config), first_batches(1)
    (_, all_), (_, task) = (batches.loss_and_grads(state.params, *batch[:2], c)
                            for c in (config, without_losses(config)))
    added = {name: all_[name] - task[name] for name in all_}
    assert one_record(state, "grad_own") == pytest.approx([router_length(added, 0)], rel=1e-10)


def test_the_gradient_of_the_experts_is_that_of_all_their_weights():
    state, ([batch], _) = new(), first_batches(1)
    _, grads = batches.loss_and_grads(state.params, *batch[:2], MOE)
    expected = [np.sqrt(sum((grads[f"layers.{i}.moe.{name}"] ** 2).sum()
                            for name in ("w_gate_EDF", "w_up_EDF", "w_down_EFD"))) for i in range(2)]
    np.testing.assert_allclose(one_record(state, "grad_experts"), expected, rtol=1e-12)


def test_gradients_are_those_of_the_whole_step():
    config = replace(MOE, balance_coef=5.0, z_coef=5.0)
    state, (drawn, _) = new(config, accumulate=2), first_batches(2)
    with_and_without = []
    for c in (config, without_losses(config)):
        parts = [batches.loss_and_grads(state.params, *batch[:2], c)[1] for batch in drawn]
        with_and_without.append({name: (parts[0][name] + parts[1][name]) / 2 for name in parts[0]})
    both, task = with_and_without
    added = {name: both[name] - task[name] for name in both}
    loop.step_once(state, TEXT)
    assert state.history["router_grad_gates"][0][1] == pytest.approx(router_length(task, 1), rel=1e-10)
    assert state.history["router_grad_own"][0][1] == pytest.approx(router_length(added, 1), rel=1e-10)


def test_a_router_without_weights_has_no_gradient():
    state = new(MIXED["hash"])
    loop.step_once(state, TEXT)
    assert "router_load" in state.history and not [name for name in state.history if "router_grad" in name]


def test_drops_by_place_by_hand():
    # one character alone: all 24 tokens want the same two experts, which have room for 2 * 24 / 4 = 12 each: the whole
    # first sequence and half of the second; so of the first half of places 1 in 3 is dropped, of the second half 2
    text = data.Corpus(TEXT.tokenizer, ("same",), (np.full(50, 9),), (np.full(50, 9),))
    state = new(replace(MOE, n_layers=1, capacity_factor=1.0), text)
    loop.step_once(state, text)
    np.testing.assert_allclose(state.history["router_drop_sequence"][0], [[0, 1 / 2, 1]], rtol=1e-12)
    np.testing.assert_allclose(state.history["router_drop_position"][0], [[1 / 3] * 4 + [2 / 3] * 4], rtol=1e-12)


def test_drops_by_place_in_groups_are_the_mean_over_groups_each_with_its_own_queue():
    # three groups of one sequence: its 8 tokens want the same two experts, which have room for 2 * 8 / 4 = 4 each
    text = data.Corpus(TEXT.tokenizer, ("same",), (np.full(50, 9),), (np.full(50, 9),))
    state = new(replace(MOE, n_layers=1, capacity_factor=1.0), text, groups=3)
    loop.step_once(state, text)
    assert state.history["router_drop_sequence"][0].tolist() == [[1 / 2]]
    assert state.history["router_drop_position"][0].tolist() == [[0] * 4 + [1] * 4]
    assert state.history["drop"] == [1 / 2] and state.history["router_drop"][0].tolist() == [1 / 2]
    assert state.history["router_dead"][0].tolist() == [2]


def routed_in_groups(config, n, **training):
    """The routings of the groups of the last micro-batch of the first step, and what the step wrote down."""
    state, (drawn, _) = new(config, groups=n, **training), first_batches(training.get("accumulate", 1))
    routings = [model.model_forward(state.params, part_BS, config, training=True)[0][1]
                for part_BS in np.split(drawn[-1].tokens_BS, n)]
    loop.step_once(state, TEXT)
    return routings, state.history


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_record_of_groups_is_the_mean_of_their_summaries(accumulate):
    routings, history = routed_in_groups(replace(MOE, capacity_factor=0.7), 3, accumulate=accumulate)
    summaries = [telemetry.summarize(of_group) for of_group in routings]
    for name, field in (("load", "load_LE"), ("drop", "drop_L"), ("entropy", "entropy_L"), ("margin", "margin_L"),
                        ("logit", "logit_L")):
        expected = np.mean([getattr(summary, field) for summary in summaries], axis=0)
        np.testing.assert_allclose(history[f"router_{name}"][0], expected, rtol=1e-14)
    drops = [telemetry.drop_rate(r) for of_group in routings for r in of_group]
    assert history["drop"] == [pytest.approx(np.mean(drops), rel=1e-14)] != [0]


def test_an_expert_is_dead_if_no_group_uses_it():
    # one of the three sequences is of another character, which has experts of its own: dead to a group, not to all
    config = replace(MOE, n_layers=1, top_k=1, router="hash")
    ids_of = [next(token for token in range(32) if hash_expert(config, token) == expert) for expert in range(4)]
    text = data.Corpus(TEXT.tokenizer, ("same",), (np.full(50, ids_of[0]),), (np.full(50, 9),))
    state = new(config, text, groups=3)
    loop.step_once(state, text)
    assert state.history["router_dead"][0].tolist() == [3]
    for last, dead in ((0, 1), (3, 0)):  # an expert with one token in one group is not dead
        tokens_BS = np.repeat(ids_of[:3], 8).reshape(3, 8)
        tokens_BS[2, -1] = ids_of[last]
        routings = [model.forward(state.params, tokens_S[None], config)[1] for tokens_S in tokens_BS]
        assert record.routed(routings, replace(TRAINING, groups=3))["dead"].tolist() == [dead]


def hash_expert(config, token):
    """The expert that a token has in the first layer."""
    _, (routing,) = model.forward(new(config).params, np.array([[token]]), config)
    return routing.expert_A[0]


def held_out_routings(state):
    """(domain, batch, routings) of an evaluation: two batches of each of four texts, drawn as evaluation draws them."""
    for domain, stream in enumerate(TEXT.held_out):
        rng = np.random.default_rng(0)
        for _ in range(2):
            batch = data.sample([stream], rng, TRAINING.batch, TRAINING.sequence)
            yield domain, batch, model.forward(state.params, batch.tokens_BS, state.model_config)[1]


def test_the_information_of_an_evaluation_equals_a_loop_over_all_assignments():
    state = new()
    counts = {"token": np.zeros((2, 32, 4)), "position": np.zeros((2, 8, 4)), "domain": np.zeros((2, 4, 4))}
    for domain, batch, routings in held_out_routings(state):
        for layer, r in enumerate(routings):
            for token, expert in zip(r.token_A, r.expert_A, strict=True):
                counts["token"][layer, batch.tokens_BS.ravel()[token], expert] += 1
                counts["position"][layer, token % 8, expert] += 1
                counts["domain"][layer, domain, expert] += 1
    result = loop.evaluate(state.params, TEXT, MOE, TRAINING)
    for label, count in counts.items():
        expected = [telemetry.mutual_information(of_layer) for of_layer in count]
        np.testing.assert_allclose(result[f"information_{label}"], expected, rtol=1e-12)


def test_the_drops_of_an_evaluation_are_those_of_its_batches_by_place():
    config = replace(MOE, eval_capacity_factor=0.7)
    state = new(config)
    asked, dropped = np.zeros((2, 8)), np.zeros((2, 8))
    for _, _, routings in held_out_routings(state):
        for layer, r in enumerate(routings):
            np.add.at(asked[layer], r.token_A % 8, 1)
            np.add.at(dropped[layer], r.token_A % 8, ~r.kept_A)
    result = loop.evaluate(state.params, TEXT, config, TRAINING)
    np.testing.assert_allclose(result["drop_position"], dropped / asked, rtol=1e-12)
    assert result["drop"] == pytest.approx(result["drop_position"].mean(), rel=1e-12) != 0


@pytest.mark.parametrize("case", ["softmax_topk", "expert_choice", "nine experts"])
def test_the_experts_of_the_first_tokens_of_each_domain_are_kept_as_bits(case, monkeypatch):
    monkeypatch.setattr(record, "PROBE", 5)
    state = new(MIXED[case])
    expected = [[telemetry.chosen(r)[:5] for r in routings] for _, _, routings in list(held_out_routings(state))[::2]]
    packed = loop.evaluate(state.params, TEXT, state.model_config, TRAINING)["experts"]
    unpacked = np.unpackbits(packed, axis=2, count=state.model_config.n_experts)
    assert packed.dtype == np.uint8 and packed.shape == (2, 4 * 5, 2 if case == "nine experts" else 1)
    np.testing.assert_array_equal(unpacked, np.concatenate(expected, axis=1))


@pytest.mark.parametrize("case", MIXED)
def test_every_entry_of_a_name_has_one_shape_with_a_row_for_each_layer_that_routes(case):
    config = MIXED[case]
    history = loop.train(new(config), TEXT).history
    for name, values in history.items():
        assert len({np.shape(value) for value in values}) == 1, name
    rows = len(config.moe_layers)
    for name in ("router_load", "router_logit", "router_drop_position", "router_drop_sequence", "eval_experts",
                 "eval_information_token", "eval_information_position", "eval_information_domain",
                 "eval_drop_position"):
        assert len(history[name][0]) == rows, name
    assert history["eval_load"][0].shape == (4, rows, config.n_experts)


@pytest.mark.parametrize("case", MIXED)
def test_a_resumed_run_has_the_record_of_one_that_went_through(case, tmp_path):
    path = tmp_path / "checkpoint.npz"
    straight = loop.train(new(MIXED[case], record_every=1), TEXT,
                          on_step=lambda state: state.step == 3 and checkpoint.save(path, state))
    resumed = loop.train(checkpoint.load(path), TEXT)
    for name in straight.history.keys() - {"seconds"}:
        assert np.asarray(straight.history[name]).tobytes() == np.asarray(resumed.history[name]).tobytes(), name


def test_recording_more_often_changes_no_step():
    often, seldom = (loop.train(new(record_every=every), TEXT) for every in (1, 100))
    assert len(often.history["router_grad_own"]) == 4 > len(seldom.history["router_grad_own"]) == 1
    assert all(np.array_equal(often.params[name], seldom.params[name]) for name in often.params)
