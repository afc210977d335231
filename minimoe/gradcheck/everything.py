"""All checks in one go, and their report."""

from dataclasses import replace

import numpy as np

from minimoe import terminal
from minimoe.gradcheck import checks, models, numeric

MOST_NAMES = 10
"""Number of wrong checks that the first line names."""


def check_everything(config, say, rounds=range):
    """Check everything and `say` the results: operations, the layer in every setting, models of this config, flips.

    rounds: iterates over the settings of the layer as `range` does, such as a progress bar.  Returns whether every
    gradient is right.
    """
    ops, layers = checks.check_ops(), _check_layers(rounds)
    whole = [models.check_model(config), models.check_direction(config)] + [
        models.check_model(replace(config, global_balance=is_global), groups=2, most=50) for is_global in (False, True)]
    live, frozen = models.check_flips()
    named = {report.title: report for report in (*ops, *whole, frozen)} | {
        f"{case}, objective {objective}": report for case, row in layers.items() for objective, report in row.items()}
    say("\n\n".join([
        terminal.fill(_verdict(named)), "Operations:", numeric.table(ops, titles=True),
        terminal.fill("The MoE layer: the largest error over all its parameters and its input, for each objective:"),
        _layer_table(layers), *map(str, whole), terminal.fill(FLIPS), str(live), str(frozen)]))
    return all(report.ok for report in named.values())


FLIPS = ("Central differences for a token that is almost tied between two experts. With live routing they are WRONG, "
         "since a step flips the choice; that is why we use the complex step, which never flips it:")


def _check_layers(rounds):
    """Setting -> objective -> Report."""
    cases = checks.layer_cases()
    return {name: {objective: checks.check_layer(case, objective) for objective in checks.objectives_of(case)}
            for _, (name, case) in zip(rounds(len(cases)), cases.items(), strict=True)}


def _verdict(named):
    wrong = [name for name, report in named.items() if not report.ok]
    if wrong:
        more = f" and {len(wrong) - MOST_NAMES} more" if len(wrong) > MOST_NAMES else ""
        return f"{len(wrong)} of {len(named):,} checks are WRONG: {'; '.join(wrong[:MOST_NAMES])}{more}."
    reports = named.values()
    worst = np.max([report.worst for report in reports if report.rows[0].tolerance == numeric.COMPLEX_TOLERANCE])
    return (f"All {len(named):,} checks are right, of {sum(len(report.rows) for report in reports):,} tensors; the "
            f"worst error of the complex step is {worst:.1e}.")


def _layer_table(layers):
    rows = [("setting", *(name.removeprefix("all ") for name in checks.OBJECTIVES))]
    for name, row in layers.items():
        rows.append((name, *("" if o not in row else f"{row[o].worst:.1e}" if row[o].ok else "WRONG"
                             for o in checks.OBJECTIVES)))
    return terminal.table(rows)
