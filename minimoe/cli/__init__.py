"""The command line: all commands, and errors in one line.

    arguments     options that several commands have
    train         train, and how the other commands find its runs
    prune         prune
    look          generate, route, explore, doctor
    measure       gradcheck, causality, rosetta, bench
    cost          cost
    experiments   the tour, routers, compare, sparsity, studies, figures
    lessons       lessons

A command's modules are imported when it runs, so that the other commands start quickly.
"""

import argparse
import contextlib
import functools
import os
import sys

import threadpoolctl

from minimoe import interrupts, terminal
from minimoe.cli import arguments, cost, experiments, lessons, look, measure, prune, train

COMMANDS = (look.add_route, look.add_generate, look.add_explore, train.add_train, look.add_doctor, cost.add_cost,
            prune.add_prune, measure.add_gradcheck, measure.add_causality, measure.add_rosetta, measure.add_bench,
            *(functools.partial(experiments.add_study, name) for name in experiments.STUDIES), experiments.add_figures,
            lessons.add_lessons)
"""What adds each command to the parser, in the order of the help: what a newcomer tries first, what takes long last."""


class _Parser(argparse.ArgumentParser):
    """Reports an error in one sentence, with the most similar option instead of a list of all options."""

    def error(self, message):
        """Print the message and exit with status 2."""
        terminal.complain(f"minimoe: error: {message} (see `{self.prog} --help`)")
        self.exit(2)

    def parse_known_args(self, args=None, namespace=None):
        """Refuse unknown arguments here, where the command and its options are known."""
        self._words = sys.argv[1:] if args is None else list(args)
        options, unknown = super().parse_known_args(args, namespace)
        if unknown:
            option = next((word.partition("=")[0] for word in unknown if word.startswith("-")), None)
            self.error(f"there is no argument {unknown[0]!r} here" if option is None else
                       f"there is no option {option}{arguments.nearest(option, self._option_string_actions)}")
        return options, unknown

    def _check_value(self, action, value):  # of argparse
        if action.choices is None or value in action.choices:
            return
        near, known = arguments.nearest(value, action.choices), ", ".join(action.choices)
        if action.metavar == "COMMAND":
            before = self._words[self._words.index(value) - 1] if value in self._words[1:] else ""
            if before.startswith("-") and before not in self._option_string_actions:  # the word is its value
                self.error(f"there is no option {before}{arguments.nearest(before, self._option_string_actions)}")
            self.error(f"there is no command {value!r}{near or f'; there are {known}'}")
        raise argparse.ArgumentError(action, f"invalid choice: {value!r}: must be one of {known}{near}")

    def print_help(self, file=None):
        """Print the help.  argparse's own method reports nothing if the disk is full."""
        (file or sys.stdout).write(self.format_help())


def main(words=None):
    """Run a command.  words: those of the command line; None: those that the program was started with.

    Returns the exit status: 0, 1 for a wrong gradient, 2 for bad input, 130 after Ctrl-C.
    """
    interrupts.raise_again()
    try:
        _be_ready_to_print()
        try:
            return _run(words)
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()  # here, where we can still report an error
    except KeyboardInterrupt as interruption:
        return _interrupted(interruption)
    except BrokenPipeError:  # the reader of our output, such as `head`, has finished
        _print_no_more()
        return 0
    except OSError as error:
        _print_no_more()
        terminal.complain(f"minimoe: error: {error.filename or 'standard output'}: {error.strerror or error}")
        return 2


def _run(words):
    options = parser().parse_args(words)
    try:
        _check_general_options(options)
        with interrupts.NeverHidden(), threadpoolctl.threadpool_limits(1, user_api="blas"):  # see `threads.workers`
            return options.run_command(options) or 0
    except ValueError as error:
        terminal.complain(f"minimoe: error: {error}")
        return 2
    except MemoryError as error:
        terminal.complain(f"minimoe: error: not enough memory: {error}")
        return 2


def _interrupted(interruption):
    with interrupts.Ignored():  # a second Ctrl-C changes nothing
        terminal.complain("")  # the terminal has written ^C
        message, *to_type = interruption.args or ["interrupted"]
        terminal.complain(f"minimoe: {message}", *to_type)
    return interrupts.STATUS


def _be_ready_to_print():
    """Make sure that no command ends because of a character that the console cannot show, or a closed stream."""
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, open to the end
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _print_no_more():
    """Discard remaining output, so that Python does not fail again when it ends."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def parser():
    """The parser of all commands; `run_command` of what it returns is the function to call."""
    tour = _Parser(
        prog="python -m minimoe", allow_abbrev=False,
        description="A tiny Mixture-of-Experts transformer in NumPy. Without a command: the tour, which trains an MoE "
        "and two dense models and shows where the tokens went.")
    tour.set_defaults(run_command=experiments.run_tour, in_groups=True, study=True)
    arguments.add_study(tour, "the tour in under 30 seconds, on a smaller model: too short to compare",
                        experiments.TOUR_SEEDS, default=None)
    arguments.add_threads(tour, default=None)
    subparsers = tour.add_subparsers(title="commands", metavar="COMMAND")
    for add in COMMANDS:
        add(subparsers)
    return tour


def _check_general_options(options):
    """Check that the options before the command belong to it, and set the number of threads."""
    for name in ("quick", "seeds", "fresh"):
        if not options.study and getattr(options, name) is not None:
            studies = ", ".join(f"`{study}`" for study in experiments.STUDIES)
            raise ValueError(f"--{name} is an option of the tour, which has no command name, and of {studies}")
    if options.threads is None:
        options.threads = arguments.DEFAULT_THREADS
    elif not options.in_groups:
        raise ValueError("--threads is an option of the tour, `train`, `prune`, `routers`, `compare`, `studies` "
                         f"and `bench`: {options.command} has no groups to run at the same time")
    if options.threads < 1:
        raise ValueError(f"--threads {options.threads}: must be 1 or more")
