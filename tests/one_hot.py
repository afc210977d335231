"""Routes one-hot tokens, x = identity: then a router's weights are its scores, and their gradients too."""

import numpy as np

from minimoe.config import ModelConfig
from minimoe.moe import routers
from minimoe.moe.routers import ROUTERS
from minimoe.moe.routing import Tokens


def config_for(name, logit_TE, **options):
    """A configuration of a router for so many one-hot tokens, their number made even for the heads."""
    T, E = logit_TE.shape
    options = {"top_k": min(ROUTERS[name].FACTS.top_k or 2, E)} | options
    return ModelConfig(d_model=T + T % 2, n_heads=1, router=name, n_experts=E, **options)


def route(name, logit_TE, training=False, seed=None, mask_T=None, weights=None, replay=None, **options):
    """What a router makes of these scores.  weights: of its others.  Returns a Routing, cache."""
    T, E = logit_TE.shape
    config = config_for(name, logit_TE, **options)
    weights = {"w_router_DE": np.resize(logit_TE, (config.d_model, E))} | (weights or {})
    rng = None if seed is None else np.random.default_rng(seed)
    real = Tokens.anonymous(np.ones(T, bool) if mask_T is None else mask_T)
    return routers.POLICIES[name].forward(np.eye(T, config.d_model), weights, config, real, training, rng, replay)


def choices(routing):
    """The experts of each token, best first, as lists."""
    return [routing.expert_A[routing.token_A == t].tolist() for t in range(routing.n_tokens)]
