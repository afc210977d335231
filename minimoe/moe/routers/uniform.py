"""Control: experts round-robin, by the token's position.  The load is even, and the router ignores the token."""

import numpy as np

from minimoe.moe import routing
from minimoe.moe.facts import Facts, Rule
from minimoe.moe.routers import hash_layers

FACTS = Facts(
    summary="a control, experts round-robin by the token's position",
    matrices=0,
    forward_scores=0,
    backward_scores=0,
    explorer=Rule("turn", equal_gates=True),
)

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
