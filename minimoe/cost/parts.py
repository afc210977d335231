"""The weights of a model, part by part.  All counts of parameters, FLOPs and bytes are sums over this list."""

import functools
from typing import NamedTuple

from minimoe.cost.architecture import FFN_MATRICES

BUCKETS = 32
"""Number of distances that relative positions distinguish, one number per head for each [T5, arXiv:1910.10683, 2.1]."""

NAMES = ("embedding", "positions", "norms", "attention", "router", "experts", "shared experts", "dense", "head")


class Part(NamedTuple):
    """Weights of one kind in one layer.

    layer: its index from 0; None outside the layers.
    name: one of NAMES.
    total: number of parameters.
    active: number of parameters that one token uses.
    products: multiply-adds of one token's matrix products with them, forward.
    """

    layer: int | None
    name: str
    total: int
    active: int
    products: int


class Parameters(NamedTuple):
    """Numbers of parameters.  Active is what one token uses; papers differ in which embeddings they count.

    total: all parameters.
    active: with all embeddings.
    active_without_input_embedding: without the table in which tokens are looked up, unless it is also the head.
    active_without_embeddings: without that table, learned positions and the head.
    """

    total: int
    active: int
    active_without_input_embedding: int
    active_without_embeddings: int

    def record(self):
        """Each count under its name in all JSON output."""
        return {"total": self.total, "active_incl_all_embeddings": self.active,
                "active_excl_input_embedding": self.active_without_input_embedding,
                "active_non_embedding": self.active_without_embeddings}


@functools.cache
def parts(arch):
    """All parts of an Architecture, as a tuple in the order of the forward pass."""
    table = arch.vocab * arch.d_model
    listed = [Part(None, "embedding", table, table, 0)]  # a look-up
    if arch.positions == "learned":
        listed.append(_used_by_all(None, "positions", arch.ctx * arch.d_model, 0))
    attentions = {kind: _attention(arch, kind) for kind in set(arch.attentions)}
    for i, (kind, attention) in enumerate(zip(arch.kinds, arch.attentions, strict=True)):
        listed += _layer(arch, i, kind, attentions[attention])
    listed.append(_used_by_all(None, "norms", len(arch.stacks) * _norm_vectors(arch) * arch.d_model, 0))
    if arch.positions == "relative":
        listed.append(_used_by_all(None, "attention", len(arch.stacks) * BUCKETS * arch.n_heads, 0))
    head = (not arch.tied_embeddings) * table + ("head" in arch.biased) * arch.vocab
    return (*listed, _used_by_all(None, "head", head, table))


@functools.cache
def decoder_parts(arch):
    """The parts that one more token of a sequence needs: all parts, or with two stacks the decoder's.

    The decoder's keys and values for the encoder's sequence are in the cache, so their matrices are left out.
    """
    if len(arch.stacks) == 1:
        return parts(arch)
    keys_values = arch.d_model * arch.kv_heads * (arch.query_width + arch.value_width)
    first = arch.stacks[0]
    used = [part for part in parts(arch) if part.layer is None or part.layer >= first]
    return tuple(part._replace(total=part.total - keys_values, active=part.active - keys_values,
                               products=part.products - keys_values)
                 if part.name == "attention" and part.layer is not None else part for part in used)


def parameters(arch):
    """Total and active Parameters.

        active = total - (1 - K/E) * parameters of the routed experts
    """
    listed = parts(arch)
    total, active = sum(part.total for part in listed), sum(part.active for part in listed)
    embedding, positions, head = (sum(part.total for part in listed if part.name == name)
                                  for name in ("embedding", "positions", "head"))
    without_input = active if arch.tied_embeddings else active - embedding  # a tied table is also the head
    return Parameters(total, active, without_input, active - embedding - positions - head)


def shown_name(arch, name):
    """The display name of a part: a network that every token uses is called dense, even if it is the only expert."""
    return "dense" if arch.dense and name in ("experts", "shared experts") else name


def n_attentions(arch, layer):
    """Number of attentions in a layer: the decoder of two stacks attends to itself and to the encoder."""
    return 2 if len(arch.stacks) == 2 and layer >= arch.stacks[0] else 1


def attended(arch, context, causal=False):
    """Tokens that one token attends to in each layer: the whole context, masked or not, or what a window holds of it.

    A linear layer adds keys times values to its state and takes queries times the state: as much work as to attend to
    as many tokens as a query is wide.

    Args:
        arch: Architecture.
        context: S, tokens of the sequence.
        causal: leave masked tokens out, as a causal kernel does; the mean over the sequence.  Of the last W tokens, or
            of all with W = S, that is W - W (W - 1) / 2S.  Nothing is masked in an encoder, and a decoder's layer has
            one attention of each kind.
    """
    window = min(context, arch.window or context)
    full, window = (width - causal * width * (width - 1) / max(2 * context, 1) for width in (context, window))
    tokens = {"full": full, "window": window, "linear": arch.query_width}
    if len(arch.stacks) == 2:
        encoder, decoder = arch.stacks
        return [context] * encoder + [(full + context) / 2] * decoder
    return [tokens[kind] for kind in arch.attentions]


def shared_width(arch):
    """Width of the hidden layers of all shared experts together."""
    return arch.n_shared_experts * (arch.shared_hidden or arch.expert_hidden or 0)


def _used_by_all(layer, name, total, products):
    """A part that every token uses."""
    return Part(layer, name, total, total, products)


def _layer(arch, i, kind, of_attention):
    n, (attention, matrices, inner_norms) = n_attentions(arch, i), of_attention
    n_norms = n + 1 if arch.n_norms is None else n - 1 + arch.n_norms
    yield _used_by_all(i, "norms", n_norms * _norm_vectors(arch) * arch.d_model + n * inner_norms, 0)
    yield _used_by_all(i, "attention", n * attention, n * matrices)
    if kind == "dense":
        yield _used_by_all(i, "dense", *_feed_forward(arch, arch.dense_ffn_hidden, "dense" in arch.biased))
        return
    D, E, K = arch.d_model, arch.n_routed_experts, arch.top_k
    columns = _router_columns(arch)
    yield _used_by_all(i, "router", D * columns + ("router" in arch.biased) * columns + (arch.soft_slots > 0),
                       (3 if arch.soft_slots else 1) * D * columns)
    one, products = _feed_forward(arch, arch.expert_hidden, "experts" in arch.biased)
    yield Part(i, "experts", E * one, K * one, K * products)
    if arch.n_shared_experts:
        shared, products = _feed_forward(arch, shared_width(arch), "shared" in arch.biased, arch.n_shared_experts)
        gate = D if arch.shared_gate else 0
        yield _used_by_all(i, "shared experts", shared + gate, products + gate)


def _norm_vectors(arch):
    """Number of vectors of a norm: its gain, if it has one, and the bias of a LayerNorm where norms have biases."""
    layer_norm = arch.norm == "LayerNorm" or (not arch.norm and arch.biases is True)
    return 0 if arch.norm == "without weights" else 1 + (layer_norm and "norms" in arch.biased)


def _router_columns(arch):
    """How many numbers a router computes per token.  Soft MoE computes one per slot, for mixing into slots and back."""
    return arch.soft_slots or arch.n_routed_experts * arch.router_matrices


def _attention(arch, kind):
    """Parameters of one attention of a kind: of its matrices and biases, of its matrices, and of norms inside it."""
    D, H, P, value, latent = arch.d_model, arch.n_heads, arch.query_width, arch.value_width, arch.mla
    G = H if kind == "linear" else arch.kv_heads
    if latent is None:
        made, linear = H * P + G * (P + value), kind == "linear"
        matrices, inner_norms = D * made + (1 + linear) * H * value * D, linear * H * value  # linear: a gate, a norm
        biases = ("qkv" in arch.biased) * made
    else:
        rank, narrow = latent.q_lora_rank, latent.kv_lora_rank + latent.qk_rope_head_dim
        queries = D * H * P if rank is None else rank * (D + H * P)
        keys_values = D * narrow + latent.kv_lora_rank * H * (latent.qk_nope_head_dim + value)
        matrices, inner_norms = queries + keys_values + H * value * D, (rank or 0) + latent.kv_lora_rank
        biases = ("qkv" in arch.biased) * ((rank or H * P) + narrow)
    if arch.qk_norm:
        inner_norms += 2 * P if arch.qk_norm == "per head" else (H + G) * P
    biases += ("out" in arch.biased) * D + (H if arch.sinks else 0)
    return matrices + biases, matrices, inner_norms


def _feed_forward(arch, width, biased, blocks=1):
    """Parameters of feed-forward networks: all of them, and those of matrices.

    Args:
        arch: Architecture.
        width: total width of their hidden layers.
        biased: whether each matrix has biases.
        blocks: number of networks that share the width.
    """
    n = FFN_MATRICES[arch.ffn_type]
    matrices = n * arch.d_model * width
    return matrices + biased * ((n - 1) * width + blocks * arch.d_model), matrices
