"""How the time of a step is spent: the functions of its parts read the clock when they are entered and left."""

import contextlib
import time
from collections import Counter

from minimoe import model
from minimoe.cost import places
from minimoe.moe import capacity, dense, dispatch, experts, soft
from minimoe.nn import attention, ops
from minimoe.training import loop, optimizer

REST = "rest"

PARTS = {
    "embedding, head, loss": ((model, "model"), (model, "losses")),
    "attention": ((attention, "attention"),),
    "norms": ((ops, "rmsnorm"),),
    "router": ((capacity, "keep"),),
    "dispatch, combine": ((dispatch, "dispatch"), (dispatch, "combine"), (soft, "soft")),
    "experts": ((experts, "experts"), (dense, "dense")),
    "optimizer": ((optimizer, "global_norm"), (optimizer, "adamw_update"), (model, "after_step")),
    REST: (places.BLOCK, (loop, "step_once")),
}
"""Part of a step -> (module, function name, or the name that a forward and its backward share).

The configuration's router is added under "router".  Soft MoE weights and mixes in one function, so it has no router
time.
"""


@contextlib.contextmanager
def timers(config, clock=time.perf_counter):
    """A block in which the functions of PARTS are timed, in one thread; yields Place -> seconds, complete at its end.

    A function's time excludes that of timed functions that it calls, so that the times add up.
    """
    spent, now = Counter(), clock()

    def charge(place):
        """Add the time since the last reading of the clock to the innermost function that is running."""
        nonlocal now
        before, now = now, clock()
        if place is not None:
            spent[place] += now - before

    with places.watched(config, PARTS, charge):
        yield spent
