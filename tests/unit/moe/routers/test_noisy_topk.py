"""Noisy top-k: by hand with a noise that is given, and its chances against drawing one expert's noise again and again.

Most tests route one-hot tokens, x = identity: then the router's weights are its scores.
"""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from minimoe.config import ModelConfig
from minimoe.moe.routers import noisy_topk
from minimoe.moe.routing import Tokens
from tests.one_hot import choices, config_for, route

# e^score = 1, 2, 3.  Spread ln 4 = softplus(raw) + 0.01, with e^raw = 4 e^-0.01 - 1, so noise (1, 0, -1) makes it
# 4, 2, 3/4.
HAND_TE, HAND_NOISE_TE, SPREAD = np.log([[1.0, 2.0, 3.0]]), [[1.0, 0.0, -1.0]], math.log(4 * math.exp(-0.01) - 1)


def phi(z):
    return math.erfc(-z / math.sqrt(2)) / 2


def route_with(noise_TE, clean_TE, raw, **options):
    """The router in training, with this noise instead of a random one.  raw: the noise weights, all the same."""
    config = config_for("noisy_topk", clean_TE, **options)
    weights = {"w_router_DE": np.resize(clean_TE, (config.d_model, config.n_experts))}
    weights["w_noise_DE"] = np.full_like(weights["w_router_DE"], raw)
    T = len(clean_TE)
    rng = SimpleNamespace(standard_normal=lambda shape: np.array(noise_TE).reshape(shape))
    return noisy_topk.forward(np.eye(T, config.d_model), weights, config, Tokens.anonymous(np.ones(T, bool)),
                              training=True, rng=rng)


def random_case(top_k):
    """A router in training on 3 tokens and 5 experts: clean scores, spreads and the Routing."""
    rng = np.random.default_rng(0)
    config = ModelConfig(d_model=4, n_heads=1, n_experts=5, top_k=top_k, router="noisy_topk")
    x_TD, w_router_DE, w_noise_DE = (rng.normal(size=shape) for shape in ((3, 4), (4, 5), (4, 5)))
    r, _ = noisy_topk.forward(x_TD, {"w_router_DE": w_router_DE, "w_noise_DE": w_noise_DE}, config,
                              Tokens.anonymous(np.ones(3, bool)), training=True, rng=rng)
    return x_TD @ w_router_DE, np.logaddexp(0, x_TD @ w_noise_DE) + 0.01, r


def test_scores_with_noise_by_hand():
    r, _ = route_with(HAND_NOISE_TE, HAND_TE, SPREAD)
    np.testing.assert_allclose(r.logit_TE, np.log([[4, 2, 3 / 4]]), rtol=1e-14)
    np.testing.assert_allclose(r.prob_TE, np.array([[4, 2, 3 / 4]]) / 6.75, rtol=1e-14)


def test_the_gates_are_the_softmax_over_the_best_noisy_scores_by_hand():
    r, _ = route_with(HAND_NOISE_TE, HAND_TE, SPREAD)
    assert r.expert_A.tolist() == [0, 1]
    np.testing.assert_allclose(r.gate_A, [4 / 6, 2 / 6], rtol=1e-14)


def test_raw_gates_are_shares_of_all_noisy_scores_by_hand():
    r, _ = route_with(HAND_NOISE_TE, HAND_TE, SPREAD, renormalize=False)
    np.testing.assert_allclose(r.gate_A, [4 / 6.75, 2 / 6.75], rtol=1e-14)


def test_the_spread_of_the_noise_is_the_softplus_of_a_product_of_its_own():
    """The token (1, 2), noise weights (0, raw / 2) and (raw, 0): a spread of ln 4 twice; noise 1 and -1."""
    config = ModelConfig(d_model=2, n_heads=1, n_experts=2, top_k=1, router="noisy_topk")
    weights = {"w_router_DE": np.zeros((2, 2)), "w_noise_DE": np.array([[0, SPREAD], [SPREAD / 2, 0]])}
    rng = SimpleNamespace(standard_normal=lambda shape: np.array([[1.0, -1.0]]))
    r, _ = noisy_topk.forward(np.array([[1.0, 2.0]]), weights, config, Tokens.anonymous(np.ones(1, bool)), True, rng)
    np.testing.assert_allclose(r.logit_TE, [[math.log(4), -math.log(4)]], rtol=1e-14)


@pytest.mark.parametrize("top_k", [2, 4, 5])
def test_gates_equal_a_loop_over_the_kept_noisy_scores(top_k):
    _, _, r = random_case(top_k)
    for t in range(3):
        kept = sorted(range(5), key=lambda e, t=t: -r.logit_TE[t, e])[:top_k]
        total = sum(math.exp(r.logit_TE[t, e]) for e in kept)
        assert choices(r)[t] == kept
        np.testing.assert_allclose(
            r.gate_A[r.token_A == t], [math.exp(r.logit_TE[t, e]) / total for e in kept], rtol=1e-13)


@pytest.mark.parametrize("top_k", [1, 2])
def test_evaluation_is_the_softmax_router_on_the_clean_scores(top_k):
    scores_TE = np.random.default_rng(0).normal(size=(6, 5))
    noisy, _ = route("noisy_topk", scores_TE, weights={"w_noise_DE": np.full((6, 5), 3.0)}, top_k=top_k)
    clean, _ = route("softmax_topk", scores_TE, top_k=top_k)
    np.testing.assert_array_equal(noisy.expert_A, clean.expert_A)
    np.testing.assert_array_equal(noisy.gate_A, clean.gate_A)
    np.testing.assert_array_equal(noisy.logit_TE, clean.logit_TE)


def test_training_without_a_generator_is_refused():
    with pytest.raises(ValueError, match="router 'noisy_topk' needs rng"):
        route("noisy_topk", HAND_TE, training=True, weights={"w_noise_DE": np.zeros((2, 3))})


def test_both_matrices_start_at_zero():
    config = ModelConfig(d_model=6, n_heads=1, n_experts=5, router="noisy_topk")
    assert noisy_topk.weights(config, 0.25) == {"w_router_DE": ((6, 5), 0), "w_noise_DE": ((6, 5), 0)}


def test_at_the_start_probabilities_are_even_and_experts_are_chosen_equally_often():
    """4000 tokens with 2 of 5 experts each: an expert has 1600, with a spread of sqrt(4000 * 0.4 * 0.6) = 31."""
    config = ModelConfig(d_model=2, n_heads=1, n_experts=5, router="noisy_topk")
    weights, everyone = {name: np.zeros((2, 5)) for name in ("w_router_DE", "w_noise_DE")}, np.ones(4000, bool)
    clean, _ = noisy_topk.forward(np.ones((4000, 2)), weights, config, Tokens.anonymous(everyone))
    np.testing.assert_array_equal(clean.prob_TE, 1 / 5)
    noisy, _ = noisy_topk.forward(np.ones((4000, 2)), weights, config, Tokens.anonymous(everyone), training=True,
                                  rng=np.random.default_rng(0))
    assert np.abs(noisy.count_E - 1600).max() < 4 * 31


def test_the_chances_of_one_choice_by_hand():
    """Noisy scores 2, 1, 0.  The first expert has to beat the next, 1; the others have to beat the first, 2."""
    clean_TE, spread_TE, noisy_TE = np.array([[[1.5, 1.0, -2.0]], [[1.0, 2.0, 4.0]], [[2.0, 1.0, 0.0]]])
    chance_TE, _ = noisy_topk.chance_forward(clean_TE, spread_TE, noisy_TE, np.array([[0]]))
    np.testing.assert_allclose(chance_TE, [[phi(0.5 / 1), phi(-1 / 2), phi(-4 / 4)]], rtol=1e-13)


def test_the_chances_of_two_choices_by_hand():
    """Noisy scores 3, 0, 2, 1.  The two best have to beat the third, 1; the others have to beat the second, 2."""
    clean_TE, spread_TE, noisy_TE = np.array([[[2.0, 1.0, 0.0, 3.0]], [[1.0, 1.0, 0.5, 4.0]], [[3.0, 0.0, 2.0, 1.0]]])
    chance_TE, _ = noisy_topk.chance_forward(clean_TE, spread_TE, noisy_TE, np.array([[0, 2]]))
    np.testing.assert_allclose(chance_TE, [[phi(1), phi(-1), phi(-1 / 0.5), phi(1 / 4)]], rtol=1e-13)


def test_the_threshold_of_a_chosen_expert_excludes_itself():
    clean_TE, spread_TE = np.zeros((1, 4)), np.ones((1, 4))
    luck = [noisy_topk.chance_forward(clean_TE, spread_TE, np.array([[score, 2.0, 1.0, 0.0]]), np.array([[0, 1]]))[0]
            for score in (3.0, 5.0)]
    np.testing.assert_array_equal(luck[0], luck[1])


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_the_chance_is_how_often_a_new_draw_of_one_experts_noise_is_among_the_best(top_k):
    """10,000 draws: a chance p is seen with a spread of sqrt(p (1 - p) / 10,000)."""
    n_draws = 10_000
    clean_TE, spread_TE, r = random_case(top_k)
    rng = np.random.default_rng(1)
    seen_TE = np.empty((3, 5))
    for e in range(5):
        others_TE = np.delete(r.logit_TE, e, axis=1)
        drawn_NT = clean_TE[:, e] + spread_TE[:, e] * rng.standard_normal((n_draws, 3))
        better_NT = (others_TE > drawn_NT[:, :, None]).sum(axis=2)
        seen_TE[:, e] = (better_NT < top_k).mean(axis=0)
    spread = np.sqrt(r.chance_TE * (1 - r.chance_TE) / n_draws)
    assert ((r.chance_TE > 0.1) & (r.chance_TE < 0.9)).sum() >= 3
    assert (np.abs(seen_TE - r.chance_TE) <= 4 * spread + 1 / n_draws).all()


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_over_all_noise_the_mean_chance_is_how_often_an_expert_is_chosen(top_k):
    """So the load that the chances add up to is the expected load."""
    n_draws = 4000
    clean_TE, spread_TE, _ = random_case(top_k)
    noise_TE = np.random.default_rng(2).standard_normal((n_draws, 5))
    noisy_TE = clean_TE[0] + spread_TE[0] * noise_TE
    expert_TK = np.argsort(-noisy_TE, axis=1)[:, :top_k]
    chance_TE, _ = noisy_topk.chance_forward(
        np.tile(clean_TE[0], (n_draws, 1)), np.tile(spread_TE[0], (n_draws, 1)), noisy_TE, expert_TK)
    chosen_TE = (expert_TK[:, :, None] == np.arange(5)).any(axis=1)
    gap_TE = chance_TE - chosen_TE
    assert (np.abs(gap_TE.mean(axis=0)) <= 4 * gap_TE.std(axis=0) / math.sqrt(n_draws)).all()


def test_with_all_experts_chosen_every_chance_is_one_and_passes_no_gradient():
    _, _, r = random_case(top_k=5)
    chance_TE, cache = noisy_topk.chance_forward(r.logit_TE, r.logit_TE, r.logit_TE, r.expert_A.reshape(3, 5))
    assert (r.chance_TE == 1).all() and (chance_TE == 1).all()
    assert not any(gradient.any() for gradient in noisy_topk.chance_backward(np.ones((3, 5)), cache))


def test_chances_are_counted_if_a_load_loss_asks_for_them():
    assert route_with(HAND_NOISE_TE, HAND_TE, SPREAD, load_coef=0.0)[0].chance_TE is None
    assert route_with(HAND_NOISE_TE, HAND_TE, SPREAD, load_coef=0.1)[0].chance_TE.shape == (1, 3)


def test_a_higher_rival_lowers_the_chance_by_the_density_by_hand():
    """One choice, noisy scores 2, 1: z = (1.5 - 1) / 2 for the first, so its pull on the second is -pdf(1/4) / 2."""
    noisy_TE = np.array([[2.0, 1.0]])
    _, cache = noisy_topk.chance_forward(np.array([[1.5, 1.0]]), np.array([[2.0, 2.0]]), noisy_TE, np.array([[0]]))
    dclean_TE, dspread_TE, dlogit_TE = noisy_topk.chance_backward(np.array([[1.0, 0.0]]), cache)
    slope = math.exp(-1 / 32) / math.sqrt(2 * math.pi) / 2
    np.testing.assert_allclose(dclean_TE, [[slope, 0]], rtol=1e-14)
    np.testing.assert_allclose(dspread_TE, [[-slope / 4, 0]], rtol=1e-14)
    np.testing.assert_allclose(dlogit_TE, [[0, -slope]], rtol=1e-14)
