"""Commands that train several models and compare them, some seeds of each."""

import argparse
import functools
import importlib
from typing import NamedTuple

from minimoe import terminal
from minimoe.cli import arguments

TOUR_SEEDS, TOO_SHORT = 1, "to see that everything works: far too short to compare"
PROCESSES = 2
"""Number of runs at the same time: the number of cores in the smallest laptops."""


class Study(NamedTuple):
    """A command that trains several models.

    text: what it does.  quick: what --quick does.  seeds: default of --seeds.  in_groups: whether --threads run the
    groups of a batch at the same time; otherwise --processes run whole models.  kept: what --detail adds, if the module
    can `show` the stored results of the last comparison.   more: text below the options in --help.
    """

    text: str
    quick: str = TOO_SHORT
    seeds: int = 3
    in_groups: bool = True
    kept: str | None = None
    more: str | None = None


STUDIES = {
    "routers": Study("train every router on one small budget, and compare"),
    "compare": Study("train MoE and dense models at equal steps, FLOPs and time"),
    "sparsity": Study(
        "train ten ways to be sparse and smaller dense models for the same FLOPs, and compare", in_groups=False,
        kept="seconds, NumPy's work, encodings, loss before recovery",
        more="The ways: MoE; static, SET, RigL, gradual; Wanda, SparseGPT, 2:4, neurons; upcycled. Without SNFS, "
             "movement, magnitude, heads, layers and experts, which `train` and `prune` have. The last results are in "
             "notebooks/results/sparsity.npz, figures/sparsity-flops.png and figures/sparsity-bytes.png."),
    "studies": Study("train the small models that the lessons use",
                     "to see that everything works: far too short to learn from"),
}
"""Name of a command, and of its module in `experiments` -> Study."""


def add_study(name, subparsers):
    """The command of a Study and its options."""
    study = STUDIES[name]
    run = functools.partial(run_study, name, study.seeds)
    parser = arguments.command(subparsers, name, run, study.text, study.in_groups, study=True)
    # a value given before the command remains
    arguments.add_study(parser, study.quick, study.seeds, default=argparse.SUPPRESS)
    if not study.in_groups:
        parser.add_argument("--processes", type=int, default=PROCESSES, metavar="N",
                            help=f"runs that train at the same time; changes only times (default: {PROCESSES})")
    if study.kept is not None:
        parser.epilog = study.more
        parser.add_argument("--kept", action="store_true", help="train nothing: print the last comparison again")
        arguments.add_detail(parser, study.kept)


def run_study(name, seeds, options):
    """Train the models of `experiments.<name>`, and compare them."""
    module = importlib.import_module(f"minimoe.experiments.{name}")
    detail = {"detail": True} if getattr(options, "detail", False) else {}
    if getattr(options, "kept", False):
        given = [f"--{option}" for option in ("quick", "seeds", "fresh") if getattr(options, option) is not None]
        if given:
            raise ValueError(f"--kept trains nothing: leave {' and '.join(given)} out")
        module.show(**detail)
        return
    workers = options.threads if options.in_groups else options.processes
    module.main(bool(options.quick), arguments.seeds(options, seeds), bool(options.fresh), workers, **detail)


def run_tour(options):
    """Train three models, compare them, draw what the router did."""
    run_study("tour", TOUR_SEEDS, options)


def add_figures(subparsers):
    """The command `figures` and its options."""
    arguments.command(subparsers, "figures", run_figures, "draw the figures again from the finished runs")


def run_figures(options):
    """Draw the figures again: those of the tour from its runs, the others from stored results and formulas."""
    from minimoe.course import lessons
    from minimoe.experiments import compare, diagrams, routers, sparsity, studies, tour
    from minimoe.plots import cost_shares
    failed = []
    for figure in (diagrams.figure, routers.figure, compare.figure, sparsity.figure, cost_shares.figure,
                   studies.figure, lessons.figure):
        try:
            figure()
        except ValueError as error:  # one that cannot be drawn does not stop the others
            failed.append(str(error))
    if not tour.draw_again():
        terminal.say(terminal.fill("the pictures of the tour are not changed: `python -m minimoe` trains the models "
                                   "that they show"))
    if failed:
        raise ValueError("; ".join(failed))
