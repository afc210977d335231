"""Hash layers: a fixed map from the token's number in the vocabulary to its experts.  Nothing is learned."""

import numpy as np

from minimoe.moe import gates, routing
from minimoe.moe.facts import Facts, Rule

FACTS = Facts(
    summary="a fixed map from the token's number to experts, nothing to learn (Hash layers)",
    needs_token_ids=True,
    matrices=0,
    forward_scores=4,
    backward_scores=0,
    explorer=Rule(numbers=lambda routing, weights: {"choice_TE": mixed(routing.tokens.id_T, routing.n_experts)},
                  equal_gates=True, chosen_by="draw for the character"),
)


def weights(config, std):
    """No weights: there is nothing to learn."""
    return {}


def forward(x_TD, weights, config, tokens, training=False, rng=None, replay=None):
    """The same token of the vocabulary always has the same K experts; gates of 1/K.

                                                        [Hash layers, arXiv:2106.04426, sec. 3]
    Balanced over the vocabulary, but not over a text, in which some tokens are far more frequent than others.
    Returns a Routing, cache.
    """
    if tokens.id_T is None:
        raise ValueError("router 'hash' needs tokens.id_T, the numbers of the tokens in the vocabulary")
    expert_TK = gates.top_k_experts(mixed(tokens.id_T, config.n_experts), config.top_k, replay)
    return routing.scoreless_routing(expert_TK, tokens, config.n_experts, x_TD.real.dtype), x_TD


def backward(grad, cache):
    """Gradients of x_TD and, as a dict, of the weights: 0, and none.  grad: RoutingGrad."""
    x_TD = cache
    return np.zeros_like(x_TD), {}


def mixed(key_T, n_experts):
    """A well-mixed number in [0, 1) for each key and expert; integer arithmetic makes it the same on every machine.

                                                        [SplitMix64's finalizer: Steele et al. 2014, OOPSLA]
    """
    z_TE = np.asarray(key_T, np.uint64)[:, None] * np.uint64(n_experts) + np.arange(1, n_experts + 1, dtype=np.uint64)
    z_TE = z_TE * np.uint64(0x9E3779B97F4A7C15)
    z_TE = (z_TE ^ (z_TE >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z_TE = (z_TE ^ (z_TE >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z_TE = z_TE ^ (z_TE >> np.uint64(31))
    return (z_TE >> np.uint64(11)) * 2.0 ** -53
