"""GShard: the two best experts, the second at random; how often, with what gates, and the effect on capacity."""

import numpy as np
import pytest

from minimoe.config import ModelConfig
from minimoe.moe import layer
from minimoe.moe.routers import gshard
from minimoe.moe.routing import Tokens
from tests import cases

N = 4000
# Kinds of tokens: weights e^score of two experts, and the share of the second.
KINDS, SECOND = np.log([[19.0, 1.0], [8.0, 2.0], [3.0, 2.0], [1.0, 1.0]]), np.array([1 / 20, 1 / 5, 2 / 5, 1 / 2])


def route_kinds(kinds, **options):
    """N tokens of each kind, in training; tokens equal their scores, so that frequencies can be counted."""
    E = kinds.shape[1]
    config = ModelConfig(d_model=E, n_heads=1, n_experts=E, top_k=2, router="gshard", **options)
    tokens = Tokens.anonymous(np.ones(N * len(kinds), bool))
    return gshard.forward(np.repeat(kinds, N, axis=0), {"w_router_DE": np.eye(E)}, config, tokens, training=True,
                          rng=np.random.default_rng(0))[0]


def frequencies(r):
    """How often the second expert of each kind of token is used."""
    return np.bincount(r.token_A[r.rank_A == 1] // N, minlength=r.n_tokens // N) / N


def test_evaluation_uses_both_by_hand_however_small_the_second_gate():
    r, _ = cases.route("gshard", np.log([[1.0, 2.0, 3.0], [4.0, 1.0, 3.0]]))
    assert cases.choices(r) == [[2, 1], [0, 2]]
    np.testing.assert_allclose(r.gate_A, [3 / 5, 2 / 5, 4 / 7, 3 / 7])
    assert cases.choices(cases.route("gshard", np.array([[0.0, 1e4, -1.0]]))[0]) == [[1, 0]]


def test_in_training_the_second_is_used_with_twice_its_gate_and_the_first_always_with_the_same_gate():
    """min(1, 2 g) = 0.1, 0.4, 0.8, 1; the last is certain, the others have the spread of that many coin tosses."""
    p, r = np.array([0.1, 0.4, 0.8, 1.0]), route_kinds(KINDS)
    assert (np.abs(frequencies(r) - p) <= 4 * np.sqrt(p * (1 - p) / N)).all()
    first = r.rank_A == 0
    assert r.token_A[first].tolist() == list(range(4 * N))
    np.testing.assert_allclose(r.gate_A[first], np.repeat(1 - SECOND, N), rtol=1e-13)
    np.testing.assert_allclose(r.gate_A[~first], SECOND[r.token_A[~first] // N], rtol=1e-13)


def test_the_chance_is_the_share_among_the_two_and_raw_gates_are_shares_of_all():
    """Weights 6, 2, 12, 4 of 24: the second has 1/3 of the two best's gates though 1/4 of all, so 2/3 it is."""
    r = route_kinds(np.log([[6.0, 2.0, 12.0, 4.0]]), renormalize=False)
    assert abs(frequencies(r)[0] - 2 / 3) <= 4 * np.sqrt(2 / 9 / N)
    np.testing.assert_allclose(r.gate_A, np.where(r.rank_A == 0, 12 / 24, 6 / 24), rtol=1e-13)


def test_room_is_for_two_choices_per_token_although_some_are_absent():
    """Scores so large that no second is used: all 8 tokens want expert 0, which has room for 1.0 * 2 * 8 / 4 = 4."""
    config = ModelConfig(d_model=4, n_heads=1, d_hidden=2, n_experts=4, router="gshard", capacity_factor=1.0)
    weights = {name: np.zeros(w.shape) for name, w in layer.weights(config, 1.0, 1.0).items()}
    weights["w_router_DE"][:, 0] = 200
    (_, r), _ = layer.moe_forward(np.ones((8, 4)), weights, config, Tokens.anonymous(np.ones(8, bool)), training=True,
                                  rng=np.random.default_rng(0))
    assert (r.count_E.tolist(), r.capacity, r.kept_count_E.tolist()) == ([8, 0, 0, 0], 4, [4, 0, 0, 0])


def test_replay_sends_what_was_sent_although_the_scores_have_turned():
    """The token went to expert 0 alone.  Its weights are now 2, 5, 1: 0 again, its gate a share of the two best."""
    first, _ = cases.route("gshard", np.log([[1.0, 1e-9, 1e-12]]), training=True, rng=np.random.default_rng(0))
    again, _ = cases.route("gshard", np.log([[2.0, 5.0, 1.0]]), True, np.random.default_rng(0), replay=first)
    assert cases.choices(again) == cases.choices(first) == [[0]]
    np.testing.assert_allclose(again.gate_A, 2 / 7)


@pytest.mark.parametrize("name", ["gshard", "st_moe"])
def test_training_without_a_generator_is_refused(name):
    with pytest.raises(ValueError, match="router 'gshard' or 'st_moe' needs rng"):
        cases.route(name, np.zeros((2, 3)), training=True)
