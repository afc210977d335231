"""What a model of ours costs, counted and measured on runs, next to the closed forms: records that JSON can hold."""

import math
from collections import Counter
from dataclasses import replace

import numpy as np

from minimoe import model
from minimoe.cost import all_to_all, counting, deployment, formula, memory, ours, parts, peak
from minimoe.training import data, loop

MOST_RANKS = 4
"""Devices that the experts of a run are spread over, if none are given: as many of these as divide the experts."""


@np.errstate(over="ignore", invalid="ignore")  # numbers that are too large cost as much as others
def counted_step(config, batch, sequence, groups=1, params=None, streams=None):
    """The forward and backward pass of one batch, counted product by product, and by formula: equal to the last FLOP.

    Args:
        config: ModelConfig.
        batch: sequences.
        sequence: tokens of each.
        groups: groups of the batch.
        params: of a trained model; None are fresh parameters and random tokens.
        streams: the text that a batch is drawn from, one array per domain, with params.

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
    """FLOPs of each part, under the name that it is shown under."""
    sums = Counter()
    for place, flops in work.items():
        sums[parts.shown_name(arch, place.part)] += flops * (place.way in ways)
    return sums


@np.errstate(over="ignore", invalid="ignore")
def held_in_step(config, train_config):
    """Bytes of a training step: what it keeps, walked and by formula, and its peak, traced and by formula.

    The groups run one after another.  The warm-up costs nothing, and in old runs may be longer than the run: left out.
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
    """What the routing of a trained model does to its costs: a record per layer, next to even routing.

    Args:
        params: of the trained model.
        config: ModelConfig.
        tokens_BS: held-out text.
        ranks: devices that the experts are spread over; None is MOST_RANKS, or what divides.
        machine: Machine, of each rank.

    Each record has, with what even routing would give:
        touched: experts that a decoding step uses, for the batch sizes of "texts"; by_lot: for random choices.
        missed: share of a sequence's uses of experts that a memory of E/2 experts, the last used, does not have.
        sent: bytes of dispatch that leave a device, of all tokens.
        imbalance: rows of the busiest rank over the mean.
        seconds: of the layer on the ranks.
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
            "layer": layer, "texts": sizes,
            "touched": [float(deployment.touched_experts(routing, n).mean()) for n in sizes],
            "touched_if_even": [deployment.distinct_experts(E, K, n) for n in sizes],
            "touched_by_lot": [float(deployment.drawn_experts(E, K, n, rng).mean()) for n in sizes],
            "missed": deployment.misses(routing, E // 2), "missed_if_even": 1 - E // 2 / E,
            "ranks": ranks, "sent": int(moved.sent_R.sum()),
            "sent_if_even": 4 * config.d_model * routing.n_tokens * all_to_all.expected_vectors(E, K, ranks),
            "imbalance": moved.imbalance,
            "seconds": moved.slowest.total, "seconds_if_even": moved.even.total})
    return records
