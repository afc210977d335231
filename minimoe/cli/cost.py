"""The command `cost`: what a model costs."""

from dataclasses import fields

from minimoe import terminal
from minimoe.cli import arguments, train
from minimoe.config import ModelConfig, TrainConfig, presets
from minimoe.cost import deployment, memory
from minimoe.sparsity import savings

COST_FIELDS = {"batch", "sequence", "groups"}
"""Fields of TrainConfig on which the cost of a step depends."""


def add_cost(subparsers):
    """The command `cost` and its options."""
    parser = arguments.command(subparsers, "cost", run_cost,
                               "count what a model costs: parameters, FLOPs, memory, bytes")
    which = parser.add_mutually_exclusive_group()
    arguments.add_preset(which)
    which.add_argument("--run", metavar="FOLDER", help="a trained run, with the cost of its own routing")
    parser.add_argument("--text", nargs="+", metavar="FILE", help="the run's training text, if it was your own")
    which.add_argument("--model", metavar="NAME", help="a published model, such as mixtral-8x7b")
    which.add_argument("--list", action="store_const", const=True, help="list the published models")
    which.add_argument("--file", metavar="FILE.json", help="count the models that a file describes, such "
                       "as the config.json of a Hugging Face model")
    arguments.add_detail(parser, "part by part, every format and batch size, devices, papers' formulas")
    parser.add_argument("--json", action="store_true", help="print everything as JSON, for programs")
    parser.add_argument("--figure", metavar="PATH", help="draw the shares of parameters, FLOPs and bytes (PNG)")
    parser.add_argument("--context", type=int, metavar="N", help="length of a sequence (default: the longest of ours, "
                        "2,048 of published models) [tokens]")
    parser.add_argument("--machine", choices=deployment.MACHINES, metavar="NAME", help="the machine: " + "; ".join(
        f"{name}: {machine.words}" for name, machine in deployment.MACHINES.items())
        + " (default: ddr5 for ours, h100 for published models)")
    parser.add_argument("--bandwidth", type=float, metavar="X", help="memory bandwidth, if not the machine's [bytes/s]")
    parser.add_argument("--flops", type=float, metavar="X", help="speed of products, if not the machine's [FLOP/s]")
    parser.add_argument("--format", choices=memory.FORMATS, metavar="NAME", help="format of weights and KV cache: "
                        f"{', '.join(memory.FORMATS)} (default: float32 for ours, bf16 for published models)")
    parser.add_argument("--expert-format", choices=memory.FORMATS, metavar="NAME",
                        help="number format of the experts' matrices (default: the same)")
    parser.add_argument("--ranks", type=int, metavar="R", help="devices over which expert parallelism spreads the "
                        "experts of --run (default: 4, or the largest divisor below)")
    model_config, train_config = presets.preset(arguments.DEFAULT_PRESET)
    arguments.add_fields(parser, model_config)
    arguments.add_fields(parser, train_config, leave_out={field.name for field in fields(train_config)} - COST_FIELDS)


def run_cost(options):
    """Count what a model costs: a published model, those of a file, that of a run, or an untrained one."""
    from minimoe.cost import answers, model_files, published
    kind = _kind_of_model(options)
    if options.figure is not None:
        from minimoe.plots import cost_shares, figures
        figures.check_path(options.figure)
    setting = answers.setting(options, ours=kind in (None, "run"))
    models = list(published.models().values()) if kind == "list" else (
        model_files.read_file(options.file) if kind == "file" else [])
    answers.check_of_use(options, models)
    for model in models:
        if model.remark:
            terminal.complain(f"minimoe: note: {options.file}: {model.remark}")
    if len(models) == 1 and not options.json:  # then there is room for everything
        records = [answers.published_record(models[0], setting)]
        answer = answers.answer(records[0], False, options.detail)
    elif models:
        records = [answers.published_record(model, setting) for model in models] if options.figure else []
        answer = answers.parameter_counts(models, options.json, kind == "list", options.detail)
    else:
        records = [_priced(options, kind, answers, setting)]
        answer = answers.answer(records[0], options.json, options.detail)
    terminal.say(answer)  # first, so that it is printed even if the picture fails
    if options.figure is not None:
        figures.save(cost_shares.cost_shares(records), options.figure)
        terminal.complain(f"Picture: {options.figure}")  # JSON stays JSON


def _kind_of_model(options):
    """Which option names the models: "run", "model", "list" or "file"; None is an untrained model of ours.

    Raises ValueError for an option that has no effect with it.
    """
    kind = next((kind for kind in ("run", "model", "list", "file") if getattr(options, kind) is not None), None)
    given = {**arguments.given(options, ModelConfig), **arguments.given(options, TrainConfig)}
    if kind and given:
        raise ValueError(f"--{next(iter(given)).replace('_', '-')} has no effect with --{kind}")
    for name in ("ranks", "text"):
        if getattr(options, name) is not None and kind != "run":
            raise ValueError(f"--{name} has no effect without --run, whose routing it examines")
    return kind


def _priced(options, kind, answers, setting):
    """The record of one model."""
    if kind == "model":
        from minimoe.cost import published
        return answers.published_record(published.find(options.model), setting)
    if kind is None:
        fields_of = (arguments.given(options, record) for record in (ModelConfig, TrainConfig))
        preset = options.preset or arguments.DEFAULT_PRESET
        record = answers.our_record(*presets.preset(preset, *fields_of), setting)
        return record | {"name": f"{record['name']} (from the preset {preset})"}
    from minimoe.training import data, loop
    state = train.load(options)
    text = data.build(train.texts(options), state.train_config.sequence)
    loop.check_text(state, text)
    record = answers.run_record(state, text, setting, options.ranks)
    if state.masks:
        record["sparse"] = savings.record(state.masks, state.model_config, record["forward_flops_per_token"])
    return record
