"""Experts on many devices: a routing written out by hand, loops over assignments, formulas against routings."""

import itertools
import math

import numpy as np
import pytest

from minimoe.config import ModelConfig
from minimoe.cost import all_to_all
from minimoe.moe import capacity, routing
from minimoe.moe.routers import expert_choice, uniform
from minimoe.moe.routing import Tokens


def sent_to(expert_TK, n_experts, mask_T=None, factor=None):
    """The Routing of these choices: gates of 1/K, queues in the order of tokens."""
    expert_TK = np.array(expert_TK)
    mask_T = np.ones(len(expert_TK), bool) if mask_T is None else mask_T
    unlimited = routing.scoreless_routing(expert_TK, Tokens.anonymous(mask_T), n_experts, float)
    return capacity.keep_forward(unlimited, expert_TK.shape[1], factor, "position")[0]


def random_routing(T, E, K, seed=0, **options):
    """Each token goes to any K of E experts, all as likely."""
    return sent_to(np.random.default_rng(seed).random((T, E)).argsort(axis=1)[:, :K], E, **options)


def every_token_in_turn(B, S, E, K):
    """The Routing of the uniform router."""
    config = ModelConfig(n_experts=E, top_k=K, router="uniform")
    return uniform.forward(np.zeros((B * S, 3)), {}, config, Tokens.of_batch(np.zeros((B, S), int)))[0]


CHOICES = [[0, 1], [0, 1], [2, 3], [0, 3], [0, 1], [1, 0], [3, 2], [1, 0]]
EXAMPLE = sent_to(CHOICES, 4)
"""Eight tokens, four experts.  On two ranks tokens 0 to 3 and experts 0, 1 are at home on the first:

    token        0    1    2    3   |   4    5    6    7
    experts     0 1  0 1  2 3  0 3  |  0 1  1 0  3 2  1 0
    ranks       0 0  0 0  1 1  0 1  |  0 0  0 0  1 1  0 0
"""
SPEED = dict(d_hidden=5, link=60, flops=1100)


def test_traffic_by_hand():
    # rank 0 keeps 2 + 2 + 1 and sends 2 + 1; rank 1 sends 2 + 2 + 2 and keeps 2
    for ranks in (2, np.int64(2)):
        np.testing.assert_array_equal(all_to_all.traffic(EXAMPLE, ranks), [[5, 3], [6, 2]])


def test_traffic_of_tokens_that_go_to_a_rank_once_by_hand():
    # tokens 0, 1, 3 stay with rank 0, and 2, 3 go;  4, 5, 7 go, and 6 stays
    np.testing.assert_array_equal(all_to_all.traffic(EXAMPLE, 2, once=True), [[3, 2], [3, 1]])


def test_traffic_with_drops_by_hand():
    # room for 1 * 16 / 4 = 4: expert 0 has 0, 1, 3, 4 and drops 5, 7; expert 1 has 0, 1, 4, 5 and drops 7
    r = sent_to(CHOICES, 4, factor=1)
    np.testing.assert_array_equal(all_to_all.traffic(r, 2), [[5, 3], [3, 2]])
    np.testing.assert_array_equal(all_to_all.traffic(r, 2, once=True), [[3, 2], [2, 1]])
    assert all_to_all.exchange(r, 2, 10, **SPEED).imbalance == 8 / 6.5


def test_padding_sends_nothing_but_has_its_place():
    # token 2 sent two to rank 1, and token 7 two to rank 0
    r = sent_to(CHOICES, 4, mask_T=~np.isin(np.arange(8), (2, 7)))
    np.testing.assert_array_equal(all_to_all.traffic(r, 2), [[5, 1], [4, 2]])
    np.testing.assert_array_equal(all_to_all.traffic(r, 2, once=True), [[3, 1], [2, 1]])


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 6, 12])
@pytest.mark.parametrize("factor", [None, 0.6])
def test_traffic_equals_a_loop_over_assignments(ranks, factor):
    r = random_routing(36, 12, 4, mask_T=np.arange(36) % 5 != 2, factor=factor)
    assert r.kept_A.all() == (factor is None)
    count, once = [[0] * ranks for _ in range(ranks)], [[0] * ranks for _ in range(ranks)]
    homes = [rank for rank in range(ranks) for _ in range(36 // ranks)]
    owners = [rank for rank in range(ranks) for _ in range(12 // ranks)]
    seen = set()
    for token, expert, kept in zip(r.token_A.tolist(), r.expert_A.tolist(), r.kept_A.tolist(), strict=True):
        if kept:
            count[homes[token]][owners[expert]] += 1
            if (token, owners[expert]) not in seen:
                once[homes[token]][owners[expert]] += 1
            seen.add((token, owners[expert]))
    np.testing.assert_array_equal(all_to_all.traffic(r, ranks), count)
    np.testing.assert_array_equal(all_to_all.traffic(r, ranks, once=True), once)


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_every_kept_assignment_is_counted_once(ranks):
    r = random_routing(40, 8, 3, mask_T=np.arange(40) < 33, factor=0.9)
    count_RR = all_to_all.traffic(r, ranks)
    assert count_RR.shape == (ranks, ranks)
    assert 0 < count_RR.sum() == r.kept_A.sum() < len(r.kept_A)
    sent_T = np.bincount(r.token_A[r.kept_A], minlength=40)
    np.testing.assert_array_equal(count_RR.sum(axis=1), sent_T.reshape(ranks, -1).sum(axis=1))
    np.testing.assert_array_equal(count_RR.sum(axis=0), r.kept_count_E.reshape(ranks, -1).sum(axis=1))


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_a_token_that_goes_once_sends_no_more_and_at_least_one(ranks):
    r = random_routing(40, 8, 3)
    often_RR, once_RR = all_to_all.traffic(r, ranks), all_to_all.traffic(r, ranks, once=True)
    assert (once_RR <= often_RR).all() and ((once_RR > 0) == (often_RR > 0)).all()
    assert (often_RR == once_RR).all() == (ranks == 8)  # with an expert on each rank nobody goes to any twice


def test_tokens_that_no_expert_chose_send_nothing():
    rng = np.random.default_rng(0)
    config = ModelConfig(d_model=8, n_heads=1, n_experts=4, top_k=1, router="expert_choice")
    r, _ = expert_choice.forward(rng.normal(size=(12, 8)), {"w_router_DE": rng.normal(size=(8, 4))}, config,
                                 Tokens.anonymous(np.ones(12, bool)))
    chosen_T = np.bincount(r.token_A, minlength=12)
    assert min(chosen_T) == 0 and max(chosen_T) > 1
    assert all_to_all.traffic(r, 2).sum(axis=1).tolist() == [chosen_T[:6].sum(), chosen_T[6:].sum()]


def test_an_exchange_by_hand():
    # 10 numbers of 2 bytes: rank 0 sends 3 * 20 bytes and rank 1 6 * 20.  11 and 5 rows of 6 * 10 * 5 = 300 FLOPs.
    # slowest: 2 * 120 / 60 s and 11 * 300 / 1100 s; even: 2 * 90 / 60 s and 8 * 300 / 1100 s
    e = all_to_all.exchange(EXAMPLE, 2, 10, **SPEED)
    assert e.sent_R.tolist() == [60, 120] and e.received_R.tolist() == [120, 60] and e.rows_R.tolist() == [11, 5]
    assert e.slowest == pytest.approx((4, 3), rel=1e-15) and e.slowest.total == pytest.approx(7, rel=1e-15)
    assert e.even == pytest.approx((3, 24 / 11), rel=1e-15)
    assert e.imbalance == 11 / 8
    assert all_to_all.slowdown(e) == pytest.approx(7 / (57 / 11), rel=1e-15)


def test_an_exchange_of_tokens_that_go_once_by_hand():
    # 2 vectors of 10 single bytes go one way, and 3 the other; the experts compute as many rows as before
    e = all_to_all.exchange(EXAMPLE, 2, 10, bytes_per_number=1, once=True, **SPEED)
    assert e.sent_R.tolist() == [20, 30] and e.received_R.tolist() == [30, 20] and e.rows_R.tolist() == [11, 5]
    assert (*e.slowest, *e.even) == pytest.approx((1, 3, 2 * 25 / 60, 24 / 11), rel=1e-15)


@pytest.mark.parametrize("choices, sent, received", [
    ([2, 0, 2, 1, 2, 2], [1, 1, 0], [0, 0, 2]),
    ([1, 2, 1, 1, 2, 2], [2, 0, 0], [0, 1, 1]),
])
def test_a_rank_takes_as_long_as_it_sends_or_receives_whichever_is_more(choices, sent, received):
    r = sent_to([[e] for e in choices], 3)
    e = all_to_all.exchange(r, 3, 1, bytes_per_number=1, d_hidden=1, link=1, flops=1)
    assert e.sent_R.tolist() == sent and e.received_R.tolist() == received
    assert e.slowest.transfer == 2 * 2 and e.even.transfer == pytest.approx(2 * 2 / 3, rel=1e-15)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("once", [False, True])
def test_an_exchange_equals_a_loop_over_ranks(seed, once):
    r = random_routing(30, 10, 3, seed, factor=0.7)
    count = all_to_all.traffic(r, 5, once).tolist()
    times, moved = [], 0
    for rank in range(5):
        sent, received = (sum(c) - count[rank][rank] for c in (count[rank], [row[rank] for row in count]))
        moved += sent * 7 * 2
        times.append(2 * max(sent, received) * 7 * 2 / 900)
    works = [6 * 7 * 4 * sum(r.kept_count_E[2 * rank:2 * rank + 2]) / 5000 for rank in range(5)]
    e = all_to_all.exchange(r, 5, 7, d_hidden=4, link=900, flops=5000, once=once)
    assert e.slowest == pytest.approx((max(times), max(works)), rel=1e-12)
    assert e.even == pytest.approx((2 * moved / 5 / 900, sum(works) / 5), rel=1e-12)
    assert e.imbalance == pytest.approx(max(works) / (sum(works) / 5), rel=1e-12)
    assert 1 < (max(times) + max(works)) / sum(e.even) == pytest.approx(all_to_all.slowdown(e), rel=1e-12)


def test_one_rank_sends_nothing_and_waits_for_nobody():
    e = all_to_all.exchange(EXAMPLE, 1, 10, **SPEED)
    assert e.sent_R.tolist() == e.received_R.tolist() == [0] and e.rows_R.tolist() == [16]
    assert e.slowest == e.even == pytest.approx((0, 16 * 300 / 1100), rel=1e-15)
    assert e.imbalance == all_to_all.slowdown(e) == 1
    assert all_to_all.all_to_all_bytes(16, 10, 2, 1) == 0
    assert all_to_all.expected_vectors(4, 2, 1) == all_to_all.expected_vectors(4, 2, 1, once=True) == 0


@pytest.mark.parametrize("ranks", [2, 4])
def test_where_one_rank_does_all_the_layer_takes_as_many_times_as_long(ranks):
    # one choice, always an expert of the first rank: it computes all, and receives all but its own
    r = sent_to([[0]] * 8, 4)
    e = all_to_all.exchange(r, ranks, 10, **SPEED)
    assert e.rows_R.tolist() == [8] + [0] * (ranks - 1) and e.imbalance == ranks
    assert all_to_all.slowdown(e) == pytest.approx(ranks, rel=1e-15)


@pytest.mark.parametrize("factor", [1.0, 1.5])
def test_capacity_limits_what_the_busiest_rank_computes(factor):
    # 16 tokens all ask for experts 0 and 1; C = factor * 2 * 16 / 8: the first of four ranks has two experts of it
    r = sent_to([[0, 1]] * 16, 8, factor=factor)
    rows_R = all_to_all.exchange(r, 4, 10, **SPEED).rows_R
    assert rows_R.tolist() == [factor * 2 * 16 / 4, 0, 0, 0]


def test_nothing_but_padding_takes_no_time():
    e = all_to_all.exchange(sent_to(CHOICES, 4, mask_T=np.zeros(8, bool)), 2, 10, **SPEED)
    assert e.sent_R.tolist() == e.received_R.tolist() == e.rows_R.tolist() == [0, 0]
    assert e.slowest.total == e.even.total == 0
    assert e.imbalance == all_to_all.slowdown(e) == 1


@pytest.mark.parametrize("B, S, E, K, ranks", [(4, 8, 8, 2, 4), (2, 8, 4, 1, 2), (8, 6, 6, 3, 2), (3, 4, 12, 3, 3)])
def test_an_even_router_sends_what_the_formula_says(B, S, E, K, ranks):
    # each rank has whole sequences, and each sequence goes to all experts as often
    r, T = every_token_in_turn(B, S, E, K), B * S
    e = all_to_all.exchange(r, ranks, 7, **SPEED)
    assert (all_to_all.traffic(r, ranks) == K * T / ranks**2).all()
    leave = T / ranks * all_to_all.expected_vectors(E, K, ranks) * 7 * 2
    np.testing.assert_allclose([e.sent_R, e.received_R], np.full((2, ranks), leave), rtol=1e-15)
    assert e.rows_R.tolist() == [K * T / ranks] * ranks
    assert e.slowest == e.even and e.imbalance == all_to_all.slowdown(e) == 1


def test_full_buffers_send_what_buffers_of_fixed_size_do():
    # capacity factor 1, and every slot is used: dispatch and combine, forward, of 8 * 8 / 4 slots a rank
    r, _ = capacity.keep_forward(every_token_in_turn(4, 8, 8, 2), 2, 1, "position")
    assert r.capacity == 8 and r.kept_A.all()
    e = all_to_all.exchange(r, 4, 7, **SPEED)
    assert (2 * e.sent_R == all_to_all.all_to_all_bytes(16, 7, 2, 4, all_to_alls=2)).all()


def test_bytes_of_fixed_buffers_by_hand():
    # 4 times 12 slots of 10 numbers of 2 bytes are 960, of which three quarters leave; forward alone half of that
    assert all_to_all.all_to_all_bytes(12, 10, 2, 4) == 720
    assert all_to_all.all_to_all_bytes(12, 10, 2, 4, all_to_alls=2) == 360


@pytest.mark.parametrize("n_experts", [4, 16, 64])
def test_more_experts_send_no_more_bytes(n_experts):
    # a rank's 128 tokens, two experts each, a quarter of room to spare: 1.25 * 2 * 128 = 320 slots, however divided
    slots = n_experts * capacity.capacity(2 * 128, 128, n_experts, 1.25)
    assert all_to_all.all_to_all_bytes(slots, 10, 2, 4) == 4 * 3 * 320 // 4 * 10 * 2


@pytest.mark.parametrize("n_experts, top_k, ranks", [(4, 1, 2), (4, 2, 2), (6, 3, 3), (8, 5, 2), (6, 6, 2), (5, 2, 5)])
def test_expected_vectors_equal_the_mean_of_all_choices(n_experts, top_k, ranks):
    per_rank, choices = n_experts // ranks, list(itertools.combinations(range(n_experts), top_k))
    owners = [[e // per_rank for e in choice] for choice in choices]
    for home in range(ranks):
        often = sum(owner != home for some in owners for owner in some) / len(choices)
        once = sum(len(set(some) - {home}) for some in owners) / len(choices)
        assert all_to_all.expected_vectors(n_experts, top_k, ranks) == pytest.approx(often, rel=1e-14)
        assert all_to_all.expected_vectors(n_experts, top_k, ranks, once=True) == pytest.approx(once, rel=1e-14)


def test_expected_vectors_by_hand():
    # two of four experts, two ranks: 2 * 1/2;  once: of six pairs one is both at home, so 1 - 1/6
    assert all_to_all.expected_vectors(4, 2, 2) == 1
    assert all_to_all.expected_vectors(4, 2, 2, once=True) == pytest.approx(5 / 6, rel=1e-15)
    # more choices than there are elsewhere: every rank is visited
    assert all_to_all.expected_vectors(8, 5, 2, once=True) == 1
    assert all_to_all.expected_vectors(100, 51, np.int64(2), once=True) == 1  # among 9.9e28 choices


@pytest.mark.parametrize("E, K, ranks", [(16, 4, 4), (64, 8, 8), (12, 2, 3)])
@pytest.mark.parametrize("seed", range(2))
def test_a_random_router_sends_what_is_expected(E, K, ranks, seed):
    T = 2400
    r = random_routing(T, E, K, seed)
    owner_TK = r.expert_A.reshape(T, K) // (E // ranks)
    home_T = np.arange(T) // (T // ranks)
    often_T = (owner_TK != home_T[:, None]).sum(axis=1)
    once_T = np.array([len(set(some) - {home}) for some, home in zip(owner_TK.tolist(), home_T.tolist(), strict=True)])
    for once, sent_T in ((False, often_T), (True, once_T)):
        e = all_to_all.exchange(r, ranks, 1, bytes_per_number=1, once=once, **SPEED)
        error = sent_T.std() / math.sqrt(T)  # of the mean: tokens are independent
        assert abs(e.sent_R.sum() / T - all_to_all.expected_vectors(E, K, ranks, once)) < 4 * error < 0.15


@pytest.mark.parametrize("ranks, says", [
    (3, "divide the 4 experts"), (8, "divide the 4 experts"),
    *((ranks, "be a whole number, 1 or more") for ranks in (0, -2, 2.0, "2", True)),
])
def test_ranks_that_cannot_be_are_refused(ranks, says):
    for function in (lambda: all_to_all.traffic(EXAMPLE, ranks), lambda: all_to_all.exchange(EXAMPLE, ranks, 10, **SPEED),
                     lambda: all_to_all.expected_vectors(4, 2, ranks)):
        with pytest.raises(ValueError, match=f"^ranks = {ranks!r}: must {says}"):
            function()


def test_ranks_that_do_not_divide_the_tokens_or_the_slots_are_refused():
    with pytest.raises(ValueError, match="^ranks = 4: must divide the 6 tokens"):
        all_to_all.traffic(sent_to(CHOICES[:6], 4), 4)
    with pytest.raises(ValueError, match="^ranks = 4: must divide the 10 slots"):
        all_to_all.all_to_all_bytes(10, 7, 2, 4)


GOOD = {
    all_to_all.exchange: dict(routing=EXAMPLE, ranks=2, width=10, bytes_per_number=2, **SPEED),
    all_to_all.all_to_all_bytes: dict(slots=8, width=10, bytes_per_number=2, ranks=2, all_to_alls=4),
    all_to_all.expected_vectors: dict(n_experts=4, top_k=2, ranks=2),
}


@pytest.mark.parametrize("function, name, value", [
    *((function, name, 0) for function, numbers in GOOD.items() for name in numbers if name != "routing"),
    (all_to_all.exchange, "width", 2.5), (all_to_all.exchange, "link", -1.0), (all_to_all.exchange, "flops", math.nan),
    (all_to_all.all_to_all_bytes, "slots", -8), (all_to_all.expected_vectors, "n_experts", 4.0),
    (all_to_all.expected_vectors, "top_k", 5),
])
def test_numbers_that_cannot_be_are_refused(function, name, value):
    with pytest.raises(ValueError, match=f"^{name} = {value}: must be "):
        function(**GOOD[function] | {name: value})
