"""From a dense model to an MoE: each expert is a copy of the dense network, or a part of its neurons.

    upcycle     copies: more parameters, and at first the same function
    moefy       parts: no additional parameters, and only some of them are used per token
"""

import math
from dataclasses import replace

import numpy as np

from minimoe import model, parameters, require
from minimoe.config import fields
from minimoe.moe import dense, experts, linear_assignment
from minimoe.sparsity import structured

ROUNDS = 20
"""Largest number of rounds of balanced k-means."""


def upcycle(params, config, n_experts, top_k, seed, noise=0.0, dropped=0.0):
    """An MoE whose experts are copies of a dense model's feed-forward network, with a new router.

                                                        [Komatsuzaki 2022, arXiv:2212.05055; renormalized gates]
    The gates of a token sum to 1 and its experts are equal, so they compute the output of the dense network, and the
    logits are those of the dense model.  This holds for any gates, so the router's gradient from the task is exactly 0
    until the experts differ.  They begin to differ in the first step, since each gets different tokens and so different
    gradients, which sum to that of the dense network.  Meanwhile the router follows the balance loss alone.  Two
    options break the symmetry immediately, and with it the equality:

    Args:
        params: name -> array, of a dense model: all layers dense, or n_experts = 1.
        config: its ModelConfig.
        n_experts: number of copies.
        top_k: experts per token, 2 or more.
        seed: seed of the router, and of the options' random numbers.
        noise: spread of the noise on each copy, as a share of the spread of its weights.
        dropped: share of each copy's neurons, chosen separately, that are drawn again with the mean and the spread of
            these neurons' weights                      [Drop-Upcycling, arXiv:2502.19261, sec. 3]
    Returns params, config, without capacity: a dropped token would lose its whole feed-forward network.
    Raises ValueError for a model that already has experts, or top_k = 1, whose raw gate p would scale the output.
    """
    n_experts, top_k = _counts(n_experts, top_k, seed)
    fields.require(top_k >= 2, "top_k", top_k,
                   "must be 2 or more: a single gate is a raw probability p, and p times the network is different")
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
    """(n_experts, top_k) as plain integers.  Raises ValueError unless all are whole numbers."""
    require.whole("seed", seed)
    return int(require.whole("n_experts", n_experts, 1)), int(require.whole("top_k", top_k, 1))


def _networks(params, config):
    """Layer -> its only SwiGLU network, a dict of an expert's names -> matrix; for the layers to be routed.

    Raises ValueError if there are several experts.
    """
    model.check_params(params, config)
    if config.moe_layers:
        fields.check(config, "n_experts", config.n_experts == 1, "the model is already an MoE; it must be dense")
        fields.check(config, "router", config.router == "softmax_topk", "the only expert's gate must be 1, a softmax's")
        return {i: {name: params[f"layers.{i}.moe.{name}"][0] for name in experts.NAMES} for i in config.moe_layers}
    fields.check(config, "router", set(config.layer_kinds) == {"dense"}, "its layers are not dense networks")
    return {i: {name: params[f"layers.{i}.dense.{own}"] for name, own in zip(experts.NAMES, dense.NAMES, strict=True)}
            for i in range(config.n_layers)}


def _with_experts(params, config, networks, seed, **changed):
    """The model with these experts in place of its networks, and new routers.  Returns params, config."""
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
    """MoEfication: an MoE whose experts are parts of a dense model's networks, with each neuron in one expert.

    Neurons with similar input weights are grouped, equally many in each expert (k-means with balanced clusters, by the
    directions of the weights).  The router is the linear map that best predicts the size of each expert's output on the
    calibration tokens.  Its scores only choose: their spread is small, so the gates are nearly equal, and w_down is
    scaled to compensate for them.  With top_k = n_experts the model is the dense one, up to the spread.

                                                        [Zhang 2022, arXiv:2110.01786, sec. 3, for SwiGLU]
    Args:
        params: name -> array, of a dense model, see `upcycle`.
        config: its ModelConfig.
        n_experts: number of parts; must divide the width of the network.
        top_k: experts per token.
        tokens_BS: calibration text.
        seed: seed of the initial cluster centers.
        spread: standard deviation of the router's scores.
    Returns params, config.  Raises ValueError for a model that already has experts, or a width that is not divisible.
    """
    n_experts, top_k = _counts(n_experts, top_k, seed)
    networks, found = _networks(params, config), {}
    F = len(next(iter(networks.values()))[experts.NAMES[2]])
    fields.require(F % n_experts == 0, "n_experts", n_experts, f"must divide the {F} neurons of a network")
    if not require.number("spread", spread):
        require.fail("spread", spread, "above 0, otherwise the router cannot choose")
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
    """Group rows of similar direction, equally many in each cluster: k-means with the best balanced assignment.

    rows: one per neuron.  Returns the cluster of each.
    """
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    unit = rows / np.where(length > 0, length, 1)
    centers, cluster = unit[rng.permutation(len(unit))[:n_clusters]], None
    for _ in range(ROUNDS):
        before, cluster = cluster, linear_assignment.balanced_assignment(unit @ centers.T)
        if before is not None and (before == cluster).all():
            break
        centers = np.stack([unit[cluster == c].mean(axis=0) for c in range(n_clusters)])
    return cluster


def fitted_router(x_TD, weights, spread):
    """The least-squares router: its scores fit the norm of each expert's output, minus the mean over all experts.

    spread: standard deviation to which the scores are scaled.  Returns w_router_DE.
    """
    length_TE = np.linalg.norm(structured.every_output(x_TD, weights), axis=2).T
    wanted_TE = length_TE - length_TE.mean(axis=1, keepdims=True)
    w_router_DE = np.linalg.lstsq(x_TD, wanted_TE, rcond=None)[0]
    found = (x_TD @ w_router_DE).std()
    return w_router_DE * (spread / found if found > 0 else 0)
