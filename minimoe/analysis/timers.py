"""Where the time of a step goes: the functions of its parts look at the clock when they are entered and left."""

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
"""Part of a step -> (module, function, or what a forward and its backward are both called).

The configuration's router comes to "router".  Soft MoE weighs and mixes in one function, so it has no time of a router.
"""


@contextlib.contextmanager
def timers(config, clock=time.perf_counter):
    """Within it the functions of PARTS are timed, in one thread; a dict Place -> seconds fills, complete at the end.

    A function's time is its own, without that of timed functions that it calls, so that the times add up.
    """
    spent, now = Counter(), clock()

    def charge(place):
        """Give the time since the last look at the clock to the innermost function that is open."""
        nonlocal now
        before, now = now, clock()
        if place is not None:
            spent[place] += now - before

    with places.watched(config, PARTS, charge):
        yield spent
