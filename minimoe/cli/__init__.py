"""The command line: all commands, and one line for what goes wrong.

    arguments     options that several commands have
    train         train, and the runs that it leaves
    look          generate, route, explore, doctor
    measure       gradcheck, causality, rosetta, bench
    cost          cost
    experiments   the tour, routers, compare, studies, figures
    lessons       lessons

What a command needs is imported when it runs, so that the others start at once.
"""

import argparse
import os
import sys

import threadpoolctl

from minimoe.cli import arguments, cost, experiments, lessons, look, measure, train

COMMANDS = (train.add_train, look.add_generate, look.add_route, look.add_explore, look.add_doctor,
            measure.add_gradcheck, experiments.add_figures, experiments.add_routers, experiments.add_compare,
            experiments.add_studies, lessons.add_lessons, measure.add_causality, measure.add_rosetta, cost.add_cost,
            measure.add_bench)
"""What adds each command to the parser, in the order of the help."""


class _Parser(argparse.ArgumentParser):
    """Reports what is wrong in one line, without the list of all options before it."""

    def error(self, message):
        """Print the message and exit with status 2."""
        self.exit(2, f"minimoe: error: {message} (see {self.prog} --help)\n")


def main(words=None):
    """Run a command.  words: of the command line; None takes those that the program was started with.

    Returns the exit status: 0, 1 for a wrong gradient, 2 for bad input, 130 after Ctrl-C.
    """
    options = parser().parse_args(words)
    try:
        _check_general_options(options)
        with threadpoolctl.threadpool_limits(1, user_api="blas"):  # see `threads.workers`
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
    tour = _Parser(
        prog="python -m minimoe", allow_abbrev=False,
        description="A tiny Mixture-of-Experts transformer in NumPy. Without a command: the tour, which trains an MoE "
        "and two dense models and shows where the tokens went.")
    tour.set_defaults(run_command=experiments.run_tour, in_groups=True, study=True)
    arguments.add_study(tour, "the tour in under 30 seconds, on a smaller model", experiments.TOUR_SEEDS,
                        default=None)
    arguments.add_threads(tour, default=None)
    subparsers = tour.add_subparsers(title="commands", metavar="COMMAND")
    for add in COMMANDS:
        add(subparsers)
    return tour


def _check_general_options(options):
    """Check that the command has the options that stand before it, and set how many threads there are."""
    for name in ("quick", "seeds", "fresh"):
        if not options.study and getattr(options, name) is not None:
            raise ValueError(f"--{name} belongs to the tour, which has no command after it, to `routers`, `compare` "
                             "and `studies`")
    if options.threads is None:
        options.threads = arguments.DEFAULT_THREADS
    elif not options.in_groups:
        raise ValueError(f"--threads belongs to the tour, `train`, `routers`, `compare`, `studies` and `bench`: "
                         f"{options.command} has no groups to run at the same time")
    if options.threads < 1:
        raise ValueError(f"--threads {options.threads}: must be 1 or more")
