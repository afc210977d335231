"""Commands that train several models and compare them, some seeds of each."""

import argparse

from minimoe import terminal
from minimoe.cli import arguments

TOUR_SEEDS, ROUTERS_SEEDS, COMPARE_SEEDS, STUDIES_SEEDS, SPARSITY_SEEDS = 1, 3, 3, 3, 3
PROCESSES = 2
"""As many runs at the same time as the smallest laptops have cores."""


def run_tour(options):
    """Train three models, compare them, draw what the router did."""
    from minimoe.experiments import tour
    tour.main(bool(options.quick), arguments.seeds(options, TOUR_SEEDS), bool(options.fresh), options.threads)


def add_routers(subparsers):
    """The command `routers` and its options."""
    parser = arguments.command(subparsers, "routers", run_routers,
                               "train every router on one small budget, and compare",
                               in_groups=True, study=True)
    arguments.add_study(parser, "to see that all works: far too short to compare", ROUTERS_SEEDS,
                        default=argparse.SUPPRESS)  # what was given before the command stands


def run_routers(options):
    """Train every router on one budget, and compare them."""
    from minimoe.experiments import routers
    routers.main(bool(options.quick), arguments.seeds(options, ROUTERS_SEEDS), bool(options.fresh), options.threads)


def add_compare(subparsers):
    """The command `compare` and its options."""
    parser = arguments.command(subparsers, "compare", run_compare, "train MoE and dense at equal steps, FLOPs and time",
                               in_groups=True, study=True)
    arguments.add_study(parser, "to see that all works: far too short to compare", COMPARE_SEEDS,
                        default=argparse.SUPPRESS)  # what was given before the command stands


def run_compare(options):
    """Train MoE and dense models at equal steps, FLOPs and time."""
    from minimoe.experiments import compare
    compare.main(bool(options.quick), arguments.seeds(options, COMPARE_SEEDS), bool(options.fresh), options.threads)


def add_studies(subparsers):
    """The command `studies` and its options."""
    parser = arguments.command(subparsers, "studies", run_studies, "train the small models that the lessons look at",
                               in_groups=True, study=True)
    arguments.add_study(parser, "to see that all works: far too short to learn from", STUDIES_SEEDS,
                        default=argparse.SUPPRESS)  # what was given before the command stands


def run_studies(options):
    """Train what the lessons look at."""
    from minimoe.experiments import studies
    studies.main(bool(options.quick), arguments.seeds(options, STUDIES_SEEDS), bool(options.fresh), options.threads)


def add_sparsity(subparsers):
    """The command `sparsity` and its options."""
    parser = arguments.command(subparsers, "sparsity", run_sparsity,
                               "train every way to be sparse for the same FLOPs, next to smaller dense models",
                               study=True)
    arguments.add_study(parser, "to see that all works: far too short to compare", SPARSITY_SEEDS,
                        default=argparse.SUPPRESS)  # what was given before the command stands
    parser.add_argument("--processes", type=int, default=PROCESSES, metavar="N",
                        help=f"runs that train at the same time; changes only times (default: {PROCESSES})")


def run_sparsity(options):
    """Train every way to be sparse, and compare them with smaller dense models."""
    from minimoe.experiments import sparsity
    sparsity.main(bool(options.quick), arguments.seeds(options, SPARSITY_SEEDS), bool(options.fresh), options.processes)


def add_figures(subparsers):
    """The command `figures` and its options."""
    arguments.command(subparsers, "figures", run_figures, "draw the figures again from the finished runs")


def run_figures(options):
    """Draw the figures again: those of the tour from its runs, the others from what was kept and from formulas."""
    from minimoe.course import lessons
    from minimoe.experiments import compare, diagrams, routers, sparsity, studies, tour
    from minimoe.plots import cost_shares
    failed = []
    for figure in (diagrams.figure, routers.figure, compare.figure, sparsity.figure, cost_shares.figure,
                   studies.figure, lessons.figure):
        try:
            figure()
        except ValueError as error:  # one that cannot be drawn keeps no other from it
            failed.append(str(error))
    if not tour.draw_again():
        terminal.say("the pictures of the tour are left as they are: `python -m minimoe` trains what they show")
    if failed:
        raise ValueError("; ".join(failed))
