"""Experiments in a folder of their own, on presets that train in a second."""

import pytest

from tests import small


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder of its own, and small presets."""
    monkeypatch.chdir(tmp_path)
    small.shrink(monkeypatch)
    return tmp_path
