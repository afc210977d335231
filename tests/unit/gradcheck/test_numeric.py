"""Numeric derivatives by hand, the error between two gradients, and the report of it."""

import re

import numpy as np
import pytest

from minimoe import gradcheck
from minimoe.gradcheck import numeric

ARRAYS = {"x": np.array([[1.0, 2.0], [-3.0, 0.5]]), "y": np.array([7.0])}
GRADS = {"x": np.array([[3.0, 12.0], [27.0, 0.75]]), "y": np.array([5.0])}
COMPARE = [gradcheck.compare, numeric.compare_directions]


def cubes(arrays):
    """sum x^3 + 5 y: by x 3 x^2, by y 5."""
    return (arrays["x"] ** 3).sum() + 5 * arrays["y"].sum()


def test_the_complex_step_is_exact_and_counts_entries_row_by_row():
    before = {name: array.copy() for name, array in ARRAYS.items()}
    np.testing.assert_allclose(gradcheck.complex_step(cubes, ARRAYS, "x", range(4)), [3, 12, 27, 0.75], rtol=1e-15)
    np.testing.assert_allclose(gradcheck.central_difference(cubes, ARRAYS, "x", [2, 1]), [27, 12], atol=1e-8)
    assert all(np.array_equal(before[name], ARRAYS[name]) for name in ARRAYS)


def test_the_step_of_the_central_difference_goes_both_ways(monkeypatch):
    """With h = 1: ((2 + 1)^3 - (2 - 1)^3) / 2 = (27 - 1) / 2 = 13 = 3 * 2^2 + 1^2."""
    assert numeric.CENTRAL_STEP == 1e-5
    monkeypatch.setattr(numeric, "CENTRAL_STEP", 1.0)
    assert gradcheck.central_difference(cubes, ARRAYS, "x", [1]) == [13]


def test_a_slope_along_a_direction_by_hand():
    """3 x^2 = 3, 12, 27, 0.75: 3 * 1 + 12 * -2 + 0 + 0.75 * 4 = -18, and 27."""
    directions = np.array([[[1.0, -2.0], [0.0, 4.0]], [[0.0, 0.0], [1.0, 0.0]]])
    np.testing.assert_allclose(numeric.complex_directions(cubes, ARRAYS, "x", directions), [-18, 27], rtol=1e-15)


@pytest.mark.parametrize(("analytic", "by_number", "expected"), [
    ([3, 4], [3, 4], 0), ([3, 4], [-3, -4], 1),  # 10 / (5 + 5)
    ([3, 0], [0, 4], 5 / 7),  # 5 / (3 + 4)
    ([3, 4], [0, 0], 1), ([4e-14, 0], [-4e-14, 0], 0),  # rounding error of 0
    ([1e-12, 0], [0, 0], 1), ([np.nan, 1], [1, 1], np.nan), ([1, 1], [np.nan, 1], np.nan)])
def test_error_by_hand(analytic, by_number, expected):
    np.testing.assert_equal(gradcheck.error(np.array(analytic, float), np.array(by_number, float)), expected)


@pytest.mark.parametrize(("errors", "ok", "worst"), [
    ((0.0, 9e-13), True, 9e-13), ((0.0, 1e-12), False, 1e-12), ((0.0, 1e-3, 1e-15), False, 1e-3),
    ((0.0, np.nan, 1.0), False, np.nan)])
def test_a_report_is_right_if_every_error_is_below_the_tolerance_and_nan_is_worst(errors, ok, worst):
    report = numeric.Report("f", [numeric.Row("x", (2,), 2, 1.0, error, 1e-12) for error in errors])
    assert report.ok == ok
    np.testing.assert_equal(report.worst, worst)


@pytest.mark.parametrize("compare", COMPARE)
def test_the_right_gradients_pass(compare):
    found = compare("f", cubes, ARRAYS, GRADS, notes=["a note"])
    assert found.ok and found.notes == ["a note"]
    assert [(row.name, row.shape, row.checked) for row in found.rows] == [("x", (2, 2), 4), ("y", (1,), 1)]
    assert found.rows[1].length == 5 and found.rows[0].tolerance == 1e-12


@pytest.mark.parametrize("compare", COMPARE)
@pytest.mark.parametrize("entry", range(4))
def test_one_wrong_number_does_not(compare, entry):
    wrong = {name: grad.copy() for name, grad in GRADS.items()}
    wrong["x"].flat[entry] *= 1 + 1e-9
    assert [row.ok for row in compare("f", cubes, ARRAYS, wrong).rows] == [False, True]


def test_random_directions_and_entries_are_all_different():
    """Three right slopes do not make up for a gradient that is wrong across them."""
    seen, entries = [], []

    def total(arrays):
        seen.append(arrays["x"].imag.tobytes())
        return arrays["x"].sum()

    def method(function, arrays, name, some):
        entries.extend(some)
        return gradcheck.complex_step(function, arrays, name, some)

    numeric.compare_directions("f", total, {"x": np.ones(3)}, {"x": np.ones(3)}, count=5)
    assert len(set(seen)) == 5
    found = gradcheck.compare("f", total, {"x": np.ones(50)}, {"x": np.ones(50)}, method, most=49)
    assert found.ok and found.rows[0].checked == len(set(entries)) == 49
    assert gradcheck.compare("f", total, {"x": np.ones(5)}, {"x": np.ones(5)}, most=5).rows[0].checked == 5


def test_a_report_prints_each_tensor_with_its_shape_error_and_verdict():
    wrong = GRADS | {"y": np.array([6.0])}
    report = gradcheck.compare("cubes", cubes, ARRAYS, wrong, most=3, notes=["a note"])
    title, head, _, x, y, note = str(report).splitlines()
    assert (title, head.split()) == ("cubes: WRONG", ["tensor", "shape", "checked", "error", "limit"])
    assert re.fullmatch(r"x +\(2, 2\) +3 of 4 +\d\.\de[-+]\d\d +1e-12 +ok", x)
    assert re.fullmatch(r"y +\(1,\) +all 1 +9\.1e-02 +1e-12 +WRONG", y)  # |6 - 5| / (6 + 5)
    assert note == "a note"
    both = numeric.table([report, report], titles=True).splitlines()
    assert both[0].split()[:2] == ["check", "tensor"]
    assert [line.split()[0] for line in both[2:]] == ["cubes", "y", "cubes", "y"]
    flat = str(gradcheck.compare("flat", lambda arrays: 0 * cubes(arrays), ARRAYS, {"y": np.zeros(1)}))
    assert flat.splitlines()[0] == "flat: right" and flat.endswith("ok (zero)")
