"""BASE: in training the best of all even assignments, checked against trying all; in evaluation the best expert.

Most tests route one-hot tokens, x = identity: then the router's weights are its scores.
"""

import itertools

import numpy as np
import pytest

from minimoe.moe import linear_assignment
from tests.one_hot import route

SIZES = [(6, 3), (6, 2), (7, 3), (5, 2), (8, 2), (5, 4), (2, 4), (3, 4), (1, 3), (4, 4), (5, 1)]

SCORES = {
    "random": lambda rng, shape: rng.normal(size=shape),
    "one favourite": lambda rng, shape: rng.normal(size=shape) + 5 * (np.arange(shape[1]) == 1),
    "whole numbers": lambda rng, shape: rng.integers(-2, 3, shape).astype(float),
    "tenths in float32": lambda rng, shape: (0.1 * rng.integers(-3, 4, shape)).astype(np.float32),
    "all equal": lambda rng, shape: np.full(shape, 0.7),
    "alike tokens": lambda rng, shape: np.tile(rng.normal(size=shape[1]), (shape[0], 1)),
    "far from zero": lambda rng, shape: rng.normal(size=shape) + 1e6,
    "one score very low": lambda rng, shape: rng.normal(size=shape) - 1e4 * (np.arange(shape[1]) == 0),
}

LOGIT_TE = np.random.default_rng(0).normal(size=(12, 4)) + [4, 0, 0, 0]


def loads(expert_T, n_experts):
    return np.bincount(expert_T, minlength=n_experts)


def largest_sum(score_TE):
    """The largest sum of scores of all assignments whose loads differ by at most one, by trying every assignment."""
    T, E = score_TE.shape
    every_NT = np.array(list(itertools.product(range(E), repeat=T)))
    load_NE = (every_NT[:, :, None] == np.arange(E)).sum(axis=1)
    even_NT = every_NT[np.ptp(load_NE, axis=1) <= 1]
    return score_TE.astype(float)[np.arange(T), even_NT].sum(axis=1).max()


@pytest.mark.parametrize("kind", SCORES)
@pytest.mark.parametrize("size", SIZES)
def test_the_sum_of_scores_is_the_largest_of_all_even_assignments(size, kind):
    T, E = size
    for seed in range(5):
        score_TE = SCORES[kind](np.random.default_rng(seed), size)
        expert_T = linear_assignment.balanced_assignment(score_TE)
        assert np.ptp(loads(expert_T, E)) <= 1
        assert score_TE.astype(float)[np.arange(T), expert_T].sum() == pytest.approx(largest_sum(score_TE), rel=1e-12)


def test_the_best_assignment_by_hand():
    """Both tokens like expert 0 better, the second much better: 1 + 9 with the first sent away beats 5 + 2."""
    assert linear_assignment.balanced_assignment(np.array([[5.0, 1.0], [9.0, 2.0]])).tolist() == [1, 0]


def test_a_move_through_a_third_expert_by_hand():
    """Tokens 0 and 1 want expert 0, token 2 expert 1.  Token 1 to 1 and 2 on to 2 costs 1 + 1; straight away 10."""
    score_TE = np.array([[20.0, 0.0, 0.0], [10.0, 9.0, 0.0], [0.0, 10.0, 9.0]])
    assert linear_assignment.balanced_assignment(score_TE).tolist() == [0, 1, 2]


@pytest.mark.parametrize("seed", range(5))
def test_between_two_experts_the_lead_decides(seed):
    """The half of the tokens with the largest lead of expert 0 over 1 go there, which is best, also for many tokens."""
    score_TE = np.random.default_rng(seed).normal(size=(300, 2)) + [3, 0]
    expert_T = linear_assignment.balanced_assignment(score_TE)
    order_T = np.argsort(score_TE[:, 1] - score_TE[:, 0])
    assert set(np.flatnonzero(expert_T == 0)) == set(order_T[:150])


@pytest.mark.parametrize(("T", "E"), [(256, 8), (250, 8), (3, 8), (96, 3)])
@pytest.mark.parametrize("kind", SCORES)
def test_loads_are_even_for_many_tokens_too(kind, T, E):
    count_E = loads(linear_assignment.balanced_assignment(SCORES[kind](np.random.default_rng(0), (T, E))), E)
    assert sorted(count_E)[0] == T // E and sorted(count_E)[-1] == -(-T // E)


@pytest.mark.parametrize("kind", SCORES)
def test_no_two_of_many_tokens_would_rather_change_places(kind):
    score_TE = SCORES[kind](np.random.default_rng(0), (250, 8)).astype(float)
    expert_T = linear_assignment.balanced_assignment(score_TE)
    own_T = score_TE[np.arange(250), expert_T]
    gain_TT = score_TE[:, expert_T] - own_T[:, None]  # of the row's token in the column's place
    assert (gain_TT + gain_TT.T).max() <= 1e-9


@pytest.fixture
def no_endless_search(monkeypatch):
    """A path that never arrives, or a hundred rounds for a few tokens, fail instead of going on for ever."""
    rounds = itertools.count()

    def shortest_paths(loss_EE, tiny):
        loss_EE, next_EE = search(loss_EE, tiny)
        for e, last in np.argwhere(np.isfinite(loss_EE)):
            hops = 0
            while e != last:
                e, hops = next_EE[e, last], hops + 1
                assert hops < len(loss_EE), "a path goes round in circles"
        assert next(rounds) < 100, "moves go back and forth"
        return loss_EE, next_EE

    search = linear_assignment._shortest_paths
    monkeypatch.setattr(linear_assignment, "_shortest_paths", shortest_paths)


@pytest.mark.parametrize("seed", [5869, 4207, 7775, 13338, 14767, 146, 249])
def test_rounding_error_in_float32_is_not_taken_for_a_gain(seed, no_endless_search):
    """Tenths, which float32 does not have exactly, and experts more or less liked by all: ties that are not quite."""
    rng = np.random.default_rng(seed)
    T, E = rng.integers(3, 13), rng.integers(3, 8)
    score_TE = (0.1 * rng.integers(-3, 4, (T, E)) + rng.normal(size=E)).astype(np.float32)
    assert np.ptp(loads(linear_assignment.balanced_assignment(score_TE), E)) <= 1


@pytest.mark.parametrize("T", [6, 7])
def test_scores_that_are_not_finite_are_assigned_somehow(T, no_endless_search):
    """Training reports them; it must get so far."""
    assert np.ptp(loads(linear_assignment.balanced_assignment(np.full((T, 3), np.nan)), 3)) <= 1


def test_nobody_is_assigned_nowhere():
    assert linear_assignment.balanced_assignment(np.zeros((0, 3))).tolist() == []


def test_training_uses_the_even_assignment_and_evaluation_each_tokens_best():
    trained, _ = route("base", LOGIT_TE, training=True)
    evaluated, _ = route("base", LOGIT_TE)
    assert trained.count_E.tolist() == [3, 3, 3, 3]
    np.testing.assert_array_equal(trained.expert_A, linear_assignment.balanced_assignment(LOGIT_TE))
    assert evaluated.expert_A.tolist() == [max(range(4), key=lambda e, row_E=row_E: row_E[e]) for row_E in LOGIT_TE]
    assert evaluated.count_E[0] > 9


@pytest.mark.parametrize("training", [True, False])
def test_the_gate_is_the_sigmoid_of_the_score(training):
    r, _ = route("base", LOGIT_TE, training=training)
    np.testing.assert_allclose(r.gate_A, 1 / (1 + np.exp(-LOGIT_TE[r.token_A, r.expert_A])), rtol=1e-13)
    np.testing.assert_array_equal(r.rank_A, np.zeros(12))


def test_the_probabilities_are_the_softmax():
    r, _ = route("base", np.log([[1.0, 2.0, 3.0], [4.0, 1.0, 3.0]]))
    np.testing.assert_allclose(r.prob_TE, [[1 / 6, 2 / 6, 3 / 6], [4 / 8, 1 / 8, 3 / 8]], rtol=1e-14)


def test_padding_has_no_part_in_the_assignment():
    mask_T = np.arange(12) % 3 > 0
    r, _ = route("base", LOGIT_TE, training=True, mask_T=mask_T)
    np.testing.assert_array_equal(r.expert_A, linear_assignment.balanced_assignment(LOGIT_TE[mask_T]))
    np.testing.assert_array_equal(r.token_A, np.flatnonzero(mask_T))
