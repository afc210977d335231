"""What is kept of long runs: read as it was written, whole or not there, with the command that makes it."""

import numpy as np
import pytest

from minimoe.cli import experiments
from minimoe.experiments import archive

RESULTS = {"no loss": {"ce": np.array([[2.5, 2.25], [3.0, 1.0]]), "step": np.array([1, 2])},
           "K = 1, balance 0.01": {"parameters": (5, 4, 3, 2), "flops": 2.04e12, "dead": np.array([True, False])}}


def test_what_is_read_is_what_was_written(tmp_path):
    archive.write(tmp_path / "new/balance.npz", RESULTS)
    found = archive.read("balance", tmp_path / "new")
    assert found.keys() == RESULTS.keys()
    for label, of_label in RESULTS.items():
        assert found[label].keys() == of_label.keys()
        for name, array in of_label.items():
            np.testing.assert_allclose(found[label][name], array, rtol=1e-7)


def test_numbers_with_a_point_take_four_bytes_and_others_keep_their_kind(tmp_path):
    archive.write(tmp_path / "balance.npz", RESULTS)
    found = archive.read("balance", tmp_path)
    assert found["no loss"]["ce"].dtype == np.float32 and found["no loss"]["step"].dtype == int
    assert found["K = 1, balance 0.01"]["dead"].dtype == bool


def test_the_same_results_are_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        archive.write(tmp_path / name, RESULTS)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]  # and nothing temporary is left


@pytest.mark.parametrize("name", ["balances", "", None])
def test_a_result_that_nothing_makes_is_refused_with_those_that_there_are(name):
    with pytest.raises(ValueError, match=rf"result = {name!r}.*balance, capacity, compare, routers"):
        archive.read(name)


def test_a_result_that_is_not_there_is_named_with_the_command_that_makes_it(tmp_path):
    with pytest.raises(ValueError, match=r"compare\.npz.*python -m minimoe compare"):
        archive.read("compare", tmp_path)


def test_each_command_that_makes_a_result_exists():
    assert all(callable(getattr(experiments, command)) for command in archive.COMMANDS.values())


def test_seeds_become_rows():
    rows = archive.by_seed([{"ce": np.array([1.0, 2.0]), "n": 3}, {"ce": np.array([4.0, 5.0]), "n": 6}])
    np.testing.assert_array_equal(rows["ce"], [[1, 2], [4, 5]])
    np.testing.assert_array_equal(rows["n"], [3, 6])


def test_the_lessons_results_are_there():
    for name in archive.COMMANDS:
        assert archive.read(name)
