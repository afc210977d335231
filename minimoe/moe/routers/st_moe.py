"""ST-MoE: like GShard, but the second expert is always used if its share of the gates is a fifth or more."""

from minimoe.moe.facts import Facts, Rule
from minimoe.moe.routers import gshard

THRESHOLD = 0.2
"""Gate share from which a second expert is always used in training, and which it must exceed in evaluation."""

FACTS = Facts(
    summary="the two best, the second if its gate is large enough (ST-MoE)",
    losses=dict(balance=0.01, z=0.001),
    options=("renormalize",),
    first_choices=True,
    top_k=2,
    evaluation="the second expert if its share of the gates is above a fifth",
    explorer=Rule(least_share=THRESHOLD),
)

weights = gshard.weights


def forward(x_TD, weights, config, tokens, training=False, rng=None, replay=None):
    """Softmax top-2; in training the second expert is used with probability min(1, g_2 / 0.2), g_2 = p_2 / (p_1 + p_2).

                                                        [ST-MoE, arXiv:2202.08906; Mesh TensorFlow, moe.py]
    Mesh TensorFlow draws in evaluation too; here evaluation uses its "threshold" policy, which is deterministic.
    Returns a Routing, cache.
    """
    return gshard.forward(x_TD, weights, config, tokens, training, rng, replay, sure=THRESHOLD, least=THRESHOLD)


def backward(grad, cache):
    """Gradients of x_TD and, as a dict, of the weights.  grad: RoutingGrad."""
    return gshard.backward(grad, cache)
