"""Parameters are a flat dict: its initial values, the names of its parts, and its conversion to one vector and back."""

import os
import subprocess
import sys
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pytest

from minimoe import parameters
from tests import cases

MATRIX, GAIN = parameters.Weight((3, 4), 0.5), parameters.Weight((3,), None)
WEIGHTS = {"a.w_DF": MATRIX, "a.gain_D": GAIN, "b.w_DF": MATRIX}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_tensor_has_the_shape_and_type_asked_for_and_gains_start_at_one(dtype):
    start = parameters.init(WEIGHTS, seed=3, dtype=dtype)
    assert {name: (w.shape, w.dtype) for name, w in start.items()} == {n: (w.shape, dtype) for n, w in WEIGHTS.items()}
    assert (start["a.gain_D"] == 1).all()
    assert parameters.init(WEIGHTS, seed=3)["a.w_DF"].dtype == np.float32


def test_numbers_depend_on_the_seed_and_the_name_alone():
    start = parameters.init(WEIGHTS, seed=3)
    cases.assert_equal(parameters.init(WEIGHTS, seed=3), start)
    cases.assert_equal(parameters.init({"b.w_DF": MATRIX}, seed=3), {"b.w_DF": start["b.w_DF"]})
    assert not np.intersect1d(start["a.w_DF"], [start["b.w_DF"], parameters.init(WEIGHTS, seed=4)["a.w_DF"]]).size


def test_another_process_gives_the_same_numbers():
    """Python's own hash of a string cannot be used, since it changes with every process."""
    script = "from minimoe import parameters as p; print(p.init({'w': p.Weight((2,), 1.0)}, seed=3)['w'].tobytes())"
    run = subprocess.run([sys.executable, "-c", script], env=os.environ | {"PYTHONHASHSEED": "1"}, check=True,
                         capture_output=True, encoding="utf-8")
    assert run.stdout == f"{parameters.init({'w': parameters.Weight((2,), 1.0)}, seed=3)['w'].tobytes()}\n"


def test_the_start_is_normal_with_the_standard_deviation_asked_for():
    """Of n = 40,000 numbers: the mean within 5 std/sqrt(n), the std within 5 std/sqrt(2n), and 68.27 % within 1 std."""
    w = parameters.init({"w": parameters.Weight((200, 200), 0.3)}, seed=0, dtype=np.float64)["w"]
    assert abs(w.mean()) < 5 * 0.3 / 200
    assert abs(w.std() - 0.3) < 5 * 0.3 / np.sqrt(80_000)
    assert abs((np.abs(w) < 0.3).mean() - 0.6827) < 5 * 0.5 / 200


def test_scope_takes_a_module_out_and_its_prefix_off_and_unscope_is_the_way_back():
    flat = {"layers.1.w": 1, "layers.10.w": 10, "head.layers.1.w": 2, "layers.1.layers.1.w": 3}
    own = {"w": 1, "layers.1.w": 3}
    assert parameters.scope(flat, "layers.1.") == own
    assert parameters.unscope(own, "layers.1.") == {"layers.1.w": 1, "layers.1.layers.1.w": 3}


def test_count_adds_up_the_sizes():
    """3*4 + 3 + 3*4 = 27, of arrays as of Weights; a scalar is one number."""
    assert parameters.count(WEIGHTS) == parameters.count(parameters.init(WEIGHTS, seed=0)) == 27
    assert parameters.count({"scalar": np.zeros(())}) == 1 and parameters.count({}) == 0


def test_flatten_puts_the_arrays_end_to_end_and_unflatten_gives_views_of_the_vector():
    arrays = {"b": np.array([[1.0, 2], [3, 4]]).T, "a": np.array([5.0]), "c": np.array(6.0)}
    flat = parameters.flatten(arrays)
    np.testing.assert_array_equal(flat, [1, 3, 2, 4, 5, 6])  # b comes first, as in the dict; its rows are 1 3, 2 4
    views = parameters.unflatten(flat, arrays)
    assert list(views) == ["b", "a", "c"]
    cases.assert_equal(views, arrays)
    views["b"][1] = 7
    np.testing.assert_array_equal(flat, [1, 3, 7, 7, 5, 6])
    for length in (5, 7):
        with pytest.raises(ValueError, match=f"vector has {length} numbers, the parameters have 6"):
            parameters.unflatten(np.zeros(length), arrays)


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
