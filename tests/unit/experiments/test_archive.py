"""What is kept of long runs: read as it was written, whole or not there, with the command that makes it."""

import numpy as np
import pytest

from minimoe import cli
from minimoe.experiments import archive

RESULTS = {"no loss": {"ce": np.array([[2.5, 2.25], [3.0, 1.0]]), "step": np.array([1, 2])},
           "K = 1, balance 0.01": {"parameters": (5, 4, 3, 2), "flops": 2.04e12, "dead": np.array([True, False])}}


def test_what_is_read_is_what_was_written_with_four_bytes_for_a_number_with_a_point(tmp_path):
    archive.write(tmp_path / "new/balance.npz", RESULTS)
    found = archive.read("balance", tmp_path / "new")
    assert {label: list(arrays) for label, arrays in found.items()} == {
        label: list(arrays) for label, arrays in RESULTS.items()}
    for label, arrays in RESULTS.items():
        for name, array in arrays.items():
            np.testing.assert_allclose(found[label][name], array, rtol=1e-7)
    assert found["no loss"]["ce"].dtype == np.float32 and found["no loss"]["step"].dtype == int
    assert found["K = 1, balance 0.01"]["dead"].dtype == bool
    archive.write(tmp_path / "again", RESULTS)
    assert (tmp_path / "again").read_bytes() == (tmp_path / "new/balance.npz").read_bytes()


def test_results_that_are_not_there_are_refused_with_what_makes_them(tmp_path):
    with pytest.raises(ValueError, match=r"result = 'balances'.*balance, capacity, granularity, compare"):
        archive.read("balances")
    with pytest.raises(ValueError, match=r"compare\.npz.*python -m minimoe compare"):
        archive.read("compare", tmp_path)


@pytest.mark.parametrize("name", sorted(path.stem for path in archive.FOLDER.glob("*.npz")))
def test_the_lessons_results_are_there_and_so_is_the_command_that_makes_them(name):
    assert archive.read(name)
    assert cli.parser().parse_args([archive.COMMANDS[name], "--quick"]).quick
