"""Commands that measure: gradients, causality, conventions, time."""

import functools
from dataclasses import fields, replace

from minimoe import gradcheck, terminal
from minimoe.cli import arguments
from minimoe.config import ModelConfig, TrainConfig, presets

BENCH_STEPS = 40

BENCH_FIELDS = {"batch", "sequence", "groups", "accumulate"}
"""Fields of TrainConfig on which the time of a step depends."""


def add_gradcheck(subparsers):
    """The command `gradcheck` and its options."""
    parser = arguments.command(subparsers, "gradcheck", run_gradcheck,
                               "check every gradient in the code to rounding error, in one to three minutes")
    parser.epilog = "The options change the checks of the whole model; the checks of its parts have fixed sizes."
    arguments.add_detail(parser, "the error of every tensor, setting and loss")
    arguments.add_fields(parser, gradcheck.SMALL)


def run_gradcheck(options):
    """Check all gradients; status 1 if one is wrong."""
    from minimoe.training import progress
    config = replace(gradcheck.SMALL, **arguments.given(options, ModelConfig))
    rounds = functools.partial(progress.rounds, label="gradcheck", unit="jobs")
    return 0 if gradcheck.check_everything(config, terminal.say, rounds, options.detail) else 1


def add_causality(subparsers):
    """The command `causality` and its options."""
    parser = arguments.command(subparsers, "causality", run_causality, "measure which routers look into the future")
    parser.add_argument("--trials", type=int, default=50, metavar="N", help="random inputs per setting (default: 50)")
    arguments.add_detail(parser, "the shares of every router, capacity and drop order")


def run_causality(options):
    """Measure which routers look into the future."""
    from minimoe.analysis import causality
    from minimoe.training import progress
    if options.trials < 1:
        raise ValueError(f"--trials {options.trials}: must be 1 or more")
    rounds = functools.partial(progress.rounds, label="causality", unit="settings")
    terminal.say(causality.report(causality.study(options.trials, rounds=rounds), options.detail))


def add_rosetta(subparsers):
    """The command `rosetta` and its options."""
    parser = arguments.command(subparsers, "rosetta", run_rosetta,
                               "show one batch under the conventions of many systems")
    arguments.add_detail(parser, "queues, gates and sources as well")


def run_rosetta(options):
    """Show one batch under the conventions of many systems."""
    from minimoe.analysis import rosetta
    terminal.say(rosetta.report(rosetta.read(rosetta.example()), options.detail))


def add_bench(subparsers):
    """The command `bench` and its options."""
    parser = arguments.command(subparsers, "bench", run_bench,
                               "measure this machine: how fast it trains and generates, and how time is spent",
                               in_groups=True)
    arguments.add_preset(parser)
    parser.add_argument("--steps", type=int, default=BENCH_STEPS, metavar="N",
                        help=f"rounds of measurements (default: {BENCH_STEPS})")
    parser.add_argument("--figure", default="runs/bench/bench.png", metavar="PATH",
                        help="where the figure goes (default: runs/bench/bench.png)")
    model_config, train_config = presets.preset(arguments.DEFAULT_PRESET)
    arguments.add_fields(parser, model_config)
    arguments.add_fields(parser, train_config, leave_out={field.name for field in fields(train_config)} - BENCH_FIELDS)


def run_bench(options):
    """Measure this machine: a training step, its matrix products, generation, and how the time is spent."""
    from minimoe.analysis import bench
    from minimoe.plots import figures, step_time
    from minimoe.training import progress
    figures.check_path(options.figure)
    configurations = presets.preset(options.preset or arguments.DEFAULT_PRESET, arguments.given(options, ModelConfig),
                                    arguments.given(options, TrainConfig))
    measured = bench.measure(*configurations, options.steps, options.threads, lambda n: progress.rounds(n, "bench"))
    terminal.say(bench.report(measured))
    places = bench.usual(measured.places)
    figures.save(step_time.time_by_part(places, bench.parts(places), bench.title(places)), options.figure)
    terminal.say(f"\nPicture: {options.figure}")
