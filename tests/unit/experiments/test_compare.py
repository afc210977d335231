"""MoE and dense at equal steps, FLOPs and time: a fair plan, and budgets by arithmetic."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from minimoe import cost, model, parameters
from minimoe.config import ModelConfig, TrainConfig
from minimoe.experiments import compare

PLANS = {"full": compare.plan(False, 3, 95), "quick": compare.plan(True, 3, 95)}
each_plan = pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)

MOE = ModelConfig(vocab_size=10, d_model=8, n_layers=1, n_heads=2, d_hidden=4, n_experts=8, top_k=2, max_sequence=6)
HALF_ACTIVE, ACTIVE, HALF_TOTAL, TOTAL, TWICE = ("dense, half of active", "dense, same active", "dense, half of total",
                                                 "dense, same total", "dense, twice total")
NAMES = [HALF_ACTIVE, ACTIVE, HALF_TOTAL, TOTAL, TWICE, "MoE, 2 of 4", "MoE, 2 of 8", "MoE, 2 of 16"]


def small(seeds=2, **training):
    """A plan of MOE.  training: fields of its TrainConfig."""
    return compare.Plan(MOE, TrainConfig(**dict(n_steps=100, batch=6, sequence=6, warmup_steps=1) | training), seeds,
                        Path("runs"), Path("figures/compare.png"), Path("kept/compare.npz"))


def experts(config):
    """Number of parameters in all the experts."""
    return parameters.count({name: weight for name, weight in model.weights(config).items()
                             if name.endswith(("EDF", "EFD"))})


@each_plan
def test_dense_models_have_a_share_of_the_experts_of_the_moe(plan):
    dense, whole, active = plan.dense(), experts(plan.moe), experts(plan.moe) * plan.moe.top_k // plan.moe.n_experts
    assert list(dense) == NAMES[:5]
    assert [experts(config) for config in dense.values()] == [active // 2, active, whole // 2, whole, 2 * whole]
    assert all((config.n_experts, config.top_k) == (1, 1) for config in dense.values())


@each_plan
def test_same_active_and_same_total_differ_from_the_moe_by_the_router_alone(plan):
    """The MoE's router has L * D * E weights, a dense model's L * D."""
    moe, active, total = (cost.count_parameters(config) for config in (
        plan.moe, plan.dense()[ACTIVE], plan.dense()[TOTAL]))
    routers = plan.moe.n_layers * plan.moe.d_model * (plan.moe.n_experts - 1)
    assert moe.active - active.total == moe.total - total.total == routers


@each_plan
def test_the_twin_of_a_moe_has_as_many_parameters_in_its_block_as_all_experts_have(plan):
    dense, sparse = plan.dense(), plan.sparse()
    assert [plan.twin(name) for name in sparse] == [HALF_TOTAL, TOTAL, TWICE]
    assert [experts(dense[plan.twin(name)]) for name in sparse] == [experts(config) for config in sparse.values()]


@each_plan
def test_the_moes_have_half_once_and_twice_the_experts_and_differ_in_nothing_else(plan):
    E = plan.moe.n_experts
    assert [config.n_experts for config in plan.sparse().values()] == [E // 2, E, 2 * E]
    assert [replace(config, n_experts=E) for config in plan.sparse().values()] == [plan.moe] * 3
    assert list(plan.sparse()) == [f"MoE, {plan.moe.top_k} of {n}" for n in (E // 2, E, 2 * E)]
    assert plan.sparse()[plan.main] == plan.moe


@each_plan
def test_the_dense_models_differ_from_the_moe_in_their_experts_alone(plan):
    moe = plan.moe
    assert [replace(config, n_experts=moe.n_experts, top_k=moe.top_k, d_hidden=moe.d_hidden)
            for config in plan.dense().values()] == [moe] * 5


def test_the_moes_do_the_same_work_for_a_token_up_to_the_router():
    """An expert more is a column more of the router: 2 * tokens * L * D FLOPs forward."""
    plan = PLANS["quick"]
    moe = plan.moe
    few, main, many = (cost.count(config, 2, 16) for config in plan.sparse().values())
    column = 2 * 2 * 16 * moe.n_layers * moe.d_model
    assert main.forward_flops - few.forward_flops == moe.n_experts // 2 * column
    assert many.forward_flops - main.forward_flops == moe.n_experts * column
    assert len({cost.flops("forward", "experts") for cost in (few, main, many)}) == 1
    dense = cost.count(plan.dense()[ACTIVE], 2, 16)
    assert main.forward_flops - dense.forward_flops == (moe.n_experts - 1) * column


@each_plan
def test_each_run_has_a_folder_of_its_own_that_tells_its_steps_and_seed(plan):
    names = [*plan.dense(), *plan.sparse()]
    paths = {plan.path(name, steps, seed) for name in names for steps in (60, 600) for seed in range(2)}
    assert len(paths) == 8 * 2 * 2
    assert {path.relative_to(plan.runs).parts[1:] for path in paths} == {
        ("seed0", "checkpoint.npz"), ("seed1", "checkpoint.npz")}
    assert not any(set(str(path)) & set(" ,") for path in paths)


def test_the_quick_comparison_keeps_away_from_the_full_one():
    assert PLANS["quick"].runs != PLANS["full"].runs and PLANS["quick"].figure != PLANS["full"].figure
    assert PLANS["quick"].training.n_steps < PLANS["full"].training.n_steps / 10


class Runs:
    """Finished runs that are made up, and a note of each: FLOPs of a micro-batch, and seconds of a step, by model."""

    flops = {HALF_ACTIVE: 200, ACTIVE: 250, HALF_TOTAL: 400, TOTAL: 700, TWICE: 1300, "MoE, 2 of 4": 290,
             "MoE, 2 of 8": 300, "MoE, 2 of 16": 310}

    def __init__(self, what, monkeypatch, **seconds):
        self.seconds = dict.fromkeys(NAMES, 0.02) | {ACTIVE: 0.01, TOTAL: 0.04} | seconds
        self.asked, self.counted = [], []
        by_config = {config: name for name, config in (what.dense() | what.sparse()).items()}

        def count(config, *batch):
            self.counted.append(batch)
            return SimpleNamespace(parameters=cost.count_parameters(config),
                                   training_flops=self.flops[by_config[config]])

        monkeypatch.setattr(cost, "count", count)
        self.entries = compare.trained(what, self.finished, self.seconds)

    def finished(self, name, config, training, seed):
        self.asked.append((name, config, training, seed))
        ce = 2.0 + seed + NAMES.index(name) / 8 + training.n_steps / 1e4
        return SimpleNamespace(history={"eval_ce": [9.0, ce], "eval_step": [1, 2]})  # the last counts

    def of(self, name, budget):
        [entry] = [entry for entry in self.entries if (entry.name, entry.budget) == (name, budget)]
        return entry


def test_all_models_have_the_same_steps_and_two_of_them_other_budgets(monkeypatch):
    runs = Runs(small(), monkeypatch)
    assert [(entry.name, entry.budget) for entry in runs.entries] == [
        *((name, "steps") for name in NAMES), (ACTIVE, "FLOPs"), (TOTAL, "FLOPs"), (ACTIVE, "time"), (TOTAL, "time")]
    assert {entry.steps for entry in runs.entries if entry.budget == "steps"} == {100}


def test_equal_flops_by_hand(monkeypatch):
    """100 steps of 300: 30,000 are 120 steps of 250, and 42.9 of 700."""
    runs = Runs(small(), monkeypatch)
    assert (runs.of(ACTIVE, "FLOPs").steps, runs.of(TOTAL, "FLOPs").steps) == (120, 43)
    assert (runs.of(ACTIVE, "FLOPs").flops, runs.of(TOTAL, "FLOPs").flops) == (30_000, 30_100)


def test_equal_time_by_hand(monkeypatch):
    """100 steps of 0.02 s: 2 s are 200 steps of 0.01 s, and 50 of 0.04 s."""
    runs = Runs(small(), monkeypatch)
    assert (runs.of(ACTIVE, "time").steps, runs.of(TOTAL, "time").steps) == (200, 50)
    np.testing.assert_allclose([runs.of(name, "time").seconds for name in (ACTIVE, TOTAL)], 2.0)


def test_the_main_moe_is_the_one_that_budgets_are_equal_to(monkeypatch):
    """Others may be faster: of 2 of 16 experts the time would be 100 steps of 1 s."""
    runs = Runs(small(), monkeypatch, **{"MoE, 2 of 16": 1.0, "MoE, 2 of 4": 3.0})
    assert runs.of(ACTIVE, "time").steps == 200


@pytest.mark.parametrize(("seconds", "steps"), [
    (0.02 / 1.234, 123), (0.02 / 1.236, 124), (0.02 / 0.126, 13), (0.02 / 0.124, 12), (0.02 / 0.014, 1),
    (0.02 / 0.004, 1), (100.0, 1)])
def test_budgets_are_rounded_to_steps_and_never_to_none(monkeypatch, seconds, steps):
    runs = Runs(small(), monkeypatch, **{TOTAL: seconds})
    entry = runs.of(TOTAL, "time")
    assert entry.steps == steps
    np.testing.assert_allclose(entry.seconds, steps * seconds)


@pytest.mark.parametrize(("ratio", "steps"), [
    (1.0, 1000), (1.0099, 1000), (0.9901, 1000), (1.0101, 1010), (0.9899, 990), (1.02, 1020)])
def test_a_budget_within_a_hundredth_is_the_run_that_is_there(monkeypatch, ratio, steps):
    runs = Runs(small(n_steps=1000), monkeypatch, **{TOTAL: 0.02 / ratio})
    entry, at_steps = runs.of(TOTAL, "time"), runs.of(TOTAL, "steps")
    assert entry.steps == steps
    asked = [training.n_steps for name, _, training, seed in runs.asked if (name, seed) == (TOTAL, 0)]
    assert asked == [1000, 429] + [steps] * (steps != 1000)  # 1000 * 300 / 700 = 428.6
    assert (entry.ce.tolist() == at_steps.ce.tolist()) == (steps == 1000)


@pytest.mark.parametrize(("n_steps", "seconds"), [
    (20, 0.02 / 1.02),  # not within a hundredth of 20 steps, and yet 20.4 rounds to them
    (7, 0.02 / 0.44)])  # 7 * 300 / 700 = 3 by FLOPs, 7 * 0.44 = 3.1 by time
def test_no_run_is_asked_for_twice(monkeypatch, n_steps, seconds):
    """With --fresh it would be trained twice."""
    runs = Runs(small(n_steps=n_steps), monkeypatch, **{TOTAL: seconds})
    asked = [(name, training.n_steps, seed) for name, _, training, seed in runs.asked]
    assert len(asked) == len(set(asked))
    assert len(runs.entries) == 8 + 4


def test_training_goes_seed_by_seed_so_that_an_interrupted_one_has_seeds_of_all_models(monkeypatch):
    asked = [(name, seed) for name, _, _, seed in Runs(small(seeds=3), monkeypatch).asked]
    assert asked == [(name, seed) for names in (NAMES, [ACTIVE, TOTAL], [ACTIVE, TOTAL])
                     for seed in range(3) for name in names]


def test_all_runs_have_one_recipe_and_their_losses_in_the_order_of_seeds(monkeypatch):
    what = small(seeds=3)
    runs = Runs(what, monkeypatch)
    configs = what.dense() | what.sparse()
    for name, config, training, _ in runs.asked:
        assert (config, replace(training, n_steps=100)) == (configs[name], what.training)
    # a model's loss is 2 + seed + place / 8 + steps / 10,000
    np.testing.assert_allclose(runs.of(HALF_ACTIVE, "steps").ce, [2.01, 3.01, 4.01])
    np.testing.assert_allclose(runs.of(ACTIVE, "time").ce, [2.145, 3.145, 4.145])


def test_flops_are_those_of_all_micro_batches_in_their_groups(monkeypatch):
    runs = Runs(small(accumulate=3, groups=2), monkeypatch)
    assert set(runs.counted) == {(6, 6, 2)}
    assert runs.of("MoE, 2 of 8", "steps").flops == 100 * 3 * 300
    assert runs.of(ACTIVE, "FLOPs").steps == 120


def test_flops_are_counted_on_a_real_step():
    what = small(seeds=1, accumulate=2, groups=3)
    state = SimpleNamespace(history={"eval_ce": [2.0], "eval_step": [1]})
    entries = {(e.name, e.budget): e for e in compare.trained(what, lambda *_: state, dict.fromkeys(NAMES, 0.1))}
    counted = cost.count(MOE, batch=6, sequence=6, groups=3)
    moe = entries["MoE, 2 of 8", "steps"]
    assert (moe.flops, moe.parameters) == (100 * 2 * counted.training_flops, counted.parameters)
    for name in (ACTIVE, TOTAL):
        one_step = entries[name, "steps"].flops / 100
        assert abs(entries[name, "FLOPs"].flops - moe.flops) <= one_step / 2
