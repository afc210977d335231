"""Load times mean probability: of the batch, of each sequence by itself, of devices, and over a whole step."""

from dataclasses import replace

import numpy as np
import pytest

from minimoe.moe import gates, losses, routing
from minimoe.moe.routing import Tokens
from minimoe.nn import ops
from tests import cases

HAND_TE = [[1 / 6, 2 / 6, 3 / 6], [1 / 8, 2 / 8, 5 / 8], [4 / 8, 2 / 8, 2 / 8]]
"""Choices 2, 2, 0: f = 1/3, 0, 2/3;  3 P = 1/6 + 1/8 + 4/8, 2/6 + 2/8 + 2/8, 3/6 + 5/8 + 2/8 = 19/24, 20/24, 33/24."""


def balance(r, load_E=None):
    return losses.balance_forward(r, load_E)[0]


def sequence(r):
    return losses.sequence_forward(r)[0]


def device(r, n_devices):
    return losses.device_forward(r, n_devices)[0]


def random_routing(*lengths_B, top_k=2):
    """Sequences of these lengths that are far from balanced: no token wants the last of six experts."""
    tokens = cases.lengths(*lengths_B)
    scores_TE = np.random.default_rng(0).normal(size=(len(tokens.mask_T), 6)) + [2, 1, 0, 0, 0, -9]
    return cases.routed(ops.softmax_forward(scores_TE)[0], top_k, tokens.mask_T.reshape(len(lengths_B), -1))


def sure(expert_T, n_experts=4, mask=None):
    """The Routing of tokens with one certain expert each."""
    return cases.routed(np.eye(n_experts)[expert_T], mask=mask)


def dlogit_of(r):
    """The gradient of the scores, through the softmax."""
    return ops.softmax_backward(losses.balance_backward(1.0, losses.balance_forward(r)[1]), r.prob_TE)


def test_balance_and_its_gradient_by_hand():
    """3 * (1/3 * 19/72 + 2/3 * 33/72) = 85/72, and the gradient is E f / T for every token."""
    loss, cache = losses.balance_forward(cases.routed(HAND_TE))
    np.testing.assert_allclose(loss, 85 / 72)
    np.testing.assert_allclose(losses.balance_backward(2.0, cache), [[2 / 3, 0, 4 / 3]] * 3)


def test_balance_with_the_load_of_more_tokens_than_these_by_hand():
    """f = 1/2, 1/2, 0: (19 + 20) / 48 = 39/48."""
    loss, cache = losses.balance_forward(cases.routed(HAND_TE), np.array([1 / 2, 1 / 2, 0]))
    np.testing.assert_allclose(loss, 39 / 48)
    np.testing.assert_allclose(losses.balance_backward(2.0, cache), [[1, 1, 0]] * 3)


@pytest.mark.parametrize(("prob_TE", "expected"), [
    # f = 0.6, 0.4;  P = (6 * 0.51 + 4 * 0.01) / 10, ... = 0.31, 0.69;  2 * (0.186 + 0.276) = 0.924
    ([[0.51, 0.49]] * 6 + [[0.01, 0.99]] * 4, 0.924),
    ([[0.8, 0.1, 0.1], [0.3, 0.4, 0.3], [0, 0.2, 0.8]], 1),  # even load, whatever the probabilities
    ([[0.25] * 4] * 7, 1),  # even probabilities: ties, all seven go to expert 0
    ([[1, 0, 0, 0]] * 6, 4),  # collapsed: E
])
def test_balance_is_one_when_either_is_even_but_can_be_below_and_is_e_after_a_collapse(prob_TE, expected):
    np.testing.assert_allclose(balance(cases.routed(prob_TE)), expected)


def test_all_equal_loops_over_real_tokens():
    r, of_sequences, of_batch = random_routing(5, 2, 4), [], []
    for b in (0, 1, 2, None):
        own = [t for t in np.flatnonzero(r.mask_T) if b in (None, r.tokens.sequence_T[t])]
        f_E = [6 * sum(r.expert_A[r.token_A == t].tolist().count(e) for t in own) / (2 * len(own)) for e in range(6)]
        p_E = [sum(r.prob_TE[t, e] for t in own) / len(own) for e in range(6)]
        (of_batch if b is None else of_sequences).append(np.dot(f_E, p_E))
    by_device = sum(sum(f_E[i:i + 2]) / 2 * sum(p_E[i:i + 2]) for i in (0, 2, 4))
    np.testing.assert_allclose([balance(r), sequence(r), device(r, 3)], [*of_batch, np.mean(of_sequences), by_device],
                               rtol=1e-12)


@pytest.mark.parametrize("top_k", [1, 2])
def test_the_gradient_of_the_scores_is_that_of_a_constant_load(top_k):
    """dlogit_te = (E/T) p_te (f_e - sum_i f_i p_ti), over the 8 real tokens: a row sums to 0; even loads get none."""
    r = random_routing(5, 3, top_k=top_k)
    expected_TE = 6 / 8 * r.prob_TE * (r.load_E - (r.prob_TE @ r.load_E)[:, None]) * r.mask_T[:, None]
    np.testing.assert_allclose(dlogit_of(r), expected_TE, rtol=1e-12, atol=1e-17)
    np.testing.assert_allclose(dlogit_of(r).sum(axis=1), 0, atol=1e-16)
    even = cases.routed([[0.8, 0.1, 0.1], [0.3, 0.4, 0.3], [0.1, 0.2, 0.7]])
    np.testing.assert_allclose(dlogit_of(even), 0, atol=1e-16)


def test_micro_batches_that_are_even_only_together_have_the_loss_of_even_ones():
    micro = [sure([e] * 3) for e in range(4)]
    load_E = sum(r.count_E for r in micro) / 12
    assert [balance(r) for r in micro] == [4] * 4
    assert [balance(r, load_E) for r in micro] == [1] * 4


def test_sequence_and_its_gradient_by_hand():
    """A sequence of three tokens, and one of one token with padding behind it.

    First: f = 2/3, 1/3 and P = 7/12, 5/12, so 2 (14 + 5) / 36 = 19/18;  second: f = 0, 1 and P = 1/5, 4/5, so 8/5.
    The gradient is E f / (tokens of the sequence * sequences): 2 (2/3, 1/3) / (3 * 2), and 2 (0, 1) / (1 * 2).
    """
    prob_TE = [[3 / 4, 1 / 4], [3 / 4, 1 / 4], [1 / 4, 3 / 4], [1 / 5, 4 / 5], [0.9, 0.1], [0.9, 0.1]]
    loss, cache = losses.sequence_forward(cases.routed(prob_TE, mask=[[True] * 3, [True, False, False]]))
    np.testing.assert_allclose(loss, (19 / 18 + 8 / 5) / 2)
    np.testing.assert_allclose(losses.sequence_backward(3.0, cache), [[2 / 3, 1 / 3]] * 3 + [[0, 3]] + [[0, 0]] * 2)


def test_sequence_by_hand_where_some_second_choices_are_missing():
    """3 assignments per sequence, not K * S = 4.

    First: f = 3 (2/3, 1/3, 0), P = 5/8, 1/4, 1/8, so 5/4 + 1/4 = 3/2.
    Second: f = 3 (1/3, 0, 2/3), P = 3/8, 0, 5/8, so 3/8 + 5/4 = 13/8.
    """
    prob_TE = np.array([[1 / 2, 1 / 4, 1 / 4], [3 / 4, 1 / 4, 0], [1 / 4, 0, 3 / 4], [1 / 2, 0, 1 / 2]])
    sent_TK = np.array([[True, True], [True, False], [True, False], [True, True]])
    columns = gates.assignments_by_token(np.array([[0, 1], [0, 1], [2, 0], [2, 0]]), sent_TK)
    r = routing.dropless_routing(*columns, np.ones(6), prob_TE, prob_TE, Tokens.of_batch(np.zeros((2, 2), int)))
    np.testing.assert_allclose(sequence(r), (3 / 2 + 13 / 8) / 2)


def test_sequences_that_are_each_on_one_expert_are_uneven_though_the_batch_is_even():
    by_sequence, in_each = (sure(expert_T, mask=np.ones((3, 4), bool)) for expert_T in (
        np.repeat([0, 1, 2], 4), np.tile(np.arange(4), 3)))
    assert (balance(by_sequence), sequence(by_sequence)) == (pytest.approx(4 / 3), 4)  # three of four experts work
    assert (balance(in_each), sequence(in_each)) == (1, 1)
    one = random_routing(7)
    np.testing.assert_allclose(sequence(one), balance(one), rtol=1e-14)


def test_a_sequence_of_padding_alone_does_not_count_and_one_that_no_expert_chose_counts_as_0():
    with_empty = random_routing(5, 3, 0)  # the first ten tokens are those of (5, 3)
    loss, cache = losses.sequence_forward(with_empty)
    np.testing.assert_allclose(loss, sequence(random_routing(5, 3)), rtol=1e-14)
    assert not losses.sequence_backward(1.0, cache)[10:].any()
    r = cases.routed(np.full((6, 3), 1 / 3), mask=np.ones((2, 3), bool))
    first = r.token_A < 3
    r = replace(r, **{name: getattr(r, name)[first] for name in ("token_A", "expert_A", "rank_A", "gate_A")})
    np.testing.assert_allclose(sequence(r), (1 + 0) / 2)


def test_device_and_its_gradient_by_hand():
    """f = 1/2, 1/4, 1/4, 0, so f' = 4 (1/2 + 1/4) / 2, 4 (1/4 + 0) / 2 = 3/2, 1/2;  P' = 0.1 + 0.2, 0.3 + 0.4.

    Every expert of a device gets f' / T.
    """
    loss, cache = losses.device_forward(cases.routed([[0.1, 0.2, 0.3, 0.4]] * 4, expert_TK=[[0], [0], [1], [2]]), 2)
    np.testing.assert_allclose(loss, 1.5 * 0.3 + 0.5 * 0.7)
    np.testing.assert_allclose(losses.device_backward(2.0, cache), [[3 / 4, 3 / 4, 1 / 4, 1 / 4]] * 4)


def test_with_one_expert_per_device_it_is_the_balance_loss_and_one_device_is_always_even():
    r = random_routing(7, 4)
    np.testing.assert_allclose(device(r, 6), balance(r), rtol=1e-14)
    loss, cache = losses.device_forward(r, 1)
    np.testing.assert_allclose(loss, 1, rtol=1e-14)
    np.testing.assert_allclose(ops.softmax_backward(losses.device_backward(1.0, cache), r.prob_TE), 0, atol=1e-16)


@pytest.mark.parametrize(("experts", "expected"), [((0, 1), 2), ((2, 3), 2), ((0, 2), 1), ((1, 3), 1)])
def test_two_busy_experts_are_uneven_on_one_device_and_even_on_two(experts, expected):
    r = sure(np.tile(experts, 3))
    assert (balance(r), device(r, 2)) == (2, expected)  # two of four experts work


@pytest.mark.parametrize(("forward", "backward"), [
    (losses.balance_forward, losses.balance_backward),
    (losses.sequence_forward, losses.sequence_backward),
    (lambda r: losses.device_forward(r, 3), losses.device_backward)], ids=["balance", "sequence", "device"])
def test_gradient_of_the_probabilities(forward, backward):
    r = random_routing(5, 2, 4)
    cases.assert_gradient(lambda prob_TE: forward(replace(r, prob_TE=prob_TE)), backward, prob_TE=r.prob_TE)
