"""The signals that the doctor reads: information, churn, drops by label, sizes of logits, pairs of experts."""

import math

import numpy as np
import pytest

from minimoe.moe import capacity, gates, routing, telemetry
from minimoe.moe.routing import Tokens


def routed(score_TE, top_k=1, mask_T=None, factor=None):
    """The Routing of the K best scores, by position within a capacity."""
    score_TE = np.array(score_TE, float)
    mask_T = np.ones(len(score_TE), bool) if mask_T is None else np.array(mask_T)
    token_A, expert_A, rank_A = gates.assignments_by_token(gates.top_k_experts(score_TE, top_k), mask_T)
    prob_TE = np.full(score_TE.shape, 1 / score_TE.shape[1])
    r = routing.dropless_routing(token_A, expert_A, rank_A, np.ones(len(token_A)), score_TE, prob_TE,
                              Tokens.anonymous(mask_T))
    return capacity.keep_forward(r, top_k, factor, "position")[0]


def random_routing(top_k=2, factor=0.8):
    """Eleven tokens, two of them padding, and five experts."""
    return routed(np.random.default_rng(0).normal(size=(11, 5)), top_k, ~np.isin(np.arange(11), (4, 10)), factor)


def sets(*rows, n_experts=4):
    """Who has which expert: one set a token."""
    return np.array([[expert in row for expert in range(n_experts)] for row in rows])


@pytest.mark.parametrize(("counts", "information"), [
    # each label has an expert of its own: log 2, less (2 - 1)(2 - 1) / (2 * 4)
    ([[2, 0], [0, 2]], math.log(2) - 1 / 8),
    # the expert says nothing: 0, less the same
    ([[1, 1], [1, 1]], -1 / 8),
    # n = 8, p(label) = (1/2, 1/2), p(expert) = (3/8, 5/8): 3/8 log(3/8 / (3/16)) + 1/8 log(1/8 / (5/16)) + ...
    ([[3, 1], [0, 4]], 3 / 8 * math.log(2) + 1 / 8 * math.log(2 / 5) + 1 / 2 * math.log(8 / 5) - 1 / 16),
    # one label, or one expert: there is nothing to tell, and nothing to subtract
    ([[3, 4]], 0), ([[3], [4]], 0),
    ([[0, 0], [0, 0]], 0),
])
def test_mutual_information_by_hand(counts, information):
    assert telemetry.mutual_information(np.array(counts)) == pytest.approx(information, abs=1e-15)


def test_mutual_information_equals_a_loop():
    counts = np.random.default_rng(0).integers(0, 5, (6, 4))
    n, total = counts.sum(), 0
    for x in range(6):
        for e in range(4):
            if counts[x, e]:
                total += counts[x, e] / n * math.log(counts[x, e] * n / (sum(counts[x]) * sum(counts[:, e])))
    assert telemetry.mutual_information(counts) == pytest.approx(total - 5 * 3 / (2 * n), rel=1e-12)


def test_labels_and_experts_that_never_occur_change_no_information():
    counts = np.array([[3, 1], [0, 4]])
    wider = np.insert(np.insert(counts, 1, 0, axis=0), 2, 0, axis=1)
    assert telemetry.mutual_information(wider) == pytest.approx(telemetry.mutual_information(counts), rel=1e-12)


def test_the_label_tells_of_the_expert_what_the_expert_tells_of_the_label():
    counts = np.random.default_rng(1).integers(0, 9, (7, 3))
    assert telemetry.mutual_information(counts.T) == pytest.approx(telemetry.mutual_information(counts), rel=1e-12)


def test_experts_that_ignore_the_label_have_no_information_on_average():
    """The sum alone would have a mean of about 7 * 3 / (2 * 200) = 0.05; the mean of 400 draws is known to 0.001."""
    draws = np.random.default_rng(0).multinomial(200, np.full(32, 1 / 32), size=400).reshape(-1, 8, 4)
    assert abs(np.mean([telemetry.mutual_information(counts) for counts in draws])) < 0.004


def test_the_size_of_logits_by_hand():
    assert telemetry.logit_size(routed([[1, -3], [2, 0]])) == (3 + 2) / 2


def test_a_constant_added_to_all_logits_counts_in_their_size():
    assert telemetry.logit_size(routed([[5, 5], [-7, -7]])) == (5 + 7) / 2


def test_padding_has_no_logits():
    assert telemetry.logit_size(routed([[1, -3], [900, 0], [2, 0]], mask_T=[True, False, True])) == (3 + 2) / 2


def test_the_summary_has_the_size_of_logits_layer_by_layer():
    assert telemetry.summarize([routed([[1, -3]]), routed([[0.5, 0]])]).logit_L.tolist() == [3, 0.5]


def test_drops_by_label_by_hand():
    # room for 0.75 * 4 / 2 = 1.5, so 2: expert 0 takes tokens 0 and 1, and drops 2 and 3
    r = routed([[1, 0]] * 4, factor=0.75)
    assert telemetry.drop_by_label(r, np.array([0, 1, 1, 3]), 5).tolist() == [0, 1 / 2, 0, 1, 0]


def test_drops_by_label_equal_a_loop():
    r, label_T = random_routing(), np.random.default_rng(1).integers(0, 3, 11)
    asked, dropped = [0] * 3, [0] * 3
    for token, kept in zip(r.token_A, r.kept_A, strict=True):
        asked[label_T[token]] += 1
        dropped[label_T[token]] += not kept
    assert 0 < sum(dropped) < sum(asked)
    np.testing.assert_allclose(telemetry.drop_by_label(r, label_T, 3), np.divide(dropped, asked), rtol=1e-15)


def test_a_chosen_expert_is_true_whether_it_was_kept_or_not():
    # token 2 finds expert 0 full; token 1 is padding
    r = routed([[3, 2, 1], [1, 2, 3], [3, 1, 2]], 2, mask_T=[True, False, True], factor=0.5)
    assert not r.kept_A.all()
    np.testing.assert_array_equal(telemetry.chosen(r), sets({0, 1}, {}, {0, 2}, n_experts=3))


@pytest.mark.parametrize(("before", "after", "share"), [
    ([{0, 1}, {2, 3}], [{1, 0}, {2, 3}], 0),
    ([{0, 1}, {0, 2}, {1, 3}], [{0, 1}, {0, 3}, {0, 2}], 3 / 6),  # none, one and two of two are new
    ([{0}, {1}, {2}, {3}], [{1}, {1}, {2}, {0}], 2 / 4),
    ([{}, {0, 1}, {2}], [{2}, {0}, {}], 1 / 2),  # as experts that choose may do it: of two assignments one is new
    ([{}, {0}], [{}, {}], 0),
])
def test_churn_by_hand(before, after, share):
    assert telemetry.churn(sets(*before), sets(*after)) == share


def test_coactivation_by_hand():
    # experts {0, 1}, {0, 2}, {0, 1}: expert 0 meets 1 twice and 2 once
    r = routed([[3, 2, 1], [3, 1, 2], [2, 3, 1]], 2)
    assert telemetry.coactivation(r).tolist() == [[0, 2, 1], [2, 0, 0], [1, 0, 0]]


def test_all_pairs_of_a_token_count_not_those_of_neighbouring_ranks_alone():
    np.testing.assert_array_equal(telemetry.coactivation(routed([[4, 3, 2, 1]], 4)), 1 - np.eye(4))


@pytest.mark.parametrize("top_k", [1, 2, 3, 5])
def test_an_expert_meets_one_fewer_than_k_others_with_each_of_its_tokens(top_k):
    r = random_routing(top_k)
    np.testing.assert_array_equal(telemetry.coactivation(r).sum(axis=1), (top_k - 1) * r.count_E)
