"""Capacity: how many slots an expert has, which assignments queue first, and which are dropped."""

from collections import Counter
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minimoe.config import ModelConfig
from minimoe.moe import capacity
from tests import cases

FACTORS = st.integers(1, 40).map(lambda tenths: tenths / 10)
SIZES = dict(T=st.integers(1, 12), E=st.integers(1, 6), seed=st.integers(0, 999), factor=FACTORS)

QUEUES_BEFORE = {
    "position": lambda r, a: (r.token_A[a], r.rank_A[a]),
    "rank": lambda r, a: (r.rank_A[a], r.token_A[a]),
    "priority": lambda r, a: (r.rank_A[a], -r.prob_TE[r.token_A[a]].max(), r.token_A[a]),
}

each_order = pytest.mark.parametrize("order", capacity.ORDERS)


def assert_queues_like_a_loop(r, order):
    slot_A, seen = np.zeros(len(r.token_A), int), Counter()
    for a in sorted(range(len(slot_A)), key=lambda a: QUEUES_BEFORE[order](r, a)):
        slot_A[a] = seen[r.expert_A[a]]
        seen[r.expert_A[a]] += 1
    np.testing.assert_array_equal(r.slot_A, slot_A)


@pytest.mark.parametrize(("K", "T", "E", "factor", "expected"), [
    (2, 48, 8, 1.25, 15),  # 1.25 * 96 / 8 = 15
    (1, 48, 8, 1.25, 8),  # 1.25 * 48 / 8 = 7.5
    (1, 20, 2, 1.1, 11),  # 1.1 * 20 / 2 = 11, though the float nearest to 1.1 is a little more than it
    (2, 100, 4, 1.1, 55),  # 1.1 * 200 / 4 = 55, though 1.1 * 200 is 220.00000000000003 in floating point
    (1, 2, 8, 1.0, 1),  # 2 / 8: fewer tokens than experts
    (2, 1, 64, 0.01, 1), (0, 0, 8, 1.25, 1),
    (2, 10, 4, 100.0, 10),  # a token has an expert once, so T slots are enough
    (2, 10, 4, None, None),
])
def test_capacity_by_hand(K, T, E, factor, expected):
    assert capacity.capacity(K * T, T, E, factor) == expected


@cases.FEW
@given(st.integers(1, 300), st.integers(1, 40), st.integers(1, 8), FACTORS)
def test_capacity_is_the_least_that_gives_factor_times_the_mean_load(T, E, K, factor):
    slots = 1
    while slots < T and slots * E < Fraction(f"{factor}") * K * T:
        slots += 1
    assert capacity.capacity(K * T, T, E, factor) == slots


@each_order
def test_evaluation_has_a_capacity_of_its_own_and_no_random_order(order):
    config = ModelConfig(capacity_factor=0.5, eval_capacity_factor=1.5, drop_order=order)
    assert capacity.rules(config, training=True) == (0.5, order)
    assert capacity.rules(config, training=False) == (1.5, "position" if order == "random" else order)


# Two experts per token; the first choices are experts 0, 1, 0, and the surest token is the last.
#     expert 0: first choice of tokens 0 and 2, second of 1      expert 1: first choice of 1, second of 0 and 2
CHOICES_TK, PROBS_TE = [[0, 1], [1, 0], [0, 1]], [[0.5, 0.3, 0.2], [0.3, 0.6, 0.1], [0.7, 0.2, 0.1]]


@pytest.mark.parametrize(("order", "slots", "kept", "pull"), [
    ("position", [0, 0, 1, 1, 2, 2], [(0, 0), (0, 1)], [5, 7, 0, 0, 0, 0]),  # both queues: tokens 0, 1, 2
    ("rank", [0, 1, 0, 2, 1, 2], [(0, 0), (1, 1)], [5, 0, 7, 0, 0, 0]),  # expert 0: tokens 0, 2, 1; expert 1: 1, 0, 2
    ("priority", [1, 2, 0, 2, 0, 1], [(1, 1), (2, 0)], [0, 0, 7, 0, 5, 0]),  # expert 0: 2, 0, 1; expert 1: 1, 2, 0
])
def test_orders_and_the_gradient_of_what_they_keep_by_hand(order, slots, kept, pull):
    r = cases.routed(PROBS_TE, expert_TK=CHOICES_TK)
    result, cache = capacity.keep_forward(r, 2, 0.5, order)
    assert result.capacity == 1  # 0.5 * 6 / 3
    assert result.slot_A.tolist() == slots
    assert list(zip(result.token_A[result.kept_A], result.expert_A[result.kept_A], strict=True)) == kept
    assert capacity.keep_backward(np.array([5.0, 7.0]), cache).tolist() == pull  # rows: of expert 0, of expert 1
    assert all(getattr(result, name) is value for name, value in vars(r).items()
               if name not in ("slot_A", "kept_A", "capacity"))


@pytest.mark.parametrize("order", QUEUES_BEFORE)
@cases.FEW
@given(**SIZES)
def test_orders_equal_a_loop_through_the_queue(order, T, E, seed, factor):
    assert_queues_like_a_loop(cases.random_routing(T, E, seed, factor, order), order)


@pytest.mark.parametrize(("n_experts", "top_k"), [(700, 3), (70_000, 1)])
def test_orders_equal_a_loop_with_very_many_experts(n_experts, top_k):
    expert_TK = np.random.default_rng(0).integers(0, 9, (60, 1)) * (n_experts // 9) + np.arange(top_k)
    probs_TE = np.zeros((60, n_experts), np.float32)
    assert_queues_like_a_loop(cases.routed(probs_TE, expert_TK=expert_TK, limit=1.0, order="rank"), "rank")


@pytest.mark.parametrize(("choices_TK", "probs_TE", "slots"), [
    ([[0], [0], [0]], [[0.6, 0.4, 0], [0.7, 0.3, 0], [0.6, 0.4, 0]], [1, 0, 2]),  # equal: the earlier token
    # second choices of expert 2: token 0 gives it 0.4 and is sure of nothing; token 1 gives it 0.2 but is sure of 0
    ([[1, 2], [0, 2]], [[0.1, 0.5, 0.4], [0.8, 0.0625, 0.1375]], [0, 1, 0, 0]),
    ([[0], [0]], np.array([[0.6, 0.4], [0.6, 0.4]]) + 1e-30j * np.array([[-1, 1], [1, -1]]), [0, 1]),
])
def test_priority_is_the_largest_probability_of_the_token(choices_TK, probs_TE, slots):
    assert cases.routed(probs_TE, expert_TK=choices_TK, limit=0.5, order="priority").slot_A.tolist() == slots


def test_random_order_drops_every_assignment_equally_often():
    r = cases.routed(np.full((5, 3), 1 / 3), expert_TK=[[0, 1], [1, 0], [0, 2], [2, 0], [0, 1]])
    rng, n = np.random.default_rng(0), 1000
    kept_A = sum(capacity.keep_forward(r, 2, 0.6, "random", rng)[0].kept_A.astype(int) for _ in range(n))
    often_E = np.array([2 / 5, 2 / 3, 1])  # C = 0.6 * 10 / 3 = 2: two of five, two of three, two of two
    np.testing.assert_allclose(kept_A / n, often_E[r.expert_A], atol=4 * 0.5 / n ** 0.5)
    with pytest.raises(ValueError, match="drop_order = 'random' needs rng"):
        capacity.keep_forward(r, 2, 0.6, "random")


@each_order
@cases.FEW
@given(**SIZES)
def test_exactly_the_smaller_of_load_and_capacity_is_kept_and_no_slot_is_shared(order, T, E, seed, factor):
    r = cases.random_routing(T, E, seed, factor, order)
    np.testing.assert_array_equal(r.kept_count_E, np.minimum(r.count_E, r.capacity))
    places = sorted(zip(r.expert_A.tolist(), r.slot_A.tolist(), strict=True))
    assert places == [(e, slot) for e, load in enumerate(r.count_E) for slot in range(load)]
    assert cases.random_routing(T, E, seed, E, order).kept_A.all()


@each_order
def test_dropless_queues_by_position_and_needs_no_generator(order):
    result, _ = capacity.keep_forward(cases.routed(PROBS_TE, expert_TK=CHOICES_TK), 2, None, order)
    assert (result.capacity, result.kept_A.all(), result.slot_A.tolist()) == (None, True, [0, 0, 1, 1, 2, 2])


@pytest.mark.parametrize(("factor", "expected"), [(0.5, 1), (9.0, 3)])  # 0.5 * 6 / 3; at most the 3 real tokens
def test_padding_gives_no_room(factor, expected):
    r = cases.routed(PROBS_TE + [[0.8, 0.1, 0.1]] * 5, expert_TK=CHOICES_TK + [[0, 1]] * 5, mask=np.arange(8) < 3,
                     limit=factor)
    assert r.capacity == expected


def test_tokens_that_a_router_sent_to_fewer_experts_leave_the_capacity_as_it_is():
    # one expert each, but K = 2: C = 0.5 * 2 * 6 / 3 = 2, where the six assignments alone would have made it 1
    result, _ = capacity.keep_forward(cases.routed([[0.6, 0.3, 0.1]] * 6), 2, 0.5, "position")
    assert (result.capacity, result.kept_A.sum()) == (2, 2)


def test_replay_takes_the_slots_and_counts_them_against_its_own_capacity():
    r = cases.routed(PROBS_TE, expert_TK=CHOICES_TK)
    replayed, _ = capacity.keep_forward(r, 2, 0.5, "priority")
    result, _ = capacity.keep_forward(r, 2, 1.0, "random", replay=replayed)
    assert result.slot_A.tolist() == [1, 2, 0, 2, 0, 1]
    assert result.kept_A.tolist() == [True, False, True, False, True, True]  # C = 1.0 * 6 / 3 = 2


def test_gradient_of_the_gates():
    r = cases.random_routing(9, 4, seed=0)

    def forward(gate_A):
        result, cache = capacity.keep_forward(replace(r, gate_A=gate_A), 2, 0.6, "priority")
        return result.gate_A[result.kept_N], cache

    cases.assert_gradient(forward, capacity.keep_backward, gate_A=r.gate_A)
