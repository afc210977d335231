"""The checks of this project's gradients: every operation, the layer in every setting, whole models, and flips."""

import math
from dataclasses import replace

import numpy as np

from minimoe import model
from minimoe import params as parameters
from minimoe.config import ModelConfig
from minimoe.gradcheck import numeric
from minimoe.moe import feed_forward, losses
from minimoe.moe import tokens as token_records
from minimoe.names import DROP_ORDERS, LOSSES, ROUTERS
from minimoe.nn import attention, ops

SMALL = ModelConfig(vocab_size=7, d_model=16, n_layers=2, n_heads=4, n_kv_heads=2, d_hidden=5, n_experts=3, top_k=2,
                    max_sequence=9, balance_coef=0.5, z_coef=0.3)
"""A model with all that a model has: two layers, grouped heads with two wavelengths each, coefficients large enough to
see.  Small enough to check every number."""


def random_params(config, seed=0):
    """float64 parameters that hide nothing: no gain is 1, and no two experts or tokens are alike."""
    rng = np.random.default_rng(seed)
    start = model.init_params(config, seed, np.float64)
    return {name: array + 0.3 * rng.normal(size=array.shape) for name, array in start.items()}


def check_pair(title, forward, backward, arrays):
    """Check one forward/backward pair.

    forward: called with the arrays in order, returns (y, cache).  backward: of its shape, returns gradients in order.
    The objective is (R * y).sum() with random R: a plain sum would hide that the softmax sums to one.
    """
    output, cache = forward(*arrays.values())
    weight = np.random.default_rng(1).normal(size=np.shape(output))
    grads = backward(weight, cache)
    grads = dict(zip(arrays, grads if isinstance(grads, tuple) else (grads,), strict=True))
    return numeric.compare(title, lambda a: (weight * forward(*a.values())[0]).sum(), arrays, grads)


def check_ops():
    """A list of Reports, one for each operation in nn/."""
    rng = np.random.default_rng(0)
    T, D, E, F, V = 11, 5, 4, 6, 7
    x_TD, dx = rng.normal(size=(T, D)), {"x_TD": rng.normal(size=(T, D))}
    w_DF, w_FD = rng.normal(size=(D, F)), rng.normal(size=(F, D))
    tokens_T, weight_T = rng.integers(0, V - 1, T), rng.dirichlet(np.ones(T))
    score, z = {"x_TE": rng.normal(size=(T, E))}, {"z_TE": 2 * rng.normal(size=(T, E))}
    gate = {"gate_TF": rng.normal(size=(T, F)), "up_TF": rng.normal(size=(T, F))}
    swiglu = {"x_TD": x_TD, "w_gate_DF": w_DF, "w_up_DF": rng.normal(size=(D, F)), "w_down_FD": w_FD}
    return [
        check_pair("linear", ops.linear_forward, ops.linear_backward, {"x_TD": x_TD, "w_DF": w_DF}),
        check_pair("softmax", ops.softmax_forward, ops.softmax_backward, score),
        check_pair("sigmoid", ops.sigmoid_forward, ops.sigmoid_backward, score),
        check_pair("softplus", ops.softplus_forward, ops.softplus_backward, score),
        check_pair("normal CDF", ops.normal_cdf_forward, ops.normal_cdf_backward, z),
        check_pair("RMSNorm", lambda x, gain: ops.rmsnorm_forward(x, gain, 1e-5), ops.rmsnorm_backward,
                   dx | {"gain_D": rng.normal(size=D)}),
        check_pair("SiLU gate", ops.silu_gate_forward, ops.silu_gate_backward, gate),
        check_pair("SwiGLU", ops.swiglu_forward, ops.swiglu_backward, swiglu),
        check_pair("embedding", lambda w: ops.embedding_forward(tokens_T, w), ops.embedding_backward,
                   {"w_VD": rng.normal(size=(V, D))}),
        check_pair("cross-entropy", lambda logit: ops.cross_entropy_forward(logit, tokens_T, weight_T),
                   ops.cross_entropy_backward, {"logit_TV": rng.normal(size=(T, V))}),
        *_check_attention(rng),
    ]


def _check_attention(rng):
    B, S, D, H, G, P = 2, 5, 7, 6, 3, 4
    q_BHSP, k_BGMP, v_BGMP = (rng.normal(size=(B, heads, S, P)) for heads in (H, G, G))
    table = attention.rope_table(np.arange(S), P, 100.0, np.float64)
    names = "x_BSD", "w_q_DHP", "w_k_DGP", "w_v_DGP", "w_o_HPD"
    shapes = (B, S, D), (D, H, P), (D, G, P), (D, G, P), (H, P, D)
    arrays = {name: rng.normal(size=shape) for name, shape in zip(names, shapes, strict=True)}

    def forward(x_BSD, *weights):
        return attention.attention_forward(x_BSD, dict(zip(names[1:], weights, strict=True)), 100.0)

    def backward(dy_BSD, cache):
        dx_BSD, dweights = attention.attention_backward(dy_BSD, cache)
        return dx_BSD, *(dweights[name] for name in names[1:])

    return [
        check_pair("rotary positions", lambda x: attention.rope_forward(x, *table), attention.rope_backward,
                   {"x_BHSP": q_BHSP}),
        check_pair("attend", attention.attend_forward, attention.attend_backward,
                   {"q_BHSP": q_BHSP, "k_BGMP": k_BGMP, "v_BGMP": v_BGMP}),
        check_pair("split heads", attention.split_heads_forward, attention.split_heads_backward,
                   {name: arrays[name] for name in names[:2]}),
        check_pair("merge heads", attention.merge_heads_forward, attention.merge_heads_backward,
                   {"mix_BHSP": q_BHSP, "w_o_HPD": arrays["w_o_HPD"]}),
        check_pair("attention", forward, backward, arrays),
    ]


ROOM = {"dropless": dict(capacity_factor=None)} | {
    f"drop by {order}": dict(capacity_factor=0.6, drop_order=order) for order in DROP_ORDERS}
"""Name -> fields of every way to limit the experts."""


def layer_cases():
    """Name -> ModelConfig of every way that a MoE layer can be set up: router x gates and K x capacity and drop order;
    and each option of a router or a layer."""
    base = dict(vocab_size=7, d_model=10, n_heads=1, n_layers=1, d_hidden=6, n_experts=4)
    cases = {}
    for name, router in ROUTERS.items():
        choices = {"K=1": dict(top_k=1), "K=2": dict(top_k=2), "K=E": dict(top_k=4)}
        if router.top_k:
            choices = {f"K={router.top_k}": dict(top_k=router.top_k)}
        if "renormalize" in router.options:
            choices |= {f"{k}, raw": fields | dict(renormalize=False) for k, fields in choices.items()
                        if fields["top_k"] > 1}
        room = {"": {}} if router.soft else ROOM
        cases |= {", ".join(filter(None, (name, k, r))): ModelConfig(**base, router=name, **choices[k], **room[r])
                  for k in choices for r in room}
    options = {
        "switch, without jitter": dict(router="switch", top_k=1, jitter=0),
        "sigmoid_bias, 1 group of 2": dict(router="sigmoid_bias", n_groups=2, top_groups=1, gate_scale=2.5),
        "softmax_topk, 2 shared experts": dict(n_shared_experts=2, capacity_factor=0.6),
        "dense": dict(first_dense_layers=1, d_dense=7),
    }
    return cases | {name: ModelConfig(**base, **fields) for name, fields in options.items()}


OBJECTIVES = {"task": {"task": 1.0}} | {name: {name: 1.0} for name in LOSSES} | {
    "all together": {"task": 1.0} | {name: 0.3 + 0.1 * i for i, name in enumerate(LOSSES)}}
"""Name -> weights of (R * y).sum(), the task, and of the auxiliary losses."""


def objectives_of(config):
    """The names of the OBJECTIVES of a layer: no auxiliary loss without a router, no load loss without noise."""
    if not config.moe_layers:
        return ["task"]
    return [name for name in OBJECTIVES if name != "load" or config.router == "noisy_topk"]


def check_layer(config, objective="all together", seed=0, n_tokens=11, one_by_one=False):
    """Check all parameters and the input of one layer, in training, with live routing.

    objective: a name of OBJECTIVES; of its losses those that make sense.  one_by_one: step every number by itself; else
    along random directions, which is much faster.  Two sequences, with padding at the end of the second.  Returns a
    Report whose notes say how many assignments were dropped.
    """
    rng = np.random.default_rng(seed)
    kind, possible = config.layer_kinds[0], objectives_of(config)
    task = OBJECTIVES[objective].get("task", 0.0)
    coefs = {name: coef for name, coef in OBJECTIVES[objective].items() if name in LOSSES and name in possible}
    n_devices = 2 if config.n_experts % 2 == 0 else config.n_experts
    config = replace(config, n_devices=n_devices, **{f"{name}_coef": coefs.get(name, 0.0) for name in LOSSES})
    tokens = token_records.of_batch(rng.integers(0, 7, (2, n_tokens // 2)), np.arange(n_tokens // 2) < [[9], [4]])
    arrays = {"x_TD": rng.normal(size=(len(tokens.mask_T), config.d_model))}
    shapes = feed_forward.weights(config, kind, 1.0, 1.0)
    arrays |= {name: rng.normal(size=w.shape) for name, w in shapes.items()}
    weight_TD = rng.normal(size=arrays["x_TD"].shape) * tokens.mask_T[:, None]

    def forward(arrays):
        weights = {name: array for name, array in arrays.items() if name != "x_TD"}
        out, cache = feed_forward.kind_forward(
            arrays["x_TD"], weights, config, kind, tokens, training=True, rng=np.random.default_rng(seed))
        values, losses_cache = losses.auxiliary_forward(out[1], config) if out[1] is not None else ({}, None)
        return *out, values, cache, losses_cache

    def value(arrays):
        y_TD, _, values, _, _ = forward(arrays)
        return task * (weight_TD * y_TD).sum() + sum(coef * values[name] for name, coef in coefs.items())

    _, routing, _, cache, losses_cache = forward(arrays)
    grad = None if routing is None else losses.auxiliary_backward(coefs, losses_cache)
    dx_TD, dweights = feed_forward.kind_backward(task * weight_TD, grad, cache)
    notes = []
    if routing is not None:
        notes.append(f"{int((~routing.kept_A).sum())} of {len(routing.kept_A)} assignments dropped")
    compare = numeric.compare if one_by_one else numeric.compare_directions
    return compare(f"{kind} layer, objective: {objective}", value, arrays, {"x_TD": dx_TD} | dweights, notes=notes)


def check_model(config=SMALL, seed=0, most=None):
    """Check every parameter of a whole model, for the objective with all its losses, in training, routing live.

    most: entries to check of each tensor; None checks all in a model of up to 5,000 parameters and else as many, in
    total, drawn at random.  Returns a Report.
    """
    params, batch = random_params(config, seed), random_batch(config, seed)
    if most is None and parameters.count(params) > 5000:
        most = math.ceil(5000 / len(params))
    _, grads = model.loss_and_grads(params, *batch, config, rng=np.random.default_rng(seed))
    parts = " + ".join(["ce", *(name for name, coef in config.loss_coefs.items() if coef > 0)])
    title = f"whole model, {parameters.count(params):,} parameters, objective: {parts}"
    return numeric.compare(title, _objective(config, batch, seed), params, grads, most=most)


def check_direction(config=SMALL, seed=0):
    """One random direction through all parameters at once: <gradient, u> against a central difference along u.

    Returns a Report of one row.  Live routing: a flip, which the notes count, makes the difference meaningless.
    """
    params, batch = random_params(config, seed), random_batch(config, seed)
    _, grads = model.loss_and_grads(params, *batch, config, rng=np.random.default_rng(seed))
    direction = {name: np.random.default_rng([seed, i]).normal(size=array.shape)
                 for i, (name, array) in enumerate(params.items())}
    routings = []

    def along(arrays):
        stepped = {name: array + arrays["step"][0] * direction[name] for name, array in params.items()}
        (losses_, routings_), _ = model.objective_forward(
            stepped, *batch, config, training=True, rng=np.random.default_rng(seed))
        routings.append(routings_)
        return losses_.total

    slope = sum((grads[name] * direction[name]).sum() for name in params)
    report = numeric.compare("whole model, one random direction", along, {"step": np.zeros(1)},
                             {"step": np.array([slope])}, numeric.central_difference, numeric.DIRECTION_TOLERANCE)
    return replace(report, notes=[f"{flips(*routings)} routing flips"])


def check_flips(config=SMALL, seed=0):
    """The student's check, central difference, on the router of the first layer: routing live, and routing frozen.

    The first token's last chosen expert is moved to within 1e-6 of the next best, as happens by chance in every large
    batch.  Returns two Reports; the notes of the live one count the entries whose steps changed a choice.
    """
    name = "layers.0.moe.w_router_DE"
    batch = random_batch(config, seed)
    params = _near_tie(random_params(config, seed), batch, config, name)
    rng = np.random.default_rng(seed)
    (_, routings), cache = model.objective_forward(params, *batch, config, training=True, rng=rng)
    grads = {name: model.objective_backward(1.0, cache)[name]}
    seen, central = [], (numeric.central_difference, numeric.CENTRAL_TOLERANCE)
    live = numeric.compare("router, central difference, live routing", _objective(config, batch, seed, seen=seen),
                           params, grads, *central)
    flipped = sum(flips(routings, a) + flips(routings, b) > 0 for a, b in zip(seen[::2], seen[1::2], strict=True))
    note = f"{flipped} of {params[name].size} steps changed a choice: a routing flip, not a wrong gradient"
    frozen = numeric.compare("router, central difference, frozen routing", _objective(config, batch, seed, routings),
                             params, grads, *central)
    return replace(live, notes=[note]), frozen


def flips(before, after):
    """Number of assignments that two lists of Routings, one a layer, decide differently: expert, or kept or not."""
    return sum(int(((a.expert_A != b.expert_A) | (a.kept_A != b.kept_A)).sum())
               for a, b in zip(before, after, strict=True))


def random_batch(config, seed=0):
    """tokens_BS and targets_BS of two random sequences of up to 9 tokens."""
    rng = np.random.default_rng([seed, 1])
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


def _near_tie(params, batch, config, name):
    """The parameters with the first token's K-th and next expert moved to almost the same score."""
    (_, routings), cache = model.objective_forward(params, *batch, config)
    logit_E, x_D = routings[0].logit_TE[0], cache[0].blocks[0].feed_forward_norm[0][0] * params["layers.0.moe.gain_D"]
    order_E = np.argsort(-logit_E, kind="stable")
    last, next_ = order_E[config.top_k - 1], order_E[config.top_k]
    w_router_DE = params[name].copy()
    w_router_DE[:, next_] += x_D * (logit_E[last] - logit_E[next_] - 1e-6) / (x_D @ x_D)
    return params | {name: w_router_DE}


def check_everything(config, say):
    """Check all that there is and `say` it: operations, the layer in every setting, a model of this config, flips.

    Returns whether every gradient is right.
    """
    reports = check_ops()
    say("\n\n".join(map(str, reports)))
    say("\nThe MoE layer, worst error of all its parameters and its input, for each objective:\n")
    say(f"{'':44}" + "".join(f"{name.replace('all ', ''):>11}" for name in OBJECTIVES))
    for name, case in layer_cases().items():
        row = {objective: check_layer(case, objective) for objective in objectives_of(case)}
        cells = ["" if o not in row else f"{row[o].worst:.1e}" if row[o].ok else "WRONG" for o in OBJECTIVES]
        say(f"{name:44}" + "".join(f"{cell:>11}" for cell in cells))
        reports += row.values()
    reports += [check_model(config), check_direction(config)]
    say(f"\n{reports[-2]}\n\n{reports[-1]}")
    live, frozen = check_flips()
    say("\nWhat central differences make of a token between two experts. With live routing they must come out WRONG, "
        f"since steps change the choice; that is why we use the complex step, which changes none:\n{live}\n{frozen}")
    reports.append(frozen)
    right = sum(report.ok for report in reports)
    say(f"\n{right} of {len(reports)} checks right, {sum(len(r.rows) for r in reports)} tensors, worst error of the "
        f"complex step {np.max([r.worst for r in reports if r.rows[0].tolerance == numeric.COMPLEX_TOLERANCE]):.1e}")
    return right == len(reports)
