"""The round-robin control: which experts a position has, by hand, and that the load is even."""

import numpy as np
import pytest

from minimoe.config import ModelConfig
from minimoe.moe.routers import uniform
from minimoe.moe.routing import Tokens


def routed(shape, n_experts, top_k, start=0, training=False):
    """The Routing of a batch of that shape."""
    config = ModelConfig(d_model=4, n_heads=1, n_experts=n_experts, top_k=top_k, router="uniform")
    tokens = Tokens.of_batch(np.zeros(shape, int), start=start)
    return uniform.forward(np.zeros((len(tokens.mask_T), 4)), {}, config, tokens, training)[0]


@pytest.mark.parametrize("training", [True, False])
def test_two_of_five_experts_round_robin_by_hand(training):
    r = routed((1, 6), n_experts=5, top_k=2, training=training)
    assert r.expert_A.reshape(6, 2).tolist() == [[0, 1], [2, 3], [4, 0], [1, 2], [3, 4], [0, 1]]
    np.testing.assert_array_equal(r.gate_A, 1 / 2)


def test_every_sequence_starts_anew_after_the_tokens_seen_before():
    assert routed((2, 3), n_experts=4, top_k=1).expert_A.tolist() == [0, 1, 2, 0, 1, 2]
    assert routed((2, 3), n_experts=4, top_k=1, start=6).expert_A.tolist() == [2, 3, 0, 2, 3, 0]


@pytest.mark.parametrize(("S", "E", "K"), [(8, 8, 1), (5, 5, 3), (3, 4, 4), (7, 5, 2)])
def test_loads_of_a_sequence_are_even_or_differ_by_one(S, E, K):
    count_E = routed((1, S), E, K).count_E
    assert count_E.sum() == S * K and np.ptp(count_E) == (S * K % E > 0)
