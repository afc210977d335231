"""The history of a run: its record of losses, routers and gradients, which figures and the doctor read.

A history is a dict of name -> list, in which all entries of a name have the same shape.  L is the number of layers that
have a router, and can be 0.
"""

import numpy as np

from minimoe import model, terminal
from minimoe.config import fields
from minimoe.moe import experts, routers, telemetry

PROBE = 256
"""Tokens of each domain whose experts are recorded at every evaluation: a share of them is known to about 3 %."""


def write(history, values, prefix=""):
    """Append each value to the list of its name."""
    for name, value in values.items():
        history.setdefault(prefix + name, []).append(value)


def losses(parts, routings):
    """Recorded at every step: means over the groups.

    parts: the Losses of each group.   routings: of each group of the last micro-batch, for the drops.
    """
    values = {"ce": np.mean([part.ce for part in parts]), "balance": np.mean([part.balance for part in parts]),
              "z": np.mean([part.z for part in parts]), "drop": np.mean([drop(group) for group in routings])}
    return values | {name: np.mean([part.auxiliary[name] for part in parts]) for name in parts[0].auxiliary}


def drop(routings):
    """Share of assignments dropped, the mean over layers; 0 without routers."""
    return np.mean([telemetry.drop_rate(routing) for routing in routings] or [0.0])


def routed(routings, train_config):
    """Recorded every `record_every` steps: what the routers did with a micro-batch, the mean over its groups.

    routings: of each group.   load [L, E], drop, entropy, margin, dead, logit [L]: see `telemetry.Summary`; dead
    experts are those that no group uses.   drop_position [L, S]: share dropped by position in the sequence.
    drop_sequence [L, B / groups]: by the sequence's place in its group, in which sequences queue for the same slots.
    """
    queue = train_config.batch // train_config.groups
    rows = [{name.split("_")[0]: value for name, value in telemetry.summarize(group)._asdict().items()} | {
        "drop_position": drop_position(group, train_config.sequence),
        "drop_sequence": _by_layer([telemetry.drop_by_label(r, r.tokens.sequence_T, queue) for r in group], queue)}
        for group in routings]
    means = {name: np.mean([row[name] for row in rows], axis=0) for name in rows[0]}
    return means | {"dead": np.array([np.sum(load_E == 0) for load_E in means["load"]])}


def drop_position(routings, length):
    """Share dropped by position in a sequence of that length, [L, S]."""
    return _by_layer([telemetry.drop_by_label(r, r.tokens.position_T, length) for r in routings], length)


def own_pulls(cache):
    """Gradients of each router's weights from the auxiliary losses of its own layer: L dicts.

    cache: ObjectiveCache of a group, as `batches.gradients` shows it.
    """
    _, pulls = model.losses_backward(1.0, cache.losses)
    layers = [block.feed_forward.cache for block in cache.model.blocks if block.feed_forward.kind == "moe"]
    return [layer.policy.backward(pull, layer.route)[1] for layer, pull in zip(layers, pulls, strict=True)]


def gradients(grads, pulls, config):
    """Recorded with `routed`: the norms of gradients in each layer, [L]; nothing if routers have no weights.

    grads: of the step.   pulls: `own_pulls` of each of its groups.
    grad_own: of the router's weights, from the auxiliary losses of its own layer.   grad_gates: the rest of the same
    gradient, which can only have come through the gates: from the task, and a little from the losses of later layers.
    grad_experts: of the weights of all experts.
    """
    policy = routers.POLICIES.get(config.router)
    names = list(policy.weights(config, 1.0)) if policy else []
    if not names:
        return {}
    rows = []
    for place, i in enumerate(config.moe_layers):
        own = [np.mean([group[place][name] for group in pulls], axis=0) for name in names]
        router, work = ([grads[f"layers.{i}.moe.{name}"] for name in part] for part in (names, experts.NAMES))
        rows.append((_length(own), _length([w - o for w, o in zip(router, own, strict=True)]), _length(work)))
    return dict(zip(("grad_own", "grad_gates", "grad_experts"), _by_layer(rows, 3).T, strict=True))


def counts(routings, domain, sizes):
    """Counted at an evaluation, for a batch of one domain: assignments with each label to each expert.

    sizes: how many values "token" (of the vocabulary), "position", "domain" and "expert" have.  Counts can be added.
    Returns a dict of label -> counts [L, values, E].
    """
    labels = {"token": lambda r: r.tokens.id_T, "position": lambda r: r.tokens.position_T,
              "domain": lambda r: np.full(r.n_tokens, domain)}
    return {name: _by_layer([telemetry.count_by_label(r, label(r), sizes[name]) for r in routings],
                            sizes[name], sizes["expert"]) for name, label in labels.items()}


def information(total):
    """Information of an assignment's expert about token, position and domain, [L], nats.  total: sum of `counts`."""
    return {f"information_{label}": np.array([telemetry.mutual_information(layer) for layer in count])
            for label, count in total.items()}


def probe(routings, n_experts):
    """The experts of a batch's first tokens, [L, tokens, bytes]: one bit per expert, packed by `numpy.packbits`."""
    chosen = [telemetry.chosen(routing)[:PROBE] for routing in routings]
    return np.packbits(np.array(chosen, bool).reshape(len(chosen), -1 if chosen else 0, n_experts), axis=2)


def describe_routers(history, layers=None):
    """What the router did at the last record of a run, layer by layer.

    layers: the numbers of the layers that have a router; None counts from 0.
    """
    entropy, margin, dead = (history[f"router_{name}"][-1] for name in ("entropy", "margin", "dead"))
    if len(entropy) == 0:
        return "No layer has a router that assigns tokens."
    n_experts = np.shape(history["router_load"][-1])[-1]
    head = terminal.fill(
        f"The router at step {history['router_step'][-1]} of {len(history['ce'])} (entropy: nats, from 0, certain, to "
        f"ln {n_experts} = {np.log(n_experts):.2f}, all experts alike; margin: the last chosen expert's probability "
        "minus that of the next one, 0 is a tie; dead: experts without a token)")
    rows = zip(layers or range(len(entropy)), entropy, margin, dead, strict=True)
    return "\n".join([head, *(f"  layer {i}: entropy {h:.2f}, margin {m:.3f}, dead {d}" for i, h, m, d in rows)])


def check(history, model_config, train_config, n_domains, step):
    """Raise ValueError unless arrays, by name, can be the history of a run after that many steps.

    Unknown names, such as those of other versions, may have entries of any shape.
    """
    shapes, steps = _shapes(model_config, train_config, n_domains), {"": range(1, step + 1)}
    for name in ("eval_step", "router_step"):
        steps[name.removesuffix("step")] = history.get(name, np.zeros(0, int))
    for name, array in history.items():
        kind = next((kind for kind in ("eval_", "router_") if name.startswith(kind)), "")
        right = array.dtype.kind in ("u" if name == "eval_experts" else "iu" if name.endswith("_step") else "iuf")
        length = array.ndim and len(array)
        # a run that an earlier version began has fewer entries of what that version did not record
        least = len(steps[kind]) if kind == "" or name == "eval_ce" else 1
        right = right and least <= length <= len(steps[kind])
        wanted = shapes.get(name, array.shape[1:])
        right = right and len(wanted) == array.ndim - 1 and all(n in (None, m) for n, m in zip(wanted, array.shape[1:],
                                                                                             strict=True))
        if right and name in ("ce", "eval_ce") and not np.isfinite(array).all():
            raise ValueError(f"history of {name!r} is not finite")
        if not right:
            raise ValueError(f"history of {name!r} has dtype {array.dtype} and shape {array.shape}: must be numbers, "
                             f"{len(steps[kind])} entries of shape {wanted}")
    for kind, array in steps.items():
        first = 0 if kind == "eval_" else 1  # a run that starts from given parameters is evaluated at step 0
        if len(array) and not (array[0] >= first and array[-1] <= step and (np.diff(array) > 0).all()):
            raise ValueError(f"history of '{kind}step' must increase, up to {step}")
    needed = {"ce", "balance", "drop", "seconds"} if step else set()
    missing = (needed | ({"eval_ce", "eval_step"} if step == train_config.n_steps else set())) - history.keys()
    if missing:
        raise ValueError(f"history has no {fields.listed(missing)}")


def _shapes(model_config, train_config, n_domains):
    """Name -> shape of an entry of a history; None is any length."""
    L, E, S = len(model_config.moe_layers), model_config.n_experts, train_config.sequence
    queue = train_config.batch // train_config.groups
    names = [f"router_{name}" for name in ("drop", "entropy", "margin", "dead", "logit", "grad_own", "grad_gates",
                                           "grad_experts")]
    names += [f"eval_information_{label}" for label in ("token", "position", "domain")]
    known = {name: (L,) for name in names} | {
        "router_load": (L, E), "router_drop_position": (L, S), "router_drop_sequence": (L, queue),
        "eval_load": (n_domains, L, E), "eval_drop_position": (L, S), "eval_experts": (L, None, -(-E // 8)),
        "eval_ce_domain": (n_domains,)}
    numbers = ("ce", "balance", "z", "drop", "grad_norm", "seconds", "router_step", "eval_step", "eval_ce", "eval_drop")
    return {name: () for name in numbers} | (known if L else {})


def _by_layer(rows, *shape):
    """One row per layer, each of this shape, even if there are no layers."""
    return np.array(rows).reshape(len(rows), *shape)


def _length(arrays):
    return np.sqrt(sum(float(np.vdot(array, array)) for array in arrays))
