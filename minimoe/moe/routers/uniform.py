"""Control: experts in turn, by the token's position.  The load is even, and the router knows nothing."""

import numpy as np

from minimoe.moe import routing
from minimoe.moe.routers import hash_layers

CAUSAL = True
CAUSAL_IN_EVALUATION = True
NEEDS_TOKEN_IDS = False
EVALUATION = "the same as in training"

weights = hash_layers.weights


def forward(x_TD, weights, config, tokens, training=False, rng=None, replay=None):
    """Token t of a sequence goes to experts K t, K t + 1, ..., K t + K - 1, modulo E; gates of 1/K.

    Returns a Routing, cache.
    """
    turn_T1 = tokens.position_T[:, None] * config.top_k
    expert_TK = (turn_T1 + np.arange(config.top_k)) % config.n_experts
    return routing.scoreless_routing(expert_TK, tokens, config.n_experts, x_TD.real.dtype), x_TD


def backward(grad, cache):
    """Gradients of x_TD and, as a dict, of the weights: 0, and none.  grad: RoutingGrad."""
    return hash_layers.backward(grad, cache)
