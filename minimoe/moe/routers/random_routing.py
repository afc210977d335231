"""Control: experts by lot.  What a learned router adds is what it does better than this one."""

from minimoe.moe import gates, routing
from minimoe.moe.routers import hash_layers

CAUSAL = True
CAUSAL_IN_EVALUATION = True
NEEDS_TOKEN_IDS = False
EVALUATION = "a fixed lot for each position in the sequence"

weights = hash_layers.weights


def forward(x_TD, weights, config, tokens, training=False, rng=None, replay=None):
    """K different experts, each as likely as any other, drawn anew at every step; gates of 1/K.

    Evaluation must not depend on chance, so there the lot is a fixed one for each position.  Returns a Routing, cache.
    """
    if training:
        lot_TE = routing.require_rng(rng, "router 'random'").random((len(x_TD), config.n_experts))
    else:
        lot_TE = hash_layers.mixed(tokens.position_T, config.n_experts)
    expert_TK = gates.top_k_experts(lot_TE, config.top_k, replay)
    return routing.scoreless_routing(expert_TK, tokens, config.n_experts, x_TD.real.dtype), x_TD


def backward(grad, cache):
    """Gradients of x_TD and, as a dict, of the weights: 0, and none.  grad: RoutingGrad."""
    return hash_layers.backward(grad, cache)
