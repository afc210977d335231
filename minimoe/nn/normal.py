"""The CDF of the normal distribution, from which noisy top-k computes how likely an expert is to be chosen.

NumPy has no erf, and the complex step needs one that accepts complex numbers.  A table and a Taylor series solve both.
"""

import math

import numpy as np

from minimoe.nn import ops

NORMAL_END, NORMAL_GRID, NORMAL_TERMS = 9.0, 64, 7


def _normal_series():
    """Row n: the coefficient of d^n in the series of `normal_cdf_forward`, at each grid point."""
    grid = np.arange(-NORMAL_END * NORMAL_GRID, NORMAL_END * NORMAL_GRID + 1) / NORMAL_GRID
    rows = [np.array([0.5 * math.erfc(-g / math.sqrt(2)) for g in grid])]
    pdf, hermite, hermite_before = np.exp(-0.5 * grid * grid) / math.sqrt(2 * math.pi), np.ones_like(grid), 0 * grid
    for n in range(NORMAL_TERMS):
        rows.append((-1) ** n * hermite * pdf / math.factorial(n + 1))
        hermite, hermite_before = grid * hermite - n * hermite_before, hermite
    return np.array(rows)


NORMAL_SERIES = _normal_series()


def normal_cdf_forward(z_TE):
    """Probability that a standard normal variable is below z, Phi(z) = (1 + erf(z / sqrt 2)) / 2.

    A table holds exact values at grid points.  Other values come from the Taylor series about the nearest one, d away:

        Phi(g + d) = Phi(g) + pdf(g) * sum_n (-1)^n He_n(g) d^(n+1) / (n+1)!      [He_n: Hermite polynomials, DLMF 18.5]

    Beyond +-9 it is 0 or 1 to double precision.  Returns p_TE, cache.
    """
    z_TE = ops.floats("z_TE", z_TE)
    z_TE = np.where(z_TE.real < -NORMAL_END, -NORMAL_END, np.where(z_TE.real > NORMAL_END, NORMAL_END, z_TE))
    place_TE = np.rint((np.nan_to_num(z_TE.real) + NORMAL_END) * NORMAL_GRID).astype(np.intp)
    d_TE = z_TE - (place_TE * (1 / NORMAL_GRID) - NORMAL_END).astype(z_TE.real.dtype)
    p_TE = np.zeros_like(z_TE)
    for series in NORMAL_SERIES[::-1]:
        p_TE *= d_TE
        p_TE += series[place_TE]
    return p_TE, z_TE


def normal_cdf_backward(dp_TE, cache):
    """Gradient of z_TE: the slope is the density."""
    z_TE = cache
    return dp_TE * np.exp(-0.5 * z_TE * z_TE) * (1 / math.sqrt(2 * math.pi))
