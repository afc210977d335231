"""Switch: the single best expert, whose gate is the raw probability; in training the router's input is jittered."""

from typing import NamedTuple

import numpy as np

from minimoe.moe import routing
from minimoe.moe.facts import Facts, Rule
from minimoe.moe.routers import softmax_topk


def jitter_numbers(config, n_tokens):
    """How many numbers the forward stores because of jitter: the factors; and the jittered input, where shared experts
    store the input without it."""
    n_arrays = 2 if config.n_shared_experts else 1
    return n_arrays * n_tokens * config.d_model if config.jitter > 0 else 0


FACTS = Facts(
    summary="the single best expert, with the raw probability as gate, and jitter on the router's input (Switch)",
    losses=dict(balance=0.01),
    options=("jitter",),
    settings={"without jitter": dict(jitter=0)},
    top_k=1,
    evaluation="without jitter",
    kept_more=jitter_numbers,
    explorer=Rule(),
)

weights = softmax_topk.weights


class SwitchCache(NamedTuple):
    """The factors on the router's input, None without jitter; and the cache of softmax top-k."""

    factor_TD: np.ndarray | None
    topk: softmax_topk.SoftmaxTopKCache


def forward(x_TD, weights, config, tokens, training=False, rng=None, replay=None):
    """Softmax top-1 of a jittered copy of the tokens; the experts get the original tokens.

        p = softmax((x * u) W), u from U(1 - jitter, 1 + jitter);  y = p_i E_i(x)

                                                        [Switch, arXiv:2101.03961, eq. 1-2 and sec. 2.4]
    The gate is the raw probability: a renormalized gate, p / p = 1, would give the router no gradient from the task.
    Returns a Routing, cache.
    """
    factor_TD = None
    if training and config.jitter > 0:
        routing.require_rng(rng, "router 'switch'")
        factor_TD = rng.uniform(1 - config.jitter, 1 + config.jitter, x_TD.shape).astype(x_TD.real.dtype)
        x_TD = x_TD * factor_TD
    result, topk = softmax_topk.forward(x_TD, weights, config, tokens, replay=replay)
    return result, SwitchCache(factor_TD, topk)


def backward(grad, cache):
    """Gradients of x_TD and, as a dict, of the weights.  grad: RoutingGrad."""
    dx_TD, dweights = softmax_topk.backward(grad, cache.topk)
    if cache.factor_TD is not None:
        dx_TD = dx_TD * cache.factor_TD  # the router saw x * factor
    return dx_TD, dweights
