"""What a MoE is worth: against dense models at equal steps, equal FLOPs and equal time, and as a size of dense model.

Loss falls with the size of a dense model.  Where it falls to the loss of a MoE stands the dense model that the MoE is
worth: its effective size.                              [after Clark et al. 2022, arXiv:2202.01169, sec. 5]
"""

import textwrap
from typing import NamedTuple

import numpy as np

from minimoe.analysis import comparison
from minimoe.analysis.cost.report import quantity, table


class Entry(NamedTuple):
    """One model at one budget.

    steps: of its training.  parameters: cost.Parameters.  flops: of its training, matrix products.
    seconds: of its training, steps times the median step.  ce: one entry a seed, nats per token.
    """

    name: str
    budget: str
    steps: int
    parameters: tuple
    flops: float
    seconds: float
    ce: np.ndarray


class Worth(NamedTuple):
    """The dense model that a MoE is worth.  Of each seed: size, parameters; flops: of training a dense model of that
    size for as many steps.  NaN where the family's loss does not fall through the MoE's.
    """

    size: np.ndarray
    flops: np.ndarray


def worth(moe, family):
    """The Worth of an Entry among dense ones at equal steps: where the line between two sizes meets its loss.

    family: Entries of dense models.  Between them, loss is taken to be linear in the logarithm of the size.
    """
    family = sorted(family, key=lambda entry: entry.parameters.total)
    sizes, flops = ([getter(entry) for entry in family] for getter in (
        lambda entry: np.log(entry.parameters.total), lambda entry: np.log(entry.flops)))
    places = [_crossing(loss, [entry.ce[seed] for entry in family]) for seed, loss in enumerate(moe.ce)]
    return Worth(*(np.array([np.nan if place is None else np.exp(np.interp(place, range(len(family)), values))
                             for place in places]) for values in (sizes, flops)))


def _crossing(loss, losses):
    """Where a falling line through the losses first meets `loss`, in places of the list; None if it does not."""
    for i, (high, low) in enumerate(zip(losses, losses[1:], strict=False)):
        if high >= loss >= low and high > low:
            return i + (high - loss) / (high - low)
    return None


def entries_table(entries, moe):
    """All entries as text, budget by budget.  moe: the Entry at equal steps that the others are compared with."""
    rows = [("at equal", "model", "steps", "parameters", "active", "training FLOPs", "seconds", "validation loss",
             "to the MoE", "in seeds")]
    for entry in entries:
        gap = entry.ce - moe.ce
        same = entry is moe
        rows.append((entry.budget, entry.name, f"{entry.steps:,}", quantity(entry.parameters.total),
                     quantity(entry.parameters.active), quantity(entry.flops), f"{entry.seconds:.0f}",
                     comparison.mean_and_spread(entry.ce), "" if same else f"{gap.mean():+.3f}",
                     "" if same else f"{int((gap * gap.mean() > 0).sum())} of {len(gap)}"))
    return table(rows, left=(0, 1))


def worth_words(moe, found):
    """The effective size in words."""
    known = np.isfinite(found.size)
    if not known.any():
        return f"{moe.name}: no dense model of the family meets its loss, so its worth is outside of what was trained."
    sizes = found.size[known]
    spread = f" ({quantity(sizes.min())} to {quantity(sizes.max())})" if len(sizes) > 1 else ""
    share = f" in {len(sizes)} of {len(known)} seeds; outside of the family in the others" * (not known.all())
    mean = np.exp(np.log(sizes).mean())
    saved = np.exp(np.log(found.flops[known] / moe.flops).mean())
    return (f"{moe.name}: worth a dense model of {quantity(mean)} parameters{spread}{share}: "
            f"{mean / moe.parameters.active:.2f} times its active, {mean / moe.parameters.total:.2f} times its total "
            f"ones; that dense model takes {saved:.2f} times the training FLOPs.")


def claim(numbers):
    """A verdict on the claim, point by point.  numbers: label -> how many times less the MoE takes."""
    said = ("The claim: a model with 10 to 25 % active parameters takes 4 to 10 times less compute than a dense one of "
            "equal size. Here the MoE takes this many times less than the dense model of equal size:")
    width = max(map(len, numbers))
    rows = [f"  {label.ljust(width)}  {times:6.2f}" for label, times in numbers.items()]
    return "\n".join([*textwrap.wrap(said, 118), *rows])
