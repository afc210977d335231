"""Where the time of a step goes: for a while the functions of its parts look at the clock before and after."""

import contextlib
import functools
import time
from collections import Counter
from typing import NamedTuple

from minimoe import model
from minimoe.moe import capacity, dense, dispatch, experts, routers, soft
from minimoe.nn import attention, ops
from minimoe.training import loop, optimizer

BLOCK, REST = "block", "rest"

PARTS = {
    "embedding, head, loss": ((model, "model"), (model, "losses")),
    "attention": ((attention, "attention"),),
    "norms": ((ops, "rmsnorm"),),
    "router": ((capacity, "keep"),),
    "dispatch, combine": ((dispatch, "dispatch"), (dispatch, "combine"), (soft, "soft")),
    "experts": ((experts, "experts"), (dense, "dense")),
    "optimiser": ((optimizer, "global_norm"), (optimizer, "adamw_update"), (model, "after_step")),
    REST: ((model, BLOCK), (loop, "step_once")),
}
"""Part of a step -> (module, function, or what a forward and its backward are both called).

The configuration's router comes to "router".  Soft MoE weighs and mixes in one function, so it has no time of a router.
"""

WAYS = ("forward", "backward", "update")


class Place(NamedTuple):
    """Where time goes.  layer: None outside of the layers.  part: of PARTS.  way: of WAYS."""

    layer: int | None
    part: str
    way: str


@contextlib.contextmanager
def timers(config, clock=time.perf_counter):
    """Within it the functions of PARTS are timed, in one thread; a dict Place -> seconds fills, complete at the end.

    A function's time is its own, without that of timed functions that it calls, so that the times add up.
    """
    spent, entered, open_places, now = Counter(), Counter(), [], clock()

    def charge():
        """Give the time since the last look at the clock to the innermost function that is open."""
        nonlocal now
        before, now = now, clock()
        if open_places:
            spent[open_places[-1]] += now - before

    def layer_of(attribute, way):
        if attribute != f"{BLOCK}_{way}":
            return open_places[-1].layer if open_places else None
        i = entered[way] % config.n_layers  # group after group, a forward counts up and a backward down
        entered[way] += 1
        return i if way == "forward" else config.n_layers - 1 - i

    def timed(function, part, attribute, way):
        @functools.wraps(function)
        def run(*arguments, **options):
            charge()
            open_places.append(Place(layer_of(attribute, way), part, way))
            try:
                return function(*arguments, **options)
            finally:
                charge()
                open_places.pop()

        return run

    with contextlib.ExitStack() as stack:
        for part, module, attribute, way in timed_functions(config):
            function = getattr(module, attribute)
            stack.callback(setattr, module, attribute, function)
            setattr(module, attribute, timed(function, part, attribute, way))
        yield spent


def timed_functions(config):
    """(part, module, its attribute, way) of every function that is timed."""
    for part, functions in PARTS.items():
        for module, name in functions:
            if hasattr(module, f"{name}_forward"):
                yield from ((part, module, f"{name}_{way}", way) for way in WAYS[:2])
            else:
                yield part, module, name, "update"
    if config.router in routers.POLICIES:
        yield from (("router", routers.POLICIES[config.router], way, way) for way in WAYS[:2])
