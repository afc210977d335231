"""One file a policy.  Each has

    CAUSAL                 whether, in training, a token's experts depend on itself and earlier tokens alone
    CAUSAL_IN_EVALUATION   the same of evaluation, and so whether text can be generated with it
    NEEDS_TOKEN_IDS        whether it looks at the token's number in the vocabulary
    EVALUATION             in words, what evaluation does otherwise than training; it is never left to chance

    weights(config, std)                    the parameters that it owns
    forward(x_TD, weights, config, tokens, training, rng, replay)  -> Routing, cache
    backward(grad, cache)                   -> dx_TD, dweights
    after_step(weights, count_E, config)    -> the weights that change after an optimiser step; most have none

`grad` is a RoutingGrad: the pull of the experts on the gates, and of the auxiliary losses on all that they read.
"""

from importlib import import_module

from minimoe.names import ROUTERS

POLICIES = {name: import_module(f"{__name__}.{name}") for name, router in ROUTERS.items() if not router.soft}
"""Name -> module."""
