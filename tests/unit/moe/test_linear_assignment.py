"""Balanced assignment: by hand, against trying all assignments, and where rounding error could mislead it."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minimoe.moe import linear_assignment
from tests import cases

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


def loads(expert_T, n_experts):
    return np.bincount(expert_T, minlength=n_experts)


def largest_sum(score_TE):
    """The largest sum of scores of all assignments whose loads differ by at most one, by trying every assignment."""
    T, E = score_TE.shape
    every_NT = np.array(list(itertools.product(range(E), repeat=T)))
    load_NE = (every_NT[:, :, None] == np.arange(E)).sum(axis=1)
    even_NT = every_NT[np.ptp(load_NE, axis=1) <= 1]
    return score_TE.astype(float)[np.arange(T), even_NT].sum(axis=1).max()


@pytest.mark.parametrize(("score_TE", "expert_T"), [
    # both tokens like expert 0 better, the second much better: 1 + 9 with the first sent away beats 5 + 2
    ([[5, 1], [9, 2]], [1, 0]),
    # tokens 0 and 1 want expert 0, token 2 expert 1.  Token 1 to 1 and 2 on to 2 costs 1 + 1; straight away 10
    ([[20, 0, 0], [10, 9, 0], [0, 10, 9]], [0, 1, 2]),
    (np.zeros((0, 3)), [])])
def test_by_hand(score_TE, expert_T):
    assert linear_assignment.balanced_assignment(np.array(score_TE, float)).tolist() == expert_T


@pytest.mark.parametrize("kind", SCORES)
@cases.FEW
@given(T=st.integers(1, 6), E=st.integers(1, 4), seed=st.integers(0, 999))
def test_the_sum_of_scores_is_the_largest_of_all_even_assignments(kind, T, E, seed):
    score_TE = SCORES[kind](np.random.default_rng(seed), (T, E))
    expert_T = linear_assignment.balanced_assignment(score_TE)
    assert np.ptp(loads(expert_T, E)) <= 1
    assert score_TE.astype(float)[np.arange(T), expert_T].sum() == pytest.approx(largest_sum(score_TE), rel=1e-12)


@pytest.mark.parametrize("kind", SCORES)
def test_with_many_tokens_loads_are_even_and_no_two_tokens_would_rather_change_places(kind):
    score_TE = SCORES[kind](np.random.default_rng(0), (250, 8)).astype(float)
    expert_T = linear_assignment.balanced_assignment(score_TE)
    assert sorted(loads(expert_T, 8)) == [31] * 6 + [32] * 2
    own_T = score_TE[np.arange(250), expert_T]
    gain_TT = score_TE[:, expert_T] - own_T[:, None]  # of the row's token in the column's place
    assert (gain_TT + gain_TT.T).max() <= 1e-9


@pytest.fixture
def no_endless_search(monkeypatch):
    """A path that never arrives, or a hundred rounds for a few tokens, fail instead of running forever."""
    rounds, search = itertools.count(), linear_assignment._shortest_paths

    def shortest_paths(loss_EE, tiny):
        loss_EE, next_EE = search(loss_EE, tiny)
        for e, last in np.argwhere(np.isfinite(loss_EE)):
            hops = 0
            while e != last:
                e, hops = next_EE[e, last], hops + 1
                assert hops < len(loss_EE), "a path goes round in circles"
        assert next(rounds) < 100, "moves go back and forth"
        return loss_EE, next_EE

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
