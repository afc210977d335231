"""Switch: the one best expert, its gate the raw probability; in training the router sees its input through jitter."""

from typing import NamedTuple

import numpy as np

from minimoe.moe import routing
from minimoe.moe.facts import Facts, Rule
from minimoe.moe.routers import softmax_topk


def jitter_numbers(config, n_tokens):
    """Numbers that jitter makes the forward keep: the factors; and the input with them, where shared experts keep it
    without."""
    n_arrays = 2 if config.n_shared_experts else 1
    return n_arrays * n_tokens * config.d_model if config.jitter > 0 else 0


FACTS = Facts(
    summary="the one best expert, its gate the raw probability; jitter on the router's input (Switch)",
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
    """What the router's input was multiplied by; None without jitter.  Then the cache of softmax top-k."""

    factor_TD: np.ndarray | None
    topk: softmax_topk.SoftmaxTopKCache


def forward(x_TD, weights, config, tokens, training=False, rng=None, replay=None):
    """Softmax top-1 of a jittered copy of the tokens; the experts get the tokens as they are.

        p = softmax((x * u) W), u from U(1 - jitter, 1 + jitter);  y = p_i E_i(x)

                                                        [Switch, arXiv:2101.03961, eq. 1-2 and sec. 2.4]
    A gate of p / p = 1 would hide the router from the task, so the raw probability it is.  Returns a Routing, cache.
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
