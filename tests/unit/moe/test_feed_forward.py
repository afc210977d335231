"""The feed-forward network of a block: each kind computes what its file computes, and only a mixture has a Routing."""

import numpy as np
import pytest

from minimoe.config import ModelConfig
from minimoe.moe import dense, feed_forward, layer, routing, soft
from minimoe.moe.routing import Tokens
from tests import cases

CONFIG = ModelConfig(vocab_size=7, d_model=8, n_layers=1, n_heads=2, d_hidden=6, n_experts=4, max_sequence=9)
TOKENS = Tokens.of_batch(np.arange(10).reshape(2, 5) % 7)


@pytest.mark.parametrize(("kind", "own_forward", "own_backward"), [
    ("dense", lambda x_TD, weights: dense.dense_forward(x_TD, weights), dense.dense_backward),
    ("soft", lambda x_TD, weights: soft.soft_forward(x_TD, weights, TOKENS), soft.soft_backward),
    ("moe", lambda x_TD, weights: layer.moe_forward(x_TD, weights, CONFIG, TOKENS), layer.moe_backward)])
def test_a_layer_is_what_the_file_of_its_kind_computes(kind, own_forward, own_backward):
    shapes = feed_forward.weights(CONFIG, kind, 0.5, 0.25)
    assert shapes == {"dense": dense, "soft": soft, "moe": layer}[kind].weights(CONFIG, 0.5, 0.25)
    weights, (x_TD, dy_TD) = cases.random_weights(shapes), np.random.default_rng(1).normal(size=(2, 10, 8))
    (y_TD, r), cache = feed_forward.kind_forward(x_TD, weights, CONFIG, kind, TOKENS)
    expected, own_cache = own_forward(x_TD, weights)
    pull = None
    if kind == "moe":
        expected, expected_r = expected
        assert cases.decisions(r) == cases.decisions(expected_r)
        pull = routing.zero_gradient(r)._replace(dlogit_TE=np.random.default_rng(2).normal(size=r.logit_TE.shape))
    assert (r is None) == (kind != "moe")
    dx_TD, dweights = feed_forward.kind_backward(dy_TD, pull, cache)
    own_dx_TD, own_dweights = own_backward(dy_TD, *filter(None, [pull]), own_cache)
    cases.assert_equal({"y": y_TD, "x": dx_TD} | dweights, {"y": expected, "x": own_dx_TD} | own_dweights)
