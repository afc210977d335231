"""Our own models, described as published ones are."""

from minimoe.cost.architecture import Architecture
from minimoe.moe import soft
from minimoe.names import ROUTERS

WORDS = {"noisy_topk": "noisy", "hash": "fixed", "random": "fixed", "uniform": "fixed", "soft": "soft"}
"""Router -> what a description says of it, where that changes the count: a second matrix, none, slots."""


def architecture(config):
    """The Architecture of a ModelConfig."""
    has_experts = any(kind != "dense" for kind in config.layer_kinds)
    return Architecture(
        vocab=config.vocab_size, d_model=config.d_model, n_layers=config.n_layers, n_heads=config.n_heads,
        n_kv_heads=config.kv_heads, moe_every_n=config.moe_every, dense_ffn_hidden=config.dense_width,
        tied_embeddings=config.tie_embeddings, ctx=config.max_sequence, **(_experts(config) if has_experts else {}))


def _experts(config):
    """What only a model with experts has."""
    return dict(
        n_routed_experts=config.n_experts, top_k=config.top_k, expert_hidden=config.d_hidden,
        router=WORDS.get(config.router), biases="router" if config.router == "sigmoid_bias" else None,
        soft_slots=config.n_experts * soft.slots_per_expert(config) if ROUTERS[config.router].soft else 0,
        n_shared_experts=config.n_shared_experts, dense_first_layers=config.first_dense_layers)
