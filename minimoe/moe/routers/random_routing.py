"""Control: experts at random.  A learned router is worth what it does better than this one."""

from minimoe.moe import gates, routing
from minimoe.moe.facts import Facts, Rule
from minimoe.moe.routers import hash_layers

FACTS = Facts(
    summary="a control, experts at random",
    evaluation="a fixed random draw for each position in the sequence",
    matrices=0,
    forward_scores=2,
    backward_scores=0,
    explorer=Rule(numbers=lambda routing, weights: {
        "choice_TE": hash_layers.mixed(routing.tokens.position_T, routing.n_experts)},
        equal_gates=True, chosen_by="draw for the place"),
)

weights = hash_layers.weights


def forward(x_TD, weights, config, tokens, training=False, rng=None, replay=None):
    """K different experts, all equally likely, drawn anew at every step; gates of 1/K.

    Evaluation must be deterministic, so there the draw is fixed for each position.  Returns a Routing, cache.
    """
    if training:
        draw_TE = routing.require_rng(rng, "router 'random'").random((len(x_TD), config.n_experts))
    else:
        draw_TE = hash_layers.mixed(tokens.position_T, config.n_experts)
    expert_TK = gates.top_k_experts(draw_TE, config.top_k, replay)
    return routing.scoreless_routing(expert_TK, tokens, config.n_experts, x_TD.real.dtype), x_TD


def backward(grad, cache):
    """Gradients of x_TD and, as a dict, of the weights: 0, and none.  grad: RoutingGrad."""
    return hash_layers.backward(grad, cache)
