"""Parameters are a flat dict: how it starts, how a part of it is named, how it becomes one vector and back."""

import itertools
import math
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minimoe import parameters

MATRIX, GAIN = parameters.Weight((3, 4), 0.5), parameters.Weight((3,), None)
WEIGHTS = {"a.w_DF": MATRIX, "a.gain_D": GAIN, "b.w_DF": MATRIX}
SHAPES = st.lists(st.lists(st.integers(1, 4), max_size=3).map(tuple), min_size=1, max_size=4)


def numbered(shapes):
    """One array a shape, with the numbers 0, 1, 2, ... running on from one to the next."""
    number = itertools.count()
    return {f"w{i}": np.reshape([next(number) for _ in range(math.prod(shape))], shape)
            for i, shape in enumerate(shapes)}


def assert_same(left, right):
    assert list(left) == list(right)
    for name in left:
        np.testing.assert_array_equal(left[name], right[name], strict=True)


def test_the_same_seed_gives_the_same_numbers():
    assert_same(parameters.init(WEIGHTS, seed=3), parameters.init(WEIGHTS, seed=3))


def test_another_process_gives_the_same_numbers():
    """Python's own hash of a string would not do: it changes with every process."""
    script = "from minimoe import parameters as p; print(p.init({'w': p.Weight((2,), 1.0)}, seed=3)['w'].tobytes())"
    first, second = (subprocess.run([sys.executable, "-c", script], env=os.environ | {"PYTHONHASHSEED": hash_seed},
                                    check=True, capture_output=True, text=True).stdout for hash_seed in "12")
    assert first == second != ""


def test_another_seed_gives_other_numbers():
    assert not np.array_equal(parameters.init(WEIGHTS, seed=3)["a.w_DF"], parameters.init(WEIGHTS, seed=4)["a.w_DF"])


def test_another_name_gives_other_numbers():
    start = parameters.init(WEIGHTS, seed=3)
    assert not np.intersect1d(start["a.w_DF"], start["b.w_DF"]).size


def test_a_tensor_does_not_depend_on_the_others():
    alone = parameters.init({"b.w_DF": MATRIX}, seed=3)
    np.testing.assert_array_equal(alone["b.w_DF"], parameters.init(WEIGHTS, seed=3)["b.w_DF"])


def test_the_start_is_normal_with_the_standard_deviation_asked_for():
    """Of n = 40,000 numbers: the mean within 5 std/sqrt(n), the std within 5 std/sqrt(2n), and 68.27 % within 1 std."""
    w = parameters.init({"w": parameters.Weight((200, 200), 0.3)}, seed=0, dtype=np.float64)["w"]
    assert abs(w.mean()) < 5 * 0.3 / 200
    assert abs(w.std() - 0.3) < 5 * 0.3 / np.sqrt(80_000)
    assert abs((np.abs(w) < 0.3).mean() - 0.6827) < 5 * 0.5 / 200


def test_gains_start_at_one():
    np.testing.assert_array_equal(parameters.init(WEIGHTS, seed=3)["a.gain_D"], np.ones(3, np.float32), strict=True)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_tensor_has_the_shape_and_dtype_asked_for(dtype):
    start = parameters.init(WEIGHTS, seed=3, dtype=dtype)
    assert {name: (w.shape, w.dtype) for name, w in start.items()} == {n: (w.shape, dtype) for n, w in WEIGHTS.items()}


def test_the_default_is_float32():
    assert {w.dtype for w in parameters.init(WEIGHTS, seed=3).values()} == {np.dtype(np.float32)}


def test_scope_takes_a_module_out_and_its_prefix_off():
    flat = {"layers.1.w": 1, "layers.10.w": 10, "head.layers.1.w": 2, "layers.1.layers.1.w": 3}
    assert parameters.scope(flat, "layers.1.") == {"w": 1, "layers.1.w": 3}


def test_unscope_puts_the_prefix_on():
    assert parameters.unscope({"w": 1, "gain": 2}, "moe.") == {"moe.w": 1, "moe.gain": 2}


def test_the_scopes_of_all_modules_make_up_the_whole():
    flat = {"a.w": 1, "b.w": 2, "a.v": 3, "b.a.w": 4}
    a, b = (parameters.unscope(parameters.scope(flat, prefix), prefix) for prefix in ("a.", "b."))
    assert a | b == flat


def test_count_adds_up_the_sizes():
    """3*4 + 3 + 3*4 = 27, of arrays as of Weights; a scalar is one number."""
    assert parameters.count(WEIGHTS) == parameters.count(parameters.init(WEIGHTS, seed=0)) == 27
    assert parameters.count({"scalar": np.zeros(())}) == 1 and parameters.count({}) == 0


def test_flatten_puts_the_arrays_end_to_end_row_by_row():
    flat = parameters.flatten({"b": np.array([[1, 2], [3, 4]]).T, "a": np.array([5.0])})
    np.testing.assert_array_equal(flat, [1, 3, 2, 4, 5])  # b comes first, as in the dict; the rows of b are 1 3, 2 4


@settings(derandomize=True, deadline=None)
@given(SHAPES)
def test_flatten_counts_on_from_array_to_array(shapes):
    arrays = numbered(shapes)
    np.testing.assert_array_equal(parameters.flatten(arrays), np.arange(parameters.count(arrays)))


@settings(derandomize=True, deadline=None)
@given(SHAPES)
def test_unflatten_is_the_way_back(shapes):
    arrays = numbered(shapes)
    assert_same(parameters.unflatten(parameters.flatten(arrays), arrays), arrays)


def test_unflatten_gives_views_of_the_vector():
    vector = np.zeros(27)
    parameters.unflatten(vector, parameters.init(WEIGHTS, seed=0))["a.gain_D"][1] = 7
    assert vector[13] == 7 and vector.sum() == 7  # 12 numbers of a.w_DF, then the second of a.gain_D


@pytest.mark.parametrize("length", [26, 28, 0])
def test_unflatten_refuses_a_vector_of_another_length(length):
    with pytest.raises(ValueError, match=f"vector has {length} numbers, the parameters have 27"):
        parameters.unflatten(np.zeros(length), parameters.init(WEIGHTS, seed=0))


def test_arrays_in_a_tree_are_found_in_order_and_nothing_else():
    class Pair(NamedTuple):
        left: object
        right: object

    @dataclass
    class Record:
        first: object
        second: object

    a, b, c, d, e = (np.full(2, i) for i in range(5))
    tree = [a, {"x": Pair(b, None), "y": (1.5, "text", [Record({"z": c}, d), Record])}, e, a]
    assert list(map(id, parameters.arrays_in(tree))) == list(map(id, [a, b, c, d, e, a]))
