"""The speed of a training step on this machine: its time, a lower bound, and how the time is spent in the model.

The lower bound is the time of the step's matrix products alone.  How the time is spent is measured in the training code
itself, see `timers`.
"""

import os
import time
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import threadpoolctl

from minimoe import cost, terminal
from minimoe.analysis import timers
from minimoe.analysis.timers import PARTS, REST
from minimoe.config import ModelConfig, TrainConfig, describe
from minimoe.cost.places import WAYS
from minimoe.generation import sampling
from minimoe.training import data, loop
from minimoe.training.threads import workers

WARM, WRITTEN = 3, 64
"""Rounds that are not counted, since the first ones allocate memory; tokens that a round generates."""

@dataclass(frozen=True)
class Measured:
    """Seconds, one entry per round: a step; its products; the step with its groups one after another, without and with
    timers; and the generation of WRITTEN tokens (NaN if the model cannot generate).

    places: one dict per round, Place -> seconds.  products: those of all groups of a step, as `cost.Product`.
    """

    model_config: ModelConfig
    train_config: TrainConfig
    threads: int
    dtype: np.dtype
    products: list
    step: np.ndarray
    floor: np.ndarray
    serial: np.ndarray
    timed: np.ndarray
    generation: np.ndarray
    places: list


def measure(model_config, train_config, steps, threads=1, rounds=range):
    """Time a step, its lower bound, its parts and generation, one after another, `steps` times, on random tokens.

    Args:
        model_config, train_config: configuration of the model and of the step.
        steps: number of rounds that count.
        threads: number of groups of the batch that run at the same time.
        rounds: iterates over the rounds as `range` does; `progress.rounds` shows them.
    Returns Measured.
    Raises ValueError for steps below 1, and where `loop.new_state` does.
    """
    if steps < 1:
        raise ValueError(f"steps = {steps}: must be 1 or more")
    text = data.random_text(model_config, train_config)
    state = loop.new_state(model_config, train_config, text)
    products = [group_products(model_config, train_config, seed)
                for seed in range(train_config.accumulate * train_config.groups)]
    replays, writes = [replay(of_group) for of_group in products], sampling.causal(model_config)
    dropless, measured = replace(model_config, eval_capacity_factor=None), []

    def write(params):
        return list(sampling.stream(params, dropless, [0], WRITTEN))

    with workers(threads) as each:
        for _ in rounds(WARM + steps):
            loop.step_once(state, text, each)  # not timed: the caches still hold the previous measurement
            step = seconds(lambda: loop.step_once(state, text, each))
            floor = seconds(lambda: list(each(lambda run: run(), replays)))
            serial = seconds(lambda: loop.step_once(state, text))
            with timers.timers(model_config) as places:
                timed = seconds(lambda: loop.step_once(state, text))
            written = seconds(lambda: write(state.params)) if writes else np.nan
            measured.append((step, floor, serial, timed, written, places))
    *times, places = zip(*measured[WARM:], strict=True)
    return Measured(model_config, train_config, threads, state.params["embed.w_VD"].dtype, sum(products, []),
                    *map(np.array, times), list(places))


def step_seconds(configs, train_config, text, threads=1, rounds=20, each_round=range):
    """Name -> median time of a training step of each model, round-robin, so that slow moments affect all of them.

    configs: name -> ModelConfig.  rounds: steps of each.  each_round: iterates over them as `range` does.
    """
    states = {name: loop.new_state(config, train_config, text) for name, config in configs.items()}
    times = {name: [] for name in configs}
    with workers(threads) as each:
        for _ in each_round(rounds):
            for name, state in states.items():
                loop.step_once(state, text, each)  # not timed: the caches still hold the previous measurement
                times[name].append(seconds(lambda state=state: loop.step_once(state, text, each)))
    return {name: float(np.median(of_model)) for name, of_model in times.items()}


def group_products(model_config, train_config, seed):
    """The matrix products of one group of a step, forward and backward, as `cost.Product`."""
    sequences = train_config.batch // train_config.groups
    return cost.products(model_config, sequences, train_config.sequence, seed)


def replay(products):
    """A function that runs these matrix products and nothing else, on arrays that already exist.

    products: pairs of shapes.  Factors of the same shape share one array, so it reads less memory than a step does.
    """
    rng = np.random.default_rng(0)
    arrays = {shape: rng.standard_normal(shape, np.float32) for shape in sorted({s for pair in products for s in pair})}
    outs = {pair: np.matmul(arrays[pair[0]], arrays[pair[1]]) for pair in map(tuple, products)}
    calls = [(arrays[left], arrays[right], outs[left, right]) for left, right in products]

    def run():
        for left, right, out in calls:
            np.matmul(left, right, out=out)

    return run


def seconds(function):
    """Time of one call."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def usual(places):
    """Place -> seconds: its median share over the rounds, times the median round; 0 for a place in few rounds.

    A share does not change when other programs slow the machine down.  The shares are rescaled to sum to 1.
    """
    every = dict.fromkeys(place for of_round in places for place in of_round)
    shares = {place: np.median([of_round.get(place, 0.0) / sum(of_round.values()) for of_round in places])
              for place in every}
    whole = np.median([sum(of_round.values()) for of_round in places]) / sum(shares.values())
    return {place: float(share * whole) for place, share in shares.items()}


def parts(places):
    """The names in PARTS that take time, in order: a dense model has no router."""
    return [part for part in PARTS if any(place.part == part for place in places)]


def report(measured):
    """All measurements as text: the speed of a step, the machine, and how the time is spent."""
    places = usual(measured.places)
    overhead = np.median(measured.timed / measured.serial) - 1
    how = (f"How the time is spent, on one thread, groups one after another: {1e3 * sum(places.values()):.1f} ms. "
           f"The step above takes {1e3 * np.median(measured.step):.1f} ms on {measured.threads}. "
           f"The timers change the time by {overhead:+.1%}.")
    layers = {layer: f"layer {layer}" for layer in range(measured.model_config.n_layers)}
    return "\n\n".join([
        terminal.fill(_answer(measured, places)), terminal.fill(_setting(measured), hanging="  "), speeds(measured),
        terminal.fill(how), breakdown(places, "part", {part: part for part in parts(places)}),
        breakdown(places, "layer", layers | {None: "outside the layers"})])


def _answer(measured, places):
    step, ratio = np.median(measured.step), np.median(measured.step / measured.floor)
    return (f"A training step takes {1e3 * step:.1f} ms, {_tokens(measured.train_config) / step:,.0f} tokens/s: "
            f"{ratio:.2f} times as long as its matrix products alone. {title(places)}.")


def _setting(measured):
    """Machine, model and step, one line each."""
    config = measured.train_config
    n_groups = config.accumulate * config.groups
    return "\n".join([
        machine(measured.threads, measured.dtype), describe.describe_layers(measured.model_config),
        f"step: {config.accumulate * config.batch} sequences of {config.sequence} random tokens, in {n_groups} "
        f"group{'s' * (n_groups > 1)}"])


def _tokens(config):
    """Number of tokens in a step."""
    return config.accumulate * config.batch * config.sequence


def machine(threads, dtype):
    """The machine and the libraries in one line."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    blas = [f"{pool['internal_api']} {pool['version']}" for pool in threadpoolctl.threadpool_info()
            if pool["user_api"] == "blas"]
    unknown = "a BLAS that sets its own threads"
    products = f"{', '.join(dict.fromkeys(blas))}, one thread per product" if blas else unknown
    return f"machine: {cores} cores; threads: {threads}; {dtype}; NumPy {np.__version__}; {products}"


def speeds(measured):
    """The step, its lower bound and generation as a table: medians, and the range of the middle 80 % of the rounds."""
    flops = sum(product.flops for product in measured.products)
    tokens = _tokens(measured.train_config)
    ratio = np.percentile(measured.step / measured.floor, (50, 10, 90))
    rows = [("", "median ms", "10 to 90 %", "tokens/s", "GFLOP/s"),
            _speed("training step", measured.step, tokens, flops),
            _speed(f"its {len(measured.products):,} matrix products alone", measured.floor, tokens, flops),
            ("step / products, pair by pair", f"{ratio[0]:.2f} x", f"{ratio[1]:.2f} to {ratio[2]:.2f}", "", "")]
    if np.isfinite(measured.generation).all():
        rows.append(_speed(f"generation of {WRITTEN} tokens, one sequence", measured.generation, WRITTEN))
    else:
        rows.append((f"generation: none, router {measured.model_config.router} is not causal", "", "", "", ""))
    return terminal.table(rows)


def _speed(name, times, tokens, flops=None):
    low, middle, high = np.percentile(times, (10, 50, 90))
    rate = "" if flops is None else f"{flops / middle / 1e9:.1f}"
    return name, f"{1e3 * middle:.1f}", f"{1e3 * low:.1f} to {1e3 * high:.1f}", f"{tokens / middle:,.0f}", rate


def breakdown(places, field, names):
    """Milliseconds and share of the step, by way, as a table.

    places: Place -> seconds.  field: the field of Place that a row stands for.  names: its values -> names of the rows.
    """
    rows, total = [(f"{field} (ms)", *WAYS, "together", "share")], sum(places.values())
    for value, name in names.items():
        spent = [sum(t for place, t in places.items() if getattr(place, field) == value and place.way == way)
                 for way in WAYS]
        rows.append((name, *(f"{1e3 * t:.2f}" if t else "-" for t in spent), f"{1e3 * sum(spent):.2f}",
                     f"{sum(spent) / total:.1%}"))
    return terminal.table(rows)


def title(places):
    """The message of a figure of the places: the part that takes most of the time."""
    spent = Counter()
    for place, t in places.items():
        spent[place.part] += t
    part, most = max(spent.items(), key=lambda item: item[1])
    return f"{most / spent.total():.0%} of a training step is spent on {'the rest' if part == REST else part}"
