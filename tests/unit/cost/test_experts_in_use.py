"""Experts that a batch of texts uses: on average, by lot, in a real routing; and those that a small memory misses."""

from collections import OrderedDict
from dataclasses import replace

import numpy as np
import pytest

from minimoe.cost import deployment
from minimoe.moe import capacity, routing
from minimoe.moe.routing import Tokens


def sent_to(expert_BSK, n_experts, factor=None):
    """The Routing of sequences of choices."""
    expert_BSK = np.array(expert_BSK)
    B, S, K = expert_BSK.shape
    unlimited = routing.scoreless_routing(expert_BSK.reshape(-1, K), Tokens.of_batch(np.zeros((B, S), int)), n_experts,
                                       float)
    return capacity.keep_forward(unlimited, K, factor, "position")[0]


def random_routing(B, S, E, K, seed=0):
    """Uneven: low experts are likelier."""
    rng = np.random.default_rng(seed)
    return sent_to((rng.random((B, S, E)) + 0.1 * np.arange(E)).argsort(axis=2)[:, :, :K], E)


@pytest.mark.parametrize("n_experts, top_k, batch, expected", [
    (8, 2, 4, 5.469), (8, 2, 16, 7.920), (64, 8, 8, 42.01), (128, 8, 16, 82.42), (256, 8, 32, 163.3)])
def test_distinct_experts_as_published_and_not_as_if_a_token_drew_one_twice(n_experts, top_k, batch, expected):
    found = deployment.distinct_experts(n_experts, top_k, batch)
    assert found == pytest.approx(expected, rel=3e-4)  # as many digits as are printed
    assert found - n_experts * (1 - (1 - 1 / n_experts) ** (top_k * batch)) > 0.02


@pytest.mark.parametrize("n_experts, top_k", [(8, 2), (64, 8), (5, 5), (1, 1), (7, 1)])
def test_distinct_experts_of_one_token_and_of_very_many(n_experts, top_k):
    assert deployment.distinct_experts(n_experts, top_k, 1) == pytest.approx(top_k)
    assert deployment.distinct_experts(n_experts, top_k, 10_000) == pytest.approx(n_experts)


@pytest.mark.parametrize("n_experts, top_k, batch", [(8, 2, 4), (8, 2, 16), (16, 4, 3), (64, 8, 8), (5, 1, 2)])
def test_drawn_experts_have_the_mean_of_the_formula(n_experts, top_k, batch):
    drawn = deployment.drawn_experts(n_experts, top_k, batch, np.random.default_rng(1), draws=2000)
    error = drawn.std(ddof=1) / np.sqrt(2000)
    assert drawn.shape == (2000,)
    assert abs(drawn.mean() - deployment.distinct_experts(n_experts, top_k, batch)) < 4 * error


def test_every_draw_has_at_least_one_tokens_experts_and_at_most_all():
    rng = np.random.default_rng(2)
    assert set(deployment.drawn_experts(6, 2, 1, rng)) == {2}
    assert set(deployment.drawn_experts(3, 3, 4, rng)) == {3}
    drawn = deployment.drawn_experts(6, 2, 2, rng)
    assert drawn.min() == 2 and drawn.max() == 4 and len(drawn) == 1000


# Four texts of two positions.  Of texts 0 and 1: {0, 1} and {0, 2, 3};  of 2 and 3: {0}+{0, 1} and {3, 2}
FOUR = [[[0, 1], [2, 0]], [[1, 0], [0, 3]], [[0, 1], [3, 2]], [[1, 0], [2, 3]]]


@pytest.mark.parametrize("batch, expected", [
    (1, [2, 2, 2, 2, 2, 2, 2, 2]), (2, [2, 3, 2, 2]), (3, [2, 3]),  # with three, text 3 is left out
    (4, [2, 3])])
def test_touched_experts_by_hand(batch, expected):
    assert deployment.touched_experts(sent_to(FOUR, 4), batch).tolist() == expected


@pytest.mark.parametrize("batch", [1, 2, 3, 5, 7])
def test_touched_experts_of_an_uneven_routing_by_a_loop(batch):
    B, S, E, K = 7, 5, 9, 3
    found = random_routing(B, S, E, K)
    expected = []
    for first in range(0, B - batch + 1, batch):
        for position in range(S):
            used = set()
            for token, expert in zip(found.token_A, found.expert_A, strict=True):
                if token % S == position and first <= token // S < first + batch:
                    used.add(int(expert))
            expected.append(len(used))
    assert deployment.touched_experts(found, batch).tolist() == expected


@pytest.mark.parametrize("batch", [0, -1, 5])
def test_touched_experts_of_more_texts_than_there_are_are_refused(batch):
    with pytest.raises(ValueError, match=f"batch = {batch}: must be from 1 to the 4 sequences"):
        deployment.touched_experts(sent_to(FOUR, 4), batch)


def test_misses_by_hand():
    # text 0: 0 and 1 are new; then 2 is, and 0 is there, since a token's experts are not driven out by each other
    # text 1: 1 and 0 are new; then 0 is there and 3 is new.  Six of eight
    assert deployment.misses(sent_to(FOUR[:2], 4), 2) == 6 / 8
    # with one: the first choice of a token is what is left of it
    assert deployment.misses(sent_to([[[0, 1], [0, 2], [2, 0]]], 4), 1) == 4 / 6
    assert deployment.misses(sent_to([[[0, 1], [0, 1], [0, 1]]], 2), 1) == 4 / 6


def test_what_was_dropped_is_not_fetched():
    found = sent_to([[[0, 1]] * 4], 2, factor=0.5)  # room for two in each
    assert found.kept_A.sum() == 4
    assert deployment.misses(found, 2) == 2 / 4 and (deployment.touched_experts(found, 1) == [2, 2, 0, 0]).all()


def oldest_goes(found, resident):
    """The same of a dict that remembers the order of its keys."""
    S, missed = found.n_tokens // found.tokens.n_sequences, 0
    for text in range(found.tokens.n_sequences):
        held = OrderedDict()
        for token in range(text * S, (text + 1) * S):
            of_token = np.flatnonzero(found.token_A == token)
            needed = [int(found.expert_A[a]) for a in of_token[np.argsort(found.rank_A[of_token])]]
            missed += len(set(needed) - set(held))
            for expert in reversed(needed):  # the first choice is used last
                held[expert] = True
                held.move_to_end(expert)
            while len(held) > resident:
                held.popitem(last=False)
    return missed / len(found.token_A)


@pytest.mark.parametrize("resident", [0, 1, 2, 4, 6, 7])
@pytest.mark.parametrize("shuffled", [False, True])
def test_misses_are_those_of_a_memory_that_drops_the_oldest(resident, shuffled):
    found = random_routing(3, 20, 7, 2, seed=resident)
    if shuffled:  # the order of the assignments is no order of use
        order = np.random.default_rng(0).permutation(len(found.token_A))
        found = replace(found, **{name: getattr(found, name)[order] for name in (
            "token_A", "expert_A", "rank_A", "gate_A", "slot_A", "kept_A")})
    assert deployment.misses(found, resident) == pytest.approx(oldest_goes(found, resident))


def test_with_no_memory_all_miss_and_with_all_resident_only_the_first_use():
    found = random_routing(4, 30, 5, 2)
    assert deployment.misses(found, 0) == 1
    first_uses = sum(len(np.unique(found.expert_A[found.token_A // 30 == text])) for text in range(4))
    assert deployment.misses(found, 5) == first_uses / (4 * 30 * 2)


@pytest.mark.parametrize("E, K, R", [(8, 1, 4), (8, 2, 4), (8, 4, 4), (8, 8, 4), (6, 3, 2)])
def test_misses_of_even_routing_are_the_share_that_is_elsewhere(E, K, R):
    rng = np.random.default_rng(0)
    found = sent_to(rng.random((1, 5000, E)).argsort(axis=2)[:, :, :K], E)
    expected = 1 - R / E
    assert deployment.misses(found, R) == pytest.approx(expected, abs=0.02)
