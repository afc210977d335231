"""Effective size: the dense model that an MoE is worth.

Loss falls with the size of a dense model.  The size at which it equals the loss of an MoE is what the MoE is worth.
                                                        [after Clark et al. 2022, arXiv:2202.01169, sec. 5]
"""

from typing import NamedTuple

import numpy as np

from minimoe.cost import quantities

DRAWS = 1000
"""Number of times that the seeds are resampled, to see how much an effective size depends on them."""


class Worth(NamedTuple):
    """The dense model that an MoE is worth.  size: its parameters.  low, high: the range of the middle 80 % of sizes
    when seeds are resampled.  smallest, largest: sizes of the family, to which the others are clipped.
    flops: of training a dense model of that size for the same number of steps.
    """

    size: float
    low: float
    high: float
    smallest: float
    largest: float
    flops: float


def worth(moe, family, seed=0):
    """The Worth of one `compare.Entry` among dense ones at equal steps: where the family's loss falls to the MoE's.

    The family's mean losses are replaced by the nearest falling sequence, and joined by lines over the logarithm of the
    size.  Seeds are resampled for all models together, since these saw the same data.  Sizes are clipped to those of
    the family.  With three seeds the range contains the truth about six times in ten, as trials with made-up families
    show, not eight.
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
    """Where the falling losses reach a given one; at an end if they do not."""
    falling = falling_losses(losses)
    return np.interp(loss, falling[::-1], log_size[::-1])


def falling_losses(losses):
    """The falling sequence that is nearest by least squares: neighbors that rise are pooled into their mean.

                                                        [isotonic regression; Ayer et al. 1955, Ann. Math. Stat. 26(4)]
    """
    pools = []  # (mean, how many)
    for loss in losses:
        pools.append((loss, 1))
        while len(pools) > 1 and pools[-2][0] < pools[-1][0]:
            (high, m), (low, n) = pools[-2:]
            pools[-2:] = [((high * m + low * n) / (m + n), m + n)]
    return np.repeat([mean for mean, _ in pools], [n for _, n in pools])


def worth_words(moe, found):
    """The effective size in words."""
    if found.low <= found.smallest and found.high >= found.largest:
        return (f"{moe.name}: the seeds do not show what it is worth: anything from {quantities.short(found.smallest)} "
                f"to {quantities.short(found.largest)} parameters of a dense model.")
    ends = [("at most " if size <= found.smallest else "at least " if size >= found.largest else "")
            + quantities.short(size) for size in (found.size, found.low, found.high)]
    drawn = f"80 % of draws of the seeds: {ends[1]} to {ends[2]}" if len(moe.ce) > 1 else "one seed"
    return (f"{moe.name}: worth a dense model of {ends[0]} parameters ({drawn}), "
            f"{found.size / moe.parameters.active:.2f} times its active and {found.size / moe.parameters.total:.2f} "
            "times its total ones.")
