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
"""Gradients of at most this length count as 0 with rounding error."""
START = {"step": np.zeros(1)}
"""The starting point of a line: see `_line`."""


class Row(NamedTuple):
    """One tensor's check.  error: ||a - n|| / (||a|| + ||n||).  length: ||a||, the norm of the analytic gradient.

    problem: why it is obviously wrong, in words; then error is NaN.
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
        """Whether there are gradients and all of them are right."""
        return len(self.rows) > 0 and all(row.ok for row in self.rows)

    @property
    def worst(self):
        """The largest error of all tensors; NaN if any error is NaN, or there are no tensors."""
        return float(np.max([row.error for row in self.rows] or [np.nan]))

    def __str__(self):
        title = f"{self.title}: {'right' if self.ok else 'WRONG'}"
        problems = [f"{row.name}: {row.problem}." for row in self.rows if row.problem]
        return "\n".join([terminal.fill(title), table([self]), *map(terminal.fill, [*problems, *self.notes])])


def table(reports, titles=False):
    """The rows of some Reports as text, one per tensor.  titles: whether the first column names the Report."""
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
    """Derivative of function(arrays) with respect to entries (flat indices) of arrays[name], exact to rounding error.

        df/dx = Im f(x + ih) / h                                [Squire & Trapp 1998, SIAM Review 40(1)]

    function: dict of arrays -> number; must be analytic (no abs; comparisons of real parts only).
    Raises ValueError as `complex_directions` does, and for an entry that does not exist.
    """
    return complex_directions(function, arrays, name, _entries(arrays, name, entries))


def complex_directions(function, arrays, name, directions):
    """Derivatives of function(arrays) along directions in arrays[name], all of its entries at once, by complex step.

        <df/dx, u> = Im f(x + ihu) / h

    As exact as entry by entry, and only one call per direction: an error in any entry shows in almost every direction.
    Raises ValueError if the arrays are not real numbers, or the function loses their imaginary part or gives different
    values for the same real parts.
    """
    arrays = arguments.real_arrays(arrays, [name])
    function = arguments.watched(function, arrays)
    values = [function.on_complex_numbers(arrays | {name: _stepped(arrays[name], COMPLEX_STEP * 1j, direction)})
              for direction in directions]
    if not all(map(np.iscomplexobj, values)) and central_directions(function, arrays, name, directions).any():
        raise arguments.LostImaginaryPartError(f"{arguments.LOST}: its value is a real number")
    return np.imag(values) / COMPLEX_STEP


def central_difference(function, arrays, name, entries):
    """The same by (f(x + h) - f(x - h)) / 2h.  It needs no complex numbers, but h must be neither small nor large."""
    return central_directions(function, arrays, name, _entries(arrays, name, entries))


def central_directions(function, arrays, name, directions):
    """The same along directions, by central difference."""
    arrays = arguments.real_arrays(arrays, [name])
    function = arguments.watched(function, arrays)
    slopes = []
    for direction in directions:
        above, below = (function(arrays | {name: _stepped(arrays[name], step, direction)})
                        for step in (CENTRAL_STEP, -CENTRAL_STEP))
        with np.errstate(invalid="ignore"):  # the difference of two infinities is NaN, and the report says so
            slopes.append((above - below) / (2 * CENTRAL_STEP))
    return np.array(slopes)


def _entries(arrays, name, entries):
    """The entries as a list.  Raises ValueError for one that does not exist."""
    size = arguments.real_arrays(arrays, [name])[name].size
    return [require.whole("entry", entry, 0, size - 1) for entry in require.sequence("entries", entries)]


def _stepped(array, step, direction):
    """The array one step further along a direction: an array like it, or the flat index of one entry."""
    if not isinstance(direction, (int, np.integer)):
        if np.shape(direction) != array.shape:
            raise ValueError(f"direction has shape {np.shape(direction)}: must be {array.shape}, that of the array")
        return array + step * np.asarray(direction)
    stepped = array.astype(np.result_type(array, step))
    stepped.flat[direction] += step
    return stepped


def compare_directions(title, function, arrays, grads, count=4, notes=()):
    """Check analytic gradients tensor by tensor, along `count` random directions each.  Returns a Report."""
    require.whole("count", count, 1)
    rng = np.random.default_rng(0)
    return _report(title, function, arrays, grads, lambda grad: rng.normal(size=(count, *grad.shape)),
                   complex_directions, COMPLEX_TOLERANCE, notes)


def compare(title, function, arrays, grads, method=complex_step, tolerance=COMPLEX_TOLERANCE, most=None, notes=()):
    """Check analytic gradients against a numeric derivative, tensor by tensor.

    Args:
        function: dict of arrays -> number.  It gets copies in float64, so that it cannot modify the originals.
        arrays: name -> array.
        grads: name -> analytic gradient of each array to check; the report names arrays without one.
        method: complex_step or central_difference.
        tolerance: largest error of a right gradient.
        most: largest number of entries to check per tensor, drawn at random; None checks all.

    A gradient with a different shape than its array, or with numbers that are not finite, is wrong without a
    measurement.  Where the function loses the imaginary part of its arrays, central differences with their tolerance
    replace the complex step, and the report says so.  Returns a Report.
    Raises ValueError if there is nothing to check, or the function does not return a number.
    """
    if most is not None:
        require.whole("most", most, 1)
    require.function("method", method)
    require.number("tolerance", tolerance)
    rng = np.random.default_rng(0)

    def entries(grad):
        size = grad.size
        return np.arange(size) if most is None or most >= size else np.sort(rng.choice(size, most, replace=False))

    return _report(title, function, arrays, grads, entries, method, tolerance, notes)


def _report(title, function, arrays, grads, places, method, tolerance, notes):
    """The Report of all gradients.  places: function of a gradient that returns the directions or entries to check.

    method: function of (function, arrays, name, places) that returns the slopes there.
    """
    if not isinstance(grads, dict) or not grads:
        require.fail("grads", grads, "a dict, name -> gradient, of at least one")
    arrays = arguments.real_arrays(arrays, [name for name in grads if name in require.mapping("arrays", arrays)])
    function, rows, notes = arguments.watched(function, arrays), [], require.sequence("notes", notes)
    problems = {name: arguments.problem_of(grad, arrays.get(name), arrays) for name, grad in grads.items()}
    measured = [name for name, problem in problems.items() if not problem]
    losses = _losses(function, arrays, measured) if measured and method in (complex_step, complex_directions) else {}
    for name, grad in grads.items():
        if problems[name]:
            shape = np.shape(arrays[name]) if name in arrays else ()
            rows.append(Row(name, shape, 0, np.nan, np.nan, tolerance, problems[name]))
            continue
        how = (central_directions, CENTRAL_TOLERANCE) if name in losses else (method, tolerance)
        rows.append(_row(function, arrays, name, np.asarray(grad, float), places, *how))
        if not rows[-1].ok and np.asarray(grad).dtype in (np.float16, np.float32):
            notes.append(f"{name}: the gradient is {np.asarray(grad).dtype}; a tolerance of {rows[-1].tolerance:.0e} "
                         "needs float64.")
    for words in dict.fromkeys(losses.values()):
        names = ", ".join(str(name) for name, found in losses.items() if found == words)
        notes.append(f"{names}: the {words}. So central differences check it, to fewer digits. Give buffers the dtype "
                     "of their contents; abs, float(), .real, np.var, np.std and np.linalg.norm drop the imaginary "
                     "part.")
    unchecked = [str(name) for name in arrays if name not in grads]
    if unchecked:
        notes.append(f"Not checked, since there is no gradient: {', '.join(unchecked)}.")
    if function.changed:
        notes.append(f"The function modifies its input in place: {', '.join(sorted(map(str, function.changed)))}. Here "
                     "it got copies; elsewhere, code that reads the input later will get wrong numbers.")
    return Report(title, rows, notes)


def _row(function, arrays, name, grad, places, method, tolerance):
    """The Row of one gradient."""
    where = places(grad)
    slopes = method(function, arrays, name, where)
    whole = where.dtype.kind == "f"  # a direction covers all entries
    analytic = (where * grad).reshape(len(where), -1).sum(axis=1) if whole else grad.ravel()[where]
    problem = "" if np.isfinite(slopes).all() else "the slopes of the function are not finite"
    return Row(name, grad.shape, grad.size if whole else len(where), float(np.linalg.norm(grad)),
               error(analytic, slopes), tolerance, problem)


def _losses(function, arrays, names):
    """Name -> in words, how the function loses the imaginary part of that array; only for arrays where it does.

    Along a random direction the complex step must agree with the central difference.  One direction through all arrays
    is tried first, since that is cheap; if they disagree, one direction in each array.
    """
    if _agree(_line(function, arrays, names)):
        return {}
    found = {name: _loss(_line(function, arrays, [name])) for name in names}
    return {name: words for name, words in found.items() if words}


def _line(function, arrays, names):
    """The function along a random direction of length 1 in some of its arrays.  Called with {"step": how far}."""
    rng = np.random.default_rng(1)
    direction = {name: rng.normal(size=arrays[name].shape) for name in names}
    length = math.sqrt(sum((array * array).sum() for array in direction.values())) or 1.0
    return arguments.Watched(lambda line: function(
        arrays | {name: arrays[name] + line["step"] / length * array for name, array in direction.items()}))


def _agree(line):
    """Whether the complex step and the central difference find the same slope."""
    try:
        with np.errstate(invalid="ignore"):  # two infinities do not agree
            return error(*(method(line, START, "step", [0]) for method in (complex_step, central_difference))) \
                < CENTRAL_TOLERANCE
    except arguments.LostImaginaryPartError:
        return False


def _loss(line):
    """In words, how the function loses the imaginary part; "" if it does not.

    The step from -h to h is divided into four pieces.  They have the same slope where an imaginary part is lost, but
    not where the function jumps or bends within the step or at its start.
    """
    if _agree(line):
        return ""
    try:
        exact = complex_step(line, START, "step", [0])[0]
    except arguments.LostImaginaryPartError as found:
        return str(found)
    values = np.array([line({"step": CENTRAL_STEP * place}) for place in np.linspace([-1], [1], 5)])
    slopes = np.diff(values) / (CENTRAL_STEP / 2) if np.isfinite(values).all() else np.full(4, exact)
    slope, last_digits = slopes.mean(), 1e-7 * abs(values[2])
    if abs(slope - exact) <= max(100 * np.ptp(slopes), last_digits):
        return ""
    return f"{arguments.LOST}: the complex step gives {exact:.3g} where the slope is about {slope:.3g}"
