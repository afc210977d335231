"""Command lines at random: every option of every command, with values that it was not made for."""

import argparse

from minimoe import cli
from tests.benchmarks.attacks import attempt, disk, kills

VALUES = ("", "0", "-1", "1", "2", "3", "7", "64", "1e308", "-1e308", "nan", "inf", "1e-308", "none", "10000000000000",
          "x" * 5000, "0x10", "1.5", "é", "\x1b[2J", "$x_{$", "true", "a,b", "9" * 5000)
QUICK = {"train": ["--preset", "tiny", "--n-steps", "2", "--eval-batches", "1", "--text", "words.txt"],
         "cost": ["--preset", "tiny"], "bench": ["--preset", "tiny", "--steps", "1"], "causality": ["--trials", "1"],
         "doctor": [str(disk.RUN)], "generate": ["--run", str(disk.RUN), "--n-tokens", "3"],
         "route": ["def", "--run", str(disk.RUN)], "explore": [str(disk.RUN)]}
"""What makes a command quick; the others are not tried."""
LENGTHS = {"trials", "steps", "n_tokens", "n_steps", "eval_batches"}
"""Options that say how long a command is to work: a large number is no attack."""


def attack(rng, folder, quick):
    """(case, problem or None) of each attempt."""
    options = {name: [action for action in parser._actions if action.option_strings and action.dest != "help"]
               for name, parser in parsers().items() if name in QUICK}
    for i in range(40 if quick else 120):
        name = rng.choice(list(QUICK))
        words = [name, *QUICK[name]]
        for action in rng.sample(options[name], min(rng.choice((1, 1, 1, 2)), len(options[name]))):
            words += [f"{rng.choice(action.option_strings)}={_value(rng, action)}"] if action.nargs != 0 else (
                [rng.choice(action.option_strings)])
        where = kills.made(folder / f"{i}")
        end = attempt.command(words, where, 20)
        yield " ".join(word[:40] for word in words), attempt.problem(end, (0, 1, 2))


def parsers():
    """Name -> parser of each command."""
    return next(action for action in cli.parser()._actions if isinstance(action, argparse._SubParsersAction)).choices


def _value(rng, action):
    value = rng.choice([*VALUES, *map(str, action.choices or ())])
    return "2" if action.dest in LENGTHS and value.isdigit() else value
