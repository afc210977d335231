"""Shared by the tests of this folder: small models that cover all that costs depend on, and a Routing of choices."""

from dataclasses import replace

import numpy as np

from minimoe.config import ModelConfig
from minimoe.moe import capacity, routing
from minimoe.moe.routers import ROUTERS
from minimoe.moe.routing import Tokens
from tests.cases import with_router

CONFIG = ModelConfig(vocab_size=13, d_model=12, n_layers=3, n_heads=2, d_hidden=10, n_experts=6, top_k=2,
                     max_sequence=9)
TINY = ModelConfig(vocab_size=5, d_model=4, n_layers=1, n_heads=2, n_kv_heads=1, d_hidden=3, n_experts=2, top_k=1)
BY_ROUTER = {name: with_router(CONFIG, name) for name in ROUTERS}
SHAPES = {name: replace(CONFIG, **fields) for name, fields in {
    "grouped heads": dict(n_kv_heads=1), "wide heads": dict(n_heads=3, d_head=6),
    "tied": dict(tie_embeddings=True), "shared experts": dict(n_shared_experts=3),
    "one expert": dict(n_experts=1, top_k=1), "all experts": dict(top_k=6),
    "first layer dense": dict(first_dense_layers=1, d_dense=7),
    "every second after the first": dict(n_layers=5, first_dense_layers=1, moe_every=2, n_shared_experts=1),
    "no layer so late": dict(moe_every=4), "all layers dense": dict(first_dense_layers=3, n_shared_experts=1),
    "groups of experts": dict(router="sigmoid_bias", n_groups=3, top_groups=2),
    "soft after dense": dict(router="soft", first_dense_layers=1, d_dense=7),
    "soft, one slot per expert": dict(router="soft", n_experts=20),  # 2 * 9 / 20 is below 1
}.items()}
LIMITS = {name: replace(CONFIG, **fields) for name, fields in {
    "capacity": dict(capacity_factor=1.25), "dropless, padded": dict(pad_experts=True),
    "dropped by position": dict(capacity_factor=0.3),
    "dropped by rank, padded": dict(capacity_factor=0.3, drop_order="rank", pad_experts=True),
    "dropped at random, padded": dict(capacity_factor=0.3, drop_order="random", pad_experts=True),
    "expert choice, dropped": dict(router="expert_choice", capacity_factor=0.3),
    "second choice, padded": dict(router="gshard", capacity_factor=1.0, pad_experts=True),
    "balance over groups": dict(global_balance=True, balance_coef=0.1),
}.items()}
"""Ways to limit or to fill the experts: no weight depends on them."""
COVERING = BY_ROUTER | SHAPES | LIMITS


def sent_to(expert_BSK, n_experts, factor=None, mask_BS=None):
    """The Routing of these choices: gates of 1/K, queues in the order of tokens.  factor: capacity factor."""
    expert_BSK = np.array(expert_BSK)
    tokens = Tokens.of_batch(np.zeros(expert_BSK.shape[:2], int), mask_BS)
    unlimited = routing.scoreless_routing(expert_BSK.reshape(-1, expert_BSK.shape[2]), tokens, n_experts, float)
    return capacity.keep_forward(unlimited, expert_BSK.shape[2], factor, "position")[0]
