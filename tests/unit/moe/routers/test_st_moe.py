"""ST-MoE: the second expert is sure from a fifth of the gates on, less often below, and in evaluation never below."""

import numpy as np
import pytest

from minimoe.config import ModelConfig
from minimoe.moe.routers import st_moe
from minimoe.moe.routing import Tokens
from tests.one_hot import choices, route

N = 4000
SECOND = np.array([0.02, 0.05, 0.15, 0.25, 0.5])
"""Share of the second expert in the gates of each kind of token."""


def route_kinds(training):
    """N tokens of each kind, whose scores are given: log (1 - share) and log share."""
    scores_TE = np.repeat(np.log(np.stack([1 - SECOND, SECOND], axis=1)), N, axis=0)
    config = ModelConfig(d_model=2, n_heads=1, n_experts=2, top_k=2, router="st_moe")
    r, _ = st_moe.forward(scores_TE, {"w_router_DE": np.eye(2)}, config, Tokens.anonymous(np.ones(5 * N, bool)),
                          training=training, rng=np.random.default_rng(0) if training else None)
    return r


def frequencies(r):
    """How often the second expert of each kind of token is used."""
    return np.bincount(r.token_A[r.rank_A == 1] // N, minlength=5) / N


def test_in_training_the_second_is_used_with_five_times_its_gate():
    """min(1, g / 0.2) = 0.1, 0.25, 0.75, 1, 1, seen with the spread of so many coin tosses."""
    p = np.array([0.1, 0.25, 0.75, 1, 1])
    assert (np.abs(frequencies(route_kinds(training=True)) - p) <= 4 * np.sqrt(p * (1 - p) / N)).all()


def test_evaluation_uses_the_second_above_a_fifth_and_never_below():
    assert frequencies(route_kinds(training=False)).tolist() == [0, 0, 0, 1, 1]


@pytest.mark.parametrize("training", [True, False])
def test_gates_are_shares_of_the_two_best_whether_or_not_the_second_is_used(training):
    r = route_kinds(training)
    kind_A = r.token_A // N
    np.testing.assert_allclose(r.gate_A, np.where(r.rank_A == 0, 1 - SECOND[kind_A], SECOND[kind_A]), rtol=1e-13)
    assert (np.bincount(r.token_A[r.rank_A == 0], minlength=5 * N) == 1).all()


def test_the_share_is_that_among_the_two_best_by_hand():
    """Weights 3, 1, 1, 1, 1: the second has a quarter of the two best's, which is enough, though a seventh of all."""
    r, _ = route("st_moe", np.log([[3.0, 1.0, 1.0, 1.0, 1.0]]))
    assert choices(r) == [[0, 1]]
    np.testing.assert_allclose(r.gate_A, [3 / 4, 1 / 4])


def test_training_without_a_generator_is_refused():
    with pytest.raises(ValueError, match="router 'gshard' or 'st_moe' needs rng"):
        route("st_moe", np.zeros((2, 3)), training=True)
