"""Choices and their gates: the K best, ties, replays; raw and renormalized gates, and both of their Jacobians."""

from dataclasses import replace

import numpy as np
import pytest

from minimoe.moe import gates
from tests import cases

SCORE_TE = np.array([[1.0, 2.0, 5.0], [4.0, 3.0, 1.0]])
EXPERT_TK = np.array([[2, 0], [0, 1]])
SENT_TK = np.array([[True, False], [True, True]])
INF, NAN, LOWEST = np.inf, np.nan, np.finfo(float).min

each_gate = pytest.mark.parametrize("renormalize", [True, False])


def random_case():
    """Scores of 9 tokens for 5 experts, 3 different experts of each token, and two thirds of them sent."""
    rng = np.random.default_rng(0)
    score_TE = rng.uniform(0.1, 1, (9, 5))
    return score_TE, np.argsort(rng.random((9, 5)), axis=1)[:, :3], rng.random((9, 3)) < 2 / 3


@pytest.mark.parametrize(("score_E", "best"), [
    ([0.1, 0.7, 0.2, 0.7], [1, 3, 2]),  # equal scores: the lowest number
    ([-5.0, -9, -1, -1], [2, 3, 0]),  # negative ones are ranked as others, not below a buffer of zeros
    ([-800.0, -900, -850, -999], [0, 2, 1]), ([-1e30] * 4, [0, 1, 2]), ([-1e4, 1e4, -1e4, 1e4], [1, 3, 0]),
    ([-INF, -INF, 0, -INF], [2, 0, 1]), ([-INF] * 4, [0, 1, 2]), ([INF, 1, INF, 2], [0, 2, 3]),
    ([-INF, LOWEST, 0, -INF], [2, 0, 1]),
    (1 + 1e-30j * np.arange(4), [0, 1, 2]),  # a complex step decides nothing
])
def test_the_best_by_hand(score_E, best):
    assert gates.top_k_experts(np.array([score_E]), 3).tolist() == [best]
    assert gates.top_k_experts(np.array([score_E]), 1).tolist() == [best[:1]]


@pytest.mark.parametrize("score_E", [[NAN, 0, 1], [NAN] * 3, [NAN, -INF, NAN]])
def test_the_experts_of_a_token_are_distinct_even_if_scores_are_not_numbers(score_E):
    assert sorted(gates.top_k_experts(np.array([score_E]), 3)[0].tolist()) == [0, 1, 2]


def test_the_best_equal_a_stable_sort_of_many_equal_scores():
    score_TE = np.random.default_rng(0).integers(-1, 2, (6, 100)).astype(float)
    expected_TK = [sorted(range(100), key=lambda e, row_E=row_E: -row_E[e])[:60] for row_E in score_TE]
    np.testing.assert_array_equal(gates.top_k_experts(score_TE, 60), expected_TK)


def test_a_replay_decides_and_what_it_leaves_open_goes_to_the_best_of_the_others():
    replay = cases.routed(np.zeros((3, 3)), expert_TK=[[2, 0], [1, 2], [0, 1]], mask=[True, False, True])
    assert gates.top_k_experts(np.array([[3.0, 2.0, 1.0]] * 3), 2, replay).tolist() == [[2, 0], [0, 1], [0, 1]]
    one = replace(replay, token_A=np.array([0]), expert_A=np.array([2]), rank_A=np.array([0]))
    assert gates.top_k_experts(np.array([[3.0, 2.0, 1.0]]), 2, one).tolist() == [[2, 0]]
    assert gates.top_k_experts(np.array([[1.0, 2.0, 3.0]]), 2, one).tolist() == [[2, 1]]


@pytest.mark.parametrize(("sent", "expected"), [
    (np.array([True, False, True]), [[0, 0, 2, 2], [2, 0, 0, 1], [0, 1, 0, 1]]),  # a mask: all choices of real tokens
    (np.array([[True], [False], [True]]), [[0, 0, 2, 2], [2, 0, 0, 1], [0, 1, 0, 1]]),
    (np.array([[True, False], [False, True], [True, True]]), [[0, 1, 2, 2], [2, 2, 0, 1], [0, 1, 0, 1]]),
])
def test_assignments_stand_token_by_token_in_arrays_of_their_own(sent, expected):
    expert_TK = np.array([[2, 0], [1, 2], [0, 1]])
    columns = gates.assignments_by_token(expert_TK, sent)
    assert [column.tolist() for column in columns] == expected
    assert not any(np.shares_memory(column, array) for column in columns for array in (expert_TK, sent))


@pytest.mark.parametrize(("renormalize", "expected"), [(False, [5, 4, 3]), (True, [5 / 6, 4 / 7, 3 / 7])])
def test_a_gate_is_the_score_or_its_share_of_all_choices_sent_or_not(renormalize, expected):
    columns, _ = gates.gates_forward(SCORE_TE, EXPERT_TK, SENT_TK, renormalize)
    assert [column.tolist() for column in columns[:3]] == [[0, 1, 1], [2, 0, 1], [0, 0, 1]]
    np.testing.assert_allclose(columns[3], expected, rtol=1e-15)


@each_gate
def test_gates_equal_a_loop_over_tokens_and_ranks(renormalize):
    score_TE, expert_TK, sent_TK = random_case()
    columns, _ = gates.gates_forward(score_TE, expert_TK, sent_TK, renormalize)
    expected = []
    for t in range(9):
        total = sum(score_TE[t, e] for e in expert_TK[t]) if renormalize else 1
        expected += [(t, e, k, score_TE[t, e] / total) for k, e in enumerate(expert_TK[t]) if sent_TK[t, k]]
    np.testing.assert_allclose(np.transpose(columns), expected, rtol=1e-14)


def test_the_gradients_of_both_gates_by_hand():
    """Renormalized, g = a / (a + b) with a = 5, b = 1: dg/da = b / (a + b)^2 = 1/36, dg/db = -a / (a + b)^2 = -5/36."""
    _, cache = gates.gates_forward(SCORE_TE, EXPERT_TK, SENT_TK, renormalize=True)
    dscore_TE = gates.gates_backward(np.array([1.0, 0.0, 0.0]), cache)
    np.testing.assert_allclose(dscore_TE, [[-5 / 36, 0, 1 / 36], [0, 0, 0]], rtol=1e-14)
    _, cache = gates.gates_forward(SCORE_TE, EXPERT_TK, SENT_TK, renormalize=False)
    assert gates.gates_backward(np.array([1.0, 10.0, 100.0]), cache).tolist() == [[0, 0, 1], [10, 100, 0]]


@each_gate
def test_gradients_and_experts_that_were_not_chosen_get_exactly_nothing(renormalize):
    score_TE, expert_TK, sent_TK = random_case()

    def forward(score_TE):
        (*_, gate_A), cache = gates.gates_forward(score_TE, expert_TK, sent_TK, renormalize)
        return gate_A, cache

    cases.assert_gradient(forward, gates.gates_backward, score_TE=score_TE)
    dscore_TE = gates.gates_backward(np.ones(sent_TK.sum()), forward(score_TE)[1])
    np.put_along_axis(dscore_TE, expert_TK, 0, axis=1)
    assert not dscore_TE.any()


def test_shares_of_scores_are_the_renormalised_gates_also_where_the_scores_vanish():
    """e^-2001 and e^-2000 are both 0, and their shares are 1 / (1 + e) and e / (1 + e)."""
    score_TE, expert_TK, sent_TK = random_case()
    *columns, gate_A = gates.shares_forward(np.log(score_TE), expert_TK, sent_TK)[0]
    *expected, expected_A = gates.gates_forward(score_TE, expert_TK, sent_TK, renormalize=True)[0]
    assert all(np.array_equal(mine, theirs) for mine, theirs in zip(columns, expected, strict=True))
    np.testing.assert_allclose(gate_A, expected_A, rtol=1e-14)
    (*_, gate_A), _ = gates.shares_forward(np.array([[0.0, -2001, -2000]]), np.array([[1, 2]]), np.array([True]))
    np.testing.assert_allclose(gate_A, [1 / (1 + np.e), np.e / (1 + np.e)], rtol=1e-14)


@pytest.mark.parametrize("level", [0, -2000])
def test_gradients_of_shares_and_experts_that_were_not_chosen_get_exactly_nothing(level):
    score_TE, expert_TK, sent_TK = random_case()

    def forward(log_TE):
        (*_, gate_A), cache = gates.shares_forward(log_TE, expert_TK, sent_TK)
        return gate_A, cache

    cases.assert_gradient(forward, gates.shares_backward, log_TE=np.log(score_TE) + level)
    dlog_TE = gates.shares_backward(np.arange(sent_TK.sum(), dtype=float), forward(np.log(score_TE))[1])
    np.put_along_axis(dlog_TE, expert_TK, 0, axis=1)
    assert not dlog_TE.any()


def test_scores_that_sum_to_0_have_no_shares():
    score_TE = np.array([[0.5, 0.5, 0], [0, 0, 1.0]])
    with pytest.raises(ValueError, match="score_TE: the scores of the experts of token 1 sum to 0"):
        gates.gates_forward(score_TE, np.array([[0, 1], [0, 1]]), np.ones(2, bool), True)
    assert gates.gates_forward(score_TE, [[0, 1], [0, 1]], [True, True], False)[0][-1].tolist() == [0.5, 0.5, 0, 0]
