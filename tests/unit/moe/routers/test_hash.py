"""The hash router: the same experts for the same token of the vocabulary everywhere, checked with plain integers."""

import numpy as np
import pytest

from minimoe.config import ModelConfig
from minimoe.moe.routers import hash_layers
from minimoe.moe.routing import Tokens

MASK = 2**64 - 1
SPLITMIX = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F, 0xF88BB8A8724C81EC]
"""The first numbers of SplitMix64 from seed 0, as published with it."""


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


def route_ids(ids_BS, n_experts=8, top_k=2, training=False):
    """The Routing of tokens with random vectors."""
    ids_BS = np.asarray(ids_BS)
    config = ModelConfig(d_model=4, n_heads=1, n_experts=n_experts, top_k=top_k, router="hash")
    x_TD = np.random.default_rng(0).normal(size=(ids_BS.size, 4))
    return hash_layers.forward(x_TD, {}, config, Tokens.of_batch(ids_BS), training)[0]


def test_the_numbers_of_the_first_token_are_the_published_ones():
    assert [slow_mix(i + 1) for i in range(4)] == SPLITMIX
    assert hash_layers.mixed([0], 4).tolist() == [[(number >> 11) / 2**53 for number in SPLITMIX]]


@pytest.mark.parametrize("n_experts", [1, 3, 64])
def test_numbers_are_those_of_plain_integers_also_beyond_64_bits(n_experts):
    keys = [0, 1, 2, 95, 50_256, 2**31 - 1, 10**12, 2**63 - 1]
    expected = [[(slow_mix(key * n_experts + e + 1 & MASK) >> 11) / 2**53 for e in range(n_experts)] for key in keys]
    assert hash_layers.mixed(keys, n_experts).tolist() == expected


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("n_experts", "top_k"), [(8, 1), (8, 2), (4, 4)])
def test_experts_are_pinned_wherever_a_token_stands_and_its_gates_are_equal(n_experts, top_k, training):
    ids_BS = np.array([[0, 33, 50_256], [33, 151_935, 0]])
    r = route_ids(ids_BS, n_experts, top_k, training)
    expected_TK = [slow_experts(token, n_experts, top_k) for token in ids_BS.ravel().tolist()]
    assert r.expert_A.reshape(-1, top_k).tolist() == expected_TK
    np.testing.assert_array_equal(r.gate_A, 1 / top_k)
    np.testing.assert_array_equal(r.prob_TE, (r.one_hot()[0].sum(axis=2) > 0) / top_k)


def test_a_large_vocabulary_is_spread_about_evenly_and_neighbors_have_nothing_to_do_with_each_other():
    """20,000 tokens over 56 ordered pairs of 8 experts: by chance the sum of (n - mean)^2 / mean is about as large as
    the number of cells less 1, with a spread of the root of twice that.

    Of 20,000 neighbors an eighth agrees, 2500, with a spread of sqrt(20,000 * 7) / 8 = 47.
    """
    expert_TK = route_ids([np.arange(20_001)]).expert_A.reshape(-1, 2)
    cells = np.bincount(expert_TK @ [1, 8])
    count = cells[cells > 0]
    assert len(count) == 56
    assert ((count - count.mean()) ** 2).sum() / count.mean() < 55 + 4 * np.sqrt(2 * 55)
    assert abs((expert_TK[1:, 0] == expert_TK[:-1, 0]).sum() - 2500) < 4 * 47


def test_vectors_without_names_are_refused():
    with pytest.raises(ValueError, match="router 'hash' needs tokens.id_T"):
        hash_layers.forward(np.ones((3, 4)), {}, ModelConfig(router="hash"), Tokens.anonymous(np.ones(3, bool)))
