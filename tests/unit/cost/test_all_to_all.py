"""Expert parallelism: a routing written out by hand, loops over assignments, formulas compared with routings."""

import itertools
import math

import numpy as np
import pytest

from minimoe.cost import all_to_all
from tests.unit.cost.covering import sent_to

CHOICES = [[[0, 1], [0, 1], [2, 3], [0, 3], [0, 1], [1, 0], [3, 2], [1, 0]]]
EXAMPLE = sent_to(CHOICES, 4)
"""Eight tokens, four experts.  On two ranks tokens 0 to 3 and experts 0, 1 are at home on the first:

    token        0    1    2    3   |   4    5    6    7
    experts     0 1  0 1  2 3  0 3  |  0 1  1 0  3 2  1 0
    ranks       0 0  0 0  1 1  0 1  |  0 0  0 0  1 1  0 0
"""
SPEED = dict(d_hidden=5, link=60, flops=1100)


@pytest.mark.parametrize("options, often, once", [
    # rank 0 keeps 2 + 2 + 1 and sends 2 + 1; rank 1 sends 2 + 2 + 2 and keeps 2.  Once: tokens 0, 1, 3 stay with rank
    # 0, and 2, 3 go;  4, 5, 7 go, and 6 stays
    (dict(), [[5, 3], [6, 2]], [[3, 2], [3, 1]]),
    # room for 1 * 16 / 4 = 4: expert 0 has 0, 1, 3, 4 and drops 5, 7; expert 1 has 0, 1, 4, 5 and drops 7
    (dict(factor=1), [[5, 3], [3, 2]], [[3, 2], [2, 1]]),
    # token 2 sent two to rank 1, and token 7 two to rank 0: padding sends nothing but has its place
    (dict(mask_BS=~np.isin([range(8)], (2, 7))), [[5, 1], [4, 2]], [[3, 1], [2, 1]]),
], ids=["all", "dropped", "padded"])
def test_traffic_by_hand(options, often, once):
    np.testing.assert_array_equal(all_to_all.traffic(sent_to(CHOICES, 4, **options), 2), often)
    np.testing.assert_array_equal(all_to_all.traffic(sent_to(CHOICES, 4, **options), np.int64(2), once=True), once)


def test_an_exchange_by_hand():
    # 10 numbers of 2 bytes: rank 0 sends 3 * 20 bytes and rank 1 6 * 20.  11 and 5 rows of 6 * 10 * 5 = 300 FLOPs.
    # slowest: 2 * 120 / 60 s and 11 * 300 / 1100 s; even: 2 * 90 / 60 s and 8 * 300 / 1100 s
    e = all_to_all.exchange(EXAMPLE, 2, 10, **SPEED)
    assert e.sent_R.tolist() == [60, 120] and e.received_R.tolist() == [120, 60] and e.rows_R.tolist() == [11, 5]
    assert e.slowest == pytest.approx((4, 3), rel=1e-15) and e.slowest.total == pytest.approx(7, rel=1e-15)
    assert e.even == pytest.approx((3, 24 / 11), rel=1e-15)
    assert e.imbalance == 11 / 8
    assert all_to_all.slowdown(e) == pytest.approx(7 / (57 / 11), rel=1e-15)
    # of three ranks the first receives from none, sends to both others and is the slowest; the third receives most
    for choices, moved in ([2, 0, 2, 1, 2, 2], ([1, 1, 0], [0, 0, 2])), ([1, 2, 1, 1, 2, 2], ([2, 0, 0], [0, 1, 1])):
        e = all_to_all.exchange(sent_to([[[e] for e in choices]], 3), 3, 1, 1, d_hidden=1, link=1, flops=1)
        assert (e.sent_R.tolist(), e.received_R.tolist(), e.slowest.transfer) == (*moved, 2 * 2)
    # once: 2 vectors of 10 single bytes go one way, and 3 the other; the experts compute as many rows as before
    e = all_to_all.exchange(EXAMPLE, 2, 10, bytes_per_number=1, once=True, **SPEED)
    assert e.sent_R.tolist() == [20, 30] and e.received_R.tolist() == [30, 20] and e.rows_R.tolist() == [11, 5]
    assert (*e.slowest, *e.even) == pytest.approx((1, 3, 2 * 25 / 60, 24 / 11), rel=1e-15)


def test_one_rank_sends_nothing_and_waits_for_none():
    e = all_to_all.exchange(EXAMPLE, 1, 10, **SPEED)
    assert e.sent_R.tolist() == e.received_R.tolist() == [0] and e.rows_R.tolist() == [16]
    assert e.slowest == e.even == pytest.approx((0, 16 * 300 / 1100), rel=1e-15)
    assert e.imbalance == all_to_all.slowdown(e) == 1
    assert all_to_all.all_to_all_bytes(16, 10, 2, 1) == 0
    assert all_to_all.expected_vectors(4, 2, 1) == all_to_all.expected_vectors(4, 2, 1, once=True) == 0
    # nothing but padding takes no time
    e = all_to_all.exchange(sent_to(CHOICES, 4, mask_BS=np.zeros((1, 8), bool)), 2, 10, **SPEED)
    assert e.sent_R.tolist() == e.received_R.tolist() == e.rows_R.tolist() == [0, 0]
    assert e.slowest.total == e.even.total == 0 and e.imbalance == all_to_all.slowdown(e) == 1


def test_an_even_routing_sends_what_the_formulas_say():
    # 32 tokens of four ranks take 8 experts round-robin: each rank has 8 tokens, which go to all experts as often
    r = sent_to([[[t % 8, (t + 1) % 8] for t in range(32)]], 8, factor=1)
    e = all_to_all.exchange(r, 4, 7, **SPEED)
    assert (all_to_all.traffic(r, 4) == 2 * 32 / 4**2).all()
    np.testing.assert_allclose([e.sent_R, e.received_R], 8 * all_to_all.expected_vectors(8, 2, 4) * 7 * 2, rtol=1e-15)
    assert e.slowest == e.even and e.imbalance == all_to_all.slowdown(e) == 1
    # full buffers of fixed size send as much, 8 * 8 / 4 slots per rank
    assert r.capacity == 8 and (2 * e.sent_R == all_to_all.all_to_all_bytes(16, 7, 2, 4, all_to_alls=2)).all()
    # 4 times 12 slots of 10 numbers of 2 bytes are 960, of which three quarters leave; forward alone half of that
    assert all_to_all.all_to_all_bytes(12, 10, 2, 4) == 720
    assert all_to_all.all_to_all_bytes(12, 10, 1, 4, all_to_alls=2) == 180  # one byte per number
    # more choices than there are elsewhere: every rank is visited; of very many but for less than (1 - 1/R)^K
    assert all_to_all.expected_vectors(100, 51, np.int64(2), once=True) == 1  # among 9.9e28 choices
    assert all_to_all.expected_vectors(10**12, 10**11, 8, once=True) == 7


@pytest.mark.parametrize("n_experts, top_k, ranks", [(4, 2, 2), (6, 3, 3), (8, 5, 2)])
def test_expected_vectors_equal_the_mean_of_all_choices(n_experts, top_k, ranks):
    choices = itertools.combinations(range(n_experts), top_k)
    owners = [[e // (n_experts // ranks) for e in choice] for choice in choices]  # the token is at home on the first
    often = sum(owner != 0 for some in owners for owner in some) / len(owners)
    once = sum(len(set(some) - {0}) for some in owners) / len(owners)
    assert all_to_all.expected_vectors(n_experts, top_k, ranks) == pytest.approx(often, rel=1e-14)
    assert all_to_all.expected_vectors(n_experts, top_k, ranks, once=True) == pytest.approx(once, rel=1e-14)


def test_ranks_that_cannot_be_are_refused():
    whole = "be a whole number, 1 or more"
    for ranks, says in ((3, "divide the 4 experts"), (0, whole), (2.0, whole), (True, whole)):
        with pytest.raises(ValueError, match=f"^ranks = {ranks!r}: must {says}"):
            all_to_all.traffic(EXAMPLE, ranks)
    with pytest.raises(ValueError, match="^ranks = 4: must divide the 6 tokens"):
        all_to_all.traffic(sent_to([CHOICES[0][:6]], 4), 4)
    with pytest.raises(ValueError, match="^ranks = 4: must divide the 10 slots"):
        all_to_all.all_to_all_bytes(10, 7, 2, 4)


def test_numbers_that_cannot_be_are_refused():
    good = dict(width=10, bytes_per_number=2, **SPEED)
    for name, value in (*((name, 0) for name in good), ("flops", math.nan)):
        with pytest.raises(ValueError, match=f"^{name} = {value}: must be "):
            all_to_all.exchange(EXAMPLE, 2, **good | {name: value})
    good = dict(slots=8, width=10, bytes_per_number=2, ranks=2, all_to_alls=4)
    for name in good:
        with pytest.raises(ValueError, match=f"^{name} = 0: must be "):
            all_to_all.all_to_all_bytes(**good | {name: 0})
    for E, K, says in ((0, 2, "n_experts = 0"), (4, 0, "top_k = 0"), (4, 5, "top_k = 5: must be at most the 4 exper")):
        with pytest.raises(ValueError, match=says):
            all_to_all.expected_vectors(E, K, 2)
