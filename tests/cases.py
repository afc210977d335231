"""Small cases that many tests share: a Routing of chosen experts, one-hot tokens, random weights, and comparisons."""

import math
from dataclasses import replace

import numpy as np
from hypothesis import settings

from minimoe import gradcheck
from minimoe.config import ModelConfig
from minimoe.moe import capacity, gates, losses, routers, routing
from minimoe.moe.routing import Tokens

FEW = settings(derandomize=True, deadline=None, max_examples=20)
"""Enough examples for a space of small sizes and seeds."""
EXPERTS = "w_gate_EDF", "w_up_EDF", "w_down_EFD"
SIGHTLESS = "hash", "random", "uniform"
"""Routers that look at no vector: they have no scores, no weights and no gradient."""


def fixed_k(router):
    """The only K that a router knows; None is any."""
    return routers.ROUTERS[router].FACTS.top_k


def with_router(config, router, **fields):
    """The configuration with a different router, and with that router's K if it supports only one."""
    return replace(config, router=router, **dict(top_k=fixed_k(router) or config.top_k) | fields)


def losses_for(router):
    """The losses that a router can have: that of the expected load needs noise."""
    return [name for name in losses.LOSSES if name != "load" or routers.ROUTERS[router].FACTS.has_chances]


def lengths(*lengths_B):
    """The Tokens of sequences of these lengths, padded to the longest."""
    mask_BS = np.arange(max(lengths_B)) < np.array(lengths_B)[:, None]
    return Tokens.of_batch(np.zeros(mask_BS.shape, int), mask_BS)


def tokens_like(mask):
    """The Tokens of a mask: [T] is one sequence, [B, S] a batch."""
    mask = np.array(mask, bool)
    return Tokens.anonymous(mask) if mask.ndim == 1 else Tokens.of_batch(np.zeros(mask.shape, int), mask)


def routed(prob_TE, top_k=1, mask=None, expert_TK=None, logit_TE=None, limit=None, order="position"):
    """The Routing of tokens that use the K most probable experts, or those of expert_TK; gates are probabilities.

    logit_TE: None is zeros.   limit: capacity factor, None is dropless.
    """
    prob_TE = 1.0 * np.array(prob_TE)
    logit_TE = np.zeros_like(prob_TE) if logit_TE is None else np.array(logit_TE)
    expert_TK = gates.top_k_experts(prob_TE, top_k) if expert_TK is None else np.array(expert_TK)
    tokens = tokens_like(np.ones(len(prob_TE), bool) if mask is None else mask)
    token_A, expert_A, rank_A = gates.assignments_by_token(expert_TK, tokens.mask_T)
    r = routing.dropless_routing(token_A, expert_A, rank_A, prob_TE[token_A, expert_A], logit_TE, prob_TE, tokens)
    return capacity.keep_forward(r, expert_TK.shape[1], limit, order, np.random.default_rng(0))[0]


def random_routing(T, E, seed, limit=None, order="random"):
    """Tokens with no, some or all experts, some padding, many equal probabilities, assignments in any order."""
    rng = np.random.default_rng(seed)
    mask_T = rng.random(T) < 0.8
    chosen_TE = (rng.random((T, E)) < 0.6) & mask_T[:, None]
    columns = *np.nonzero(chosen_TE), (chosen_TE.cumsum(axis=1) - 1)[chosen_TE], rng.normal(size=chosen_TE.sum())
    shuffled = rng.permutation(chosen_TE.sum())
    prob_TE = rng.integers(1, 4, (T, E)) / 9
    r = routing.dropless_routing(*(column[shuffled] for column in columns), rng.normal(size=(T, E)), prob_TE,
                                 Tokens.anonymous(mask_T))
    return capacity.keep_forward(r, (E + 1) // 2, limit, order, rng)[0]


def one_hot_config(name, logit_TE, **options):
    """A configuration of a router for this many one-hot tokens, rounded up to an even number for the heads."""
    T, E = logit_TE.shape
    options = {"top_k": min(fixed_k(name) or 2, E)} | options
    return ModelConfig(d_model=T + T % 2, n_heads=1, router=name, n_experts=E, **options)


def route(name, logit_TE, training=False, rng=None, mask_T=None, weights=None, replay=None, **options):
    """Apply a router to one-hot tokens, x = identity: then its weights are its scores, and so are their gradients.

    weights: its other weights.  Returns a Routing, cache.
    """
    T, E = logit_TE.shape
    config = one_hot_config(name, logit_TE, **options)
    weights = {"w_router_DE": np.resize(logit_TE, (config.d_model, E))} | (weights or {})
    tokens = tokens_like(np.ones(T, bool) if mask_T is None else mask_T)
    x_TD = np.eye(T, config.d_model).astype(logit_TE.real.dtype)
    return routers.POLICIES[name].forward(x_TD, weights, config, tokens, training, rng, replay)


def choices(r):
    """The experts of each token, best first, as lists."""
    return [r.expert_A[r.token_A == t].tolist() for t in range(r.n_tokens)]


def decisions(r):
    """Each assignment of a Routing without its gate."""
    return list(zip(r.token_A.tolist(), r.expert_A.tolist(), r.rank_A.tolist(), strict=True))


def random_weights(weights, seed=0, dtype=np.float64):
    """Normally distributed numbers for a dict of Weights."""
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=weight.shape).astype(dtype) for name, weight in weights.items()}


def expert(x_D, weights, e):
    """The output of expert e for one token: (silu(x W_gate) * (x W_up)) W_down."""
    gate_F, up_F = x_D @ weights["w_gate_EDF"][e], x_D @ weights["w_up_EDF"][e]
    return (gate_F / (1 + np.exp(-gate_F)) * up_F) @ weights["w_down_EFD"][e]


def softmax(scores):
    """The probabilities of a list of scores, one at a time."""
    total = sum(math.exp(score) for score in scores)
    return [math.exp(score) / total for score in scores]


def assert_close(got, expected, rtol=1e-12):
    """Two dicts of arrays that differ by rounding error at most."""
    assert got.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(got[name], array, rtol=rtol, atol=rtol, err_msg=name)


def assert_equal(got, expected):
    """Two dicts of arrays that do not differ at all."""
    assert got.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(got[name], array, err_msg=name, strict=True)


def assert_same_gradients(got, expected, tolerance=1e-12):
    """Two dicts of gradients that differ by rounding error at most, each in proportion to its norm."""
    assert got.keys() == expected.keys()
    assert {name: error for name in got
            if not (error := gradcheck.error(got[name], expected[name])) < tolerance} == {}


def assert_gradient(forward, backward, **arrays):
    """The gradient of forward(*arrays) equals that of the complex step."""
    report = gradcheck.check_pair("pair", forward, backward, arrays)
    assert report.ok, report


def assert_gradients(forward, backward, x, weights):
    """The same of forward(x, weights) with a dict of weights, whose backward returns dx and a dict."""
    def unpacked(dy, cache):
        dx, dweights = backward(dy, cache)
        return dx, *(dweights[name] for name in weights)

    assert_gradient(lambda x, *arrays: forward(x, dict(zip(weights, arrays, strict=True))), unpacked, x=x, **weights)
