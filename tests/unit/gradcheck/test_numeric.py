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
    assert len({*seen} - {bytes(24)}) == 5 + 1  # and the one that the central difference goes too
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
    flat = gradcheck.compare("flat", lambda arrays: 0 * cubes(arrays), ARRAYS, {"y": np.zeros(1)})
    assert str(flat).splitlines()[0] == "flat: right" and "ok (zero)" in str(flat)
    assert flat.notes == ["Not checked, since there is no gradient: x."]
    assert not numeric.Report("nothing", []).ok


@pytest.mark.parametrize("compare", COMPARE)
@pytest.mark.parametrize(("grads", "problem"), [
    ({"x": GRADS["x"].reshape(1, 2, 2)}, r"x: the gradient has shape \(1, 2, 2\), the array \(2, 2\)"),
    ({"y": np.array(5.0)}, r"y: the gradient has shape \(\), the array \(1,\)"),
    ({"x": np.ones(5)}, r"x: the gradient has shape \(5,\), the array \(2, 2\)"),
    ({"X": GRADS["x"]}, "X: no array has this name; the names are x, y"), ({"y": None}, "y: it has no gradient"),
    ({"y": np.array([5j])}, "y: the gradient has dtype complex128"),
    ({"x": np.where(GRADS["x"] > 20, np.nan, GRADS["x"])}, "x: the gradient is not finite in 1 of 4 numbers")])
def test_a_gradient_that_is_wrong_at_sight_is_said_to_be_so_beside_those_that_are_right(compare, grads, problem):
    """In NumPy's arithmetic (1, 2, 2) and (2, 2), or () and (1,), are as good as equal."""
    found = compare("f", cubes, ARRAYS, {**GRADS, **grads})
    assert {row.name: row.ok for row in found.rows} == dict.fromkeys(GRADS, True) | dict.fromkeys(grads, False)
    assert re.search(problem, str(found)) and not found.ok


@pytest.mark.parametrize("dtype", [int, np.int8, np.uint64, np.float16, np.float32])
def test_arrays_of_any_real_numbers_are_checked_as_float64(dtype):
    """The sum of x^2 at 100, 2, 3 has the gradient 200, 4, 6.  To whole numbers, and float32 near 100, 1e-5 is 0."""
    arrays = {"x": np.array([100, 2, 3], dtype), "rows": np.array([2, 0])}
    slopes = gradcheck.central_difference(lambda a: (a["x"] ** 2).sum(), arrays, "x", range(3))
    np.testing.assert_allclose(slopes, [200, 4, 6], rtol=1e-6)
    found = gradcheck.compare("f", lambda a: (a["x"][a["rows"]] ** 2).sum(), arrays, {"x": np.array([200, 0, 6])})
    assert found.ok and found.worst < 1e-15


def test_a_name_may_be_anything_that_a_dict_takes():
    arrays, grads = {0: np.array([2.0]), ("a", 1): np.array([3.0])}, {0: np.array([4.0]), ("a", 1): np.array([6.0])}
    found = gradcheck.compare("f", lambda a: sum((x * x).sum() for x in a.values()), arrays, grads)
    assert found.ok and "('a', 1)" in str(found)
    assert gradcheck.complex_step(lambda a: a[0][0] ** 2, arrays, 0, [0]) == [4]
    with pytest.raises(ValueError, match=r"name = \[0\]: must be one of 0, \('a', 1\)"):
        gradcheck.complex_step(cubes, arrays, [0], [0])


@pytest.mark.parametrize("array", [np.array([True]), np.array([1j]), np.array(["a"]), np.array([None])])
def test_arrays_of_anything_else_are_refused_by_their_dtype(array):
    for ask in (gradcheck.central_difference, gradcheck.complex_step):
        with pytest.raises(ValueError, match=re.escape(f"arrays['x'] has dtype {array.dtype}")):
            ask(lambda arrays: 0.0, {"x": array}, "x", [0])


def refill(arrays):
    out = np.empty(4)
    for i, x in enumerate(arrays["x"].flat):
        out[i] = x ** 3
    return out.sum() + 5 * arrays["y"].sum()


LOSSES = {
    "a buffer": (refill, r"\bout\[i\] = x \*\* 3"),
    "a cast": (lambda arrays: cubes(arrays | {"x": arrays["x"].astype(float)}), "discards the imaginary part"),
    "a float": (lambda arrays: float(cubes(arrays)), "discards the imaginary part"),
    "a real part": (lambda arrays: cubes(arrays).real, "its value is a real number"),
    "the real part of x": (lambda arrays: cubes(arrays | {"x": arrays["x"].real}) + 0j, "complex step gives 0 where"),
}
"""How a function loses the imaginary part -> the function, what the report says of it."""


@pytest.mark.parametrize("compare", COMPARE)
@pytest.mark.parametrize("loss", LOSSES)
def test_a_function_that_loses_the_imaginary_part_is_checked_by_differences_and_told_so(compare, loss):
    function, words = LOSSES[loss]
    found = compare("f", function, ARRAYS, GRADS)
    assert found.ok and found.rows[0].tolerance == 1e-7
    assert re.search("x.*: the function loses the imaginary part", found.notes[0]) and re.search(words, found.notes[0])
    assert not compare("f", function, ARRAYS, GRADS | {"x": GRADS["x"] * (1 + 1e-6)}).rows[0].ok


REAL = {  # NumPy's var, std, norm and abs are real for complex numbers too
    "var": (lambda x: x / np.sqrt(x.var() + 1e-5), lambda x, dy: dy / np.sqrt(x.var() + 1e-5)
            - (x - x.mean()) * (x * dy).sum() / (x.size * (x.var() + 1e-5) ** 1.5)),
    "std": (lambda x: x / x.std(), lambda x, dy: dy / x.std() - (x - x.mean()) * (x * dy).sum() / (4 * x.std() ** 3)),
    "norm": (lambda x: x / np.linalg.norm(x),
             lambda x, dy: dy / np.linalg.norm(x) - x * (x * dy).sum() / np.linalg.norm(x) ** 3),
    "abs": (lambda x: x * np.abs(x), lambda x, dy: 2 * dy * np.abs(x)),
}
"""What loses a part of the slope -> forward, backward; d std/dx = (x - mean) / (size std), d norm/dx = x / norm."""


@pytest.mark.parametrize("compare", COMPARE)
@pytest.mark.parametrize("loss", REAL)
def test_a_gradient_that_forgets_the_part_which_the_complex_step_loses_is_wrong(compare, loss):
    """Both take the divisor for a constant, and agree to the last digit."""
    forward, backward = REAL[loss]
    x, dy = ARRAYS["x"], np.array([[0.3, -1.0], [2.0, 0.7]])
    forgot = dy * np.abs(x) if loss == "abs" else dy * forward(x) / x
    for grad, right in ((backward(x, dy), True), (forgot, False)):
        found = compare("f", lambda a: (dy * forward(a["x"])).sum() + 5 * a["y"].sum(), ARRAYS, {"x": grad, "y": [5.0]})
        assert [(row.ok, row.tolerance) for row in found.rows] == [(right, 1e-7), (True, 1e-12)]
        assert re.search(r"^x: the function loses the imaginary part.*complex step gives", found.notes[0])


@pytest.mark.parametrize("compare", COMPARE)
def test_a_jump_or_a_bend_within_the_step_and_the_last_digits_of_a_flat_function_are_no_loss(compare):
    for grad, total in ((1, lambda x: x + (x.real > 1e-7)), (0, lambda x: x * (x.real > 0)),
                        (0, lambda x: (0.1 + x) * 3 - 0.3 - 3 * x)):
        found = compare("f", lambda a, total=total: total(a["x"]).sum(), {"x": np.zeros(1)}, {"x": [float(grad)]})
        assert found.notes == [] and found.ok, found


@pytest.mark.parametrize("compare", COMPARE)
def test_a_function_that_changes_its_input_does_so_to_copies_and_is_told(compare):
    def total(arrays):
        arrays["x"] *= 2
        return (arrays["x"] ** 3).sum() / 8 + 5 * arrays.pop("y").sum()

    before = {name: array.copy() for name, array in ARRAYS.items()}
    found = compare("f", total, ARRAYS, GRADS)
    assert found.ok and found.rows[0].tolerance == 1e-12 and all(np.array_equal(before[n], ARRAYS[n]) for n in before)
    assert [note.split(":")[0] for note in found.notes] == ["The function modifies its input in place"]


@pytest.mark.parametrize(("call", "reason"), [
    (lambda: gradcheck.compare("f", cubes, {}, {"x": 1.0}), "arrays = {}"),
    (lambda: gradcheck.compare("f", cubes, ARRAYS, {}), "grads = {}"),
    (lambda: gradcheck.compare("f", cubes, ARRAYS, GRADS, most=0), "most = 0"),
    (lambda: numeric.compare_directions("f", cubes, ARRAYS, GRADS, count=1.5), "count = 1.5"),
    (lambda: gradcheck.compare("f", None, ARRAYS, GRADS), "function = None"),
    (lambda: gradcheck.compare("f", lambda arrays: arrays["x"], ARRAYS, GRADS), r"returned shape \(2, 2\)"),
    (lambda: gradcheck.compare("f", lambda arrays: cubes(arrays).astype("F"), ARRAYS, GRADS), "returned complex64"),
    (lambda: gradcheck.complex_step(cubes, ARRAYS, "z", [0]), "name = 'z'.*x, y"),
    (lambda: gradcheck.central_difference(cubes, ARRAYS, "x", [4]), "entry = 4: .* from 0 to 3"),
    (lambda: gradcheck.complex_step(refill, ARRAYS, "x", [0]), "loses the imaginary part"),
    (lambda: gradcheck.error(np.ones((1, 3)), np.ones(3)), r"shape \(1, 3\), numeric \(3,\)")])
def test_what_cannot_be_checked_is_refused_with_the_reason(call, reason):
    with pytest.raises(ValueError, match=reason):
        call()


@pytest.mark.parametrize("method", [gradcheck.complex_step, gradcheck.central_difference])
def test_a_function_that_draws_at_random_is_refused_and_one_without_a_number_makes_no_gradient_right(method):
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="for the same arrays"):
        gradcheck.compare("f", lambda arrays: rng.random() * cubes(arrays), ARRAYS, GRADS, method)
    found = gradcheck.compare("f", lambda arrays: cubes(arrays) * np.nan, ARRAYS, GRADS, method)
    assert not found.ok and "y: the slopes of the function are not finite." in str(found)
