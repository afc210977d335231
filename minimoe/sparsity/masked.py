"""Masks in a training run: the functions that the training loop calls in each step.

    masked.mask_gradients     the update does not move masked weights, and clipping does not count them
    (AdamW)                   its decay and moments keep at 0 what is 0 and has no gradient
    masked.change_masks       at some steps: weights are dropped, and new ones start at 0 with moments of 0

A run without masks is not affected.  NumPy multiplies whole matrices including zeros, so nothing here is faster than a
dense step; `cost` counts what a machine could save.
"""

import math
import zlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from minimoe import model
from minimoe.sparsity import densities, dynamic, masks, matrices, schedules, scores


class Change(NamedTuple):
    """The input of a rule for changing masks: dicts of (parameter, number of its matrix) -> array of one matrix.

    w, mask: the current ones.  signal: what else the rule needs, such as dense gradients; or nothing.
    step: the number of this step, from 1.  state: TrainState.
    """

    w: dict
    mask: dict
    signal: dict
    step: int
    state: object

    @property
    def fraction(self):
        """The share of its weights that a matrix exchanges at this step."""
        config = self.state.train_config
        return dynamic.drop_fraction(self.step, config.drop_fraction, config.sparsity_end * config.n_steps)


class Rule(NamedTuple):
    """How masks change.

    change(Change) -> dicts of w and mask; None: masks never change.
    trace(trace, w, gradient, beta) -> trace: a running statistic of the dense gradients, which starts at 0; or None.
    by_gradient: whether the rule needs the dense gradient of the step at which it changes masks.
    replaces_update: whether such a step does not update the weights [RigL, arXiv:1911.11134, algorithm 1].
    starts_sparse: whether a run starts with its final sparsity, and then only exchanges weights.
    """

    change: Callable | None = None
    trace: Callable | None = None
    by_gradient: bool = False
    replaces_update: bool = False
    starts_sparse: bool = True


def _rigl(c):
    return _results({key: dynamic.rigl(w, c.mask[key], c.signal[key], c.fraction)[:2] for key, w in c.w.items()})


def _set(c):
    seed = c.state.train_config.seed
    return _results({key: dynamic.set(w, c.mask[key], c.fraction, _stream(seed, key, c.step))[:2]
                     for key, w in c.w.items()})


def _snfs(c):
    return dynamic.snfs(c.w, c.mask, c.signal, c.fraction)


def _gradual(c):
    """Mask the lowest scores of each matrix; masked weights stay masked.  Scores are |w| if there is no trace."""
    config, density = c.state.train_config, _densities(c.state)
    new = {}
    for key, w in c.w.items():
        final = round(1 - density[key[0]], 12)
        zeros = math.floor(w.size * schedules.cubic(c.step, 0, config.last_mask_step, final))
        score = c.signal[key] if c.signal else scores.magnitude(w)
        new[key] = c.mask[key] & masks.lowest(np.where(c.mask[key], score, -np.inf), zeros)
    return {key: np.where(mask, c.w[key], c.w[key].dtype.type(0)) for key, mask in new.items()}, new


RULES = {
    "static": Rule(),
    "set": Rule(_set),
    "rigl": Rule(_rigl, by_gradient=True, replaces_update=True),
    "snfs": Rule(_snfs, trace=lambda trace, w, g, beta: beta * trace + (1 - beta) * g),
    "gradual": Rule(_gradual, starts_sparse=False),
    "movement": Rule(_gradual, trace=lambda trace, w, g, beta: trace + scores.movement(w, g), starts_sparse=False),
}
"""Value of `TrainConfig.dynamic` -> Rule."""


def start(state):
    """Give a new run the masks that its configuration asks for; a dense run gets none."""
    if state.train_config.sparsity > 0:
        put_on(state, _first_masks(state))


def moved(state):
    """(kept weights at places that were masked when the run began, all kept weights of the masked parameters)."""
    first = _first_masks(state)
    return (sum(int((mask & ~first[name]).sum()) for name, mask in state.masks.items()),
            sum(int(mask.sum()) for mask in state.masks.values()))


def _first_masks(state):
    """Name -> mask with which a new run of this configuration starts."""
    config, new = state.train_config, {}
    for name, density in _densities(state).items():
        parts = _parts(state, name, state.params[name])
        share = density if RULES[config.dynamic].starts_sparse else 1.0
        drawn = [densities.random_mask(part.shape, share, _stream(config.seed, (name, n), 0))
                 for n, part in enumerate(parts)]
        new[name] = np.stack(drawn).reshape(state.params[name].shape)
    return new


def put_on(state, mask_by_name):
    """Replace the masks of a run: masked weights become exactly 0, and so do their moments.

    Raises ValueError if a mask does not fit.
    """
    for arrays in (state.params, *state.moments):
        arrays.update(masks.apply(arrays, mask_by_name))
    state.masks = dict(mask_by_name)
    traced = RULES[state.train_config.dynamic].trace is not None
    state.traces = {name: np.zeros_like(state.params[name]) for name in mask_by_name if traced}


def mask_gradients(state, grads):
    """Set the gradients of masked weights to 0, in place.

    Before that, the traces are updated.
    Returns name -> dense gradient if this step needs them to change the masks, otherwise an empty dict.
    """
    rule, dense = RULES[state.train_config.dynamic], {}
    for name, mask in state.masks.items():
        if rule.trace is not None:
            state.traces[name] = rule.trace(state.traces[name], state.params[name], grads[name],
                                            state.train_config.beta1)
        if rule.by_gradient and _is_due(state):
            dense[name] = grads[name].copy()
        np.multiply(grads[name], mask, out=grads[name])
    return dense


def replaces_update(state):
    """Whether this step changes the masks instead of updating the weights."""
    return bool(state.masks) and _is_due(state) and RULES[state.train_config.dynamic].replaces_update


def change_masks(state, dense):
    """Change the masks, if this is a step at which they change.  dense: from `mask_gradients`."""
    if not state.masks or not _is_due(state):
        return
    if not all(np.isfinite(state.params[name]).all() for name in state.masks):
        return  # the run has diverged, which the next step reports
    trees = (state.params, state.masks, dense or state.traces)
    w, mask, signal = ({(name, n): part for name in state.masks if name in tree
                        for n, part in enumerate(_parts(state, name, tree[name]))} for tree in trees)
    new_w, new_mask = RULES[state.train_config.dynamic].change(Change(w, mask, signal, state.step + 1, state))
    for name, old in state.masks.items():
        whole = [np.stack([tree[name, n] for n in range(len(_parts(state, name, old)))]).reshape(old.shape)
                 for tree in (new_w, new_mask)]
        state.params[name], now = whole
        for moment in state.moments:  # of dropped and of new weights
            moment[name] = np.where(old & now, moment[name], moment[name].dtype.type(0))
        state.masks[name] = now


def check(state):
    """Raise ValueError unless masks and traces fit the run, and masked weights and moments are 0."""
    masks.check(state.masks, state.params)
    traced = RULES[state.train_config.dynamic].trace is not None
    wanted = state.masks.keys() if traced else set()
    if state.traces.keys() != wanted or state.train_config.sparsity > 0 and not state.masks:
        raise ValueError(f"it has {len(state.masks)} masks and {len(state.traces)} traces, which do not belong to "
                         f"sparsity = {state.train_config.sparsity} with dynamic = {state.train_config.dynamic!r}")
    for name, trace in state.traces.items():
        if trace.shape != state.params[name].shape or trace.dtype.kind != "f" or not np.isfinite(trace).all():
            raise ValueError(f"trace/{name} is {trace.dtype} {trace.shape}: must be finite numbers of the shape "
                             f"{state.params[name].shape}")
    for name, mask in state.masks.items():
        if any(arrays[name][~mask].any() for arrays in (state.params, *state.moments)):
            raise ValueError(f"mask/{name}: a masked weight or moment is not 0")


def _is_due(state):
    """Whether this step changes the masks."""
    config, step = state.train_config, state.step + 1
    changes = RULES[config.dynamic].change is not None
    return changes and step % config.sparsity_every == 0 and step <= config.last_mask_step


def _densities(state):
    """Name -> share of weights that the run keeps in the end, for each matrix of the parameter."""
    config = state.train_config
    names = list(state.masks) or matrices.names(state.model_config)
    stacks = {name: matrices.shape(name, model.weights(state.model_config)[name].shape) for name in names}
    shapes = {name: stack if stack[0] > 1 else stack[1:] for name, stack in stacks.items()}
    if config.density == "uniform":
        return densities.uniform(shapes, 1 - config.sparsity)
    return densities.erdos_renyi(shapes, 1 - config.sparsity, stack=config.density == "erdos_renyi_stack")


def _parts(state, name, array):
    """The matrices of a parameter, each with its own mask; a stack that counts as one matrix is a single part."""
    stack = matrices.stack(name, array)
    return stack[None] if state.train_config.density == "erdos_renyi_stack" else stack


def _stream(seed, key, step):
    """The random stream of one matrix at one step, so that a resumed run draws the same numbers."""
    name, n = key
    return np.random.default_rng([seed, zlib.crc32(f"mask {name}".encode()), n + 1, step])


def _results(pairs):
    """Split a dict of pairs into two dicts."""
    return {key: w for key, (w, _) in pairs.items()}, {key: mask for key, (_, mask) in pairs.items()}
