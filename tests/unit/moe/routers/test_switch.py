"""The Switch router: one choice, its raw gate, and jitter on what the router sees and nobody else."""

from dataclasses import replace

import numpy as np
import pytest

from minimoe.config import ModelConfig
from minimoe.moe import layer, routing
from minimoe.moe.routers import softmax_topk, switch
from minimoe.moe.routing import Tokens
from minimoe.nn import ops
from tests.one_hot import route

CONFIG = ModelConfig(d_model=6, n_heads=1, d_hidden=5, n_experts=4, router="switch", top_k=1, jitter=0.3)
EVERYONE = Tokens.anonymous(np.ones(50, bool))

# The first token's weights: e^logit = 1, 2, 3 of 6.  The second token's: 4, 1, 3 of 8.
HAND_TE = np.log([[1, 2, 3], [4, 1, 3]])


def random_case():
    """x_TD, and the weights of a whole layer."""
    rng = np.random.default_rng(0)
    weights = {name: rng.normal(size=w.shape) for name, w in layer.weights(CONFIG, 1.0, 1.0).items()}
    return rng.normal(size=(50, 6)), weights


def seen_factors(jitter, seed=0):
    """The factors on the router's input: tokens of ones, and a router that shows them."""
    config = ModelConfig(d_model=6, n_heads=1, n_experts=6, router="switch", top_k=1, jitter=jitter)
    r, _ = switch.forward(np.ones((50, 6)), {"w_router_DE": np.eye(6)}, config, EVERYONE, training=True,
                          rng=np.random.default_rng(seed))
    return r.logit_TE


def test_the_gate_is_the_raw_probability_by_hand():
    r, _ = route("switch", HAND_TE)
    assert (r.token_A.tolist(), r.expert_A.tolist(), r.rank_A.tolist()) == ([0, 1], [2, 0], [0, 0])
    np.testing.assert_allclose(r.gate_A, [3 / 6, 4 / 8])


@pytest.mark.parametrize("jitter", [0.01, 0.3])
def test_factors_fill_the_range_of_one_plus_or_minus_the_jitter(jitter):
    """300 numbers spread evenly: hardly ever is the outer tenth of either side empty, or the mean a fifth off."""
    share_TD = (seen_factors(jitter) - 1) / jitter
    assert share_TD.min() >= -1 - 1e-9 and share_TD.max() <= 1 + 1e-9
    assert share_TD.min() < -0.9 and share_TD.max() > 0.9
    assert abs(share_TD.mean()) < 0.2


def test_every_number_of_every_token_has_a_factor_of_its_own():
    assert len(np.unique(seen_factors(0.3))) == 300


def test_factors_are_those_of_the_generator():
    np.testing.assert_array_equal(seen_factors(0.3, seed=1), seen_factors(0.3, seed=1))
    assert (seen_factors(0.3, seed=1) != seen_factors(0.3, seed=2)).all()


def test_the_experts_work_on_the_token_as_it_is():
    x_TD, weights = random_case()
    (y_TD, r), _ = layer.moe_forward(x_TD, weights, CONFIG, EVERYONE, training=True, rng=np.random.default_rng(0))
    assert np.abs(r.logit_TE - x_TD @ weights["w_router_DE"]).min() > 0
    for token, e, gate in zip(r.token_A, r.expert_A, r.gate_A, strict=True):
        expert = [weights[name][e] for name in ("w_gate_EDF", "w_up_EDF", "w_down_EFD")]
        np.testing.assert_allclose(y_TD[token], gate * ops.swiglu_forward(x_TD[[token]], *expert)[0][0], rtol=1e-12)


def test_evaluation_is_the_softmax_router_without_jitter():
    x_TD, weights = random_case()
    plain, _ = softmax_topk.forward(x_TD, weights, replace(CONFIG, router="softmax_topk", jitter=0.01), EVERYONE)
    evaluated, _ = switch.forward(x_TD, weights, CONFIG, EVERYONE)
    np.testing.assert_array_equal(evaluated.expert_A, plain.expert_A)
    np.testing.assert_array_equal(evaluated.gate_A, plain.gate_A)
    np.testing.assert_array_equal(evaluated.logit_TE, plain.logit_TE)


def test_evaluation_draws_nothing_from_the_generator():
    x_TD, weights = random_case()
    rng = np.random.default_rng(0)
    switch.forward(x_TD, weights, CONFIG, EVERYONE, rng=rng)
    assert rng.random() == np.random.default_rng(0).random()


def test_without_jitter_training_is_evaluation_and_needs_no_generator():
    x_TD, weights = random_case()
    config = replace(CONFIG, jitter=0.0)
    trained, _ = switch.forward(x_TD, weights, config, EVERYONE, training=True)
    np.testing.assert_array_equal(trained.logit_TE, switch.forward(x_TD, weights, config, EVERYONE)[0].logit_TE)


def test_jitter_without_a_generator_is_refused():
    x_TD, weights = random_case()
    with pytest.raises(ValueError, match="router 'switch' needs rng"):
        switch.forward(x_TD, weights, CONFIG, EVERYONE, training=True)


def test_the_gradient_comes_back_through_the_factors_by_hand():
    """One token (1, 0) with factor u, scores (u, 0): a pull of 1 on the first score is one of u on the token.

    And it is a pull of u on the weight of that score: score = 1 * u * weight.
    """
    config = ModelConfig(d_model=2, n_heads=1, n_experts=2, router="switch", top_k=1, jitter=0.3)
    x_TD, w_router_DE = np.array([[1.0, 0.0]]), np.array([[1.0, 0.0], [0.0, 0.0]])
    one = Tokens.anonymous(np.ones(1, bool))
    r, cache = switch.forward(x_TD, {"w_router_DE": w_router_DE}, config, one, training=True,
                              rng=np.random.default_rng(0))
    u = r.logit_TE[0, 0]
    dx_TD, dweights = switch.backward(routing.zero_gradient(r)._replace(dlogit_TE=np.array([[1.0, 0.0]])), cache)
    np.testing.assert_allclose(dx_TD, [[u, 0]], rtol=1e-15)
    np.testing.assert_allclose(dweights["w_router_DE"], [[u, 0], [0, 0]], rtol=1e-15)
    assert abs(u - 1) > 0.01
