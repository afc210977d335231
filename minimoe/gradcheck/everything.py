"""All checks in one go, and their report."""

from dataclasses import replace
from functools import partial

import numpy as np

from minimoe import terminal
from minimoe.gradcheck import checks, models, numeric
from minimoe.moe import routers

MOST_NAMES = 10
"""Number of wrong checks that the first line names."""


def check_everything(config, say, rounds=range, detail=False):
    """Check everything and `say` the results: operations, the layer in every setting, models of this config, flips.

    rounds: iterates over the jobs as `range` does, such as a progress bar.  detail: whether to report every tensor and
    setting, or one line per part.  Returns whether every gradient is right.
    """
    cases = checks.layer_cases()
    in_groups = [partial(models.check_model, replace(config, global_balance=is_global), groups=2, most=50)
                 for is_global in (False, True)]
    jobs = [checks.check_ops, *(partial(_check_layer, case) for case in cases.values()),
            partial(models.check_model, config), partial(models.check_direction, config), *in_groups,
            models.check_flips]
    ops, *found, (live, frozen) = [job() for _, job in zip(rounds(len(jobs)), jobs, strict=True)]
    layers, whole = dict(zip(cases, found, strict=False)), found[len(cases):]
    named = {report.title: report for report in (*ops, *whole, frozen)} | {
        f"{case}, objective {objective}": report for case, row in layers.items() for objective, report in row.items()}
    if detail:
        blocks = ["Operations:", numeric.table(ops, titles=True),
                  terminal.fill("The MoE layer: the largest error over all its parameters and its input, for each "
                                "objective:"),
                  _layer_table(layers), *map(str, whole), terminal.fill(FLIPS), str(live), str(frozen)]
    else:
        blocks = [_summary(ops, layers, whole, frozen), _by_objective(layers), terminal.fill(_covered(layers)),
                  terminal.fill("Every tensor, setting and loss: --detail")]
    say("\n\n".join([terminal.fill(_verdict(named)), *blocks]))
    return all(report.ok for report in named.values())


FLIPS = ("Central differences for a token that is almost tied between two experts. With live routing they are WRONG, "
         "since a step flips the choice; that is why we use the complex step, which never flips it:")

WHOLE = ("whole model", "whole model, one direction", "whole model, in two groups", "the same, one balance loss")
"""The checks of whole models, in their order."""


def _check_layer(case):
    """Objective -> Report of a layer."""
    return {objective: checks.check_layer(case, objective) for objective in checks.objectives_of(case)}


def _summary(ops, layers, whole, frozen):
    """A line for each part of the program: how many checks it has, and the worst error."""
    parts = {"operations": ops}
    for case, row in layers.items():
        parts.setdefault(f"layer, {case.partition(',')[0]}", []).extend(row.values())
    parts |= {name: [report] for name, report in zip((*WHOLE, "router, frozen choices"), (*whole, frozen), strict=True)}
    return _lines("part", parts)


def _by_objective(layers):
    """The same checks of the layer again, a line for each objective."""
    found = {objective: [row[objective] for row in layers.values() if objective in row]
             for objective in checks.OBJECTIVES}
    return _lines("layer, objective", {objective: reports for objective, reports in found.items() if reports})


def _covered(layers):
    """In which settings the layer was checked, and why two limits are larger."""
    names = dict.fromkeys(case.partition(",")[0] for case in layers)
    listed = [name for name in names if name in routers.ROUTERS]
    return (
        f"The layer was checked in {len(layers)} settings: {len(listed)} routers ({', '.join(listed)}), each with "
        "every K, gate and option that it has, dropless and with each drop order; shared experts, empty slots and a "
        "dense layer.\n"
        f"Limits: the complex step is exact to rounding error, {numeric.COMPLEX_TOLERANCE:.0e}. The two checks by "
        f"central differences, which students meet first, have an error of their own: {numeric.CENTRAL_TOLERANCE:.0e} "
        f"per tensor, {numeric.DIRECTION_TOLERANCE:.0e} along one direction through all parameters at once.")


def _lines(head, parts):
    """A table of names with their Reports.  head: of the names."""
    rows = [(head, "checks", "tensors", "worst error", "limit", "")]
    for name, reports in parts.items():
        right = all(report.ok for report in reports)
        rows.append((name, len(reports), f"{sum(len(report.rows) for report in reports):,}",
                     f"{np.max([report.worst for report in reports]):.1e}", f"{reports[0].rows[0].tolerance:.0e}",
                     "right" if right else "WRONG"))
    return terminal.table(rows, left=(0, 5))


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
