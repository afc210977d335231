"""Between dense and MoE: each expert a copy of a dense model's network, or a part of its neurons.

    upcycle     copies: more parameters, at first the same function
    moefy       parts: no more parameters, and only some of them per token
"""

import math
from dataclasses import replace

import numpy as np

from minimoe import model, parameters, require
from minimoe.config import fields
from minimoe.moe import dense, experts, linear_assignment
from minimoe.sparsity import structured

ROUNDS = 20
"""Rounds of balanced k-means at most."""


def upcycle(params, config, n_experts, top_k, seed, noise=0.0, dropped=0.0):
    """An MoE whose experts are copies of a dense model's network, with a new router.

                                                        [Komatsuzaki 2022, arXiv:2212.05055; renormalized gates]
    The gates of a token sum to 1, so its experts, which are equal, put out what the dense network did: the logits are
    the dense model's.  They are whatever the gates are, so the task's gradient of the router is exactly 0 until the
    experts differ.  What makes them differ is that each gets different tokens from the first step on, and so different
    gradients, which add up to the dense network's; the router meanwhile follows the balance loss alone.  Two options
    break the symmetry at once, and with it the equality:

    Args:
        params: name -> array, of a dense model: all layers dense, or n_experts = 1.
        config: ModelConfig of it.
        n_experts: copies.
        top_k: experts per token, 2 or more.
        seed: of the router, and of what the options draw.
        noise: spread of what is added to each copy, as a share of the spread of its weights.
        dropped: share of each copy's neurons, its own choice, drawn again with the mean and the spread that these
            neurons' weights have                       [Drop-Upcycling, arXiv:2502.19261, sec. 3]
    Returns params, config, without capacity: a dropped token would lose its whole network.
    Raises ValueError for a model that has experts already, or top_k = 1, whose raw gate p would scale the output.
    """
    n_experts, top_k = _counts(n_experts, top_k, seed)
    fields.require(top_k >= 2, "top_k", top_k,
                   "must be 2 or more: one gate is a raw probability p, and p times the network is a different model")
    require.number("noise", noise)
    fields.require(require.number("dropped", dropped) < 1, "dropped", dropped, "must be in [0, 1)")
    networks, found = _networks(params, config), {}
    for i, network in networks.items():
        rng = np.random.default_rng([seed, i])
        found[i] = {name: np.repeat(array[None], n_experts, axis=0) for name, array in network.items()}
        for e in range(n_experts):
            _break_symmetry({name: stack[e] for name, stack in found[i].items()}, noise, dropped, rng)
    width = len(next(iter(networks.values()))[experts.NAMES[2]])
    return _with_experts(params, config, found, seed, n_experts=n_experts, top_k=top_k, d_hidden=width)


def _counts(n_experts, top_k, seed):
    """(n_experts, top_k) as a configuration has them.  Raises ValueError unless all are whole numbers."""
    require.whole("seed", seed)
    return int(require.whole("n_experts", n_experts, 1)), int(require.whole("top_k", top_k, 1))


def _networks(params, config):
    """Layer -> the one SwiGLU network that it has, name as of an expert's -> matrix; of the layers to be routed.

    Raises ValueError if there are experts to choose from.
    """
    model.check_params(params, config)
    if config.moe_layers:
        fields.check(config, "n_experts", config.n_experts == 1, "the model is an MoE already; it must be dense")
        fields.check(config, "router", config.router == "softmax_topk", "the one expert's gate must be a softmax's, 1")
        return {i: {name: params[f"layers.{i}.moe.{name}"][0] for name in experts.NAMES} for i in config.moe_layers}
    fields.check(config, "router", set(config.layer_kinds) == {"dense"}, "its layers are no dense networks")
    return {i: {name: params[f"layers.{i}.dense.{own}"] for name, own in zip(experts.NAMES, dense.NAMES, strict=True)}
            for i in range(config.n_layers)}


def _with_experts(params, config, networks, seed, **changed):
    """The model with these experts in the place of its networks, and new routers.  Returns params, config."""
    if not config.moe_layers:
        changed |= dict(first_dense_layers=0, moe_every=1, n_shared_experts=0, d_dense=None)
    elif "dense" in config.layer_kinds:
        changed |= dict(d_dense=config.dense_width)
    config = replace(config, router="softmax_topk", renormalize=None, capacity_factor=None, eval_capacity_factor=None,
                     **changed)
    dtype = params["embed.w_VD"].dtype
    new = dict(params)
    for i, network in networks.items():
        names = [name for name in params if name.startswith(f"layers.{i}.dense.")]
        new |= {f"layers.{i}.moe.gain_D": new[f"layers.{i}.dense.gain_D"]} if names else {}
        new |= parameters.unscope(network, f"layers.{i}.moe.")
    wanted = model.weights(config)
    routers = {name: weight for name, weight in wanted.items() if name.endswith("moe.w_router_DE")}
    new |= parameters.init(routers, seed, dtype)
    return {name: np.array(new[name], dtype) for name in wanted}, config


def _break_symmetry(expert, noise, dropped, rng):
    """Change the three matrices of one expert in place."""
    n_dropped = math.floor(dropped * expert[experts.NAMES[2]].shape[0])
    lost = rng.permutation(expert[experts.NAMES[2]].shape[0])[:n_dropped]
    for name in experts.NAMES:
        w = expert[name]
        if noise:
            w += noise * w.std() * rng.standard_normal(w.shape)
        own = np.s_[lost] if name == experts.NAMES[2] else np.s_[:, lost]
        if n_dropped:
            w[own] = w[own].mean() + w[own].std() * rng.standard_normal(w[own].shape)


def moefy(params, config, n_experts, top_k, tokens_BS, seed, spread=0.01):
    """An MoE whose experts are the parts of a dense model's networks, each neuron in one: MoEfication.

    Neurons with similar inputs go together, as many in each expert (k-means with balanced clusters, by the directions
    of their weights).  The router is the linear map that best predicts how large each expert's output is, on the
    calibration tokens.  Its scores only choose: their spread is small, so the gates are next to equal, and w_down is
    scaled so that a gate times it is what it was.  With top_k = n_experts the model is the dense one, up to the spread.

                                                        [Zhang 2022, arXiv:2110.01786, sec. 3, for SwiGLU]
    Args:
        params: name -> array, of a dense model, see `upcycle`.
        config: ModelConfig of it.
        n_experts: parts; must divide the width of the network.
        top_k: experts per token.
        tokens_BS: calibration text.
        seed: of the first centres.
        spread: standard deviation of the router's scores.
    Returns params, config.  Raises ValueError for a model that has experts already, or a width that does not divide.
    """
    n_experts, top_k = _counts(n_experts, top_k, seed)
    networks, found = _networks(params, config), {}
    F = len(next(iter(networks.values()))[experts.NAMES[2]])
    fields.require(F % n_experts == 0, "n_experts", n_experts, f"must divide the {F} neurons of a network")
    if not require.number("spread", spread):
        require.fail("spread", spread, "above 0, or the router could not choose")
    tokens_BS, _ = model.check_inputs(params, config, tokens_BS, None)
    _, cache = model.model_forward(params, tokens_BS, config)
    scores = {}
    for i, network in networks.items():
        w_gate, w_up, w_down = (network[name] for name in experts.NAMES)
        part_F = balanced_clusters(np.concatenate([w_gate, w_up]).T, n_experts, np.random.default_rng([seed, i]))
        order = np.argsort(part_F, kind="stable").reshape(n_experts, -1)
        stacks = w_gate.T[order].swapaxes(1, 2), w_up.T[order].swapaxes(1, 2), w_down[order]
        found[i] = dict(zip(experts.NAMES, stacks, strict=True))
        norm = cache.blocks[i].feed_forward_norm
        scores[i] = fitted_router(norm.unit_TD * norm.gain_D, found[i], spread)
        found[i][experts.NAMES[2]] = stacks[2] * (top_k if top_k > 1 else n_experts)  # gates are 1/K; a raw one, 1/E
    new, config = _with_experts(params, config, found, seed, n_experts=n_experts, top_k=top_k,
                                d_hidden=F // n_experts)
    return new | {f"layers.{i}.moe.w_router_DE": w.astype(new["embed.w_VD"].dtype) for i, w in scores.items()}, config


def balanced_clusters(rows, n_clusters, rng):
    """Put rows of similar direction together, as many in each cluster: k-means with the best balanced assignment.

    rows: one per neuron.  Returns the cluster of each.
    """
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    unit = rows / np.where(length > 0, length, 1)
    centres, cluster = unit[rng.permutation(len(unit))[:n_clusters]], None
    for _ in range(ROUNDS):
        before, cluster = cluster, linear_assignment.balanced_assignment(unit @ centres.T)
        if before is not None and (before == cluster).all():
            break
        centres = np.stack([unit[cluster == c].mean(axis=0) for c in range(n_clusters)])
    return cluster


def fitted_router(x_TD, weights, spread):
    """The least-squares router: its scores fit the length of each expert's output, less the mean of all experts.

    spread: standard deviation that the scores are scaled to.  Returns w_router_DE.
    """
    length_TE = np.linalg.norm(structured.every_output(x_TD, weights), axis=2).T
    wanted_TE = length_TE - length_TE.mean(axis=1, keepdims=True)
    w_router_DE = np.linalg.lstsq(x_TD, wanted_TE, rcond=None)[0]
    found = (x_TD @ w_router_DE).std()
    return w_router_DE * (spread / found if found > 0 else 0)
