"""Losses of the form load times mean probability: they push the router away from experts that many tokens chose."""

from typing import NamedTuple

import numpy as np


class BalanceCache(NamedTuple):
    """The slope with respect to each expert's mean probability, and the weight of each token in that mean."""

    pull_E: np.ndarray
    weight_T: np.ndarray


def counted(routing, config):
    """What f of the balance loss counts for each expert: all assignments, or only first choices.

    GShard and the code of ST-MoE count first choices [GShard, arXiv:2006.16668, algorithm 1; Mesh TensorFlow, moe.py];
    other systems count all assignments.  Returns an array of E whole numbers.
    """
    return routing.first_count_E if config.counts_first_choices else routing.count_E


def balance_forward(routing, load_E=None, weight_T=None):
    """How unevenly the tokens are spread: 1 when the load, or the mean probability, is uniform.

        L = E * sum_e f_e P_e,   f_e = share of the assignments,   P_e = mean over tokens of prob_te

                                                        [Switch, arXiv:2101.03961, eq. 4-6, with f / K for K > 1]
    f is counted before capacity; being a count, it passes no gradient.  In some implementations f sums to K, and their
    loss is K times this one; GShard's paper divides by E^2.  The loss can be below 1, since confident tokens count as
    much in f as uncertain ones.  Padding counts in neither f nor P.

    Args:
        routing: Routing of one layer.
        load_E: f, if it is not the share of all assignments.  It can count first choices only, see `counted`; or more
            tokens than these, such as all micro-batches of a step.  Then only the whole step has to be balanced, not
            each micro-batch.                                               [Qiu 2025, arXiv:2501.11873, sec. 3]
        weight_T: weight of each token in P; None is a mean over these tokens.
    Returns the loss (1), cache.
    """
    load_E = routing.load_E if load_E is None else load_E
    weight_T = routing.weight_T if weight_T is None else weight_T
    pull_E = (routing.n_experts * load_E).astype(routing.prob_TE.real.dtype)
    return pull_E @ (weight_T @ routing.prob_TE), BalanceCache(pull_E, weight_T)


def balance_backward(dloss, cache):
    """Gradient of prob_TE: the same for every token, and largest for the most loaded expert."""
    return dloss * np.outer(cache.weight_T, cache.pull_E)  # loss = pull @ (weight @ prob)


def sequence_forward(routing):
    """The balance loss of each sequence by itself, averaged over sequences: no single sequence may overload an expert.

        L = mean over sequences of sum_e f_e P_e,   f_e = E * share of the sequence's assignments,   P_e = mean prob_te

                                                        [DeepSeek-V3, arXiv:2412.19437, sec. 2.1.2]
    f counts the actual assignments; the paper's f counts the K best scores without the bias, which is the same as long
    as all biases are 0.  A sequence of padding alone does not count.  Returns the loss (1), cache.
    """
    sequence_T, n_sequences = routing.tokens.sequence_T, routing.tokens.n_sequences
    cell_A = sequence_T[routing.token_A] * routing.n_experts + routing.expert_A
    count_BE = np.bincount(cell_A, minlength=n_sequences * routing.n_experts).reshape(n_sequences, -1)
    n_assigned_B1 = np.where(count_BE.any(axis=1), count_BE.sum(axis=1), 1)[:, None]
    length_B = np.bincount(sequence_T, routing.mask_T, n_sequences)
    share_T = (routing.mask_T / np.where(length_B > 0, length_B, 1)[sequence_T]) / max((length_B > 0).sum(), 1)
    pull_TE = (routing.n_experts * count_BE / n_assigned_B1)[sequence_T] * share_T[:, None]
    pull_TE = pull_TE.astype(routing.prob_TE.real.dtype)
    return (pull_TE * routing.prob_TE).sum(), pull_TE


def sequence_backward(dloss, cache):
    """Gradient of prob_TE."""
    pull_TE = cache
    return dloss * pull_TE  # loss = sum of pull * prob


def device_forward(routing, n_devices):
    """The balance loss of groups of experts, one per device: it balances the devices, not the experts within one.

        L = sum_i f'_i P'_i,   f'_i = mean over the device's experts of E f_e,   P'_i = sum over them of P_e

                                                        [DeepSeekMoE, arXiv:2401.06066, sec. 3.3]
    n_devices: must divide E.  The loss is 1 when the devices are even.  With one expert per device it is the balance
    loss; with a single device it is always 1.  Returns the loss (1), cache.
    """
    by_device = (routing.n_experts * routing.load_E).reshape(n_devices, -1)
    return balance_forward(routing, np.repeat(by_device.mean(axis=1), by_device.shape[1]) / routing.n_experts)


def device_backward(dloss, cache):
    """Gradient of prob_TE."""
    return balance_backward(dloss, cache)
