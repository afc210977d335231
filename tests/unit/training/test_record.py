"""What a run records: compared with the gradients and routings that it was made from."""

from dataclasses import replace

import numpy as np
import pytest

from minimoe import batches, model
from minimoe.moe import telemetry
from minimoe.training import data, loop, record
from tests import small


def gradients_of_a_step(state, config):
    """The mean gradients of the first two micro-batches, with other weights of losses."""
    drawn, rng = small.first_batches(2)
    parts = [part for batch in drawn for part in batches.cut(batch.tokens_BS, batch.targets_BS, 1)]
    return batches.gradients(state.params, parts, config, rng).grads


def length(grads, layer, of_experts):
    """The norm of the gradients of all weights of a layer's experts, or of its router."""
    return np.sqrt(sum((grad ** 2).sum() for name, grad in grads.items() if name.startswith(f"layers.{layer}.moe.")
                       and not name.endswith("gain_D") and name.endswith(("_EDF", "_EFD")) == of_experts))


@pytest.mark.parametrize("router", ["softmax_topk", "switch", "noisy_topk", "sigmoid_bias"])
def test_gradients_of_the_router_are_told_apart_by_where_they_come_from(router):
    """In the last layer: what remains without auxiliary losses comes through the gates, what they add is its own."""
    config = replace(small.BY_ROUTER[router], balance_coef=5.0, z_coef=5.0)
    state = small.in_float64(small.new(config, accumulate=2))
    both = gradients_of_a_step(state, config)
    task = gradients_of_a_step(state, replace(config, **{f"{name}_coef": 0.0 for name in config.loss_coefs}))
    added = {name: both[name] - task[name] for name in both}
    loop.step_once(state, small.CORPUS)
    own_L, gates_L, experts_L = (state.history[f"router_grad_{name}"][0] for name in ("own", "gates", "experts"))
    assert own_L[1] == pytest.approx(length(added, 1, of_experts=False), rel=1e-9)
    assert gates_L[1] == pytest.approx(length(task, 1, of_experts=False), rel=1e-9)
    np.testing.assert_allclose(experts_L, [length(both, layer, of_experts=True) for layer in range(2)], rtol=1e-12)


@pytest.mark.parametrize("groups, drop_sequence, drop_position", [
    # all 24 tokens want the same two of four experts, with room for 2 * 24 / 4 = 12 each: the whole first sequence
    # and half of the second; so of the first half of places 1 in 3 is dropped, of the second half 2
    (1, [0, 1 / 2, 1], [1 / 3] * 4 + [2 / 3] * 4),
    # three groups of one sequence, each with a queue of its own and room for 2 * 8 / 4 = 4
    (3, [1 / 2], [0] * 4 + [1] * 4)])
def test_drops_by_place_by_hand_on_a_text_of_one_character(groups, drop_sequence, drop_position):
    text = data.Corpus(small.CORPUS.tokenizer, ("same",), (np.full(50, 9),), (np.full(50, 9),))
    state = small.new(replace(small.MODEL, n_layers=1, capacity_factor=1.0), text, groups=groups)
    loop.step_once(state, text)
    np.testing.assert_allclose(state.history["router_drop_sequence"][0], [drop_sequence], rtol=1e-12)
    np.testing.assert_allclose(state.history["router_drop_position"][0], [drop_position], rtol=1e-12)
    assert state.history["router_dead"][0].tolist() == [2]
    for name in ("drop", "router_drop"):
        np.testing.assert_allclose(state.history[name][0], 1 / 2, rtol=1e-12)


@pytest.mark.parametrize("groups", [1, 3])
def test_the_record_is_the_mean_over_groups_of_the_last_micro_batch(groups):
    config = replace(small.MODEL, n_experts=20, capacity_factor=0.7)
    state, ([_, last], _) = small.new(config, groups=groups, accumulate=2), small.first_batches(2)
    routings = [model.model_forward(state.params, part_BS, config, training=True)[0][1]
                for part_BS in np.split(last.tokens_BS, groups)]
    loop.step_once(state, small.CORPUS)
    summaries = [telemetry.summarize(of_group) for of_group in routings]
    for field in ("load_LE", "drop_L", "entropy_L", "margin_L", "logit_L"):
        expected = np.mean([getattr(summary, field) for summary in summaries], axis=0)
        np.testing.assert_allclose(state.history[f"router_{field.split('_')[0]}"][0], expected, rtol=1e-14)
    drops = [np.mean(~r.kept_A) for of_group in routings for r in of_group]
    assert state.history["drop"] == [pytest.approx(np.mean(drops), rel=1e-14)] != [0]
    used = [set(np.concatenate([of_group[layer].expert_A for of_group in routings])) for layer in range(2)]
    assert state.history["router_dead"][0].tolist() == [20 - len(of_layer) for of_layer in used] != [0, 0]


@pytest.mark.parametrize("config", [small.BY_ROUTER["expert_choice"], replace(small.MODEL, first_dense_layers=1),
                                    replace(small.MODEL, first_dense_layers=2), small.BY_ROUTER["soft"], small.DENSE,
                                    small.BY_ROUTER["hash"]],
                         ids=["expert choice", "the second layer", "no layer", "soft", "one expert", "no weights"])
def test_every_entry_of_a_name_has_one_shape_with_a_row_for_each_layer_that_routes(config):
    history = small.trained(config).history
    for name, values in history.items():
        assert len({np.shape(value) for value in values}) == 1, name
    L = len(config.moe_layers)
    assert any("router_grad" in name for name in history) == (config.router not in ("hash", "soft"))
    labels = [f"eval_information_{label}" for label in ("token", "position", "domain")]
    assert {len(history[name][0]) for name in [*labels, "router_load", "router_logit", "eval_experts"]} == {L}
    shapes = {"router_drop_position": (L, 8), "router_drop_sequence": (L, 3), "eval_drop_position": (L, 8),
              "eval_load": (4, L, config.n_experts)}
    assert {name: history[name][0].shape for name in shapes} == shapes
    if L == 0:
        assert {len(history[name]) for name in ("balance", "z", "drop")} == {6}
        assert set(history["balance"] + history["z"] + history["drop"] + history["eval_drop"]) == {0}


def test_the_router_is_described_layer_by_layer_at_its_last_record():
    history = {"router_step": [1, 11], "router_entropy": [[9, 9], [1.25, 0.5]], "router_margin": [[9, 9], [0.125, 0]],
               "router_dead": [[9, 9], [0, 3]], "router_load": np.ones((2, 2, 8)) / 8, "ce": [1.0] * 12}
    text = record.describe_routers(history, layers=(1, 3))
    assert " ".join(text.split()).startswith(
        "The router at step 11 of 12 (entropy: nats, from 0, certain, to ln 8 = 2.08, all experts alike; margin: ")
    assert text.split("\n")[-2:] == ["  layer 1: entropy 1.25, margin 0.125, dead 0",
                                     "  layer 3: entropy 0.50, margin 0.000, dead 3"]
    assert record.describe_routers(history).split("\n")[-1].startswith("  layer 1: entropy 0.50")
    nothing = {name: [[]] for name in history}
    assert record.describe_routers(nothing) == "No layer has a router that assigns tokens."
