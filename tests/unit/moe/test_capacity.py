"""Capacity: how many slots an expert has, who queues first, and what is dropped."""

from collections import Counter
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minimoe import gradcheck
from minimoe.config import ModelConfig
from minimoe.moe import capacity, gates, routing
from minimoe.moe.capacity import ORDERS
from minimoe.moe.routers import softmax_topk
from minimoe.moe.routing import Tokens

PLAIN = settings(derandomize=True, deadline=None)
SIZES = dict(T=st.integers(1, 12), E=st.integers(1, 6), K=st.integers(1, 6), seed=st.integers(0, 999))
FACTORS = st.integers(1, 40).map(lambda tenths: tenths / 10)

QUEUES_BEFORE = {
    "position": lambda r, a: (r.token_A[a], r.rank_A[a]),
    "rank": lambda r, a: (r.rank_A[a], r.token_A[a]),
    "priority": lambda r, a: (r.rank_A[a], -r.prob_TE[r.token_A[a]].max(), r.token_A[a]),
}


def routing_of(expert_TK, prob_TE, mask_T=None):
    """A Routing before capacity; its gates are all 1/2, its logits 0."""
    expert_TK, prob_TE = np.array(expert_TK), np.array(prob_TE)
    mask_T = np.ones(len(prob_TE), bool) if mask_T is None else mask_T
    assignments = gates.assignments_by_token(expert_TK, mask_T)
    gate_A = np.full(len(assignments[0]), 0.5)
    return routing.dropless_routing(*assignments, gate_A, np.zeros_like(prob_TE), prob_TE, Tokens.anonymous(mask_T))


def random_routing(T, E, K, seed):
    """K of E experts a token at random, some padding, many equal probabilities, assignments in any order."""
    rng = np.random.default_rng(seed)
    expert_TK = rng.permuted(np.tile(np.arange(E), (T, 1)), axis=1)[:, :K]
    r = routing_of(expert_TK, rng.integers(1, 4, (T, E)) / 9, rng.random(T) < 0.8)
    order = rng.permutation(len(r.token_A))
    return replace(r, token_A=r.token_A[order], expert_A=r.expert_A[order], rank_A=r.rank_A[order])


def keep(r, factor, order, seed=0):
    return capacity.keep_forward(r, r.n_ranks, factor, order, np.random.default_rng(seed))[0]


def slow_slots(r, before):
    """The slots that a loop through the queue gives; `before` is the sort key of an assignment."""
    slot_A, seen = np.zeros(len(r.token_A), int), Counter()
    for a in sorted(range(len(r.token_A)), key=lambda a: before(r, a)):
        slot_A[a] = seen[r.expert_A[a]]
        seen[r.expert_A[a]] += 1
    return slot_A


@pytest.mark.parametrize("K, T, E, factor, expected", [
    (2, 48, 8, 1.25, 15),  # 1.25 * 96 / 8 = 15
    (1, 48, 8, 1.25, 8),  # 1.25 * 48 / 8 = 7.5
    (2, 48, 8, 1.0, 12),
    (1, 20, 2, 1.1, 11),  # 1.1 * 20 / 2 = 11, though the float nearest to 1.1 is a little more than it
    (2, 100, 4, 1.1, 55),  # 1.1 * 200 / 4 = 55, though 1.1 * 200 is 220.00000000000003 in floating point
    (3, 10, 4, 0.7, 6),  # 0.7 * 30 / 4 = 5.25
    (1, 2, 8, 1.0, 1),  # 2 / 8: fewer tokens than experts
    (2, 1, 64, 0.01, 1),
    (2, 10, 4, 100.0, 10),  # a token has an expert once, so T slots are enough
    (2, 10, 4, 4, 10),
])
def test_capacity_by_hand(K, T, E, factor, expected):
    assert capacity.capacity(K * T, T, E, factor) == expected


def test_no_factor_is_no_limit():
    assert capacity.capacity(96, 48, 8, None) is None


def test_a_batch_of_padding_still_has_a_capacity():
    assert capacity.capacity(0, 0, 8, 1.25) == 1


@PLAIN
@given(st.integers(1, 300), st.integers(1, 40), st.integers(1, 8), FACTORS)
def test_capacity_is_the_least_that_gives_factor_times_the_mean_load(T, E, K, factor):
    slots = 1
    while slots < T and slots * E < Fraction(f"{factor}") * K * T:
        slots += 1
    assert capacity.capacity(K * T, T, E, factor) == slots
    assert 1 <= slots <= T


# Two experts a token; the first choices are experts 0, 1, 0, and the surest token is the last.
#     expert 0: first choice of tokens 0 and 2, second of 1      expert 1: first choice of 1, second of 0 and 2
CHOICES_TK, PROBS_TE = [[0, 1], [1, 0], [0, 1]], [[0.5, 0.3, 0.2], [0.3, 0.6, 0.1], [0.7, 0.2, 0.1]]


@pytest.mark.parametrize("order, slots, kept", [
    ("position", [0, 0, 1, 1, 2, 2], [(0, 0), (0, 1)]),  # both queues: tokens 0, 1, 2
    ("rank", [0, 1, 0, 2, 1, 2], [(0, 0), (1, 1)]),  # expert 0: tokens 0, 2, 1; expert 1: 1, 0, 2
    ("priority", [1, 2, 0, 2, 0, 1], [(1, 1), (2, 0)]),  # expert 0: tokens 2, 0, 1; expert 1: 1, 2, 0
])
def test_orders_by_hand(order, slots, kept):
    result = keep(routing_of(CHOICES_TK, PROBS_TE), 0.5, order)  # C = 0.5 * 6 / 3 = 1
    assert result.capacity == 1
    assert result.slot_A.tolist() == slots
    assert list(zip(result.token_A[result.kept_A], result.expert_A[result.kept_A], strict=True)) == kept


@pytest.mark.parametrize("order", QUEUES_BEFORE)
@PLAIN
@given(**SIZES, factor=FACTORS)
def test_orders_equal_a_loop_through_the_queue(order, T, E, K, seed, factor):
    r = random_routing(T, E, K, seed)
    np.testing.assert_array_equal(keep(r, factor, order).slot_A, slow_slots(r, QUEUES_BEFORE[order]))


@pytest.mark.parametrize("order", QUEUES_BEFORE)
def test_orders_equal_a_loop_with_hundreds_of_experts(order):
    r = random_routing(500, 700, 3, seed=0)
    np.testing.assert_array_equal(keep(r, 1.0, order).slot_A, slow_slots(r, QUEUES_BEFORE[order]))


def test_equal_priority_goes_to_the_earlier_token():
    result = keep(routing_of([[0], [0], [0]], [[0.6, 0.4], [0.7, 0.3], [0.6, 0.4]]), 0.5, "priority")
    assert result.slot_A.tolist() == [1, 0, 2]


def test_a_complex_step_does_not_decide_between_equal_priorities():
    r = routing_of([[0], [0]], [[0.6, 0.4], [0.6, 0.4]])
    stepped_TE = r.prob_TE + 1e-30j * np.array([[-1, 1], [1, -1]])
    assert keep(replace(r, prob_TE=stepped_TE), 1.0, "priority").slot_A.tolist() == [0, 1]


def test_priority_is_the_largest_probability_not_that_of_the_assignment():
    # second choices of expert 2: token 0 gives it 0.4 and is sure of nothing; token 1 gives it 0.2 but is sure of 0
    result = keep(routing_of([[1, 2], [0, 2]], [[0.1, 0.5, 0.4], [0.8, 0.0625, 0.1375]]), 0.5, "priority")
    assert result.slot_A[result.expert_A == 2].tolist() == [1, 0]


def test_random_order_drops_every_assignment_equally_often():
    r = routing_of([[0, 1], [1, 0], [0, 2], [2, 0], [0, 1]], np.full((5, 3), 1 / 3))
    n_seeds = 4000
    kept_A = sum(keep(r, 0.6, "random", seed).kept_A.astype(int) for seed in range(n_seeds))  # C = 0.6 * 10 / 3 = 2
    often_E = np.array([2 / 5, 2 / 3, 1])  # two of five, two of three, two of two
    np.testing.assert_allclose(kept_A / n_seeds, often_E[r.expert_A], atol=0.03)  # standard deviation 0.008


def test_random_order_depends_on_the_seed_alone():
    r = random_routing(12, 3, 2, seed=0)
    assert keep(r, 0.5, "random", 1).slot_A.tolist() == keep(r, 0.5, "random", 1).slot_A.tolist()
    assert keep(r, 0.5, "random", 1).slot_A.tolist() != keep(r, 0.5, "random", 2).slot_A.tolist()


def test_random_order_without_a_generator_is_refused():
    with pytest.raises(ValueError, match="drop_order = 'random' needs rng"):
        capacity.keep_forward(routing_of(CHOICES_TK, PROBS_TE), 2, 0.5, "random")


@pytest.mark.parametrize("order", ORDERS)
@PLAIN
@given(**SIZES, factor=FACTORS)
def test_exactly_the_smaller_of_load_and_capacity_is_kept(order, T, E, K, seed, factor):
    result = keep(random_routing(T, E, K, seed), factor, order)
    np.testing.assert_array_equal(result.kept_count_E, np.minimum(result.count_E, result.capacity))


@pytest.mark.parametrize("order", ORDERS)
@PLAIN
@given(**SIZES, factor=FACTORS)
def test_kept_and_dropped_are_all_assignments(order, T, E, K, seed, factor):
    r = random_routing(T, E, K, seed)
    result = keep(r, factor, order)
    overflow = sum(max(load - result.capacity, 0) for load in r.count_E.tolist())
    assert result.kept_A.sum() + overflow == min(K, E) * r.mask_T.sum()


@pytest.mark.parametrize("order", ORDERS)
@PLAIN
@given(**SIZES, factor=FACTORS)
def test_a_slot_of_an_expert_belongs_to_one_assignment(order, T, E, K, seed, factor):
    result = keep(random_routing(T, E, K, seed), factor, order)
    places = set(zip(result.expert_A.tolist(), result.slot_A.tolist(), strict=True))
    assert places == {(e, slot) for e, load in enumerate(result.count_E) for slot in range(load)}
    assert len(places) == len(result.slot_A)


@pytest.mark.parametrize("order", ORDERS)
@PLAIN
@given(**SIZES)
def test_a_factor_of_the_number_of_experts_keeps_everything(order, T, E, K, seed):
    r = random_routing(T, E, K, seed)
    result = keep(r, E, order)
    assert result.capacity == max(r.mask_T.sum(), 1)
    assert result.kept_A.all()


@pytest.mark.parametrize("order", ORDERS)
def test_a_batch_that_must_overflow_does(order):
    result = keep(routing_of([[0]] * 7, [[0.9, 0.1]] * 7), 1.0, order)  # all seven want expert 0; C = ceil(7 / 2) = 4
    assert (result.capacity, result.kept_A.sum()) == (4, 4)


@pytest.mark.parametrize("order", ORDERS)
def test_dropless_queues_by_position_and_needs_no_generator(order):
    result, _ = capacity.keep_forward(routing_of(CHOICES_TK, PROBS_TE), 2, None, order)
    assert result.capacity is None
    assert result.kept_A.all()
    assert result.slot_A.tolist() == [0, 0, 1, 1, 2, 2]


def test_padding_gives_no_room():
    padded = routing_of(CHOICES_TK + [[0, 1]] * 5, PROBS_TE + [[0.8, 0.1, 0.1]] * 5, np.arange(8) < 3)
    assert keep(padded, 0.5, "position").capacity == 1  # 0.5 * 6 / 3, as for the three real tokens alone
    assert keep(padded, 9.0, "position").capacity == 3


def test_tokens_that_a_router_sent_to_fewer_experts_leave_the_capacity_as_it_is():
    # one expert each, but K = 2: C = 0.5 * 2 * 6 / 3 = 2, where the six assignments alone would have made it 1
    result, _ = capacity.keep_forward(routing_of([[0]] * 6, [[0.6, 0.3, 0.1]] * 6), 2, 0.5, "position")
    assert (result.capacity, result.kept_A.sum()) == (2, 2)


def test_only_the_queue_is_new():
    r = random_routing(9, 4, 2, seed=0)
    result = keep(r, 0.5, "rank")
    for name in ("token_A", "expert_A", "rank_A", "gate_A", "logit_TE", "prob_TE", "tokens"):
        assert getattr(result, name) is getattr(r, name)


def last_token_moves(order, seed):
    """Random logits before and after a change of the last token, each with its first seven tokens' decisions."""
    logit_TE = np.random.default_rng(seed).normal(size=(8, 4))
    other_TE = logit_TE.copy()
    other_TE[-1] = 3 * np.random.default_rng([seed, 1]).normal(size=4)
    config = ModelConfig(d_model=8, n_heads=1, n_experts=4, top_k=2)
    for scores_TE in (logit_TE, other_TE):
        r, _ = softmax_topk.forward(np.eye(8), {"w_router_DE": scores_TE}, config, Tokens.anonymous(np.ones(8, bool)))
        result = keep(r, 0.7, order)
        yield [(result.expert_A[a], result.slot_A[a], result.kept_A[a]) for a in range(14)]


@PLAIN
@given(st.integers(0, 9999))
def test_by_position_the_last_token_never_changes_earlier_ones(seed):
    before, after = last_token_moves("position", seed)
    assert before == after


def test_by_rank_the_first_choice_of_a_later_token_drops_a_second_choice():
    # room for one each; expert 0 is the second choice of token 0, and then also the first choice of token 1
    before = keep(routing_of([[1, 0], [2, 1]], [[0.3, 0.6, 0.1], [0.1, 0.3, 0.6]]), 0.5, "rank")
    after = keep(routing_of([[1, 0], [0, 2]], [[0.3, 0.6, 0.1], [0.6, 0.1, 0.3]]), 0.5, "rank")
    assert before.kept_A[:2].tolist() == [True, True]
    assert after.kept_A[:2].tolist() == [True, False]


def test_by_priority_a_later_surer_token_drops_an_earlier_one():
    before = keep(routing_of([[0], [0]], [[0.7, 0.3], [0.6, 0.4]]), 0.5, "priority")
    after = keep(routing_of([[0], [0]], [[0.7, 0.3], [0.8, 0.2]]), 0.5, "priority")
    assert before.kept_A.tolist() == [True, False]
    assert after.kept_A.tolist() == [False, True]


def test_replay_takes_the_slots_and_counts_them_against_its_own_capacity():
    replayed = keep(routing_of(CHOICES_TK, PROBS_TE), 0.5, "priority")
    result, _ = capacity.keep_forward(routing_of(CHOICES_TK, PROBS_TE), 2, 1.0, "random", replay=replayed)
    assert result.slot_A.tolist() == [1, 2, 0, 2, 0, 1]
    assert result.kept_A.tolist() == [True, False, True, False, True, True]  # C = 1.0 * 6 / 3 = 2


def test_dropped_gates_get_no_gradient_by_hand():
    # by position with C = 1 the rows are assignments 0 (expert 0) and 1 (expert 1)
    _, cache = capacity.keep_forward(routing_of(CHOICES_TK, PROBS_TE), 2, 0.5, "position")
    assert capacity.keep_backward(np.array([5.0, 7.0]), cache).tolist() == [5, 7, 0, 0, 0, 0]
    # by priority they are assignments 4 (expert 0) and 2 (expert 1)
    _, cache = capacity.keep_forward(routing_of(CHOICES_TK, PROBS_TE), 2, 0.5, "priority")
    assert capacity.keep_backward(np.array([5.0, 7.0]), cache).tolist() == [0, 0, 7, 0, 5, 0]


@pytest.mark.parametrize("order", ORDERS)
def test_gradient_of_the_gates(order):
    r = random_routing(9, 4, 3, seed=0)

    def forward(gate_A):
        result, cache = capacity.keep_forward(replace(r, gate_A=gate_A), 3, 0.6, order, np.random.default_rng(0))
        return result.gate_A[result.kept_N], cache

    report = gradcheck.check_pair(order, forward, capacity.keep_backward, {"gate_A": r.gate_A})
    assert report.ok, report


def test_float32_stays_float32():
    r = random_routing(9, 4, 2, seed=0)
    result, cache = capacity.keep_forward(replace(r, gate_A=r.gate_A.astype(np.float32)), 2, 0.5, "position")
    assert result.gate_A.dtype == np.float32
    assert capacity.keep_backward(np.ones(result.kept_A.sum(), np.float32), cache).dtype == np.float32


@pytest.mark.parametrize("order", ORDERS)
def test_nothing_passed_in_is_changed(order):
    r = random_routing(9, 4, 2, seed=0)
    for array in (*vars(r).values(), *vars(r.tokens).values()):
        if isinstance(array, np.ndarray):
            array.flags.writeable = False
    result, cache = capacity.keep_forward(r, 2, 0.5, order, np.random.default_rng(0))
    dgate_N = np.arange(result.kept_A.sum(), dtype=float)
    dgate_N.flags.writeable = False
    first_A, second_A = (capacity.keep_backward(dgate_N, cache) for _ in range(2))
    np.testing.assert_array_equal(first_A, second_A)


def test_queues_are_kept_apart_however_many_experts_there_are():
    """Experts 39,999 and 0 in turn: each counts its own tokens."""
    n_experts, expert_A = 40_000, np.array([39_999, 0, 39_999, 0, 0])
    scores_TE = np.zeros((5, n_experts))
    decided = routing.dropless_routing(np.arange(5), expert_A, np.zeros(5, int), np.ones(5), scores_TE, scores_TE,
                                    Tokens.anonymous(np.ones(5, bool)))
    assert list(capacity.keep_forward(decided, 1, None, "position")[0].slot_A) == [0, 0, 1, 1, 2]
