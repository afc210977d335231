"""Auxiliary losses: what pushes a router, beside the task.

Each reads one layer's Routing and is a forward/backward pair; nothing is kept between calls.  The backward returns the
gradient of the router's prob_TE or logit_TE.
"""

import numpy as np


def balance_forward(routing):
    """How unevenly the tokens are spread: 1 when the load, or the mean probability, is uniform.

        L = E * sum_e f_e P_e,   f_e = share of the assignments,   P_e = mean over tokens of prob_te

                                                        [Switch, arXiv:2101.03961, eq. 4-6, with f / K for K > 1]
    f is counted before capacity; being a count, it passes no gradient.  Some codes let f sum to K: their loss is K
    times this one.  The loss can be below 1, since tokens that are sure count as much in f as tokens that are not.
    Padding counts in neither.  Returns the loss (1), cache.
    """
    pull_E = (routing.n_experts * routing.load_E).astype(routing.prob_TE.real.dtype)
    return pull_E @ (routing.weight_T @ routing.prob_TE), (pull_E, routing.weight_T)


def balance_backward(dloss, cache):
    """Gradient of prob_TE: the same for every token, and largest for the most loaded expert."""
    pull_E, weight_T = cache
    return dloss * np.outer(weight_T, pull_E)  # loss = pull @ (weight @ prob)


def z_forward(routing):
    """How large the router's logits are: the mean over tokens of logsumexp(logit)^2.

                                                        [ST-MoE, arXiv:2202.08906, eq. 5]
    Adding a constant to all logits changes no probability, but changes this loss.  Returns the loss (nats^2), cache.
    """
    logit_TE = routing.logit_TE
    top_T1 = logit_TE.real.max(axis=1, keepdims=True)
    lse_T = np.log(np.exp(logit_TE - top_T1).sum(axis=1)) + top_T1[:, 0]
    return routing.weight_T @ (lse_T * lse_T), (lse_T, routing)


def z_backward(dloss, cache):
    """Gradient of logit_TE: 2 logsumexp * softmax, a token's share of it."""
    lse_T, routing = cache
    prob_TE = np.exp(routing.logit_TE - lse_T[:, None])  # d lse/d logit = softmax(logit)
    return (dloss * 2 * routing.weight_T * lse_T)[:, None] * prob_TE
