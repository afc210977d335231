"""Auxiliary losses: what pushes a router, beside the task.

Each reads one layer's Routing and is a forward/backward pair; nothing is kept between calls.  The backward returns the
gradient of one array of the Routing: its prob_TE, logit_TE, gate_A or chance_TE.
"""

from collections.abc import Callable
from typing import NamedTuple

from minimoe.moe.losses.balance import (
    balance_backward,
    balance_forward,
    device_backward,
    device_forward,
    sequence_backward,
    sequence_forward,
)
from minimoe.moe.losses.scores import entropy_backward, entropy_forward, z_backward, z_forward
from minimoe.moe.losses.variation import importance_backward, importance_forward, load_backward, load_forward
from minimoe.moe.routing import RoutingGrad, zero_gradient


class Loss(NamedTuple):
    """A forward/backward pair, and the field of RoutingGrad that the backward gives."""

    forward: Callable
    backward: Callable
    of: str


LOSSES = {
    "balance": Loss(balance_forward, balance_backward, "dprob_TE"),
    "z": Loss(z_forward, z_backward, "dlogit_TE"),
    "importance": Loss(importance_forward, importance_backward, "dgate_A"),
    "load": Loss(load_forward, load_backward, "dchance_TE"),
    "sequence": Loss(sequence_forward, sequence_backward, "dprob_TE"),
    "device": Loss(device_forward, device_backward, "dprob_TE"),
    "entropy": Loss(entropy_forward, entropy_backward, "dprob_TE"),
}
"""Name -> pair; the names are those of `names.LOSSES`."""

ALWAYS = ("balance", "z")
"""Reported whether or not they have a weight."""


def auxiliary_forward(routing, config, load_E=None):
    """The auxiliary losses of one layer: those that have a weight, and the two that are always reported.

    load_E: see `balance_forward`.  Returns a dict of name -> loss, cache.
    """
    arguments = {"balance": (load_E,), "device": (config.n_devices,)}
    asked = [name for name, coef in config.loss_coefs.items() if coef > 0 or name in ALWAYS]
    pairs = {name: LOSSES[name].forward(routing, *arguments.get(name, ())) for name in asked}
    return {name: loss for name, (loss, _) in pairs.items()}, (routing, {name: cache for name, (_, cache) in
                                                                        pairs.items()})


def auxiliary_backward(dlosses, cache):
    """What the losses together want of the router, as a RoutingGrad.  dlosses: name -> gradient of that loss."""
    routing, caches = cache
    total = zero_gradient(routing)._asdict()
    for name, dloss in dlosses.items():
        if dloss != 0:
            of = LOSSES[name].of
            total[of] = total[of] + LOSSES[name].backward(dloss, caches[name])
    return RoutingGrad(**total)
