"""Counted arrays: every product of two matrices is noted, and no number changes."""

import re
from pathlib import Path

import numpy as np
import pytest

import minimoe
from minimoe import cost


def products_of(function):
    """The result of a function of a [2, 3] array and a [3, 4] array, and the products that it is counted with."""
    noted = []
    a, b = (cost.counted(np.arange(m * n, dtype=float).reshape(m, n), noted.append) for m, n in ((2, 3), (3, 4)))
    return function(a, b), noted


def into(out, a, b):
    np.matmul(a, b, out=out)
    return out


def in_place(a, b):
    a @= np.ones((3, 3))
    return a @ b


def put_into(a, b):
    plain = np.zeros((2, 3))
    np.add(a, 1, out=plain)
    return plain @ np.ones((3, 4))


@pytest.mark.parametrize("function, flops", [
    (lambda a, b: a @ b, 2 * 2 * 3 * 4),
    (lambda a, b: np.matmul(a, b), 48),
    (lambda a, b: a @ np.ones((3, 4)), 48),
    (lambda a, b: np.ones((2, 3)) @ b, 48),
    (lambda a, b: into(np.empty((2, 4)), a, b), 48),
    (lambda a, b: into(b[:2] * 1, a, b), 48),
    (lambda a, b: into(b[:2] * 1, np.ones((2, 3)), np.ones((3, 4))), 48),
    (in_place, 2 * 2 * 3 * 3 + 48),
    (put_into, 0),  # an array that was plain stays plain
    (lambda a, b: a[:1] @ b[:, 1:], 2 * 1 * 3 * 3),
    (lambda a, b: b.T @ a.T, 2 * 4 * 3 * 2),
    (lambda a, b: a.swapaxes(0, 1).reshape(2, 3) @ b, 48),
    (lambda a, b: np.exp(a - 1) @ (2 * b).copy(), 48),
    (lambda a, b: a.astype(np.float32) @ b.real, 48),
    (lambda a, b: a @ b @ b.T, 48 + 2 * 2 * 4 * 3),
    (lambda a, b: np.ones((5, 2, 3)) @ b, 5 * 48),
    (lambda a, b: a @ np.ones((5, 3, 4)), 5 * 48),
    (lambda a, b: np.ones((5, 1, 2, 3)) @ (np.ones((7, 1, 1)) * b), 5 * 7 * 48),
    (lambda a, b: a[:0] @ b, 0),
    (lambda a, b: (a * 2 + a).sum() + np.exp(b).max(), 0),
])
def test_every_product_of_two_matrices_is_counted_by_hand(function, flops):
    assert sum(product.flops for product in products_of(function)[1]) == flops


@pytest.mark.parametrize("function", [
    lambda a, b: a[0] @ b, lambda a, b: a @ b[:, 0], lambda a, b: a[0] @ b[:, 0], lambda a, b: np.ones(2) @ a,
    lambda a, b: np.outer(a[0], b[0]), lambda a, b: np.einsum("td,td->t", a, a), lambda a, b: a * a,
])
def test_a_product_with_a_vector_is_no_product_of_matrices(function):
    assert products_of(function)[1] == []


@pytest.mark.parametrize("function, rows", [
    (lambda a, b: np.concatenate([a, a]), 4),
    (lambda a, b: np.concatenate([np.ones((1, 3)), a]), 3),  # the second of a list alone is counted
    (lambda a, b: np.where(np.ones((5, 1), bool), np.ones((5, 3)), a[:1]), 5),
    (lambda a, b: np.where(a > 2, a, 0), 2),
    (lambda a, b: np.einsum("td,te->td", a, a), 2),
    (lambda a, b: np.outer(b[0], a[0]), 4),
    (lambda a, b: np.stack([a[0], a[1], a[0]]), 3),
    (lambda a, b: np.split(a, 2)[1], 1),
    (lambda a, b: np.nonzero(a)[0][:, None] * np.ones(3), 5),  # a tuple: five of the numbers 0 to 5 are not 0
    (lambda a, b: np.zeros_like(a), 2),
    (lambda a, b: np.empty((2, 3), like=a) * 0, 2),
    (lambda a, b: np.add.reduceat(a, [0, 1], axis=0), 2),
    (lambda a, b: a.take([0, 1, 1], axis=0), 3),
    (lambda a, b: np.maximum(0, a), 2),
])
def test_what_a_function_makes_of_counted_arrays_is_counted(function, rows):
    _, noted = products_of(lambda a, b: function(a, b) @ np.ones((3, 4)))
    assert noted == [((rows, 3), (3, 4))]


def test_functions_that_return_several_return_what_they_did():
    (halves, indices), _ = products_of(lambda a, b: (np.split(a, 2), np.nonzero(a)))
    assert type(halves) is list and type(indices) is tuple
    np.testing.assert_array_equal(halves, [[[0, 1, 2]], [[3, 4, 5]]])
    np.testing.assert_array_equal(indices, [[0, 0, 1, 1, 1], [1, 2, 0, 1, 2]])
    assert products_of(lambda a, b: np.shape(a))[0] == (2, 3)


def test_only_arrays_are_made_counted():
    assert cost.counted(None, [].append) is None
    assert type(products_of(lambda a, b: a.sum())[0]) is np.float64


def test_counting_leaves_the_array_and_its_numbers_alone():
    given = np.arange(6.0).reshape(2, 3)
    result = cost.counted(given, [].append) @ np.arange(12).reshape(3, 4)
    np.testing.assert_array_equal(result, np.arange(6).reshape(2, 3) @ np.arange(12).reshape(3, 4))
    assert type(given) is np.ndarray
    assert np.shares_memory(cost.counted(given, [].append), given)


def test_an_array_given_for_the_output_is_what_comes_back():
    given = np.empty((2, 4))
    assert np.matmul(cost.counted(np.ones((2, 3)), [].append), np.ones((3, 4)), out=given) is given
    np.testing.assert_array_equal(given, 3)


def test_two_tallies_are_kept_apart():
    first, second = [], []
    a, b = cost.counted(np.ones((2, 3)), first.append), cost.counted(np.ones((5, 3)), second.append)
    (2 * a) @ np.ones((3, 4))
    np.concatenate([b, b]) @ np.ones((3, 1))
    assert first == [((2, 3), (3, 4))] and second == [((10, 3), (3, 1))]


def test_the_same_array_can_be_counted_again():
    array, first, second = np.ones((2, 3)), [], []
    once = cost.counted(array, first.append)
    again = cost.counted(once, second.append)
    again @ np.ones((3, 4))
    once @ np.ones((3, 1))
    assert first == [((2, 3), (3, 1))] and second == [((2, 3), (3, 4))]


def test_the_model_multiplies_matrices_with_the_operator_alone():
    """Other functions would not be counted.  An einsum with the same letters twice multiplies number by number."""
    folder = Path(minimoe.__file__).parent
    files = folder / "model.py", *(folder / "nn").rglob("*.py"), *(folder / "moe").rglob("*.py")
    text = "".join(file.read_text() for file in files)
    assert not re.findall(r"np\.(dot|vdot|inner|tensordot|vecdot|matvec|kron|linalg|convolve)\b|\.dot\(", text)
    factors = re.findall(r'einsum\("(\w+),(\w+)->\w+"', text)
    assert len(factors) == text.count("einsum(") > 0
    assert all(left == right for left, right in factors)
