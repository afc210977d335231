"""Switch: the one best expert, its gate the raw probability; in training the router sees its input through jitter."""

from minimoe.moe import routing
from minimoe.moe.routers import softmax_topk

CAUSAL = True
CAUSAL_IN_EVALUATION = True
NEEDS_TOKEN_IDS = False
EVALUATION = "without jitter"

weights = softmax_topk.weights


def forward(x_TD, weights, config, tokens, training=False, rng=None, replay=None):
    """Softmax top-1 of a jittered copy of the tokens; the experts get the tokens as they are.

        p = softmax((x * u) W), u from U(1 - jitter, 1 + jitter);  y = p_i E_i(x)

                                                        [Switch, arXiv:2101.03961, eq. 1-2 and sec. 2.4]
    A gate of p / p = 1 would hide the router from the task, so the raw probability it is.  Returns a Routing, cache.
    """
    factor_TD = None
    if training and config.jitter > 0:
        routing.require_rng(rng, "router 'switch'")
        factor_TD = rng.uniform(1 - config.jitter, 1 + config.jitter, x_TD.shape).astype(x_TD.real.dtype)
        x_TD = x_TD * factor_TD
    result, cache = softmax_topk.forward(x_TD, weights, config, tokens, replay=replay)
    return result, (factor_TD, cache)


def backward(grad, cache):
    """Gradients of x_TD and, as a dict, of the weights.  grad: RoutingGrad."""
    factor_TD, cache = cache
    dx_TD, dweights = softmax_topk.backward(grad, cache)
    return dx_TD if factor_TD is None else dx_TD * factor_TD, dweights  # the router saw x * factor
