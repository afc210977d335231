"""MoE and dense at equal steps, FLOPs and time: budgets by arithmetic, and a verdict that says what the numbers say."""

import json
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from minimoe import cost
from minimoe.analysis import bench
from minimoe.config import ModelConfig, TrainConfig
from minimoe.experiments import archive, compare
from minimoe.plots import figures
from minimoe.training import loop, runs
from tests import small
from tests.small import entry

DENSE = ["dense, half of active", "dense, same active", "dense, half of total", "dense, same total",
         "dense, twice total"]
MOES = ["MoE, 2 of 4", "MoE, 2 of 8", "MoE, 2 of 16"]
ACTIVE, TOTAL, MAIN = DENSE[1], DENSE[3], MOES[1]
FLOPS = dict(zip(DENSE + MOES, (200, 250, 400, 700, 1300, 290, 300, 310), strict=True))
SECONDS = dict.fromkeys(DENSE + MOES, 0.02) | {ACTIVE: 0.01, TOTAL: 0.04}
"""Made up: FLOPs of a micro-batch, and seconds of a step."""


@pytest.mark.parametrize("quick", [True, False])
def test_the_family_of_widths_and_the_moes_around_the_main_one(quick):
    compared = compare.models(quick, 95)
    moe, dense = compared.moe, compared.dense
    F, E = moe[MAIN].d_hidden, moe[MAIN].n_experts
    assert compared.main == MAIN and list(compared.all) == DENSE + MOES
    assert (compared.training.n_steps == 20) == quick
    assert [config.d_hidden for config in dense.values()] == [F, 2 * F, E * F // 2, E * F, 2 * E * F]
    assert {(config.n_experts, config.top_k) for config in dense.values()} == {(1, 1)}
    assert [config.n_experts for config in moe.values()] == [E // 2, E, 2 * E]
    assert {replace(config, n_experts=E) for config in moe.values()} == {moe[MAIN]}
    assert [compared.twin(name) for name in moe] == [DENSE[2], DENSE[3], DENSE[4]]
    # an expert more costs a column of the router, 2 * tokens * L * D FLOPs forward, and no other work
    few, main, many, active = (cost.count(config, 2, 16).forward_flops for config in (*moe.values(), dense[ACTIVE]))
    column = 2 * 2 * 16 * moe[MAIN].n_layers * moe[MAIN].d_model
    assert (main - few, many - main, main - active) == (E // 2 * column, E * column, (E - 1) * column)


@pytest.fixture
def budgets(monkeypatch):
    """The steps of each label for a number of steps and seconds of a step, with made-up FLOPs; and the Experiment."""
    compared = compare.models(True, 50)
    by_config = {config: name for name, config in compared.all.items()}
    monkeypatch.setattr(cost, "count", lambda config, *_: SimpleNamespace(
        training_flops=FLOPS[by_config[config]], parameters=(1, 2, 3, 4)))

    def steps(n_steps=100, **seconds):
        at = compared._replace(training=replace(compared.training, n_steps=n_steps))
        experiment = compare.experiment(True, 2, at, SECONDS | seconds)
        return {label: variant.train.n_steps for label, variant in experiment.variants.items()}, experiment

    return steps


def test_budgets_by_hand(budgets):
    """100 steps of 300 FLOPs are 120 of 250 and 42.9 of 700; 100 of 0.02 s are 200 of 0.01 s and 50 of 0.04 s."""
    steps, experiment = budgets()
    assert steps == {f"{name}; steps": 100 for name in DENSE + MOES} | {
        f"{ACTIVE}; FLOPs": 120, f"{TOTAL}; FLOPs": 43, f"{ACTIVE}; time": 200, f"{TOTAL}; time": 50}
    assert len({replace(variant.train, n_steps=1) for variant in experiment.variants.values()}) == 1
    folders = {label: variant.folder for label, variant in experiment.variants.items()}
    assert folders[f"{ACTIVE}; time"] == "dense-same-active-200-steps" and len(set(folders.values())) == 12
    # an entry has the cost of all steps and micro-batches
    variant = experiment.variants[f"{MAIN}; steps"]
    variant = variant._replace(train=replace(variant.train, accumulate=3))
    measured = {"curve": np.array([[9.0, 2.5], [9.0, 3.5]]), "curve_step": np.array([[5, 9], [5, 9]])}
    made = compare._entry(f"{MAIN}; FLOPs", variant, measured, SECONDS)
    assert (made.name, made.budget, made.steps, made.flops, made.seconds) == (MAIN, "FLOPs", 100, 90_000, 2.0)
    assert made.ce.tolist() == [2.5, 3.5] and made.curve_step.tolist() == [5, 9]


@pytest.mark.parametrize(("n_steps", "seconds", "expected"), [
    (100, 0.02 / 1.234, 123), (100, 0.02 / 1.236, 124), (100, 0.02 / 0.004, 1), (100, 100.0, 1),
    (1000, 0.02 / 1.0099, 1000), (1000, 0.02 / 0.9901, 1000), (1000, 0.02 / 1.0101, 1010), (1000, 0.02 / 0.9899, 990)])
def test_budgets_are_rounded_never_to_none_and_near_ones_are_the_run_that_is_there(budgets, n_steps, seconds, expected):
    steps, experiment = budgets(n_steps, **{TOTAL: seconds})
    assert steps[f"{TOTAL}; time"] == expected
    same = experiment.variants[f"{TOTAL}; time"].folder == experiment.variants[f"{TOTAL}; steps"].folder
    assert same == (expected == n_steps)


def rows(table):
    return [re.split("  +", line) for line in table.split("\n")]


def test_the_table_by_hand(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    # 2.0 and 2.2: mean 2.1, sample deviation 0.2 / sqrt(2); 0.5 and -0.1: mean 0.2, one seed has the sign of the mean
    ours = entry(MAIN, 12_345, 2e9, 2.0, 2.2, active=3_000, steps=1_200, seconds=12.4)
    table = compare.table([ours, entry(TOTAL, 12_000, 8e9, 2.5, 2.1, steps=1_200, seconds=20.6),
                           entry(ACTIVE, 3_000, 2e9, 1.9, 1.9, budget="FLOPs", steps=80)], ours)
    steps, flops, sizes = table.split("\n\n")
    assert rows(steps)[3:] == [[MAIN, "1,200", "2 G", "12.4", "2.100 ± 0.141"],
                               [TOTAL, "1,200", "8 G", "20.6", "2.300 ± 0.283", "+0.200", "1 of 2"]]
    assert rows(flops)[3:] == [[ACTIVE, "80", "2 G", "10", "1.900 ± 0.000", "-0.200", "2 of 2"]]
    assert rows(flops)[1][0] == "at equal FLOPs" and max(map(len, table.split("\n"))) <= 80
    assert " ".join(sizes.split()) == f"Parameters: {MAIN}: 12.3 k (3 k active); {TOTAL}: 12 k; {ACTIVE}: 3 k."
    ours = entry(MAIN, 9, 9, 2.0, 2.0, 2.0)
    for ces, told in (((2.0, 2.5, 1.5), ["+0.000", "0 of 3"]),  # 0, 0.5, -0.5: no mean to agree with
                      ((2.0, 2.0, 2.75), ["+0.250", "1 of 3"]),  # a tie is no agreement
                      ((1.0, 1.0, 2.5), ["-0.500", "2 of 3"])):
        assert rows(compare.table([ours, entry("dense", 1, 1, *ces)], ours).split("\n\n")[0])[4][-2:] == told


@pytest.mark.parametrize(("active", "times", "judged"), [
    (0.0999, 4.0, "10% active, not covered by the claim. 4 times or more: FLOPs (4.00). Less: nothing."),
    (0.10, 3.99, "10% active, covered by the claim. 4 times or more: nothing. Less: FLOPs (3.99)."),
    (0.25, 5.0, "25% active, covered by the claim. 4 times or more: FLOPs (5.00). Less: nothing."),
    (0.2501, 5.0, "25% active, not covered by the claim. 4 times or more: FLOPs (5.00). Less: nothing.")])
def test_the_claim_is_about_10_to_25_percent_active_and_4_times_less(active, times, judged):
    text = compare.claim({"MoE": {"active": active, "FLOPs": times}})
    assert " ".join(text.split("\n\n")[2].split()) == f"MoE, {judged}"


def test_savings_by_hand(monkeypatch):
    """Numbers of float32 that a token of one sequence reads, at a batch of n and 6 tokens of context:

                                                   MoE, 2 of 8                      dense, of equal size
    norms 3 * 8, attention 4 * 8 * 8, head 8 * 10  360                              360
    router                                         64                               8
    experts of 3 * 8 * 4 = 96                      768 (1 - (3/4)^n)                768
    KV cache, a sequence: 6 * 2 * 8                96 n                             96 n
    """
    moe = ModelConfig(vocab_size=10, d_model=8, n_layers=1, n_heads=2, d_hidden=4, n_experts=8, top_k=2, max_sequence=6)
    twin, training = replace(moe, n_experts=1, top_k=1, d_hidden=32), TrainConfig(sequence=6)
    monkeypatch.setattr(loop, "new_state", lambda config, training, corpus: config)
    monkeypatch.setattr(loop, "step_once", lambda config, corpus: config)
    monkeypatch.setattr(cost, "peak_bytes", lambda step: {moe: 100, twin: 250}[step()])
    pair = entry(MAIN, 1000, 2e9, 2.0, active=300, seconds=6.0), entry(TOTAL, 1500, 7e9, 2.0, seconds=3.0)
    told = compare.savings(training, (moe, twin), pair, "corpus")

    def read(n):
        return (368 + 768 + 96 * n) / (424 + 768 * (1 - 0.75 ** n) + 96 * n)

    expected = {"FLOPs of the routed experts": 4, "FLOPs of the whole model": 3.5, "time of a training step": 0.5,
                "memory of a training step": 2.5, "memory of the weights": 1.5}
    assert list(told)[:5] == list(expected) and len(told) == 8
    np.testing.assert_allclose(list(told.values()), [*expected.values(), read(1), read(4), read(16)])


def test_the_verdict_tells_the_worth_of_each_moe_and_judges_the_claim(monkeypatch):
    """A dense model of 10^(3 + p) parameters has a loss of 4 - p and takes 4^p GFLOPs; the MoEs take 4."""
    asked = []
    monkeypatch.setattr(compare, "savings", lambda training, configs, pair, corpus: (
        asked.append((configs, [e.name for e in pair])), {"time": 2.0})[1])
    dense = [entry(name, 1000 * 10 ** i, 1e9 * 4 ** i, 4.0 - i, 4.0 - i) for i, name in enumerate(DENSE)]
    moes = [entry(name, 5000, 4e9, loss, loss, active=active)
            for name, loss, active in zip(MOES, (2.5, 1.5, 5.0), (3000, 2000, 1000), strict=True)]
    compared = compare.models(True, 50)
    other = entry(TOTAL, 1_000_000, 1e9, 9.0, 9.0, budget="FLOPs")  # is in no line
    assert max(map(len, compare.verdict(compared, [other, *moes, *dense], 2, "corpus").split("\n"))) <= 80
    asked.clear()
    monkeypatch.setenv("COLUMNS", "120")
    text = compare.verdict(compared, [other, *moes, *dense], 2, "corpus")
    words = " ".join(text.split())
    assert "MoE, 2 of 4: worth a dense model of 31.6 k parameters" in words
    assert "MoE, 2 of 16: worth a dense model of at most 1 k parameters" in words
    numbers = re.findall(r"equal loss +([\d.]+) +([\d.]+) +([\d.]+)", words)
    assert numbers == [("2.00", "8.00", "0.25")]  # 4^1.5, 4^2.5 and 4^0 over 4
    assert words.endswith("shows nothing.")
    assert asked == [((compared.moe[name], compared.dense[compared.twin(name)]), [name, compared.twin(name)])
                     for name in MOES]


def test_the_title_says_what_is_ahead_at_equal_steps(monkeypatch):
    titles = []
    monkeypatch.setattr(figures, "save", lambda figure, path: titles.append(figure.get_suptitle()))
    for losses, words in (((1.5, 1.25), "0.375 nats above"), ((0.5, 0.25), "0.625 nats below")):
        compare._draw("x.png", MAIN, [entry(MAIN, 5, 1e9, *losses), entry(TOTAL, 5, 1e9, 1.0, 1.0)])
        assert titles.pop() == f"At equal steps, the MoE with 2 of 8 experts is {words} a dense model of equal size"


def test_a_comparison_is_timed_once_trained_kept_and_drawn(here, monkeypatch):
    timed, quick = [], compare.models(True, len(small.EMBEDDED().tokenizer))
    brief = quick._replace(training=replace(quick.training, n_steps=4))
    monkeypatch.setattr(compare, "models", lambda *_: brief)
    monkeypatch.setattr(bench, "step_seconds", lambda configs, *_, **__: (timed.append(list(configs)), SECONDS)[1])
    said = small.printed(compare.main, quick=True, seeds=1)
    assert "4 steps compare nothing" in said and "; time: validation loss" in said
    kept = compare.kept("runs/compare-quick")
    assert [(e.name, e.budget) for e in kept[-4:]] == [(ACTIVE, "FLOPs"), (TOTAL, "FLOPs"), (ACTIVE, "time"),
                                                       (TOTAL, "time")]
    state = runs.load("runs/compare-quick/dense-same-total-2-steps/seed0")  # 4 steps of 0.02 s by 0.04 s
    assert state.step == 2 and kept[-1].ce[0] == np.float32(state.history["eval_ce"][-1])
    picture = (here / "runs/compare-quick/compare.png").read_bytes()
    monkeypatch.setattr(loop, "train", None)
    assert small.printed(compare.main, quick=True, seeds=1).endswith(said.split("4 steps compare")[-1])
    assert (here / "runs/compare-quick/compare.png").read_bytes() == picture
    assert timed == [DENSE + MOES]


@pytest.mark.parametrize("found", [{}, dict.fromkeys(DENSE, 0.1)])
def test_times_of_other_models_are_measured_anew(tmp_path, monkeypatch, found):
    path = tmp_path / "seconds.json"
    path.write_text(json.dumps(found), "utf-8")
    monkeypatch.setattr(bench, "step_seconds", lambda *_, **__: SECONDS)
    compared = compare.models(True, 50)
    assert compare._timed(path, compared, None, False, 1) == SECONDS
    monkeypatch.setattr(bench, "step_seconds", None)
    assert compare._timed(path, compared, None, False, 1) == SECONDS


def test_what_was_kept_is_there_and_drawn(here):
    assert {e.name for e in compare.kept()} == set(DENSE + MOES)
    assert small.printed(compare.figure) == "wrote figures/compare.png"
    with pytest.raises(ValueError, match="python -m minimoe compare"):
        compare.kept(archive.FOLDER / "nowhere")
