"""The benchmark: its arithmetic on made-up times, its timers under a made-up clock."""

import itertools
import platform
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import threadpoolctl

from minimoe import cost
from minimoe.analysis import bench, timers
from minimoe.config import TrainConfig, preset
from minimoe.cost import places
from minimoe.cost.places import Place
from minimoe.generation import sampling
from minimoe.training import data, loop

TINY, TRAINING = preset("tiny", train=dict(batch=4, sequence=8))


def started(config, training=TRAINING):
    text = data.random_text(config, training)
    return loop.new_state(config, training, text), text


def rows(table):
    return [" ".join(line.split()) for line in table.splitlines()]


def test_the_time_of_a_function_is_without_that_of_the_functions_that_it_calls(monkeypatch):
    """A block rests 1 s, attends 2 s, rests 3 s, forward; twice as long backward.  Layers count up forward and down
    backward, and begin again with the next group.  One that fails is timed, and the functions come back.
    """
    now = [100.0]

    def lasting(*steps):
        def run():
            for step in steps:
                if callable(step):
                    step()
                else:
                    now[0] += step
        return run

    space = SimpleNamespace(attend_forward=lasting(2), attend_backward=lasting(4), clip=lasting(5))
    space.block_forward = lasting(1, lambda: space.attend_forward(), 3)
    space.block_backward = lasting(2, lambda: space.attend_backward(), 6)
    monkeypatch.setattr(timers, "PARTS", {"attention": ((space, "attend"),), "optimizer": ((space, "clip"),),
                                         "rest": ((space, "block"),)})
    with timers.timers(TINY, lambda: now[0]) as spent:
        for _ in range(2):
            now[0] += 50  # outside of all functions
            space.block_forward()
            now[0] += 50
            space.block_forward()
            space.block_backward()
            space.attend_backward = lambda: None  # of layer 0 takes no time
            space.block_backward()
        space.clip()
        now[0] += 50
    once = {(0, "rest", "forward"): 4, (0, "attention", "forward"): 2, (1, "rest", "forward"): 4,
            (1, "attention", "forward"): 2, (1, "rest", "backward"): 8, (0, "rest", "backward"): 8}
    assert spent == {place: 2 * seconds for place, seconds in once.items()} | {
        (1, "attention", "backward"): 4, (None, "optimizer", "update"): 5}
    space.attend_forward = lasting(7, lambda: 1 / 0)
    before = dict(vars(space))
    with pytest.raises(ZeroDivisionError), timers.timers(TINY, lambda: now[0]) as spent:
        space.block_forward()
    assert spent == {(0, "rest", "forward"): 1, (0, "attention", "forward"): 7} and vars(space) == before


BLOCK = {"attention", "norms", "rest"}
OF_A_KIND = {"moe": BLOCK | {"router", "dispatch, combine", "experts"}, "dense": BLOCK | {"experts"},
             "soft": BLOCK | {"dispatch, combine", "experts"}}
"""Kind of a layer -> the parts that take time in it."""


@pytest.mark.parametrize("fields", [
    dict(), dict(router="soft"), dict(first_dense_layers=2), dict(n_experts=1, top_k=1), dict(global_balance=True),
    dict(first_dense_layers=1), dict(n_shared_experts=1)], ids=str)
def test_every_part_of_every_layer_is_timed_and_the_times_add_up(fields):
    """Forward and backward.  The clock counts how often it is read: 0 at the start, 1 as the step begins, n as it ends.
    Afterwards all functions are as before, and no number is different.
    """
    config = preset("tiny", fields)[0]
    (state, text), (plain, _) = started(config), started(config)
    loop.step_once(state, text)  # the first step writes a record of the router, for which it asks the router more
    before = [getattr(module, name) for _, module, name, _ in places.functions(config, timers.PARTS)]
    clock = itertools.count().__next__
    with timers.timers(config, clock) as spent:
        loop.step_once(state, text)
    assert sum(spent.values()) == clock() - 1 - 1 > 50
    both = ("forward", "backward")
    inside = {(i, part, way) for i, of_layer in enumerate(config.layer_kinds) for part in OF_A_KIND[of_layer]
              for way in both}
    outside = {(None, part, way) for part in ("embedding, head, loss", "norms") for way in both}
    assert spent.keys() == inside | outside | {(None, "optimizer", "update"), (None, "rest", "update")}
    assert before == [getattr(module, name) for _, module, name, _ in places.functions(config, timers.PARTS)]
    assert len(set(before)) == len(before)  # none is timed twice
    for _ in range(2):
        loop.step_once(plain, text)
    assert all(np.array_equal(state.params[name], plain.params[name]) for name in plain.params)


def test_the_floor_runs_every_product_each_time_and_nothing_else(monkeypatch):
    products = [((2, 3), (3, 4)), ((5, 2, 3), (5, 3, 4)), ((2, 3), (3, 4)), ((4, 3), (3,))]
    run, seen, matmul = bench.replay(products), [], np.matmul

    def noted(left, right, out):
        seen.append((left.shape, right.shape))
        assert {left.dtype, right.dtype, out.dtype} == {np.dtype(np.float32)}
        return matmul(left, right, out=out)

    monkeypatch.setattr(np, "matmul", noted)
    run()
    run()
    assert seen == products * 2


def test_rounds_are_measured_one_thing_after_another_and_the_first_ones_do_not_count(monkeypatch):
    """Five times a round, numbered: round 3 begins with 15.  Three micro-batches of four sequences are
    12 sequences.  A round writes one text to its end.
    """
    number, counted, sides, written = itertools.count(), [], [], []
    step_once, stream = loop.step_once, sampling.stream

    def noted(state, text, each=map):
        sides.append(each is map)
        step_once(state, text, each)

    def rounds(n):
        counted.append(n)
        return range(n)

    monkeypatch.setattr(bench, "seconds", lambda function: (function(), next(number))[1])
    monkeypatch.setattr(loop, "step_once", noted)
    monkeypatch.setattr(sampling, "stream", lambda *given: (written.append(token) or token for token in stream(*given)))
    measured = bench.measure(TINY, replace(TRAINING, accumulate=3), 1, threads=2, rounds=rounds)
    times = (measured.step, measured.floor, measured.serial, measured.timed, measured.generation)
    np.testing.assert_array_equal(times, [[15], [16], [17], [18], [19]])
    assert (counted, len(measured.places), measured.dtype) == ([4], 1, np.float32)
    assert sides == [False, False, True, True] * 4  # groups side by side, once untimed; then twice one after another
    assert sum(product.flops for product in measured.products) == cost.count(TINY, 12, 8).training_flops
    assert len(written) == 4 * bench.WRITTEN
    with pytest.raises(ValueError, match="steps = 0: must be 1 or more"):
        bench.measure(TINY, TRAINING, 0)


def test_models_are_timed_round_robin_with_a_step_before_that_does_not_count(monkeypatch):
    """Two models, three rounds; of each its second step of a round takes 1, 2, 9 seconds, or ten times as much."""
    taken, clock = [], {"now": 0.0}

    def step(state, text, each):
        taken.append(state)
        n = taken.count(state)
        clock["now"] += (1 if state == "small" else 10) * ((1, 2, 9)[n // 2 - 1] if n % 2 == 0 else 1000)

    def timed(function):
        before = clock["now"]
        function()
        return clock["now"] - before

    monkeypatch.setattr(loop, "new_state", lambda config, training, text: config)
    monkeypatch.setattr(loop, "step_once", step)
    monkeypatch.setattr(bench, "seconds", timed)
    assert bench.step_seconds({"a": "small", "b": "large"}, None, None, rounds=3) == {"a": 2.0, "b": 20.0}
    assert taken == ["small", "small", "large", "large"] * 3


def test_times_are_median_shares_of_the_median_round():
    """Shares of a: 1/4, 1/2, 1/4; of b: 3/4, 1/2, 0; of c: 0, 0, 3/4.  Their medians 1/4, 1/2, 0 become 1/3, 2/3, 0 of
    the median of 4, 40 and 12 s.
    """
    a, b, c = Place(0, "norms", "forward"), Place(0, "norms", "backward"), Place(None, "rest", "update")
    times = bench.usual([{a: 1.0, b: 3.0}, {a: 20.0, b: 20.0}, {a: 3.0, c: 9.0}])
    assert times == pytest.approx({a: 4.0, b: 8.0, c: 0.0})


PLACES = {Place(0, "attention", "forward"): 0.010, Place(0, "experts", "backward"): 0.030,
          Place(1, "experts", "forward"): 0.025, Place(1, "experts", "backward"): 0.005,
          Place(None, "rest", "update"): 0.030}
"""0.1 s: 10 % attention, 60 % experts, 30 % the rest; layer 0 40 %, layer 1 30 %."""


def made(**fields):
    """Two billion FLOPs for 2 * 10 * 20 = 400 tokens."""
    training = TrainConfig(batch=10, sequence=20, accumulate=2, groups=5)
    product = cost.Product((1000, 1000), (1000, 1000))
    times = dict(step=[0.1, 0.2, 0.1], floor=[0.05, 0.05, 0.1], serial=[0.2, 0.2, 0.4], timed=[0.2, 0.22, 0.44],
                 generation=[0.054, 0.064, 0.074])
    arrays = {name: np.array(values) for name, values in (times | fields).items()}
    return bench.Measured(TINY, training, 2, np.dtype(np.float32), [product], **arrays, places=[PLACES] * 3)


def test_the_tables_by_hand(monkeypatch):
    """Ratios 2, 4, 1; the 10 % of three sorted numbers lies at 0.2, the 90 % at 1.8 of the way from the first."""
    monkeypatch.setenv("COLUMNS", "100")
    head, rule, *lines = rows(bench.speeds(made()))
    assert (head, lines) == ("median ms 10 to 90 % tokens/s GFLOP/s", [
        "training step 100.0 100.0 to 180.0 4,000 20.0",
        "its 1 matrix products alone 50.0 50.0 to 90.0 8,000 40.0",
        "step / products, pair by pair 2.00 x 1.20 to 3.60",
        "generation of 64 tokens, one sequence 64.0 56.0 to 72.0 1,000"])
    assert "generation: none, router softmax_topk is not causal" in bench.speeds(made(generation=[np.nan] * 3))
    assert rows(bench.breakdown(PLACES, "part", {"attention": "one", "experts": "two", "rest": "3"}))[2:] == [
        "one 10.00 - - 10.00 10.0%", "two 25.00 35.00 - 60.00 60.0%", "3 - - 30.00 30.00 30.0%"]
    by_layer = rows(bench.breakdown(PLACES, "layer", {0: "first", 1: "second", None: "outside"}))
    assert by_layer[0] == "layer (ms) forward backward update together share"
    assert by_layer[2:] == ["first 10.00 30.00 - 40.00 40.0%", "second 25.00 5.00 - 30.00 30.0%",
                            "outside - - 30.00 30.00 30.0%"]


def test_the_report_leads_with_how_fast_a_step_is():
    lines = bench.report(made()).splitlines()
    report = " ".join(" ".join(lines).split())
    assert report.startswith("A training step takes 100.0 ms, 4,000 tokens/s: 2.00 times as long as its matrix "
                             "products alone. 60% of a training step is spent on experts. machine: ")
    for words in ("step: 20 sequences of 20 random tokens, in 10 groups", "one after another: 100.0 ms. The step above "
                  "takes 100.0 ms on 2. The timers change the time by +10.0%.", "rest - - 30.00 30.00 30.0%",
                  "layer 1 25.00 5.00 - 30.00 30.0% outside the layers - - 30.00 30.00 30.0%"):
        assert words in report
    assert "optimizer" not in report  # takes no time here
    assert max(map(len, lines)) <= 80
    assert bench.title({Place(0, "norms", "update"): 1.0, Place(0, "rest", "update"): 3.0}) == (
        "75% of a training step is spent on the rest")
    line = bench.machine(3, np.dtype(np.float32))  # without names or paths
    assert f"threads: 3; float32; NumPy {np.__version__}; " in line
    assert ("one thread per product" in line) == ("blas" in {p["user_api"] for p in threadpoolctl.threadpool_info()})
    assert not {"\n", "/"} & set(line) and (platform.node() or "\n") not in line
