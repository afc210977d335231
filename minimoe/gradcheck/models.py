"""Checks of whole models: every parameter, also with the batch in groups; one direction; and flips."""

import math
from dataclasses import replace

import numpy as np

from minimoe import batches, model, parameters, require
from minimoe.config import ModelConfig
from minimoe.gradcheck import numeric
from minimoe.moe import losses
from minimoe.moe.routing import Routing
from minimoe.nn import ops

SMALL = ModelConfig(vocab_size=7, d_model=16, n_layers=2, n_heads=4, n_kv_heads=2, d_hidden=5, n_experts=3, top_k=2,
                    max_sequence=9, balance_coef=0.5, z_coef=0.3)
"""A model with every feature: two layers, grouped heads with two wavelengths each, and coefficients that are large
enough to matter.  It is small enough to check every number."""


def random_params(config, seed=0):
    """float64 parameters that hide no error: no gain is 1, and no two experts or tokens are alike."""
    start = model.init_params(config, seed, np.float64)
    rng = np.random.default_rng(seed)
    return {name: array + 0.3 * rng.normal(size=array.shape) for name, array in start.items()}


def check_model(config=SMALL, seed=0, most=None, groups=1):
    """Check every parameter of a whole model, for the objective with all its losses, in training, routing live.

    most: entries to check of each tensor; None checks all in a model of up to 5,000 parameters, otherwise 5,000 in
    total, drawn at random.  groups: splits the two sequences into groups, each with its own capacity and balance.
    Returns a Report.
    """
    params, batch = random_params(config, seed), random_batch(config, seed)
    if most is None and parameters.count(params) > 5000:
        most = math.ceil(5000 / len(params))
    _, grads = batches.loss_and_grads(params, *batch, config, rng=np.random.default_rng(seed), groups=groups)
    parts = " + ".join(["ce", *(name for name, coef in config.loss_coefs.items() if coef > 0)])
    title = (f"whole model{f' in {groups} groups' if groups > 1 else ''}, {parameters.count(params):,} parameters, "
             f"objective: {parts}{', balance over all groups' if config.global_balance else ''}")
    return numeric.compare(title, _objective_in_groups(config, batch, seed, groups), params, grads, most=most)


def check_direction(config=SMALL, seed=0):
    """One random direction through all parameters at once: <gradient, u> against a central difference along u.

    Returns a Report of one row.  Routing is live: a flip makes the difference meaningless, so the notes count flips.
    """
    params, batch = random_params(config, seed), random_batch(config, seed)
    _, cache = model.objective_forward(params, *batch, config, training=True, rng=np.random.default_rng(seed))
    grads = model.objective_backward(1.0, cache)
    direction = {name: np.random.default_rng([seed, i]).normal(size=array.shape)
                 for i, (name, array) in enumerate(params.items())}
    routings = []
    total = _objective(config, batch, seed, seen=routings)

    def along(arrays):
        return total({name: array + arrays["step"][0] * direction[name] for name, array in params.items()})

    slope = sum((grads[name] * direction[name]).sum() for name in params)
    report = numeric.compare("whole model, one random direction", along, {"step": np.zeros(1)},
                             {"step": np.array([slope])}, numeric.central_difference, numeric.DIRECTION_TOLERANCE)
    return replace(report, notes=[f"{flips(*routings[-2:])} routing flips"])  # of the last two calls


def check_flips(config=SMALL, seed=0):
    """The textbook check, a central difference, on the router of the first layer, with live and with frozen routing.

    The first token's last chosen expert is moved to within 1e-6 of the next best, as happens by chance in every large
    batch.  Returns two Reports; the notes of the live one count the entries whose steps changed a choice.
    Raises ValueError if the first layer has no router with weights, or takes all experts.
    """
    name = "layers.0.moe.w_router_DE"
    batch = random_batch(config, seed)
    if name not in model.weights(config):
        raise ValueError(f"router = {config.router!r}: layer 0 must have a router with weights, to be moved to a tie")
    if config.top_k >= config.n_experts:
        raise ValueError(f"top_k = {config.top_k}: must be less than n_experts = {config.n_experts}, for a flip")
    params = _near_tie(random_params(config, seed), batch, config, name)
    rng = np.random.default_rng(seed)
    (_, routings), cache = model.objective_forward(params, *batch, config, training=True, rng=rng)
    grads = {name: model.objective_backward(1.0, cache)[name]}
    router = {name: params[name]}

    def of_router(total):
        return lambda arrays: total(params | arrays)

    seen, central = [], (numeric.central_difference, numeric.CENTRAL_TOLERANCE)
    live = numeric.compare("router, central difference, live routing",
                           of_router(_objective(config, batch, seed, seen=seen)), router, grads, *central)
    flipped = sum(flips(routings, a) + flips(routings, b) > 0 for a, b in zip(seen[::2], seen[1::2], strict=True))
    note = f"{flipped} of {params[name].size} steps changed a choice: a routing flip, not a wrong gradient"
    frozen = numeric.compare("router, central difference, frozen routing",
                             of_router(_objective(config, batch, seed, routings)), router, grads, *central)
    return replace(live, notes=[note]), frozen


def flips(before, after):
    """Number of assignments that two lists of Routings, one per layer, decide differently: expert, or kept or not."""
    before, after = require.sequence("before", before), require.sequence("after", after)
    for routing in (*before, *after):
        require.record("routing", routing, Routing)
    if len(before) != len(after):
        raise ValueError(f"before has {len(before)} Routings, after {len(after)}: must have the same number")
    return sum(int(((a.expert_A != b.expert_A) | (a.kept_A != b.kept_A)).sum())
               for a, b in zip(before, after, strict=True))


def random_batch(config, seed=0):
    """tokens_BS and targets_BS of two random sequences of up to 9 tokens."""
    require.record("config", config, ModelConfig)
    rng = np.random.default_rng([require.whole("seed", seed), 1])
    return tuple(rng.integers(0, config.vocab_size, (2, 2, min(config.max_sequence, 9))))


def _objective(config, batch, seed, replays=None, seen=None):
    """params -> total loss; `seen` collects the routings."""
    def total(params):
        (losses_, routings), _ = model.objective_forward(
            params, *batch, config, training=True, rng=np.random.default_rng(seed), replays=replays)
        if seen is not None:
            seen.append(routings)
        return losses_.total
    return total


def _objective_in_groups(config, batch, seed, groups):
    """params -> the cross-entropy of the whole batch plus the mean over its groups of the weighted auxiliary losses."""
    tokens_BS, targets_BS = batch
    weight_T = np.full(targets_BS.size, 1 / targets_BS.size)

    def total(params):
        rngs = batches.streams(np.random.default_rng(seed), groups)
        passed = [model.model_forward(params, part_BS, config, training=True, rng=rng)[0]
                  for part_BS, rng in zip(np.split(tokens_BS, groups), rngs, strict=True)]
        logit_TV = np.concatenate([logit_TV for logit_TV, _ in passed])
        result, _ = ops.cross_entropy_forward(logit_TV, targets_BS.ravel(), weight_T)
        for layer in zip(*(routings for _, routings in passed), strict=True):
            count_E = sum(losses.counted(routing, config) for routing in layer)
            loads, n_real = [count_E / count_E.sum()] if config.global_balance else None, targets_BS.size / groups
            for routing in layer:
                values, _ = losses.auxiliary_forward(routing, config, losses.Step(n_real, loads, n_real))
                auxiliary = sum(config.loss_coefs[name] * loss for name, loss in values.items())
                result += auxiliary / (len(config.moe_layers) * groups)
        return result
    return total


def _near_tie(params, batch, config, name):
    """The parameters, changed so that the first token's K-th and next expert have almost the same score."""
    (_, routings), cache = model.objective_forward(params, *batch, config)
    logit_E = routings[0].logit_TE[0]
    x_D = cache.model.blocks[0].feed_forward_norm.unit_TD[0] * params["layers.0.moe.gain_D"]
    order_E = np.argsort(-logit_E, kind="stable")
    last, next_ = order_E[config.top_k - 1], order_E[config.top_k]
    w_router_DE = params[name].copy()
    w_router_DE[:, next_] += x_D * (logit_E[last] - logit_E[next_] - 1e-6) / (x_D @ x_D)
    return params | {name: w_router_DE}
