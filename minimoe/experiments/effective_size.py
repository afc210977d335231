"""What a MoE is worth: against dense models at equal steps, equal FLOPs and equal time, and as a size of dense model.

Loss falls with the size of a dense model.  Where it falls to the loss of a MoE stands the dense model that the MoE is
worth: its effective size.                              [after Clark et al. 2022, arXiv:2202.01169, sec. 5]
"""

import textwrap
from typing import NamedTuple

import numpy as np

from minimoe.cost.report import quantity, table
from minimoe.experiments import wording

CLAIMED_SHARE, CLAIMED = (0.10, 0.25), (4, 10)
"""The popular claim: with 10 to 25 % of the parameters active, 4 to 10 times less compute."""

DRAWS = 1000
"""Times that the seeds are drawn anew, to see how far a worth hangs on them."""


LEGEND = """at equal: steps, training FLOPs or time, as the {0} at equal steps.  to the MoE: loss beside that one's,
above 0 is worse; and in how many seeds so.  dense: as wide as the {0}'s active or total experts."""
"""Of the table of entries, with the name of the MoE."""


class Entry(NamedTuple):
    """One model at one budget.

    steps: of its training.  parameters: cost.Parameters.  flops: of its training, matrix products.
    seconds: of its training, steps times the median step.  ce: one entry a seed, nats per token.
    curve_step, curve: steps of its evaluations and the loss at them, a row a seed; None where nobody looks at them.
    """

    name: str
    budget: str
    steps: int
    parameters: tuple
    flops: float
    seconds: float
    ce: np.ndarray
    curve_step: np.ndarray | None = None
    curve: np.ndarray | None = None


class Worth(NamedTuple):
    """The dense model that a MoE is worth.  size: its parameters.  low, high: between which 80 % of the sizes lie when
    seeds are drawn anew.  smallest, largest: of the family; what lies outside is as far as the line reaches, no more.
    flops: of training a dense model of that size for as many steps.
    """

    size: float
    low: float
    high: float
    smallest: float
    largest: float
    flops: float


def worth(moe, family, seed=0):
    """The Worth of an Entry among dense ones at equal steps: where the family's loss falls to the MoE's.

    The family's mean losses are brought to the nearest falling sequence, and joined by lines over the logarithm of the
    size.  Seeds are drawn for all models together, which saw the same data.  Sizes are cut to those of the family.  Of
    three seeds the range holds the truth about six times in ten, as trials with made-up families show, not eight.
    """
    family = sorted(family, key=lambda entry: entry.parameters.total)
    log_size, log_flops = (np.log(values) for values in zip(
        *((entry.parameters.total, entry.flops) for entry in family), strict=True))
    losses, n_seeds = np.array([entry.ce for entry in family]), len(moe.ce)
    draws = np.random.default_rng(seed).integers(0, n_seeds, (DRAWS, n_seeds))
    places = [_met(log_size, losses[:, draw].mean(axis=1), moe.ce[draw].mean())
              for draw in (np.arange(n_seeds), *draws)]
    low, high = np.exp(np.quantile(places[1:], (0.1, 0.9)))
    return Worth(np.exp(places[0]), low, high, *np.exp(log_size[[0, -1]]),
                 np.exp(np.interp(places[0], log_size, log_flops)))


def _met(log_size, losses, loss):
    """Where the falling losses meet one; at an end if they do not."""
    falling = falling_losses(losses)
    return np.interp(loss, falling[::-1], log_size[::-1])


def falling_losses(losses):
    """The falling sequence that is nearest by least squares: neighbours that rise are pooled into their mean.

                                                        [isotonic regression; Ayer et al. 1955, Ann. Math. Stat. 26(4)]
    """
    pools = []  # (mean, how many)
    for loss in losses:
        pools.append((loss, 1))
        while len(pools) > 1 and pools[-2][0] < pools[-1][0]:
            (high, m), (low, n) = pools[-2:]
            pools[-2:] = [((high * m + low * n) / (m + n), m + n)]
    return np.repeat([mean for mean, _ in pools], [n for _, n in pools])


def entries_table(entries, moe):
    """All entries as text, budget by budget.  moe: the Entry at equal steps that the others are compared with."""
    rows = [("at equal", "model", "steps", "parameters", "active", "training FLOPs", "seconds", "validation loss",
             "to the MoE", "in seeds")]
    for entry in entries:
        gap = entry.ce - moe.ce
        same = entry is moe
        rows.append((entry.budget, entry.name, f"{entry.steps:,}", quantity(entry.parameters.total),
                     quantity(entry.parameters.active), quantity(entry.flops), f"{entry.seconds:.3g}",
                     wording.mean_and_spread(entry.ce), "" if same else f"{gap.mean():+.3f}",
                     "" if same else f"{int((gap * gap.mean() > 0).sum())} of {len(gap)}"))
    return table(rows, left=(0, 1))


def worth_words(moe, found):
    """The effective size in words."""
    if found.low <= found.smallest and found.high >= found.largest:
        return (f"{moe.name}: the seeds do not tell what it is worth: anything from {quantity(found.smallest)} to "
                f"{quantity(found.largest)} parameters of a dense model.")
    ends = [("at most " if size <= found.smallest else "at least " if size >= found.largest else "") + quantity(size)
            for size in (found.size, found.low, found.high)]
    drawn = f"80 % of draws of the seeds: {ends[1]} to {ends[2]}" if len(moe.ce) > 1 else "one seed"
    return (f"{moe.name}: worth a dense model of {ends[0]} parameters ({drawn}), "
            f"{found.size / moe.parameters.active:.2f} times its active and {found.size / moe.parameters.total:.2f} "
            "times its total ones.")


def claim(columns):
    """The claim about savings, MoE by MoE, and a verdict.

    columns: name of a MoE -> label -> how many times less it takes than the dense model of its size; and under "active"
    the share of its parameters that is.
    """
    labels = [label for label in next(iter(columns.values())) if label != "active"]
    rows = [("times less than a dense model of its size", *columns),
            ("(active parameters)", *(f"{numbers['active']:.0%}" for numbers in columns.values()))]
    rows += [(label, *(f"{numbers[label]:.2f}" for numbers in columns.values())) for label in labels]
    low, high = CLAIMED
    said = (f"The claim: models with {CLAIMED_SHARE[0]:.0%} to {CLAIMED_SHARE[1]:.0%} active parameters save {low} to "
            f"{high} times the compute of a dense model of equal size.")
    verdicts = [_judged(name, numbers, labels) for name, numbers in columns.items()]
    return "\n\n".join([said, table(rows), *(textwrap.fill(words, 118) for words in verdicts)])


def _judged(name, numbers, labels):
    inside = CLAIMED_SHARE[0] <= numbers["active"] <= CLAIMED_SHARE[1]
    kind = "one that the claim is about" if inside else "outside of the claim"
    holds = [f"{label} ({numbers[label]:.2f})" for label in labels if numbers[label] >= CLAIMED[0]]
    shrinks = [f"{label} ({numbers[label]:.2f})" for label in labels if numbers[label] < CLAIMED[0]]
    return (f"{name}, {numbers['active']:.0%} active, {kind}. {CLAIMED[0]} times or more: "
            f"{', '.join(holds) or 'nothing'}. Less: {', '.join(shrinks) or 'nothing'}.")
