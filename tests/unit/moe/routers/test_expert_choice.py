"""Expert choice: every expert is exactly full, tokens have from none to all experts, and later tokens matter."""

import numpy as np
import pytest

from minimoe.config import ModelConfig
from minimoe.moe import layer
from minimoe.moe.routing import Tokens
from tests import cases

HAND_TE = np.log([[0.9, 0.1], [0.8, 0.2], [0.6, 0.4], [0.3, 0.7]])
"""Probabilities of two experts."""
LOGIT_TE = np.random.default_rng(0).normal(size=(12, 5))
MASK_T = np.arange(12) % 4 != 3  # nine of twelve


@pytest.mark.parametrize(("logit_TE", "top_k", "choices"), [
    (HAND_TE, 1, [[0], [0], [1], [1]]),  # C = 1 * 4 / 2 = 2: the first takes tokens 0 and 1, the second 3 and 2
    (HAND_TE, 2, [[0, 1], [0, 1], [0, 1], [1, 0]]),  # room for all: the expert that is surer of a token comes first
    # C = 1; 1/4, 1/4, 1/2 and 1/10, 1/10, 8/10: two experts want the first token, one the second
    (np.log([[1.0, 1.0, 2.0], [1.0, 1.0, 8.0]]), 1, [[0, 1], [2]]),
    (np.zeros((3, 2)), 1, [[0, 1], [0, 1], []]),  # C = ceil(3 / 2) = 2, and the earlier of equal tokens
    # the first expert is now surer of the last token, 0.85, than of token 1, which goes to the second instead
    (np.concatenate([HAND_TE[:3], np.log([[0.85, 0.15]])]), 1, [[0], [1], [1], [0]]),
    (np.zeros((40, 3)), 2, [[0, 1, 2]] * 27 + [[]] * 13)])  # C = ceil(2 * 40 / 3) = 27
def test_choices_by_hand(logit_TE, top_k, choices):
    r, _ = cases.route("expert_choice", logit_TE, top_k=top_k)
    assert cases.choices(r) == choices
    weight_TE = np.exp(logit_TE)
    np.testing.assert_allclose(r.gate_A, (weight_TE / weight_TE.sum(axis=1, keepdims=True))[r.token_A, r.expert_A])


@pytest.mark.parametrize(("top_k", "training"), [(1, True), (2, False), (5, False)])
def test_equals_a_loop_over_experts_that_never_choose_padding(top_k, training):
    logit_TE = np.where(MASK_T[:, None], LOGIT_TE, [50, 0, 0, 0, 0])  # however sure an expert is of it
    r, _ = cases.route("expert_choice", logit_TE, training, top_k=top_k, mask_T=MASK_T)
    prob_TE, room, expected = [cases.softmax(row) for row in logit_TE], -(-top_k * 9 // 5), []
    for e in range(5):
        chosen = sorted(np.flatnonzero(MASK_T), key=lambda t, e=e: -prob_TE[t][e])[:room]
        expected += [(t, e, prob_TE[t][e]) for t in chosen]
    np.testing.assert_allclose(sorted(zip(r.token_A, r.expert_A, r.gate_A, strict=True)), sorted(expected), rtol=1e-13)
    for experts, row in zip(cases.choices(r), prob_TE, strict=True):
        assert experts == sorted(experts, key=lambda e, row=row: -row[e])


@pytest.mark.parametrize(("n_real", "top_k", "room"), [(12, 1, 3), (10, 2, 4), (12, 5, 12), (1, 5, 1), (3, 1, 1)])
def test_every_expert_has_exactly_the_capacity_of_the_real_tokens(n_real, top_k, room):
    """C = ceil(K T / 5)."""
    r, _ = cases.route("expert_choice", LOGIT_TE, top_k=top_k, mask_T=np.arange(12) < n_real)
    assert r.count_E.tolist() == [room] * 5


def test_a_token_without_an_expert_gets_exactly_nothing_from_the_layer():
    rng = np.random.default_rng(0)
    config = ModelConfig(d_model=6, n_heads=1, d_hidden=5, n_experts=4, router="expert_choice", top_k=1)
    weights = cases.random_weights(layer.weights(config, 1.0, 1.0))
    (y_TD, r), _ = layer.moe_forward(rng.normal(size=(40, 6)), weights, config, Tokens.anonymous(np.ones(40, bool)))
    alone_T = np.bincount(r.token_A, minlength=40) == 0
    assert alone_T.any() and not y_TD[alone_T].any() and (y_TD[~alone_T] != 0).all()
