"""The losses of the scores alone: the size of the logits, and how far the router's entropy is below log E."""

from dataclasses import replace

import numpy as np
import pytest

from minimoe.moe import losses
from minimoe.nn import ops
from tests import cases

LOGIT_TE = np.random.default_rng(0).normal(size=(6, 5))
MASK_T = np.array([True, True, False, True, True, False])
RANDOM = cases.routed(ops.softmax_forward(LOGIT_TE)[0], 2, MASK_T, logit_TE=LOGIT_TE)


def z(logit_TE):
    logit_TE = np.array(logit_TE)
    return losses.z_forward(cases.routed(ops.softmax_forward(logit_TE)[0], logit_TE=logit_TE))[0]


def entropy(prob_TE):
    return losses.entropy_forward(cases.routed(prob_TE))[0]


def test_z_by_hand():
    """Sums of e^logit are 8 and 2, so the loss is the mean of (ln 8)^2 and (ln 2)^2: (9 + 1) / 2 (ln 2)^2."""
    np.testing.assert_allclose(z(np.log([[1, 2, 5], [0.5, 0.5, 1]])), 5 * np.log(2) ** 2)
    np.testing.assert_allclose(z([[1e4, 0.0], [-1e4, -2e4]]), 1e8)  # without overflow


def test_both_equal_loops_over_the_real_tokens():
    squares, lacks = [], []
    for t in np.flatnonzero(MASK_T):
        squares.append(np.log(sum(np.exp(score) for score in LOGIT_TE[t])) ** 2)
        lacks.append(sum(p * np.log(p / (1 / 5)) for p in RANDOM.prob_TE[t]))  # divergence from the uniform one
    np.testing.assert_allclose(losses.z_forward(RANDOM)[0], np.mean(squares), rtol=1e-12)
    np.testing.assert_allclose(losses.entropy_forward(RANDOM)[0], np.mean(lacks), rtol=1e-12)


@pytest.mark.parametrize(("prob_TE", "expected"), [
    # H(1/2, 1/4, 1/4, 0) = 1/2 ln 2 + 2 (1/4 ln 4) = 3/2 ln 2, and log E = 2 ln 2;  H(1/2, 1/2, 0, 0) = ln 2
    ([[1 / 2, 1 / 4, 1 / 4, 0], [1 / 2, 1 / 2, 0, 0]], (0.5 + 1) / 2 * np.log(2)),
    (np.eye(4), np.log(4)), (np.full((3, 8), 1 / 8), 0), (np.ones((3, 1)), 0)])
def test_entropy_by_hand(prob_TE, expected):
    np.testing.assert_allclose(entropy(prob_TE), expected, atol=1e-15)


def test_entropy_gradient_by_hand():
    """(log p + 1) / T over two real tokens; 1 in place of log 0."""
    prob_TE = np.array([[1 / 4, 3 / 4], [1 / 2, 1 / 2], [0.1, 0.9]])
    _, cache = losses.entropy_forward(cases.routed(prob_TE, mask=[True, True, False]))
    np.testing.assert_allclose(losses.entropy_backward(2.0, cache), (np.log(prob_TE) + 1) * [[1], [1], [0]])
    _, cache = losses.entropy_forward(cases.routed(np.eye(4)))
    np.testing.assert_array_equal(losses.entropy_backward(1.0, cache), np.full((4, 4), 1 / 4))


@pytest.mark.parametrize(("name", "array"), [("z", "logit_TE"), ("entropy", "prob_TE")])
def test_gradients(name, array):
    loss = losses.LOSSES[name]
    cases.assert_gradient(lambda numbers: loss.forward(replace(RANDOM, **{array: numbers})), loss.backward,
                          numbers=getattr(RANDOM, array))
