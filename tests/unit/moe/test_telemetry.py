"""Statistics of routing: by hand on small routings, and against loops on a random one with drops and padding."""

import math
from dataclasses import replace

import numpy as np
import pytest

from minimoe.moe import telemetry
from tests import cases

EXAMPLE = cases.routed([[0.7, 0.2, 0.1], [0.5, 0.4, 0.1], [0.6, 0.1, 0.3]], 2, limit=0.75,
                       logit_TE=[[1.0, -3, 0], [2, 0, 0], [5, 5, 5]])
"""Room for ceil(0.75 * 6 / 3) = 2: expert 0 has three tokens and drops the last, expert 1 has two, expert 2 has one."""
MASK_T = ~np.isin(np.arange(11), (4, 10))
PROB_TE = np.random.default_rng(0).dirichlet(np.ones(5), 11)
RANDOM = cases.routed(PROB_TE, 2, MASK_T, logit_TE=np.log(PROB_TE), limit=0.8)
"""Eleven tokens, two of them padding, of which each goes to two of five experts; some are dropped."""


def sets(*rows, n_experts=4):
    """One set of experts per token."""
    return np.array([[expert in row for expert in range(n_experts)] for row in rows])


@pytest.mark.parametrize(("prob_TE", "entropy"), [
    (np.full((4, 1), 1.0), 0), (np.full((4, 8), 1 / 8), math.log(8)), (np.eye(4), 0),
    # 1/2, 1/4, 1/4: (1/2 + 2/4 + 2/4) ln 2 = 3/2 ln 2;  1/2, 1/2, 0: ln 2
    ([[0.5, 0.25, 0.25], [0.5, 0.5, 0]], 1.25 * math.log(2))])
def test_entropy_by_hand(prob_TE, entropy):
    assert telemetry.entropy(cases.routed(prob_TE)) == pytest.approx(entropy, abs=1e-15)


@pytest.mark.parametrize(("prob_TE", "top_k", "margin"), [
    ([[0.7, 0.2, 0.1], [0.5, 0.4, 0.1], [0.6, 0.1, 0.3]], 2, 0.2),  # 0.2 - 0.1, 0.4 - 0.1, 0.3 - 0.1
    ([[0.2, 0.7, 0.1], [0.4, 0.2, 0.4]], 1, 0.25),  # 0.7 - 0.2 and 0.4 - 0.4
    ([[0.7, 0.3]], 2, 0)])
def test_margin_by_hand(prob_TE, top_k, margin):
    assert telemetry.margin(cases.routed(prob_TE, top_k)) == pytest.approx(margin)


def test_the_summary_of_each_layer_by_hand():
    """The second layer sends both of its tokens to expert 1: experts 0 and 2 are dead; one that drops is not."""
    other = cases.routed([[0.2, 0.5, 0.3], [0, 1, 0]])
    summary = telemetry.summarize([EXAMPLE, other])
    np.testing.assert_allclose(summary.load_LE, [[3 / 6, 2 / 6, 1 / 6], [0, 1, 0]])
    np.testing.assert_allclose(summary.drop_L, [1 / 6, 0])
    np.testing.assert_allclose(summary.margin_L, [0.2, (0.2 + 1) / 2])
    np.testing.assert_allclose(summary.entropy_L, [telemetry.entropy(r) for r in (EXAMPLE, other)])
    assert summary.dead_L.tolist() == [0, 2]
    np.testing.assert_allclose(summary.logit_L, [(3 + 2 + 5) / 3, 0])  # max |logit|: a constant added to all counts
    assert telemetry.drop_rate(cases.routed([[0.7, 0.3]], mask=[False])) == 0


def test_everything_equals_a_loop_over_the_real_tokens():
    r, label_T = RANDOM, np.random.default_rng(1).integers(0, 4, 11)
    best_RE, counts, dropped = np.sort(-r.prob_TE[MASK_T]), np.zeros((4, 5)), np.zeros(4)
    for token, expert, kept in zip(r.token_A, r.expert_A, r.kept_A, strict=True):
        counts[label_T[token], expert] += 1
        dropped[label_T[token]] += not kept
    assert 0 < dropped.sum() < counts.sum() == 18
    assert telemetry.entropy(r) == pytest.approx(np.mean([-sum(p * math.log(p) for p in -row) for row in best_RE]))
    assert telemetry.margin(r) == pytest.approx(np.mean(best_RE[:, 2] - best_RE[:, 1]), rel=1e-12)
    assert telemetry.logit_size(r) == pytest.approx(np.mean([max(abs(row)) for row in r.logit_TE[MASK_T]]), rel=1e-12)
    assert telemetry.drop_rate(r) == pytest.approx(dropped.sum() / 18, rel=1e-12)
    np.testing.assert_array_equal(telemetry.count_by_label(r, label_T, 4), counts)
    np.testing.assert_allclose(telemetry.drop_by_label(r, label_T, 4), dropped / counts.sum(axis=1), rtol=1e-15)
    assert {row.token for row in telemetry.ledger([r])} == set(np.flatnonzero(MASK_T))


def test_counts_and_drops_by_label_by_hand():
    """Tokens 0 and 2 have label 1, token 1 has label 0, none has label 2; one of label 1's four was dropped."""
    assert telemetry.count_by_label(EXAMPLE, np.array([1, 0, 1]), 3).tolist() == [[1, 1, 0], [2, 1, 1], [0, 0, 0]]
    assert telemetry.drop_by_label(EXAMPLE, np.array([1, 0, 1]), 3).tolist() == [0, 1 / 4, 0]
    r = cases.routed([[1, 0]] * 4, limit=0.75)  # room for 0.75 * 4 / 2 = 1.5, so 2: tokens 2 and 3 are dropped
    assert telemetry.drop_by_label(r, np.array([0, 1, 1, 3]), 5).tolist() == [0, 1 / 2, 0, 1, 0]


@pytest.mark.parametrize(("counts", "information"), [
    # each label has an expert of its own: log 2, less (2 - 1)(2 - 1) / (2 * 4)
    ([[2, 0], [0, 2]], math.log(2) - 1 / 8),
    # the expert carries no information: 0, less the same
    ([[1, 1], [1, 1]], -1 / 8),
    # n = 8, p(label) = (1/2, 1/2), p(expert) = (3/8, 5/8): 3/8 log(3/8 / (3/16)) + 1/8 log(1/8 / (5/16)) + ...
    ([[3, 1], [0, 4]], 3 / 8 * math.log(2) + 1 / 8 * math.log(2 / 5) + 1 / 2 * math.log(8 / 5) - 1 / 16),
    # a label and an expert that never occur change nothing
    ([[3, 1, 0], [0, 0, 0], [0, 4, 0]], 3 / 8 * math.log(2) + 1 / 8 * math.log(2 / 5) + 1 / 2 * math.log(1.6) - 1 / 16),
    # one label, or one expert: there is nothing to learn, and nothing to subtract
    ([[3, 4]], 0), ([[3], [4]], 0), ([[1]], 0), ([[0, 0], [0, 0]], 0)])
def test_mutual_information_by_hand_and_both_ways(counts, information):
    assert telemetry.mutual_information(np.array(counts)) == pytest.approx(information, abs=1e-15)
    assert telemetry.mutual_information(np.array(counts).T) == pytest.approx(information, abs=1e-15)


def test_first_choices_and_chosen_experts_count_whether_they_were_kept_or_not():
    r = cases.routed([[0.5, 0.3, 0.2], [0.2, 0.3, 0.5], [0.5, 0.2, 0.3]], 2, [True, False, True], limit=0.5)
    assert not r.kept_A.all()
    np.testing.assert_array_equal(telemetry.chosen(r), sets({0, 1}, {}, {0, 2}, n_experts=3))
    assert telemetry.first_choice(r).tolist() == [0, -1, 0]


@pytest.mark.parametrize(("before", "after", "share"), [
    ([{0, 1}, {2, 3}], [{1, 0}, {2, 3}], 0),
    ([{0, 1}, {0, 2}, {1, 3}], [{0, 1}, {0, 3}, {0, 2}], 3 / 6),  # none, one and two of two are new
    ([{}, {0, 1}, {2}], [{2}, {0}, {}], 1 / 2),  # as experts that choose may do it: of two assignments one is new
    ([{0}], [{1}], 1), ([{}, {0}], [{}, {}], 0)])
def test_churn_by_hand(before, after, share):
    assert telemetry.churn(sets(*before), sets(*after)) == share


def test_coactivation_by_hand():
    """Experts {0, 1}, {0, 2}, {0, 1}: expert 0 meets 1 twice and 2 once."""
    r = cases.routed([[3, 2, 1], [3, 1, 2], [2, 3, 1]], 2)
    assert telemetry.coactivation(r).tolist() == [[0, 2, 1], [2, 0, 0], [1, 0, 0]]


@pytest.mark.parametrize("top_k", [1, 3, 5])
def test_an_expert_meets_k_minus_1_others_with_each_of_its_tokens(top_k):
    """All pairs of a token count, not those of neighboring ranks alone."""
    r = cases.routed(PROB_TE, top_k, MASK_T)
    np.testing.assert_array_equal(telemetry.coactivation(r).sum(axis=1), (top_k - 1) * r.count_E)


def test_the_ledger_by_hand_goes_layer_by_layer_and_token_by_token_whatever_the_order_of_the_assignments():
    order = [3, 5, 0, 4, 2, 1]
    names = "token_A", "expert_A", "rank_A", "gate_A", "slot_A", "kept_A"
    shuffled = replace(EXAMPLE, **{name: getattr(EXAMPLE, name)[order] for name in names})
    first = [  # layer, token, rank, expert, gate, slot, kept, why
        (0, 0, 0, 0, 0.7, 0, True, "place 1 of 2"), (0, 0, 1, 1, 0.2, 0, True, "place 1 of 2"),
        (0, 1, 0, 0, 0.5, 1, True, "place 2 of 2"), (0, 1, 1, 1, 0.4, 1, True, "place 2 of 2"),
        (0, 2, 0, 0, 0.6, 2, False, "place 3, room for 2"), (0, 2, 1, 2, 0.3, 0, True, "place 1 of 2")]
    other = cases.routed([[0.1, 0.9]])
    assert telemetry.ledger([shuffled, other]) == first + [(1, 0, 0, 1, 0.9, 0, True, "no limit")]
    assert [row.layer for row in telemetry.ledger([other, other], layers=[2, 5])] == [2, 5]
