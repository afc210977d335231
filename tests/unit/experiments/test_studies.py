"""The small runs that the lessons look at: what is trained, what is kept of it, and that it can be gone on with."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from minimoe.config import TrainConfig, preset
from minimoe.experiments import archive, studies
from minimoe.training import checkpoint, corpus, data, loop

STEPS = 4


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Studies of two labels each on a small text, in a folder of their own.  Returns what was said."""
    texts = {name: text[:3000] for name, text in corpus.clusters().items()}

    def plan(quick, seeds, vocab_size):
        base, _ = preset("tiny", {"vocab_size": vocab_size})
        training = TrainConfig(n_steps=STEPS, batch=4, sequence=16, groups=2, warmup_steps=1, eval_every=2,
                               eval_batches=4, record_every=2, checkpoint_every=2)
        return studies.Plan(replace(base, max_sequence=64), training, 6, seeds, Path("runs"), Path("kept"))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(corpus, "embedded", lambda: texts)
    monkeypatch.setattr(studies, "plan", plan)
    for name, study in studies.STUDIES.items():
        few = dict(list(study.changes.items())[:2])
        monkeypatch.setitem(studies.STUDIES, name, replace(study, changes=few))
    return data.build(texts, TrainConfig().sequence)


def test_each_study_is_kept_with_a_row_a_seed(small):
    studies.main(seeds=2, say=lambda words: None)
    balance, capacity = archive.read("balance", "kept"), archive.read("capacity", "kept")
    assert list(balance) == ["no loss", "balance 0.01"] and list(capacity) == ["capacity 0.5", "capacity 0.75"]
    for of_label in balance.values():
        assert of_label["ce"].shape == (2, 2) and of_label["balance"].shape == (2, STEPS)
        assert of_label["load"].shape == (2, 2, 2, 4)  # seeds, records, layers, experts
        np.testing.assert_allclose(of_label["load"].sum(axis=3), 1, rtol=1e-6)
    for of_label in capacity.values():
        assert of_label["ce"].shape == of_label["drop"].shape == (2, len(studies.FACTORS))
        assert (of_label["drop"][:, -1] == 0).all()  # dropless
        assert (np.diff(of_label["drop"], axis=1) <= 0).all()  # more room, fewer dropped


def test_a_model_is_evaluated_at_every_capacity_whatever_it_was_trained_with(small):
    studies.main(seeds=1, say=lambda words: None)
    state = checkpoint.load("runs/capacity/capacity-0.5/seed0/checkpoint.npz")
    assert state.model_config.capacity_factor == 0.5
    for place, factor in enumerate(studies.FACTORS):
        config = replace(state.model_config, eval_capacity_factor=factor)
        expected = loop.evaluate(state.params, small, config, state.train_config)
        found = archive.read("capacity", "kept")["capacity 0.5"]
        assert found["ce"][0, place] == pytest.approx(expected["ce"], rel=1e-6)
        assert found["drop"][0, place] == pytest.approx(expected["drop"], rel=1e-6)


def test_seeds_differ_and_the_same_command_changes_nothing(small):
    studies.main(seeds=2, say=lambda words: None)
    before = {path: path.read_bytes() for path in Path("kept").rglob("*.npz")}
    ce = archive.read("balance", "kept")["no loss"]["ce"]
    assert (ce[0] != ce[1]).all()
    studies.main(seeds=2, say=lambda words: None)
    assert {path: path.read_bytes() for path in Path("kept").rglob("*.npz")} == before
    assert len(before) == 3


def test_the_model_that_is_looked_into_is_a_run_without_moments(small):
    studies.main(seeds=1, say=lambda words: None)
    kept, run = studies.model("kept"), checkpoint.load("runs/model/moe/seed0/checkpoint.npz")
    assert kept.finished and kept.step == 6
    for name, array in run.params.items():
        np.testing.assert_array_equal(kept.params[name], array)
    assert not any(array.any() for moments in kept.moments for array in moments.values())
    assert any(array.any() for moments in run.moments for array in moments.values())  # the run itself is untouched
    whole, lean = (path.stat().st_size for path in (Path("runs/model/moe/seed0/checkpoint.npz"),
                                                    Path("kept/moe/checkpoint.npz")))
    assert lean < whole / 2


def test_folders_of_labels_are_distinct_and_can_be_names_of_files():
    what = studies.plan(False, 3, 9)
    folders = [what.path(name, label, 0).parent.as_posix() for name, study in studies.STUDIES.items()
               for label in study.changes]
    assert len(set(folders)) == len(folders)
    assert all(set(folder) <= set("abcdefghijklmnopqrstuvwxyz0123456789.-/") for folder in folders)


@pytest.mark.parametrize("quick", [True, False])
def test_every_change_is_a_model_that_exists_and_has_the_work_of_the_others(quick):
    what = studies.plan(quick, 3, 9)
    for study in studies.STUDIES.values():
        for changes in study.changes.values():
            config = replace(what.base, **changes)
            assert config.top_k * config.d_hidden == what.base.top_k * what.base.d_hidden


def test_each_remedy_is_what_its_label_says_and_nothing_else():
    """The number behind a loss is its weight, that behind bias the rate; noise has Shazeer's two losses, 0.1 each."""
    what, weights = studies.plan(False, 3, 9), {}
    for label, changes in studies.STUDIES["balance"].changes.items():
        config = replace(what.base, **changes)
        weights[label] = {name: coef for name, coef in config.loss_coefs.items() if coef}
        assert (config.top_k == 1) == label.startswith("K = 1")
        assert (config.router == "sigmoid_bias") == label.startswith("bias")
        assert (config.router == "noisy_topk") == label.startswith("noise")
    assert weights == {
        "no loss": {}, "balance 0.01": {"balance": 0.01}, "balance 0.1": {"balance": 0.1},
        "z 0.001 alone": {"z": 0.001},
        "importance 0.1": {"importance": 0.1}, "noise, importance and load": {"importance": 0.1, "load": 0.1},
        "bias 0.01": {}, "K = 1, no loss": {}, "K = 1, balance 0.01": {"balance": 0.01}}
    assert replace(what.base, **studies.STUDIES["balance"].changes["bias 0.01"]).bias_rate == 0.01


def test_what_is_kept_of_the_routers_is_what_was_recorded(small):
    studies.main(seeds=1, say=lambda words: None)
    history = checkpoint.load("runs/balance/no-loss/seed0/checkpoint.npz").history
    found = archive.read("balance", "kept")["no loss"]
    recorded = {"ce": "eval_ce", "eval_step": "eval_step", "step": "router_step", "load": "router_load",
                "entropy": "router_entropy", "balance": "balance", "drop": "drop"}
    assert found.keys() == recorded.keys()
    for name, of in recorded.items():
        np.testing.assert_allclose(found[name][0], np.array(history[of]), rtol=1e-6)


def test_quick_studies_write_nothing_where_the_lessons_read():
    what = studies.plan(True, 3, 9)
    assert what.archive.parts[0] == what.runs.parts[0] == "runs" and what.training.n_steps < 10


def test_the_model_of_the_lessons_is_there_and_is_the_preset_with_more_steps():
    state, (config, _) = studies.model(), preset("lessons")
    assert state.finished and state.step == studies.MODEL_STEPS
    assert replace(state.model_config, vocab_size=config.vocab_size) == config
    _, training = preset("lessons")
    assert state.train_config == replace(training, n_steps=studies.MODEL_STEPS, warmup_steps=100)


def test_the_explorer_of_the_lessons_model_is_the_same_bytes_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = []
    studies.figure(said.append)
    page = studies.EXPLORER.read_bytes()
    studies.figure(said.append)
    assert studies.EXPLORER.read_bytes() == page and said == ["wrote figures/explorer.html"] * 2
    assert b"<!doctype html>" in page[:100].lower() and len(page) < 2_000_000


def test_the_example_in_figures_is_of_the_page_as_it_is(tmp_path, monkeypatch):
    committed = (Path(studies.__file__).parents[2] / studies.EXPLORER).read_text("utf-8")
    monkeypatch.chdir(tmp_path)
    studies.figure(lambda words: None)
    shapes = [re.sub(r"(<script type=\"application/json\"[^>]*>).*?(</script>)", r"\1\2", page, flags=re.DOTALL)
              for page in (committed, studies.EXPLORER.read_text("utf-8"))]  # scores differ in their last digits
    assert shapes[0] == shapes[1] and len(shapes[0]) < len(committed)
