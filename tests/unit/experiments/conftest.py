"""Experiments in a folder of their own, on presets that train in a second."""

import pytest

from minimoe.training import corpus, data
from tests import small


@pytest.fixture(scope="session")
def clusters():
    """A Corpus of 32 characters."""
    return data.build(corpus.clusters(length=300), 8)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder of its own, and small presets."""
    monkeypatch.chdir(tmp_path)
    small.shrink(monkeypatch)
    return tmp_path
