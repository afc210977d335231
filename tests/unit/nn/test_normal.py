"""The normal CDF: against the standard library, in its tails, and its slope."""

import math

import numpy as np
import pytest

from minimoe.nn import normal
from tests import cases

Z = np.linspace(-12, 12, 24_001)


def phi(z):
    return math.erfc(-z / math.sqrt(2)) / 2


def cdf(z):
    return normal.normal_cdf_forward(np.array(z))[0]


def test_it_is_that_of_the_standard_library_with_all_digits_in_the_lower_tail_too():
    np.testing.assert_allclose(cdf(Z), [phi(z) for z in Z], rtol=0, atol=1e-15)
    low = Z[np.abs(Z + 4.5) < 4.5]
    np.testing.assert_allclose(cdf(low), [phi(z) for z in low], rtol=1e-13)
    assert cdf([0.0]) == 0.5


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_it_rises_from_zero_to_one(dtype):
    """But for the last digit near 1, where steps are smaller than digits."""
    p = cdf(Z.astype(dtype))
    assert np.diff(p).min() >= -np.finfo(dtype).eps and (np.diff(p[np.abs(Z) < 4]) > 0).all()
    assert p.min() >= 0 and p.max() <= 1
    np.testing.assert_allclose(p, [phi(float(z)) for z in Z.astype(dtype)], rtol=0, atol=3 * np.finfo(dtype).eps)
    ends, cache = normal.normal_cdf_forward(np.array([-1e30, -math.inf, 1e30, math.inf], dtype))
    np.testing.assert_allclose(ends, [0, 0, 1, 1], atol=1e-15)
    np.testing.assert_allclose(normal.normal_cdf_backward(np.ones(4, dtype), cache), 0, atol=1e-15)


def test_its_slope_is_the_density_by_hand_and_by_the_complex_step():
    z = np.linspace(-8.9, 8.9, 1001)
    density = np.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    np.testing.assert_allclose(cdf(z + 1e-30j).imag / 1e-30, density, rtol=1e-11)
    np.testing.assert_allclose(normal.normal_cdf_backward(1.0, normal.normal_cdf_forward(z)[1]), density, rtol=1e-13)
    cases.assert_gradient(normal.normal_cdf_forward, normal.normal_cdf_backward, z=z[::90])


def test_it_passes_on_what_is_not_a_number():
    assert np.isnan(cdf([0.0, math.nan, 1.0])).tolist() == [False, True, False]
