"""FLOPs in closed form, part by part: they must equal the counted FLOPs of a run."""

from collections import Counter

from minimoe.cost import parts
from minimoe.cost.places import Place

SCORES = "attention scores"
"""The part whose products have no weights: queries times keys, and the weighted mean of the values."""


def flops(arch, batch, sequence, rows=None, causal=False):
    """FLOPs of the matrix products of a batch: Place -> FLOPs, forward and backward.

        forward = 2 * multiply-adds of the weights that each token uses + 4 * H * P * M for the scores and their mean
        backward = 2 * forward: each product y = x W has two, for dx and for dW

    M is S: the scores of all S * S pairs are computed, the masked half too; with a window, those of S * W.  A causal
    kernel skips what is masked: its M is (S + 1) / 2.  Two stacks have as many tokens each.  Keys and values of latent
    attention are made from the latent vectors, not absorbed into the queries as in `deployment.decode_flops`.

    Args:
        arch: Architecture.
        batch: sequences.
        sequence: S, tokens of each.
        rows: layer -> rows that its experts compute; None is dropless, K per token (routers that leave a token's
            second expert to chance compute fewer).
        causal: count the scores that a causal kernel computes; False: all, as our attention computes them.
    """
    T, work = batch * sequence, Counter()
    for part in parts.parts(arch):
        if part.name == "experts":
            n_rows = batch * arch.soft_slots or arch.top_k * T if rows is None else rows[part.layer]
            work[part.layer, part.name] += 2 * n_rows * part.products // arch.top_k
        else:
            work[part.layer, part.name] += 2 * T * part.products
    for layer, attended in enumerate(parts.attended(arch, sequence, causal)):
        width = parts.n_attentions(arch, layer) * arch.n_heads * (arch.query_width + arch.value_width)
        work[layer, SCORES] = 2 * T * width * attended
    return {Place(layer, name, way): times * n for (layer, name), n in work.items() if n
            for way, times in (("forward", 1), ("backward", 2))}
