"""The checks of this project's gradients: every operation, the layer in every setting, whole models, and flips."""

import math
from dataclasses import replace

import numpy as np

from minimoe import model
from minimoe import params as parameters
from minimoe.config import DROP_ORDERS, ModelConfig
from minimoe.gradcheck import numeric
from minimoe.moe import layer, losses
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
    gate = {"gate_TF": rng.normal(size=(T, F)), "up_TF": rng.normal(size=(T, F))}
    swiglu = {"x_TD": x_TD, "w_gate_DF": w_DF, "w_up_DF": rng.normal(size=(D, F)), "w_down_FD": w_FD}
    return [
        check_pair("linear", ops.linear_forward, ops.linear_backward, {"x_TD": x_TD, "w_DF": w_DF}),
        check_pair("softmax", ops.softmax_forward, ops.softmax_backward, {"x_TE": rng.normal(size=(T, E))}),
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


def layer_cases():
    """Name -> ModelConfig of every way that a MoE layer can be set up: capacity and drop order x gates and K."""
    gates = {"renormalised": dict(top_k=2), "raw": dict(top_k=2, renormalize=False), "K=1": dict(top_k=1),
             "K=E": dict(top_k=4)}
    room = {"dropless": dict(capacity_factor=None)}
    room |= {f"drop by {order}": dict(capacity_factor=0.6, drop_order=order) for order in DROP_ORDERS}
    base = ModelConfig(vocab_size=7, d_model=10, n_heads=1, n_layers=1, d_hidden=6, n_experts=4)
    return {f"{r}, {g}": replace(base, **room[r], **gates[g]) for r in room for g in gates}


OBJECTIVES = {"task": (1, 0, 0), "balance": (0, 1, 0), "z": (0, 0, 1), "all together": (1, 0.7, 0.3)}
"""Name -> weights of (R * y).sum(), the balance loss and the z-loss."""


def check_layer(config, objective="all together", seed=0, n_tokens=11):
    """Check every parameter and the input of one MoE layer, in training, with live routing.

    objective: a name of OBJECTIVES.  Returns a Report whose notes say how many assignments were dropped.
    """
    rng = np.random.default_rng(seed)
    arrays = {"x_TD": rng.normal(size=(n_tokens, config.d_model))}
    arrays |= {name: rng.normal(size=w.shape) for name, w in layer.weights(config, 1.0, 1.0).items()}
    weight_TD, mask_T = rng.normal(size=(n_tokens, config.d_model)), np.arange(n_tokens) != n_tokens - 1
    task, balance, z = OBJECTIVES[objective]

    def forward(arrays):
        weights = {name: array for name, array in arrays.items() if name != "x_TD"}
        (y_TD, routing), cache = layer.moe_forward(
            arrays["x_TD"], weights, config, mask_T, training=True, rng=np.random.default_rng(seed))
        return y_TD, routing, cache

    def value(arrays):
        y_TD, routing, _ = forward(arrays)
        return (task * (weight_TD * y_TD).sum() + balance * losses.balance_forward(routing)[0]
                + z * losses.z_forward(routing)[0])

    _, routing, cache = forward(arrays)
    dprob_TE = losses.balance_backward(balance, losses.balance_forward(routing)[1])
    dlogit_TE = losses.z_backward(z, losses.z_forward(routing)[1])
    dx_TD, dweights = layer.moe_backward(task * weight_TD, dprob_TE, dlogit_TE, cache)
    dropped = int((~routing.kept_A).sum())
    return numeric.compare(f"MoE layer, objective: {objective}", value, arrays, {"x_TD": dx_TD} | dweights,
                           notes=[f"{dropped} of {len(routing.kept_A)} assignments dropped"])


def check_model(config=SMALL, seed=0, most=None):
    """Check every parameter of a whole model, for the objective with all its losses, in training, routing live.

    most: entries to check of each tensor; None checks all in a model of up to 5,000 parameters and else as many, in
    total, drawn at random.  Returns a Report.
    """
    params, batch = random_params(config, seed), random_batch(config, seed)
    if most is None and parameters.count(params) > 5000:
        most = math.ceil(5000 / len(params))
    _, grads = model.loss_and_grads(params, *batch, config, rng=np.random.default_rng(seed))
    title = f"whole model, {parameters.count(params):,} parameters, objective: ce + balance + z"
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
    logit_E, x_D = routings[0].logit_TE[0], cache[1].blocks[0].moe_norm[0][0] * params["layers.0.moe.gain_D"]
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
    say(f"{'':34}" + "".join(f"{name:>14}" for name in OBJECTIVES))
    for name, case in layer_cases().items():
        row = [check_layer(case, objective) for objective in OBJECTIVES]
        say(f"{name:34}" + "".join(f"{r.worst:14.1e}" if r.ok else f"{'WRONG':>14}" for r in row))
        reports += row
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
