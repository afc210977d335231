"""GShard: the two best experts, the second by chance; how often, with what gates, and what that does to loads and room.

Most tests route tokens that are their own scores, many of each kind, so that frequencies can be counted.
"""

import numpy as np
import pytest

from minimoe.config import ModelConfig
from minimoe.moe import layer
from minimoe.moe.routers import gshard
from minimoe.moe.routing import Tokens
from tests.one_hot import choices, route

N = 4000
# Of each kind of token N.  Weights e^score of two experts; their shares are the gates: 19/20 and 1/20, ...
KINDS = np.log([[19.0, 1.0], [8.0, 2.0], [3.0, 2.0], [1.0, 1.0]])
SECOND = np.array([1 / 20, 1 / 5, 2 / 5, 1 / 2])

# The first token's weights: e^logit = 1, 2, 3 of 6.  The second token's: 4, 1, 3 of 8.
HAND_TE = np.log([[1, 2, 3], [4, 1, 3]])


def route_kinds(kinds, **options):
    """N tokens of each kind, whose scores are given, in training."""
    E = kinds.shape[1]
    config = ModelConfig(d_model=E, n_heads=1, n_experts=E, top_k=2, router="gshard", **options)
    real = Tokens.anonymous(np.ones(N * len(kinds), bool))
    r, _ = gshard.forward(np.repeat(kinds, N, axis=0), {"w_router_DE": np.eye(E)}, config, real, training=True,
                          rng=np.random.default_rng(0))
    return r


def frequencies(r):
    """How often the second expert of each kind of token is used."""
    return np.bincount(r.token_A[r.rank_A == 1] // N, minlength=r.n_tokens // N) / N


def test_evaluation_uses_both_by_hand():
    r, _ = route("gshard", HAND_TE)
    assert choices(r) == [[2, 1], [0, 2]]
    np.testing.assert_allclose(r.gate_A, [3 / 5, 2 / 5, 4 / 7, 3 / 7])


@pytest.mark.parametrize("lead", [1.0, 30.0, 1e4])
def test_evaluation_uses_the_second_however_small_its_gate(lead):
    r, _ = route("gshard", np.array([[0.0, lead, -1.0]] * 2))
    assert choices(r) == [[1, 0]] * 2


def test_in_training_the_second_is_used_with_twice_its_gate():
    """min(1, 2 g) = 0.1, 0.4, 0.8, 1; the last is sure, the others are seen with the spread of so many coin tosses."""
    p = np.array([0.1, 0.4, 0.8, 1.0])
    seen = frequencies(route_kinds(KINDS))
    assert (np.abs(seen - p) <= 4 * np.sqrt(p * (1 - p) / N)).all()


def test_the_chance_is_the_share_among_the_two_not_among_all():
    """Weights 6, 2, 12, 4 of 24: the second has 1/3 of the two best's gates though 1/4 of all, so 2/3 it is."""
    seen = frequencies(route_kinds(np.log([[6.0, 2.0, 12.0, 4.0]]), renormalize=False))
    assert abs(seen[0] - 2 / 3) <= 4 * np.sqrt(2 / 9 / N)


def test_the_first_is_always_used():
    r = route_kinds(KINDS)
    assert r.token_A[r.rank_A == 0].tolist() == list(range(4 * N))


def test_the_first_gate_is_the_same_whether_or_not_the_second_is_used():
    r = route_kinds(KINDS)
    np.testing.assert_allclose(r.gate_A[r.rank_A == 0], np.repeat(1 - SECOND, N), rtol=1e-13)
    np.testing.assert_allclose(r.gate_A[r.rank_A == 1], SECOND[r.token_A[r.rank_A == 1] // N], rtol=1e-13)


def test_raw_gates_are_probabilities_over_all_experts():
    r = route_kinds(np.log([[6.0, 2.0, 12.0, 4.0]]), renormalize=False)
    np.testing.assert_allclose(r.gate_A[r.rank_A == 0], 12 / 24, rtol=1e-13)
    np.testing.assert_allclose(r.gate_A[r.rank_A == 1], 6 / 24, rtol=1e-13)


def test_load_counts_only_what_is_sent():
    r = route_kinds(KINDS)
    sent = np.zeros(2, int)
    for e in r.expert_A:
        sent[e] += 1
    assert len(r.expert_A) < 2 * 4 * N
    assert r.count_E.tolist() == sent.tolist()
    assert r.load_E.sum() == pytest.approx(1)


def test_room_is_for_two_choices_a_token_although_some_are_absent():
    """Scores so sure that no second is used: all 8 tokens want expert 0, which has room for 1.0 * 2 * 8 / 4 = 4."""
    config = ModelConfig(d_model=4, n_heads=1, d_hidden=2, n_experts=4, router="gshard", capacity_factor=1.0)
    weights = {name: np.zeros(w.shape) for name, w in layer.weights(config, 1.0, 1.0).items()}
    weights["w_router_DE"][:, 0] = 200
    (_, r), _ = layer.moe_forward(np.ones((8, 4)), weights, config, Tokens.anonymous(np.ones(8, bool)), training=True,
                                  rng=np.random.default_rng(0))
    assert r.count_E.tolist() == [8, 0, 0, 0]
    assert r.capacity == 4 and r.kept_count_E.tolist() == [4, 0, 0, 0]


def test_the_same_generator_tosses_the_same():
    first, second = route_kinds(KINDS), route_kinds(KINDS)
    np.testing.assert_array_equal(first.token_A, second.token_A)


def test_training_without_a_generator_is_refused():
    with pytest.raises(ValueError, match="router 'gshard' or 'st_moe' needs rng"):
        route("gshard", HAND_TE, training=True)


def test_replay_sends_what_was_sent_although_the_scores_have_turned():
    """The token went to expert 0 alone.  Its weights are now 2, 5, 1: 0 again, its gate a share of the two best."""
    first, _ = route("gshard", np.log([[1.0, 1e-9, 1e-12]]), training=True, seed=0)
    again, _ = route("gshard", np.log([[2.0, 5.0, 1.0]]), training=True, seed=0, replay=first)
    assert choices(again) == choices(first) == [[0]]
    np.testing.assert_allclose(again.gate_A, 2 / 7)
