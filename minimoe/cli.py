"""The command line.  Options come from the fields of ModelConfig and TrainConfig, with their explanations."""

import argparse
import os
import sys
from dataclasses import fields

import threadpoolctl

from minimoe import commands, gradcheck, names
from minimoe import config as configs
from minimoe.analysis.cost import deployment, memory


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the list of all options before it."""

    def error(self, message):
        """Print the message and exit with status 2."""
        self.exit(2, f"minimoe: error: {message} (see {self.prog} --help)\n")


CHOICES = {"router": {name: router.words for name, router in names.ROUTERS.items()}, "drop_order": names.DROP_ORDERS}
"""Field -> the names that it can have, with what they mean."""

STUDIES = (commands.tour, commands.routers, commands.compare)
"""Commands that train several models, some seeds of each."""

IN_GROUPS = (*STUDIES, commands.train, commands.bench)
"""Commands that run the groups of a batch at the same time."""


def main(arguments=None):
    """Run a command; returns the exit status: 0, 1 for a wrong gradient, 2 for bad input, 130 after Ctrl-C."""
    options = parser().parse_args(arguments)
    try:
        _check_general_options(options)
        with threadpoolctl.threadpool_limits(1, user_api="blas"):  # `workers` says why
            return options.run_command(options) or 0
    except ValueError as error:
        print(f"minimoe: error: {error}", file=sys.stderr)
        return 2
    except MemoryError as error:
        print(f"minimoe: error: not enough memory: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interruption:
        print(f"\nminimoe: {str(interruption) or 'interrupted'}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output, such as `head`, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def parser():
    """The parser of all commands; `run_command` of what it returns is the function to call."""
    parser = _Parser(
        prog="python -m minimoe", allow_abbrev=False,
        description="A tiny Mixture-of-Experts transformer in NumPy. Without a command: the tour, which trains a MoE "
        "and two dense models and shows where the tokens went.")
    parser.set_defaults(run_command=commands.tour)
    _add_comparison(parser, "the tour in under 30 seconds, on a smaller model", commands.TOUR_SEEDS, default=None)
    _add_threads(parser, default=None)
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND")
    for add in (_add_train, _add_generate, _add_route, _add_doctor, _add_gradcheck, _add_figures,
                _add_routers, _add_compare, _add_causality, _add_rosetta, _add_cost, _add_bench):
        add(subparsers)
    return parser


def _check_general_options(options):
    """Those that may stand before a command: that it has them, and how many threads there are."""
    for name in ("quick", "seeds", "fresh"):
        if options.run_command not in STUDIES and getattr(options, name) is not None:
            raise ValueError(f"--{name} belongs to the tour, which has no command after it, to `routers` and `compare`")
    if options.threads is None:
        options.threads = commands.DEFAULT_THREADS
    elif options.run_command not in IN_GROUPS:
        raise ValueError(f"--threads belongs to the tour, `train`, `routers`, `compare` and `bench`: "
                         f"{options.run_command.__name__} has no groups to run at the same time")
    if options.threads < 1:
        raise ValueError(f"--threads {options.threads}: must be 1 or more")


def _add_comparison(parser, quick, seeds, default):
    parser.add_argument("--quick", action="store_const", const=True, default=default, help=quick)
    parser.add_argument("--seeds", type=int, default=default, metavar="N", help=f"runs of a model (default: {seeds})")
    parser.add_argument("--fresh", action="store_const", const=True, default=default,
                        help="train again what is there from earlier")


def _add_routers(subparsers):
    parser = _command(subparsers, "routers", commands.routers, "train every router on one small budget, and compare")
    _add_comparison(parser, "to see that all works: far too short to compare", commands.ROUTERS_SEEDS,
                    default=argparse.SUPPRESS)  # what was said before the command stands


def _add_compare(subparsers):
    parser = _command(subparsers, "compare", commands.compare, "train MoE and dense at equal steps, FLOPs and time")
    _add_comparison(parser, "to see that all works: far too short to compare", commands.COMPARE_SEEDS,
                    default=argparse.SUPPRESS)  # what was said before the command stands


def _add_causality(subparsers):
    parser = _command(subparsers, "causality", commands.causality, "measure which routers look into the future")
    parser.add_argument("--trials", type=int, default=50, metavar="N", help="random inputs of each (default: 50)")


def _add_rosetta(subparsers):
    _command(subparsers, "rosetta", commands.rosetta, "show one batch under the conventions of many systems")


def _add_train(subparsers):
    parser = _command(subparsers, "train", commands.train, "train one model on the embedded corpus or on your own text")
    _add_preset(parser)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--text", nargs="+", metavar="FILE", help="train on these text files, one domain each")
    source.add_argument("--clusters", action="store_true", help="train on a made-up language of four known clusters")
    parser.add_argument("--finer", type=int, metavar="M", help="M times as many experts, M times as narrow, M times as "
                        "many a token: fine-grained experts, at the same cost (DeepSeekMoE)")
    parser.add_argument("--run", default="runs/train", metavar="FOLDER", help="where to save (default: runs/train)")
    parser.add_argument("--resume", action="store_true", help="go on with the run in the folder of --run")
    model_config, train_config = configs.preset(commands.DEFAULT_PRESET)
    _add_fields(parser, model_config, leave_out=("vocab_size",))
    _add_fields(parser, train_config)


def _add_generate(subparsers):
    parser = _command(subparsers, "generate", commands.generate, "write text with a trained model")
    _add_run(parser)
    parser.add_argument("--prompt", help="the text to go on from (default: 'The ', or any one character that it knows)")
    parser.add_argument("--n-tokens", type=int, default=500, metavar="N", help="characters to write (default: 500)")
    parser.add_argument("--temperature", type=float, default=0.8, help="below 1 is safer, 0 the likeliest (0.8)")
    parser.add_argument("--top-k", type=int, metavar="K", help="sample among the K likeliest characters only")
    parser.add_argument("--top-p", type=float, metavar="P", help="sample among the fewest with probability P together")
    parser.add_argument("--seed", type=int, default=0, help="of the sampling (default: 0)")
    parser.add_argument("--dropless", action="store_true",
                        help="leave out the run's evaluation capacity, with which tokens cannot be made one by one")


def _add_route(subparsers):
    parser = _command(subparsers, "route", commands.route, "show which experts each character goes to, and why")
    parser.add_argument("text", nargs="+", help="the text to route, no longer than the model's context")
    _add_run(parser)
    parser.add_argument("--layer", type=int, metavar="L", help="show this layer only")
    parser.add_argument("--capacity-factor", type=float, help="limit the experts, to see who is dropped [mean loads]")
    parser.add_argument("--drop-order", choices=names.DROP_ORDERS, help="who queues first, if they are limited")
    parser.add_argument("--colour", "--color", choices=("auto", "always", "never"), default="auto",
                        help="auto: if the output is a terminal and NO_COLOR is not set")


def _add_doctor(subparsers):
    parser = _command(subparsers, "doctor", commands.doctor, "say whether a run's routers fail, and by what evidence")
    parser.add_argument("run", nargs="?", default=commands.DEFAULT_RUN, metavar="RUN",
                        help=f"the folder of a run (default: {commands.DEFAULT_RUN}, which the tour makes)")


def _add_gradcheck(subparsers):
    parser = _command(subparsers, "gradcheck", commands.gradcheck, "check every gradient in the code to rounding error")
    parser.epilog = "The options change the checks of the whole model; those of its parts have sizes of their own."
    _add_fields(parser, gradcheck.SMALL)


def _add_figures(subparsers):
    _command(subparsers, "figures", commands.figures, "draw the figures again from the finished runs")


def _add_cost(subparsers):
    parser = _command(subparsers, "cost", commands.cost, "say what a model costs: parameters, FLOPs, memory, bytes")
    which = parser.add_mutually_exclusive_group()
    _add_preset(which)
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
    model_config, train_config = configs.preset(commands.DEFAULT_PRESET)
    _add_fields(parser, model_config)
    _add_fields(parser, train_config, leave_out={field.name for field in fields(train_config)} - commands.COST_FIELDS)


def _add_bench(subparsers):
    parser = _command(subparsers, "bench", commands.bench, "measure this machine: how fast it trains and writes, and "
                      "where the time goes")
    _add_preset(parser)
    parser.add_argument("--steps", type=int, default=commands.BENCH_STEPS, metavar="N",
                        help=f"rounds of measurements (default: {commands.BENCH_STEPS})")
    parser.add_argument("--figure", default="runs/bench/bench.png", metavar="PATH",
                        help="where the figure goes (default: runs/bench/bench.png)")
    model_config, train_config = configs.preset(commands.DEFAULT_PRESET)
    _add_fields(parser, model_config)
    _add_fields(parser, train_config, leave_out={field.name for field in fields(train_config)} - commands.BENCH_FIELDS)


def _add_preset(parser):
    parser.add_argument("--preset", choices=configs.PRESETS,
                        help=f"fields to start from (default: {commands.DEFAULT_PRESET})")


def _command(subparsers, name, run, text):
    parser = subparsers.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".", allow_abbrev=False)
    parser.set_defaults(run_command=run)
    if run in IN_GROUPS:
        _add_threads(parser, default=argparse.SUPPRESS)  # what was said before the command stands
    return parser


def _add_threads(parser, default):
    parser.add_argument("--threads", type=int, metavar="N", default=default, help="groups of a batch that run at "
                        f"the same time; changes times alone (default: {commands.DEFAULT_THREADS})")


def _add_run(parser):
    parser.add_argument("--run", default=commands.DEFAULT_RUN, metavar="FOLDER",
                        help=f"a trained run (default: {commands.DEFAULT_RUN}, which the tour makes)")


def _add_fields(parser, record, leave_out=()):
    """One option a field: --d-model, --top-k, ...; only those that are given end up in the parsed options.

    record: a configuration, whose values the help names as defaults.
    """
    group = parser.add_argument_group(type(record).__name__)
    for field in fields(record):
        if field.name in leave_out:
            continue
        choices = CHOICES.get(field.name)
        name, text = f"--{field.name.replace('_', '-')}", field.metadata["help"].replace("%", "%%")
        text += "".join(f"; {choice}: {words}" for choice, words in (choices or {}).items()).replace("%", "%%")
        text = f"{text} (default: {str(getattr(record, field.name)).lower()})"
        if "bool" in str(field.type):
            group.add_argument(name, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=text)
        else:
            group.add_argument(name, type=_reader(field.type), choices=choices, default=argparse.SUPPRESS, help=text,
                               metavar=None if choices else "X")


def _reader(type_):
    """The function that reads a field's value: a number, or "none" where the field may be None."""
    kind = next(k for k in (int, float, str) if k.__name__ in str(type_))

    def read(text):
        return None if "None" in str(type_) and text.lower() == "none" else kind(text)

    read.__name__ = kind.__name__  # argparse names it in "invalid int value"
    return read
