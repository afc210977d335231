"""All checks in one go: the report leads with the verdict, and names wrong gradients."""

import functools
import re
from dataclasses import replace

import pytest

from minimoe import gradcheck
from minimoe.gradcheck import checks, models
from minimoe.moe import capacity, losses

CASE = gradcheck.layer_cases()["softmax_topk, K=2, drop by position"]


@pytest.fixture(scope="module")
def once():
    """Checks that no test here changes: of two operations, and of models, each run once."""
    def model(config, groups=1, most=None):
        return gradcheck.check_model(config, groups=groups, most=1)

    ops = gradcheck.check_ops()[:2]
    return [(checks, "check_ops", lambda: ops), (models, "check_model", functools.cache(model)), *(
        (models, name, functools.cache(getattr(models, name))) for name in ("check_flips", "check_direction"))]


@pytest.fixture
def report(monkeypatch, once):
    """A function for the outcome and the text of all checks, of two operations, few settings and few numbers."""
    for patch in once:
        monkeypatch.setattr(*patch)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*settings, detail=True):
        text = []
        monkeypatch.setattr(checks, "layer_cases", lambda: dict.fromkeys(settings, CASE))
        monkeypatch.setattr(checks, "check_layer", functools.cache(gradcheck.check_layer))  # settings have one CASE
        config = replace(gradcheck.SMALL, n_layers=1)
        return gradcheck.check_everything(config, text.append, detail=detail), *text
    return run


def test_the_report_of_right_gradients(report):
    """Of two operations, a layer with 8 objectives (no load without noise), four checks of models and one of flips."""
    right, text = report("as it is")
    assert right and re.match(r"All 15 checks are right, of \d+ tensors; the worst error of the complex step is ", text)
    assert all(name in text for name in ("\nsoftmax ", "\nwhole model", "live routing: WRONG", *losses.LOSSES))
    assert re.search(r"as it is( +\d\.\de[-+]\d\d){8}\n", text)


def test_without_detail_a_line_for_each_part_has_its_checks_and_worst_error(report, monkeypatch):
    """Eight objectives of each setting: two settings of one router and one of another."""
    def lines(text, block=1):
        return [re.split("  +", line) for line in text.split("\n\n")[block].splitlines()[2:]]

    right, text = report("switch, K=1", "switch, K=1, drop", "hash", detail=False)
    assert right and text.startswith("All 31 checks are right")
    assert [(name, n) for name, n, *_ in lines(text)] == [
        ("operations", "2"), ("layer, switch", "16"), ("layer, hash", "8"), ("whole model", "1"),
        ("whole model, one direction", "1"), ("whole model, in two groups", "1"), ("the same, one balance loss", "1"),
        ("router, frozen choices", "1")]
    assert all(re.fullmatch(r"\d\.\de-\d\d 1e-\d\d right", " ".join(row[3:])) for row in lines(text))
    assert [(name, n) for name, n, *_ in lines(text, 2)] == [(name, "3") for name in checks.objectives_of(CASE)]
    covered = " ".join(text.split("\n\n")[3].split())
    assert covered.startswith("The layer was checked in 3 settings: 2 routers (switch, hash)")
    assert "1e-07" in covered and "1e-06" in covered  # the two limits that are no rounding error
    keep = capacity.keep_backward
    monkeypatch.setattr(capacity, "keep_backward", lambda dgate_N, cache: keep(dgate_N, cache) + ~cache.kept_A)
    wrong, text = report("switch, K=1", detail=False)
    assert not wrong and [row[-1] for row in lines(text)] == ["right", "WRONG", *["right"] * 5]
    assert {row[-1] for row in lines(text, 2)} == {"WRONG"}


def test_the_report_of_a_bug_that_gives_dropped_assignments_a_gradient(report, monkeypatch):
    """Only the layer's checks have a capacity, so only they see it; of 16 that are wrong ten are named."""
    keep = capacity.keep_backward
    monkeypatch.setattr(capacity, "keep_backward", lambda dgate_N, cache: keep(dgate_N, cache) + ~cache.kept_A)
    wrong, text = report("one", "two")
    assert not wrong
    first = " ".join(text.partition("\n\n")[0].split())
    assert re.fullmatch("16 of 23 checks are WRONG: one, objective task; .* two, objective balance and 6 more.", first)
    assert first.count(";") == 9
    assert re.search(r"two( +WRONG){8}\n", text)
