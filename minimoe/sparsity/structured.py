"""Structured pruning: whole layers, heads, neurons or experts are removed, which leaves a smaller ordinary model.

Each unit is removed everywhere: a neuron from three matrices, a query head with its key head, an expert with its column
of the router.  The configuration has one number for all layers, so all layers keep equally many heads, experts and
neurons.
"""

import itertools
import math
from dataclasses import replace

import numpy as np

from minimoe import model, parameters, require
from minimoe.config import ModelConfig, fields
from minimoe.moe import experts, routers
from minimoe.moe.routing import Tokens
from minimoe.nn import ops

KINDS = {
    "layers": "the layers, [L]",
    "heads": "the query heads of each layer, [H]",
    "neurons": "the hidden neurons of each dense layer, [J], or of each expert, [E, F]",
    "shared": "the hidden neurons of the shared experts of each layer, [J]",
    "experts": "the experts of each layer, [E]",
}
"""What can be removed -> the masks for it."""
MOST_SUBSETS = 20_000
"""Largest number of subsets that `best_experts` tries."""


def shrink(params, config, keep):
    """A smaller ordinary model with only the kept units.  It computes the same as the masked model.

    A masked head or layer adds nothing, the output of a masked neuron is 0, and the score of a masked expert is -inf:
    its tokens go to the next best.  A key head is kept if at least one of its query heads is.

    Args:
        params: name -> array, of the config.
        config: ModelConfig.
        keep: name of KINDS -> bool masks, True = kept.  "layers" has one mask; the others have one mask per layer, as a
            dict of layer -> mask, or as a list or array over all layers with None where nothing is removed.
            Layers and experts are numbered as in the original model.
    Returns params, config.  With a capacity, an expert's slots follow the new mean load.
    Raises ValueError if no configuration describes the result: layers that keep different numbers, key heads with
    different numbers of query heads, kinds of layers in an irregular order, fewer experts than top_k; and for a mask of
    a layer that the model does not have.
    """
    model.check_params(params, config)
    unknown = require.mapping("keep", keep).keys() - KINDS.keys()
    if unknown:
        raise ValueError(f"keep has {', '.join(sorted(unknown))}: must be among {', '.join(KINDS)}")
    layer_L = _mask("layers", keep.get("layers", np.ones(config.n_layers, bool)), (config.n_layers,))
    blocks = [_block(parameters.scope(params, f"layers.{i}."), config, i, keep) for i in np.flatnonzero(layer_L)]
    new = {name: array.copy() for name, array in params.items() if not name.startswith("layers.")}
    for i, block in enumerate(blocks):
        new |= parameters.unscope(block, f"layers.{i}.")
    config = _fitting(config, layer_L, blocks)
    return {name: new[name] for name in model.weights(config)}, config


def _block(weights, config, layer, keep):
    """The remaining weights of one layer.  Raises ValueError for masks of parts that the layer does not have."""
    kind, cut = config.layer_kinds[layer], dict(weights)
    H, G = config.n_heads, config.kv_heads
    found = {name: _of_layer(keep.get(name), layer, config) for name in KINDS if name != "layers"}
    mask_H = _take("heads", layer, found, (H,))
    if mask_H is not None:
        mask_GQ = mask_H.reshape(G, H // G)
        cut = _cut(_cut(cut, "H", mask_H), "G", mask_GQ.any(axis=1))
        if len({*mask_GQ.sum(axis=1).tolist()} - {0}) > 1:
            raise ValueError(f"layer {layer} keeps {mask_GQ.sum(axis=1).tolist()} query heads of its key heads: must "
                             "be the same number, or none")
    width = config.dense_width if kind == "dense" else config.n_shared_experts * config.d_hidden
    mask_J = _take("neurons" if kind == "dense" else "shared", layer, found, (width,) if width else None)
    if mask_J is not None:
        cut = _cut(cut, "J", mask_J)
    if kind != "dense":
        E, F = config.n_experts, config.d_hidden
        cut = _cut_neurons(cut, _take("neurons", layer, found, (E, F)), layer)
        mask_E = _take("experts", layer, found, (E,))
        if mask_E is not None:
            check_experts(config, mask_E)
            cut = _cut(cut, "E", mask_E)
    if left := [name for name, mask in found.items() if mask is not None]:
        raise ValueError(f"layer {layer} is {kind}: it has no {' and no '.join(left)} to remove")
    return cut


def _of_layer(masks, layer, config):
    """The mask of a layer, or None."""
    if masks is None or isinstance(masks, dict):
        if unknown := (masks or {}).keys() - range(config.n_layers):
            raise ValueError(f"keep has masks of the layers {sorted(unknown)}: the model has {config.n_layers}")
        return (masks or {}).get(layer)
    if not isinstance(masks, (list, tuple, np.ndarray)):
        require.fail("keep", masks, "masks by layer")
    if len(masks) != config.n_layers:
        raise ValueError(f"keep has {len(masks)} masks for {config.n_layers} layers")
    return masks[layer]


def _take(name, layer, found, shape):
    """The mask under a name, which is removed from `found`; None if there is none."""
    if shape is None or found[name] is None:
        return None
    return _mask(f"{name} of layer {layer}", found.pop(name), shape)


def _mask(name, mask, shape):
    mask = require.array(f"the mask of the {name}", mask, kinds="bfciuOSU")
    if mask.dtype != bool or mask.shape != shape or not mask.any():
        raise ValueError(f"the mask of the {name} has shape {mask.shape} and dtype {mask.dtype}, "
                         f"{np.count_nonzero(mask)} kept: must be bool, {shape}, and keep some")
    return mask


def _cut(weights, letter, mask):
    """The weights without the masked entries on the axis of a letter, if they have that axis."""
    cut = {}
    for name, array in weights.items():
        letters = name.rpartition("_")[2]
        cut[name] = array.compress(mask, axis=letters.index(letter)) if letter in letters else array
    return cut


def _cut_neurons(weights, mask_EF, layer):
    """The weights of a layer's experts with fewer neurons, equally many in each."""
    if mask_EF is None:
        return weights
    counts = set(mask_EF.sum(axis=1).tolist())
    if len(counts) > 1:
        raise ValueError(f"the experts of layer {layer} keep from {min(counts)} to {max(counts)} neurons: must be the "
                         "same number, since they are stacked")
    stacks = {name for name in weights if "F" in name.rpartition("_")[2]}
    each = [_cut({name: weights[name][e:e + 1] for name in stacks}, "F", mask_F) for e, mask_F in enumerate(mask_EF)]
    return weights | {name: np.concatenate([own[name] for own in each]) for name in stacks}


def check_experts(config, mask_E):
    """Raise ValueError unless a model without these experts routes as if their scores were -inf."""
    facts = routers.ROUTERS[config.router].FACTS
    per_token = facts.matrices > 0 and not facts.soft and not facts.k_is_mean
    fields.check(config, "router", per_token, "no expert can be removed: routing depends on how many there are")
    n_kept, in_group = int(mask_E.sum()), mask_E.reshape(config.n_groups, -1).sum(axis=1)
    fields.check(config, "top_k", config.top_k <= n_kept, f"{n_kept} of {config.n_experts} experts are too few for it")
    fields.check(config, "n_groups", len(set(in_group.tolist())) == 1,
                 f"each group of experts must keep the same number; they keep {in_group.tolist()}")


def _fitting(config, layer_L, blocks):
    """The configuration of the remaining blocks."""
    kinds = tuple(kind for kind, kept in zip(config.layer_kinds, layer_L, strict=True) if kept)
    sizes = {}
    for block in blocks:
        for name, array in block.items():
            for letter, size in zip(name.rpartition("_")[2], array.shape, strict=True):
                sizes.setdefault("shared" if "shared." in name and letter == "J" else letter, set()).add(size)
    for letter, words in {"H": "heads", "G": "key heads", "E": "experts", "F": "neurons per expert",
                          "J": "neurons per dense layer", "shared": "neurons of the shared experts"}.items():
        if len(sizes.get(letter, ())) > 1:
            raise ValueError(f"layers keep from {min(sizes[letter])} to {max(sizes[letter])} {words}: must be the same "
                             "number in each, since the configuration has only one")
    size = {letter: found.pop() for letter, found in sizes.items()}
    d_hidden, shared = size.get("F", config.d_hidden), size.get("shared")
    if shared is not None and shared != config.n_shared_experts * d_hidden:
        raise ValueError(f"shared experts keep {shared} neurons: must be {config.n_shared_experts} x {d_hidden}, since "
                         "each is as wide as the others")
    own_width = config.d_head if size["H"] == config.n_heads else config.head_width
    fitting = replace(config, **_order(config, kinds), n_heads=size["H"], n_kv_heads=config.n_kv_heads and size["G"],
                      d_head=own_width, d_hidden=d_hidden, n_experts=size.get("E", config.n_experts))
    return replace(fitting, d_dense=size["J"]) if "J" in size and size["J"] != fitting.dense_width else fitting


def _order(config, kinds):
    """The fields that describe layers of these kinds in this order."""
    own = config.first_dense_layers, config.moe_every
    for first, every in (own, *itertools.product(range(len(kinds) + 1), range(1, config.n_layers + 1))):
        if first > len(kinds):
            continue
        order = dict(n_layers=len(kinds), first_dense_layers=first, moe_every=every)
        if replace(config, **order).layer_kinds == kinds:
            return order
    raise ValueError(f"the remaining layers are {', '.join(kinds)}: no first_dense_layers and moe_every give this "
                     "order")


def best_experts(x_TD, weights, config, n_kept):
    """The subset of a layer's experts that changes its output least, found by trying every subset.

        kept = argmin over subsets of || y_subset(x) - y(x) ||, root of summed squares     [Lu 2024, arXiv:2402.14800]

    Tokens whose experts are missing go to their next best.  Removing an expert that no token reached changes nothing,
    so look at `importance.Importance.unreached` before you trust the result.

    Args:
        x_TD: calibration tokens, as the layer's router sees them.
        weights: name -> array, of one MoE layer.
        config: ModelConfig.
        n_kept: number of experts to keep.
    Returns kept_E, a mask, and the error of its layer.  Ties prefer the subset with the lowest numbers.
    Raises ValueError for fewer than top_k, tokens that do not fit, or more than MOST_SUBSETS subsets.
    """
    E = require.record("config", config, ModelConfig).n_experts
    require.whole("n_kept", n_kept, 1, E)
    x_TD = ops.floats("x_TD", x_TD)
    fields.require(x_TD.ndim == 2 and x_TD.shape[1] == config.d_model and len(x_TD), "x_TD.shape", x_TD.shape,
                   f"must be [tokens, {config.d_model}], at least one token")
    n_subsets = math.comb(E, n_kept)
    fields.require(n_subsets <= MOST_SUBSETS, "n_kept", n_kept,
                   f"{n_subsets:,} subsets of {E} experts are too many to try; {MOST_SUBSETS:,} is the limit")
    fields.check(config, "n_groups", config.n_groups == 1, "subsets are tried without groups of experts")
    if missing := [name for name in experts.NAMES if name not in require.mapping("weights", weights)]:
        raise ValueError(f"weights have no {', '.join(missing)}: must be those of an MoE layer")
    out_ETD, best = every_output(x_TD, weights), (np.inf, None)
    y_TD = routed_output(x_TD, weights, config, out_ETD, np.ones(E, bool))
    for subset in itertools.combinations(range(E), n_kept):
        kept_E = np.isin(np.arange(E), subset)
        error = float(np.linalg.norm(routed_output(x_TD, weights, config, out_ETD, kept_E) - y_TD))
        if error < best[0]:
            best = error, kept_E
    return best[1], best[0]


def every_output(x_TD, weights):
    """The output of each expert of a layer for every token, whether it is chosen or not.  Returns out_ETD."""
    E, T = len(weights["w_up_EDF"]), len(x_TD)
    out_ND, _ = experts.experts_forward(np.tile(x_TD, (E, 1)), weights, np.full(E, T))
    return out_ND.reshape(E, T, -1)


def routed_output(x_TD, weights, config, out_ETD, kept_E):
    """The routed output of a layer with only some of its experts: sum over a token's kept choices of gate * out.

    Args:
        x_TD: the tokens.
        weights: name -> array, of one MoE layer.
        config: ModelConfig.
        out_ETD: from `every_output`.
        kept_E: mask of the remaining experts.
    Returns y_TD.
    """
    check_experts(config, kept_E)
    policy, smaller = routers.POLICIES[config.router], replace(config, n_experts=int(kept_E.sum()))
    tokens = Tokens.anonymous(np.ones(len(x_TD), bool))
    routing, _ = policy.forward(x_TD, _cut(weights, "E", kept_E), smaller, tokens)
    y_TD = np.zeros(x_TD.shape, out_ETD.dtype)
    for rank in range(routing.n_ranks):
        own = routing.rank_A == rank
        token_A, expert_A = routing.token_A[own], np.flatnonzero(kept_E)[routing.expert_A[own]]
        y_TD[token_A] += routing.gate_A[own, None] * out_ETD[expert_A, token_A]
    return y_TD


def block_influence(x_LTD):
    """How much each block rotates its tokens: 1 - the mean over tokens of the cosine between its input and its output.

                                                        [ShortGPT, arXiv:2403.03853, eq. 1]
    x_LTD: the stream before the first block and after each block, one more than the number of blocks; see
    `importance.stream`.  Returns influence_L, one number per block.  Raises ValueError for a token of length 0.
    """
    x_LTD = np.asarray(x_LTD)
    if x_LTD.ndim != 3 or len(x_LTD) < 2:
        raise ValueError(f"x_LTD has shape {x_LTD.shape}: must be [blocks + 1, tokens, width]")
    length_LT = np.sqrt((x_LTD * x_LTD).sum(axis=2))
    if not length_LT.all():
        raise ValueError(f"x_LTD has {int((length_LT == 0).sum())} tokens of length 0, which have no direction")
    cosine = (x_LTD[:-1] * x_LTD[1:]).sum(axis=2) / (length_LT[:-1] * length_LT[1:])
    return 1 - cosine.mean(axis=1)
