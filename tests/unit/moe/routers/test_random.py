"""The control by lot: every expert equally likely in training, fixed by the position in evaluation."""

import numpy as np
import pytest

from minimoe.config import ModelConfig
from minimoe.moe.routers import random_routing
from minimoe.moe.routing import Tokens


def route(shape, training, seed=0, top_k=2, start=0, x_TD=None):
    """The experts of each token of a batch of that shape, expert_TK; and the Routing."""
    config = ModelConfig(d_model=4, n_heads=1, n_experts=5, top_k=top_k, router="random")
    batch = Tokens.of_batch(np.zeros(shape, int), start=start)
    x_TD = np.zeros((shape[0] * shape[1], 4)) if x_TD is None else x_TD
    r, _ = random_routing.forward(x_TD, {}, config, batch, training, np.random.default_rng(seed) if training else None)
    return r.expert_A.reshape(-1, top_k), r


def test_over_many_lots_every_pair_of_experts_is_equally_likely():
    """Of 20,000 tokens each of 20 ordered pairs has 1000, with a spread of sqrt(1000 * 0.95) = 31."""
    expert_TK, _ = route((200, 100), training=True)
    count = np.bincount(expert_TK @ [5, 1], minlength=25).reshape(5, 5)
    assert not count.diagonal().any()
    assert np.abs(count[~np.eye(5, dtype=bool)] - 1000).max() < 4 * 31


def test_a_token_stays_with_no_expert_from_lot_to_lot():
    """Of 400 lots of one token with one choice each expert has 80, with a spread of sqrt(400 * 0.16) = 8."""
    drawn = [route((1, 1), training=True, seed=seed, top_k=1)[0][0, 0] for seed in range(400)]
    assert np.abs(np.bincount(drawn, minlength=5) - 80).max() < 4 * 8


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("top_k", [1, 3, 5])
def test_experts_are_distinct_and_gates_equal(top_k, training):
    expert_TK, r = route((4, 100), training, top_k=top_k)
    assert all(len(set(experts)) == top_k for experts in expert_TK.tolist())
    np.testing.assert_array_equal(r.gate_A, 1 / top_k)


def test_vectors_do_not_matter():
    x_TD = np.random.default_rng(1).normal(size=(30, 4))
    for training in (True, False):
        np.testing.assert_array_equal(route((3, 10), training, x_TD=x_TD)[0], route((3, 10), training)[0])


def test_evaluation_is_fixed_by_the_position_in_the_sequence():
    expert_TK, _ = route((3, 10), training=False)
    first, second, third = expert_TK.reshape(3, 20)
    assert first.tolist() == second.tolist() == third.tolist()
    np.testing.assert_array_equal(route((1, 10), training=False)[0], expert_TK[:10])


def test_evaluation_goes_on_where_the_tokens_seen_before_end():
    whole_TK, _ = route((1, 10), training=False)
    np.testing.assert_array_equal(route((1, 4), training=False, start=6)[0], whole_TK[6:])


def test_positions_are_spread_about_evenly_in_evaluation():
    """Of 5000 positions with one choice each expert has 1000, with a spread of sqrt(5000 * 0.16) = 28."""
    expert_TK, _ = route((1, 5000), training=False, top_k=1)
    assert np.abs(np.bincount(expert_TK[:, 0], minlength=5) - 1000).max() < 4 * 28


def test_the_generator_decides_in_training():
    np.testing.assert_array_equal(route((3, 10), training=True)[0], route((3, 10), training=True)[0])
    assert (route((3, 10), training=True)[0] != route((3, 10), training=True, seed=1)[0]).any()


def test_training_without_a_generator_is_refused():
    config = ModelConfig(d_model=4, n_heads=1, router="random")
    with pytest.raises(ValueError, match="router 'random' needs rng"):
        random_routing.forward(np.zeros((3, 4)), {}, config, Tokens.anonymous(np.ones(3, bool)), training=True)
