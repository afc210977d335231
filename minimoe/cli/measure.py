"""Commands that measure: gradients, time, cost, causality, conventions."""

import sys
from dataclasses import fields, replace

from minimoe import gradcheck as gradchecks
from minimoe.cli import arguments, train
from minimoe.config import ModelConfig, TrainConfig, presets
from minimoe.cost import deployment, memory

BENCH_STEPS = 40

BENCH_FIELDS = {"batch", "sequence", "groups", "accumulate"}
"""Fields of TrainConfig on which the time of a step depends."""

COST_FIELDS = {"batch", "sequence", "groups"}


def add_gradcheck(subparsers):
    """The command `gradcheck` and its options."""
    parser = arguments.command(subparsers, "gradcheck", run_gradcheck,
                               "check every gradient in the code to rounding error")
    parser.epilog = "The options change the checks of the whole model; those of its parts have sizes of their own."
    arguments.add_fields(parser, gradchecks.SMALL)


def run_gradcheck(options):
    """Check all gradients; status 1 if one is wrong."""
    config = replace(gradchecks.SMALL, **arguments.given(options, ModelConfig))
    return 0 if gradchecks.check_everything(config, print) else 1


def add_causality(subparsers):
    """The command `causality` and its options."""
    parser = arguments.command(subparsers, "causality", run_causality, "measure which routers look into the future")
    parser.add_argument("--trials", type=int, default=50, metavar="N", help="random inputs of each (default: 50)")


def run_causality(options):
    """Measure which routers look into the future."""
    from minimoe.analysis import causality
    if options.trials < 1:
        raise ValueError(f"--trials {options.trials}: must be 1 or more")
    print(causality.table(causality.study(options.trials)))


def add_rosetta(subparsers):
    """The command `rosetta` and its options."""
    arguments.command(subparsers, "rosetta", run_rosetta, "show one batch under the conventions of many systems")


def run_rosetta(options):
    """One batch under the conventions of many systems."""
    from minimoe.analysis import rosetta
    print(rosetta.table(rosetta.read(rosetta.example())))


def add_bench(subparsers):
    """The command `bench` and its options."""
    parser = arguments.command(subparsers, "bench", run_bench,
                               "measure this machine: how fast it trains and writes, and where the time goes",
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
    """Measure this machine: a training step, its matrix products, generation, and where the time goes."""
    from minimoe.analysis import bench
    from minimoe.plots import figures, step_time
    from minimoe.training import progress
    figures.check_path(options.figure)
    configurations = presets.preset(options.preset or arguments.DEFAULT_PRESET, arguments.given(options, ModelConfig),
                                    arguments.given(options, TrainConfig))
    measured = bench.measure(*configurations, options.steps, options.threads, lambda n: progress.rounds(n, "bench"))
    print(bench.report(measured))
    places = bench.usual(measured.places)
    figures.save(step_time.time_by_part(places, bench.parts(places), bench.title(places)), options.figure)
    print(f"\nPicture: {options.figure}")


def add_cost(subparsers):
    """The command `cost` and its options."""
    parser = arguments.command(subparsers, "cost", run_cost, "say what a model costs: parameters, FLOPs, memory, bytes")
    which = parser.add_mutually_exclusive_group()
    arguments.add_preset(which)
    which.add_argument("--run", metavar="FOLDER", help="a trained run, with what its own routing costs")
    parser.add_argument("--text", nargs="+", metavar="FILE", help="what the run was trained on, if on your own")
    which.add_argument("--model", metavar="NAME", help="a published model, such as mixtral-8x7b")
    which.add_argument("--list", action="store_const", const=True, help="the published models that it knows")
    which.add_argument("--file", metavar="FILE.json", help="count the parameters of the models that it describes")
    parser.add_argument("--json", action="store_true", help="as JSON, for programs")
    parser.add_argument("--figure", metavar="PATH", help="draw where parameters, FLOPs and bytes are, as PNG")
    parser.add_argument("--context", type=int, metavar="N", help="tokens of a text (default: the longest of ours, "
                        "2,048 of published models)")
    parser.add_argument("--machine", choices=deployment.MACHINES, help="where it runs: " + "; ".join(
        f"{name}: {machine.words}" for name, machine in deployment.MACHINES.items())
        + " (default: ddr5 for ours, h100 for published models)")
    parser.add_argument("--bandwidth", type=float, metavar="X", help="of its memory, if you know better [bytes/s]")
    parser.add_argument("--flops", type=float, metavar="X", help="of its matrix products, if you know better [FLOP/s]")
    parser.add_argument("--format", choices=memory.FORMATS, help="of weights and cache (default: float32 for ours, "
                        "bf16 for published models)")
    parser.add_argument("--expert-format", choices=memory.FORMATS, help="of the experts' matrices (default: the same)")
    parser.add_argument("--ranks", type=int, metavar="R", help="devices that share the experts of --run (default: 4, "
                        "or what divides them)")
    model_config, train_config = presets.preset(arguments.DEFAULT_PRESET)
    arguments.add_fields(parser, model_config)
    arguments.add_fields(parser, train_config, leave_out={field.name for field in fields(train_config)} - COST_FIELDS)


def run_cost(options):
    """Say what a model costs: a published one, those of a file, that of a run, or one that is not trained."""
    from minimoe.cost import answers
    from minimoe.plots import cost_shares, figures
    kind = _kind_of_model(options)
    if options.figure is not None:
        figures.check_path(options.figure)
    where = answers.where(options, ours=kind in (None, "run"))
    models = answers.known() if kind == "list" else answers.of_file(options.file) if kind == "file" else []
    answers.check_of_use(options, models)
    if len(models) == 1 and not options.json:  # there is room for all of it
        records = [answers.of_published(models[0], where)]
        answer = answers.answer(records[0], as_json=False)
    elif models:
        records = [answers.of_published(model, where) for model in models] if options.figure else []
        answer = answers.counted(models, options.json, with_keys=kind == "list")
    else:
        records = [_priced(options, kind, answers, where)]
        answer = answers.answer(records[0], options.json)
    if options.figure is not None:
        figures.save(cost_shares.cost_shares(records), options.figure)
    print(answer)
    if options.figure is not None:
        print(f"Picture: {options.figure}", file=sys.stderr)  # JSON stays JSON


def _kind_of_model(options):
    """Which option names the models: "run", "model", "list" or "file"; None is a model of ours that is not trained.

    Raises ValueError for an option that has no use with it.
    """
    kind = next((kind for kind in ("run", "model", "list", "file") if getattr(options, kind) is not None), None)
    given = {**arguments.given(options, ModelConfig), **arguments.given(options, TrainConfig)}
    if kind and given:
        raise ValueError(f"--{next(iter(given)).replace('_', '-')} has no use beside --{kind}")
    for name in ("ranks", "text"):
        if getattr(options, name) is not None and kind != "run":
            raise ValueError(f"--{name} has no use without --run, whose routing is looked at")
    return kind


def _priced(options, kind, answers, where):
    """The record of one model."""
    if kind == "model":
        return answers.of_published(answers.find(options.model), where)
    if kind is None:
        fields_of = (arguments.given(options, record) for record in (ModelConfig, TrainConfig))
        preset = options.preset or arguments.DEFAULT_PRESET
        record = answers.of_ours(*presets.preset(preset, *fields_of), where)
        return record | {"name": f"{record['name']} (from the preset {preset})"}
    from minimoe.training import data, loop
    state = train.load(options)
    text = data.build(train.texts(options), state.train_config.sequence)
    loop.check_text(state, text)
    return answers.of_run(state, text, where, options.ranks)
