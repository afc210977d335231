"""Choices to assignments: raw and renormalised gates, choices that are not sent, and both Jacobians."""

import numpy as np
import pytest

from minimoe import gradcheck
from minimoe.moe import gates

SCORE_TE = np.array([[1.0, 2.0, 5.0], [4.0, 3.0, 1.0]])
EXPERT_TK = np.array([[2, 0], [0, 1]])
SENT_TK = np.array([[True, False], [True, True]])

each_gate = pytest.mark.parametrize("renormalize", [True, False])


def random_case():
    """Scores of 9 tokens for 5 experts, 3 different experts of each token, and two thirds of them sent."""
    rng = np.random.default_rng(0)
    score_TE = rng.uniform(0.1, 1, (9, 5))
    return score_TE, np.argsort(rng.random((9, 5)), axis=1)[:, :3], rng.random((9, 3)) < 2 / 3


def test_the_assignments_stand_token_by_token_and_without_those_not_sent():
    (token_A, expert_A, rank_A, _), _ = gates.gates_forward(SCORE_TE, EXPERT_TK, SENT_TK, renormalize=False)
    assert (token_A.tolist(), expert_A.tolist(), rank_A.tolist()) == ([0, 1, 1], [2, 0, 1], [0, 0, 1])


def test_a_raw_gate_is_the_score():
    (*_, gate_A), _ = gates.gates_forward(SCORE_TE, EXPERT_TK, SENT_TK, renormalize=False)
    assert gate_A.tolist() == [5, 4, 3]


def test_a_renormalised_gate_is_a_share_of_all_choices_also_of_those_not_sent():
    (*_, gate_A), _ = gates.gates_forward(SCORE_TE, EXPERT_TK, SENT_TK, renormalize=True)
    np.testing.assert_allclose(gate_A, [5 / 6, 4 / 7, 3 / 7], rtol=1e-15)


def test_a_mask_stands_for_all_choices_of_the_real_tokens():
    (token_A, expert_A, rank_A, gate_A), _ = gates.gates_forward(
        SCORE_TE, EXPERT_TK, np.array([False, True]), renormalize=True)
    assert (token_A.tolist(), expert_A.tolist(), rank_A.tolist()) == ([1, 1], [0, 1], [0, 1])
    np.testing.assert_allclose(gate_A, [4 / 7, 3 / 7], rtol=1e-15)


@each_gate
def test_equals_a_loop_over_tokens_and_ranks(renormalize):
    score_TE, expert_TK, sent_TK = random_case()
    columns, _ = gates.gates_forward(score_TE, expert_TK, sent_TK, renormalize)
    expected = []
    for t in range(9):
        total = sum(score_TE[t, e] for e in expert_TK[t]) if renormalize else 1
        expected += [(t, e, k, score_TE[t, e] / total) for k, e in enumerate(expert_TK[t]) if sent_TK[t, k]]
    np.testing.assert_allclose(np.transpose(columns), expected, rtol=1e-14)


@each_gate
def test_gradients(renormalize):
    score_TE, expert_TK, sent_TK = random_case()

    def forward(score_TE):
        (*_, gate_A), cache = gates.gates_forward(score_TE, expert_TK, sent_TK, renormalize)
        return gate_A, cache

    report = gradcheck.check_pair("assign", forward, gates.gates_backward, {"score_TE": score_TE})
    assert report.ok, report


def test_the_gradient_of_a_renormalised_gate_by_hand():
    """g = a / (a + b) with a = 5, b = 1: dg/da = b / (a + b)^2 = 1/36, dg/db = -a / (a + b)^2 = -5/36."""
    _, cache = gates.gates_forward(SCORE_TE, EXPERT_TK, SENT_TK, renormalize=True)
    dscore_TE = gates.gates_backward(np.array([1.0, 0.0, 0.0]), cache)
    np.testing.assert_allclose(dscore_TE, [[-5 / 36, 0, 1 / 36], [0, 0, 0]], rtol=1e-14)


def test_a_raw_gate_passes_its_gradient_to_its_own_score_alone():
    _, cache = gates.gates_forward(SCORE_TE, EXPERT_TK, SENT_TK, renormalize=False)
    assert gates.gates_backward(np.array([1.0, 10.0, 100.0]), cache).tolist() == [[0, 0, 1], [10, 100, 0]]


def test_renormalised_gates_do_not_want_all_scores_of_a_token_larger():
    score_TE, expert_TK, sent_TK = random_case()
    _, cache = gates.gates_forward(score_TE, expert_TK, sent_TK, renormalize=True)
    dscore_TE = gates.gates_backward(np.random.default_rng(1).normal(size=sent_TK.sum()), cache)
    assert np.abs(dscore_TE).max() > 0.1
    np.testing.assert_allclose((dscore_TE * score_TE).sum(axis=1), 0, atol=1e-15)


@each_gate
def test_scores_of_experts_that_were_not_chosen_get_exactly_nothing(renormalize):
    score_TE, expert_TK, sent_TK = random_case()
    _, cache = gates.gates_forward(score_TE, expert_TK, sent_TK, renormalize)
    dscore_TE = gates.gates_backward(np.ones(sent_TK.sum()), cache)
    np.put_along_axis(dscore_TE, expert_TK, 0, axis=1)
    assert not dscore_TE.any()


@each_gate
def test_nothing_passed_in_is_changed_and_backward_can_be_called_twice(renormalize):
    score_TE, expert_TK, sent_TK = random_case()
    dgate_A = np.ones(sent_TK.sum())
    for array in (score_TE, expert_TK, sent_TK, dgate_A):
        array.flags.writeable = False
    _, cache = gates.gates_forward(score_TE, expert_TK, sent_TK, renormalize)
    first_TE, second_TE = (gates.gates_backward(dgate_A, cache) for _ in range(2))
    np.testing.assert_array_equal(first_TE, second_TE)


@each_gate
def test_float32_stays_float32(renormalize):
    (*_, gate_A), cache = gates.gates_forward(SCORE_TE.astype(np.float32), EXPERT_TK, SENT_TK, renormalize)
    assert {gate_A.dtype, gates.gates_backward(gate_A, cache).dtype} == {np.dtype(np.float32)}
