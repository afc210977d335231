"""The tour: three models alike but for their experts, a table and a verdict that say what the numbers say."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from minimoe import cost, model, parameters
from minimoe.config.variants import DENSE_ACTIVE, DENSE_TOTAL, MOE
from minimoe.experiments import tour
from minimoe.plots import coloured_text, expert_load, loss_curves
from minimoe.training import corpus, data, evaluation, loop, runs
from tests import small

MIB = 2 ** 20
FOLDERS = {MOE: "moe", DENSE_ACTIVE: "dense-active", DENSE_TOTAL: "dense-total"}
PICTURES = [Path("runs/quick/figures") / f"{name}.png" for name in ("losses", "load", "text", "domains")]


@pytest.mark.parametrize("quick", [True, False])
def test_the_dense_models_have_the_active_experts_of_the_moe_or_all_of_them(quick):
    """They differ from the MoE in its router alone: L * D * E weights of it against their L * D."""
    experiment = tour.experiment(quick, 1, 95)
    moe, active, total = (variant.model for variant in experiment.variants.values())
    assert list(experiment.variants) == list(FOLDERS)
    assert (active.n_experts, active.top_k, active.d_hidden) == (1, 1, moe.top_k * moe.d_hidden)
    assert (total.n_experts, total.top_k, total.d_hidden) == (1, 1, moe.n_experts * moe.d_hidden)
    counted = [cost.count_parameters(config) for config in (moe, active, total)]
    routers = moe.n_layers * moe.d_model * (moe.n_experts - 1)
    assert counted[0].active - counted[1].total == counted[0].total - counted[2].total == routers
    assert len({variant.train for variant in experiment.variants.values()}) == 1


@pytest.fixture
def traveled(here, monkeypatch):
    """A quick tour of two seeds in its folder: what it said, what each plot was given, and all training batches."""
    drawn, batches, sample = {}, [], data.sample  # evaluations take one domain

    def noted(streams, *rest):
        batches.extend([sample(streams, *rest)])
        return batches[-1] if len(streams) == 2 else batches.pop()

    monkeypatch.setattr(data, "sample", noted)
    for module, name in ((loss_curves, "losses"), (expert_load, "load_over_time"), (expert_load, "load_by_domain"),
                         (coloured_text, "coloured_text")):
        plot = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *given, plot=plot: (
            drawn.update({plot.__name__: given}), plot(*given))[1])
    return small.printed(tour.main, quick=True, seeds=2), drawn, batches


def test_a_tour_from_training_on_the_same_batches_to_pictures(traveled, monkeypatch):
    said, drawn, batches = traveled
    states = {name: [runs.load(f"runs/quick/{folder}/seed{seed}") for seed in range(2)]
              for name, folder in FOLDERS.items()}
    assert all(path.read_bytes().startswith(b"\x89PNG\r\n") and str(path) in said for path in PICTURES)
    order = ["6 steps compare nothing", "MoE, seed 0: validation loss", "The router at step 5 of 6", "What it writes",
             "dense, same active, seed 0: validation loss", "dense, same total, seed 1: validation loss",
             "6 steps compare nothing: this shows that everything works. `python", "The models after 6 steps"]
    places = [said.index(words) for words in order]
    assert places == sorted(places) and "What the numbers show" not in said
    assert max(map(len, said.split("\n"))) <= 80
    _check_curves(drawn["losses"], states)
    _check_loads(drawn, states[MOE][0])
    _check_text(drawn["coloured_text"], states[MOE][0])
    tokens = np.array([batch.tokens_BS for batch in batches[:2 * 3 * 6]]).reshape(2, 3, 6, -1)  # seeds, models, steps
    assert (tokens == tokens[:, :1]).all() and len(np.unique(tokens[:, 0].reshape(12, -1), axis=0)) == 12
    pictures = [path.read_bytes() for path in PICTURES]
    monkeypatch.setattr(loop, "train", None)  # nothing is trained again
    again = small.printed(tour.main, quick=True, seeds=2)
    assert again.count("finished earlier") == 6 and again.split("\n\n")[-4:] == said.split("\n\n")[-4:]
    assert [path.read_bytes() for path in PICTURES] == pictures


def _check_curves(given, states):
    """Evaluations are at steps 3 and 6."""
    curves, title = given
    for name, (steps, ce) in curves.items():
        assert steps.tolist() == [3, 6]
        np.testing.assert_array_equal(ce, [state.history["eval_ce"] for state in states[name]])
        assert f"{name} {ce[:, -1].mean():.3f}" in title


def _check_loads(drawn, state):
    """What one domain sends to some experts beyond the other's share, it keeps from the rest: half of all gaps."""
    steps, load, title = drawn["load_over_time"]
    loads, domains, moved = drawn["load_by_domain"]
    untrained, by_domain = loads.values()
    assert steps.tolist() == [1, 3, 5] and domains == ("english", "python")
    corpus, config, training = data.embedded_corpus(), state.model_config, state.train_config
    start = evaluation.evaluate(model.init_params(config, seed=0), corpus, config, training)["load"]
    np.testing.assert_array_equal(untrained, start)  # the same text, and the parameters that the run began with
    np.testing.assert_array_equal(load, state.history["router_load"])
    np.testing.assert_array_equal(by_domain, state.history["eval_load"][-1])
    assert f"{8 * np.mean(load, axis=0).max():.1f}x" in title
    gaps = np.abs(by_domain[0] - by_domain[1]).sum(axis=1) / 2
    control = np.abs(start[0] - start[1]).sum(axis=1).max() / 2
    assert moved.endswith(f"trained: {gaps.max():.0%} of the load differs, most in layer {gaps.argmax()}; "
                          f"untrained {control:.0%}")


def _check_text(given, state):
    """Held-out text of each domain, cut into contexts of 16, with the expert of the first choice."""
    pieces, n_experts, title = given
    layer = int(re.search(r"layer (\d)", title)[1])
    assert n_experts == 8 and [heading for heading, _, _ in pieces] == ["english, held out", "python, held out"]
    for (_, piece, experts), text in zip(pieces, corpus.embedded().values(), strict=True):
        assert piece in text[int(0.9 * len(text)):]
        for start in range(0, len(piece), 16):
            tokens_S = state.tokenizer.encode(piece[start:start + 16])
            _, routings = model.forward(state.params, tokens_S[None], state.model_config)
            np.testing.assert_array_equal(experts[start:start + 16], routings[layer].expert_A.reshape(-1, 2)[:, 0])


def test_figures_are_drawn_again_from_all_seeds_that_there_are(here, monkeypatch):
    assert tour.draw_again() is False
    drawn, trained, train = [], [], loop.train
    monkeypatch.setattr(tour, "draw_losses", lambda *given: drawn.append(given))
    monkeypatch.setattr(tour, "draw_router", lambda *given: drawn.append((*given, len(trained))))
    monkeypatch.setattr(loop, "train", lambda *given, **more: (trained.append(given), train(*given, **more)))
    said = small.printed(tour.main, seeds=2)
    assert said.index("What the numbers show") < said.index("The models after")  # the answer first
    assert small.printed(tour.draw_again).startswith("wrote figures/losses.png, ")
    (_, state, corpus, n), (first, *_), (again, *_), (_, state_again, corpus_again, _) = drawn
    assert n == 1  # the MoE's own pictures wait for no dense model
    assert first == again and again.seeds == 2 and small.numbers(state) == small.numbers(state_again)
    np.testing.assert_equal(drawn[2][1], drawn[1][1])
    assert corpus_again.tokenizer.characters == corpus.tokenizer.characters
    runs.checkpoint_path("runs/tour/dense-total/seed1").unlink()
    with pytest.raises(ValueError, match="no checkpoint runs/tour/dense-total/seed1"):
        tour.draw_again()


def results(moe=(1.5,), active=(1.6,), total=(1.4,)):
    """Made-up Results with these losses, one per seed, and round numbers for the rest."""
    def result(counted, flops, seconds, peak, ce):
        return tour.Result(
            parameters=cost.Parameters(*counted, 0, 0), forward_flops=flops,
            seconds=seconds, memory=cost.Memory(MIB, MIB, 2 * MIB, 5 * MIB // 2), peak=peak * MIB, ce=np.array(ce),
            drop=np.full(len(ce), 0.125), balance=np.full(len(ce), 1.125))
    return {MOE: result((8000, 2000), 0.5e6, 0.03, 40, moe),
            DENSE_ACTIVE: result((2000, 2000), 0.4e6, 0.01, 10, active),
            DENSE_TOTAL: result((8000, 8000), 2e6, 0.06, 50, total)}


def test_the_table_by_hand(monkeypatch):
    """Losses 1.4, 1.5, 1.6 have the mean 1.5 and the standard deviation sqrt(0.02 / 2) = 0.1."""
    monkeypatch.setenv("COLUMNS", "80")
    *head, _ = tour.table(results((1.4, 1.5, 1.6), (1.6,) * 3, (1.5,) * 3)).split("\n")[:3]
    rows = tour.table(results((1.4, 1.5, 1.6), (1.6,) * 3, (1.5,) * 3)).split("\n")[3:11]
    assert [re.split("  +", row.strip()) for row in (*head, *rows)] == [
        ["dense,", "dense,"], [MOE, "same active", "same total"], ["parameters", "8,000", "2,000", "8,000"],
        ["active per token", "2,000", "2,000", "8,000"], ["FLOPs per token", "0.500 M", "0.400 M", "2.000 M"],
        ["seconds per step", "0.030", "0.010", "0.060"], ["peak memory", "40 MiB", "10 MiB", "50 MiB"],
        ["validation loss", "1.500 ± 0.100", "1.600 ± 0.000", "1.500 ± 0.000"], ["dropped", "12.5%", "-", "-"],
        ["balance", "1.125", "-", "-"]]
    assert ("Of the MoE's 40.0 MiB: parameters 1.0, gradients 1.0, moments 2.0, activations that wait for the backward "
            "pass 2.5, and 33.5 that come and go.") in unwrapped(tour.table(results()))


def unwrapped(text):
    return " ".join(text.split())


def test_the_verdict_on_cost_by_hand():
    # 2000 of 8000 parameters; 2 against 0.5 MFLOPs; 0.03 against 0.06 s; 8000 against 2000; 0.03 against 0.01; 40 to 10
    verdict = unwrapped(tour.verdict(results()))
    for words in ("uses 25% of its parameters", "takes 4.0x fewer FLOPs", "its step takes 0.50x the time",
                  "4.0x the parameters", "its step takes 3.0x the time and 4.0x the memory"):
        assert words in verdict
    assert verdict.endswith("- One seed is an anecdote: repeat with --seeds 3.")


def test_the_verdict_on_losses_compares_means_over_seeds_and_counts_those_that_agree():
    for active, total, said in ((1.75, 1.375, ["0.250 nats lower", "0.125 nats higher"]),
                                (1.25, 1.625, ["0.250 nats higher", "0.125 nats lower"])):
        words = tour.verdict(results((1.5,), (active,), (total,)))
        assert re.findall(r"0\.\d+ nats \w+", unwrapped(words)) == said
    # MoE 1.5 against 1.6, lower in the last two seeds; against 1.4, higher in the last two
    verdict = unwrapped(tour.verdict(results((1.3, 1.5, 1.7), (1.2, 1.7, 1.9), (1.4, 1.4, 1.4))))
    assert "0.100 nats lower, and so in 2 of 3 seeds" in verdict
    assert "0.100 nats higher, and so in 2 of 3 seeds" in verdict
    assert "- Means of 3 seeds: " in verdict


def test_what_is_measured_of_a_run_and_what_its_step_costs():
    state = small.trained()
    state.history["balance"] = list(range(100))  # of a long run, its last 50 steps: 50 to 99
    state.history["drop"] = [0.5, 0.0, 0.25, 0.25]
    measured = tour.measure(state, small.CORPUS)
    assert measured["ce"] == state.history["eval_ce"][-1]
    assert (measured["balance"], measured["drop"]) == (74.5, 0.25)
    variant = tour.experiment(True, 1, 32).variants[MOE]._replace(
        model=small.MODEL, train=replace(small.TRAINING, batch=4, groups=2))
    rows = {name: np.array([value, value]) for name, value in measured.items()} | {
        "seconds": np.array([[1.0, 2.0, 9.0], [3.0, 4.0, 9.0]])}
    result, counted = tour.priced(variant, rows, small.CORPUS), cost.count(small.MODEL, 4, 8)
    assert (result.parameters, result.seconds) == (counted.parameters, 3.5)
    assert result.forward_flops == counted.forward_flops / 32
    # two groups of two sequences, of which one at a time keeps its activations
    assert result.memory == cost.step_memory(small.MODEL, 2, 8) and result.peak > sum(result.memory)
    assert result.memory.parameters == 4 * parameters.count(state.params)
