"""Expert choice: every expert is exactly full, tokens have from none to all experts, and the future decides with."""

import math

import numpy as np
import pytest

from minimoe.config import ModelConfig
from minimoe.moe import layer
from minimoe.moe.routing import Tokens
from tests.one_hot import choices, route

# Probabilities of the first expert: 0.9, 0.8, 0.6 and 0.3; of the second what is left.
HAND_TE = np.log([[0.9, 0.1], [0.8, 0.2], [0.6, 0.4], [0.3, 0.7]])
LOGIT_TE = np.random.default_rng(0).normal(size=(12, 5))
MASK_T = np.arange(12) % 4 != 3  # nine of twelve


def test_each_expert_takes_its_best_tokens_by_hand():
    """C = 1 * 4 / 2 = 2: the first takes tokens 0 and 1, the second 3 and 2."""
    r, _ = route("expert_choice", HAND_TE, top_k=1)
    assert (r.token_A.tolist(), r.expert_A.tolist(), r.rank_A.tolist()) == ([0, 1, 2, 3], [0, 0, 1, 1], [0, 0, 0, 0])
    np.testing.assert_allclose(r.gate_A, [0.9, 0.8, 0.4, 0.7], rtol=1e-14)


def test_with_room_for_all_every_expert_takes_every_token_by_hand():
    """The expert that is surer of a token comes first."""
    r, _ = route("expert_choice", HAND_TE, top_k=2)
    assert choices(r) == [[0, 1], [0, 1], [0, 1], [1, 0]]
    np.testing.assert_allclose(r.gate_A, [0.9, 0.1, 0.8, 0.2, 0.6, 0.4, 0.7, 0.3], rtol=1e-14)


def test_a_token_that_no_expert_chooses_has_none_by_hand():
    """Two tokens, C = 1: both experts are surer of the first than of the second, in this softmax over experts.

    Weights 1, 1, 2 give 1/4, 1/4, 1/2; weights 1, 1, 8 give 1/10, 1/10, 8/10: two experts want the one, one the other.
    """
    r, _ = route("expert_choice", np.log([[1.0, 1.0, 2.0], [1.0, 1.0, 8.0]]), top_k=1)
    assert choices(r) == [[0, 1], [2]]
    r, _ = route("expert_choice", np.log([[1.0, 1.0], [1.0, 1.0], [5.0, 5.0]]), top_k=1)
    assert choices(r) == [[0, 1], [0, 1], []]  # C = ceil(3 / 2) = 2, and the earlier of equal tokens


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("top_k", [1, 2, 5])
def test_equals_a_loop_over_experts(top_k, training):
    r, _ = route("expert_choice", LOGIT_TE, top_k=top_k, mask_T=MASK_T, training=training)
    prob_TE = [[math.exp(z) / sum(math.exp(other) for other in row) for z in row] for row in LOGIT_TE]
    room = -(-top_k * 9 // 5)
    expected = []
    for e in range(5):
        real = [t for t in range(12) if MASK_T[t]]
        chosen = sorted(real, key=lambda t, e=e: -prob_TE[t][e])[:room]
        expected += [(t, e, prob_TE[t][e]) for t in chosen]
    got = sorted(zip(r.token_A, r.expert_A, r.gate_A, strict=True))
    np.testing.assert_allclose(got, sorted(expected), rtol=1e-13)


@pytest.mark.parametrize(("n_real", "top_k", "room"), [(12, 1, 3), (12, 2, 5), (9, 2, 4), (10, 2, 4), (12, 5, 12),
                                                       (1, 1, 1), (1, 5, 1), (3, 1, 1)])
def test_every_expert_has_exactly_the_capacity_of_the_real_tokens(n_real, top_k, room):
    """C = ceil(K T / 5)."""
    r, _ = route("expert_choice", LOGIT_TE, top_k=top_k, mask_T=np.arange(12) < n_real)
    assert r.count_E.tolist() == [room] * 5


def test_padding_is_never_chosen_however_sure_an_expert_is_of_it():
    logit_TE = LOGIT_TE.copy()
    logit_TE[~MASK_T, 0] = 50
    r, _ = route("expert_choice", logit_TE, top_k=2, mask_T=MASK_T)
    assert MASK_T[r.token_A].all()
    expected, _ = route("expert_choice", LOGIT_TE, top_k=2, mask_T=MASK_T)
    np.testing.assert_array_equal(r.token_A, expected.token_A)
    np.testing.assert_array_equal(r.expert_A, expected.expert_A)


def test_the_experts_of_a_token_are_ranked_by_its_probabilities():
    r, _ = route("expert_choice", LOGIT_TE, top_k=3)
    assert len({len(experts) for experts in choices(r)}) > 1
    for t, experts in enumerate(choices(r)):
        assert experts == sorted(experts, key=lambda e, t=t: -LOGIT_TE[t, e])
        assert r.rank_A[r.token_A == t].tolist() == list(range(len(experts)))


def test_equally_sure_experts_of_a_token_are_ranked_by_number():
    r, _ = route("expert_choice", np.zeros((4, 3)), top_k=3)
    assert choices(r) == [[0, 1, 2]] * 4


def test_equal_probabilities_go_to_the_earlier_tokens():
    """C = ceil(2 * 40 / 3) = 27."""
    r, _ = route("expert_choice", np.zeros((40, 3)), top_k=2)
    assert [r.token_A[r.expert_A == e].tolist() for e in range(3)] == [list(range(27))] * 3


def test_a_token_without_an_expert_gets_exactly_nothing_from_the_layer():
    rng = np.random.default_rng(0)
    config = ModelConfig(d_model=6, n_heads=1, d_hidden=5, n_experts=4, router="expert_choice", top_k=1)
    weights = {name: rng.normal(size=w.shape) for name, w in layer.weights(config, 1.0, 1.0).items()}
    (y_TD, r), _ = layer.moe_forward(rng.normal(size=(40, 6)), weights, config, Tokens.anonymous(np.ones(40, bool)))
    alone_T = np.bincount(r.token_A, minlength=40) == 0
    assert alone_T.any() and not alone_T.all()
    assert not y_TD[alone_T].any()
    assert (y_TD[~alone_T] != 0).all()


def test_the_last_token_takes_an_earlier_ones_place_by_hand():
    """The first expert is now surer of the last token, 0.85, than of token 1, which goes to the second instead."""
    before, _ = route("expert_choice", HAND_TE, top_k=1)
    after, _ = route("expert_choice", np.concatenate([HAND_TE[:3], np.log([[0.85, 0.15]])]), top_k=1)
    assert choices(before) == [[0], [0], [1], [1]]
    assert choices(after) == [[0], [1], [1], [0]]
