"""Experts merged: each group becomes its mean; all in one group are a dense model."""

from dataclasses import replace

import numpy as np

from minimoe import model, parameters, require
from minimoe.config import fields
from minimoe.sparsity import structured


def merge(params, config, groups, loads=None):
    """A model in which each group of experts is one, their mean; and so is their column of the router.

                                                        [M-SMoE, arXiv:2310.01334, sec. 3, without permuted neurons]
    Args:
        params: name -> array, of the config.
        config: ModelConfig of an MoE.
        groups: layer -> group of each expert, from 0; as many groups in each layer.
        loads: layer -> weight of each expert in the mean, such as its load; None: all the same.  An expert without load
            counts as little, and its group keeps the others'; a group without any is refused.
    Returns params, config.  All in one group: a dense model.
    Raises ValueError for fewer groups than top_k, but one; or for groups that are not numbered without a gap.
    """
    model.check_params(params, config)
    structured.check_experts(config, np.ones(config.n_experts, bool))
    fields.check(config, "n_groups", config.n_groups == 1, "groups of experts that merge must be one")
    for argument, value in (("groups", groups), ("loads", loads or {})):
        require.mapping(argument, value)
    n_merged = {len(set(np.asarray(groups.get(i, ())).tolist())) for i in config.moe_layers}
    if not config.moe_layers or len(n_merged) != 1 or 0 in n_merged:
        raise ValueError(f"groups have from {min(n_merged, default=0)} to {max(n_merged, default=0)} experts left in a "
                         "layer: every MoE layer must have as many")
    n, new = n_merged.pop(), dict(params)
    fields.check(config, "router", n > 1 or config.router == "softmax_topk", "the one expert's gate would not be 1")
    for i in config.moe_layers:
        share_EG = _shares(i, np.asarray(groups[i]), n, (loads or {}).get(i, np.ones(config.n_experts)))
        for name, array in parameters.scope(params, f"layers.{i}.moe.").items():
            letters = name.rpartition("_")[2]
            if "E" in letters:
                axis = letters.index("E")
                merged = np.moveaxis(np.tensordot(array, share_EG, (axis, 0)), -1, axis)
                new[f"layers.{i}.moe.{name}"] = merged.astype(array.dtype)
    return new, replace(config, n_experts=n, **dict(top_k=1, renormalize=None) if n == 1 else {},
                        **dict(d_dense=config.dense_width) if "dense" in config.layer_kinds else {})


def _shares(layer, group_E, n, weight_E):
    """The share of each expert in each merged one: columns sum to 1."""
    fields.require(np.all(np.asarray(weight_E, float) >= 0), f"loads of layer {layer}", weight_E, "must be 0 or more")
    fits = group_E.shape == np.shape(weight_E) and set(group_E.tolist()) == set(range(n))
    fields.require(fits, f"groups of layer {layer}", group_E.tolist(),
                   f"must number a group for each of {len(weight_E)} experts, from 0 without a gap")
    share = (group_E[:, None] == np.arange(n)) * np.asarray(weight_E, float)[:, None]
    lost = np.flatnonzero(share.sum(axis=0) <= 0).tolist()
    if lost:
        raise ValueError(f"layer {layer}: no token reached any expert of the groups {lost}, so they have no mean; give "
                         "more text, or other groups")
    return share / share.sum(axis=0)


def similar_groups(weights, load_E, n_groups):
    """Groups for `merge`: the most loaded experts lead, each other one joins the leader with the most similar column.

    weights: name -> array, of one MoE layer.  load_E: of its Routing; equal loads: the lowest number leads.
    A column of zeros is like none.  Returns group_E, the number of each expert's group.
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
