"""All checks in one go: the report leads with whether all are right, and names what is not."""

import re
from dataclasses import replace

import pytest

from minimoe import gradcheck
from minimoe.gradcheck import checks, models
from minimoe.moe import capacity, losses

CASE = gradcheck.layer_cases()["softmax_topk, K=2, drop by position"]


@pytest.fixture
def report(monkeypatch):
    """A function for the outcome and the text of all checks, of two operations, few settings and few numbers."""
    check, ops = models.check_model, gradcheck.check_ops()[:2]
    monkeypatch.setattr(models, "check_model", lambda config, groups=1, most=None: check(config, groups=groups, most=1))
    monkeypatch.setattr(checks, "check_ops", lambda: ops)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*settings):
        text = []
        monkeypatch.setattr(checks, "layer_cases", lambda: dict.fromkeys(settings, CASE))
        return gradcheck.check_everything(replace(gradcheck.SMALL, n_layers=1), text.append), *text
    return run


def test_the_report_of_right_gradients(report):
    """Of two operations, a layer with 8 objectives (no load without noise), four checks of models and one of flips."""
    right, text = report("as it is")
    assert right and re.match(r"All 15 checks are right, of \d+ tensors; the worst error of the complex step is ", text)
    assert all(name in text for name in ("\nsoftmax ", "\nwhole model", "live routing: WRONG", *losses.LOSSES))
    assert re.search(r"as it is( +\d\.\de[-+]\d\d){8}\n", text)


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
