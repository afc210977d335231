"""The weights of a model, part by part: all counts of parameters, FLOPs and bytes add up this list."""

import functools
from typing import NamedTuple

from minimoe.cost.architecture import FEED_FORWARD

BUCKETS = 32
"""Distances that relative positions tell apart, each with a number a head [T5, arXiv:1910.10683, sec. 2.1]."""

NAMES = ("embedding", "positions", "norms", "attention", "router", "experts", "shared experts", "dense", "head")


class Part(NamedTuple):
    """Weights of one kind in one layer.

    layer: None outside of the layers.  name: of NAMES.  total, active: parameters, in all, and those of one token.
    products: multiply-adds that the matrix products of one token take with them, forward.
    """

    layer: int | None
    name: str
    total: int
    active: int
    products: int


class Parameters(NamedTuple):
    """Numbers of parameters.  Active is what one token uses; papers differ in which embeddings they count."""

    total: int
    active: int
    active_without_input_embedding: int
    active_without_embeddings: int

    def record(self):
        """Each count under its name in JSON, of files, lists and pages alike."""
        return {"total": self.total, "active_incl_all_embeddings": self.active,
                "active_excl_input_embedding": self.active_without_input_embedding,
                "active_non_embedding": self.active_without_embeddings}


@functools.cache
def parts(arch):
    """All parts of an Architecture, a tuple in the order of the forward pass."""
    table = arch.vocab * arch.d_model
    found = [Part(None, "embedding", table, table, 0)]  # a look-up
    if arch.positions == "learned":
        found.append(_whole(None, "positions", arch.ctx * arch.d_model, 0))
    for i, kind in enumerate(arch.kinds):
        found += _layer(arch, i, kind)
    final_norms = len(arch.stacks) * arch.norm_vectors * arch.d_model
    found.append(_whole(None, "norms", final_norms, 0))
    if arch.positions == "relative":
        found.append(_whole(None, "attention", len(arch.stacks) * BUCKETS * arch.n_heads, 0))
    own = 0 if arch.tied_embeddings else table + ("head" in arch.biased) * arch.vocab
    return (*found, _whole(None, "head", own, table))


@functools.cache
def decoding(arch):
    """The parts that one more token of a text needs: all; of two stacks the decoder's, whose keys and values of the
    other text are there already.
    """
    if len(arch.stacks) == 1:
        return parts(arch)
    keys_values = 2 * arch.d_model * arch.kv_heads * arch.query_width
    first = arch.stacks[0]
    used = [part for part in parts(arch) if part.layer is None or part.layer >= first]
    return tuple(part._replace(total=part.total - keys_values, active=part.active - keys_values,
                               products=part.products - keys_values)
                 if part.name == "attention" and part.layer is not None else part for part in used)


def parameters(arch):
    """Total and active parameters.

        active = total - (1 - K/E) * parameters of the experts that tokens are sent to
    """
    listed = parts(arch)
    total, active = sum(part.total for part in listed), sum(part.active for part in listed)
    of = {name: sum(part.total for part in listed if part.name == name) for name in NAMES}
    without_input = active if arch.tied_embeddings else active - of["embedding"]  # a tied table is also the head
    return Parameters(total, active, without_input, active - of["embedding"] - of["positions"] - of["head"])


def called(arch, name):
    """The name that a part is shown under: what every token uses is a dense block, be it the only expert."""
    return "dense" if arch.dense and name in ("experts", "shared experts") else name


def n_attentions(arch, layer):
    """A decoder that stands behind an encoder looks at its own stack and at the other."""
    return 2 if len(arch.stacks) == 2 and layer >= arch.stacks[0] else 1


def _whole(layer, name, total, products):
    """A part that every token uses."""
    return Part(layer, name, total, total, products)


def _layer(arch, i, kind):
    n, (attention, matrices, inner_norms) = n_attentions(arch, i), _attention(arch)
    n_norms = n + 1 if arch.n_norms is None else n - 1 + arch.n_norms
    yield _whole(i, "norms", n_norms * arch.norm_vectors * arch.d_model + n * inner_norms, 0)
    yield _whole(i, "attention", n * attention, n * matrices)
    if kind == "dense":
        yield _whole(i, "dense", *_feed_forward(arch, arch.dense_ffn_hidden, "dense" in arch.biased))
        return
    D, E, K = arch.d_model, arch.n_routed_experts, arch.top_k
    columns = _router_columns(arch)
    yield _whole(i, "router", D * columns + ("router" in arch.biased) * columns + (arch.soft_slots > 0),
                 (3 if arch.soft_slots else 1) * D * columns)
    one, products = _feed_forward(arch, arch.expert_hidden, "experts" in arch.biased)
    yield Part(i, "experts", E * one, K * one, K * products)
    if arch.n_shared_experts:
        shared, products = _feed_forward(arch, arch.shared_width, "shared" in arch.biased, arch.n_shared_experts)
        gate = D if arch.shared_gate else 0
        yield _whole(i, "shared experts", shared + gate, products + gate)


def _router_columns(arch):
    """Numbers that a router makes of a token.  Soft MoE makes one a slot, and mixes with them to slots and back."""
    if arch.soft_slots:
        return arch.soft_slots
    return arch.n_routed_experts * arch.router_matrices


def _attention(arch):
    """Of one attention: parameters, those of its matrices, and those of norms inside it."""
    D, H, G, P, m = arch.d_model, arch.n_heads, arch.kv_heads, arch.query_width, arch.mla
    if m is None:
        matrices, inner_norms = D * (H + 2 * G) * P + H * P * D, 0
        biases = ("qkv" in arch.biased) * (H + 2 * G) * P
    else:
        narrow, value = m.kv_lora_rank + m.qk_rope_head_dim, m.v_head_dim
        queries = D * H * P if m.q_lora_rank is None else m.q_lora_rank * (D + H * P)
        keys_values = D * narrow + m.kv_lora_rank * H * (m.qk_nope_head_dim + value)
        matrices, inner_norms = queries + keys_values + H * value * D, (m.q_lora_rank or 0) + m.kv_lora_rank
        biases = ("qkv" in arch.biased) * ((m.q_lora_rank or H * P) + narrow)
    if arch.qk_norm:
        inner_norms += 2 * P if arch.qk_norm == "per head" else (H + G) * P
    biases += ("out" in arch.biased) * D + (H if arch.sinks else 0)
    return matrices + biases, matrices, inner_norms


def _feed_forward(arch, width, biased, blocks=1):
    """Parameters of feed-forward blocks with `width` hidden numbers in all, and those of their matrices."""
    n = FEED_FORWARD[arch.ffn_type]
    matrices = n * arch.d_model * width
    return matrices + biased * ((n - 1) * width + blocks * arch.d_model), matrices
