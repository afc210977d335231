"""Noisy top-k: by hand with given noise; its chances compared with drawing one expert's noise again and again."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from minimoe.config import ModelConfig
from minimoe.moe.routers import noisy_topk
from minimoe.moe.routing import Tokens
from tests import cases

# e^score = 1, 2, 3.  Spread ln 4 = softplus(raw) + 0.01, with e^raw = 4 e^-0.01 - 1, so noise (1, 0, -1) makes it
# 4, 2, 3/4.
HAND_TE, RAW = np.log([[1.0, 2.0, 3.0]]), math.log(4 * math.exp(-0.01) - 1)
HAND_NOISE = SimpleNamespace(standard_normal=lambda shape: np.array([[1.0, 0.0, -1.0]]))


def phi(z):
    return math.erfc(-z / math.sqrt(2)) / 2


def by_hand(training=True, rng=HAND_NOISE, **options):
    """The Routing of the token above."""
    return cases.route("noisy_topk", HAND_TE, training, rng, weights={"w_noise_DE": np.full((2, 3), RAW)}, **options)[0]


def random_case(top_k):
    """A router in training on 3 tokens and 5 experts: clean scores, spreads and the Routing."""
    rng = np.random.default_rng(0)
    config = ModelConfig(d_model=4, n_heads=1, n_experts=5, top_k=top_k, router="noisy_topk")
    x_TD, w_router_DE, w_noise_DE = (rng.normal(size=shape) for shape in ((3, 4), (4, 5), (4, 5)))
    r, _ = noisy_topk.forward(x_TD, {"w_router_DE": w_router_DE, "w_noise_DE": w_noise_DE}, config,
                              Tokens.anonymous(np.ones(3, bool)), training=True, rng=rng)
    return x_TD @ w_router_DE, np.logaddexp(0, x_TD @ w_noise_DE) + 0.01, r


def test_scores_with_noise_and_their_gates_by_hand():
    r = by_hand()
    np.testing.assert_allclose(r.logit_TE, np.log([[4, 2, 3 / 4]]), rtol=1e-14)
    np.testing.assert_allclose(r.prob_TE, np.array([[4, 2, 3 / 4]]) / 6.75, rtol=1e-14)
    assert r.expert_A.tolist() == [0, 1]
    np.testing.assert_allclose(r.gate_A, [4 / 6, 2 / 6], rtol=1e-14)
    np.testing.assert_allclose(by_hand(renormalize=False).gate_A, [4 / 6.75, 2 / 6.75], rtol=1e-14)


def test_evaluation_uses_the_clean_scores_and_training_needs_a_generator():
    r = by_hand(training=False, rng=None)
    assert r.expert_A.tolist() == [2, 1]
    np.testing.assert_allclose(r.gate_A, [3 / 5, 2 / 5], rtol=1e-14)
    np.testing.assert_allclose(r.logit_TE, HAND_TE, rtol=1e-14)
    with pytest.raises(ValueError, match="router 'noisy_topk' needs rng"):
        by_hand(rng=None)


def test_the_spread_of_the_noise_is_the_softplus_of_a_product_of_its_own():
    """The token (1, 2), noise weights (0, raw / 2) and (raw, 0): a spread of ln 4 twice; noise 1 and -1."""
    config = ModelConfig(d_model=2, n_heads=1, n_experts=2, top_k=1, router="noisy_topk")
    weights = {"w_router_DE": np.zeros((2, 2)), "w_noise_DE": np.array([[0, RAW], [RAW / 2, 0]])}
    rng = SimpleNamespace(standard_normal=lambda shape: np.array([[1.0, -1.0]]))
    r, _ = noisy_topk.forward(np.array([[1.0, 2.0]]), weights, config, Tokens.anonymous(np.ones(1, bool)), True, rng)
    np.testing.assert_allclose(r.logit_TE, [[math.log(4), -math.log(4)]], rtol=1e-14)


def test_both_matrices_start_at_zero_where_experts_are_chosen_equally_often():
    """4000 tokens with 2 of 5 experts each: an expert has 1600, with a spread of sqrt(4000 * 0.4 * 0.6) = 31."""
    config = ModelConfig(d_model=2, n_heads=1, n_experts=5, router="noisy_topk")
    assert noisy_topk.weights(config, 0.25) == {"w_router_DE": ((2, 5), 0), "w_noise_DE": ((2, 5), 0)}
    weights = {name: np.zeros((2, 5)) for name in ("w_router_DE", "w_noise_DE")}
    r, _ = noisy_topk.forward(np.ones((4000, 2)), weights, config, Tokens.anonymous(np.ones(4000, bool)), training=True,
                              rng=np.random.default_rng(0))
    assert np.abs(r.count_E - 1600).max() < 4 * 31


@pytest.mark.parametrize(("clean_E", "spread_E", "noisy_E", "best", "chance_E"), [
    # the first expert has to beat the next, 1; the others have to beat the first, 2
    ([1.5, 1, -2], [1, 2, 4], [2, 1, 0], [0], [phi(0.5 / 1), phi(-1 / 2), phi(-4 / 4)]),
    # the two best have to beat the third, 1; the others have to beat the second, 2
    ([2, 1, 0, 3], [1, 1, 0.5, 4], [3, 0, 2, 1], [0, 2], [phi(1), phi(-1), phi(-1 / 0.5), phi(1 / 4)]),
    # the threshold of a chosen expert excludes itself: it may score higher, and its chance is the same
    ([2, 1, 0, 3], [1, 1, 0.5, 4], [9, 0, 2, 1], [0, 2], [phi(1), phi(-1), phi(-1 / 0.5), phi(1 / 4)])])
def test_chances_by_hand(clean_E, spread_E, noisy_E, best, chance_E):
    chance_TE, _ = noisy_topk.chance_forward(*np.array([[clean_E], [spread_E], [noisy_E]], float), np.array([best]))
    np.testing.assert_allclose(chance_TE, [chance_E], rtol=1e-13)


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_the_chance_is_how_often_a_new_draw_of_one_experts_noise_is_among_the_best(top_k):
    """10,000 draws: a chance p is seen with a spread of sqrt(p (1 - p) / 10,000)."""
    n, (clean_TE, spread_TE, r), rng = 10_000, random_case(top_k), np.random.default_rng(1)
    seen_TE = np.empty((3, 5))
    for e in range(5):
        drawn_NT = clean_TE[:, e] + spread_TE[:, e] * rng.standard_normal((n, 3))
        better_NT = (np.delete(r.logit_TE, e, axis=1) > drawn_NT[:, :, None]).sum(axis=2)
        seen_TE[:, e] = (better_NT < top_k).mean(axis=0)
    assert ((r.chance_TE > 0.1) & (r.chance_TE < 0.9)).sum() >= 3
    assert (np.abs(seen_TE - r.chance_TE) <= 4 * np.sqrt(r.chance_TE * (1 - r.chance_TE) / n) + 1 / n).all()


def test_chances_are_counted_if_a_load_loss_asks_for_them_and_are_one_with_all_experts_chosen():
    assert by_hand(load_coef=0.0).chance_TE is None
    assert by_hand(load_coef=0.1).chance_TE.shape == (1, 3)
    _, _, r = random_case(top_k=5)
    _, cache = noisy_topk.chance_forward(r.logit_TE, r.logit_TE, r.logit_TE, r.expert_A.reshape(3, 5))
    assert (r.chance_TE == 1).all()
    assert not any(gradient.any() for gradient in noisy_topk.chance_backward(np.ones((3, 5)), cache))


def test_a_higher_rival_lowers_the_chance_by_the_density_by_hand():
    """One choice, noisy scores 2, 1: z = (1.5 - 1) / 2 for the first, so its slope by the second is -pdf(1/4) / 2."""
    _, cache = noisy_topk.chance_forward(*np.array([[[1.5, 1.0]], [[2.0, 2.0]], [[2.0, 1.0]]]), np.array([[0]]))
    slope = math.exp(-1 / 32) / math.sqrt(2 * math.pi) / 2
    np.testing.assert_allclose(noisy_topk.chance_backward(np.array([[1.0, 0.0]]), cache),
                               [[[slope, 0]], [[-slope / 4, 0]], [[0, -slope]]], rtol=1e-14)
