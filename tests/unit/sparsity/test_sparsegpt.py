"""SparseGPT against least squares, solved for each weight that goes; singular inputs; exact counts."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minimoe.sparsity import sparsegpt
from tests import cases

RNG = np.random.default_rng(0)
W_DF, X_TD = RNG.normal(size=(12, 5)), RNG.normal(size=(40, 12)) @ RNG.normal(size=(12, 12))


def slow(w_DF, x_TD, block, choose, damp=0.01):
    """Each weight that goes is made up for by the weights behind it: `lstsq` on the tokens, and on rows of damping."""
    D, h = w_DF.shape[0], 2 / len(x_TD) * x_TD.T @ x_TD
    rows = np.vstack([math.sqrt(2 / len(x_TD)) * x_TD, np.diag(np.full(D, math.sqrt(damp * np.diag(h).mean())))])

    def made_up(d):
        return np.linalg.lstsq(rows[:, d + 1:], rows[:, d], rcond=None)[0]

    def cost(d):  # of a change by 1, with all that is behind making up for it
        return ((rows[:, d] - rows[:, d + 1:] @ made_up(d)) ** 2).sum()

    w, mask = w_DF.copy(), np.ones(w_DF.shape, bool)
    for d in range(D):
        if d % block == 0:
            score = [[w[i, f] ** 2 * cost(i) for f in range(w.shape[1])] for i in range(d, min(d + block, D))]
            mask[d:d + block] = choose(np.array(score))
        for f in np.flatnonzero(~mask[d]):
            w[d + 1:, f] += w[d, f] * made_up(d)
            w[d, f] = 0
    return w, mask


def half(score):
    """All outputs together: without the lower half."""
    return score >= np.sort(score, axis=None)[score.size // 2]


def two_of_four(score):
    return score >= np.sort(score, axis=0)[2]


@pytest.mark.parametrize("options, block, choose", [
    (dict(sparsity=0.5), 12, half), (dict(sparsity=0.5, block=4), 4, half), (dict(pattern=(2, 4)), 4, two_of_four),
    (dict(pattern=(2, 4), block=4), 4, two_of_four)], ids=["half", "half by 4", "2 of 4", "2 of 4 by 4"])
@pytest.mark.parametrize("n_tokens", [40, 7])
def test_it_is_least_squares_weight_by_weight_with_fewer_tokens_than_inputs_too(options, block, choose, n_tokens):
    x_TD = X_TD[:n_tokens]
    w, mask = sparsegpt.prune(W_DF, x_TD, **options)
    expected, expected_mask = slow(W_DF, x_TD, block, choose)
    np.testing.assert_array_equal(mask, expected_mask)
    np.testing.assert_allclose(w, expected, rtol=1e-8, atol=1e-10)
    assert (w[~mask] == 0).all() and np.linalg.norm(x_TD @ (w - W_DF)) < np.linalg.norm(x_TD @ (mask * W_DF - W_DF))


@cases.FEW
@given(st.integers(0, 2**32), st.floats(0, 1, exclude_max=True), st.integers(1, 12))
def test_each_block_has_exactly_floor_zeros(seed, sparsity, block):
    """Equal weights and inputs too.  At 0 nothing changes."""
    w_DF, x_TD = np.random.default_rng(seed).integers(1, 3, (12, 5)), X_TD.round()
    w, mask = sparsegpt.prune(w_DF.astype("f"), x_TD, sparsity, block=block)
    sizes = [mask[start:start + block] for start in range(0, 12, block)]
    assert [(~part).sum() for part in sizes] == [math.floor(part.size * sparsity) for part in sizes]
    assert w.dtype == np.float32 and (sparsity > 0 or (w == w_DF).all())


def test_a_dead_input_is_zeroed_and_the_others_are_pruned_as_without_it():
    """Its 5 weights are among the zeros: 30 of 60 with it are 25 of 55 without."""
    x_TD = X_TD * (np.arange(12) != 3)
    w, _ = sparsegpt.prune(W_DF, x_TD, sparsity=30 / 60)
    rest, _ = sparsegpt.prune(np.delete(W_DF, 3, 0), np.delete(x_TD, 3, 1), sparsity=25 / 55)
    assert not w[3].any()
    np.testing.assert_allclose(np.delete(w, 3, 0), rest, rtol=1e-12)


@pytest.mark.parametrize("arguments, options, message", [
    ((W_DF, X_TD), {}, "sparsity = None, pattern = None: give one of the two"),
    ((W_DF, X_TD, 0.5, (2, 4)), {}, "sparsity = 0.5, pattern = .*: give one"),
    ((W_DF, X_TD, 1.0), {}, "sparsity = 1.0"), ((W_DF, X_TD, 0.5), dict(block=0), "block = 0"),
    ((W_DF, X_TD, 0.5), dict(damp=-1), "damp = -1"), ((W_DF * np.inf, X_TD, 0.5), {}, "w_DF has numbers that are not"),
    ((W_DF, X_TD, None, (2, 5)), {}, r"pattern = \(2, 5\): groups of 5 do not divide 12 inputs"),
    ((W_DF, X_TD, None, (2, 4)), dict(block=6), "block = 6: must be a multiple of the pattern's group of 4"),
    ((W_DF, X_TD[:0], 0.5), {}, "x_TD has 0 tokens"), ((W_DF, 0 * X_TD, 0.5), {}, "x_TD has 40 tokens and all are 0"),
    ((W_DF, X_TD[:1], 0.5), dict(damp=0.0), "damp = 0.0: the 1 tokens of x_TD do not span its 12 inputs")])
def test_bad_input_is_refused(arguments, options, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        sparsegpt.prune(*arguments, **options)
