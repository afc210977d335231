"""Scores and masks: Wanda against a slow loop, exact counts for every sparsity, ties, and which axis is which."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minimoe.sparsity import masks, scores
from tests import cases

RNG = np.random.default_rng(0)
W_DF, X_TD = RNG.normal(size=(6, 4)), RNG.normal(size=(5, 6))


def test_scores_are_those_of_a_slow_loop_or_by_hand():
    slow = [[abs(W_DF[d, f]) * math.sqrt(sum(x ** 2 for x in X_TD[:, d])) for f in range(4)] for d in range(6)]
    np.testing.assert_allclose(scores.wanda(W_DF, X_TD), slow, rtol=1e-14)
    assert scores.wanda(W_DF.astype("f"), X_TD).dtype == np.float32
    w, dw = np.array([2.0, -3.0]), np.array([0.5, 1.0])  # a step of -dw shrinks both: they move to 0
    assert scores.magnitude(w).tolist() == [2, 3]
    assert scores.movement(w, dw).tolist() == [-1, 3] and scores.taylor(w, dw).tolist() == [1, 9]


@cases.FEW
@given(st.integers(0, 2**32), st.floats(0, 1, exclude_max=True), st.integers(1, 4), st.integers(1, 4))
def test_counts_are_exact_whatever_the_sparsity_and_the_ties(seed, sparsity, kept, more):
    score_DF = np.random.default_rng(seed).integers(0, 3, (2 * (kept + more), 5)).astype(float)
    n_zeros = math.floor(score_DF.size * sparsity)
    mask = masks.lowest(score_DF, n_zeros)
    assert (~mask).sum() == n_zeros
    assert n_zeros == 0 or score_DF[~mask].max() <= score_DF[mask].min()
    zeros_F = (~masks.per_output(score_DF, sparsity)).sum(axis=0)
    assert set(zeros_F) == {math.floor(len(score_DF) * sparsity)}
    pattern = masks.n_of_m(score_DF, kept, kept + more)
    assert (pattern.reshape(2, kept + more, 5).sum(axis=1) == kept).all()


def test_the_lowest_index_goes_first_and_inputs_are_compared_within_their_output():
    """Column 0 holds 1 2 3 4, column 1 is all ties."""
    score_DF = np.array([[1, 5], [2, 5], [3, 5], [4, 5.0]])
    assert masks.lowest(np.arange(99) % 2.0, 25).tolist() == [i % 2 == 1 or i >= 50 for i in range(99)]
    for mask_DF in (masks.per_output(score_DF, 0.5), masks.n_of_m(score_DF, 2, 4)):
        assert mask_DF.T.tolist() == [[False, False, True, True]] * 2
    assert masks.n_of_m(score_DF, 1, 2).T.tolist() == [[False, True, False, True]] * 2
    assert (~masks.n_of_m(np.arange(8.0).reshape(4, 2), 1, 4)).mean() == 0.75  # 1:4 keeps one
    order = [2, 0, 3, 1]
    np.testing.assert_array_equal(masks.n_of_m(W_DF[:, order], 1, 3), masks.n_of_m(W_DF, 1, 3)[:, order])
    stack = np.stack([W_DF, -W_DF])  # each matrix of a stack on its own
    np.testing.assert_array_equal(masks.per_output(stack, 0.5)[1], masks.per_output(-W_DF, 0.5))


def test_what_is_masked_is_exactly_zero_and_nothing_else_changes():
    arrays, mask = {"a": W_DF, "b": X_TD}, W_DF > 0
    result = masks.apply(arrays, {"a": mask})
    np.testing.assert_array_equal(result["a"], W_DF.clip(0))
    assert result["b"] is X_TD and (W_DF < 0).any() and not np.signbit(result["a"]).any()


@pytest.mark.parametrize("call, message", [
    (lambda: masks.lowest(W_DF, 25), "n_zeros = 25: must be a whole number from 0 to 24"),
    (lambda: scores.movement(W_DF, W_DF[:1]), r"dw_DF has shape \(1, 4\): must be \(6, 4\), that of w_DF"),
    (lambda: masks.lowest(np.array([np.nan]), 0), "score has entries that are not a number"),
    *((lambda s=s: masks.per_output(W_DF, s), f"sparsity = {s!r}: must be a share") for s in (1, -0.1, np.nan, "a")),
    (lambda: masks.n_of_m(W_DF, 2, 4), r"pattern = \(2, 4\): groups of 4 do not divide 6 inputs"),
    (lambda: masks.n_of_m(W_DF, 0, 2), r"pattern = \(0, 2\): must be \(kept, group\)"),
    (lambda: masks.apply({"a": W_DF}, {"a": W_DF > 0, "b": W_DF > 0}), "masks.'b'.: there is no such parameter"),
    (lambda: masks.apply({"a": W_DF}, {"a": W_DF[0] > 0}), r"masks\['a'\] is bool \(4,\): must be bool \(6, 4\)"),
    (lambda: scores.wanda(W_DF, X_TD[:0]), "x_TD has 0 tokens: calibration needs at least one"),
    (lambda: scores.wanda(W_DF, X_TD[:, 1:]), r"x_TD has shape \(5, 5\): must be \[tokens, 6\]"),
    (lambda: scores.wanda(W_DF, X_TD * np.inf), "x_TD has numbers that are not finite")])
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        call()
