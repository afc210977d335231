"""The kinds of balance: of each sequence by itself, of devices, and over all micro-batches of a step."""

import numpy as np
import pytest

from minimoe import gradcheck
from minimoe.moe import gates, losses, routing
from minimoe.moe.routing import Tokens
from minimoe.nn import ops


def chosen(expert_TK, prob_TE, mask_BS=None):
    """The Routing of tokens that have these experts, whatever their probabilities.  mask_BS: None is one sequence."""
    prob_TE = np.array(prob_TE, float)
    mask_BS = np.ones((1, len(prob_TE)), bool) if mask_BS is None else np.array(mask_BS, bool)
    tokens = Tokens.of_batch(np.zeros(mask_BS.shape, int), mask_BS)
    token_A, expert_A, rank_A = gates.assignments_by_token(np.array(expert_TK), tokens.mask_T)
    gate_A = np.ones(len(token_A))
    return routing.dropless_routing(token_A, expert_A, rank_A, gate_A, np.zeros_like(prob_TE), prob_TE, tokens)


def random_routing(mask_BS, n_experts=6, top_k=2):
    """Tokens of random probabilities with the experts that they prefer."""
    prob_TE = np.random.default_rng(0).dirichlet(np.ones(n_experts), np.size(mask_BS))
    return chosen(np.argsort(-prob_TE, axis=1)[:, :top_k], prob_TE, mask_BS)


def lengths(*lengths_B):
    """The mask_BS of sequences of these lengths."""
    return np.arange(max(lengths_B)) < np.array(lengths_B)[:, None]


def sure(expert_T, n_experts):
    """prob_TE of tokens that are sure of one expert each."""
    return np.eye(n_experts)[expert_T]


def balance(r, load_E=None):
    return losses.balance_forward(r, load_E)[0]


def sequence(r):
    return losses.sequence_forward(r)[0]


def device(r, n_devices):
    return losses.device_forward(r, n_devices)[0]


def two_texts():
    """Three tokens; and one, with two places of padding."""
    prob_TE = [[3 / 4, 1 / 4], [3 / 4, 1 / 4], [1 / 4, 3 / 4], [1 / 5, 4 / 5], [0.9, 0.1], [0.9, 0.1]]
    return chosen([[0], [0], [1], [1], [0], [0]], prob_TE, lengths(3, 1))


def test_sequence_by_hand():
    # first: f = 2/3, 1/3 and P = 7/12, 5/12, so 2 (14 + 5) / 36 = 19/18;  second: f = 0, 1 and P = 1/5, 4/5, so 8/5
    np.testing.assert_allclose(sequence(two_texts()), (19 / 18 + 8 / 5) / 2)


def test_sequence_gradient_by_hand():
    # E f / (tokens of the sequence * sequences): first 2 (2/3, 1/3) / (3 * 2), second 2 (0, 1) / (1 * 2)
    dprob_TE = losses.sequence_backward(3.0, losses.sequence_forward(two_texts())[1])
    np.testing.assert_allclose(dprob_TE, [[2 / 3, 1 / 3]] * 3 + [[0, 3]] + [[0, 0]] * 2)


def with_single_choices():
    """Two texts of two tokens, of which the second of the first text and the first of the second have one expert."""
    prob_TE = np.array([[1 / 2, 1 / 4, 1 / 4], [3 / 4, 1 / 4, 0], [1 / 4, 0, 3 / 4], [1 / 2, 0, 1 / 2]])
    sent_TK = np.array([[True, True], [True, False], [True, False], [True, True]])
    token_A, expert_A, rank_A = gates.assignments_by_token(np.array([[0, 1], [0, 1], [2, 0], [2, 0]]), sent_TK)
    return routing.dropless_routing(token_A, expert_A, rank_A, np.ones(6), np.zeros_like(prob_TE), prob_TE,
                                 Tokens.of_batch(np.zeros((2, 2), int)))


def test_sequence_by_hand_where_some_second_choices_are_missing():
    """3 assignments a text, not K * S = 4.

    First: f = 3 (2/3, 1/3, 0), P = 5/8, 1/4, 1/8, so 5/4 + 1/4 = 3/2.
    Second: f = 3 (1/3, 0, 2/3), P = 3/8, 0, 5/8, so 3/8 + 5/4 = 13/8.
    """
    np.testing.assert_allclose(sequence(with_single_choices()), (3 / 2 + 13 / 8) / 2)


def test_sequence_gradient_by_hand_where_some_second_choices_are_missing():
    # f / (tokens of the sequence * sequences), f = 2, 1, 0 and 1, 0, 2
    dprob_TE = losses.sequence_backward(1.0, losses.sequence_forward(with_single_choices())[1])
    np.testing.assert_allclose(dprob_TE, [[2 / 4, 1 / 4, 0]] * 2 + [[1 / 4, 0, 2 / 4]] * 2)


def test_sequence_equals_a_loop_over_sequences():
    r = random_routing(lengths(5, 2, 4))
    total = 0
    for b in range(3):
        own = [t for t in range(5 * b, 5 * b + 5) if r.mask_T[t]]
        for e in range(6):
            count = sum(1 for token, expert in zip(r.token_A, r.expert_A, strict=True) if token in own and expert == e)
            total += 6 / (2 * len(own)) * count * sum(r.prob_TE[t, e] for t in own) / len(own)
    np.testing.assert_allclose(sequence(r), total / 3, rtol=1e-12)


def test_the_sequence_loss_of_one_sequence_is_the_balance_loss():
    r = random_routing(lengths(7))
    np.testing.assert_allclose(sequence(r), balance(r), rtol=1e-14)


def test_the_sequence_loss_is_the_mean_of_the_balance_of_each_sequence_however_short():
    r, alone = random_routing(lengths(6, 1)), []
    for own in (slice(0, 6), slice(6, 7)):
        prob_TE = r.prob_TE[own]
        alone.append(balance(chosen(np.argsort(-prob_TE, axis=1)[:, :2], prob_TE)))
    np.testing.assert_allclose(sequence(r), np.mean(alone), rtol=1e-14)
    assert abs(np.mean(alone) - (6 * alone[0] + alone[1]) / 7) > 0.1  # a mean over tokens would be another number


def test_sequences_that_are_each_on_one_expert_are_uneven_though_the_batch_is_even():
    expert_T = np.repeat(np.arange(4), 3)
    r = chosen(expert_T[:, None], sure(expert_T, 4), lengths(3, 3, 3, 3))
    assert balance(r) == 1
    assert sequence(r) == 4


def test_sequences_that_are_each_even_have_a_sequence_loss_of_one():
    expert_T = np.tile(np.arange(4), 3)
    assert sequence(chosen(expert_T[:, None], sure(expert_T, 4), lengths(4, 4, 4))) == 1


def test_a_sequence_of_padding_alone_does_not_count():
    r = random_routing(lengths(5, 3))
    with_empty = random_routing(lengths(5, 3, 0))  # the same first ten tokens
    np.testing.assert_allclose(sequence(with_empty), sequence(r), rtol=1e-14)
    np.testing.assert_array_equal(losses.sequence_backward(1.0, losses.sequence_forward(with_empty)[1])[10:], 0)


def test_a_sequence_that_no_expert_chose_counts_as_0():
    mask_BS = lengths(3, 3)
    even = np.full((6, 3), 1 / 3)
    token_A, expert_A, rank_A = gates.assignments_by_token(np.zeros((6, 1), int), np.arange(6) < 3)
    r = routing.dropless_routing(token_A, expert_A, rank_A, np.ones(3), even, even,
                              Tokens.of_batch(np.zeros((2, 3), int), mask_BS))
    np.testing.assert_allclose(sequence(r), (1 + 0) / 2)  # the first sequence has uniform probabilities


def test_device_by_hand():
    # f = 1/2, 1/4, 1/4, 0, so f' = 4 (1/2 + 1/4) / 2, 4 (1/4 + 0) / 2 = 3/2, 1/2;  P' = 0.1 + 0.2, 0.3 + 0.4
    r = chosen([[0], [0], [1], [2]], [[0.1, 0.2, 0.3, 0.4]] * 4)
    np.testing.assert_allclose(device(r, 2), 1.5 * 0.3 + 0.5 * 0.7)
    # every expert of a device gets f' / T
    dprob_TE = losses.device_backward(2.0, losses.device_forward(r, 2)[1])
    np.testing.assert_allclose(dprob_TE, [[3 / 4, 3 / 4, 1 / 4, 1 / 4]] * 4)


def test_device_equals_a_loop_over_devices():
    r, total = random_routing(lengths(7, 4)), 0
    for first in (0, 2, 4):
        own = first, first + 1
        f = sum(6 * (r.expert_A == e).sum() / (2 * 11) for e in own) / 2
        total += f * sum(r.prob_TE[t, e] for t in np.flatnonzero(r.mask_T) for e in own) / 11
    np.testing.assert_allclose(device(r, 3), total, rtol=1e-12)


def test_with_one_expert_a_device_it_is_the_balance_loss():
    r = random_routing(lengths(7, 4))
    (loss, cache), (expected, balance_cache) = losses.device_forward(r, 6), losses.balance_forward(r)
    np.testing.assert_allclose(loss, expected, rtol=1e-14)
    np.testing.assert_allclose(losses.device_backward(1.0, cache), losses.balance_backward(1.0, balance_cache),
                               rtol=1e-14)


def test_one_device_is_always_even_and_pulls_at_no_router():
    r = random_routing(lengths(7, 4))
    loss, cache = losses.device_forward(r, 1)
    np.testing.assert_allclose(loss, 1, rtol=1e-14)
    np.testing.assert_allclose(ops.softmax_backward(losses.device_backward(1.0, cache), r.prob_TE), 0, atol=1e-16)


@pytest.mark.parametrize(("experts", "expected"), [((0, 1), 2), ((2, 3), 2), ((0, 2), 1), ((1, 3), 1)])
def test_two_busy_experts_are_uneven_on_one_device_and_even_on_two(experts, expected):
    expert_T = np.tile(experts, 3)
    r = chosen(expert_T[:, None], sure(expert_T, 4))
    assert balance(r) == 2  # two of four experts work
    assert device(r, 2) == expected


def test_a_given_load_takes_the_place_of_the_own_one_by_hand():
    # P = (1/4 + 1/2) / 2, ... = 3/8, 5/8;  2 (3/4 * 3/8 + 1/4 * 5/8) = 7/8, though both tokens chose the second expert
    r = chosen([[1], [1]], [[1 / 4, 3 / 4], [1 / 2, 1 / 2]])
    loss, cache = losses.balance_forward(r, np.array([3 / 4, 1 / 4]))
    np.testing.assert_allclose(loss, 7 / 8)
    np.testing.assert_allclose(losses.balance_backward(1.0, cache), [[3 / 4, 1 / 4]] * 2)  # E f / T


def test_micro_batches_that_are_even_only_together_have_the_loss_of_even_ones():
    micro = [chosen([[e]] * 3, sure([e] * 3, 4)) for e in range(4)]
    load_E = sum(r.count_E for r in micro) / 12
    assert [balance(r) for r in micro] == [4, 4, 4, 4]
    assert [balance(r, load_E) for r in micro] == [1, 1, 1, 1]


def test_with_the_load_of_all_the_mean_over_equal_micro_batches_is_the_loss_of_one_big_batch():
    big = random_routing(lengths(6, 6))
    micro = [chosen(np.argsort(-prob_TE, axis=1)[:, :2], prob_TE) for prob_TE in np.split(big.prob_TE, 2)]
    np.testing.assert_allclose(np.mean([balance(r, big.load_E) for r in micro]), balance(big), rtol=1e-14)
    assert abs(np.mean([balance(r) for r in micro]) - balance(big)) > 0.01


@pytest.mark.parametrize(("forward", "backward"), [
    (losses.sequence_forward, losses.sequence_backward),
    (lambda r: losses.device_forward(r, 3), losses.device_backward),
    (lambda r: losses.balance_forward(r, np.array([0.5, 0.1, 0, 0.2, 0, 0.2])), losses.balance_backward),
], ids=["sequence", "device", "balance, given load"])
def test_gradient_of_the_probabilities(forward, backward):
    r = random_routing(lengths(5, 2, 4))

    def of_prob(prob_TE):
        return forward(routing.dropless_routing(r.token_A, r.expert_A, r.rank_A, r.gate_A, r.logit_TE, prob_TE, r.tokens))

    report = gradcheck.check_pair("balance", of_prob, backward, {"prob_TE": r.prob_TE})
    assert report.ok, report
