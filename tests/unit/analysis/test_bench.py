"""The benchmark: its arithmetic on made-up times, its timers under a made-up clock, the command in its smallest form.

No test depends on how long anything takes.
"""

import itertools
import platform
from types import SimpleNamespace

import numpy as np
import pytest

from minimoe import cli, cost
from minimoe.analysis import bench, timers
from minimoe.config import TrainConfig, preset
from minimoe.cost import places
from minimoe.cost.places import Place
from minimoe.generation import sampling
from minimoe.moe.routers import ROUTERS
from minimoe.nn import ops
from minimoe.plots import step_time
from minimoe.training import loop

TINY, TRAINING = preset("tiny", train=dict(batch=4, sequence=8))
KINDS = {
    "moe": dict(), "soft": dict(router="soft"), "dense": dict(first_dense_layers=2),
    "one expert": dict(n_experts=1, top_k=1), "global balance": dict(global_balance=True),
    "dense, then moe": dict(first_dense_layers=1), "shared": dict(n_shared_experts=1),
}
"""Name -> fields of a model."""


def configured(kind):
    return preset("tiny", KINDS[kind])[0]


def started(config, training=TRAINING):
    text = bench.random_text(config, training)
    return loop.new_state(config, training, text), text


def functions(config):
    return {(module, name): getattr(module, name) for _, module, name, _ in places.functions(config, timers.PARTS)}


def rows(table):
    return [" ".join(line.split()) for line in table.splitlines()]


@pytest.fixture
def made_up(monkeypatch):
    """A block of two layers that rests 1 s, attends 2 s, rests 3 s, forward; twice as long backward.  And its clock."""
    now = [100.0]

    def lasting(*steps):
        def run():
            for step in steps:
                if callable(step):
                    step()
                else:
                    now[0] += step
        return run

    space = SimpleNamespace(attend_forward=lasting(2), attend_backward=lasting(4), clip=lasting(5), fail=None)
    space.block_forward = lasting(1, lambda: space.attend_forward(), 3)
    space.block_backward = lasting(2, lambda: space.attend_backward(), 6)
    monkeypatch.setattr(timers, "PARTS", {"attention": ((space, "attend"),), "optimiser": ((space, "clip"),),
                                         "rest": ((space, "block"),)})
    return space, now


def test_the_time_of_a_function_is_without_that_of_the_functions_that_it_calls(made_up):
    space, now = made_up
    with timers.timers(TINY, lambda: now[0]) as places:
        now[0] += 50  # outside of all functions
        space.block_forward()
        now[0] += 50
        space.block_forward()
        space.block_backward()
        space.block_backward()
        space.clip()
        now[0] += 50
    assert places == {
        (0, "rest", "forward"): 4, (0, "attention", "forward"): 2, (1, "rest", "forward"): 4,
        (1, "attention", "forward"): 2, (1, "rest", "backward"): 8, (1, "attention", "backward"): 4,
        (0, "rest", "backward"): 8, (0, "attention", "backward"): 4, (None, "optimiser", "update"): 5}


def test_layers_count_up_forward_and_down_backward_group_after_group(made_up):
    space, now = made_up
    seen = []
    with timers.timers(TINY, lambda: now[0]) as places:
        for call in (space.block_forward, space.block_forward, space.block_backward, space.block_backward) * 2:
            before = dict(places)
            call()
            seen += [place.layer for place in places if place.part == "rest"
                     and places[place] != before.get(place, 0)]
    assert seen == [0, 1, 1, 0] * 2


def test_a_function_that_fails_is_timed_and_all_functions_come_back(made_up):
    space, now = made_up
    before = dict(vars(space))

    def attend_forward():
        now[0] += 7
        raise ZeroDivisionError

    space.attend_forward = before["attend_forward"] = attend_forward
    with pytest.raises(ZeroDivisionError), timers.timers(TINY, lambda: now[0]) as places:
        assert all(vars(space)[name] is not before[name] for name in before if before[name])
        space.block_forward()
    assert places == {(0, "rest", "forward"): 1, (0, "attention", "forward"): 7}
    assert vars(space) == before


@pytest.mark.parametrize("router", ROUTERS)
def test_the_functions_of_the_model_are_as_they_were_after_an_error(router):
    config = preset("tiny", dict(router=router))[0]
    before = functions(config)
    with pytest.raises(KeyboardInterrupt), timers.timers(config):
        assert all(function is not before[place] for place, function in functions(config).items())
        raise KeyboardInterrupt
    assert functions(config) == before
    assert len(before) == len(list(places.functions(config, timers.PARTS)))  # none is timed twice


BLOCK = {"attention", "norms", "rest"}
OF_A_KIND = {"moe": BLOCK | {"router", "dispatch, combine", "experts"}, "dense": BLOCK | {"experts"},
             "soft": BLOCK | {"dispatch, combine", "experts"}}
"""Kind of a layer -> the parts that take time in it."""


@pytest.mark.parametrize("kind", KINDS)
def test_every_part_of_every_layer_of_a_step_is_timed_once_forward_and_once_backward(kind):
    config = configured(kind)
    state, text = started(config)
    loop.step_once(state, text)  # the first step writes a record of the router, for which it asks the router more
    with timers.timers(config) as places:
        loop.step_once(state, text)
    both = ("forward", "backward")
    inside = {(i, part, way) for i, of_layer in enumerate(config.layer_kinds) for part in OF_A_KIND[of_layer]
              for way in both}
    outside = {(None, part, way) for part in ("embedding, head, loss", "norms") for way in both}
    assert places.keys() == inside | outside | {(None, "optimiser", "update"), (None, "rest", "update")}


def test_the_steps_of_the_layer_are_parts():
    """Forward and backward, of each of the five steps."""
    parts = {(module.__name__.split(".")[-1], name.replace("forward", "backward")): part
             for part, module, name, _ in places.functions(TINY, timers.PARTS) if ".moe." in module.__name__}
    experts = {(name, f"{name}_backward"): "experts" for name in ("experts", "dense")}
    mixing = {place: "dispatch, combine" for place in (
        ("dispatch", "dispatch_backward"), ("dispatch", "combine_backward"), ("soft", "soft_backward"))}
    assert parts == experts | mixing | {("softmax_topk", "backward"): "router", ("capacity", "keep_backward"): "router"}


@pytest.mark.parametrize("kind", KINDS)
def test_the_times_of_a_step_add_up_to_the_whole(kind):
    """The clock counts how often it is looked at: 0 at the start, 1 as the step begins, n as it ends."""
    state, text = started(configured(kind))
    clock = itertools.count().__next__
    with timers.timers(state.model_config, clock) as places:
        loop.step_once(state, text)
    assert sum(places.values()) == clock() - 1 - 1 > 50


def test_timers_change_no_number():
    (timed, text), (plain, _) = started(TINY), started(TINY)
    with timers.timers(TINY):
        loop.step_once(timed, text)
    loop.step_once(plain, text)
    assert all(np.array_equal(timed.params[name], plain.params[name]) for name in plain.params)


PRODUCTS = [((2, 3), (3, 4)), ((5, 2, 3), (5, 3, 4)), ((2, 3), (3, 4)), ((4, 3), (3,))]


def test_the_floor_runs_every_product_each_time_and_nothing_else(monkeypatch):
    run, seen, matmul = bench.replay(PRODUCTS), [], np.matmul

    def noted(left, right, out):
        seen.append((left.shape, right.shape))
        assert {left.dtype, right.dtype, out.dtype} == {np.dtype(np.float32)}
        return matmul(left, right, out=out)

    monkeypatch.setattr(np, "matmul", noted)
    run()
    run()
    assert seen == PRODUCTS * 2


@pytest.mark.parametrize("kind", ["soft", "dense"])
def test_the_floor_is_of_all_groups_of_all_micro_batches(kind):
    """Three micro-batches of four sequences, in two groups each, are 12 sequences."""
    config, training = preset("tiny", KINDS[kind], dict(batch=4, sequence=8, groups=2, accumulate=3))
    products = bench.measure(config, training, 1).products
    assert sum(product.flops for product in products) == cost.count(config, 12, 8).training_flops


def test_rounds_are_measured_in_turn_and_the_first_ones_not_counted(monkeypatch):
    """Five times a round, numbered: round 3 begins with 15, round 4 with 20."""
    number, counted, sides = itertools.count(), [], []
    step_once = loop.step_once

    def noted(state, text, each=map):
        sides.append(each is map)
        step_once(state, text, each)

    def rounds(n):
        counted.append(n)
        return range(n)

    monkeypatch.setattr(bench, "seconds", lambda function: (function(), next(number))[1])
    monkeypatch.setattr(loop, "step_once", noted)
    measured = bench.measure(TINY, TRAINING, 2, threads=2, rounds=rounds)
    times = (measured.step, measured.floor, measured.serial, measured.timed, measured.generation)
    np.testing.assert_array_equal(times, [[15, 20], [16, 21], [17, 22], [18, 23], [19, 24]])
    assert (counted, len(measured.places), measured.dtype) == ([5], 2, np.float32)
    assert sides == [False, False, True, True] * 5  # groups side by side, once untimed; then twice one after another


def test_a_round_writes_one_text_to_its_end(monkeypatch):
    written, stream = [], sampling.stream

    def noted(*given):
        for token in stream(*given):
            written.append(token)
            yield token

    monkeypatch.setattr(bench, "WARM", 0)
    monkeypatch.setattr(sampling, "stream", noted)
    bench.measure(TINY, TRAINING, 2)
    assert len(written) == 2 * bench.WRITTEN


def test_no_rounds_are_refused():
    with pytest.raises(ValueError, match="steps = 0: must be 1 or more"):
        bench.measure(TINY, TRAINING, 0)


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
                 generation=[0.064] * 3)
    arrays = {name: np.array(values) for name, values in (times | fields).items()}
    return bench.Measured(TINY, training, 2, np.dtype(np.float32), [product], **arrays, places=[PLACES] * 3)


def test_speeds_by_hand():
    """Ratios 2, 4, 1; the 10 % of three sorted numbers lies at 0.2, the 90 % at 1.8 of the way from the first."""
    assert rows(bench.speeds(made())) == [
        "median ms 10 to 90 % tokens/s GFLOP/s", "-" * 87,
        "training step 100.0 100.0 to 180.0 4,000 20.0",
        "its 1 matrix products alone 50.0 50.0 to 90.0 8,000 40.0",
        "step / products, pair by pair 2.00 x 1.20 to 3.60",
        "generation of 64 tokens, one text, cached 64.0 64.0 to 64.0 1,000"]


def test_a_model_that_cannot_write_has_no_speed_of_writing():
    assert "generation: none, router softmax_topk is not causal" in bench.speeds(made(generation=[np.nan] * 3))


def test_where_the_time_goes_by_hand():
    by_part = bench.breakdown(PLACES, "part", {"attention": "looking", "experts": "working", "rest": "the rest"})
    assert rows(by_part)[2:] == ["looking 10.00 - - 10.00 10.0%", "working 25.00 35.00 - 60.00 60.0%",
                                 "the rest - - 30.00 30.00 30.0%"]
    by_layer = bench.breakdown(PLACES, "layer", {0: "first", 1: "second", None: "outside"})
    assert rows(by_layer) == ["layer (ms) forward backward update together share", "-" * 91,
                              "first 10.00 30.00 - 40.00 40.0%", "second 25.00 5.00 - 30.00 30.0%",
                              "outside - - 30.00 30.00 30.0%"]


def test_the_report_says_what_was_measured_and_how():
    report = " ".join(bench.report(made()).split())
    for words in ("20 sequences of 20 random tokens, in 10 groups", "one after another: 100.0 ms",
                  "above takes 100.0 ms on 2", "change the time by +10.0%",
                  "layer 1 25.00 5.00 - 30.00 30.0%", "rest - - 30.00 30.00 30.0%",
                  "outside of the layers - - 30.00 30.00 30.0%"):
        assert words in report
    assert "optimiser" not in report  # takes no time here
    assert max(map(len, bench.report(made()).splitlines())) <= 100


def test_the_machine_is_one_line_without_names_or_paths():
    line = bench.machine(3, np.dtype(np.float32))
    assert f"NumPy {np.__version__}" in line and "threads: 3;" in line and "float32" in line
    assert not {"\n", "/"} & set(line) and (platform.node() or "\n") not in line


@pytest.mark.parametrize(("places", "title"), [
    (PLACES, "60% of a training step goes into experts"),
    ({Place(0, "norms", "update"): 1.0, Place(0, "rest", "update"): 3.0}, "75% of a training step goes into the rest")])
def test_the_title_says_where_most_of_the_time_goes(places, title):
    assert bench.title(places) == title


def test_the_figure_stacks_the_parts_of_the_step_and_of_each_layer():
    figure = step_time.time_by_part(PLACES, ("attention", "experts", "rest"), "title")
    axes = {axis.get_label(): axis for axis in figure.axes}
    drawn = {panel: [[(round(bar.get_x(), 9), round(bar.get_width(), 9)) for bar in bars] for bars in axis.containers]
             for panel, axis in axes.items()}
    assert drawn == {
        "step": [[(0, 10)], [(10, 60)], [(70, 30)]],
        "forward": [[(0, 10), (0, 0)], [(10, 0), (0, 25)], [(10, 0), (25, 0)]],
        "backward": [[(0, 0), (0, 0)], [(0, 30), (0, 5)], [(30, 0), (5, 0)]]}
    assert [text.get_text() for text in axes["step"].texts] == ["10%", "experts\n60%", "rest\n30%"]
    assert axes["step"].get_xlabel() == "share of a training step (%), of 100.0 ms on one thread"
    assert axes["forward"].get_xlabel() == "forward pass of each layer (milliseconds)"
    assert axes["forward"].get_xlim() == axes["backward"].get_xlim()
    assert axes["forward"].get_ylim() == (1.5, -0.5)  # layer 0 on top
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["attention", "experts", "rest"]


@pytest.mark.parametrize("options", [
    "", "--threads 1", "--router soft", "--n-experts 1 --top-k 1", "--first-dense-layers 2", "--eval-capacity-factor 1",
    "--router expert_choice --accumulate 2", "--global-balance --n-shared-experts 1 --capacity-factor 1"])
def test_the_command_prints_the_table_and_draws_the_figure(tmp_path, monkeypatch, capsys, options):
    monkeypatch.chdir(tmp_path)
    status = cli.main(f"bench --preset tiny --batch 4 --steps 2 {options}".split())
    out, err = capsys.readouterr()
    assert status == 0 and "bench: 100%" in err
    assert f"; threads: {1 if 'threads' in options else 2};" in out
    assert "training step" in out and out.endswith("Picture: runs/bench/bench.png\n")
    assert (tmp_path / "runs/bench/bench.png").read_bytes().startswith(b"\x89PNG")


def test_an_interrupted_benchmark_says_so_and_leaves_nothing_behind(tmp_path, monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(ops, "swiglu_backward", interrupt)
    monkeypatch.chdir(tmp_path)
    before = functions(TINY)
    assert cli.main(["bench", "--preset", "tiny"]) == 130
    assert capsys.readouterr().err.endswith("\nminimoe: interrupted\n")
    assert functions(TINY) == before and not list(tmp_path.iterdir())


def test_models_are_timed_in_turns_with_a_step_before_that_does_not_count(monkeypatch):
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

    monkeypatch.setattr(bench.loop, "new_state", lambda config, training, text: config)
    monkeypatch.setattr(bench.loop, "step_once", step)
    monkeypatch.setattr(bench, "seconds", timed)
    assert bench.step_seconds({"a": "small", "b": "large"}, None, None, rounds=3) == {"a": 2.0, "b": 20.0}
    assert taken == ["small", "small", "large", "large"] * 3
