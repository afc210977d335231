"""Commands that train several models and compare them, some seeds of each."""

import argparse

from minimoe.commands import arguments

TOUR_SEEDS, ROUTERS_SEEDS, COMPARE_SEEDS, STUDIES_SEEDS = 1, 3, 3, 3


def tour(options):
    """Train three models, compare them, draw what the router did."""
    from minimoe import tour
    tour.main(bool(options.quick), arguments.seeds(options, TOUR_SEEDS), bool(options.fresh), options.threads)


def add_routers(subparsers):
    """The command `routers` and its options."""
    parser = arguments.command(subparsers, "routers", routers, "train every router on one small budget, and compare",
                               in_groups=True, study=True)
    arguments.add_study(parser, "to see that all works: far too short to compare", ROUTERS_SEEDS,
                        default=argparse.SUPPRESS)  # what was said before the command stands


def routers(options):
    """Train every router on one budget, and compare them."""
    from minimoe import zoo
    zoo.main(bool(options.quick), arguments.seeds(options, ROUTERS_SEEDS), bool(options.fresh), options.threads)


def add_compare(subparsers):
    """The command `compare` and its options."""
    parser = arguments.command(subparsers, "compare", compare, "train MoE and dense at equal steps, FLOPs and time",
                               in_groups=True, study=True)
    arguments.add_study(parser, "to see that all works: far too short to compare", COMPARE_SEEDS,
                        default=argparse.SUPPRESS)  # what was said before the command stands


def compare(options):
    """Train MoE and dense models at equal steps, FLOPs and time."""
    from minimoe import budgets
    budgets.main(bool(options.quick), arguments.seeds(options, COMPARE_SEEDS), bool(options.fresh), options.threads)


def add_studies(subparsers):
    """The command `studies` and its options."""
    parser = arguments.command(subparsers, "studies", studies, "train the small models that the lessons look at",
                               in_groups=True, study=True)
    arguments.add_study(parser, "to see that all works: far too short to learn from", STUDIES_SEEDS,
                        default=argparse.SUPPRESS)  # what was said before the command stands


def studies(options):
    """Train what the lessons look at."""
    from minimoe import studies
    studies.main(bool(options.quick), arguments.seeds(options, STUDIES_SEEDS), bool(options.fresh), options.threads)


def add_figures(subparsers):
    """The command `figures` and its options."""
    arguments.command(subparsers, "figures", figures, "draw the figures again from the finished runs")


def figures(options):
    """Draw the figures again: those of the tour from its runs, the others from what was kept and from formulas."""
    from minimoe import budgets, lessons, studies, tour, zoo
    from minimoe.cost import answers
    failed = []
    for figure in (zoo.figure, budgets.figure, answers.figure, studies.figure, lessons.figure):
        try:
            figure()
        except ValueError as error:  # one that cannot be drawn keeps no other from it
            failed.append(str(error))
    if not tour.figures():
        print("the pictures of the tour are left as they are: `python -m minimoe` trains what they show")
    if failed:
        raise ValueError("; ".join(failed))
