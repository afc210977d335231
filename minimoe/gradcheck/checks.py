"""Checks of this project's gradients: every operation, and the layer in every setting."""

import copy
from dataclasses import replace

import numpy as np

from minimoe import require
from minimoe.config import ModelConfig
from minimoe.gradcheck import arguments, numeric
from minimoe.moe import capacity, feed_forward, losses, routers
from minimoe.moe.routing import Tokens
from minimoe.nn import attention, normal, ops


def check_pair(title, forward, backward, arrays):
    """Check one forward/backward pair.

    forward: called with the arrays in order, returns (y, cache).  backward: called with an array of the shape of y and
    the cache, returns gradients in order.  The objective is (R * y).sum() with random R: a plain sum would hide errors,
    since a softmax sums to one.  Whole numbers and masks, such as the indices of an embedding, may have no gradient;
    then they are not checked, and the backward may return gradients of the other arrays only.
    Returns a Report.  Raises ValueError if there are no arrays, or forward does not return two things.
    """
    kept = arguments.without_slope(arrays)
    arrays = arguments.real_arrays(arrays, [name for name in arrays if name not in kept])
    require.function("forward", forward)
    require.function("backward", backward)
    weight, grads, notes = _one_pass(forward, backward, arrays, kept)
    if any(name in grads for name in kept):  # the backward treats them as numbers
        arrays = arguments.real_arrays(arrays, grads.keys() & arrays.keys())
        weight, grads, notes = _one_pass(forward, backward, arrays, kept)
    return numeric.compare(title, lambda a: (weight * forward(*a.values())[0]).sum(), arrays, grads, notes=notes)


def _one_pass(forward, backward, arrays, kept):
    """The weights of the objective, the gradients by name, and notes on the backward.  kept: may lack a gradient."""
    result = forward(*(array.copy() for array in arrays.values()))
    if not isinstance(result, (tuple, list)) or len(result) != 2:
        raise ValueError(f"forward returned a {type(result).__name__}: must be two things, the output and the cache")
    weight = np.random.default_rng(1).normal(size=require.array("the output of forward", result[0]).shape)
    given = copy.copy(weight)
    returned, others = backward(given, result[1]), [name for name in arrays if name not in kept]
    grads = arguments.gradients_by_name(returned, others)
    if len(grads) > len(others):
        grads = arguments.gradients_by_name(returned, list(arrays))
    grads = {name: grad for name, grad in grads.items() if grad is not None or name not in kept}
    notes = [] if np.array_equal(given, weight) else ["The backward modifies its input gradient in place."]
    return weight, grads, notes


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
        check_pair("log of sigmoid", ops.log_sigmoid_forward, ops.log_sigmoid_backward, score),
        check_pair("softplus", ops.softplus_forward, ops.softplus_backward, score),
        check_pair("normal CDF", normal.normal_cdf_forward, normal.normal_cdf_backward, z),
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
        return attention.attention_forward(x_BSD, dict(zip(names[1:], weights, strict=True)), table)

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
    f"drop by {order}": dict(capacity_factor=0.6, drop_order=order) for order in capacity.ORDERS}
"""Name -> fields, for every kind of capacity limit."""


def layer_cases():
    """Name -> ModelConfig for every setting of an MoE layer: router x gates and K x capacity and drop order; and each
    option of a router or a layer."""
    base = dict(vocab_size=7, d_model=10, n_heads=1, n_layers=1, d_hidden=6, n_experts=4)
    cases = {}
    for name, page in routers.ROUTERS.items():
        facts = page.FACTS
        choices = {"K=1": dict(top_k=1), "K=2": dict(top_k=2), "K=E": dict(top_k=4)}
        if facts.top_k:
            choices = {f"K={facts.top_k}": dict(top_k=facts.top_k)}
        if "renormalize" in facts.options:
            choices |= {f"{k}, raw": fields | dict(renormalize=False) for k, fields in choices.items()
                        if fields["top_k"] > 1}
        room = {"": {}} if facts.soft else ROOM
        cases |= {", ".join(filter(None, (name, k, r))): ModelConfig(**base, router=name, **choices[k], **room[r])
                  for k in choices for r in room}
    options = {f"{name}, {setting}": dict(router=name, top_k=page.FACTS.top_k or 2) | fields
               for name, page in routers.ROUTERS.items() for setting, fields in page.FACTS.settings.items()} | {
        "softmax_topk, 2 shared experts": dict(n_shared_experts=2, capacity_factor=0.6),
        "softmax_topk, empty slots computed": dict(pad_experts=True, capacity_factor=0.6),
        "softmax_topk, slots of the busiest": dict(pad_experts=True),
        "dense": dict(first_dense_layers=1, d_dense=7),
    }
    return cases | {name: ModelConfig(**base, **fields) for name, fields in options.items()}


OBJECTIVES = {"task": {"task": 1.0}} | {name: {name: 1.0} for name in losses.LOSSES} | {
    "all together": {"task": 1.0} | {name: 0.3 + 0.1 * i for i, name in enumerate(losses.LOSSES)}}
"""Name -> weights of the task, (R * y).sum(), and of the auxiliary losses."""


def objectives_of(config):
    """The names of the OBJECTIVES that a layer has: no auxiliary loss without a router, no load loss without noise."""
    if not config.moe_layers:
        return ["task"]
    noisy = routers.ROUTERS[config.router].FACTS.has_chances
    return [name for name in OBJECTIVES if name != "load" or noisy]


def check_layer(config, objective="all together", seed=0, n_tokens=11, one_by_one=False):
    """Check all parameters and the input of one layer, in training, with live routing.

    objective: a name of OBJECTIVES; losses that the layer does not have are left out.  one_by_one: step every number on
    its own; otherwise along random directions, which is much faster.  The input is two sequences, with padding at the
    end of the second.  Returns a Report whose notes give the number of dropped assignments.
    """
    require.one_of("objective", objective, OBJECTIVES)
    require.whole("n_tokens", n_tokens, 2)
    require.record("config", config, ModelConfig)
    rng = np.random.default_rng(require.whole("seed", seed))
    kind, possible = config.layer_kinds[0], objectives_of(config)
    task = OBJECTIVES[objective].get("task", 0.0)
    coefs = {name: coef for name, coef in OBJECTIVES[objective].items() if name in losses.LOSSES and name in possible}
    n_devices = 2 if config.n_experts % 2 == 0 else config.n_experts
    config = replace(config, n_devices=n_devices, **{f"{name}_coef": coefs.get(name, 0.0) for name in losses.LOSSES})
    tokens = Tokens.of_batch(rng.integers(0, 7, (2, n_tokens // 2)), np.arange(n_tokens // 2) < [[9], [4]])
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
