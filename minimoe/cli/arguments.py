"""Options that several commands share, and how a configuration's fields become options."""

import argparse
import difflib
import os
from dataclasses import fields

from minimoe.config import presets, train
from minimoe.moe import capacity, routers
from minimoe.training import runs

DEFAULT_THREADS = 2
"""The number of groups in the presets; more threads would be idle."""

DEFAULT_RUN, DEFAULT_PRESET = runs.seed_folder("runs/tour/moe", 0).as_posix(), "shakespeare-cpu"
USUAL_RUN = f"{DEFAULT_RUN}, which the tour makes; until then the model that ships with the lessons"

CHOICES = {"router": {name: page.FACTS.summary for name, page in routers.ROUTERS.items()},
           "drop_order": {name: order.summary for name, order in capacity.ORDERS.items()},
          "dynamic": train.DYNAMICS, "density": train.DENSITIES}
"""Field -> its possible names, with their meanings."""


def command(subparsers, name, run, text, in_groups=False, study=False):
    """The parser of a command, to add its options to.

    run: function of the parsed options.  text: what it does.  in_groups: whether it runs the groups of a batch at the
    same time, so that --threads has an effect.  study: whether it trains several models, some seeds of each.
    """
    parser = subparsers.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".", allow_abbrev=False)
    parser.set_defaults(run_command=run, command=name, in_groups=in_groups, study=study)
    if in_groups:
        add_threads(parser, default=argparse.SUPPRESS)  # a value given before the command remains
    return parser


def nearest(word, known):
    """A hint at the names that are most similar to an unknown one; empty if none is similar."""
    near = difflib.get_close_matches(word.replace("_", "-").lower(), known, n=3, cutoff=0.75)
    return f"; did you mean {' or '.join(near)}?" if near else ""


def add_detail(parser, text):
    """--detail.  text: what is printed then."""
    parser.add_argument("--detail", action="store_true", help=f"print in full: {text}")


def add_threads(parser, default):
    """--threads."""
    parser.add_argument("--threads", type=int, metavar="N", default=default, help="groups of a batch that run at "
                        f"the same time; changes only times (default: {DEFAULT_THREADS})")


def add_study(parser, quick, seeds, default):
    """--quick, --seeds and --fresh.  quick: what --quick does.  seeds: how many there are without --seeds."""
    parser.add_argument("--quick", action="store_const", const=True, default=default, help=quick)
    parser.add_argument("--seeds", type=int, default=default, metavar="N", help=f"runs of a model (default: {seeds})")
    parser.add_argument("--fresh", action="store_const", const=True, default=default,
                        help="train again, even if there are earlier runs")


def seeds(options, default):
    """The number of seeds.  Raises ValueError below 1."""
    count = default if options.seeds is None else options.seeds
    if count < 1:
        raise ValueError(f"--seeds {count}: must be 1 or more")
    return count


def add_run(parser):
    """--run, the run to examine."""
    parser.add_argument("--run", metavar="FOLDER", help=f"a trained run (default: {USUAL_RUN})")


def add_preset(parser):
    """--preset."""
    parser.add_argument("--preset", choices=presets.PRESETS, metavar="NAME",
                        help=f"fields to start from: {', '.join(presets.PRESETS)} (default: {DEFAULT_PRESET})")


def add_fields(parser, record, leave_out=()):
    """One option per field: --d-model, --top-k, ...; only given ones are in the parsed options.

    record: a configuration, whose values the help shows as defaults.
    """
    parser.usage = "%(prog)s [options]"  # too many to list twice
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
                               metavar="NAME" if choices else "X")


def number(text):
    """A number of the command line.  Percent are refused with the number that they stand for."""
    share = text.removesuffix("%")
    if share != text and share.replace(".", "", 1).isdigit():
        raise argparse.ArgumentTypeError(f"{text!r}: must be a number: {float(share) / 100:g}")
    return float(text)


def given(options, record):
    """Name -> value of the fields of a configuration class that were given as options."""
    return {f.name: getattr(options, f.name) for f in fields(record) if hasattr(options, f.name)}


def _reader(type_):
    """The function that reads a field's value: a number, or "none" where the field may be None."""
    kind = next(k for k in (int, float, str) if k.__name__ in str(type_))

    def read(text):
        return None if "None" in str(type_) and text.lower() == "none" else (number if kind is float else kind)(text)

    read.__name__ = kind.__name__  # argparse names it in "invalid int value"
    return read


def typed(text):
    """Text of the command line, read as UTF-8 even where Python does not."""
    return os.fsencode(text).decode("utf-8", "surrogateescape")
