"""The comparison of all routers: a fair table of variants, right numbers, and a verdict seed by seed."""

import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from minimoe import cost
from minimoe.experiments import routers
from minimoe.moe.routers import ROUTERS
from minimoe.training import loop, runs
from tests import small

EXPERIMENT = routers.experiment(quick=False, seeds=3, vocab_size=50)
CONFIGS = {name: variant.model for name, variant in EXPERIMENT.variants.items()}


def test_all_routers_have_the_same_experts_in_sum_and_the_same_work_per_token():
    assert list(CONFIGS) == [routers.DENSE, *ROUTERS]
    assert len({variant.train for variant in EXPERIMENT.variants.values()}) == 1
    assert len({config.top_k * config.d_hidden for config in CONFIGS.values()}) == 1
    assert len({config.n_experts * config.d_hidden for name, config in CONFIGS.items() if name != routers.DENSE}) == 1
    assert {name for name, config in CONFIGS.items() if config.capacity_factor is None} == {routers.DENSE, "soft"}


@pytest.mark.parametrize("name", ["softmax_topk", "switch", "hash"])
def test_counted_flops_differ_by_the_router_alone(name):
    """A router is L products of D x E per token, of which `hash` has none."""
    config = replace(CONFIGS[name], capacity_factor=None)
    dense = cost.count(replace(CONFIGS[routers.DENSE], n_experts=1), 2, 32).forward_flops
    router = 2 * 64 * config.n_layers * config.d_model
    expected = dense - router + router * (0 if name == "hash" else config.n_experts)
    assert cost.count(config, 2, 32).forward_flops == expected


def test_measure_by_hand():
    """The last 10 records have the busiest expert at 0.6 of 2, and at 10 records per 3 steps 0.3 of 3 x 10 drops."""
    history = {"eval_ce": [3.0, 2.5], "seconds": [1.0, 9.0, 2.0], "drop": [0.5] * 4 + [0.3] * 15 + [0.1] * 15,
               "router_load": [[[0.9, 0.1]] * 2] * 5 + [[[0.5, 0.5], [0.4, 0.6]]] * routers.LAST}
    state = SimpleNamespace(history=history, train_config=SimpleNamespace(record_every=3))
    measured = routers.measure(state, None)
    assert (measured["ce"], measured["seconds"]) == (2.5, 2.0)
    assert measured["load"] == pytest.approx(1.2) and measured["drop"] == pytest.approx(0.2)
    for load in ([], [[1.0], [1.0]]):
        history["router_load"] = [load] * 20
        assert np.isnan(routers.measure(state, None)["load"])


def results(**ces):
    """Made-up Results of all, with the losses that are given and 3 for the others."""
    same = np.full(3, 1.5), np.full(3, 0.25), np.array([0.1, 0.2, 0.9])
    return {name: routers.Result(np.array(ces.get(name, [3.0] * 3)), *same) for name in CONFIGS}


def test_the_lowest_loss_is_first_and_what_sees_the_future_is_last(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    table = routers.table(results(hash=[2.0, 2.1, 2.2], soft=[0.1] * 3, expert_choice=[0.2] * 3), EXPERIMENT.variants)
    *head, _ = table.split("\n")[:3]
    rows = table.split("\n\n")[0].split("\n")[3:]
    assert " ".join(" ".join(head).split()) == "validation busiest router experts loss expert dropped s/step looks at"
    assert re.split("  +", rows[0]) == ["hash", "2 of 8", "2.100 ± 0.100", "1.50", "25.0%", "0.2000", "causal"]
    assert [row.split()[0] for row in rows[-2:]] == ["soft", "expert_choice"]
    assert all(row.endswith("sees the future") for row in rows[-2:])


def test_the_verdict_compares_the_best_with_the_controls_seed_by_seed():
    words = " ".join(routers.verdict(results(hash=[2.0, 2.1, 2.2], random=[2.5, 2.5, 2.15], soft=[0.1] * 3)).split())
    assert "hash is 0.283 nats below random, and below it in 2 of 3 seeds" in words
    assert "No seed-for-seed difference from hash: random." in words
    assert "expert_choice and soft look at later tokens" in words
    title = routers.title(results(hash=[2.0, 2.1, 2.2]), 400)
    assert title.startswith("After 400 steps, hash has the lowest loss") and "0.90 nats apart\n" in title
    words = routers.verdict(results(uniform=[2.0] * 3))
    assert "uniform is 1.000 nats below random" in words and "below uniform" not in words


@pytest.fixture
def three(here, monkeypatch):
    """The quick comparison of three variants."""
    whole = routers.experiment
    monkeypatch.setattr(routers, "experiment", lambda *options: replace(whole(*options), variants={
        name: whole(*options).variants[name] for name in ("dense", "softmax_topk", "soft")}))


def test_a_comparison_is_trained_kept_and_drawn_and_can_be_drawn_again(three, monkeypatch):
    said = small.printed(routers.main, quick=True, seeds=2)
    assert "6 steps compare nothing" in said and "dense, seed 1: validation loss" in said
    picture = routers.experiment(True, 1, 9).figure
    drawn = picture.read_bytes()
    kept = routers.kept("runs/routers-quick")
    assert list(kept) == ["dense", "softmax_topk", "soft"] and kept["soft"].ce.shape == (2,)
    state = runs.load("runs/routers-quick/softmax_topk/seed1")
    assert kept["softmax_topk"].ce[1] == np.float32(state.history["eval_ce"][-1])
    monkeypatch.setattr(loop, "train", None)
    assert small.printed(routers.main, quick=True, seeds=2).count("finished earlier") == 6
    assert picture.read_bytes() == drawn


def test_a_router_that_fails_leaves_the_table_of_the_others_and_keeps_no_archive(three, monkeypatch):
    train = loop.train
    monkeypatch.setattr(loop, "train", lambda state, *rest, **options: (
        train(state, *rest, **options) if state.model_config.router != "soft" else 1 / 0))
    lines = []
    with pytest.raises(ValueError, match="^1 run failed, the rest are kept: soft: ZeroDivisionError: division by"):
        routers.main(quick=True, seeds=1, say=lines.append)
    assert any("softmax_topk" in line and "validation loss" in line for line in lines)
    assert not routers.experiment(True, 1, 9).archive.exists()


def test_the_figure_is_drawn_from_what_was_kept(here):
    assert set(routers.kept()) == set(CONFIGS)
    assert small.printed(routers.figure) == "wrote figures/routers.png"
    assert (here / "figures/routers.png").stat().st_size > 1_000
