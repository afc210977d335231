"""Bytes: of known arrays by hand, of a step as its caches hold them, and at the peak of a function."""

from dataclasses import replace

import numpy as np
import pytest

from minimoe import model
from minimoe.config import ModelConfig
from minimoe.cost import memory

CONFIG = ModelConfig(vocab_size=13, d_model=12, n_layers=3, n_heads=2, d_hidden=10, n_experts=5, top_k=2,
                     max_sequence=9)
TINY = ModelConfig(vocab_size=5, d_model=4, n_layers=1, n_heads=2, n_kv_heads=1, d_hidden=3, n_experts=2, top_k=1)


def test_cache_bytes_by_hand():
    # owned: the weight.  shared: 100 doubles seen three times.  own: 10 int64 and 7 bytes
    weight, shared = np.zeros((3, 4)), np.zeros((10, 10))
    cache = (weight, weight.T[:2], [shared, shared.T, {"part": shared[2:5][:, 1:]}], (np.zeros(10, np.int64), None, 3),
             np.zeros(7, bool))
    assert memory.cache_bytes(cache, {"w": weight}) == 800 + 80 + 7


def test_a_small_view_keeps_its_whole_buffer():
    assert memory.cache_bytes([np.zeros(1000)[:1]], {}) == 8000


def test_memory_of_a_step_by_hand():
    # 180 numbers of four bytes, once each for parameters and gradients, twice for the moments
    found = memory.step_memory(TINY, batch=2, sequence=3)
    assert found[:3] == (720, 720, 1440)


@pytest.mark.parametrize("order", ["position", "random"])
def test_activations_of_a_step_are_those_of_its_cache(order):
    config, rng = replace(CONFIG, capacity_factor=0.7, drop_order=order), np.random.default_rng(0)
    params, (tokens_BS, targets_BS) = model.init_params(config), rng.integers(0, 13, (2, 4, 7))
    _, cache = model.objective_forward(params, tokens_BS, targets_BS, config, training=True, rng=rng)
    assert memory.step_memory(config, 4, 7).activations == memory.cache_bytes(cache, params)


def test_activations_do_not_grow_with_idle_parameters():
    wide, wider = (memory.step_memory(replace(CONFIG, vocab_size=V, tie_embeddings=True), 1, 2) for V in (13, 26))
    # the logits' 13 more columns are kept as probabilities, for two tokens; the table itself is no activation
    assert wider.activations - wide.activations == 2 * 13 * 4


def test_peak_is_the_most_at_once():
    def grow_and_shrink():
        first = np.ones(1_000_000)
        del first
        second = np.ones(500_000), np.ones(750_000)
        return len(second)

    before = np.ones(2_000_000)
    assert memory.peak_bytes(grow_and_shrink) == pytest.approx(10_000_000, rel=0.01)
    assert before.all()


def test_peak_is_measured_anew_each_time():
    memory.peak_bytes(lambda: np.ones(1_000_000))
    assert memory.peak_bytes(lambda: np.ones(10_000)) == pytest.approx(80_000, rel=0.05)


def test_peak_of_a_function_that_fails_stops_measuring():
    with pytest.raises(ZeroDivisionError):
        memory.peak_bytes(lambda: 1 / 0)
    assert not memory.tracemalloc.is_tracing()
