"""The tour on a plan that is small enough for a test: three models, one text, four pictures, a table; and taking up."""

import re
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest

from minimoe import cli, cost, model, parameters
from minimoe.config import ModelConfig, TrainConfig
from minimoe.experiments import tour
from minimoe.plots import coloured_text, expert_load, figures, loss_curves
from minimoe.training import checkpoint, corpus, data

N_STEPS = 12
MODELS = "MoE", "dense, same active", "dense, same total"
PATHS = [f"runs/{folder}/seed0/checkpoint.npz" for folder in ("moe", "dense-active", "dense-total")]
PICTURES = [f"figures/{name}.png" for name in ("losses", "load", "text", "domains")]
PLANS = {"full": tour.plan(False, 1, 95), "quick": tour.plan(True, 1, 95)}


def small_plan(quick, seeds, vocab_size):
    moe = ModelConfig(vocab_size=vocab_size, d_model=32, n_layers=2, n_heads=2, d_hidden=48, n_experts=4, top_k=2,
                      max_sequence=16)
    training = TrainConfig(n_steps=N_STEPS, batch=4, sequence=16, warmup_steps=1, eval_every=4, eval_batches=2,
                           record_every=2, checkpoint_every=2)
    return tour.Plan(moe, training, seeds, Path("runs"), Path("figures"))


def shrink(patch):
    """The small plan, and the head of the text."""
    patch.setattr(tour, "plan", small_plan)
    patch.setattr(corpus, "EMBEDDED_CHARACTERS", 60_000)


def plan_with(**training):
    """The small plan with other training fields."""
    def plan(quick, seeds, vocab_size):
        small = small_plan(quick, seeds, vocab_size)
        return replace(small, training=replace(small.training, **training))
    return plan


def wider_plan(quick, seeds, vocab_size):
    small = small_plan(quick, seeds, vocab_size)
    return replace(small, moe=replace(small.moe, d_hidden=56))


def travel(*options, start=tour.main):
    """What the tour prints."""
    said = []
    start(*options, say=said.append)
    return "\n".join(said)


class Tour(NamedTuple):
    """A finished tour: its folder, what it said, the training batches in order, and what each plot was given."""

    folder: Path
    said: str
    batches: list
    drawn: dict


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    tour_ = Tour(tmp_path_factory.mktemp("tour"), [], [], {})

    def sample(streams, *options):
        batch = data_sample(streams, *options)
        if len(streams) == 2:  # evaluation takes one domain at a time
            tour_.batches.append(batch.tokens_BS)
        return batch

    def noted(plot):
        def draw(*arguments):
            tour_.drawn[plot.__name__] = arguments
            return plot(*arguments)
        return draw

    data_sample = data.sample
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tour_.folder)
        shrink(patch)
        patch.setattr(data, "sample", sample)
        for plot in (loss_curves.losses, expert_load.load_over_time, expert_load.load_by_domain, coloured_text.coloured_text):
            patch.setattr(figures, plot.__name__, noted(plot))
        return tour_._replace(said=travel())


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Every test is in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    shrink(monkeypatch)


@pytest.fixture
def finished(first):
    """This folder is a copy of the finished tour's."""
    shutil.copytree(first.folder, ".", dirs_exist_ok=True)


@pytest.fixture
def no_pictures(monkeypatch):
    """For tests of what is trained: drawing takes longer than that."""
    monkeypatch.setattr(tour, "draw", lambda *_: None)


def contents(paths):
    return [Path(path).read_bytes() for path in paths]


def results(folder="."):
    """What each model has learnt: its loss at every step, its evaluations and its parameters."""
    states = [checkpoint.load(Path(folder) / path) for path in PATHS]
    return [np.concatenate([s.history["ce"], s.history["eval_ce"], parameters.flatten(s.params)]) for s in states]


def experts(config):
    """Number of parameters in all the experts."""
    weights = model.weights(config)
    return parameters.count({name: weight for name, weight in weights.items() if name.endswith(("EDF", "EFD"))})


def interrupt_at(monkeypatch, batch):
    """Ctrl-C while that training batch, counted over all models, is drawn."""
    drawn, data_sample = [], data.sample

    def sample(streams, *options):
        drawn.append(len(streams) == 2)
        if drawn[-1] and sum(drawn) == batch:
            signal.raise_signal(signal.SIGINT)
        return data_sample(streams, *options)

    monkeypatch.setattr(data, "sample", sample)


def test_the_tour_writes_four_pictures_and_says_where(first):
    assert sorted(f"figures/{path.name}" for path in (first.folder / "figures").iterdir()) == sorted(PICTURES)
    for picture in PICTURES:
        assert (first.folder / picture).read_bytes().startswith(b"\x89PNG\r\n")
        assert picture in first.said


def states_of(first):
    return [checkpoint.load(first.folder / path) for path in PATHS]


def test_the_curves_are_the_evaluations_against_steps_and_flops(first):
    """A step is 4 sequences of 16 tokens."""
    curves, title = first.drawn["losses"]
    for (name, (steps, flops, ce)), model_name, state in zip(curves.items(), MODELS, states_of(first), strict=True):
        per_token = cost.count(state.model_config, batch=4, sequence=16).training_flops_per_token
        assert name.startswith(model_name)
        np.testing.assert_array_equal(steps, [4, 8, 12])
        np.testing.assert_allclose(flops, [4 * 64 * per_token, 8 * 64 * per_token, 12 * 64 * per_token])
        np.testing.assert_array_equal(ce, [state.history["eval_ce"]])
        assert f"{model_name} {state.history['eval_ce'][-1]:.3f}" in title


def test_the_loads_are_those_of_the_moes_router(first):
    steps, load, title = first.drawn["load_over_time"]
    by_domain, domains, _ = first.drawn["load_by_domain"]
    history = states_of(first)[0].history
    np.testing.assert_array_equal(steps, [1, 3, 5, 7, 9, 11])
    np.testing.assert_array_equal(load, history["router_load"])
    np.testing.assert_array_equal(by_domain, history["eval_load"][-1])
    assert domains == ("english", "python")
    busiest = max(np.mean([record[layer, expert] for record in history["router_load"]])
                  for layer in range(2) for expert in range(4))
    assert f"{4 * busiest:.1f}x" in title


def test_the_title_tells_how_much_of_the_load_moves_between_the_domains(first):
    """What one domain sends to some experts beyond the other's share, it keeps from the rest: half of all gaps."""
    by_domain, _, title = first.drawn["load_by_domain"]
    moved = [sum(abs(by_domain[0][layer][e] - by_domain[1][layer][e]) for e in range(4)) / 2 for layer in range(2)]
    assert f"{max(moved):.0%}" in title
    assert f"layer {np.argmax(moved)}" in title


def test_the_coloured_text_is_held_out_and_shows_first_choices(first):
    pieces, n_experts, title = first.drawn["coloured_text"]
    layer = int(re.search(r"layer (\d)", title)[1])
    state = states_of(first)[0]
    assert n_experts == 4
    assert [heading.split(",")[0] for heading, _, _ in pieces] == ["english", "python"]
    with pytest.MonkeyPatch.context() as patch:
        shrink(patch)
        texts = corpus.embedded()
    for (_, piece, experts), text in zip(pieces, texts.values(), strict=True):
        assert piece in text[int(0.9 * len(text)):]
        for start in range(0, len(piece), 16):
            tokens_S = state.tokenizer.encode(piece[start:start + 16])
            _, routings = model.forward(state.params, tokens_S[None], state.model_config)
            np.testing.assert_array_equal(experts[start:start + 16], routings[layer].expert_A.reshape(-1, 2)[:, 0])


def rows(said):
    """The table: a dict of column -> cell for each model."""
    lines = [re.split(r" {2,}", line) for line in said.splitlines()]
    head = next(line for line in lines if "FLOPs/token" in line)
    return {line[0]: dict(zip(head, line, strict=True)) for line in lines if line[0] in MODELS}


def read(cell):
    """A number such as "0.12 M", and half a unit of its last digit."""
    number, unit = cell.split()
    scale = {"k": 1e3, "M": 1e6, "G": 1e9}[unit]
    return float(number) * scale, 0.5 * 10.0 ** -len(number.partition(".")[2]) * scale


def test_the_table_tells_what_each_model_costs(first):
    assert list(rows(first.said)) == list(MODELS)
    for (name, row), state in zip(rows(first.said).items(), states_of(first), strict=True):
        counted = cost.count(state.model_config, batch=4, sequence=16)
        flops, half_a_digit = read(row["FLOPs/token"])
        assert abs(flops - counted.forward_flops_per_token) <= half_a_digit, name
        assert flops > 10 * half_a_digit, name
        assert row["parameters"] == f"{counted.parameters.total:,}"
        assert row["active"] == f"{counted.parameters.active:,}"


def test_the_table_tells_what_each_model_reached(first):
    for row, state in zip(rows(first.said).values(), states_of(first), strict=True):
        assert row["validation loss"] == f"{state.history['eval_ce'][-1]:.3f}"


def test_the_table_has_the_mean_and_spread_of_several_seeds(no_pictures):
    """Two numbers a and b have the mean (a + b) / 2 and the sample deviation |a - b| / sqrt(2)."""
    said = travel(False, 2)
    for name, path in zip(MODELS, PATHS, strict=True):
        states = [checkpoint.load(path.replace("seed0", seed)) for seed in ("seed0", "seed1")]
        assert [state.train_config.seed for state in states] == [0, 1]
        a, b = (state.history["eval_ce"][-1] for state in states)
        assert a != b
        assert rows(said)[name]["validation loss"] == f"{(a + b) / 2:.3f} ± {abs(a - b) / 2 ** 0.5:.3f}"


@pytest.mark.parametrize("plan", PLANS)
def test_the_dense_models_have_the_experts_of_the_moe_that_are_active_or_all_of_them(plan):
    moe, active, total = PLANS[plan].configs().values()
    assert list(PLANS[plan].configs()) == list(MODELS)
    assert (active.n_experts, active.top_k, active.d_hidden) == (1, 1, moe.top_k * moe.d_hidden)
    assert (total.n_experts, total.top_k, total.d_hidden) == (1, 1, moe.n_experts * moe.d_hidden)
    assert experts(active) * moe.n_experts == experts(moe) * moe.top_k
    assert experts(total) == experts(moe)


@pytest.mark.parametrize("plan", PLANS)
def test_the_models_differ_in_their_experts_and_router_alone(plan):
    """The MoE's router has L * D * E weights, a dense model's L * D."""
    moe, active, total = (cost.count_parameters(config) for config in PLANS[plan].configs().values())
    shape = PLANS[plan].moe
    routers = shape.n_layers * shape.d_model * (shape.n_experts - 1)
    assert moe.active - active.total == moe.total - total.total == routers
    assert routers < 0.05 * total.total


def test_all_models_see_the_same_batches_in_the_same_order(first):
    """12 steps each; what comes after measures the memory of a step."""
    seen = np.array(first.batches[:3 * N_STEPS]).reshape(3, N_STEPS, 4, 16)
    np.testing.assert_array_equal(seen[0], seen[1])
    np.testing.assert_array_equal(seen[0], seen[2])
    assert len(np.unique(seen[0].reshape(N_STEPS, -1), axis=0)) == N_STEPS


def test_all_models_are_trained_alike(first):
    moe, *dense = states_of(first)
    for state in dense:
        assert (state.train_config, state.data_digest) == (moe.train_config, moe.data_digest)


@pytest.mark.usefixtures("finished", "no_pictures")
def test_a_second_tour_trains_nothing_and_says_so():
    before = contents(PATHS), [Path(path).stat().st_mtime_ns for path in PATHS]
    said = travel()
    for name, path in zip(MODELS, PATHS, strict=True):
        assert f"{name}: finished earlier ({path})" in said
    assert (contents(PATHS), [Path(path).stat().st_mtime_ns for path in PATHS]) == before


@pytest.mark.usefixtures("finished", "no_pictures")
def test_a_fresh_tour_trains_again_to_the_same(first):
    before = [Path(path).stat().st_mtime_ns for path in PATHS]
    said = travel(False, 1, True)
    assert "earlier" not in said
    assert all(Path(path).stat().st_mtime_ns > time for path, time in zip(PATHS, before, strict=True))
    for mine, theirs in zip(results(), results(first.folder), strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.usefixtures("no_pictures")
def test_an_interrupted_tour_goes_on_where_it_was(first, monkeypatch):
    """The 17th batch is the fifth of the second model."""
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt, match="dense, same active.*after step 5"):
        interrupt_at(patch, N_STEPS + 5)
        travel()
    assert not Path(PATHS[2]).exists()
    said = travel()
    assert f"MoE: finished earlier ({PATHS[0]})" in said
    assert f"dense, same active: goes on from step 5 ({PATHS[1]})" in said
    for mine, theirs in zip(results(), results(first.folder), strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.usefixtures("no_pictures")
def test_an_interrupted_fresh_tour_tells_to_leave_fresh_out(monkeypatch):
    """With --fresh again, it would train again what it has just trained."""
    interrupt_at(monkeypatch, 5)
    with pytest.raises(KeyboardInterrupt, match="--fresh"):
        travel(False, 1, True)


OTHER_KINDS = {
    "steps": lambda patch: patch.setattr(tour, "plan", plan_with(n_steps=N_STEPS + 1)),
    "width": lambda patch: patch.setattr(tour, "plan", wider_plan),
    "text": lambda patch: patch.setattr(corpus, "EMBEDDED_CHARACTERS", 59_999),
}


@pytest.mark.usefixtures("finished", "no_pictures")
@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_a_run_of_another_kind_is_refused_and_fresh_is_the_way_out(monkeypatch, kind):
    OTHER_KINDS[kind](monkeypatch)
    before = contents(PATHS)
    with pytest.raises(ValueError, match=f"{PATHS[0]}.*--fresh"):
        travel()
    assert contents(PATHS) == before
    travel(False, 1, True)
    assert "earlier" in travel()


@pytest.mark.usefixtures("finished")
def test_figures_draws_the_same_bytes_again(first):
    shutil.rmtree("figures")
    said = travel(start=tour.figures)
    assert contents(PICTURES) == contents(first.folder / picture for picture in PICTURES)
    for picture in PICTURES:
        assert picture in said


@pytest.mark.usefixtures("no_pictures")
def test_figures_draws_all_the_seeds_that_there_are(monkeypatch):
    travel(False, 2)
    drawn = []
    monkeypatch.setattr(tour, "draw", lambda plan, states, *_: drawn.append(states))
    travel(start=tour.figures)
    assert [[state.train_config.seed for state in runs] for runs in drawn[0].values()] == [[0, 1]] * 3


@pytest.mark.usefixtures("finished")
@pytest.mark.parametrize("path", PATHS[1:])
def test_figures_names_the_run_that_is_missing(path):
    Path(path).unlink()
    shutil.rmtree("figures")
    with pytest.raises(ValueError, match=f"no checkpoint {path}"):
        tour.figures(say=pytest.fail)
    assert not Path("figures").exists()


def test_without_a_tour_nothing_is_drawn():
    assert tour.figures(say=pytest.fail) is False
    assert not Path("figures").exists()


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("step", [3, 5])
def test_figures_refuses_a_run_that_is_not_finished(monkeypatch, step):
    """At step 3 there was no evaluation yet, at step 5 there was one."""
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_at(patch, 2 * N_STEPS + step)
        travel()
    with pytest.raises(ValueError, match=f"{PATHS[2]} is at step {step}"):
        tour.figures(say=pytest.fail)


@pytest.mark.usefixtures("finished")
def test_figures_refuses_a_folder_that_it_cannot_write_to():
    shutil.rmtree("figures")
    Path("figures").write_text("not a folder")
    with pytest.raises(ValueError, match="figures"):
        tour.figures(say=pytest.fail)


def test_the_sample_is_what_generate_writes(first, capsys):
    cli.main(["generate", "--run", str((first.folder / PATHS[0]).parent), "--n-tokens", "300"])
    text = capsys.readouterr().out.removesuffix("\n")
    assert text.startswith("The ")
    assert "\n".join("    " + line for line in text.split("\n")) in first.said


def test_the_verdict_compares_the_losses_of_the_table(first):
    moe, active, total = (float(row["validation loss"]) for row in rows(first.said).values())
    told = [float(gap) for gap in re.findall(r"its loss is ([0-9.]+) nats", first.said)]
    np.testing.assert_allclose(told, [abs(active - moe), abs(total - moe)], atol=0.0011)
    assert re.findall(r"nats (lower|higher)", first.said) == [
        "lower" if moe < other else "higher" for other in (active, total)]


def test_the_busiest_expert_is_that_of_the_last_ten_records():
    """Expert 0 of layer 0 at first; at last expert 2 of layer 1, with 0.6 where an even share is 1/3."""
    load = np.full((30, 2, 3), 1 / 3)
    load[:20, 0] = 0.9, 0.05, 0.05
    load[20:, 1] = 0.2, 0.2, 0.6
    state = SimpleNamespace(history={"router_step": range(30), "router_load": load})
    layer, expert, times = tour._busiest(state)
    assert (layer, expert) == (1, 2)
    np.testing.assert_allclose(times, 1.8)
