"""The Routing record: its views by hand, against loops, and on any assignments at all."""

from dataclasses import FrozenInstanceError, fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minimoe import gradcheck
from minimoe.moe import gates, routing
from minimoe.moe.routing import Tokens

PLAIN = settings(derandomize=True, deadline=None)

# Four tokens, the third is padding; three experts with room for two each; two experts a token.
#     expert 0: token 0, token 1      expert 1: token 3      expert 2: token 0, token 1, and no room for token 3
EXAMPLE = routing.Routing(
    token_A=np.array([0, 0, 1, 1, 3, 3]),
    expert_A=np.array([2, 0, 2, 0, 2, 1]),
    rank_A=np.array([0, 1, 0, 1, 0, 1]),
    gate_A=np.array([0.7, 0.3, 0.6, 0.4, 0.9, 0.1]),
    slot_A=np.array([0, 0, 1, 1, 2, 0]),
    kept_A=np.array([True, True, True, True, False, True]),
    logit_TE=np.zeros((4, 3)),
    prob_TE=np.full((4, 3), 1 / 3),
    tokens=Tokens.anonymous(np.array([True, True, False, True])),
    capacity=2,
)


@st.composite
def routings(draw):
    """Any valid record: tokens with no, some or all experts, assignments in any order, any queue, any capacity."""
    T, E = draw(st.integers(1, 9)), draw(st.integers(1, 6))
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    mask_T = rng.random(T) < 0.8
    chosen_TE = (rng.random((T, E)) < 0.6) & mask_T[:, None]
    token_A, expert_A = np.nonzero(chosen_TE)
    rank_A = (chosen_TE.cumsum(axis=1) - 1)[chosen_TE]
    shuffled = rng.permutation(len(token_A))
    slot_A = np.zeros(len(token_A), int)
    for e in range(E):
        slot_A[expert_A == e] = rng.permutation((expert_A == e).sum())
    limit = draw(st.none() | st.integers(1, T))
    kept_A = slot_A < (T if limit is None else limit)
    columns = [column[shuffled] for column in (token_A, expert_A, rank_A, rng.random(len(token_A)), slot_A, kept_A)]
    return routing.Routing(*columns, rng.normal(size=(T, E)), rng.dirichlet(np.ones(E), T), Tokens.anonymous(mask_T),
                           limit)


def test_sizes_by_hand():
    assert (EXAMPLE.n_tokens, EXAMPLE.n_experts, EXAMPLE.n_ranks) == (4, 3, 2)


def test_counts_by_hand():
    assert EXAMPLE.count_E.tolist() == [2, 1, 3]
    assert EXAMPLE.kept_count_E.tolist() == [2, 1, 2]


@pytest.mark.parametrize("capacity, kept_A, n_slots", [
    (2, [True, True, True, True, False, True], 2),
    (4, [True] * 6, 4),  # more room than the busiest needs
    (1, [True, True, False, False, False, True], 1),
    (None, [True] * 6, 3),  # expert 2 has three tokens
])
def test_slots_of_an_expert_by_hand(capacity, kept_A, n_slots):
    result = replace(EXAMPLE, capacity=capacity, kept_A=np.array(kept_A)).n_slots
    assert result == n_slots and type(result) is int


@PLAIN
@given(routings())
def test_the_slots_hold_all_that_is_kept_and_without_a_limit_no_slot_is_empty_in_all(r):
    queues = [0] * r.n_experts
    for expert, kept in zip(r.expert_A, r.kept_A, strict=True):
        queues[expert] += kept
    assert r.n_slots >= max(queues)
    assert r.n_slots == (max(queues) if r.capacity is None else r.capacity)


def test_load_is_counted_before_capacity_by_hand():
    assert EXAMPLE.load_E.tolist() == [2 / 6, 1 / 6, 3 / 6]


def test_real_tokens_weigh_the_same_and_padding_nothing():
    assert EXAMPLE.weight_T.tolist() == [1 / 3, 1 / 3, 0, 1 / 3]


def test_rows_are_sorted_by_expert_and_slot_by_hand():
    # rows    0: assignment 1 (expert 0, slot 0)    1: 3 (0, 1)    2: 5 (1, 0)    3: 0 (2, 0)    4: 2 (2, 1)
    assert EXAMPLE.kept_N.tolist() == [1, 3, 5, 0, 2]


def test_tokens_find_their_rows_by_hand():
    # token 2 is padding and token 3's first choice was dropped: both read row 5, one past the last
    assert EXAMPLE.row_TK.tolist() == [[3, 0], [4, 1], [5, 5], [5, 2]]


def test_one_hot_by_hand():
    dispatch_TEC, combine_TEC = EXAMPLE.one_hot()
    kept = {(0, 2, 0): 0.7, (0, 0, 0): 0.3, (1, 2, 1): 0.6, (1, 0, 1): 0.4, (3, 1, 0): 0.1}
    for where in np.ndindex(4, 3, 2):
        assert (dispatch_TEC[where], combine_TEC[where]) == (where in kept, kept.get(where, 0))


@PLAIN
@given(routings())
def test_one_hot_has_the_slots_of_the_capacity_or_of_the_longest_queue(r):
    slots = max(1, *r.count_E) if r.capacity is None else r.capacity
    assert r.one_hot()[0].shape == r.one_hot()[1].shape == (r.n_tokens, r.n_experts, slots)


def test_by_token_by_hand():
    expert_TK, mask_T = np.array([[2, 0], [1, 2], [0, 1]]), np.array([True, False, True])
    token_A, expert_A, rank_A = gates.assignments_by_token(expert_TK, mask_T)
    assert token_A.tolist() == [0, 0, 2, 2]
    assert expert_A.tolist() == [2, 0, 0, 1]
    assert rank_A.tolist() == [0, 1, 0, 1]


@PLAIN
@given(st.integers(1, 9), st.integers(1, 6), st.integers(0, 999))
def test_by_token_equals_two_loops(T, K, seed):
    rng = np.random.default_rng(seed)
    expert_TK, mask_T = rng.integers(0, 9, (T, K)), rng.random(T) < 0.7
    expected = [(t, expert_TK[t, k], k) for t in range(T) if mask_T[t] for k in range(K)]
    assert list(zip(*gates.assignments_by_token(expert_TK, mask_T), strict=True)) == expected


def test_choices_that_are_not_sent_leave_a_gap_in_the_ranks():
    expert_TK = np.array([[2, 0, 1], [1, 2, 0]])
    token_A, expert_A, rank_A = gates.assignments_by_token(expert_TK, np.array([[True, False, True], [False, False, True]]))
    assert token_A.tolist() == [0, 0, 1]
    assert expert_A.tolist() == [2, 1, 0]
    assert rank_A.tolist() == [0, 2, 2]


def test_the_best_by_hand():
    score_TE = np.array([[0.1, 0.7, 0.2, 0.7], [-5.0, -9.0, -1.0, -1.0]])
    assert gates.top_k_experts(score_TE, 1).tolist() == [[1], [2]]  # equal scores: the lowest number
    assert gates.top_k_experts(score_TE, 3).tolist() == [[1, 3, 2], [2, 3, 0]]


@pytest.mark.parametrize("score_E, expected", [
    ([0, -np.inf, -np.inf], [0, 1]), ([-np.inf, -np.inf, 0], [2, 0]), ([-np.inf] * 3, [0, 1]),
    ([np.inf, 1, np.inf], [0, 2]),
])
def test_a_token_has_different_experts_even_if_too_few_have_a_score(score_E, expected):
    assert gates.top_k_experts(np.array([score_E]), 2).tolist() == [expected]


@pytest.mark.parametrize("score_E", [[np.nan, 0, 1], [np.nan] * 3, [np.nan, -np.inf, np.nan]])
def test_experts_are_different_even_if_scores_are_no_numbers(score_E):
    assert len(set(gates.top_k_experts(np.array([score_E]), 3)[0].tolist())) == 3


def test_the_best_are_those_of_a_replay_where_it_has_any():
    # in the example token 0 has experts 2 and 0, token 1 the same, token 2 none, token 3 experts 2 and 1
    score_TE = np.array([[3.0, 2.0, 1.0]] * 4)
    assert gates.top_k_experts(score_TE, 2, EXAMPLE).tolist() == [[2, 0], [2, 0], [0, 1], [2, 1]]


def test_what_a_replay_leaves_open_goes_to_the_best_of_the_others():
    # the replay's one assignment is the token's first choice, expert 2; the second is the best of experts 0 and 1
    one = replace(EXAMPLE, token_A=np.array([0]), expert_A=np.array([2]), rank_A=np.array([0]))
    assert gates.top_k_experts(np.array([[3.0, 2.0, 1.0]]), 2, one).tolist() == [[2, 0]]
    assert gates.top_k_experts(np.array([[1.0, 2.0, 3.0]]), 2, one).tolist() == [[2, 1]]


@pytest.mark.parametrize("sent", [np.array([True, False, True]), np.array([[True], [False], [True]])])
def test_the_assignments_are_arrays_of_their_own(sent):
    expert_TK = np.array([[2, 0], [1, 2], [0, 1]])
    columns = gates.assignments_by_token(expert_TK, sent)
    assert [column.tolist() for column in columns] == [[0, 0, 2, 2], [2, 0, 0, 1], [0, 1, 0, 1]]
    assert not any(np.shares_memory(column, array) for column in columns for array in (expert_TK, sent))


def test_a_router_without_scores_has_even_gates_and_probabilities():
    real = Tokens.anonymous(np.array([True, True, False]))
    r = routing.scoreless_routing(np.array([[3, 1], [0, 1], [2, 0]]), real, 4, np.float32)
    assert (r.token_A.tolist(), r.expert_A.tolist(), r.rank_A.tolist()) == ([0, 0, 1, 1], [3, 1, 0, 1], [0, 1, 0, 1])
    assert r.gate_A.tolist() == [0.5] * 4
    assert r.prob_TE.tolist() == [[0, 0.5, 0, 0.5], [0.5, 0.5, 0, 0], [0.5, 0, 0.5, 0]]
    assert r.logit_TE.tolist() == [[0] * 4] * 3
    assert {array.dtype for array in (r.gate_A, r.prob_TE, r.logit_TE)} == {np.dtype(np.float32)}


def test_nobody_pulls_at_a_routing_without_gradient():
    none = routing.zero_gradient(EXAMPLE)
    assert none.dgate_A.tolist() == [0] * 6
    assert all(array.tolist() == [[0] * 3] * 4 for array in none[1:])


def test_a_router_that_needs_a_generator_says_so():
    rng = np.random.default_rng(0)
    assert routing.require_rng(rng, "router 'r'") is rng
    with pytest.raises(ValueError, match=r"router 'r' needs rng, a numpy.random.Generator, in training"):
        routing.require_rng(None, "router 'r'")


def test_a_router_hands_over_every_assignment_kept():
    columns = [getattr(EXAMPLE, name) for name in ("token_A", "expert_A", "rank_A", "gate_A")]
    result = routing.dropless_routing(*columns, EXAMPLE.logit_TE, EXAMPLE.prob_TE, EXAMPLE.tokens)
    assert result.kept_A.tolist() == [True] * 6
    assert result.slot_A.tolist() == [0] * 6
    assert result.capacity is None
    assert [getattr(result, f.name) for f in fields(result)[:4]] == columns
    assert (result.logit_TE, result.prob_TE, result.tokens) == (EXAMPLE.logit_TE, EXAMPLE.prob_TE, EXAMPLE.tokens)


@PLAIN
@given(routings())
def test_counts_equal_a_loop(r):
    count_E, kept_count_E = [0] * r.n_experts, [0] * r.n_experts
    for expert, kept in zip(r.expert_A, r.kept_A, strict=True):
        count_E[expert] += 1
        kept_count_E[expert] += kept
    assert r.count_E.tolist() == count_E
    assert r.kept_count_E.tolist() == kept_count_E


@PLAIN
@given(routings())
def test_shares_sum_to_one_or_are_all_zero(r):
    assert np.isclose(r.load_E.sum(), len(r.token_A) > 0)
    assert np.isclose(r.weight_T.sum(), r.mask_T.any())


@PLAIN
@given(routings())
def test_rows_are_sorted_by_expert_and_slot(r):
    kept = [a for a in range(len(r.token_A)) if r.kept_A[a]]
    assert r.kept_N.tolist() == sorted(kept, key=lambda a: (r.expert_A[a], r.slot_A[a]))


@PLAIN
@given(routings())
def test_tokens_find_their_rows(r):
    rows = r.kept_N.tolist()
    expected_TK = np.full((r.n_tokens, r.n_ranks), len(rows))
    for a in rows:
        expected_TK[r.token_A[a], r.rank_A[a]] = rows.index(a)
    np.testing.assert_array_equal(r.row_TK, expected_TK)


@PLAIN
@given(routings())
def test_one_hot_equals_a_loop(r):
    dispatch_TEC, combine_TEC = r.one_hot()
    expected_TEC = np.zeros((2, *dispatch_TEC.shape))
    for a in np.flatnonzero(r.kept_A):
        expected_TEC[:, r.token_A[a], r.expert_A[a], r.slot_A[a]] = 1, r.gate_A[a]
    np.testing.assert_array_equal([dispatch_TEC, combine_TEC], expected_TEC)


@PLAIN
@given(routings())
def test_a_slot_holds_at_most_one_token(r):
    assert r.one_hot()[0].sum(axis=0).max() <= 1


def test_one_hot_gates_pass_their_gradient_and_dropped_gates_none():
    weight_TEC = np.random.default_rng(0).normal(size=(4, 3, 2))
    dgate_A = np.array([weight_TEC[0, 2, 0], weight_TEC[0, 0, 0], weight_TEC[1, 2, 1], weight_TEC[1, 0, 1], 0,
                        weight_TEC[3, 1, 0]])

    def objective(arrays):
        return (weight_TEC * replace(EXAMPLE, **arrays).one_hot()[1]).sum()

    report = gradcheck.compare("combine tensor", objective, {"gate_A": EXAMPLE.gate_A}, {"gate_A": dgate_A})
    assert report.ok, report


def test_a_batch_of_padding_has_views_of_nothing():
    nothing = np.zeros(0, int)
    empty = routing.dropless_routing(nothing, nothing, nothing, np.zeros(0), np.zeros((3, 2)), np.full((3, 2), 0.5),
                                  Tokens.anonymous(np.zeros(3, bool)))
    assert empty.count_E.tolist() == empty.kept_count_E.tolist() == empty.load_E.tolist() == [0, 0]
    assert empty.n_slots == 0 and replace(empty, capacity=1).n_slots == 1
    assert empty.weight_T.tolist() == [0, 0, 0]
    assert empty.row_TK.tolist() == [[0], [0], [0]]
    assert not np.any(empty.one_hot())


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_follows_the_router(dtype):
    r = replace(EXAMPLE, prob_TE=EXAMPLE.prob_TE.astype(dtype), gate_A=EXAMPLE.gate_A.astype(dtype))
    assert r.weight_T.dtype == r.one_hot()[0].dtype == r.one_hot()[1].dtype == dtype


def test_weights_of_tokens_stay_real_when_probabilities_are_complex():
    assert replace(EXAMPLE, prob_TE=EXAMPLE.prob_TE.astype(complex)).weight_T.dtype == np.float64


def test_a_routing_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        EXAMPLE.capacity = 3
