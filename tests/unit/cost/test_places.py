"""Which part is running: functions that record when they are entered and left, in made-up modules and in the model."""

from types import SimpleNamespace

import numpy as np
import pytest

from minimoe import batches, model
from minimoe.config import ModelConfig
from minimoe.cost import places
from minimoe.cost.places import Place
from minimoe.moe import experts
from minimoe.nn import attention

CONFIG = ModelConfig(vocab_size=7, d_model=4, n_layers=3, n_heads=2, d_hidden=3, n_experts=2, top_k=1, max_sequence=6)


@pytest.fixture
def made_up():
    """A block that attends and clips; and where it was each time, once it is watched."""
    space = SimpleNamespace(seen=[], here=lambda: None, fail=False)

    def look(name):
        space.seen.append((name, space.here()))
        if space.fail and name == "attend_forward":
            raise ZeroDivisionError

    def block(way):
        look(f"block_{way}")
        getattr(space, f"attend_{way}")()
        look(f"block_{way} again")

    space.attend_forward, space.attend_backward = lambda: look("attend_forward"), lambda: look("attend_backward")
    space.block_forward, space.block_backward = lambda: block("forward"), lambda: block("backward")
    space.clip = lambda *numbers, last=0: (space.here(), sum(numbers) - last)
    space.parts = {"attention": ((space, "attend"),), "optimizer": ((space, "clip"),), "rest": ((space, "block"),)}
    return space


def test_the_innermost_function_is_the_place(made_up):
    with places.watched(CONFIG, made_up.parts) as made_up.here:
        assert made_up.here() is None
        made_up.block_forward()
        made_up.block_backward()
        made_up.attend_forward()
        assert made_up.clip(3, 4, last=2) == (Place(None, "optimizer", "update"), 5) and made_up.here() is None
    forward, backward = Place(0, "rest", "forward"), Place(2, "rest", "backward")
    assert made_up.seen == [
        ("block_forward", forward), ("attend_forward", (0, "attention", "forward")), ("block_forward again", forward),
        ("block_backward", backward), ("attend_backward", (2, "attention", "backward")),
        ("block_backward again", backward), ("attend_forward", (None, "attention", "forward"))]


def test_leave_gets_the_place_each_time_that_it_is_about_to_change_also_after_an_error(made_up):
    before, left = {name: made_up.__dict__[name] for name in ("attend_forward", "block_forward", "clip")}, []
    rest, attend, clip = (0, "rest", "forward"), (0, "attention", "forward"), (None, "optimizer", "update")
    with places.watched(CONFIG, made_up.parts, left.append) as made_up.here:
        made_up.block_forward()
        made_up.clip()
        #               into the block, into attention, out of it, out of the block, into clip, out of it
        assert left == [None, rest, attend, rest, None, clip]
        made_up.fail = True
        with pytest.raises(ZeroDivisionError):
            made_up.block_forward()
        assert made_up.here() is None
        assert [place and place.part for place in left[6:]] == [None, "rest", "attention", "rest"]
        assert all(made_up.__dict__[name] is not function for name, function in before.items())
    with pytest.raises(AttributeError), places.watched(CONFIG, made_up.parts | {"more": ((made_up, "nowhere"),)}):
        raise AssertionError("must not be entered")
    assert all(made_up.__dict__[name] is function for name, function in before.items())


@pytest.mark.parametrize("is_global", [False, True])
def test_a_model_is_walked_layer_by_layer_group_after_group(is_global):
    config = ModelConfig(**vars(CONFIG) | dict(global_balance=is_global, balance_coef=0.1))
    parts = {"attention": ((attention, "attention"),), "experts": ((experts, "experts"),), "block": (places.BLOCK,)}
    batch, left = batches.cut(*np.random.default_rng(0).integers(0, 7, (2, 2, 6)), 2), []
    with places.watched(config, parts, left.append):
        batches.gradients(model.init_params(config), batch, config)
    walked = [place for place in left if place is not None and place.part != "block"]  # noted as each is left
    forward = [(i, part, "forward") for i in range(3) for part in ("attention", "router", "experts")]
    backward = [(i, part, "backward") for i in (2, 1, 0) for part in ("experts", "router", "attention")]
    steps = [forward, forward, backward, backward] if is_global else [forward, backward] * 2
    assert walked == [place for step in steps for place in step]
