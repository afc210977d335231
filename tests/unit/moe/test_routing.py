"""The Tokens and the Routing record: views by hand, and against loops on any assignments at all."""

from dataclasses import FrozenInstanceError, fields, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minimoe import gradcheck
from minimoe.moe import routing
from minimoe.moe.routing import Tokens
from tests import cases

TOKENS_BS = np.array([[5, 6, 7], [8, 9, 5]])
MASK_BS = np.array([[True, True, False], [True, True, True]])

# Four tokens, the third is padding; three experts with room for two each; two experts per token.
#     expert 0: token 0, token 1      expert 1: token 3      expert 2: token 0, token 1, and no room for token 3
EXAMPLE = routing.Routing(
    token_A=np.array([0, 0, 1, 1, 3, 3]), expert_A=np.array([2, 0, 2, 0, 2, 1]), rank_A=np.array([0, 1, 0, 1, 0, 1]),
    gate_A=np.array([0.7, 0.3, 0.6, 0.4, 0.9, 0.1]), slot_A=np.array([0, 0, 1, 1, 2, 0]),
    kept_A=np.array([True, True, True, True, False, True]), logit_TE=np.zeros((4, 3)), prob_TE=np.full((4, 3), 1 / 3),
    tokens=Tokens.anonymous(np.array([True, True, False, True])), capacity=2)


def test_a_batch_is_laid_out_sequence_by_sequence_by_hand():
    batch = Tokens.of_batch(TOKENS_BS, MASK_BS)
    assert batch.id_T.tolist() == [5, 6, 7, 8, 9, 5]
    assert batch.sequence_T.tolist() == [0, 0, 0, 1, 1, 1]
    assert batch.position_T.tolist() == [0, 1, 2, 0, 1, 2]
    assert batch.mask_T.tolist() == [True, True, False, True, True, True]
    assert batch.weight_T.tolist() == [0.2, 0.2, 0, 0.2, 0.2, 0.2]
    assert Tokens.of_batch(TOKENS_BS, start=4).position_T.tolist() == [4, 5, 6, 4, 5, 6]
    assert Tokens.of_batch(TOKENS_BS).mask_T.tolist() == [True] * 6
    assert Tokens.of_batch(TOKENS_BS, np.zeros((2, 3), bool)).weight_T.tolist() == [0] * 6
    assert Tokens.of_batch(TOKENS_BS[:1, :1]).weight_T.tolist() == [1]
    assert [Tokens.of_batch(ids_BS).n_sequences for ids_BS in (TOKENS_BS, TOKENS_BS.T[:, :1])] == [2, 3]


def test_vectors_without_names_are_one_sequence():
    vectors = Tokens.anonymous(np.array([True, False, True]))
    assert vectors.id_T is None and vectors.n_sequences == 1
    assert (vectors.sequence_T.tolist(), vectors.position_T.tolist()) == ([0, 0, 0], [0, 1, 2])
    assert vectors.mask_T.tolist() == [True, False, True]


def test_the_views_by_hand():
    assert (EXAMPLE.n_tokens, EXAMPLE.n_experts, EXAMPLE.n_ranks) == (4, 3, 2)
    assert EXAMPLE.count_E.tolist() == [2, 1, 3]
    assert EXAMPLE.kept_count_E.tolist() == [2, 1, 2]
    assert EXAMPLE.load_E.tolist() == [2 / 6, 1 / 6, 3 / 6]  # before capacity
    assert EXAMPLE.weight_T.tolist() == [1 / 3, 1 / 3, 0, 1 / 3]
    # rows    0: assignment 1 (expert 0, slot 0)    1: 3 (0, 1)    2: 5 (1, 0)    3: 0 (2, 0)    4: 2 (2, 1)
    assert EXAMPLE.kept_N.tolist() == [1, 3, 5, 0, 2]
    # token 2 is padding and token 3's first choice was dropped: both read row 5, one past the last
    assert EXAMPLE.row_TK.tolist() == [[3, 0], [4, 1], [5, 5], [5, 2]]


def test_one_hot_by_hand():
    dispatch_TEC, combine_TEC = EXAMPLE.one_hot()
    kept = {(0, 2, 0): 0.7, (0, 0, 0): 0.3, (1, 2, 1): 0.6, (1, 0, 1): 0.4, (3, 1, 0): 0.1}
    for where in np.ndindex(4, 3, 2):
        assert (dispatch_TEC[where], combine_TEC[where]) == (where in kept, kept.get(where, 0))


@pytest.mark.parametrize(("capacity", "kept_A", "n_slots"), [
    (2, [True, True, True, True, False, True], 2),
    (4, [True] * 6, 4),  # more room than the busiest needs
    (None, [True] * 6, 3),  # expert 2 has three tokens
])
def test_slots_of_an_expert_by_hand(capacity, kept_A, n_slots):
    r = replace(EXAMPLE, capacity=capacity, kept_A=np.array(kept_A))
    assert r.n_slots == n_slots and type(r.n_slots) is int
    assert r.one_hot()[0].shape == (4, 3, n_slots)


@cases.FEW
@given(T=st.integers(1, 9), E=st.integers(1, 6), seed=st.integers(0, 999),
       limit=st.none() | st.sampled_from([0.3, 0.7, 1.2]))
def test_views_equal_loops_over_any_assignments(T, E, seed, limit):
    r = cases.random_routing(T, E, seed, limit)
    kept = [a for a in range(len(r.token_A)) if r.kept_A[a]]
    rows = sorted(kept, key=lambda a: (r.expert_A[a], r.slot_A[a]))
    row_TK, one_hot_TEC = np.full((T, r.n_ranks), len(rows)), np.zeros((2, *r.one_hot()[0].shape))
    for a in rows:
        row_TK[r.token_A[a], r.rank_A[a]] = rows.index(a)
        one_hot_TEC[:, r.token_A[a], r.expert_A[a], r.slot_A[a]] = 1, r.gate_A[a]
    assert r.kept_N.tolist() == rows
    np.testing.assert_array_equal(r.row_TK, row_TK)
    np.testing.assert_array_equal(r.one_hot(), one_hot_TEC)
    assert one_hot_TEC[0].sum(axis=0).max() <= 1  # a slot holds at most one token
    assert r.count_E.tolist() == [sum(r.expert_A == e) for e in range(E)]
    assert r.kept_count_E.tolist() == [sum(r.expert_A[kept] == e) for e in range(E)]
    assert np.isclose(r.load_E.sum(), len(r.token_A) > 0)


def test_one_hot_gates_pass_their_gradient_and_dropped_gates_none():
    weight_TEC = np.random.default_rng(0).normal(size=(4, 3, 2))
    dgate_A = [weight_TEC[where] for where in ((0, 2, 0), (0, 0, 0), (1, 2, 1), (1, 0, 1))] + [0, weight_TEC[3, 1, 0]]

    def objective(arrays):
        return (weight_TEC * replace(EXAMPLE, **arrays).one_hot()[1]).sum()

    report = gradcheck.compare("combine tensor", objective, {"gate_A": EXAMPLE.gate_A}, {"gate_A": np.array(dgate_A)})
    assert report.ok, report


def test_a_router_hands_over_every_assignment_kept():
    columns = [getattr(EXAMPLE, name) for name in ("token_A", "expert_A", "rank_A", "gate_A")]
    result = routing.dropless_routing(*columns, EXAMPLE.logit_TE, EXAMPLE.prob_TE, EXAMPLE.tokens)
    assert (result.kept_A.tolist(), result.slot_A.tolist(), result.capacity) == ([True] * 6, [0] * 6, None)
    assert [getattr(result, f.name) for f in fields(result)[:4]] == columns
    assert (result.logit_TE, result.prob_TE, result.tokens) == (EXAMPLE.logit_TE, EXAMPLE.prob_TE, EXAMPLE.tokens)


def test_a_router_without_scores_has_even_gates_and_probabilities():
    tokens = Tokens.anonymous(np.array([True, True, False]))
    r = routing.scoreless_routing(np.array([[3, 1], [0, 1], [2, 0]]), tokens, 4, np.float32)
    assert cases.decisions(r) == [(0, 3, 0), (0, 1, 1), (1, 0, 0), (1, 1, 1)]
    assert r.gate_A.tolist() == [0.5] * 4
    assert r.prob_TE.tolist() == [[0, 0.5, 0, 0.5], [0.5, 0.5, 0, 0], [0.5, 0, 0.5, 0]]
    assert r.logit_TE.tolist() == [[0] * 4] * 3


def test_a_batch_of_padding_has_views_of_nothing():
    r = cases.routed(np.full((3, 2), 0.5), mask=[False] * 3)
    assert r.count_E.tolist() == r.kept_count_E.tolist() == r.load_E.tolist() == [0, 0]
    assert r.n_slots == 0 and replace(r, capacity=1).n_slots == 1
    assert r.weight_T.tolist() == [0, 0, 0]
    assert r.row_TK.tolist() == [[0], [0], [0]]
    assert not np.any(r.one_hot()) and r.one_hot()[0].shape == (3, 2, 1)


def test_views_follow_the_type_of_the_router_but_weights_of_tokens_stay_real():
    single = replace(EXAMPLE, gate_A=EXAMPLE.gate_A.astype(np.float32), prob_TE=EXAMPLE.prob_TE.astype(np.float32))
    assert {array.dtype for array in (*single.one_hot(), single.weight_T)} == {np.dtype(np.float32)}
    assert replace(EXAMPLE, prob_TE=EXAMPLE.prob_TE.astype(complex)).weight_T.dtype == np.float64


def test_a_zero_gradient_has_the_shapes_of_the_routing():
    none = routing.zero_gradient(EXAMPLE)
    assert none.dgate_A.tolist() == [0] * 6
    assert all(array.tolist() == [[0] * 3] * 4 for array in none[1:])


def test_a_generator_is_required():
    rng = np.random.default_rng(0)
    assert routing.require_rng(rng, "router 'r'") is rng
    with pytest.raises(ValueError, match=r"^router 'r' needs rng, a numpy.random.Generator, in training"):
        routing.require_rng(None, "router 'r'")


def test_a_routing_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        EXAMPLE.capacity = 3
