"""Prunes a trained model in one pass, block by block: the input of each block comes from the pruned blocks before it.

Within a block all matrices are calibrated before the first one is pruned; then the block's outputs are computed again.
So calibration is renewed for each block and not for each matrix, as in the code of Wanda and SparseGPT.

A sparsity is a share of the weights of each matrix ("magnitude_global": of all matrices together), including weights
that are already 0.  Embedding, head, norms and routers are not pruned unless they are named.
"""

import math
from typing import NamedTuple

import numpy as np

from minimoe import model, parameters, require
from minimoe.config import fields
from minimoe.moe.routing import Tokens
from minimoe.nn import attention, ops
from minimoe.sparsity import calibration, masks, matrices, scores, sparsegpt

METHODS = {
    "magnitude": "the smallest weights of each matrix",
    "magnitude_per_output": "the smallest weights of each output",
    "magnitude_global": "the smallest weights of all matrices together",
    "wanda": "the smallest products of weight and input, of each output",
    "sparsegpt": "the weights that cost least; the remaining ones compensate for them",
}
FLOORED = {"magnitude": "each matrix", "magnitude_per_output": "each output", "magnitude_global": "all matrices",
           "wanda": "each output", "sparsegpt": "each block of inputs"}
"""Method -> where the number of zeros is rounded down."""
CALIBRATED = "wanda", "sparsegpt"
"""Methods that need the inputs of the matrices."""


class Share(NamedTuple):
    """Number of weights that are kept, and number of all weights."""

    kept: int
    total: int

    @property
    def sparsity(self):
        """The share of zeros."""
        return 1 - self.kept / self.total


class Report(NamedTuple):
    """How much was pruned.

    matrices: name -> Share of each matrix of the stack.  pruned: Share of these together.  model: of all parameters.
    unreached: (name, expert) of experts that no calibration token reached, which keep their weights.
    """

    matrices: dict
    pruned: Share
    model: Share
    unreached: list

    def words(self, where="the masked matrices", asked=None, floored="each matrix"):
        """The report in a line, and one more for experts that were not reached.

        where: the pruned parts.   asked: share of zeros asked for.   floored: where their number is rounded down.
        """
        pruned, less, experts = self.pruned, self._shortfall(asked, floored), {}
        for name, e in self.unreached:
            experts.setdefault(name.rpartition(".")[0], set()).add(e)
        return "\n".join([
            f"{pruned.sparsity:.1%} of the {pruned.total:,} weights of {where} are zero{less}, "
            f"which is {self.model.sparsity:.1%} of all {self.model.total:,} parameters",
            *unreached_words(experts)])

    def _shortfall(self, asked, floored):
        """Why there are fewer zeros than were asked for; nothing if there are not."""
        if asked is None or asked < self.pruned.sparsity or f"{asked:.1%}" == f"{self.pruned.sparsity:.1%}":
            return ""
        why = ("experts that no calibration token reached keep their weights" if self.unreached else
               f"rounded down in {floored}")
        return f" (not {asked:.1%}: {why})"

    def __str__(self):
        return self.words()


class Pruned(NamedTuple):
    """Parameters, name -> mask, and the Report."""

    params: dict
    masks: dict
    report: Report


def prune(params, config, method, tokens_BS, sparsity=None, pattern=None, names=None):
    """(params, masks) of `prune_and_report`."""
    return prune_and_report(params, config, method, tokens_BS, sparsity, pattern, names)[:2]


def prune_and_report(params, config, method, tokens_BS, sparsity=None, pattern=None, names=None):
    """Prune a model.

    Args:
        params: name -> array.
        config: ModelConfig.
        method: a name of METHODS.
        tokens_BS: calibration text, whole numbers in [0, V); None if the method needs none.  An expert is calibrated on
            the tokens that are dispatched to it; if there are none it keeps its weights, and the report says so.
        sparsity: share of zeros, in [0, 1); rounded down, for each matrix or output depending on the method.
        pattern: instead, (kept, group): how many of each group of inputs to keep.
        names: parameters to prune; None: attention and feed-forward networks, see `matrices.names`.

    Returns Pruned.  Raises ValueError for bad input, and for a model that already has more zeros than requested.
    """
    names = _checked(params, config, method, sparsity, pattern, names)
    if method in CALIBRATED:
        if tokens_BS is None:
            raise ValueError(f"tokens_BS = None: {method} needs calibration tokens; magnitude does not")
        tokens_BS, _ = model.check_inputs(params, config, tokens_BS, None)
        new, kept, unreached = _block_by_block(params, config, tokens_BS, names, _rule(method, sparsity, pattern))
    else:
        kept, unreached = _by_magnitude(params, names, method, sparsity, pattern), []
        new = masks.apply(params, kept)
    return Pruned(new, kept, report(new, kept, unreached))


def unreached_words(experts_of):
    """A list of one line, or of none, on experts that no calibration token reached.  experts_of: place -> numbers."""
    places = [f"{fields.listed(lost, 8)} of {place}" for place, lost in experts_of.items() if lost]
    return [f"no calibration token reached the experts {'; '.join(places)}"] * bool(places)


def report(params, mask_by_name, unreached=()):
    """The Report of masks, such as those of a checkpoint."""
    masks.check(mask_by_name, params)
    kept = {name: matrices.stack(name, mask).sum(axis=(1, 2)).tolist() for name, mask in mask_by_name.items()}
    each = {name: [Share(n, mask_by_name[name].size // len(counts)) for n in counts] for name, counts in kept.items()}
    pruned = Share(sum(map(sum, kept.values())), parameters.count(mask_by_name))
    n = parameters.count(params)
    return Report(each, pruned, Share(n - pruned.total + pruned.kept, n), list(unreached))


def _by_magnitude(params, names, method, sparsity, pattern):
    """Name -> mask."""
    if method == "magnitude_global" and pattern is None:
        chosen = {name: np.abs(params[name]) for name in names}
        score = parameters.flatten(chosen)
        return parameters.unflatten(masks.lowest(score, math.floor(score.size * sparsity)), chosen)
    rule, kept = _rule(method, sparsity, pattern), {}
    for name in names:
        stack = matrices.stack(name, params[name])
        kept[name] = np.stack([rule(w_DF, None)[1] for w_DF in stack]).reshape(params[name].shape)
    return kept


def _block_by_block(params, config, tokens_BS, names, rule):
    """(params, masks, unreached) of a method that needs the inputs of each matrix."""
    new, kept, unreached = dict(params), {}, []
    tokens = Tokens.of_batch(tokens_BS)
    x_TD, _ = ops.embedding_forward(tokens.id_T, params["embed.w_VD"])
    rope = attention.rope_table(np.arange(tokens_BS.shape[1]), config.head_width, config.rope_theta, x_TD.dtype)

    def prune_each(inputs, prefix):
        for name in names:
            if name.startswith(prefix):
                rows = inputs[name.removeprefix(prefix)]
                new[name], kept[name], idle = _prune_stack(name, params[name], rows, rule)
                unreached.extend((name, n) for n in idle)

    for i, kind in enumerate(config.layer_kinds):
        prefix = f"layers.{i}."
        _, cache = model.block_forward(x_TD, parameters.scope(params, prefix), config, kind, tokens, rope)
        prune_each(calibration.block_inputs(cache), prefix)
        (x_TD, _), _ = model.block_forward(x_TD, parameters.scope(new, prefix), config, kind, tokens, rope)
    normed_TD, _ = ops.rmsnorm_forward(x_TD, params["final.gain_D"], config.norm_eps)
    prune_each({"w_DV": [normed_TD]}, "head.")
    return new, {name: kept[name] for name in names}, unreached


def _prune_stack(name, array, rows, rule):
    """(array, mask, numbers of the matrices that no token reached) of one parameter."""
    stack = matrices.stack(name, array)
    new, kept, idle = stack.copy(), np.ones(stack.shape, bool), []
    for n, (w_DF, x_TD) in enumerate(zip(stack, rows, strict=True)):
        if x_TD is None or not x_TD.any():
            idle.append(n)
        else:
            new[n], kept[n] = rule(w_DF, x_TD)
    return new.reshape(array.shape), kept.reshape(array.shape), idle


def _rule(method, sparsity, pattern):
    """The function (w_DF, x_TD) -> (w_DF, mask_DF) for a method."""
    def by_score(w_DF, x_TD):
        score_DF = scores.wanda(w_DF, x_TD) if method == "wanda" else scores.magnitude(w_DF)
        if pattern is not None:
            mask_DF = masks.n_of_m(score_DF, *pattern)
        elif method == "magnitude":
            mask_DF = masks.lowest(score_DF, math.floor(score_DF.size * sparsity))
        else:
            mask_DF = masks.per_output(score_DF, sparsity)
        return np.where(mask_DF, w_DF, w_DF.dtype.type(0)), mask_DF

    def by_cost(w_DF, x_TD):
        group = 1 if pattern is None else pattern[1]
        return sparsegpt.prune(w_DF, x_TD, sparsity, pattern, block=max(128 // group, 1) * group)

    return by_cost if method == "sparsegpt" else by_score


def _checked(params, config, method, sparsity, pattern, names):
    """The names of the parameters to prune.  Raises ValueError for impossible options."""
    model.check_params(params, config)
    require.one_of("method", method, METHODS)
    if (sparsity is None) == (pattern is None):
        raise ValueError(f"sparsity = {sparsity!r}, pattern = {pattern!r}: give one of the two")
    names = matrices.names(config, names)
    if pattern is None:
        masks.check_sparsity(sparsity)
        share, asked = sparsity, f"sparsity = {sparsity}"
    else:
        masks.check_pattern(pattern, 0)
        for name in names:
            _check_pattern(name, params[name], pattern)
        share, asked = 1 - pattern[0] / pattern[1], f"pattern = {tuple(pattern)}"
    for name in names if method in CALIBRATED else ():
        _check_calibrated(name, method, config)
    total = sum(params[name].size for name in names)
    zeros = sum(int((params[name] == 0).sum()) for name in names)
    if share > 0 and math.ceil(total * share) < zeros:
        what = "it is a share of" if pattern is None else f"it would leave {share:.0%} zeros in"
        raise ValueError(f"{asked}: {what} all {total:,} weights, and {zeros:,} of them ({zeros / total:.1%}) are "
                         f"already zero; give {'a higher share' if pattern is None else 'a pattern that keeps fewer'}")
    return names


def _check_pattern(name, array, pattern):
    try:
        masks.check_pattern(pattern, matrices.shape(name, array.shape)[1])
    except ValueError as error:
        raise ValueError(f"{error} of {name}") from error


def _check_calibrated(name, method, config):
    if name == "embed.w_VD":
        tied = ", and as a tied head it has two kinds of input" if config.tie_embeddings else ""
        raise ValueError(f"names: {name} is looked up and multiplies nothing{tied}: {method} cannot prune it; "
                         "magnitude can")
    if name.endswith("w_slot_DEC"):
        raise ValueError(f"names: the vectors of {name} are scaled to length 1 before they are used: {method} cannot "
                         "prune it; magnitude can")
