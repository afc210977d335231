"""The ways to be sparse at equal training FLOPs: budgets, gaps, verdict by hand, and the whole comparison in small."""

import re

import numpy as np
import pytest

from minimoe.config import preset
from minimoe.experiments import sparse_plan, sparse_report, sparsity
from minimoe.sparsity import pruning
from minimoe.training import loop, runs
from tests import small

PLAN = sparse_plan.plan(*preset("sparsity", {"vocab_size": 97}))
STEPS = {label: variant.train.n_steps for label, variant in PLAN.variants.items()}


def test_all_spend_as_many_training_flops_as_the_dense_model_to_half_a_step():
    """2 layers of 16,384 weights, routers 2 x 32, head 32 x 97, scores 2 x 2 x 32 x 64, times 2: f_D = 88,256.

    Without 90 % of the layers' 65,536 it is 29,273.6, without half 55,488.
    """
    assert PLAN.budget == 3 * 88_256 * 12 * 64 * 400
    assert STEPS["static, 90%"] == round(400 * 88_256 / 29_273.6) and STEPS["SET, 50%"] == round(400 * 88_256 / 55_488)
    every = PLAN.variants["RigL, 90%"].train.sparsity_every
    rigl = (3 * every * 29_273.6 + 2 * 29_273.6 + 88_256) / (every + 1)
    assert (STEPS["RigL, 90%"], every) == (round(400 * 3 * 88_256 / rigl), STEPS["RigL, 90%"] // 30)
    assert STEPS["gradual, 90%"] < STEPS["RigL, 90%"] and STEPS[sparse_plan.SOURCE] == 300  # three quarters
    left = PLAN.budget / 4 - 2 * 88_256 * 32 * 64  # the rest, without the calibration text twice through the model
    assert STEPS["Wanda, 50%"] == round(left / (3 * 55_488 * 768))
    for label, spent in PLAN.spent.items():
        share = 0.75 if label == sparse_plan.SOURCE else 1
        assert spent == pytest.approx(share * PLAN.budget, rel=0.003), label  # half of a step of the widest
    widths = [PLAN.variants[f"smaller dense, {s:.0%}"].model.d_model for s in sparse_plan.SPARSITIES]
    assert widths == [24, 16, 12]  # 32 times the roots of 0.5, 0.25 and 0.1, as multiples of 4


def entry(label, flops, *ces, n_bytes=None, begin=np.nan, steps=10):
    """Made-up results of a model."""
    n = len(ces)
    return sparsity.Entry(label, np.array(ces), *(np.full(n, float(number)) for number in (
        begin, steps, 2, 500, flops, 400, n_bytes or flops)), np.array(["csr"] * n))


ENTRIES = [entry("dense", 400, 2.0, 2.0), entry("smaller dense, 75%", 100, 3.0, 4.0),
           entry("RigL, 50%", 200, 2.25, 2.5, n_bytes=100), entry("dense, to be changed", 400, 2.5, 2.5, steps=5),
           entry("Wanda, 50%", 1000, 2.5, 2.75, begin=3), entry("2:4, SparseGPT", 400, 1.75, 2.25)]


def test_a_gap_is_measured_from_the_line_between_dense_models():
    """At 200, half way from 100 to 400 in logarithms, the dense losses are 2.5 and 3; beyond 400 it is that of 400."""
    rigl, wanda = ENTRIES[2], ENTRIES[4]
    np.testing.assert_allclose(sparse_report.gap(rigl, ENTRIES, "flops"), [-0.25, -0.5])
    np.testing.assert_allclose(sparse_report.gap(rigl, ENTRIES, "bytes"), [-0.75, -1.5])
    np.testing.assert_allclose(sparse_report.gap(wanda, ENTRIES, "flops"), [0.5, 0.75])


def test_sides_are_taken_only_if_all_seeds_do_and_the_answer_says_how_many_steps_each_had(monkeypatch):
    """Wanda: 10 steps of its own and 5 of the dense model before, of 10: 1.50 times the work."""
    rows = {row.split("  ")[0]: re.split("  +", row) for row in sparse_report.table(ENTRIES).split("\n")}
    assert rows["Wanda, 50%"] == ["Wanda, 50%", "10", "1 k", "1 k", "2.625 ± 0.177", "x +0.625", "x +0.625"]
    assert rows["RigL, 50%"][-2:] == ["* -0.375", "* -1.125"] and rows["2:4, SparseGPT"][-1] == "+0.000"
    rows = {row.split("  ")[0]: re.split("  +", row) for row in sparse_report.detail(ENTRIES).split("\n")}
    assert rows["Wanda, 50%"] == ["Wanda, 50%", "2", "1.50", "500", "csr", "3.000"] and rows["RigL, 50%"][2] == "1.00"
    words = " ".join(sparse_report.answer(ENTRIES).split())
    assert ("of as many FLOPs, or as many bytes: better in every seed: RigL (50%) worse in every seed: Wanda (50%) the "
            "seeds do not agree: 2:4 (50%) Mind") in words
    assert "of its FLOPs on the dense model before: 5 dense steps, and 10 to 10 left" in words
    assert "more steps helped" not in words  # here the smaller dense model is the worse one
    costly = [*ENTRIES[:2], entry("RigL, 50%", 200, 2.25, 2.5, n_bytes=400), *ENTRIES[3:]]
    assert "of as many bytes: better in every seed: none worse in every seed: RigL (50%)" in " ".join(
        sparse_report.answer(costly).split())
    assert re.search(r"^RigL .* 50% \(FLOPs\) +50% \(bytes\)$", sparse_report.uses(costly), re.MULTILINE)


def test_what_is_kept_is_shown_within_80_columns_without_training():
    said = small.printed(sparsity.show, detail=True)
    assert max(map(len, said.split("\n"))) <= 80
    assert said.startswith("Compared with") and said.index("Mind the steps") < said.index("at equal") < said.index(
        "good for") < said.index("NumPy work") < said.index("figures/sparsity-flops.png")


def test_the_comparison_is_trained_kept_and_drawn_and_resumes(here, monkeypatch):
    for name, few in (("SPARSITIES", (0.5,)), ("DYNAMIC", {"RigL": "rigl"}), ("PRUNED", {"Wanda": "wanda"})):
        monkeypatch.setattr(sparse_plan, name, few)
    said = small.printed(sparsity.main, quick=True, seeds=1)
    assert "6 steps compare nothing" in said and "Wanda, 50%: validation loss" in said
    monkeypatch.setattr(sparsity.archive, "FOLDER", here / "nowhere")
    assert small.printed(sparsity.figure).startswith("the pictures of `sparsity` are not changed")
    entries = {entry.label: entry for entry in sparsity.kept("runs/sparsity-quick")}
    assert entries.keys() == sparsity.experiment(True, 1, 9)[1].variants.keys() and len(entries) == 9
    for label in ("RigL, 50%", "Wanda, 50%", "2:4, SparseGPT"):
        state = runs.load(f"runs/sparsity-quick/{sparse_plan.folder(label)}/seed0")
        assert pruning.report(state.params, state.masks).pruned.sparsity == pytest.approx(0.5, abs=0.02), label
        assert entries[label].flops[0] < entries["dense"].flops[0] == entries[label].numpy[0]
    begun = [label for label, found in entries.items() if np.isfinite(found.begin).all()]
    assert begun == ["Wanda, 50%", "2:4, SparseGPT", "neurons, 50%", "upcycled, 2 of 4"]
    assert entries["upcycled, 2 of 4"].begin == pytest.approx(entries[sparse_plan.SOURCE].ce, abs=1e-6)
    assert all(path.stat().st_size > 1000 for path in sparsity.pictures(sparsity.experiment(True, 1, 9)[0].figure))
    for module, name in ((loop, "train"), (sparsity, "_draw")):
        monkeypatch.setattr(module, name, lambda *_: None)
    assert small.printed(sparsity.main, quick=True, seeds=1).count("finished earlier") == 9
