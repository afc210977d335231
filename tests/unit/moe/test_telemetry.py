"""What the router did: by hand on small routings, and against loops on random ones with drops and padding."""

import math

import numpy as np
import pytest

from minimoe.moe import capacity, gates, routing, telemetry
from minimoe.moe.routing import Tokens


def routed(prob_TE, top_k=1, mask_T=None, factor=None):
    """The Routing of the top-K router with these probabilities and raw gates."""
    prob_TE = np.array(prob_TE, float)
    mask_T = np.ones(len(prob_TE), bool) if mask_T is None else np.array(mask_T)
    best_TK = np.argsort(-prob_TE, axis=1, kind="stable")[:, :top_k]
    token_A, expert_A, rank_A = gates.assignments_by_token(best_TK, mask_T)
    r = routing.dropless_routing(token_A, expert_A, rank_A, prob_TE[token_A, expert_A], np.zeros_like(prob_TE), prob_TE,
                              Tokens.anonymous(mask_T))
    return capacity.keep_forward(r, top_k, factor, "position")[0]


def random_routing(factor=0.8):
    """Eleven tokens, two of them padding, of which each goes to two of five experts."""
    rng = np.random.default_rng(0)
    return routed(rng.dirichlet(np.ones(5), 11), 2, ~np.isin(np.arange(11), (4, 10)), factor)


EXAMPLE = routed([[0.7, 0.2, 0.1], [0.5, 0.4, 0.1], [0.6, 0.1, 0.3]], 2, factor=0.75)
"""Room for ceil(0.75 * 6 / 3) = 2: expert 0 has three tokens and drops the last, expert 1 has two, expert 2 has one."""


@pytest.mark.parametrize("n_experts", [1, 2, 8])
def test_entropy_of_a_router_that_knows_nothing_is_log_of_the_experts(n_experts):
    assert telemetry.entropy(routed(np.full((4, n_experts), 1 / n_experts))) == pytest.approx(math.log(n_experts))


def test_entropy_of_a_sure_router_is_zero():
    assert telemetry.entropy(routed(np.eye(4))) == 0


def test_entropy_by_hand():
    # 1/2, 1/4, 1/4: (1/2 + 2/4 + 2/4) ln 2 = 3/2 ln 2;  1/2, 1/2, 0: ln 2
    assert telemetry.entropy(routed([[0.5, 0.25, 0.25], [0.5, 0.5, 0]])) == pytest.approx(1.25 * math.log(2))


def test_margin_by_hand():
    # of the second choice over the third: 0.2 - 0.1, 0.4 - 0.1, 0.3 - 0.1
    assert telemetry.margin(EXAMPLE) == pytest.approx(0.2)


def test_margin_of_first_choices_by_hand():
    # 0.7 - 0.2 and 0.4 - 0.4
    assert telemetry.margin(routed([[0.2, 0.7, 0.1], [0.4, 0.2, 0.4]])) == pytest.approx(0.25)


def test_margin_is_zero_where_every_expert_is_chosen():
    assert telemetry.margin(routed([[0.7, 0.3]], top_k=2)) == 0


def test_drop_rate_by_hand():
    assert telemetry.drop_rate(EXAMPLE) == pytest.approx(1 / 6)
    assert telemetry.drop_rate(routed([[0.7, 0.3]])) == 0


def test_drop_rate_of_padding_alone_is_zero():
    assert telemetry.drop_rate(routed([[0.7, 0.3]], mask_T=[False])) == 0


def test_the_summary_has_each_layer_by_hand():
    # the second layer sends both of its tokens to expert 1: experts 0 and 2 are dead
    other = routed([[0.2, 0.5, 0.3], [0, 1, 0]])
    summary = telemetry.summarize([EXAMPLE, other])
    np.testing.assert_allclose(summary.load_LE, [[3 / 6, 2 / 6, 1 / 6], [0, 1, 0]])
    np.testing.assert_allclose(summary.drop_L, [1 / 6, 0])
    np.testing.assert_allclose(summary.margin_L, [0.2, (0.2 + 1) / 2])
    np.testing.assert_allclose(summary.entropy_L, [telemetry.entropy(r) for r in (EXAMPLE, other)])
    np.testing.assert_array_equal(summary.dead_L, [0, 2])


def test_an_expert_that_drops_all_but_one_is_not_dead():
    assert telemetry.summarize([EXAMPLE]).dead_L == [0]


def test_everything_equals_a_loop_over_the_real_tokens():
    r = random_routing()
    entropies, margins = [], []
    for t in np.flatnonzero(r.mask_T):
        best = sorted(r.prob_TE[t], reverse=True)
        entropies.append(-sum(p * math.log(p) for p in best))
        margins.append(best[1] - best[2])
    assert len(entropies) == 9
    assert telemetry.entropy(r) == pytest.approx(np.mean(entropies), rel=1e-12)
    assert telemetry.margin(r) == pytest.approx(np.mean(margins), rel=1e-12)
    assert telemetry.drop_rate(r) == pytest.approx(sum(not kept for kept in r.kept_A) / 18, rel=1e-12) != 0


def test_padding_counts_nowhere():
    real = np.random.default_rng(0).dirichlet(np.ones(5), 9)
    mask_T = ~np.isin(np.arange(11), (4, 10))
    for fill in (np.eye(5)[0], np.full(5, 0.2)):
        padded = np.insert(real, [4, 9], fill, axis=0)
        with_padding = telemetry.summarize([routed(padded, 2, mask_T, 0.8)])
        for left, right in zip(with_padding, telemetry.summarize([routed(real, 2, factor=0.8)]), strict=True):
            np.testing.assert_allclose(left, right, rtol=1e-12)
        np.testing.assert_array_equal(
            telemetry.count_by_label(routed(padded, 2, mask_T), np.insert(np.arange(9) % 3, [4, 9], 2), 3),
            telemetry.count_by_label(routed(real, 2), np.arange(9) % 3, 3))
        assert {row.token for row in telemetry.ledger([routed(padded, 2, mask_T)])} == set(np.flatnonzero(mask_T))


def test_counts_by_label_by_hand():
    # tokens 0 and 2 have label 1, token 1 has label 0; nobody has label 2; drops count too
    assert telemetry.count_by_label(EXAMPLE, np.array([1, 0, 1]), 3).tolist() == [[1, 1, 0], [2, 1, 1], [0, 0, 0]]


def test_counts_by_label_equal_a_loop():
    r, label_T = random_routing(), np.random.default_rng(1).integers(0, 4, 11)
    counts = np.zeros((4, 5))
    for token, expert in zip(r.token_A, r.expert_A, strict=True):
        counts[label_T[token], expert] += 1
    np.testing.assert_array_equal(telemetry.count_by_label(r, label_T, 4), counts)


def test_counts_by_label_sum_to_the_load():
    r = random_routing()
    np.testing.assert_array_equal(telemetry.count_by_label(r, np.arange(11) % 4, 4).sum(axis=0), r.count_E)


def test_the_ledger_by_hand():
    # layer, token, rank, expert, gate, slot, kept, why
    assert telemetry.ledger([EXAMPLE]) == [
        (0, 0, 0, 0, 0.7, 0, True, "place 1 of 2"),
        (0, 0, 1, 1, 0.2, 0, True, "place 1 of 2"),
        (0, 1, 0, 0, 0.5, 1, True, "place 2 of 2"),
        (0, 1, 1, 1, 0.4, 1, True, "place 2 of 2"),
        (0, 2, 0, 0, 0.6, 2, False, "place 3, room for 2"),
        (0, 2, 1, 2, 0.3, 0, True, "place 1 of 2"),
    ]


def test_the_ledger_of_a_dropless_layer_says_so():
    assert [row.why for row in telemetry.ledger([routed([[0.7, 0.3]] * 2)])] == ["no limit"] * 2


def test_the_ledger_goes_token_by_token_whatever_the_order_of_the_assignments():
    names = ("token_A", "expert_A", "rank_A", "gate_A", "slot_A", "kept_A")
    order = np.random.default_rng(0).permutation(6)
    columns = {name: getattr(EXAMPLE, name)[order] for name in names}
    shuffled = routing.Routing(**columns, logit_TE=EXAMPLE.logit_TE, prob_TE=EXAMPLE.prob_TE, tokens=EXAMPLE.tokens,
                               capacity=EXAMPLE.capacity)
    assert telemetry.ledger([shuffled]) == telemetry.ledger([EXAMPLE])


def test_the_ledger_goes_layer_by_layer():
    rows = telemetry.ledger([EXAMPLE, routed([[0.1, 0.9]])])
    assert [row.layer for row in rows] == [0] * 6 + [1]
    assert rows[-1][1:5] == (0, 0, 1, 0.9)
