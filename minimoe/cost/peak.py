"""The most bytes that a training step of ours holds at once, in closed form: those of the fullest of its moments.

The backward pass holds all activations to its end, and the gradients of the weights grow while it goes from the last
layer to the first.  What a layer makes on its way and drops again can be more than the gradients that are still to
come, so the peak can be in any layer, in its experts or in its attention.

A sum like `a = b * (c - d)` counts one array for the difference and the product: NumPy writes the second into the
first, if it is large.
"""

import math

from minimoe import model
from minimoe.cost import memory, ours
from minimoe.moe import losses, routers

RECORD = 13
"""Of an assignment, what a Routing holds: six whole numbers of 8 bytes (token, rank, expert, slot, rows twice), the
gate.  It waits for the end of the step, when all that the forward pass kept is gone."""


def peak_formula(config, batch, sequence, groups=1, threads=1, accumulate=1, rows=None):
    """Most bytes that a training step of ours holds at once, in closed form, float32.

        weights, moments + sum of gradients that waits + what the groups keep that run at the same time
            + what each of them has made at its fullest moment (see `moments`) + Routings of groups that are done

    The gradients of groups that are done wait as one sum next to those being made.  With `global_balance` all forward
    passes are held at once.

    Args:
        config: ModelConfig.
        batch: sequences of a micro-batch.
        sequence: tokens of each.
        groups: groups of a micro-batch.
        threads: groups that run at the same time.
        accumulate: micro-batches, which are groups too.
        rows: layer -> rows that the experts of one group compute; None is dropless.

    Within 10 % of what is traced, but for three things that it cannot know.  Of a step of less than two megabytes,
    Python's own objects are a part, and the formula gives too little.  With `pad_experts` and many experts the busiest
    of them decides how many rows there are, which differs from batch to batch.  And all experts are taken to have
    equally many rows: the formula gives too little where one has most of them.
    """
    size, n_groups = sum(_sizes(config).values()), groups * accumulate
    at_once = min(n_groups, threads)
    held = n_groups if config.global_balance and config.moe_layers else at_once
    shape, T = (config, batch // groups, sequence, rows), batch // groups * sequence
    kept = held * memory.activation_numbers(*shape)  # those that wait have logits, but no probabilities yet
    done = (n_groups - held) * len(config.moe_layers) * T * (2 * config.n_experts + RECORD * config.top_k)
    return 4 * ((3 + (n_groups > at_once)) * size + kept + done + at_once * max(moments(*shape).values()))


def moments(config, batch, sequence, rows=None):
    """Numbers that the passes of one group hold besides weights and activations, at each moment that can be fullest.

    Arguments are those of `peak_formula`, of one group.  Returns moment -> numbers, with the gradients made so far.
    """
    D, V, T, sizes = config.d_model, config.vocab_size, batch * sequence, _sizes(config)
    # to the end: logits and their gradient; gradients of the last norm's output and of a block's; of each Routing
    held = 2 * T * V + 2 * T * D + len(config.moe_layers) * _pulls(config, T)
    made = D * V + D  # gradients of the head, also if it is tied to the embedding, and of the last norm
    found = {"head": held + made + T * D}
    for i in reversed(range(config.n_layers)):
        kind = config.layer_kinds[i]
        feed_forward = {"dense": _dense, "moe": _moe, "soft": _soft}[kind](config, batch, sequence, i, rows)
        found[f"{kind} of layer {i}"] = held + made + feed_forward
        made += _sum_under(sizes, f"layers.{i}.{kind}.")
        found[f"attention of layer {i}"] = held + made + _attention(config, batch, sequence)
        made += _sum_under(sizes, f"layers.{i}.attention.")
    found["embedding"] = held + made + T * D + (min(T, V) + V) * D  # the rows sorted by token, their sums, its gradient
    if config.moe_layers:  # the forward pass of the last router, where experts and head have kept nothing yet
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
    """Of a RoutingGrad: an array for each kind of score that a loss pulls at, and one of zeros for all others."""
    pulled = {losses.LOSSES[name].gradient for name, coef in config.loss_coefs.items() if coef > 0} - {"dgate_A"}
    return min(len(pulled) + 1, 3) * T * config.n_experts + config.top_k * T


def _rows(config, T, layer, rows):
    """Rows that the experts of a layer compute, and those of them that are of tokens and not empty slots."""
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
    joining = 3 * T * D + side_by_side + D * queries  # what q, k and v want of the input; gradient of q's weights
    return block + here + D * queries + max(pairs, joining)  # D * queries: of the output's weights


def _swiglu(n, width, D):
    """Of n rows: h, its gradient, those of gate and up; then the second gives way to two parts of the input's."""
    return n * max(4 * width, 3 * width + 2 * D)


def _swiglu_and_weights(n, width, D):
    """The same where the gradients of the weights are made one by one: with the first, that of one matrix."""
    return max(4 * n * width + D * width, n * (3 * width + 2 * D) + 3 * D * width)


def _dense(config, batch, sequence, layer, rows):
    return _swiglu_and_weights(batch * sequence, config.dense_width, config.d_model)


def _moe(config, batch, sequence, layer, rows):
    D, E, T, J = config.d_model, config.n_experts, batch * sequence, _shared_width(config)
    n_rows, n_kept = _rows(config, T, layer, rows)
    n_one = n_rows // E  # of an expert; besides what it makes: its rows with empty slots, and the one's before it
    working = _swiglu(n_one, config.d_hidden, D) + n_one * D * (1 + config.pad_experts)
    fewer = n_kept < config.top_k * T or _facts(config).k_is_mean  # tokens with fewer than the most experts
    adding = n_kept * D * fewer + 2 * T * D  # the rows with one of zeros, the sum, a choice of each token
    choice = _facts(config).backward_scores * T * E + 2 * T * D  # what came through experts, and through router
    shared = (2 * T * D + _swiglu_and_weights(T, J, D)) * (J > 0)
    return 2 * n_kept * D + 3 * E * D * config.d_hidden + max(working, adding, choice, shared)  # rows out and in


def _soft(config, batch, sequence, layer, rows):
    D, E, T = config.d_model, config.n_experts, batch * sequence
    n_slots = ours.architecture(config).soft_slots
    n_rows, pairs = batch * n_slots, T * n_slots
    n_one, twice = n_rows // E, 1 + (E > 1 and batch > 1)  # sorted by sequence and by expert, if that is not the same
    working = (1 + twice) * n_rows * D + pairs + _swiglu(n_one, config.d_hidden, D) + n_one * D  # logits
    mixing = T * D + 3 * pairs  # of the input; of logits, dispatch and what comes on the way
    unit = 3 * T * D + 2 * pairs  # of the input, of its direction twice; of logits and cosines
    return max(working, 2 * twice * n_rows * D + max(mixing, unit)) + 3 * E * D * config.d_hidden  # rows out, rows in
