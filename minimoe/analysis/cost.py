"""What a model costs: parameters, FLOPs as executed, bytes in use.

A FLOP is a multiplication or an addition; a multiply-add is two.  Only matrix products are counted, as everywhere.
"""

import math
import tracemalloc
from typing import NamedTuple

import numpy as np

from minimoe import model
from minimoe import params as parameters
from minimoe.moe.routing import no_gradient


class Parameters(NamedTuple):
    """Numbers of parameters.  Active is what one token uses; papers differ in which embeddings they count."""

    total: int
    active: int
    active_without_input_embedding: int
    active_without_embeddings: int


class Cost(NamedTuple):
    """Cost of one batch.  FLOPs are counted from the shapes of the matrix products that really ran."""

    parameters: Parameters
    forward_flops: int
    training_flops: int
    tokens: int

    @property
    def forward_flops_per_token(self):
        """FLOPs of a forward pass, per token."""
        return self.forward_flops / self.tokens

    @property
    def training_flops_per_token(self):
        """FLOPs of a forward and a backward pass, per token."""
        return self.training_flops / self.tokens


class Product(NamedTuple):
    """One matrix product that ran: the shapes of its factors."""

    left: tuple[int, ...]
    right: tuple[int, ...]

    @property
    def flops(self):
        """Two for each multiply-add: 2 * rows * inner * columns, times the batch."""
        rows = np.broadcast_shapes(self.left[:-2], self.right[:-2]) + self.left[-2:-1] + self.right[-1:] * (
            len(self.right) > 1)
        return 2 * math.prod(rows) * self.left[-1]


class Counted(np.ndarray):
    """An array that notes every matrix product that it, or an array made from it, takes part in."""

    tally = None

    def __array_finalize__(self, source):
        """An array made from a counted one counts into the same tally."""
        self.tally = getattr(source, "tally", None)

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **options):
        """Run the operation on plain arrays; count it if it is a matrix product; hand the tally on."""
        tally = next(a.tally for a in (*inputs, *(out or ())) if isinstance(a, Counted))
        plain = [a.view(np.ndarray) if isinstance(a, Counted) else a for a in inputs]
        if out is not None:
            options["out"] = tuple(a.view(np.ndarray) if isinstance(a, Counted) else a for a in out)
        result = getattr(ufunc, method)(*plain, **options)
        if ufunc is np.matmul:
            tally.append(Product(plain[0].shape, plain[1].shape))
        return out[0] if out is not None else counted(result, tally)


def counted(array, tally):
    """The array as a Counted one.  tally: a list to which each matrix product is appended as a Product."""
    if not isinstance(array, np.ndarray):
        return array
    view = array.view(Counted)
    view.tally = tally
    return view


def count(config, batch=1, sequence=None, seed=0):
    """Cost of a batch of random tokens through a freshly initialised model, in training, its losses left out.

    batch: sequences.  sequence: tokens each; None is config.max_sequence.
    """
    sequence = sequence or config.max_sequence
    forward, backward = products(config, batch, sequence, seed)
    forward_flops = sum(product.flops for product in forward)
    training_flops = forward_flops + sum(product.flops for product in backward)
    return Cost(count_parameters(config), forward_flops, training_flops, batch * sequence)


def products(config, batch, sequence, seed=0):
    """The matrix products that such a batch runs, in order: a list of the forward's, and of the backward's."""
    rng, tally = np.random.default_rng(seed), []
    tokens_BS = rng.integers(0, config.vocab_size, (batch, sequence))
    params = {name: counted(array, tally) for name, array in model.init_params(config, seed).items()}
    (logit_TV, routings), cache = model.model_forward(params, tokens_BS, config, training=True, rng=rng)
    n_forward = len(tally)
    model.model_backward(np.ones_like(logit_TV), [no_gradient(routing) for routing in routings], cache)
    return tally[:n_forward], tally[n_forward:]


def forward_flops_formula(config, batch, sequence):
    """FLOPs of a dropless forward pass by formula, to hold against the count.

    The scores of all S * S pairs are computed, the masked half too.  The router is taken to be one product of D x E.
    Raises ValueError for Soft MoE, which this formula does not know.
    """
    if "soft" in config.layer_kinds:
        raise ValueError(f"router = {config.router!r}: the formula knows layers that assign tokens, and dense ones")
    D, H, G, P, S = config.d_model, config.n_heads, config.kv_heads, config.d_head, sequence
    attention = 2 * D * (H + 2 * G) * P + 4 * H * P * S + 2 * H * P * D
    experts = (config.top_k + config.n_shared_experts) * 3 * 2 * D * config.d_hidden
    feed_forward = {"moe": 2 * D * config.n_experts + experts, "dense": 3 * 2 * D * config.dense_width}
    layers = sum(attention + feed_forward[kind] for kind in config.layer_kinds)
    return batch * S * (layers + 2 * D * config.vocab_size)


def count_parameters(config):
    """Total and active parameters.

        active = total - (1 - K/E) * parameters of the experts that tokens are sent to
    """
    weights = model.weights(config)
    total = parameters.count(weights)
    experts = parameters.count({name: w for name, w in weights.items() if name.endswith(("EDF", "EFD"))})
    active = total - experts + experts * config.top_k // config.n_experts
    embedding = config.vocab_size * config.d_model
    tables = 1 if config.tie_embeddings else 2
    without_input = active if config.tie_embeddings else active - embedding  # a tied table is also the head
    return Parameters(total, active, without_input, active - tables * embedding)


class Memory(NamedTuple):
    """Bytes that a training step holds: the model, its gradients, AdamW's two moments, what the forward pass keeps."""

    parameters: int
    gradients: int
    moments: int
    activations: int


def step_memory(config, batch, sequence, seed=0):
    """Memory of a training step, the activations by walking the caches of one that ran."""
    params = model.init_params(config, seed)
    rng = np.random.default_rng(seed)
    tokens_BS, targets_BS = rng.integers(0, config.vocab_size, (2, batch, sequence))
    _, cache = model.objective_forward(params, tokens_BS, targets_BS, config, training=True, rng=rng)
    size = sum(array.nbytes for array in params.values())
    return Memory(size, size, 2 * size, cache_bytes(cache, params))


def cache_bytes(cache, params):
    """Bytes that a forward pass keeps for its backward: every distinct buffer in the cache but the parameters."""
    owned = {id(_buffer(array)) for array in params.values()}
    buffers = {id(b): b.nbytes for b in map(_buffer, parameters.arrays_in(cache)) if id(b) not in owned}
    return sum(buffers.values())


def peak_bytes(function):
    """Most bytes that `function()` had allocated at once, beyond what there was before."""
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def _buffer(array):
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array
