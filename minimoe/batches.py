"""A batch in groups: each has its own capacity and balance loss, and groups can run at the same time.

    L = ce + mean over groups of sum of coef * auxiliary loss            [GShard, arXiv:2006.16668, sec. 2.2]

ce, z and entropy are means over tokens, divided by the mean number of tokens per group.  So wherever a batch with
padding is split, their mean over groups is that of the batch; with `global_balance` this holds for the balance loss
too.  A single group is the whole batch.  The micro-batches of a step are groups too, however they were drawn.
"""

from typing import NamedTuple

import numpy as np

from minimoe import model, require
from minimoe.model import Losses
from minimoe.moe.losses import Step, balance


class Group(NamedTuple):
    """Sequences that compete for the same slots.

    n_real: divisor of means over tokens, the mean number of real tokens over the groups of the batch; None: its own.
    """

    tokens_BS: np.ndarray
    targets_BS: np.ndarray
    mask_BS: np.ndarray | None = None
    n_real: float | None = None


class Gradients(NamedTuple):
    """For a list of groups: the Losses, the routings and the result of `look` for each, and the mean gradients."""

    losses: list
    routings: list
    looks: list
    grads: dict


def cut(tokens_BS, targets_BS, groups, mask_BS=None):
    """A list of Groups with equally many sequences each, in order.

    Raises ValueError if the sequences cannot be divided evenly.
    """
    tokens_BS, targets_BS = (require.array(name, value, "iu", 2) for name, value in
                             (("tokens_BS", tokens_BS), ("targets_BS", targets_BS)))
    mask_BS = None if mask_BS is None else require.array("mask_BS", mask_BS, "biu", 2)
    n_sequences = len(tokens_BS)
    whole = isinstance(groups, (int, np.integer)) and not isinstance(groups, bool)
    if not whole or groups < 1 or n_sequences % groups:
        raise ValueError(f"groups = {groups!r}: must be a whole number that divides the {n_sequences} sequences of a "
                         "batch")
    masks = [None] * groups if mask_BS is None else np.split(mask_BS, groups)
    n_real = _count_real(tokens_BS, mask_BS) / groups
    return [Group(*arrays, n_real) for arrays in
            zip(np.split(tokens_BS, groups), np.split(targets_BS, groups), masks, strict=True)]


def _count_real(tokens_BS, mask_BS):
    return tokens_BS.size if mask_BS is None else max(mask_BS.sum(), 1)


def gradients(params, groups, config, rng=None, look=None, training=True, each=map, extra=None):
    """Mean gradients of the objective over groups.

    Args:
        params: name -> array.
        groups: list of Group.
        config: ModelConfig.
        rng: for the random choices of training; each group gets its own stream from it.
        look: called with the Losses and the ObjectiveCache of each group before its backward.
        training: whether the noise, capacity and drop order of training apply.
        each: `map`, or the one of `workers`, to run groups at the same time.
        extra: function of a Group and its logit_TV that returns an additional loss and its gradient.

    With `global_balance` the balance loss multiplies each group's probabilities by the load of all groups, which has
    to be known first.  So all forward passes are in memory at once; otherwise only the running ones are, and gradients
    that wait to be added.  Returns Gradients.
    """
    def forward(group, rng):
        return model.model_forward(params, group.tokens_BS, config, group.mask_BS, training=training, rng=rng)

    def backward(group, forwarded, *of_all):
        (logit_TV, routings), cache = forwarded
        step = Step(group.n_real or _count_real(group.tokens_BS, group.mask_BS), *of_all)
        losses, losses_cache = model.losses_forward(logit_TV, routings, group.targets_BS, config, group.mask_BS, step)
        more, dmore_TV = (0.0, None) if extra is None else extra(group, logit_TV)
        losses = losses._replace(total=losses.total + more)
        cache = model.ObjectiveCache(cache, losses_cache)
        seen = look(losses, cache) if look is not None else None
        return losses, routings, seen, _backward(1 / len(groups), cache, dmore_TV)

    rngs = streams(rng, len(groups))
    if config.global_balance and config.moe_layers:
        forwards = list(each(forward, groups, rngs))
        count_LE = sum(np.array([balance.counted(r, config) for r in routings]) for (_, routings), _ in forwards)
        load_LE = count_LE / count_LE.sum(axis=1, keepdims=True)
        n_global = sum(_count_real(group.tokens_BS, group.mask_BS) for group in groups) / len(groups)
        results = each(lambda group, forwarded: backward(group, forwarded, load_LE, n_global), groups, forwards)
    else:
        results = each(lambda group, rng: backward(group, forward(group, rng)), groups, rngs)
    return _mean(results)


def _backward(share, cache, dmore_TV):
    """Gradients of a group's part of the objective.  dmore_TV: gradient of an extra loss of its logits, or None."""
    if dmore_TV is None:
        return model.objective_backward(share, cache)
    dlogit_TV, pulls = model.losses_backward(share, cache.losses)
    return model.model_backward(dlogit_TV + share * dmore_TV, pulls, cache.model)


def _mean(results):
    total = Gradients([], [], [], {})
    for *parts, grads in results:
        for collected, part in zip(total[:3], parts, strict=True):
            collected.append(part)
        if not total.grads:
            total.grads.update(grads)
        while grads:  # popped one by one, so that none stays in memory while the next group's are made
            name, grad = grads.popitem()
            if total.grads[name] is not grad:
                total.grads[name] += grad
    return total


def streams(rng, n):
    """n random streams seeded from this one; n times None if it is None."""
    return [None] * n if rng is None else [np.random.default_rng(seed) for seed in rng.integers(2**63, size=n)]


def mean_losses(parts):
    """The Losses of a batch from those of its groups."""
    auxiliary = {name: np.mean([part.auxiliary[name] for part in parts]) for name in parts[0].auxiliary}
    return Losses(np.mean([part.ce for part in parts]), auxiliary, np.mean([part.total for part in parts]))


def loss_and_grads(params, tokens_BS, targets_BS, config, mask_BS=None, training=True, rng=None, groups=1):
    """The losses of one batch, and their gradients for every parameter.

    Args:
        params: name -> array.
        tokens_BS: whole numbers in [0, V).
        targets_BS: the token that follows each token.
        config: ModelConfig.
        mask_BS: False for padding after the text; None is no padding.
        training: whether the noise, capacity and drop order of training apply.
        rng: numpy.random.Generator, for the random choices of training: jitter, noise, random drops.
        groups: how many groups of sequences have their own capacity and balance.  Here they run one after another;
            `gradients` runs them at the same time with the `each` of `workers`.
    Returns Losses and a dict with the keys of params.
    Raises ValueError if params, tokens, targets, mask or groups do not fit the config or each other.
    """
    require.generator("rng", rng)
    tokens_BS, mask_BS = model.check_inputs(params, config, tokens_BS, mask_BS)
    targets_BS = model.check_tokens(targets_BS, config, "targets_BS")
    if targets_BS.shape != tokens_BS.shape:
        raise ValueError(f"targets_BS has shape {targets_BS.shape}, tokens_BS {tokens_BS.shape}: must be the same")
    result = gradients(params, cut(tokens_BS, targets_BS, groups, mask_BS), config, rng, training=training)
    return mean_losses(result.losses), result.grads
