"""Merging experts: each group is replaced by its mean; a single group gives a dense model."""

from dataclasses import replace

import numpy as np

from minimoe import model, parameters, require
from minimoe.config import fields
from minimoe.sparsity import structured


def merge(params, config, groups, loads=None):
    """A model in which each group of experts, and their columns of the router, is replaced by the mean.

                                                        [M-SMoE, arXiv:2310.01334, sec. 3, without permuted neurons]
    Args:
        params: name -> array, of the config.
        config: ModelConfig of an MoE.
        groups: layer -> group of each expert, from 0; every layer has the same number of groups.
        loads: layer -> weight of each expert in the mean, such as its load; None: all equal.  An expert without load
            has weight 0; a group in which no expert has a load is refused.
    Returns params, config; a dense model if there is one group.
    Raises ValueError for fewer groups than top_k, except one group; and if the group numbers have gaps.
    """
    model.check_params(params, config)
    structured.check_experts(config, np.ones(config.n_experts, bool))
    fields.check(config, "n_groups", config.n_groups == 1, "must be 1: a model with groups of experts cannot be merged")
    for argument, value in (("groups", groups), ("loads", loads or {})):
        require.mapping(argument, value)
    groups = {i: require.array(f"groups of layer {i}", group, kinds="iu", ndim=1) for i, group in groups.items()}
    n_merged = {len(set(groups.get(i, np.zeros(0)).tolist())) for i in config.moe_layers}
    if not config.moe_layers or len(n_merged) != 1 or 0 in n_merged:
        raise ValueError(f"groups have from {min(n_merged, default=0)} to {max(n_merged, default=0)} experts left in a "
                         "layer: every MoE layer must have the same number")
    n, new = n_merged.pop(), dict(params)
    fields.check(config, "router", n > 1 or config.router == "softmax_topk", "the only expert's gate would not be 1")
    for i in config.moe_layers:
        share_EG = _shares(i, groups[i], n, (loads or {}).get(i, np.ones(config.n_experts)))
        for name, array in parameters.scope(params, f"layers.{i}.moe.").items():
            letters = name.rpartition("_")[2]
            if "E" in letters:
                axis = letters.index("E")
                merged = np.moveaxis(np.tensordot(array, share_EG, (axis, 0)), -1, axis)
                new[f"layers.{i}.moe.{name}"] = merged.astype(array.dtype)
    return new, replace(config, n_experts=n, **dict(top_k=1, renormalize=None) if n == 1 else {},
                        **dict(d_dense=config.dense_width) if "dense" in config.layer_kinds else {})


def _shares(layer, group_E, n, weight_E):
    """The share of each expert in each merged expert: columns sum to 1."""
    fields.require(np.all(np.asarray(weight_E, float) >= 0), f"loads of layer {layer}", weight_E, "must be 0 or more")
    fits = group_E.shape == np.shape(weight_E) and set(group_E.tolist()) == set(range(n))
    fields.require(fits, f"groups of layer {layer}", group_E.tolist(),
                   f"must give each of {len(weight_E)} experts a group number, from 0 without a gap")
    share = (group_E[:, None] == np.arange(n)) * np.asarray(weight_E, float)[:, None]
    lost = np.flatnonzero(share.sum(axis=0) <= 0).tolist()
    if lost:
        raise ValueError(f"layer {layer}: no token reached any expert of the groups {lost}, so they have no mean; give "
                         "more text, or other groups")
    return share / share.sum(axis=0)


def similar_groups(weights, load_E, n_groups):
    """Groups for `merge`: the busiest experts lead, and each other one joins the leader with the most similar column.

    weights: name -> array, of one MoE layer.  load_E: of its Routing; ties prefer the lowest number.
    A column of zeros is similar to none.  Returns group_E, the number of each expert's group.
    """
    w_DE = require.array("w_router_DE", require.mapping("weights", weights).get("w_router_DE"), ndim=2)
    require.whole("n_groups", n_groups, 1, w_DE.shape[1])
    require.array("load_E", load_E, ndim=1)
    length_E = np.linalg.norm(w_DE, axis=0)
    unit_DE = w_DE / np.where(length_E > 0, length_E, 1)
    leaders = np.sort(np.argsort(-np.asarray(load_E, float), kind="stable")[:n_groups])
    similar = unit_DE.T @ unit_DE[:, leaders]
    similar[leaders, np.arange(n_groups)] = np.inf
    return similar.argmax(axis=1)
