"""Which part of the model is running: the functions of its parts record when they are entered and left."""

import contextlib
import functools
from collections import Counter
from typing import NamedTuple

from minimoe import model
from minimoe.moe import routers

WAYS = ("forward", "backward", "update")


class Place(NamedTuple):
    """A part of a step.

    layer: its index from 0; None outside the layers.
    part: the caller's name for it.
    way: one of WAYS.
    """

    layer: int | None
    part: str
    way: str


@contextlib.contextmanager
def watched(config, parts, leave=lambda place: None):
    """A block in which, in one thread, the functions of the parts are watched.

    Args:
        config: ModelConfig; its router's functions are the part "router".
        parts: name -> functions, as pairs of a module and a function's name, or the name that a forward and its
            backward share.
        leave: called with the innermost open Place, or None, before each change.

    Yields a function that returns the innermost open Place.
    """
    entered, open_places = Counter(), []

    def here():
        return open_places[-1] if open_places else None

    def layer_of(attribute, way):
        if not attribute.startswith("block_"):
            return open_places[-1].layer if open_places else None
        i = entered[way] % config.n_layers  # in each group, forward counts up and backward counts down
        entered[way] += 1
        return i if way == "forward" else config.n_layers - 1 - i

    def noted(function, part, attribute, way):
        @functools.wraps(function)
        def run(*arguments, **options):
            leave(here())
            open_places.append(Place(layer_of(attribute, way), part, way))
            try:
                return function(*arguments, **options)
            finally:
                leave(here())
                open_places.pop()

        return run

    with contextlib.ExitStack() as stack:
        for part, module, attribute, way in functions(config, parts):
            function = getattr(module, attribute)
            stack.callback(setattr, module, attribute, function)
            setattr(module, attribute, noted(function, part, attribute, way))
        yield here


def functions(config, parts):
    """(part, module, its attribute, way) of every function that is watched."""
    for part, of_part in parts.items():
        for module, name in of_part:
            if hasattr(module, f"{name}_forward"):
                yield from ((part, module, f"{name}_{way}", way) for way in WAYS[:2])
            else:
                yield part, module, name, "update"
    if config.router in routers.POLICIES:
        yield from (("router", routers.POLICIES[config.router], way, way) for way in WAYS[:2])


BLOCK = (model, "block")
"""The function by which layers are counted: it must be among the functions of the parts."""
