"""MoE and dense at equal steps, FLOPs and time: a fair plan, budgets by arithmetic, and a run that can be taken up."""

import re
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from minimoe import budgets, model
from minimoe import params as parameters
from minimoe.analysis import comparison, cost, plots, worth
from minimoe.config import ModelConfig, TrainConfig
from minimoe.training import checkpoint, corpus, data, loop

PLANS = {"full": budgets.plan(False, 3, 95), "quick": budgets.plan(True, 3, 95)}
each_plan = pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)

MOE = ModelConfig(vocab_size=10, d_model=8, n_layers=1, n_heads=2, d_hidden=4, n_experts=8, top_k=2, max_sequence=6)
HALF_ACTIVE, ACTIVE, HALF_TOTAL, TOTAL = ("dense, half of active", "dense, same active", "dense, half of total",
                                          "dense, same total")
NAMES = [HALF_ACTIVE, ACTIVE, HALF_TOTAL, TOTAL, "MoE, 2 of 4", "MoE, 2 of 8", "MoE, 2 of 16"]


def small(seeds=2, **training):
    """A plan of MOE.  training: fields of its TrainConfig."""
    return budgets.Plan(MOE, TrainConfig(**dict(n_steps=100, batch=6, sequence=6, warmup_steps=1) | training), seeds,
                        Path("runs"), Path("figures/compare.png"))


def experts(config):
    """Number of parameters in all the experts."""
    return parameters.count({name: weight for name, weight in model.weights(config).items()
                             if name.endswith(("EDF", "EFD"))})


@each_plan
def test_dense_models_have_a_share_of_the_experts_of_the_moe(plan):
    dense, whole, active = plan.dense(), experts(plan.moe), experts(plan.moe) * plan.moe.top_k // plan.moe.n_experts
    assert list(dense) == NAMES[:4]
    assert [experts(config) for config in dense.values()] == [active // 2, active, whole // 2, whole]
    assert all((config.n_experts, config.top_k) == (1, 1) for config in dense.values())


@each_plan
def test_same_active_and_same_total_differ_from_the_moe_by_the_router_alone(plan):
    """The MoE's router has L * D * E weights, a dense model's L * D."""
    moe, active, total = (cost.count_parameters(config) for config in (
        plan.moe, plan.dense()[ACTIVE], plan.dense()[TOTAL]))
    routers = plan.moe.n_layers * plan.moe.d_model * (plan.moe.n_experts - 1)
    assert moe.active - active.total == moe.total - total.total == routers


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
            for config in plan.dense().values()] == [moe] * 4


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
    assert len(paths) == 7 * 2 * 2
    assert {path.relative_to(plan.runs).parts[1:] for path in paths} == {
        ("seed0", "checkpoint.npz"), ("seed1", "checkpoint.npz")}
    assert not any(set(str(path)) & set(" ,") for path in paths)


def test_the_quick_comparison_keeps_away_from_the_full_one():
    assert PLANS["quick"].runs != PLANS["full"].runs and PLANS["quick"].figure != PLANS["full"].figure
    assert PLANS["quick"].training.n_steps < PLANS["full"].training.n_steps / 10


class Runs:
    """Finished runs that are made up, and a note of each: FLOPs of a micro-batch, and seconds of a step, by model."""

    flops = {HALF_ACTIVE: 200, ACTIVE: 250, HALF_TOTAL: 400, TOTAL: 700, "MoE, 2 of 4": 290, "MoE, 2 of 8": 300,
             "MoE, 2 of 16": 310}

    def __init__(self, what, monkeypatch, **seconds):
        self.seconds = dict.fromkeys(NAMES, 0.02) | {ACTIVE: 0.01, TOTAL: 0.04} | seconds
        self.asked, self.counted = [], []
        by_config = {config: name for name, config in (what.dense() | what.sparse()).items()}

        def count(config, *batch):
            self.counted.append(batch)
            return SimpleNamespace(parameters=cost.count_parameters(config),
                                   training_flops=self.flops[by_config[config]])

        monkeypatch.setattr(cost, "count", count)
        self.entries = budgets.trained(what, self.finished)

    def finished(self, name, config, training, seed):
        self.asked.append((name, config, training, seed))
        return SimpleNamespace(history={"seconds": [self.seconds[name]] * 3,
                                        "eval_ce": [9.0, 2.0 + seed + NAMES.index(name) / 8 + training.n_steps / 1e4]})

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
    assert len(runs.entries) == 7 + 4


def test_training_goes_seed_by_seed_so_that_a_slow_hour_is_shared_by_all_models(monkeypatch):
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
    state = SimpleNamespace(history={"seconds": [0.1], "eval_ce": [2.0]})
    entries = {(e.name, e.budget): e for e in budgets.trained(what, lambda *_: state)}
    counted = cost.count(MOE, batch=6, sequence=6, groups=3)
    moe = entries["MoE, 2 of 8", "steps"]
    assert (moe.flops, moe.parameters) == (100 * 2 * counted.training_flops, counted.parameters)
    for name in (ACTIVE, TOTAL):
        one_step = entries[name, "steps"].flops / 100
        assert abs(entries[name, "FLOPs"].flops - moe.flops) <= one_step / 2


def test_the_time_is_steps_times_the_median_step_of_all_seeds():
    """1, 2, 3, 4, 5, 9: 3.5, where the mean is 4 and the mean of both medians 3."""
    states = [SimpleNamespace(history={"seconds": seconds, "eval_ce": [9.0, ce]})
              for seconds, ce in (([9.0, 1.0, 2.0], 2.5), ([3.0, 4.0, 5.0], 2.25))]
    entry = budgets._entry("MoE, 2 of 8", MOE, "steps", small(n_steps=10).training, states)
    assert (entry.name, entry.budget, entry.steps, entry.seconds) == ("MoE, 2 of 8", "steps", 10, 35.0)
    assert entry.ce.tolist() == [2.5, 2.25]


def entry(name, total, flops, *ces, seconds=10.0):
    return worth.Entry(name, "steps", 100, cost.Parameters(total, total, 0, 0), flops, seconds, np.array(ces))


def entries(*moe_losses):
    """Dense models with losses 4, 3, 2, 1; MoEs with these."""
    dense = [entry(name, 1000 * 10 ** i, 1e9 * 4 ** i, 4.0 - i, 4.0 - i) for i, name in enumerate(NAMES[:4])]
    return dense + [entry(name, 5000, 4e9, *ces) for name, ces in zip(NAMES[4:], moe_losses, strict=True)]


@pytest.fixture
def no_savings(monkeypatch):
    monkeypatch.setattr(budgets, "savings", lambda *_: {"time": 2.0})


@pytest.mark.usefixtures("no_savings")
def test_the_verdict_tells_the_worth_of_each_moe_and_what_is_saved():
    # 2.5 is halfway from 10 to 100 thousand parameters and from 4 to 16 GFLOPs: 31.6 thousand and 8 G, twice 4 G
    # 2.0 and 3.0 are worth 100 and 10 thousand, and 4 times and once the FLOPs: sqrt(4 * 1) = 2
    # 5.0 is above all
    few, main, many, *rest = budgets.verdict(small(), entries((2.5, 2.5), (2.0, 3.0), (5.0, 5.0)), None).split("\n")
    assert few.startswith("MoE, 2 of 4: worth a dense model of 31.6 k parameters")
    assert main.startswith("MoE, 2 of 8: worth a dense model of 31.6 k parameters (10 k to 100 k)")
    assert main.endswith("takes 2.00 times the training FLOPs.")
    assert many.startswith("MoE, 2 of 16: no dense model")
    assert [line.split() for line in rest if line.startswith("  ")] == [
        ["time", "2.00"], ["training", "FLOPs,", "beside", "a", "dense", "model", "of", "equal", "loss", "2.00"]]
    assert rest[-1] == comparison.on_seeds(2)


@pytest.mark.usefixtures("no_savings")
@pytest.mark.parametrize(("losses", "told"), [
    ((5.0, 5.0), []), ((5.0, 2.0), ["4.00"]), ((0.5, 3.0), ["1.00"]), ((2.0, 2.0), ["4.00"])])
def test_the_flops_to_the_same_loss_are_told_where_a_seed_has_a_worth(losses, told):
    said = budgets.verdict(small(), entries((5.0, 5.0), losses, (5.0, 5.0)), None)
    assert re.findall(r"equal loss +(\S+)", said) == told
    assert "nan" not in said


def test_savings_by_hand(monkeypatch):
    """Numbers of float32 that a token of one text reads, of four texts of 6 tokens each, and of sixteen:

                                    MoE                                                                 dense
    norms 3 * 8, attention 4 * 8 * 8, head 8 * 10                                               360     360
    router                                                                                      64      8
    experts of 3 * 8 * 4 = 96: of four texts 8 (1 - (3/4)^4) = 5.46875, of sixteen 8 (1 - (3/4)^16)     8 * 96 = 768
    keys and values, a text: 6 * 2 * 8                                                          96      96
    """
    what = small()
    peaks = {MOE: 100, what.dense()[TOTAL]: 250}
    monkeypatch.setattr(loop, "new_state", lambda config, training, text: (config, training, text))
    monkeypatch.setattr(loop, "step_once", lambda state, text: (*state, text))

    def peak_bytes(step):
        config, training, *texts = step()
        assert (training, texts) == (what.training, ["text", "text"])
        return peaks[config]

    monkeypatch.setattr(cost, "peak_bytes", peak_bytes)
    moe = entry("MoE, 2 of 8", 1000, 2e9, 2.0, seconds=6.0)
    told = budgets.savings(what, moe, entry(TOTAL, 1500, 7e9, 2.0, seconds=3.0), "text")
    expected = {
        "FLOPs of the experts": 4, "FLOPs of the whole model": 3.5, "time of a training step": 0.5,
        "memory of a training step": 2.5, "memory of the weights": 1.5,
        "bytes read for a token of 1 text": (368 + 768 + 96) / (424 + 2 * 96 + 96),
        "bytes read for a token of 4 texts": (368 + 768 + 4 * 96) / (424 + 5.46875 * 96 + 4 * 96),
        "bytes read for a token of 16 texts": (368 + 768 + 16 * 96) / (424 + 8 * (1 - 0.75 ** 16) * 96 + 16 * 96)}
    assert list(told) == list(expected)
    np.testing.assert_allclose(list(told.values()), list(expected.values()))


N_STEPS = 6
RUNS = ["dense-half-of-active", "dense-same-active", "dense-half-of-total", "dense-same-total", "moe-2-of-4",
        "moe-2-of-8", "moe-2-of-16"]
PATHS = [f"runs/{folder}-{N_STEPS}-steps/seed0/checkpoint.npz" for folder in RUNS]


def few_steps(quick, seeds, vocab_size):
    training = TrainConfig(n_steps=N_STEPS, batch=2, sequence=8, warmup_steps=1, eval_every=3, eval_batches=2,
                           record_every=2, checkpoint_every=2)
    return budgets.Plan(replace(MOE, vocab_size=vocab_size, max_sequence=8), training, seeds, Path("runs"),
                        Path("figures/compare.png"))


def shrink(patch):
    """A plan of a few steps, and the head of the text."""
    patch.setattr(budgets, "plan", few_steps)
    patch.setattr(corpus, "EMBEDDED_CHARACTERS", 20_000)


def compared(*options):
    """What the comparison prints."""
    said = []
    budgets.main(*options, say=said.append)
    return "\n".join(said)


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """The folder of a finished comparison of one seed, and what it said."""
    folder = tmp_path_factory.mktemp("compare")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        shrink(patch)
        return SimpleNamespace(folder=folder, said=compared(False, 1))


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Every test is in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    shrink(monkeypatch)


@pytest.fixture
def finished(first):
    """This folder is a copy of the finished comparison's."""
    shutil.copytree(first.folder, ".", dirs_exist_ok=True)


@pytest.fixture
def no_pictures(monkeypatch):
    monkeypatch.setattr(budgets, "_draw", lambda *_: None)


@pytest.fixture
def no_training(monkeypatch):
    monkeypatch.setattr(loop, "train", lambda *_: pytest.fail("trained again"))


def learnt(folder="."):
    """What each model has learnt at equal steps."""
    return [parameters.flatten(checkpoint.load(Path(folder) / path).params) for path in PATHS]


def interrupt_at(patch, batch):
    """Ctrl-C while that training batch, counted over all models, is drawn."""
    drawn, data_sample = [], data.sample

    def sample(streams, *options):
        drawn.append(len(streams) == 2)  # evaluation takes one domain at a time
        if drawn[-1] and sum(drawn) == batch:
            signal.raise_signal(signal.SIGINT)
        return data_sample(streams, *options)

    patch.setattr(data, "sample", sample)


def test_a_comparison_trains_prints_and_draws(first):
    assert all((first.folder / path).exists() for path in PATHS)
    assert (first.folder / "figures/compare.png").read_bytes().startswith(b"\x89PNG\r\n")
    assert "Training 7 models" in first.said and "Picture: figures/compare.png" in first.said
    assert all(f"MoE, 2 of {n}: " in first.said for n in (4, 8, 16))
    assert first.said.endswith(comparison.on_seeds(1))


def test_the_table_tells_the_loss_of_each_run_and_its_gap_to_the_moe(first):
    rows = [re.split(r" {2,}", line) for line in first.said.split("\n") if re.match("(steps|FLOPs|time) ", line)]
    assert [(row[0], row[1]) for row in rows] == [*(("steps", name) for name in NAMES),
                                                  *((b, name) for b in ("FLOPs", "time") for name in (ACTIVE, TOTAL))]

    def loss(name, steps):
        path = few_steps(False, 1, 9).path(name, steps, 0)
        return checkpoint.load(first.folder / path).history["eval_ce"][-1]

    for _, name, steps, *_, ce, gap, agree in (row for row in rows if row[1] != "MoE, 2 of 8"):
        assert ce == f"{loss(name, int(steps)):.3f}"
        assert gap == f"{loss(name, int(steps)) - loss('MoE, 2 of 8', N_STEPS):+.3f}" and agree == "1 of 1"


def test_a_run_of_another_budget_has_a_schedule_of_its_own(first):
    """Its learning rate falls over its own steps; all else is as it was."""
    found = [checkpoint.load(path) for path in first.folder.rglob("checkpoint.npz")]
    for state in found:
        assert state.finished and len(state.history["ce"]) == state.train_config.n_steps
        assert replace(state.train_config, n_steps=N_STEPS) == few_steps(False, 1, 9).training
    assert len({state.train_config.n_steps for state in found}) > 1
    assert len({state.data_digest for state in found}) == 1


def test_all_models_see_the_same_batches_in_the_same_order(monkeypatch, no_pictures):
    seen, data_sample = [], data.sample

    def sample(streams, *options):
        batch = data_sample(streams, *options)
        if len(streams) == 2:
            seen.append(batch.tokens_BS)
        return batch

    monkeypatch.setattr(data, "sample", sample)
    compared(True, 1)
    batches = np.array(seen[:7 * N_STEPS]).reshape(7, N_STEPS, -1)
    np.testing.assert_array_equal(batches, batches[:1].repeat(7, axis=0))
    assert len(np.unique(batches[0], axis=0)) == N_STEPS


def test_a_quick_comparison_says_that_it_compares_nothing(finished, no_training):
    said = compared(True, 1)
    assert said.endswith("Far too short to compare anything: this shows that all works.")
    assert "worth a dense model" not in said and "The claim" not in said


@pytest.mark.usefixtures("finished", "no_training")
def test_a_second_comparison_trains_nothing_and_says_the_same(first):
    said = compared(False, 1)
    assert all(f"finished earlier ({path})" in said for path in PATHS)

    def table(text):
        return [line for line in text.split("\n") if re.match("(at equal|steps|FLOPs|time) ", line)]

    assert table(said) == table(first.said)


@pytest.mark.usefixtures("finished", "no_pictures")
def test_a_fresh_comparison_trains_again_to_the_same(first):
    before = [Path(path).stat().st_mtime_ns for path in PATHS]
    said = compared(True, 1, True)
    assert "earlier" not in said
    assert all(Path(path).stat().st_mtime_ns > time for path, time in zip(PATHS, before, strict=True))
    np.testing.assert_equal(learnt(), learnt(first.folder))


@pytest.mark.usefixtures("no_pictures")
def test_an_interrupted_comparison_goes_on_where_it_was(first, monkeypatch):
    """The 14th batch is the second of the third model."""
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt, match="half of total, 6 steps.*after step 2"):
        interrupt_at(patch, 2 * N_STEPS + 2)
        compared(True, 1)
    assert not Path(PATHS[3]).exists()
    said = compared(True, 1)
    assert f"{ACTIVE}, 6 steps, seed 0: finished earlier ({PATHS[1]})" in said
    assert f"{HALF_TOTAL}, 6 steps, seed 0: goes on from step 2 ({PATHS[2]})" in said
    np.testing.assert_equal(learnt(), learnt(first.folder))


@pytest.mark.usefixtures("finished", "no_pictures")
def test_another_number_of_seeds_goes_on_with_what_is_there(monkeypatch):
    said = compared(True, 2)
    assert all(f"finished earlier ({path})" in said for path in PATHS)
    assert all(Path(path.replace("seed0", "seed1")).exists() for path in PATHS)
    monkeypatch.setattr(loop, "train", lambda *_: pytest.fail("trained again"))
    compared(True, 1)
    compared(True, 2)


def test_threads_are_those_of_the_training(monkeypatch, no_pictures):
    seen, train = [], loop.train
    monkeypatch.setattr(loop, "train", lambda *options: seen.append(options[-1]) or train(*options))
    compared(True, 1, False, 2)
    assert set(seen) == {2}


def test_the_title_says_who_is_ahead_at_equal_steps(monkeypatch):
    titles = []
    monkeypatch.setattr(plots, "save", lambda figure, path: titles.append(figure.get_suptitle()))
    for losses in ((1.5, 1.25), (0.5, 0.25)):  # the dense model of equal size has 1, 1
        budgets._draw(small(), entries((4.0, 4.0), losses, (4.0, 4.0)))
    assert titles == ["At equal steps the MoE, 2 of 8 is 0.375 nats above a dense model of equal size",
                      "At equal steps the MoE, 2 of 8 is 0.625 nats below a dense model of equal size"]


def test_without_runs_there_is_no_figure():
    assert budgets.figure(say=pytest.fail) is False
    assert not Path("figures").exists()


@pytest.mark.usefixtures("finished", "no_training")
def test_the_figure_alone_is_the_same_bytes_again(first):
    shutil.rmtree("figures")
    said = []
    assert budgets.figure(said.append) is True
    assert said == ["wrote figures/compare.png"]
    assert Path(said[0].split()[1]).read_bytes() == (first.folder / "figures/compare.png").read_bytes()


@pytest.mark.usefixtures("finished", "no_training")
@pytest.mark.parametrize("gone", PATHS)
def test_the_figure_waits_until_all_models_have_a_run(gone):
    shutil.rmtree("figures")
    Path(gone).unlink()
    assert budgets.figure(say=pytest.fail) is False
    assert not Path("figures").exists()


@pytest.mark.usefixtures("finished")
def test_the_figure_is_of_as_many_seeds_as_all_models_have(monkeypatch):
    """A comparison of more seeds was interrupted."""
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_at(patch, 5 * N_STEPS + 1)  # the sixth model's second seed has begun
        compared(True, 2)
    drawn = []
    monkeypatch.setattr(budgets, "_draw", lambda what, entries: drawn.append(entries))
    assert budgets.figure(say=lambda line: None) is True
    assert {len(entry.ce) for entry in drawn[0]} == {1}


@pytest.mark.usefixtures("finished", "no_pictures")
@pytest.mark.parametrize("path", [PATHS[0], PATHS[5]])
def test_runs_of_another_kind_are_refused_and_fresh_is_the_way_out(monkeypatch, path):
    other = checkpoint.load(path)
    other.train_config = replace(other.train_config, learning_rate=0.1)
    checkpoint.save(path, other)
    for draw in (lambda: compared(True, 1), lambda: budgets.figure(say=pytest.fail)):
        with pytest.raises(ValueError, match=f"{path} is a run of another kind.*--fresh"):
            draw()
    compared(True, 1, True)
    assert "earlier" in compared(True, 1)


@pytest.mark.usefixtures("no_pictures")
def test_the_figure_refuses_a_run_that_is_not_finished(monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_at(patch, 6 * N_STEPS + 2)
        compared(True, 1)
    with pytest.raises(ValueError, match=f"{PATHS[6]} is at step 2 of 6: `python -m minimoe compare` goes on with it"):
        budgets.figure(say=pytest.fail)
