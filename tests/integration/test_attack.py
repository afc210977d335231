"""A small part of the attack on the program: what went wrong once stays right."""

import pytest

from tests.benchmarks import attack


@pytest.mark.parametrize("section", ["signals", "checkpoints", "files", "calls"])
def test_a_small_attack_finds_nothing(section, tmp_path):
    lines = []
    assert attack.campaign([section], seed=0, quick=True, folder=tmp_path, say=lines.append) == 0, "\n".join(lines)
