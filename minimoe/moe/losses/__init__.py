"""Auxiliary losses, which train a router in addition to the task.

    balance     load times mean probability: of a batch, of each sequence, of groups of experts
    scores      functions of the scores alone, against large logits and overconfident probabilities
    variation   how much gates or expected loads vary from expert to expert

Each reads one layer's Routing and is a forward/backward pair; nothing is kept between calls.  The backward returns the
gradient of one array of the Routing: its prob_TE, logit_TE, gate_A or chance_TE.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from minimoe.moe.losses.balance import (
    balance_backward,
    balance_forward,
    counted,
    device_backward,
    device_forward,
    sequence_backward,
    sequence_forward,
)
from minimoe.moe.losses.scores import entropy_backward, entropy_forward, z_backward, z_forward
from minimoe.moe.losses.variation import importance_backward, importance_forward, load_backward, load_forward
from minimoe.moe.routing import Routing, RoutingGrad, zero_gradient


class Loss(NamedTuple):
    """An auxiliary loss; its weight in the objective is the configuration's field <name>_coef.

    summary: what it is, in one line.   forward, backward: the pair.   gradient: the field of RoutingGrad that the
    backward returns.   kept_scores: numbers per token and expert that the forward stores beyond those of the Routing.
    """

    summary: str
    forward: Callable
    backward: Callable
    gradient: str
    kept_scores: int = 0


LOSSES = {
    "balance": Loss("load-balancing loss, load times mean probability (Switch)",
                    balance_forward, balance_backward, "dprob_TE"),
    "z": Loss("router z-loss, the square of the logits' logsumexp (ST-MoE)",
              z_forward, z_backward, "dlogit_TE"),
    "importance": Loss("squared variation of the experts' summed gates (Shazeer 2017)",
                       importance_forward, importance_backward, "dgate_A"),
    "load": Loss("squared variation of the experts' expected loads; needs router noisy_topk (Shazeer 2017)",
                 load_forward, load_backward, "dchance_TE", kept_scores=4),
    "sequence": Loss("balance loss of each sequence by itself (DeepSeek-V3)",
                     sequence_forward, sequence_backward, "dprob_TE", kept_scores=1),
    "device": Loss("balance loss of groups of experts, one per device (DeepSeekMoE)",
                   device_forward, device_backward, "dprob_TE"),
    "entropy": Loss("how far the router's entropy is below its maximum, against overconfidence",
                    entropy_forward, entropy_backward, "dprob_TE", kept_scores=1),
}
"""Name -> Loss."""

ALWAYS = ("balance", "z")
"""Reported whether or not they have a weight."""


class AuxiliaryCache(NamedTuple):
    """The Routing of the layer, and name -> cache of each loss."""

    routing: Routing
    losses: dict


class Step(NamedTuple):
    """What the losses of one group must know about the other groups, so that their mean does not depend on the split.

    n_real: divisor of sums over tokens: the mean number of real tokens over the groups of the batch.
    loads: for `global_balance`, f of all groups, one array of E per layer; None: each group has a balance of its own.
    n_global: for `global_balance`, like n_real, over all groups of the step.
    """

    n_real: float
    loads: np.ndarray | None = None
    n_global: float | None = None


def auxiliary_forward(routing, config, step=None, layer=0):
    """The auxiliary losses of one layer: all that have a weight, and the two that are always reported.

    step: Step, if these tokens are one group of several.  layer: which of `step.loads` is this layer's.
    Returns a dict of name -> loss, cache.
    """
    count_E, weight_T = counted(routing, config), None
    load_E, balance_T = count_E / max(count_E.sum(), 1), None
    if step is not None:
        weight_T = _shares(routing, step.n_real)
        if step.loads is not None:
            load_E, balance_T = step.loads[layer], _shares(routing, step.n_global)
    arguments = {"balance": (load_E, balance_T), "z": (weight_T,), "entropy": (weight_T,),
                 "device": (config.n_devices,)}
    names = [name for name, coef in config.loss_coefs.items() if coef > 0 or name in ALWAYS]
    pairs = {name: LOSSES[name].forward(routing, *arguments.get(name, ())) for name in names}
    caches = {name: cache for name, (_, cache) in pairs.items()}
    return {name: loss for name, (loss, _) in pairs.items()}, AuxiliaryCache(routing, caches)


def auxiliary_backward(dlosses, cache):
    """The gradient of all the losses, as a RoutingGrad.

    dlosses: name -> gradient of the objective with respect to that loss.
    """
    total = zero_gradient(cache.routing)._asdict()
    for name, dloss in dlosses.items():
        if dloss != 0:
            loss = LOSSES[name]
            total[loss.gradient] = total[loss.gradient] + loss.backward(dloss, cache.losses[name])
    return RoutingGrad(**total)


def _shares(routing, n_real):
    """Weight of each token in a mean over n_real."""
    return (routing.mask_T / n_real).astype(routing.prob_TE.real.dtype)
