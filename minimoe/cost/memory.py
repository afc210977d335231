"""Memory of a model in training and in generation: by formula, and as measured in a run of ours.

For the peak of a training step see `peak`.
"""

import tracemalloc
from typing import NamedTuple

import numpy as np

from minimoe import model, parameters
from minimoe.cost import ours, parts
from minimoe.moe import losses, routers


class Format(NamedTuple):
    """How numbers are stored.

    bits: bits per number.
    block: how many numbers share a scale; 0 is no scale.
    scale_bits: bits per scale.
    """

    bits: int
    block: int = 0
    scale_bits: int = 0

    def bytes(self, n):
        """Bytes of n numbers."""
        return n * (self.bits + (self.scale_bits / self.block if self.block else 0)) / 8


FORMATS = {
    "float32": Format(32),
    "bf16": Format(16),
    "fp8": Format(8, 128 * 128, 32),
    "int8": Format(8, 64, 16),
    "mxfp8": Format(8, 32, 8),
    "int4": Format(4, 64, 16),
    "mxfp4": Format(4, 32, 8),
}
"""Name -> Format.  mxfp8, mxfp4: OCP Microscaling Formats, version 1.0, an 8-bit scale per 32 numbers, so 4.25 bits per
number in mxfp4.  fp8: DeepSeek-V3's blocks of 128 x 128 with one float32 [arXiv:2412.19437, sec. 3.3.2].  int8, int4: a
common choice, one float16 per 64 numbers."""

ROUTING_NUMBERS = 17
"""Of an assignment: seven 8-byte whole numbers (token, rank, expert twice, slot, rows twice) and three of 4 bytes."""

ADAM_BYTES = {"float32": 4 + 4 + 8, "mixed precision": 2 + 2 + 12}
"""Bytes per parameter: weight, gradient, and Adam's state, which is two moments and in mixed precision also a float32
copy of the weight.  Both add up to 16 [ZeRO, arXiv:1910.02054, sec. 3.1]."""


def weight_bytes(arch, rest="bf16", experts=None):
    """Bytes of all weights.

    Args:
        arch: Architecture.
        rest: format of all weights except the experts' matrices.
        experts: format of the experts' matrices; None: the same.
    """
    listed = parts.parts(arch)
    of_experts = sum(part.products * arch.n_routed_experts // arch.top_k for part in listed if part.name == "experts")
    total = sum(part.total for part in listed)
    return FORMATS[rest].bytes(total - of_experts) + FORMATS[experts or rest].bytes(of_experts)


def kv_numbers(arch, context=1):
    """How many numbers the KV cache holds per sequence: 2 G P per token and layer, or one latent vector.

                                                        [DeepSeek-V2, arXiv:2405.04434, table 1]
    A layer with a window keeps its last tokens, a linear one its state of H P P numbers.  With two stacks, the
    decoder's layers cache the decoder's sequence and the encoder's.

    Args:
        arch: Architecture.
        context: tokens of the sequence.
    """
    if arch.mla is None:
        each = arch.kv_heads * (arch.query_width + arch.value_width)
    else:
        each = arch.mla.kv_lora_rank + arch.mla.qk_rope_head_dim
    state = arch.n_heads * arch.query_width * arch.value_width
    layers = list(zip(arch.attentions, parts.attended(arch, context), strict=True))[-arch.stacks[-1]:]
    return len(arch.stacks) * sum(state if kind == "linear" else each * tokens for kind, tokens in layers)


def activation_numbers(config, batch, sequence, rows=None):
    """How many numbers our forward pass keeps for its backward, in closed form; in float32, times 4 bytes.

    Args:
        config: ModelConfig.
        batch: sequences.
        sequence: S, tokens of each.
        rows: layer -> number of rows that its experts compute; None is dropless, K per token.
    """
    D, H, G, P, S, T = (config.d_model, config.n_heads, config.kv_heads, config.head_width, sequence, batch * sequence)
    norm = 2 * T * D + T  # normalized tokens, before and after the gain, and their scale
    attention = T * (3 * H + 2 * G) * P + batch * H * S * S  # q, k, v, the mix twice; the weights of all pairs
    total = norm + T * config.vocab_size  # of the head; the probabilities
    for layer, kind in enumerate(config.layer_kinds):
        total += 2 * norm + attention
        if kind == "dense":
            total += 3 * T * config.dense_width  # gate, up, sigmoid
        elif kind == "soft":
            Z = ours.architecture(config).soft_slots
            total += T * D + 3 * T * Z + Z * D + batch * Z * (2 * D + 3 * config.d_hidden)
        else:
            n_rows = config.top_k * T if rows is None else rows[layer]
            n_kept = min(n_rows, config.top_k * T)  # if there are empty slots
            total += n_rows * (D + 3 * config.d_hidden) + n_kept * D  # in, gate, up, sigmoid; out
            total += routing_numbers(config, T)
            total += 3 * T * config.n_shared_experts * config.d_hidden
    return total


def routing_numbers(config, n_tokens):
    """The part of them that belongs to the router of one layer, its Routing and the auxiliary losses."""
    facts = routers.ROUTERS[config.router].FACTS
    of_losses = sum(losses.LOSSES[name].kept_scores for name, coef in config.loss_coefs.items() if coef > 0)
    scores = (facts.kept_scores + of_losses) * n_tokens * config.n_experts
    return scores + ROUTING_NUMBERS * config.top_k * n_tokens + facts.kept_more(config, n_tokens)


class Memory(NamedTuple):
    """Bytes that a training step holds.

    parameters: of the model.
    gradients: the same number.
    moments: AdamW's two.
    activations: what the forward pass keeps for the backward.
    """

    parameters: int
    gradients: int
    moments: int
    activations: int


def step_memory(config, batch, sequence, seed=0):
    """Memory of a training step, where the activations are measured in the caches of a run.

    Args:
        config: ModelConfig.
        batch: sequences.
        sequence: tokens of each.
        seed: seed of the parameters, the tokens, and the random choices of training.
    """
    params = model.init_params(config, seed)
    rng = np.random.default_rng(seed)
    tokens_BS, targets_BS = rng.integers(0, config.vocab_size, (2, batch, sequence))
    _, cache = model.objective_forward(params, tokens_BS, targets_BS, config, training=True, rng=rng)
    size = sum(array.nbytes for array in params.values())
    return Memory(size, size, 2 * size, cache_bytes(cache, params))


def cache_bytes(cache, params):
    """Bytes that a forward pass keeps for its backward: every distinct buffer in the cache except the parameters."""
    owned = {id(_buffer(array)) for array in params.values()}
    buffers = {id(b): b.nbytes for b in map(_buffer, parameters.arrays_in(cache)) if id(b) not in owned}
    return sum(buffers.values())


def peak_bytes(function):
    """Peak of the bytes that `function()` allocates, beyond what was allocated before."""
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
