"""The hash router: the same experts for the same token of the vocabulary everywhere, checked with plain integers."""

import numpy as np
import pytest

from minimoe.config import ModelConfig
from minimoe.moe import routing
from minimoe.moe.routers import POLICIES, hash_layers
from minimoe.moe.routing import Tokens

MASK = 2**64 - 1

# The first numbers of SplitMix64 from seed 0, as published with it.
SPLITMIX = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F, 0xF88BB8A8724C81EC]


def slow_mix(z):
    """SplitMix64 with Python's integers, which do not overflow."""
    z = z * 0x9E3779B97F4A7C15 & MASK
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & MASK
    z = (z ^ z >> 27) * 0x94D049BB133111EB & MASK
    return z ^ z >> 31


def slow_experts(token, n_experts, top_k):
    """The experts with the largest numbers; the leading 53 bits of 64 count."""
    number_E = [slow_mix(token * n_experts + e + 1 & MASK) >> 11 for e in range(n_experts)]
    return sorted(range(n_experts), key=lambda e: (-number_E[e], e))[:top_k]


def route_ids(tokens_BS, n_experts=8, top_k=2, training=False, x_TD=None):
    """A Routing, cache."""
    tokens_BS = np.asarray(tokens_BS)
    config = ModelConfig(d_model=4, n_heads=1, n_experts=n_experts, top_k=top_k, router="hash")
    x_TD = np.ones((tokens_BS.size, 4)) if x_TD is None else x_TD
    return hash_layers.forward(x_TD, {}, config, Tokens.of_batch(tokens_BS), training)


def test_the_oracle_gives_the_published_numbers():
    assert [slow_mix(i + 1) for i in range(4)] == SPLITMIX


def test_the_numbers_of_the_first_token_are_the_published_ones():
    assert hash_layers.mixed([0], 4).tolist() == [[(number >> 11) / 2**53 for number in SPLITMIX]]


@pytest.mark.parametrize("n_experts", [1, 3, 8, 64])
def test_numbers_are_those_of_plain_integers_also_beyond_64_bits(n_experts):
    keys = [0, 1, 2, 95, 50_256, 2**31 - 1, 10**12, 2**63 - 1]
    expected = [[(slow_mix(key * n_experts + e + 1 & MASK) >> 11) / 2**53 for e in range(n_experts)] for key in keys]
    assert hash_layers.mixed(keys, n_experts).tolist() == expected


@pytest.mark.parametrize(("n_experts", "top_k"), [(8, 1), (8, 2), (4, 4), (64, 6)])
def test_experts_are_pinned(n_experts, top_k):
    ids = [0, 1, 2, 33, 95, 50_256, 151_935]
    r, _ = route_ids([ids], n_experts, top_k)
    assert r.expert_A.reshape(-1, top_k).tolist() == [slow_experts(token, n_experts, top_k) for token in ids]


def test_the_experts_of_a_token_are_distinct():
    r, _ = route_ids([np.arange(5000)], n_experts=5, top_k=3)
    assert all(len(set(experts)) == 3 for experts in r.expert_A.reshape(-1, 3).tolist())


@pytest.mark.parametrize("top_k", [1, 2])
def test_a_large_vocabulary_is_spread_about_evenly(top_k):
    """20,000 tokens over 8 experts, and over their 56 ordered pairs: by chance the sum of (n - mean)^2 / mean is about
    as large as the number of cells less 1, with a spread of the root of twice that."""
    r, _ = route_ids([np.arange(20_000)], top_k=top_k)
    expert_TK = r.expert_A.reshape(-1, top_k)
    cells = np.bincount(expert_TK @ 8 ** np.arange(top_k))
    count = cells[cells > 0]
    assert len(count) == (8 if top_k == 1 else 56)
    n = len(count) - 1
    assert ((count - count.mean()) ** 2).sum() / count.mean() < n + 4 * np.sqrt(2 * n)


def test_neighbours_in_the_vocabulary_have_nothing_to_do_with_each_other():
    """Of 20,000 neighbours an eighth agrees, 2500, with a spread of sqrt(20,000 * 7) / 8 = 47."""
    expert_T = route_ids([np.arange(20_001)], top_k=1)[0].expert_A
    assert abs((expert_T[1:] == expert_T[:-1]).sum() - 2500) < 4 * 47


def test_the_same_token_has_the_same_experts_wherever_it_stands_and_whatever_its_vector():
    x_TD = np.random.default_rng(0).normal(size=(6, 4))
    r, _ = route_ids([[5, 9, 5], [9, 5, 5]], x_TD=x_TD)
    expert_TK = r.expert_A.reshape(6, 2).tolist()
    assert expert_TK[0] == expert_TK[2] == expert_TK[4] == expert_TK[5] == slow_experts(5, 8, 2)
    assert expert_TK[1] == expert_TK[3] == slow_experts(9, 8, 2)


def test_training_is_evaluation_and_needs_no_generator():
    trained, evaluated = (route_ids([np.arange(50)], training=training)[0] for training in (True, False))
    np.testing.assert_array_equal(trained.expert_A, evaluated.expert_A)


@pytest.mark.parametrize("top_k", [1, 2, 8])
def test_gates_are_equal_and_probabilities_those_of_the_chosen(top_k):
    r, _ = route_ids([[5, 9, 7]], top_k=top_k)
    np.testing.assert_array_equal(r.gate_A, 1 / top_k)
    np.testing.assert_array_equal(r.prob_TE, (r.one_hot()[0].sum(axis=2) > 0) / top_k)
    np.testing.assert_array_equal(r.logit_TE, np.zeros((3, 8)))


def test_vectors_without_names_are_refused():
    config = ModelConfig(d_model=4, n_heads=1, router="hash")
    with pytest.raises(ValueError, match="router 'hash' needs tokens.id_T"):
        hash_layers.forward(np.ones((3, 4)), {}, config, Tokens.anonymous(np.ones(3, bool)))


@pytest.mark.parametrize("name", ["hash", "random", "uniform"])
def test_a_router_that_looks_at_no_vector_has_no_weights_and_passes_no_gradient(name):
    policy, config = POLICIES[name], ModelConfig(d_model=4, n_heads=1, router=name)
    assert policy.weights(config, 0.25) == {}
    r, cache = policy.forward(np.ones((3, 4)), {}, config, Tokens.of_batch(np.array([[5, 9, 7]])))
    ones_TE = np.ones((3, 8))
    dx_TD, dweights = policy.backward(routing.RoutingGrad(np.ones_like(r.gate_A), ones_TE, ones_TE, ones_TE), cache)
    np.testing.assert_array_equal(dx_TD, np.zeros((3, 4)))
    assert dweights == {}
