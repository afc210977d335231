"""Small models that cover every router and every option that a cost depends on: one list for this folder."""

from dataclasses import replace

from minimoe.config import ModelConfig
from minimoe.moe.routers import ROUTERS
from tests.cases import with_router

CONFIG = ModelConfig(vocab_size=13, d_model=12, n_layers=3, n_heads=2, d_hidden=10, n_experts=6, top_k=2,
                     max_sequence=9)
TINY = ModelConfig(vocab_size=5, d_model=4, n_layers=1, n_heads=2, n_kv_heads=1, d_hidden=3, n_experts=2, top_k=1)


BY_ROUTER = {name: with_router(CONFIG, name) for name in ROUTERS}
SHAPES = {name: replace(CONFIG, **fields) for name, fields in {
    "grouped heads": dict(n_kv_heads=1),
    "tied": dict(tie_embeddings=True),
    "one layer": dict(n_layers=1),
    "one expert": dict(n_experts=1, top_k=1),
    "all experts": dict(top_k=6),
    "many experts": dict(n_experts=20),
    "shared experts": dict(n_shared_experts=3),
    "first layer dense": dict(first_dense_layers=1, d_dense=7),
    "every second layer": dict(moe_every=2, n_shared_experts=1),
    "every second after the first": dict(n_layers=5, first_dense_layers=1, moe_every=2),
    "no layer so late": dict(moe_every=4),
    "all layers dense, as wide as shared experts": dict(first_dense_layers=3, n_shared_experts=1),
    "groups of experts": dict(router="sigmoid_bias", n_groups=3, top_groups=2),
    "soft after dense": dict(router="soft", first_dense_layers=1, max_sequence=100),
    "soft with one slot per expert": dict(router="soft", n_experts=20),  # 2 * 9 / 20 is below 1
}.items()}
LIMITS = {name: replace(CONFIG, **fields) for name, fields in {
    "capacity": dict(capacity_factor=1.25),
    "dropless, padded": dict(pad_experts=True),
    "dropped by position": dict(capacity_factor=0.3),
    "dropped by rank, padded": dict(capacity_factor=0.3, drop_order="rank", pad_experts=True),
    "dropped by priority": dict(capacity_factor=0.3, drop_order="priority"),
    "dropped at random, padded": dict(capacity_factor=0.3, drop_order="random", pad_experts=True),
    "expert choice, dropped": dict(router="expert_choice", capacity_factor=0.3),
    "second choice, padded": dict(router="gshard", capacity_factor=1.0, pad_experts=True),
    "balance over groups": dict(global_balance=True, balance_coef=0.1),
}.items()}
"""Ways to limit or to fill the experts: no weight depends on them."""
COVERING = BY_ROUTER | SHAPES | LIMITS
