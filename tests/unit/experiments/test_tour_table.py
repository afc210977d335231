"""The comparison says what the numbers say, in the right direction."""

from dataclasses import replace

import numpy as np
import pytest

from minimoe import cost
from minimoe.config import ModelConfig, TrainConfig
from minimoe.config.variants import DENSE_ACTIVE, DENSE_TOTAL, MOE
from minimoe.experiments import tour
from minimoe.training import corpus, data, loop, record

MIB = 2 ** 20


def results(moe=(1.5,), active=(1.6,), total=(1.4,)):
    """Made-up Results with these losses, one a seed, and round numbers for the rest."""
    def result(parameters, flops, seconds, peak, ce):
        return tour.Result(
            parameters=cost.Parameters(*parameters, 0, 0), forward_flops=flops, training_flops=3 * flops,
            seconds=seconds, memory=cost.Memory(MIB, MIB, 2 * MIB, 5 * MIB // 2), peak=peak * MIB, ce=np.array(ce),
            drop=np.full(len(ce), 0.125), balance=np.full(len(ce), 1.125))
    return {MOE: result((8000, 2000), 0.5e6, 0.03, 40, moe),
            DENSE_ACTIVE: result((2000, 2000), 0.4e6, 0.01, 10, active),
            DENSE_TOTAL: result((8000, 8000), 2e6, 0.06, 50, total)}


def cells(table):
    """The rows of a table that has two blanks or more between its columns."""
    return [[cell.strip() for cell in row.split("  ") if cell.strip()] for row in table.split("\n")[:5]]


def test_the_table_by_hand():
    head, _, *rows = cells(tour.table(results()))
    assert head == ["parameters", "active", "FLOPs/token", "s/step", "peak memory", "validation loss", "dropped",
                    "balance"]
    assert rows == [
        [MOE, "8,000", "2,000", "0.500 M", "0.030", "40 MiB", "1.500", "12.5%", "1.125"],
        [DENSE_ACTIVE, "2,000", "2,000", "0.400 M", "0.010", "10 MiB", "1.600", "12.5%", "-"],
        [DENSE_TOTAL, "8,000", "8,000", "2.000 M", "0.060", "50 MiB", "1.400", "12.5%", "-"],
    ]


def test_the_table_of_three_seeds_has_mean_and_spread():
    # 1.4, 1.5, 1.6: mean 1.5, standard deviation sqrt(0.02 / 2) = 0.1
    rows = cells(tour.table(results((1.4, 1.5, 1.6), (1.6,) * 3, (1.5,) * 3)))[2:]
    assert [row[6] for row in rows] == ["1.500 ± 0.100", "1.600 ± 0.000", "1.500 ± 0.000"]


def test_the_columns_of_the_table_are_aligned():
    lines = tour.table(results((1.4, 1.5, 1.6), (1.6,) * 3, (1.5,) * 3)).split("\n")[:5]
    assert len({len(line) for line in lines}) == 1
    assert [line.startswith(name) for line, name in zip(lines[2:], results(), strict=True)] == [True] * 3
    ends = [i for i, dash in enumerate(lines[1]) if dash == "-" and lines[1][i + 1:i + 2] != "-"]
    assert all(line[end] != " " and line[end + 1:end + 3].strip() == "" for line in lines for end in ends[1:])


def test_the_table_explains_its_units():
    for words in ("FLOPs: forward, counted", "s/step: median", "nats per token on held-out text", "1 is an even load"):
        assert words in tour.table(results())


def test_the_table_takes_the_memory_apart():
    assert tour.table(results()).split("\n")[-1].startswith(
        "of the MoE's peak: parameters 1.0 MiB, gradients 1.0 MiB, moments 2.0 MiB, activations 2.5 MiB (")


def test_the_verdict_on_cost_by_hand():
    # 2000 of 8000 parameters; 2 against 0.5 MFLOPs; 0.03 against 0.06 s; 8000 against 2000; 0.03 against 0.01; 40 to 10
    verdict = tour.verdict(results())
    for words in ("uses 25% of its parameters", "takes 4.0x fewer FLOPs", "its step takes 0.50x the time",
                  "4.0x the parameters", "its step takes 3.0x the time and 4.0x the memory"):
        assert words in verdict


@pytest.mark.parametrize(("losses", "active", "total"), [
    ((1.5, 1.75, 1.375), "0.250 nats lower", "0.125 nats higher"),
    ((1.5, 1.25, 1.375), "0.250 nats higher", "0.125 nats higher"),
    ((1.5, 1.75, 1.625), "0.250 nats lower", "0.125 nats lower"),
    ((1.5, 1.25, 1.625), "0.250 nats higher", "0.125 nats lower"),
])
@pytest.mark.parametrize("seeds", [1, 3])
def test_the_verdict_on_losses_has_the_right_direction(losses, active, total, seeds):
    lines = tour.verdict(results(*((ce,) * seeds for ce in losses))).split("\n")
    (same_work,) = [line for line in lines if line.startswith("- Against the dense model that does the same work")]
    (same_size,) = [line for line in lines if line.startswith("- Against the dense model with all its parameters")]
    assert active in same_work and total in same_size


def test_the_verdict_compares_means_over_seeds_and_counts_those_that_agree():
    # MoE 1.5 against 1.6, lower in the last two seeds; against 1.4, higher in the last two
    verdict = tour.verdict(results((1.3, 1.5, 1.7), (1.2, 1.7, 1.9), (1.4, 1.4, 1.4)))
    assert "0.100 nats lower, and so in 2 of 3 seeds" in verdict
    assert "0.100 nats higher, and so in 2 of 3 seeds" in verdict


def test_one_seed_is_called_an_anecdote():
    assert tour.verdict(results()).split("\n")[-1] == "- One seed is an anecdote: repeat with --seeds 3."
    assert "seeds." not in tour.verdict(results())


def test_three_seeds_are_called_means():
    last = tour.verdict(results((1.5,) * 3, (1.6,) * 3, (1.4,) * 3)).split("\n")[-1]
    assert last.startswith("- Means of 3 seeds: ")


def test_a_result_is_measured_from_the_runs():
    config = ModelConfig(vocab_size=32, d_model=8, n_layers=1, n_heads=2, d_hidden=4, n_experts=3, max_sequence=8,
                         capacity_factor=0.5)
    training = TrainConfig(n_steps=4, batch=2, sequence=8, eval_every=1, eval_batches=2)
    text = data.build(corpus.clusters(length=200), 8)
    states = [loop.train(loop.new_state(config, replace(training, seed=seed), text), text) for seed in (0, 1)]
    histories = [state.history for state in states]
    histories[1]["balance"] = list(range(100))  # of a long run, its last 50 steps: 50 to 99
    measured, counted = tour.measure(states, text), cost.count(config, 2, 8)
    assert measured.parameters == counted.parameters
    assert measured.forward_flops == counted.forward_flops / 16
    assert measured.training_flops == counted.training_flops / 16
    assert measured.seconds == np.median([seconds for history in histories for seconds in history["seconds"]])
    assert measured.memory == cost.step_memory(config, 2, 8)
    assert measured.peak > sum(measured.memory[:3])
    assert measured.ce.tolist() == [history["eval_ce"][-1] for history in histories]
    np.testing.assert_allclose(measured.drop, [sum(history["drop"]) / 4 for history in histories])
    np.testing.assert_allclose(measured.balance, [sum(histories[0]["balance"]) / 4, 74.5], rtol=1e-6)
    assert (measured.drop > 0).all()


def test_the_router_is_told_layer_by_layer_at_its_last_record():
    history = {"router_step": [1, 11], "router_entropy": [[9, 9], [1.25, 0.5]], "router_margin": [[9, 9], [0.125, 0]],
               "router_dead": [[9, 9], [0, 3]]}
    head, *rows = record.describe_routers(history).split("\n")
    assert head.startswith("The router at step 11 (")
    assert rows == ["  layer 0: entropy 1.25, margin 0.125, dead 0", "  layer 1: entropy 0.50, margin 0.000, dead 3"]
