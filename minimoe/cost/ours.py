"""Our own models, described in the same way as published ones."""

from minimoe.cost.architecture import Architecture
from minimoe.moe import routers, soft

WORDS = {0: "fixed", 1: None, 2: "noisy"}
"""Number of a router's matrices -> the word for it in a description."""


def architecture(config):
    """The Architecture of a ModelConfig."""
    has_experts = any(kind != "dense" for kind in config.layer_kinds)
    return Architecture(
        vocab=config.vocab_size, d_model=config.d_model, n_layers=config.n_layers, n_heads=config.n_heads,
        n_kv_heads=config.kv_heads, head_dim=config.d_head, moe_every_n=config.moe_every,
        dense_ffn_hidden=config.dense_width, tied_embeddings=config.tie_embeddings, ctx=config.max_sequence,
        **(_experts(config) if has_experts else {}))


def _experts(config):
    """The fields that only a model with experts has."""
    facts = routers.ROUTERS[config.router].FACTS
    return dict(
        n_routed_experts=config.n_experts, top_k=config.top_k, expert_hidden=config.d_hidden,
        router="soft" if facts.soft else WORDS[facts.matrices], biases="router" if facts.has_bias else None,
        soft_slots=config.n_experts * soft.slots_per_expert(config) if facts.soft else 0,
        n_shared_experts=config.n_shared_experts, dense_first_layers=config.first_dense_layers)
