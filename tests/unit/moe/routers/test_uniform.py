"""The control in turn: which experts a position has, by hand, and that loads come out even."""

import numpy as np
import pytest

from minimoe.config import ModelConfig
from minimoe.moe.routers import uniform
from minimoe.moe.routing import Tokens


def route(shape, n_experts, top_k, start=0, training=False):
    """A Routing of a batch of that shape."""
    config = ModelConfig(d_model=4, n_heads=1, n_experts=n_experts, top_k=top_k, router="uniform")
    batch = Tokens.of_batch(np.zeros(shape, int), start=start)
    return uniform.forward(np.zeros((shape[0] * shape[1], 4)), {}, config, batch, training)[0]


@pytest.mark.parametrize("training", [True, False])
def test_two_of_five_experts_in_turn_by_hand(training):
    r = route((1, 6), n_experts=5, top_k=2, training=training)
    assert r.expert_A.reshape(6, 2).tolist() == [[0, 1], [2, 3], [4, 0], [1, 2], [3, 4], [0, 1]]


def test_every_sequence_starts_anew():
    r = route((2, 3), n_experts=4, top_k=1)
    assert r.expert_A.tolist() == [0, 1, 2, 0, 1, 2]


def test_the_turn_goes_on_after_the_tokens_seen_before():
    assert route((2, 3), n_experts=4, top_k=1, start=6).expert_A.tolist() == [2, 3, 0, 2, 3, 0]


@pytest.mark.parametrize(("S", "E", "K"), [(8, 8, 1), (12, 8, 2), (5, 5, 3), (6, 4, 2), (3, 4, 4), (64, 8, 2)])
def test_loads_are_exactly_even_where_they_can_be(S, E, K):
    """S K / E turns a sequence, of 3."""
    assert route((3, S), E, K).count_E.tolist() == [3 * S * K // E] * E


def test_loads_of_a_sequence_differ_by_one_where_they_cannot_be_even():
    """7 tokens with 2 of 5 experts: 14 = 3 + 3 + 3 + 3 + 2."""
    assert route((1, 7), n_experts=5, top_k=2).count_E.tolist() == [3, 3, 3, 3, 2]


@pytest.mark.parametrize("top_k", [1, 3, 5])
def test_gates_are_equal_and_experts_distinct(top_k):
    r = route((2, 7), n_experts=5, top_k=top_k)
    np.testing.assert_array_equal(r.gate_A, 1 / top_k)
    assert all(len(set(experts)) == top_k for experts in r.expert_A.reshape(-1, top_k).tolist())
