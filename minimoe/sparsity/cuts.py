"""Pruning a trained model by any method, selected by name: single weights, which leaves masks, or whole parts.

Existing masks are kept: a pruned weight does not come back.
"""

import math
from typing import NamedTuple

import numpy as np

from minimoe import model, parameters, require
from minimoe.config import fields
from minimoe.sparsity import calibration, importance, masks, pruning, structured

UNITS = {
    "neurons": "hidden neurons of each feed-forward network, such as an expert",
    "heads": "key heads of each layer, each with its query heads",
    "layers": "whole layers",
    "experts": "experts of each layer, with their columns of the router",
}
"""Method of structured pruning -> what it removes."""
METHODS = pruning.METHODS | UNITS
SCORES = {"neurons": "taylor", "heads": "taylor", "layers": "influence", "experts": "output"}
"""Method of structured pruning -> default score of its units."""
ALL_SCORES = {
    "norm": "norm of the weights",
    "activation": "mean size of the output",
    "taylor": "squared gradient times weight, an estimate of what the loss would lose",
    "gate": "slope of the loss along a factor on the output",
    "load": "share of the assignments, of experts",
    "output": "change of the layer's output without the expert",
    "subset": "the experts that together change the layer's output least, by trying all sets",
    "influence": "how far a layer rotates its tokens, of layers",
}
"""All scores: those of `importance`; "subset", `structured.best_experts`; "influence", `structured.block_influence`."""


class Cut(NamedTuple):
    """The remaining model: params, config, name -> mask; and what was removed, a list of sentences."""

    params: dict
    config: object
    masks: dict
    words: list


def needs_text(method, score=None):
    """Whether a method needs calibration text."""
    return method in pruning.CALIBRATED or method in UNITS and score != "norm"


def cut(params, config, method, tokens_BS=None, targets_BS=None, sparsity=None, pattern=None, keep=None, score=None,
        names=None, old_masks=None):
    """Prune a model by a method.  Returns a Cut.

    Args:
        params: name -> array.
        config: ModelConfig.
        method: a name of METHODS.
        tokens_BS, targets_BS: calibration text, and the token that follows each.
        sparsity: share of the weights or units to remove, rounded down.
        pattern: instead, for weights: (kept, group).
        keep: instead, how many units to keep in each layer, network or model.
        score: for units, a name of ALL_SCORES; None is the default in SCORES.
        names: parameters whose weights are pruned; None: see `matrices.names`.
        old_masks: name -> mask, if the model is already sparse.
    Raises ValueError for options that the method cannot use, masks that do not fit, and if nothing would be removed.
    """
    require.one_of("method", method, METHODS)
    masks.check(old_masks or {}, params)
    if method not in UNITS:
        for name, value in (("keep", keep), ("score", score)):
            fields.require(value is None, name, value, f"has no use with {method}, which prunes single weights; it is "
                           f"for {', '.join(UNITS)}")
        return _weights(params, config, method, tokens_BS, sparsity, pattern, names, old_masks or {})
    fields.require(pattern is None, "pattern", pattern, f"{method} are removed as a whole; give a sparsity, or keep")
    fields.require(names is None, "names", names, f"{method} are removed as a whole, in all layers; it is for "
                   f"{', '.join(pruning.METHODS)}")
    return _units(params, config, method, (tokens_BS, targets_BS), (sparsity, keep), score, old_masks or {})


def _weights(params, config, method, tokens_BS, sparsity, pattern, names, old_masks):
    pruned = pruning.prune_and_report(params, config, method, tokens_BS, sparsity, pattern, names)
    kept = dict(old_masks)
    for name, mask in pruned.masks.items():
        kept[name] = mask & old_masks.get(name, True)
    new = masks.apply(pruned.params, kept)
    before, after = pruning.report(params, old_masks), pruning.report(new, kept, pruned.report.unreached)
    asked = sparsity if pattern is None else 1 - pattern[0] / pattern[1]
    asked = asked if kept.keys() == pruned.masks.keys() else None  # of all that is masked, not of some
    first, *others = after.words(parts(kept, config), asked, pruning.FLOORED[method]).split("\n")
    if after.pruned.kept == before.pruned.kept + after.pruned.total - before.pruned.total:
        raise ValueError(f"{method}: nothing would be removed: {first}")
    words = [f"{method}: {first}"]
    if old_masks:
        words.append(f"Before, {before.pruned.sparsity:.1%} of the {before.pruned.total:,} weights of "
                     f"{parts(old_masks, config)} were zero.")
    return Cut(new, config, kept, words + others)


def parts(names, config):
    """The parts of a model to which parameters belong, in words."""
    routed = "experts" if config.n_experts > 1 else "feed-forward networks"
    words = {"shared.": "shared experts", "w_router": "routers", "attention.": "attention", "dense.": "dense networks",
             "moe.": routed, "soft.": routed, "embed.": "embedding", "head.": "head"}
    found = list(dict.fromkeys(next(part for key, part in words.items() if key in name) for name in names))
    return " and ".join([*filter(None, [", ".join(found[:-1])]), *found[-1:]])


def _units(params, config, method, text, wanted, score, old_masks):
    score = SCORES[method] if score is None else score
    allowed = {"layers": ("influence",), "experts": (*importance.METHODS, *importance.OF_EXPERTS, "subset")}.get(
        method, importance.METHODS)
    fields.require(score in allowed, "score", score, f"must be one of {', '.join(allowed)} for {method}")
    if text[0] is None and needs_text(method, score):
        raise ValueError(f"tokens_BS = None: {method} by {score} need calibration text")
    if method == "experts":
        fields.check(config, "n_experts", bool(config.moe_layers) and config.n_experts > 1,
                     f"the layers are {', '.join(config.layer_kinds)}: there are no experts to remove one by one")
    total = {"neurons": config.d_hidden if config.moe_layers or "soft" in config.layer_kinds else config.dense_width,
             "heads": config.kv_heads, "layers": config.n_layers, "experts": config.n_experts}[method]
    n = _n_kept(method, total, *wanted)
    keep, words = CHOOSE[method](params, config, n, score, text)
    new, smaller = structured.shrink(params, config, keep)
    left, before = parameters.count(new), parameters.count(params)
    floored = wanted[0] is not None and n > round(total * (1 - wanted[0]), 9)
    units = UNITS[method] + "; the removed share is rounded down" * floored
    sentence = (f"{method}: {n} of {total} stay ({units}), by {score}; {1 - left / before:.1%} of the model's "
                f"{before:,} parameters are gone")
    return Cut(new, smaller, _shrunken(old_masks, params, config, keep), [sentence, *words])


def _n_kept(method, total, sparsity, keep):
    """How many of the units are kept."""
    if (sparsity is None) == (keep is None):
        raise ValueError(f"sparsity = {sparsity!r}, keep = {keep!r}: give one of the two, the share of {method} to "
                         "remove or the number to keep")
    if keep is None:
        masks.check_sparsity(sparsity)
        n = total - math.floor(total * sparsity)
        fields.require(n < total, "sparsity", sparsity, f"would remove none of {total} {method}")
        return n
    whole = isinstance(keep, (int, np.integer)) and not isinstance(keep, bool) and 1 <= keep < total
    fields.require(whole, "keep", keep, f"there are {total} {method}: must be at least 1 and fewer than that")
    return int(keep)


def _choose_neurons(params, config, n, score, text):
    kinds, F = config.layer_kinds, config.d_hidden
    wanted = {"neurons": n} if {"moe", "soft"} & {*kinds} else {}
    if "dense" in kinds:
        wanted["dense neurons"] = max(1, config.dense_width * n // F) if wanted else n
    if config.n_shared_experts and config.moe_layers:
        wanted["shared"] = config.n_shared_experts * n
    keep = {"neurons": {}}
    for kind, count in wanted.items():
        found = importance.importance(params, config, kind, score, *text)
        keep.setdefault("shared" if kind == "shared" else "neurons", {}).update(found.keep(count))
    return keep, []


def _choose_heads(params, config, n, score, text):
    return {"heads": importance.importance(params, config, "heads", score, *text).keep(n)}, []


def _choose_layers(params, config, n, score, text):
    influence_L = structured.block_influence(importance.stream(params, text[0], config))
    kept = masks.lowest(influence_L, config.n_layers - n)
    scores = ", ".join(f"{influence:.3f}" for influence in influence_L)
    gone = ", ".join(map(str, np.flatnonzero(~kept)))
    return {"layers": kept}, [f"removed: layer {gone}; influence of each layer in order, 1 - cosine of its input and "
                              f"output: {scores}"]


def _choose_experts(params, config, n, score, text):
    if score != "subset":
        found = importance.importance(params, config, "experts", score, *text)
        return {"experts": found.keep(n)}, _unreached(found.unreached)
    tokens_BS, _ = model.check_inputs(params, config, text[0], None)
    (_, routings), cache = model.model_forward(params, tokens_BS, config)
    keep, unreached = {}, {}
    for i, routing in zip(config.moe_layers, routings, strict=True):
        x_TD = calibration.block_inputs(cache.blocks[i])["moe.w_router_DE"][0]
        keep[i], _ = structured.best_experts(x_TD, parameters.scope(params, f"layers.{i}.moe."), config, n)
        unreached[i] = np.flatnonzero(routing.kept_count_E == 0).tolist()
    return {"experts": keep}, _unreached(unreached)


CHOOSE = {"neurons": _choose_neurons, "heads": _choose_heads, "layers": _choose_layers, "experts": _choose_experts}
"""Method -> function (params, config, n, score, text) -> masks as `structured.shrink` reads them, words."""


def _unreached(experts):
    return pruning.unreached_words({f"layer {i}": lost for i, lost in experts.items()})


def _shrunken(old_masks, params, config, keep):
    """The masks of the remaining model, cut in the same way as its parameters."""
    if not old_masks:
        return {}
    marked = {name: 2.0 * old_masks[name] if name in old_masks else np.ones(array.shape)
              for name, array in params.items()}
    left, _ = structured.shrink(marked, config, keep)  # layers are renumbered, so marks identify sparse parameters
    return {name: marks > 1 for name, marks in left.items() if 1 not in marks}
