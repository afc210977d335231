"""Numeric derivatives, and the report of how far a hand-written gradient is from them."""

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from minimoe import require, terminal
from minimoe.gradcheck import arguments

COMPLEX_STEP, COMPLEX_TOLERANCE = 1e-30, 1e-12
CENTRAL_STEP, CENTRAL_TOLERANCE = 1e-5, 1e-7
DIRECTION_TOLERANCE = 1e-6
ZERO = 1e-13
"""Gradients of at most this length are rounding error of 0."""


class Row(NamedTuple):
    """One tensor's check.  error: ||a - n|| / (||a|| + ||n||).  length: ||a||, the analytic gradient's.

    problem: why it is wrong at sight, in words; then error is NaN.
    """

    name: str
    shape: tuple
    checked: int
    length: float
    error: float
    tolerance: float
    problem: str = ""

    @property
    def ok(self):
        """Whether the gradient is right (NaN is not)."""
        return self.error < self.tolerance


@dataclass(frozen=True)
class Report:
    """The checks of one function, with a title; prints as a table."""

    title: str
    rows: list[Row]
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self):
        """Whether every gradient is right, and there is any."""
        return len(self.rows) > 0 and all(row.ok for row in self.rows)

    @property
    def worst(self):
        """The largest error of all tensors; NaN if any is, or there are none."""
        return float(np.max([row.error for row in self.rows] or [np.nan]))

    def __str__(self):
        title = f"{self.title}: {'right' if self.ok else 'WRONG'}"
        problems = [f"{row.name}: {row.problem}." for row in self.rows if row.problem]
        return "\n".join([terminal.fill(title), table([self]), *map(terminal.fill, [*problems, *self.notes])])


def table(reports, titles=False):
    """The rows of some Reports as text, one per tensor.  titles: whether the first column says which Report it is."""
    lines = [("check", "tensor", "shape", "checked", "error", "limit", "")]
    for report in reports:
        for i, row in enumerate(report.rows):
            size = math.prod(row.shape)
            checked = f"all {size:,}" if row.checked == size else f"{row.checked:,} of {size:,}"
            verdict = ("ok" if row.length > ZERO else "ok (zero)") if row.ok else "WRONG"
            lines.append((report.title if i == 0 else "", row.name, row.shape, checked, f"{row.error:.1e}",
                          f"{row.tolerance:.0e}", verdict))
    return terminal.table(lines, left=(0, 1, 2, 6)) if titles else terminal.table(
        [line[1:] for line in lines], left=(0, 1, 5))


def error(analytic, numeric):
    """||a - n|| / (||a|| + ||n||), or 0 where both are 0 up to rounding.  Raises ValueError if their shapes differ."""
    analytic, numeric = require.array("analytic", analytic), require.array("numeric", numeric)
    if analytic.shape != numeric.shape:
        raise ValueError(f"analytic has shape {analytic.shape}, numeric {numeric.shape}: must be the same")
    size = np.linalg.norm(analytic) + np.linalg.norm(numeric)
    return 0.0 if size < ZERO else float(np.linalg.norm(analytic - numeric) / size)


def complex_step(function, arrays, name, entries):
    """Derivative of function(arrays) by the listed entries (flat indices) of arrays[name], exact to rounding.

        df/dx = Im f(x + ih) / h                                [Squire & Trapp 1998, SIAM Review 40(1)]

    function: dict of arrays -> number; must be analytic (no abs, no comparison but of real parts).
    Raises ValueError as `complex_directions` does, and for an entry that there is not.
    """
    return complex_directions(function, arrays, name, _entries(arrays, name, entries))


def complex_directions(function, arrays, name, directions):
    """Derivatives of function(arrays) along directions in arrays[name], all of its entries at once, by complex step.

        <df/dx, u> = Im f(x + ihu) / h

    As exact as entry by entry, and one call a direction: an error in any entry shows in almost every direction.
    Raises ValueError if the arrays are not real numbers, or the function loses their imaginary part, or gives different
    values for the same real parts.
    """
    function, arrays = arguments.watched(function), arguments.real_arrays(arrays, [name])
    values = [function.on_complex_numbers(arrays | {name: _stepped(arrays[name], COMPLEX_STEP * 1j, direction)})
              for direction in directions]
    levels = np.real(values)
    if np.isfinite(levels).all() and levels.size and np.ptp(levels) > 1e-9 * abs(levels).max():
        raise ValueError(f"function gave {levels.min():g} and {levels.max():g} for the same arrays: "
                         "what it leaves to chance has to be the same in each call")
    if not all(map(np.iscomplexobj, values)) and central_directions(function, arrays, name, directions).any():
        raise arguments.LostImaginaryPartError(f"{arguments.LOST}: its value is a real number")
    return np.imag(values) / COMPLEX_STEP


def central_difference(function, arrays, name, entries):
    """The same by (f(x + h) - f(x - h)) / 2h: no complex numbers needed, but h must be neither small nor large."""
    return central_directions(function, arrays, name, _entries(arrays, name, entries))


def central_directions(function, arrays, name, directions):
    """The same along directions, by central difference."""
    function, arrays = arguments.watched(function), arguments.real_arrays(arrays, [name])
    slopes = []
    for direction in directions:
        above, below = (function(arrays | {name: _stepped(arrays[name], step, direction)})
                        for step in (CENTRAL_STEP, -CENTRAL_STEP))
        with np.errstate(invalid="ignore"):  # two infinities have no difference, and the report says so
            slopes.append((above - below) / (2 * CENTRAL_STEP))
    return np.array(slopes)


def _entries(arrays, name, entries):
    """The entries as a list.  Raises ValueError for one that there is not."""
    size = arguments.real_arrays(arrays, [name])[name].size
    return [require.whole("entry", entry, 0, size - 1) for entry in require.sequence("entries", entries)]


def _stepped(array, step, direction):
    """The array one step further along a direction: an array like it, or the flat index of one entry."""
    if not isinstance(direction, (int, np.integer)):
        if np.shape(direction) != array.shape:
            raise ValueError(f"direction has shape {np.shape(direction)}: must be {array.shape}, that of the array")
        return array + step * direction
    stepped = array.astype(np.result_type(array, step))
    stepped.flat[direction] += step
    return stepped


def compare_directions(title, function, arrays, grads, count=4, notes=()):
    """Check analytic gradients tensor by tensor along `count` random directions each.  Returns a Report."""
    require.whole("count", count, 1)
    rng = np.random.default_rng(0)

    def ways(name, grad):
        directions = rng.normal(size=(count, *grad.shape))
        analytic = (directions * grad).reshape(count, -1).sum(axis=1)
        return analytic, directions, complex_directions, central_directions

    return _report(title, function, arrays, grads, ways, COMPLEX_TOLERANCE, notes)


def compare(title, function, arrays, grads, method=complex_step, tolerance=COMPLEX_TOLERANCE, most=None, notes=()):
    """Check analytic gradients against a numeric derivative, tensor by tensor.

    Args:
        function: dict of arrays -> number.  It gets copies in float64, so that it cannot change what others read.
        arrays: name -> array.
        grads: name -> analytic gradient of each array to check; the report says which arrays have none.
        method: complex_step or central_difference.
        tolerance: largest error of a right gradient.
        most: check at most so many entries of each tensor, drawn at random; None checks all.

    A gradient that does not have the shape of its array, or numbers that are not finite, is wrong at sight.  Where the
    function loses the imaginary part of its arrays, central differences stand in for the complex step, with their
    tolerance, and the report says so.  Returns a Report.
    Raises ValueError if there is nothing to check, or the function does not return a number.
    """
    if most is not None:
        require.whole("most", most, 1)
    require.function("method", method)
    require.number("tolerance", tolerance)
    rng = np.random.default_rng(0)

    def ways(name, grad):
        size = grad.size
        entries = np.arange(size) if most is None or most >= size else np.sort(rng.choice(size, most, replace=False))
        return grad.ravel()[entries], entries, method, central_difference

    return _report(title, function, arrays, grads, ways, tolerance, notes)


def _report(title, function, arrays, grads, ways, tolerance, notes):
    """The Report of all gradients.

    ways: function of (name, gradient) for its slopes, where they are, and how else to find them: exactly, or by central
    difference.
    """
    if not isinstance(grads, dict) or not grads:
        require.fail("grads", grads, "a dict, name -> gradient, of at least one")
    arrays = arguments.real_arrays(arrays, [name for name in grads if name in require.mapping("arrays", arrays)])
    function, rows, notes, losses = arguments.watched(function), [], require.sequence("notes", notes), {}
    for name, grad in grads.items():
        array = arrays.get(name)
        problem = arguments.problem_of(grad, array, arrays)
        if problem:
            rows.append(Row(name, np.shape(grad if array is None else array), 0, np.nan, np.nan, tolerance, problem))
            continue
        row, lost = _measured(function, arrays, name, np.asarray(grad, float), ways, tolerance)
        rows.append(row)
        if lost:
            losses.setdefault(lost, []).append(str(name))
        if not row.ok and np.asarray(grad).dtype in (np.float16, np.float32):
            notes.append(f"{name}: the gradient is {np.asarray(grad).dtype}; only one in float64 has the digits that a "
                         f"limit of {row.tolerance:.0e} asks for.")
    notes += [f"{', '.join(names)}: the {lost}. So central differences check it, to fewer digits. Give buffers the "
              "dtype of what fills them; abs, float() and .real drop the imaginary part."
              for lost, names in losses.items()]
    unchecked = [str(name) for name in arrays if name not in grads]
    if unchecked:
        notes.append(f"Not checked, since without a gradient: {', '.join(unchecked)}.")
    if function.changed:
        notes.append(f"The function changes its input in place: {', '.join(sorted(map(str, function.changed)))}. Here "
                     "it was given copies; elsewhere, whatever reads that input later gets wrong numbers.")
    return Report(title, rows, notes)


def _measured(function, arrays, name, grad, ways, tolerance):
    """The Row of one gradient; and in words, how the function loses the imaginary part, "" if it does not."""
    analytic, where, exactly, by_difference = ways(name, grad)
    lost = ""
    try:
        slopes = exactly(function, arrays, name, where)
        if not error(analytic, slopes) < tolerance and exactly in (complex_step, complex_directions):
            lost = _lost_in_silence(function, arrays, name)
    except arguments.LostImaginaryPartError as found:
        lost = str(found)
    if lost:
        slopes, tolerance = by_difference(function, arrays, name, where), CENTRAL_TOLERANCE
    problem = "" if np.isfinite(slopes).all() else "the slopes of the function are not finite"
    checked = grad.size if exactly is complex_directions else len(where)
    length = float(np.linalg.norm(grad))
    return Row(name, grad.shape, checked, length, error(analytic, slopes), tolerance, problem), lost


def _lost_in_silence(function, arrays, name):
    """In words, that the complex step and the central difference disagree along a random direction; "" if they agree.

    They cannot, of a function that is analytic and has no jump within the step.
    """
    direction = [np.random.default_rng(1).normal(size=arrays[name].shape)]
    exact, central = (along(function, arrays, name, direction) for along in (complex_directions, central_directions))
    return "" if error(exact, central) < 1e-4 or not np.isfinite(central) else (
        f"{arguments.LOST}: the complex step gives {exact[0]:.3g} where the slope is about {central[0]:.3g}")
