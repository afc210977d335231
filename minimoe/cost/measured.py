"""The costs of a model of ours, counted and measured on runs, next to the closed forms, as JSON records."""

import math
from collections import Counter
from dataclasses import replace

import numpy as np

from minimoe import model
from minimoe.cost import all_to_all, counting, deployment, formula, memory, ours, parts, peak
from minimoe.training import data, loop

MOST_RANKS = 4
"""Default number of devices for the experts of a run: the largest number up to this that divides the experts."""


@np.errstate(over="ignore", invalid="ignore")  # the cost does not depend on the values
def counted_step(config, batch, sequence, groups=1, params=None, streams=None):
    """FLOPs of the forward and backward pass of one batch, counted product by product and by formula; both are equal.

    Args:
        config: ModelConfig.
        batch: sequences.
        sequence: tokens of each.
        groups: groups of the batch.
        params: parameters of a trained model; None: fresh parameters and random tokens.
        streams: with params, the text that a batch is drawn from, one array per domain.

    Returns rows of parts, and rows of layers: assignments chosen and kept, rows of experts computed.
    """
    if params is None:
        cost = counting.count(config, batch, sequence, groups)
    else:
        tokens_BS = data.sample(streams, np.random.default_rng(0), batch, sequence).tokens_BS
        cost = counting.count_run(params, tokens_BS, config, groups)
    arch = ours.architecture(config)
    closed = formula.flops(arch, batch, sequence, {i: r.run for i, r in cost.rows.items()} or None)
    forward, backward, by_formula = (_by_part(arch, work, ways) for work, ways in (
        (cost.work, {"forward"}), (cost.work, {"backward"}), (closed, {"forward", "backward"})))
    names = [name for name in (*parts.NAMES, formula.SCORES) if forward[name] or backward[name]]
    return {
        "batch": batch, "sequence": sequence, "groups": groups, "tokens": cost.tokens,
        "of": "random tokens" if params is None else "tokens of its text, as trained",
        "parts": [{"part": name, "forward": forward[name], "backward": backward[name], "formula": by_formula[name]}
                  for name in names],
        "layers": [{"layer": i, **rows._asdict()} for i, rows in cost.rows.items()],
        "training_flops": cost.training_flops, "padding_flops": cost.padding_flops,
    }


def _by_part(arch, work, ways):
    """FLOPs of each part, by its display name."""
    sums = Counter()
    for place, flops in work.items():
        sums[parts.shown_name(arch, place.part)] += flops * (place.way in ways)
    return sums


@np.errstate(over="ignore", invalid="ignore")
def held_in_step(config, train_config):
    """Bytes of a training step: its activations and its peak, both measured and by formula.

    The groups run one after another.  The warm-up is left out: it costs nothing, and in old runs it may be longer than
    the run.
    """
    train_config = replace(train_config, warmup_steps=0)
    batch, sequence, groups = train_config.batch, train_config.sequence, train_config.groups
    in_group, rows = batch // groups, None
    if config.moe_layers:
        rows = {i: r.run for i, r in counting.count(config, in_group, sequence).rows.items()}
    text = data.random_text(config, train_config)
    return {**memory.step_memory(config, in_group, sequence)._asdict(),
            "activations_formula": 4 * memory.activation_numbers(config, in_group, sequence, rows),
            "peak": memory.peak_bytes(lambda: loop.step_once(loop.new_state(config, train_config, text), text)),
            "peak_formula": peak.peak_formula(config, batch, sequence, groups, 1, train_config.accumulate, rows)}


def routing_costs(params, config, tokens_BS, ranks, machine):
    """How the routing of a trained model affects its costs: one record per layer, compared with even routing.

    Args:
        params: parameters of the trained model.
        config: ModelConfig.
        tokens_BS: held-out text.
        ranks: devices that the experts are spread over; None is MOST_RANKS, or the largest divisor below it.
        machine: Machine, of each rank.

    Each record has the following, also for even routing:
        touched: experts that a decoding step uses, for the batch sizes in "batch_sizes"; at_random: random choices.
        missed: share of a sequence's uses of experts that miss a cache of the E/2 most recently used ones.
        sent: bytes that dispatch sends to other devices, for all tokens.
        imbalance: rows of the busiest rank over the mean.
        seconds: time of the layer on the ranks.
    """
    _, routings = model.forward(params, tokens_BS, config)
    E, K = config.n_experts, config.top_k
    ranks = math.gcd(MOST_RANKS, E, tokens_BS.size) if ranks is None else ranks
    rng = np.random.default_rng(0)
    sizes = [n for n in deployment.BATCHES if n <= len(tokens_BS)]
    records = []
    for layer, routing in zip(config.moe_layers, routings, strict=True):
        moved = all_to_all.exchange(routing, ranks, config.d_model, 4, d_hidden=config.d_hidden, link=machine.link,
                                    flops=machine.flops)
        records.append({
            "layer": layer, "batch_sizes": sizes,
            "touched": [float(deployment.touched_experts(routing, n).mean()) for n in sizes],
            "touched_if_even": [deployment.distinct_experts(E, K, n) for n in sizes],
            "touched_at_random": [float(deployment.drawn_experts(E, K, n, rng).mean()) for n in sizes],
            "missed": deployment.misses(routing, E // 2), "missed_if_even": 1 - E // 2 / E,
            "ranks": ranks, "sent": int(moved.sent_R.sum()),
            "sent_if_even": 4 * config.d_model * routing.n_tokens * all_to_all.expected_vectors(E, K, ranks),
            "imbalance": moved.imbalance,
            "seconds": moved.slowest.total, "seconds_if_even": moved.even.total})
    return records
