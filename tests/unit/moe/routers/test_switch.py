"""The Switch router: one choice, its raw gate, and jitter on the router's input alone."""

from dataclasses import replace

import numpy as np
import pytest

from minimoe.config import ModelConfig
from minimoe.moe import layer, routing
from minimoe.moe.routers import switch
from minimoe.moe.routing import Tokens
from tests import cases

CONFIG = ModelConfig(d_model=6, n_heads=1, d_hidden=5, n_experts=6, router="switch", top_k=1, jitter=0.3)
TOKENS = Tokens.anonymous(np.ones(50, bool))


def seen_factors(jitter, seed=0):
    """The factors on the router's input: tokens of ones, and a router that shows them."""
    r, _ = switch.forward(np.ones((50, 6)), {"w_router_DE": np.eye(6)}, replace(CONFIG, jitter=jitter), TOKENS,
                          training=True, rng=np.random.default_rng(seed))
    return r.logit_TE


def test_the_gate_is_the_raw_probability_by_hand():
    """Weights e^logit = 1, 2, 3 of 6, and 4, 1, 3 of 8."""
    r, _ = cases.route("switch", np.log([[1.0, 2.0, 3.0], [4.0, 1.0, 3.0]]))
    assert cases.decisions(r) == [(0, 2, 0), (1, 0, 0)]
    np.testing.assert_allclose(r.gate_A, [3 / 6, 4 / 8])


@pytest.mark.parametrize("jitter", [0.01, 0.3])
def test_factors_fill_the_range_of_one_plus_or_minus_the_jitter(jitter):
    """300 independent uniform numbers: the outer tenth of either side is hardly ever empty."""
    share_TD = (seen_factors(jitter) - 1) / jitter
    assert -1 - 1e-9 <= share_TD.min() < -0.9 and 0.9 < share_TD.max() <= 1 + 1e-9
    assert abs(share_TD.mean()) < 0.2 and len(np.unique(share_TD)) == 300
    assert (seen_factors(jitter, seed=1) != seen_factors(jitter, seed=2)).all()


def test_the_experts_work_on_the_token_as_it_is_and_evaluation_and_no_jitter_show_it_to_the_router_too():
    x_TD, weights = np.random.default_rng(0).normal(size=(50, 6)), cases.random_weights(layer.weights(CONFIG, 1.0, 1.0))
    (y_TD, r), _ = layer.moe_forward(x_TD, weights, CONFIG, TOKENS, training=True, rng=np.random.default_rng(0))
    plain_TE = x_TD @ weights["w_router_DE"]
    assert np.abs(r.logit_TE - plain_TE).min() > 0
    for token, e, gate in zip(r.token_A, r.expert_A, r.gate_A, strict=True):
        np.testing.assert_allclose(y_TD[token], gate * cases.expert(x_TD[token], weights, e), rtol=1e-11)
    for config, training in ((CONFIG, False), (replace(CONFIG, jitter=0.0), True)):
        np.testing.assert_allclose(switch.forward(x_TD, weights, config, TOKENS, training)[0].logit_TE, plain_TE)
    with pytest.raises(ValueError, match="router 'switch' needs rng"):
        switch.forward(x_TD, weights, CONFIG, TOKENS, training=True)


def test_the_gradient_comes_back_through_the_factors_by_hand():
    """A token (1, 0) with factor u, scores (u, 0): a gradient of 1 on the first score is u on token and weight."""
    logit_TE = np.array([[1.0, 0.0]])
    r, cache = cases.route("switch", logit_TE, training=True, rng=np.random.default_rng(0), jitter=0.3)
    u = r.logit_TE[0, 0]
    dx_TD, dweights = switch.backward(routing.zero_gradient(r)._replace(dlogit_TE=np.array([[1.0, 0.0]])), cache)
    assert abs(u - 1) > 0.01
    np.testing.assert_allclose(dx_TD[0, 0], u, rtol=1e-15)
    np.testing.assert_allclose(dweights["w_router_DE"], [[u, 0], [0, 0]], rtol=1e-15)
