"""The peak memory of a training step of ours, in closed form: the largest of the moments that can be the peak.

The backward pass holds all activations until its end, and the gradients of the weights accumulate from the last layer
to the first.  A layer's temporary arrays can be larger than all gradients that are still to come, so the peak can be in
any layer, in its experts or in its attention.

An expression like `a = b * (c - d)` counts as one array: NumPy writes the product over the difference if it is large.
"""

import math

from minimoe import model
from minimoe.cost import memory, ours
from minimoe.moe import losses, routers

RECORD = 13
"""What a Routing holds per assignment: six 8-byte whole numbers (token, rank, expert, slot, rows twice) and the gate.
It stays until the end of the step, when the caches of the forward pass are gone."""


def peak_formula(config, batch, sequence, groups=1, threads=1, accumulate=1, rows=None):
    """The peak memory of a training step of ours in bytes, in closed form, in float32.

        weights, moments + sum of finished gradients + caches of the groups that run at the same time
            + temporary arrays of each at its fullest moment (see `moments`) + Routings of finished groups

    The gradients of finished groups are kept as one sum, in addition to those being computed.  With `global_balance`
    all forward passes are in memory at once.

    Args:
        config: ModelConfig.
        batch: sequences of a micro-batch.
        sequence: tokens of each.
        groups: groups of a micro-batch.
        threads: groups that run at the same time.
        accumulate: micro-batches, which are groups too.
        rows: layer -> number of rows that the experts of one group compute; None is dropless.

    It is within 10 % of the measured peak, with three exceptions.  In a step of less than two megabytes Python's own
    objects matter, and the formula gives too little.  With `pad_experts` and many experts, the busiest expert decides
    the number of rows, which differs from batch to batch.  And the formula assumes that all experts have equally many
    rows; it gives too little where one expert has most of them.
    """
    size, n_groups = sum(_sizes(config).values()), groups * accumulate
    at_once = min(n_groups, threads)
    held = n_groups if config.global_balance and config.moe_layers else at_once
    shape, T = (config, batch // groups, sequence, rows), batch // groups * sequence
    kept = held * memory.activation_numbers(*shape)  # waiting groups have logits, but no probabilities yet
    done = (n_groups - held) * len(config.moe_layers) * T * (2 * config.n_experts + RECORD * config.top_k)
    return 4 * ((3 + (n_groups > at_once)) * size + kept + done + at_once * max(moments(*shape).values()))


def moments(config, batch, sequence, rows=None):
    """How many numbers one group holds besides weights and activations, at each moment that can be the peak.

    For the arguments see `peak_formula`, for one group.  Returns moment -> count, including the gradients made so far.
    """
    D, V, T, sizes = config.d_model, config.vocab_size, batch * sequence, _sizes(config)
    # held to the end: logits and their gradient; gradients of the last norm's and a block's output, and of each Routing
    held = 2 * T * V + 2 * T * D + len(config.moe_layers) * _pulls(config, T)
    made = D * V + D  # gradients of the head, even if it is tied to the embedding, and of the last norm
    found = {"head": held + made + T * D}
    for i in reversed(range(config.n_layers)):
        kind = config.layer_kinds[i]
        feed_forward = {"dense": _dense, "moe": _moe, "soft": _soft}[kind](config, batch, sequence, i, rows)
        found[f"{kind} of layer {i}"] = held + made + feed_forward
        made += _sum_under(sizes, f"layers.{i}.{kind}.")
        found[f"attention of layer {i}"] = held + made + _attention(config, batch, sequence)
        made += _sum_under(sizes, f"layers.{i}.attention.")
    found["embedding"] = held + made + T * D + (min(T, V) + V) * D  # the rows sorted by token, their sums, its gradient
    if config.moe_layers:  # the forward pass of the last router, before experts and head have kept anything
        n_rows, _ = _rows(config, T, config.moe_layers[-1], rows)
        later = 2 * T * D + T * V + n_rows * (2 * D + 3 * config.d_hidden) + 3 * T * _shared_width(config)
        found["choice"] = _facts(config).forward_scores * T * config.n_experts + T * D - later
    return found


def _facts(config):
    return routers.ROUTERS[config.router].FACTS


def _sizes(config):
    return {name: math.prod(weight.shape) for name, weight in model.weights(config).items()}


def _sum_under(sizes, prefix):
    return sum(size for name, size in sizes.items() if name.startswith(prefix))


def _pulls(config, T):
    """Of a RoutingGrad: an array for each kind of score that has a gradient, and one of zeros for all others."""
    pulled = {losses.LOSSES[name].gradient for name, coef in config.loss_coefs.items() if coef > 0} - {"dgate_A"}
    return min(len(pulled) + 1, 3) * T * config.n_experts + config.top_k * T


def _rows(config, T, layer, rows):
    """Number of rows that the experts of a layer compute, and how many of them are tokens rather than empty slots."""
    n_rows = config.top_k * T if rows is None else rows[layer]
    return n_rows, min(n_rows, config.top_k * T)


def _shared_width(config):
    return config.n_shared_experts * config.d_hidden


def _attention(config, batch, sequence):
    T, D, queries = batch * sequence, config.d_model, config.n_heads * config.head_width
    keys = T * config.kv_heads * config.head_width
    block = 3 * T * D  # gradients of the block's middle, and of the second norm's input and output
    here = 2 * T * queries + 2 * keys  # gradients of mix and queries, of keys and values
    stacked = T * queries * (config.kv_heads < config.n_heads)  # mix
    pairs = batch * config.n_heads * sequence ** 2 + stacked
    side_by_side = keys * (config.kv_heads > 1)  # heads of v, copied
    joining = 3 * T * D + side_by_side + D * queries  # what q, k and v pass back to the input; gradient of q's weights
    return block + here + D * queries + max(pairs, joining)  # D * queries: of the output's weights


def _swiglu(n, width, D):
    """For n rows: h, its gradient, those of gate and up; then two parts of the input's gradient replace h's."""
    return n * max(4 * width, 3 * width + 2 * D)


def _swiglu_and_weights(n, width, D):
    """The same, including the gradient of one matrix, where the gradients of the weights are made one by one."""
    return max(4 * n * width + D * width, n * (3 * width + 2 * D) + 3 * D * width)


def _dense(config, batch, sequence, layer, rows):
    return _swiglu_and_weights(batch * sequence, config.dense_width, config.d_model)


def _moe(config, batch, sequence, layer, rows):
    D, E, T, J = config.d_model, config.n_experts, batch * sequence, _shared_width(config)
    n_rows, n_kept = _rows(config, T, layer, rows)
    n_one = n_rows // E  # of an expert; in addition: its rows with empty slots, and those of the expert before it
    working = _swiglu(n_one, config.d_hidden, D) + n_one * D * (1 + config.pad_experts)
    fewer = n_kept < config.top_k * T or _facts(config).k_is_mean  # tokens with fewer than the maximum of experts
    adding = n_kept * D * fewer + 2 * T * D  # the rows and one of zeros, the sum, one choice of each token
    choice = _facts(config).backward_scores * T * E + 2 * T * D  # what came through the experts, and through the router
    shared = (2 * T * D + _swiglu_and_weights(T, J, D)) * (J > 0)
    return 2 * n_kept * D + 3 * E * D * config.d_hidden + max(working, adding, choice, shared)  # rows out and in


def _soft(config, batch, sequence, layer, rows):
    D, E, T = config.d_model, config.n_experts, batch * sequence
    n_slots = ours.architecture(config).soft_slots
    n_rows, pairs = batch * n_slots, T * n_slots
    n_one, twice = n_rows // E, 1 + (E > 1 and batch > 1)  # sorted by sequence and by expert, if that is not the same
    working = (1 + twice) * n_rows * D + pairs + _swiglu(n_one, config.d_hidden, D) + n_one * D  # logits
    mixing = T * D + 3 * pairs  # of the input; of logits, dispatch and a temporary array
    unit = 3 * T * D + 2 * pairs  # of the input, of its direction twice; of logits and cosines
    return max(working, 2 * twice * n_rows * D + max(mixing, unit)) + 3 * E * D * config.d_hidden  # rows out, rows in
