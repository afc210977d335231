"""One file a policy.  Each has

    CAUSAL                                  whether a token's experts depend on earlier tokens alone
    weights(config, std)                    the parameters that it owns
    forward(x_TD, weights, config, ...)     -> Routing, cache
    backward(dgate_A, dprob_TE, dlogit_TE, cache) -> dx_TD, dweights

dgate_A comes from the experts; dprob_TE and dlogit_TE come from the auxiliary losses, which read the same Routing.
"""

from importlib import import_module

from minimoe.config import ROUTERS

POLICIES = {name: import_module(f"{__name__}.{name}") for name in ROUTERS}
"""Name -> module."""
