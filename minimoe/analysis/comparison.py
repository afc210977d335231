"""A MoE between two dense models: what each cost and reached, as a table and in words."""

from dataclasses import dataclass

import numpy as np

from minimoe import cost
from minimoe.training import loop

MOE, DENSE_ACTIVE, DENSE_TOTAL = "MoE", "dense, same active", "dense, same total"
"""Same active: as many parameters as the MoE uses for a token.  Same total: as many as it has in all."""


@dataclass(frozen=True)
class Result:
    """What one model cost and reached.  ce, drop, balance: one entry a seed.  seconds: median step.  peak: bytes."""

    parameters: cost.Parameters
    forward_flops: float
    training_flops: float
    seconds: float
    memory: cost.Memory
    peak: int
    ce: np.ndarray
    drop: np.ndarray
    balance: np.ndarray


def measure(states, text):
    """The Result of one model's runs, one a seed."""
    config, training = states[0].model_config, states[0].train_config
    counted = cost.count(config, training.batch, training.sequence)
    peak = cost.peak_bytes(lambda: loop.step_once(loop.new_state(config, training, text), text))
    history = [state.history for state in states]
    return Result(
        parameters=counted.parameters, forward_flops=counted.forward_flops_per_token,
        training_flops=counted.training_flops_per_token, seconds=float(np.median([h["seconds"] for h in history])),
        memory=cost.step_memory(config, training.batch, training.sequence), peak=peak,
        ce=np.array([h["eval_ce"][-1] for h in history]), drop=np.array([np.mean(h["drop"]) for h in history]),
        balance=np.array([np.mean(h["balance"][-50:]) for h in history]))


def table(results):
    """The comparison as text, one row a model."""
    head = ("", "parameters", "active", "FLOPs/token", "s/step", "peak memory", "validation loss", "dropped", "balance")
    rows = [head] + [(
        name, f"{r.parameters.total:,}", f"{r.parameters.active:,}", f"{r.forward_flops / 1e6:.3f} M",
        f"{r.seconds:.3f}", f"{r.peak / 2**20:.0f} MiB", mean_and_spread(r.ce), f"{r.drop.mean():.1%}",
        f"{r.balance.mean():.3f}" if name == MOE else "-") for name, r in results.items()]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = ["  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in
                       enumerate(zip(row, widths, strict=True))) for row in rows]
    lines.insert(1, "  ".join("-" * w for w in widths))
    lines += ["FLOPs: forward, counted from the matrix products that ran.  s/step: median.  peak memory: most that the "
              "arrays of one training step took at once.", "validation loss: nats per token on held-out text, "
              "cross-entropy alone.  dropped: while training.  balance: 1 is an even load."]
    memory = results[MOE].memory
    lines.append("of the MoE's peak: " + ", ".join(f"{name} {size / 2**20:.1f} MiB" for name, size in
                                                   memory._asdict().items()) + " (kept for the backward); the rest "
                 "comes and goes")
    return "\n".join(lines)


def verdict(results):
    """What the numbers show, in words, for or against the MoE."""
    moe, active, total = results[MOE], results[DENSE_ACTIVE], results[DENSE_TOTAL]
    return "\n".join([
        "What the numbers show",
        f"- The MoE uses {moe.parameters.active / moe.parameters.total:.0%} of its parameters for a token. Its forward "
        f"pass takes {total.forward_flops / moe.forward_flops:.1f}x fewer FLOPs than that of the dense model of equal "
        f"size; its step takes {moe.seconds / total.seconds:.2f}x the time. Routing, gathering rows and the optimiser, "
        f"which steps all parameters, cost time that FLOPs do not count.",
        f"- Against the dense model that does the same work per token, it has "
        f"{moe.parameters.total / active.parameters.total:.1f}x the parameters, its step takes "
        f"{moe.seconds / active.seconds:.1f}x the time and {moe.peak / active.peak:.1f}x the memory; its loss is "
        f"{_gap(moe, active)}.",
        f"- Against the dense model with all its parameters, its loss is {_gap(moe, total)}.",
        "- All three share one recipe and few steps: a dense model with a recipe of its own, or a longer run, may do "
        "better.",
        "- " + on_seeds(len(moe.ce)),
    ])


def _gap(moe, dense):
    """How the losses differ, and in how many seeds they differ that way; runs of one seed saw the same data."""
    lower_by = dense.ce - moe.ce
    gap = lower_by.mean()
    words = f"{abs(gap):.3f} nats {'lower' if gap > 0 else 'higher'}"
    return words if len(lower_by) == 1 else f"{words}, and so in {(lower_by * gap > 0).sum()} of {len(lower_by)} seeds"


def on_seeds(n):
    """What so many seeds are worth, in words."""
    if n == 1:
        return "One seed is an anecdote: repeat with --seeds 3."
    return f"Means of {n} seeds: a comparison on which the seeds do not agree shows nothing."


def layers_words(config):
    """What the layers of a model are: router, experts, room and auxiliary losses, in one line."""
    kinds = {kind: config.layer_kinds.count(kind) for kind in dict.fromkeys(config.layer_kinds)}
    layers = " and ".join(f"{count} {kind}" for kind, count in kinds.items())
    if set(kinds) == {"dense"}:
        return f"layers: {layers}, so no router"
    room = "dropless" if config.capacity_factor is None else f"capacity factor {config.capacity_factor:g}"
    shared = f" and {config.n_shared_experts} shared" if config.n_shared_experts else ""
    return (f"layers: {layers}; router {config.router}, {config.top_k} of {config.n_experts} experts of width "
            f"{config.d_hidden} a token{shared}, {room}; auxiliary losses: {losses_words(config)}")


def losses_words(config):
    """The auxiliary losses that have a weight, with it."""
    return ", ".join(f"{name} {coef:g}" for name, coef in config.loss_coefs.items() if coef > 0) or "none"


def router_words(history, layers=None):
    """What the router did at the last record of a run, layer by layer.

    layers: the numbers of the layers that have a router; None counts from 0.
    """
    entropy, margin, dead = (history[f"router_{name}"][-1] for name in ("entropy", "margin", "dead"))
    if len(entropy) == 0:
        return "No layer has a router that assigns tokens."
    head = (f"The router at step {history['router_step'][-1]} (entropy: nats, 0 is sure; margin: probability by which "
            "the last chosen expert is ahead; dead: experts without a token)")
    rows = zip(layers or range(len(entropy)), entropy, margin, dead, strict=True)
    return "\n".join([head, *(f"  layer {i}: entropy {h:.2f}, margin {m:.3f}, dead {d}" for i, h, m, d in rows)])


def mean_and_spread(values, digits=3):
    """The mean of an array in words, and the standard deviation of a sample if there is more than one value."""
    mean = f"{values.mean():.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {values.std(ddof=1):.{digits}f}"
