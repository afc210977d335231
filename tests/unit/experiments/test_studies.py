"""The small runs that the lessons look at: what is trained, what is kept of it, and that it is there."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np

from minimoe.config import preset
from minimoe.experiments import archive, engine, studies
from minimoe.training import data, evaluation, loop, runs
from tests import small


def test_each_study_is_trained_and_kept_with_a_row_per_seed(here, monkeypatch):
    for name, study in studies.STUDIES.items():  # with its first two labels alone
        monkeypatch.setitem(studies.STUDIES, name, study._replace(changes=dict(list(study.changes.items())[:2])))
    small.printed(studies.main, quick=True, seeds=2)
    results = here / "runs/studies-quick/results"
    balance, capacity, granularity = (archive.read(name, results) for name in studies.STUDIES)
    assert list(balance) == ["no loss", "balance 0.01"] and list(capacity) == ["capacity 0.5", "capacity 0.75"]
    state = runs.load("runs/studies-quick/granularity/2-of-8/seed1")
    np.testing.assert_allclose(granularity["2 of 8"]["ce"][1], state.history["eval_ce"], rtol=1e-6)
    _check_recorded(balance["balance 0.01"])
    _check_capacities(capacity["capacity 0.5"])
    _check_model(results)
    before = {path: path.read_bytes() for path in results.rglob("*.npz")}
    monkeypatch.setattr(loop, "train", None)
    small.printed(studies.main, quick=True, seeds=2)
    assert {path: path.read_bytes() for path in results.rglob("*.npz")} == before and len(before) == 4


def _check_recorded(found):
    """What was recorded of each seed, by other names."""
    names = {"ce": "eval_ce", "eval_step": "eval_step", "step": "router_step", "load": "router_load",
             "entropy": "router_entropy", "balance": "balance", "drop": "drop"}
    assert found.keys() == names.keys()
    for seed in (0, 1):
        history = runs.load(f"runs/studies-quick/balance/balance-0.01/seed{seed}").history
        for name, recorded in names.items():
            np.testing.assert_allclose(found[name][seed], np.array(history[recorded]), rtol=1e-6)


def _check_capacities(found):
    """A model is evaluated at every capacity, whatever it was trained with; more room, fewer dropped."""
    state, corpus = runs.load("runs/studies-quick/capacity/capacity-0.5/seed1"), data.embedded_corpus()
    assert state.model_config.capacity_factor == 0.5
    for place, factor in enumerate(studies.FACTORS):
        config = replace(state.model_config, eval_capacity_factor=factor)
        expected = evaluation.evaluate(state.params, corpus, config, state.train_config)
        np.testing.assert_allclose([found["ce"][1, place], found["drop"][1, place]], [expected["ce"], expected["drop"]],
                                   rtol=1e-6)
    assert (found["drop"][:, -1] == 0).all() and (np.diff(found["drop"], axis=1) <= 0).all()


def _check_model(results):
    """What is kept of the model to look into is the run without its moments."""
    kept, run = studies.model(results), runs.load("runs/studies-quick/model/moe/seed0")
    assert kept.finished and all(np.array_equal(kept.params[name], array) for name, array in run.params.items())
    assert not any(array.any() for moments in kept.moments for array in moments.values())
    assert any(array.any() for moments in run.moments for array in moments.values())  # the run itself is untouched


def test_each_remedy_is_what_its_label_says_and_nothing_else():
    """The number behind a loss is its weight, that behind bias the rate; noise has Shazeer's two losses, 0.1 each."""
    base, (_, balance, capacity, cut) = preset("lessons", {"vocab_size": 9})[0], studies.experiments(False, 3, 9)
    configs = {label: variant.model for label, variant in balance.variants.items()}
    weights = {label: {name: coef for name, coef in config.loss_coefs.items() if coef}
               for label, config in configs.items()}
    assert weights == {
        "no loss": {}, "balance 0.01": {"balance": 0.01}, "balance 0.1": {"balance": 0.1},
        "z 0.001 alone": {"z": 0.001},
        "importance 0.1": {"importance": 0.1}, "noise, importance and load": {"importance": 0.1, "load": 0.1},
        "bias 0.01": {}, "K = 1, no loss": {}, "K = 1, balance 0.01": {"balance": 0.01}}
    assert configs["bias 0.01"].bias_rate == 0.01 and configs["bias 0.01"].router == "sigmoid_bias"
    assert all((config.top_k == 1) == label.startswith("K = 1") for label, config in configs.items())
    assert {label: variant.model.capacity_factor for label, variant in capacity.variants.items()} == {
        "capacity 0.5": 0.5, "capacity 0.75": 0.75, "capacity 1": 1.0, "capacity 1.25": 1.25, "capacity 2": 2.0,
        "dropless": None}
    assert {config.top_k * config.d_hidden for config in configs.values()} == {base.top_k * base.d_hidden}
    widths = {(of.n_shared_experts + of.top_k) * of.d_hidden for of in (cell.model for cell in cut.variants.values())}
    assert widths == {base.top_k * base.d_hidden}
    assert {(of.n_shared_experts + of.n_experts) * of.d_hidden for of in (cell.model for cell in cut.variants.values())
            if of.n_experts > 1} == {base.n_experts * base.d_hidden}


def test_folders_of_labels_are_distinct_names_of_files_and_quick_ones_not_where_the_lessons_read():
    assert engine.slug("K = 1, no loss") == "k-1-no-loss"
    folders = [cell.folder.as_posix() for study in studies.experiments(False, 1, 9) for label in study.variants
               for cell in study.cells(label)]
    assert len(set(folders)) == len(folders) == 1 + 9 + 6 + 6
    assert all(re.fullmatch(r"runs/studies/[a-z0-9.-]+/[a-z0-9.-]+/seed0", folder) for folder in folders)
    for study in studies.experiments(True, 3, 9):
        assert study.archive.parts[:2] == study.folder.parts[:2] == ("runs", "studies-quick")


def test_the_model_of_the_lessons_is_there_and_is_the_preset_with_more_steps_and_a_warmup_of_its_own():
    for steps in (4, 2000):
        model, *_ = studies.experiments(steps == 4, 3, 9)
        train = model.variants[studies.MODEL].train
        assert (train.n_steps, train.warmup_steps, model.seeds) == (steps, min(100, steps // 2), 1)
    state, (config, training) = studies.model(), preset("lessons")
    assert state.finished and replace(state.model_config, vocab_size=config.vocab_size) == config
    assert state.train_config == replace(training, n_steps=studies.MODEL_STEPS, warmup_steps=100)


def test_the_committed_explorer_is_of_the_page_as_it_is(here):
    """But for its data: scores differ in their last digits from machine to machine."""
    committed = (Path(studies.__file__).parents[2] / studies.EXPLORER).read_text("utf-8")
    assert small.printed(studies.figure) == "wrote figures/explorer.html"
    page = studies.EXPLORER.read_text("utf-8")
    without_data = [re.sub(r"(<script type=\"application/json\"[^>]*>).*?(</script>)", r"\1\2", html, flags=re.DOTALL)
                    for html in (committed, page)]
    assert without_data[0] == without_data[1] and len(without_data[0]) < len(committed)
