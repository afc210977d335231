"""Dynamic sparse training: drop some weights, grow equally many elsewhere.  One step of each method, on plain arrays.

    SET    drops the smallest of each sign, grows at random                     [Mocanu 2018, arXiv:1707.04780]
    RigL   drops the smallest, grows where the gradient is largest              [Evci 2020, arXiv:1911.11134]
    SNFS   like RigL with a running mean of the gradient, and moves weights between matrices, to where that mean is
           largest                                                              [Dettmers 2019, arXiv:1907.04840]

Counts are rounded down.  New weights start at 0.  Growth considers all places outside the kept weights, so a weight can
be dropped and regrown in the same step.  Then it keeps its value, as in RigL's code; with regrown="zero" it starts at
0, as in the paper.  The number of weights never changes.
"""

import math

import numpy as np

from minimoe import require


def drop_fraction(step, initial, last_step):
    """Share of the weights that a step drops: half a cosine from `initial` to 0 at `last_step`, and 0 after it.

        f(t) = initial / 2 * (1 + cos(pi t / T_end))        [RigL, arXiv:1911.11134, sec. 3]

    Raises ValueError unless step >= 0, initial is in [0, 1] and last_step > 0.
    """
    require.number("step", step)
    require.number("initial", initial, "a share of the weights, from 0 to 1", most=1)
    if not require.number("last_step", last_step):
        require.fail("last_step", last_step, "above 0")
    return initial / 2 * (1 + math.cos(math.pi * min(step / last_step, 1.0)))


def rigl(w, mask, gradient, fraction, regrown="value"):
    """One step of RigL on one matrix.

    Args:
        w: the weights, any shape.
        mask: which of them are active.
        gradient: gradient of the loss for all weights, including the masked ones.
        fraction: share of the active weights to drop, in [0, 1].
        regrown: "value" or "zero", the initial value of a weight that is dropped and regrown in the same step.
    Returns w, mask, and grown: the places of new weights, whose moments also start at 0.
    Raises ValueError for arrays that do not fit or are not finite, or a fraction that is none.
    """
    _check(w, mask, fraction, regrown)
    _check_signal("gradient", gradient, w)
    n_moved = math.floor(mask.sum() * fraction)
    kept = _drop(np.abs(w), mask, n_moved)
    return _rewired(w, mask, kept, _largest(np.abs(gradient), ~kept, n_moved), regrown)


def set(w, mask, fraction, rng, regrown="value"):
    """One step of SET on one matrix: drop `fraction` of the positive weights and `fraction` of the negative ones, the
    smallest in magnitude; grow equally many at random.  A weight of exactly 0 counts as positive.

    rng: numpy.random.Generator.  For the other arguments and the results see `rigl`.
    """
    _check(w, mask, fraction, regrown)
    require.generator("rng", rng, optional=False)
    kept = mask
    for sign in (mask & (w >= 0), mask & (w < 0)):
        kept = kept & (_drop(np.abs(w), sign, math.floor(sign.sum() * fraction)) | ~sign)
    new = np.zeros(mask.size, bool)
    new[rng.choice(np.flatnonzero(~kept), mask.sum() - kept.sum(), replace=False)] = True
    return _rewired(w, mask, kept, new.reshape(mask.shape), regrown)


def snfs(params, masks, momenta, fraction, regrown="value"):
    """One step of SNFS on all matrices together.

    Each matrix drops its smallest weights.  Their number is divided in proportion to the mean |momentum| of each
    matrix's weights, and new weights grow where |momentum| is largest.  If a matrix has too few free places, the rest
    goes to the others.  (The authors' code rounds the shares up, loses or gains weights, and corrects for it later.)

    Args:
        params: name -> weights; those without a mask do not change.
        masks: name -> mask.
        momenta: name -> running mean of the gradient, including the masked places.
        fraction: share of each matrix's weights to drop.
    Returns params, masks.  Raises ValueError as `rigl` does, and for a mask without parameter or momentum.
    """
    for argument, value in (("params", params), ("masks", masks), ("momenta", momenta)):
        require.mapping(argument, value)
    kept, strength, free = {}, {}, {}
    for name, mask in masks.items():
        if name not in params or name not in momenta:
            raise ValueError(f"masks[{name!r}]: there is no such parameter, or no momentum of it")
        _check_signal(f"momenta[{name!r}]", momenta[name], params[name])
        _check(params[name], mask, fraction, regrown)
        kept[name] = _drop(np.abs(params[name]), mask, math.floor(mask.sum() * fraction))
        strength[name] = float(np.abs(momenta[name][mask]).mean()) if mask.any() else 0.0
        free[name] = int((~kept[name]).sum())
    n_moved = sum(int(mask.sum() - kept[name].sum()) for name, mask in masks.items())
    new_params, new_masks = dict(params), {}
    for name, count in shares(n_moved, strength, free).items():
        new = _largest(np.abs(momenta[name]), ~kept[name], count)
        new_params[name], new_masks[name], _ = _rewired(params[name], masks[name], kept[name], new, regrown)
    return new_params, new_masks


def shares(total, strength, free):
    """Whole numbers that sum to `total`, in proportion to `strength` and none above `free`: dicts of the same names.

    The parts are rounded down and the largest remainders get one more; if all strengths are 0 they count as equal.
    """
    counts, open_names = dict.fromkeys(strength, 0), [name for name in strength if free[name] > 0]
    while (left := total - sum(counts.values())) > 0:
        weight = {name: strength[name] for name in open_names}
        whole = sum(weight.values())
        part = {name: left * (w / whole if whole > 0 else 1 / len(weight)) for name, w in weight.items()}
        more = {name: math.floor(p) for name, p in part.items()}
        ahead = sorted(open_names, key=lambda name: more[name] - part[name])[:left - sum(more.values())]
        for name in open_names:
            counts[name] = min(counts[name] + more[name] + (name in ahead), free[name])
        open_names = [name for name in open_names if counts[name] < free[name]]
    return counts


def _drop(size, mask, n_zeros):
    """The mask without the n_zeros smallest of its weights; ties drop the lowest index first."""
    return mask & ~_largest(-size, mask, n_zeros)


def _largest(score, allowed, count):
    """True at the `count` largest scores of the allowed places; ties prefer the lowest index."""
    places = np.flatnonzero(allowed)
    best = places[np.argsort(-score.ravel()[places], kind="stable")[:count]]
    chosen = np.zeros(score.size, bool)
    chosen[best] = True
    return chosen.reshape(score.shape)


def _rewired(w, mask, kept, new, regrown):
    """(w, mask, grown) for the kept weights and the new ones."""
    grown = new if regrown == "zero" else new & ~mask
    now = kept | new
    return np.where(now & ~grown, w, w.dtype.type(0)), now, grown


def _check(w, mask, fraction, regrown):
    if not isinstance(w, np.ndarray) or not np.isfinite(require.array("w", w)).all():
        raise ValueError("w must be an array of finite numbers")
    if not isinstance(mask, np.ndarray) or mask.dtype != bool or mask.shape != w.shape:
        found = f"{mask.dtype} {mask.shape}" if isinstance(mask, np.ndarray) else type(mask).__name__
        raise ValueError(f"mask is {found}: must be bool {w.shape}, like the weights")
    require.number("fraction", fraction, "a share of the weights, from 0 to 1", most=1)
    if regrown not in ("value", "zero"):
        raise ValueError(f"regrown = {regrown!r}: must be value or zero")


def _check_signal(name, signal, w):
    if not isinstance(signal, np.ndarray) or signal.shape != w.shape or not np.isfinite(signal).all():
        raise ValueError(f"{name} has shape {np.shape(signal)}: must be finite numbers of the shape of the weights, "
                         f"{w.shape}")
