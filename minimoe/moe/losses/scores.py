"""Losses that depend on the scores alone, whichever experts are chosen: against large logits and overconfidence."""

import math
from typing import NamedTuple

import numpy as np

from minimoe.moe.routing import Routing


class ZCache(NamedTuple):
    """The logsumexp of each token's logits, the Routing, and the weight of each token in the mean."""

    lse_T: np.ndarray
    routing: Routing
    weight_T: np.ndarray


def z_forward(routing, weight_T=None):
    """How large the router's logits are: the mean over tokens of logsumexp(logit)^2.

                                                        [ST-MoE, arXiv:2202.08906, eq. 5]
    Adding a constant to all logits changes no probability, but changes this loss.
    weight_T: weight of each token in the mean; None: equal for all real tokens.  Returns the loss (nats^2), cache.
    """
    weight_T = routing.weight_T if weight_T is None else weight_T
    logit_TE = routing.logit_TE
    top_T1 = logit_TE.real.max(axis=1, keepdims=True)
    lse_T = np.log(np.exp(logit_TE - top_T1).sum(axis=1)) + top_T1[:, 0]
    return weight_T @ (lse_T * lse_T), ZCache(lse_T, routing, weight_T)


def z_backward(dloss, cache):
    """Gradient of logit_TE: 2 logsumexp * softmax, times the token's weight."""
    prob_TE = np.exp(cache.routing.logit_TE - cache.lse_T[:, None])  # d lse/d logit = softmax(logit)
    return (dloss * 2 * cache.weight_T * cache.lse_T)[:, None] * prob_TE


class EntropyCache(NamedTuple):
    """The logarithm of each probability, and the weight of each token in the mean."""

    log_TE: np.ndarray
    weight_T: np.ndarray


def entropy_forward(routing, weight_T=None):
    """How confident the router is: the mean over tokens of log E - H(p), H = -sum_e p log p; 0 for uniform p.

    Lowering it raises the entropy, so it is an entropy bonus, which is usually written -H.  The constant log E makes it
    the KL divergence of p from the uniform distribution, which is never negative.
    weight_T: weight of each token in the mean; None: equal for all real tokens.  Returns the loss (nats), cache.
    """
    weight_T = routing.weight_T if weight_T is None else weight_T
    prob_TE = routing.prob_TE
    log_TE = np.log(np.where(prob_TE.real > 0, prob_TE, 1))  # p log p is 0 at p = 0
    lack_T = math.log(routing.n_experts) + (prob_TE * log_TE).sum(axis=1)
    return weight_T @ lack_T, EntropyCache(log_TE, weight_T)


def entropy_backward(dloss, cache):
    """Gradient of prob_TE."""
    return (dloss * cache.weight_T)[:, None] * (cache.log_TE + 1)  # d (p log p)/dp = log p + 1
