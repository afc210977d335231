"""The cost of inference: the bytes that one decoding step reads, and its time on a machine.

A step makes one token for each sequence of a batch.  It reads every weight that any sequence uses once, and the KV
cache of each sequence.  So an MoE that is small in FLOPs can be large in bytes, since its sequences use different
experts.
"""

from collections import Counter
from typing import NamedTuple

import numpy as np

from minimoe.cost import parts
from minimoe.cost.memory import FORMATS, kv_numbers

CACHE = "keys and values"
"""The name of the KV cache among the parts."""


class Machine(NamedTuple):
    """A device, by its data sheet.

    words: what it is, and the number format that `flops` is for.
    bandwidth: of the memory, bytes/s.
    flops: of dense matrix products, FLOP/s.
    memory: bytes.
    link: to other devices, in each direction, bytes/s.
    host: from the host's memory, bytes/s.
    """

    words: str
    bandwidth: float
    flops: float
    memory: float
    link: float
    host: float


BATCHES = (1, 4, 16, 64, 256)
"""Batch sizes that tables show."""

MACHINES = {
    "h100": Machine("NVIDIA H100 SXM (data sheet, products in 16 bits)", 3.35e12, 989.4e12, 80e9, 450e9, 64e9),
    "a100": Machine("NVIDIA A100 SXM 80 GB (data sheet, products in 16 bits)", 2.039e12, 312e12, 80e9, 300e9, 32e9),
    "rtx4090": Machine("NVIDIA GeForce RTX 4090 (Ada white paper, products in 16 bits; PCIe 4.0 x16)", 1.008e12,
                       165.2e12, 24e9, 32e9, 32e9),
    "ddr5": Machine("two channels of DDR5-5600 (2 x 8 bytes x 5.6e9/s), 8 cores of 64 float32 FLOPs per cycle at 4 GHz",
                    89.6e9, 2.048e12, 64e9, 16e9, 7e9),
}
"""Name -> Machine, with peaks that real programs do not reach.  ddr5: calculated; its host is an SSD, PCIe 4.0 x4."""


def distinct_experts(n_experts, top_k, batch):
    """Experts of a layer that a batch of tokens uses on average, if all sets of K are equally likely for each token.

        E (1 - (1 - K/E)^B)         not E (1 - (1 - 1/E)^(K B)), since a token's K experts are different

    Args:
        n_experts: E.
        top_k: K.
        batch: B, tokens of different sequences.
    """
    return n_experts * (1 - (1 - top_k / n_experts) ** batch)


def drawn_experts(n_experts, top_k, batch, rng, draws=1000):
    """Numbers of experts that random choices use, one for each draw.

    Args:
        n_experts: E.
        top_k: K.
        batch: tokens.
        rng: numpy.random.Generator.
        draws: how many times the batch is drawn.
    """
    chosen = np.argsort(rng.random((draws, batch, n_experts)), axis=2, kind="stable") < top_k
    return chosen.any(axis=1).sum(axis=1)


def touched_experts(routing, batch):
    """Numbers of experts that a real, uneven Routing uses: one entry for each batch of tokens at one position.

    routing: of whole sequences.  Consecutive sequences form batches of `batch`, the rest is left out; dropped
    assignments use no expert.
    Raises ValueError if there are fewer sequences.
    """
    tokens = routing.tokens
    if not 1 <= batch <= tokens.n_sequences:
        raise ValueError(f"batch = {batch}: must be from 1 to the {tokens.n_sequences} sequences of the routing")
    E, S = routing.n_experts, routing.n_tokens // tokens.n_sequences
    used_TE = np.zeros((routing.n_tokens, E), bool)
    used_TE[routing.token_A[routing.kept_A], routing.expert_A[routing.kept_A]] = True
    whole = tokens.n_sequences // batch * batch
    used = used_TE.reshape(tokens.n_sequences, S, E)[:whole].reshape(-1, batch, S, E)
    return used.any(axis=1).sum(axis=2).ravel()


class DecodeStep(NamedTuple):
    """One decoding step of a batch.

    weights: bytes of weights that are read.
    cache: bytes of the KV cache that are read.
    flops: FLOPs of its matrix products.
    """

    weights: float
    cache: float
    flops: float

    @property
    def bytes(self):
        """All bytes that are read."""
        return self.weights + self.cache

    @property
    def intensity(self):
        """Arithmetic intensity: FLOPs per byte."""
        return self.flops / self.bytes

    def seconds(self, machine):
        """Time on a machine that reads and computes at its peaks, both at the same time; the slower one decides.

                                                        [Williams 2009, "Roofline", CACM 52(4)]
        """
        return max(self.bytes / machine.bandwidth, self.flops / machine.flops)


def decode_step(arch, batch, context, rest="bf16", experts=None, cache="bf16", distinct=None):
    """The DecodeStep of a batch.

    Args:
        arch: Architecture.
        batch: number of sequences, each of which gets one token.
        context: tokens per sequence.
        rest: format of all weights except the experts' matrices, see `memory.FORMATS`.
        experts: format of the experts' matrices; None: the same.
        cache: format of the KV cache.
        distinct: experts of a layer that the batch uses; None is the mean of even routing.
    """
    read = bytes_read(arch, batch, context, rest, experts, cache, distinct)
    return DecodeStep(sum(read.values()) - read[CACHE], read[CACHE], batch * decode_flops(arch, context))


def bytes_read(arch, batch, context, rest="bf16", experts=None, cache="bf16", distinct=None):
    """Bytes of each part and of the KV cache that a step reads: name -> bytes.

        weights that every token uses + layers * distinct * an expert + batch * KV cache of a sequence

    The rows that are looked up in tables, one per sequence, are not counted.  For the arguments see `decode_step`.
    """
    E, read = arch.n_routed_experts, Counter()
    if distinct is None and E:
        distinct = distinct_experts(E, arch.top_k, batch)
    for part in parts.decoder_parts(arch):
        if part.name == "experts":
            read[part.name] += distinct * expert_bytes(arch, rest, experts)
        elif part.name == "embedding" and arch.tied_embeddings:
            read["head"] += FORMATS[rest].bytes(part.total)
        elif part.name not in ("embedding", "positions"):
            read[part.name] += FORMATS[rest].bytes(part.total)
    read[CACHE] = batch * FORMATS[cache].bytes(kv_numbers(arch, context))
    return dict(read)


def _moe_layers(arch):
    return sum(part.name == "experts" for part in parts.decoder_parts(arch))


def expert_bytes(arch, rest="bf16", experts=None):
    """Bytes of one routed expert of one layer; 0 for a dense model."""
    part = next((part for part in parts.parts(arch) if part.name == "experts"), None)
    if part is None:
        return 0.0
    matrices, one = part.products // arch.top_k, part.total // arch.n_routed_experts
    return FORMATS[experts or rest].bytes(matrices) + FORMATS[rest].bytes(one - matrices)


def decode_flops(arch, context):
    """FLOPs of one more token of a sequence: two for each weight that it uses, and attention to `context` tokens.

    Latent attention is absorbed, that is, it attends to the latent vectors themselves: the matrices that would turn
    them into keys and values are applied to the query and the result.
                                                              [DeepSeek-V2, arXiv:2405.04434, sec. 2.1.2 and appendix C]
    """
    width = arch.query_width + arch.value_width
    if arch.mla is not None:
        width = 2 * arch.mla.kv_lora_rank + arch.mla.qk_rope_head_dim
    pairs = len(arch.stacks) * sum(parts.attended(arch, context)[-arch.stacks[-1]:])  # a decoder attends twice
    return 2 * (sum(part.products for part in parts.decoder_parts(arch)) + arch.n_heads * width * pairs)


def turning_batch(arch, machine, context, limit=2**20, **formats):
    """The smallest batch size at which a step is compute-bound; None if even `limit` is not.

    Smaller batches are memory-bound: reading takes longer than computing.  The KV cache, which is read for each
    sequence, can make every batch size memory-bound.

    Args:
        arch: Architecture.
        machine: Machine.
        context: tokens of each sequence.
        limit: the largest batch size that is tried.
        formats: `rest`, `experts` and `cache` of `decode_step`.
    """
    def computes(batch):
        step = decode_step(arch, batch, context, **formats)
        return step.flops / machine.flops >= step.bytes / machine.bandwidth

    if not computes(limit):
        return None
    low, high = 0, limit
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if computes(middle) else (middle, high)
    return high


def offload_seconds(arch, machine, batch, resident, rest="bf16", experts=None, distinct=None):
    """Time per step to fetch experts from the host's memory.  With even routing, resident/E of those used are present.

    Args:
        arch: Architecture.
        machine: Machine.
        batch: sequences.
        resident: number of experts of each layer that are in the machine's memory.
        rest: format of all weights except the experts' matrices.
        experts: format of the experts' matrices; None: the same.
        distinct: experts of a layer that the batch uses; None is the mean of even routing.
    """
    E = arch.n_routed_experts
    if not 0 <= resident <= E:
        raise ValueError(f"resident = {resident}: must be from 0 to the {E} experts of a layer")
    if E == 0:
        return 0.0
    used = distinct_experts(E, arch.top_k, batch) if distinct is None else distinct
    return _moe_layers(arch) * used * (1 - resident / E) * expert_bytes(arch, rest, experts) / machine.host


def misses(routing, resident):
    """Share of a sequence's uses of experts that miss a cache of the `resident` most recently used ones.

    routing: of one layer; the cache is empty at the start of each sequence.  A token's experts are needed together;
    missing ones replace the least recently used.  Dropped assignments need no expert.
                                                        [after Eliseev & Mazur 2023, arXiv:2312.17238, sec. 3.1]
    """
    S, missed = routing.n_tokens // routing.tokens.n_sequences, 0
    order = np.lexsort((routing.rank_A, routing.token_A))
    token_N, expert_N = (a[order][routing.kept_A[order]] for a in (routing.token_A, routing.expert_A))
    held, sequence = [], -1  # the most recently used is at the end
    for token in np.unique(token_N):
        if token // S != sequence:
            held, sequence = [], token // S
        needed = expert_N[token_N == token].tolist()
        missed += sum(expert not in held for expert in needed)
        held = [expert for expert in held if expert not in needed] + needed[::-1]
        held = held[max(len(held) - resident, 0):]
    return missed / max(len(token_N), 1)
