"""The control at random: every expert equally likely in training, fixed by the position in evaluation."""

import numpy as np
import pytest

from minimoe.config import ModelConfig
from minimoe.moe.routers import hash_layers, random_routing
from minimoe.moe.routing import Tokens


def experts_of(shape, training, seed=0, top_k=2, start=0):
    """The experts of each token of a batch of that shape, expert_TK."""
    config = ModelConfig(d_model=4, n_heads=1, n_experts=5, top_k=top_k, router="random")
    tokens, rng = Tokens.of_batch(np.zeros(shape, int), start=start), np.random.default_rng(seed) if training else None
    r, _ = random_routing.forward(np.zeros((len(tokens.mask_T), 4)), {}, config, tokens, training, rng)
    np.testing.assert_array_equal(r.gate_A, 1 / top_k)
    return r.expert_A.reshape(-1, top_k)


def test_over_many_draws_every_pair_of_distinct_experts_is_equally_likely():
    """Of 20,000 tokens each of 20 ordered pairs has 1000, with a spread of sqrt(1000 * 0.95) = 31."""
    count = np.bincount(experts_of((200, 100), training=True) @ [5, 1], minlength=25).reshape(5, 5)
    assert not count.diagonal().any()
    assert np.abs(count[~np.eye(5, dtype=bool)] - 1000).max() < 4 * 31
    assert (experts_of((3, 10), training=True) != experts_of((3, 10), training=True, seed=1)).any()


def test_evaluation_is_fixed_by_the_position_in_the_sequence_which_goes_on_after_the_tokens_seen_before():
    expert_TK = experts_of((3, 10), training=False)
    expected_TK = np.argsort(-hash_layers.mixed(np.arange(10), 5), axis=1)[:, :2]
    np.testing.assert_array_equal(expert_TK, np.tile(expected_TK, (3, 1)))
    np.testing.assert_array_equal(experts_of((1, 4), training=False, start=6), expected_TK[6:])


def test_training_without_a_generator_is_refused():
    with pytest.raises(ValueError, match="router 'random' needs rng"):
        random_routing.forward(np.zeros((3, 4)), {}, ModelConfig(router="random"), Tokens.anonymous(np.ones(3, bool)),
                               training=True)
