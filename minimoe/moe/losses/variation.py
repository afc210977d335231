"""Losses that measure how much the experts' shares vary: the squared coefficient of variation, variance / mean^2."""

from typing import NamedTuple

import numpy as np


class VariationCache(NamedTuple):
    """The shares, and their mean; None if all are 0."""

    x_E: np.ndarray
    mean: float | None


def variation_forward(x_E):
    """CV(x)^2 = variance / mean^2, without a square root, whose slope at even shares would be infinite.

    The variance is that of a population (divided by E).  Some implementations divide by E - 1 and get E / (E - 1)
    times as much.  0 where all are 0.  Returns the number, cache.
    """
    mean = x_E.mean()
    if mean == 0:
        return mean * 0, VariationCache(x_E, None)
    excess_E = x_E / mean - 1
    return (excess_E * excess_E).mean(), VariationCache(x_E, mean)


def variation_backward(dloss, cache):
    """Gradient of x_E."""
    if cache.mean is None:
        return np.zeros_like(cache.x_E)
    excess_E = cache.x_E / cache.mean - 1
    along = (excess_E * cache.x_E).mean() / cache.mean  # the mean moves too: excess = x / mean - 1
    return dloss * 2 / (len(excess_E) * cache.mean) * (excess_E - along)


class ImportanceCache(NamedTuple):
    """The cache of the variation, and the expert of each gate."""

    variation: VariationCache
    expert_A: np.ndarray


def importance_forward(routing):
    """How much the experts' importance, the sum of their gates over the tokens, varies: 0 when it is even.

        L = CV(sum_t g_te)^2                                    [Shazeer 2017, arXiv:1701.06538, eq. 6-7]

    Equal importance is not equal load: one large gate weighs as much as many small ones.  Gates count before capacity.
    Returns the loss (1), cache.
    """
    gate_TE = np.zeros_like(routing.prob_TE, np.result_type(routing.prob_TE, routing.gate_A))
    gate_TE[routing.token_A, routing.expert_A] = routing.gate_A  # a token has an expert once
    loss, variation = variation_forward(gate_TE.sum(axis=0))
    return loss, ImportanceCache(variation, routing.expert_A)


def importance_backward(dloss, cache):
    """Gradient of gate_A: the same for all tokens of an expert."""
    return variation_backward(dloss, cache.variation)[cache.expert_A]


class LoadCache(NamedTuple):
    """The cache of the variation, and which tokens are real."""

    variation: VariationCache
    mask_T: np.ndarray


def load_forward(routing):
    """How much the experts' expected loads vary: 0 when they are even.

        L = CV(sum_t P_te)^2,   P_te: probability that a new draw of the noise sends t to e

                                                        [Shazeer 2017, arXiv:1701.06538, eq. 8-11]
    The number of assignments is the same on average, but it has no gradient.  Returns the loss (1), cache.
    Raises ValueError for a router without noise.
    """
    if routing.chance_TE is None:
        raise ValueError("the load loss needs chance_TE, which router 'noisy_topk' has if load_coef is above 0")
    load_E = (routing.chance_TE * routing.mask_T[:, None]).sum(axis=0)
    loss, variation = variation_forward(load_E)
    return loss, LoadCache(variation, routing.mask_T)


def load_backward(dloss, cache):
    """Gradient of chance_TE."""
    return cache.mask_T[:, None] * variation_backward(dloss, cache.variation)
