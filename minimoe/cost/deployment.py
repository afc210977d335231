"""What a token costs where a model is used: the bytes that one step of decoding reads, and the time on a machine.

A step makes one token for each of B texts.  It reads every weight that any of them uses, once, and the keys and values
of each; so a MoE that is small in FLOPs can be large in bytes: its texts use different experts.
"""

from collections import Counter
from typing import NamedTuple

import numpy as np

from minimoe.cost import parts
from minimoe.cost.memory import FORMATS, kv_numbers

CACHE = "keys and values"


class Machine(NamedTuple):
    """A device by its data sheet.

    bandwidth: of its memory, bytes/s.   flops: of dense matrix products, FLOP/s, in the format that the words say;
    others are slower or faster, which is left to the user's own number.   memory: bytes.
    link: to its neighbours, each way, bytes/s.   host: from the host's memory, bytes/s.
    """

    words: str
    bandwidth: float
    flops: float
    memory: float
    link: float
    host: float


BATCHES = (1, 4, 16, 64, 256)
"""Texts at once that tables show."""

MACHINES = {
    "h100": Machine("NVIDIA H100 SXM, its data sheet, products in 16 bits", 3.35e12, 989.4e12, 80e9, 450e9, 64e9),
    "a100": Machine("NVIDIA A100 SXM 80 GB, its data sheet, products in 16 bits", 2.039e12, 312e12, 80e9, 300e9, 32e9),
    "rtx4090": Machine("NVIDIA GeForce RTX 4090, Ada white paper, products in 16 bits; PCIe 4.0 x16", 1.008e12,
                       165.2e12, 24e9, 32e9, 32e9),
    "ddr5": Machine("two channels of DDR5-5600 (2 x 8 bytes x 5.6e9/s), 8 cores of 64 float32 FLOPs a cycle at 4 GHz",
                    89.6e9, 2.048e12, 64e9, 16e9, 7e9),
}
"""Name -> Machine: peaks, which real programs stay below.  ddr5: by arithmetic; its host is an SSD, PCIe 4.0 x4."""


def distinct_experts(n_experts, top_k, batch):
    """Experts of a layer that a batch of tokens uses, on average, if each token's K are any K alike.

        E (1 - (1 - K/E)^B)         not E (1 - (1 - 1/E)^(K B)): a token's experts are K different ones
    """
    return n_experts * (1 - (1 - top_k / n_experts) ** batch)


def drawn_experts(n_experts, top_k, batch, rng, draws=1000):
    """The same by drawing lots: the count of each draw.  rng: numpy.random.Generator."""
    chosen = np.argsort(rng.random((draws, batch, n_experts)), axis=2, kind="stable") < top_k
    return chosen.any(axis=1).sum(axis=1)


def touched_experts(routing, batch):
    """The same of a real Routing, which is not even: one entry for each batch of `batch` texts at one position.

    What was dropped is not used.

    routing: of whole sequences; texts that follow one another make a batch, and what is left over is left out.
    Raises ValueError if there are not as many sequences.
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


class Step(NamedTuple):
    """One step of decoding, for a batch.  weights, cache: bytes that are read.  flops: of its matrix products."""

    weights: float
    cache: float
    flops: float

    @property
    def bytes(self):
        """All bytes that are read."""
        return self.weights + self.cache

    @property
    def intensity(self):
        """FLOPs for each byte."""
        return self.flops / self.bytes

    def seconds(self, machine):
        """Time on a machine that reads and computes at its peaks, one beside the other: the slower counts.

                                                        [Williams 2009, "Roofline", CACM 52(4)]
        """
        return max(self.bytes / machine.bandwidth, self.flops / machine.flops)


def decode_step(arch, batch, context, rest="bf16", experts=None, cache="bf16", distinct=None):
    """The Step that makes one token for each of `batch` texts of `context` tokens.

    rest, experts, cache: formats, see `memory.FORMATS`.   distinct: experts of a layer that the batch uses; None is the
    mean of even routing.
    """
    read = bytes_read(arch, batch, context, rest, experts, cache, distinct)
    return Step(sum(read.values()) - read[CACHE], read[CACHE], batch * decode_flops(arch, context))


def bytes_read(arch, batch, context, rest="bf16", experts=None, cache="bf16", distinct=None):
    """Bytes that the step reads of each part, and of the cache: name -> bytes.

        weights of what every token uses + layers * distinct * an expert + batch * context * keys and values

    Of a table that is looked up, of tokens or positions, a row a text is read: nothing beside the rest.
    """
    E, read = arch.n_routed_experts, Counter()
    if distinct is None and E:
        distinct = distinct_experts(E, arch.top_k, batch)
    for part in parts.decoding(arch):
        if part.name == "experts":
            read[part.name] += distinct * expert_bytes(arch, rest, experts)
        elif part.name == "embedding" and arch.tied_embeddings:
            read["head"] += FORMATS[rest].bytes(part.total)
        elif part.name not in ("embedding", "positions"):
            read[part.name] += FORMATS[rest].bytes(part.total)
    read[CACHE] = batch * context * FORMATS[cache].bytes(kv_numbers(arch))
    return dict(read)


def _moe_layers(arch):
    return sum(part.name == "experts" for part in parts.decoding(arch))


def expert_bytes(arch, rest="bf16", experts=None):
    """Bytes of one routed expert of one layer; 0 for a dense model."""
    part = next((part for part in parts.parts(arch) if part.name == "experts"), None)
    if part is None:
        return 0.0
    matrices, one = part.products // arch.top_k, part.total // arch.n_routed_experts
    return FORMATS[experts or rest].bytes(matrices) + FORMATS[rest].bytes(one - matrices)


def decode_flops(arch, context):
    """FLOPs of one more token of one text: two for each weight that it uses, and attention to `context` tokens.

    Latent attention looks at the latent vectors themselves: what makes keys and values of them is multiplied into the
    query and the result instead                              [DeepSeek-V2, arXiv:2405.04434, sec. 2.1.2 and appendix C]
    """
    H = arch.n_heads
    width = arch.query_width + arch.value_width
    if arch.mla is not None:
        width = 2 * arch.mla.kv_lora_rank + arch.mla.qk_rope_head_dim
    looks = len(arch.stacks) * arch.stacks[-1]  # a decoder's layer looks at two texts, which are taken as equally long
    return 2 * sum(part.products for part in parts.decoding(arch)) + 2 * looks * H * width * context


def turning_batch(arch, machine, context, limit=2**20, **formats):
    """The smallest batch at which a step takes as long to compute as to read; None if even `limit` texts do not.

    Below it the machine waits for bytes.  A cache that is read for each text can keep it waiting for ever.
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
    """Time of a step to fetch experts from the host's memory, when `resident` of each layer's E are on the machine.

    Even routing: a share resident/E of those that are used is there already.
    """
    E = arch.n_routed_experts
    if not 0 <= resident <= E:
        raise ValueError(f"resident = {resident}: must be from 0 to the {E} experts of a layer")
    if E == 0:
        return 0.0
    used = distinct_experts(E, arch.top_k, batch) if distinct is None else distinct
    return _moe_layers(arch) * used * (1 - resident / E) * expert_bytes(arch, rest, experts) / machine.host


def misses(routing, resident):
    """Share of a text's uses of experts that are not among the `resident` ones used last, token after token.

    routing: of one layer; each of its sequences begins with none resident.  A token's experts are needed together: what
    it lacks is fetched, in place of those that were not used for the longest time.  What was dropped is not needed.
                                                        [after Eliseev & Mazur 2023, arXiv:2312.17238, sec. 3.1]
    """
    S, missed = routing.n_tokens // routing.tokens.n_sequences, 0
    order = np.lexsort((routing.rank_A, routing.token_A))
    token_N, expert_N = (a[order][routing.kept_A[order]] for a in (routing.token_A, routing.expert_A))
    held, text = [], -1  # the one used last is at the end
    for token in np.unique(token_N):
        if token // S != text:
            held, text = [], token // S
        needed = expert_N[token_N == token].tolist()
        missed += sum(expert not in held for expert in needed)
        held = [expert for expert in held if expert not in needed] + needed[::-1]
        held = held[max(len(held) - resident, 0):]
    return missed / max(len(token_N), 1)
