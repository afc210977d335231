"""Numeric derivatives, and the report of how far a hand-written gradient is from them."""

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from minimoe import terminal

COMPLEX_STEP, COMPLEX_TOLERANCE = 1e-30, 1e-12
CENTRAL_STEP, CENTRAL_TOLERANCE = 1e-5, 1e-7
DIRECTION_TOLERANCE = 1e-6
ZERO = 1e-13
"""Gradients of at most this length are rounding error of 0."""


class Row(NamedTuple):
    """One tensor's check.  error: ||a - n|| / (||a|| + ||n||).  length: ||a||, the analytic gradient's."""

    name: str
    shape: tuple
    checked: int
    length: float
    error: float
    tolerance: float

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
        """Whether every gradient is right."""
        return all(row.ok for row in self.rows)

    @property
    def worst(self):
        """The largest error of all tensors; NaN if any is."""
        return float(np.max([row.error for row in self.rows]))

    def __str__(self):
        title = f"{self.title}: {'right' if self.ok else 'WRONG'}"
        return "\n".join([terminal.fill(title), table([self]), *map(terminal.fill, self.notes)])


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
    """||a - n|| / (||a|| + ||n||), or 0 where both are 0 up to rounding.  Arrays of the same shape."""
    size = np.linalg.norm(analytic) + np.linalg.norm(numeric)
    return 0.0 if size < ZERO else float(np.linalg.norm(analytic - numeric) / size)


def complex_step(function, arrays, name, entries):
    """Derivative of function(arrays) by the listed entries (flat indices) of arrays[name], exact to rounding.

        df/dx = Im f(x + ih) / h                                [Squire & Trapp 1998, SIAM Review 40(1)]

    function: dict of arrays -> number; must be analytic (no abs, no comparison but of real parts).
    """
    slopes = np.empty(len(entries))
    for i, entry in enumerate(entries):
        stepped = arrays[name].astype(complex)
        stepped.flat[entry] += COMPLEX_STEP * 1j
        slopes[i] = function(arrays | {name: stepped}).imag / COMPLEX_STEP
    return slopes


def complex_directions(function, arrays, name, directions):
    """Derivatives of function(arrays) along directions in arrays[name], all of its entries at once, by complex step.

        <df/dx, u> = Im f(x + ihu) / h

    As exact as entry by entry, and one call a direction: an error in any entry shows in almost every direction.
    """
    return np.array([function(arrays | {name: arrays[name] + COMPLEX_STEP * 1j * direction}).imag / COMPLEX_STEP
                     for direction in directions])


def central_difference(function, arrays, name, entries):
    """The same by (f(x + h) - f(x - h)) / 2h: no complex numbers needed, but h must be neither small nor large."""
    slopes = np.empty(len(entries))
    for i, entry in enumerate(entries):
        values = []
        for step in (CENTRAL_STEP, -CENTRAL_STEP):
            stepped = arrays[name].copy()
            stepped.flat[entry] += step
            values.append(function(arrays | {name: stepped}))
        slopes[i] = (values[0] - values[1]) / (2 * CENTRAL_STEP)
    return slopes


def compare_directions(title, function, arrays, grads, count=4, notes=()):
    """Check analytic gradients tensor by tensor along `count` random directions each.  Returns a Report."""
    rows, rng = [], np.random.default_rng(0)
    for name, grad in grads.items():
        directions = rng.normal(size=(count, *grad.shape))
        numeric = complex_directions(function, arrays, name, directions)
        analytic = (directions * grad).reshape(count, -1).sum(axis=1)
        rows.append(Row(name, grad.shape, grad.size, float(np.linalg.norm(grad)), error(analytic, numeric),
                        COMPLEX_TOLERANCE))
    return Report(title, rows, list(notes))


def compare(title, function, arrays, grads, method=complex_step, tolerance=COMPLEX_TOLERANCE, most=None, notes=()):
    """Check analytic gradients against a numeric derivative, tensor by tensor.

    function: dict of float64 arrays -> number.  grads: dict with the analytic gradient of each array to check.
    most: check at most so many entries of each tensor, drawn at random; None checks all.  Returns a Report.
    """
    rows = []
    rng = np.random.default_rng(0)
    for name, grad in grads.items():
        size = arrays[name].size
        entries = np.arange(size) if most is None or most >= size else np.sort(rng.choice(size, most, replace=False))
        numeric = method(function, arrays, name, entries)
        rows.append(Row(name, arrays[name].shape, len(entries), float(np.linalg.norm(grad)),
                        error(grad.ravel()[entries], numeric), tolerance))
    return Report(title, rows, list(notes))
