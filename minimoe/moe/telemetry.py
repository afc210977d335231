"""Statistics of what the router did, computed from Routing alone."""

from typing import NamedTuple

import numpy as np


class Summary(NamedTuple):
    """One batch, layer by layer.

    load_LE: share of the assignments, before capacity (1).   drop_L: share of them dropped (1).
    entropy_L: mean entropy of the router's distribution (nats): log E for a uniform one, 0 for a certain one.
    margin_L: mean gap in probability between the last chosen expert and the best one left out (1).
    dead_L: number of experts without an assignment in this batch.
    logit_L: mean over tokens of the largest |logit| (nats).
    """

    load_LE: np.ndarray
    drop_L: np.ndarray
    entropy_L: np.ndarray
    margin_L: np.ndarray
    dead_L: np.ndarray
    logit_L: np.ndarray


def summarize(routings):
    """The Summary of a batch.  routings: one Routing per layer."""
    return Summary(
        np.array([r.load_E for r in routings]),
        np.array([drop_rate(r) for r in routings]),
        np.array([entropy(r) for r in routings]),
        np.array([margin(r) for r in routings]),
        np.array([int((r.count_E == 0).sum()) for r in routings]),
        np.array([logit_size(r) for r in routings]),
    )


def drop_rate(routing):
    """Share of assignments that found no room; 0 where there are none."""
    return 1 - float(routing.kept_A.mean()) if len(routing.kept_A) else 0.0


def entropy(routing):
    """Mean over tokens of -sum_e p log p, in nats."""
    p_TE = routing.prob_TE
    surprise_TE = np.log(p_TE, where=p_TE > 0, out=np.zeros_like(p_TE))  # p log p is 0 at p = 0
    return float(-routing.weight_T @ (p_TE * surprise_TE).sum(axis=1))


def margin(routing):
    """Mean over tokens of the K-th largest probability minus the next one: how far a choice is from flipping.

    0 where every expert is chosen.
    """
    top_k, n_experts = routing.n_ranks, routing.n_experts
    if top_k == n_experts:
        return 0.0
    sorted_TE = -np.sort(-routing.prob_TE, axis=1)
    return float(routing.weight_T @ (sorted_TE[:, top_k - 1] - sorted_TE[:, top_k]))


def logit_size(routing):
    """Mean over tokens of max_e |logit|, in nats: 0 for a router that has no preference yet.

    It is not the spread max - min, which is all that the softmax sees: a constant added to all logits changes no
    choice, but costs precision all the same (bfloat16 rounds numbers above 16 to multiples of 1/8).  Nor is it the
    root of the z-loss, which is log E for logits of 0, and says little about sigmoids, which saturate one by one.
    """
    return float(routing.weight_T @ np.abs(routing.logit_TE.real).max(axis=1))


def count_by_label(routing, label_T, n_labels):
    """How many assignments with each label go to each expert: an array [labels, E].

    label_T: a whole number in [0, n_labels) for each token, such as its domain or its position.
    """
    cell_A = label_T[routing.token_A] * routing.n_experts + routing.expert_A
    return np.bincount(cell_A, minlength=n_labels * routing.n_experts).reshape(n_labels, routing.n_experts)


def drop_by_label(routing, label_T, n_labels):
    """Share of each label's assignments that found no room, an array [labels]; 0 for a label without any.

    With the position in the sequence as label, it shows whether late tokens are dropped more often; with the number of
    the sequence, whether the last sequences of a batch are.
    """
    n_asked = np.bincount(label_T[routing.token_A], minlength=n_labels)
    n_dropped = np.bincount(label_T[routing.token_A[~routing.kept_A]], minlength=n_labels)
    return n_dropped / np.maximum(n_asked, 1)


def mutual_information(counts):
    """The mutual information of an assignment's expert and its label, in nats.

        I = sum_xe p_xe log(p_xe / (p_x p_e)) - (X - 1)(E - 1) / (2n),   p_xe = counts / n

                                                        [Miller 1955, Note on the bias of information estimates]
    counts: how often each label occurred with each expert, [labels, E], such as those of `count_by_label`; they can be
    added up over batches.  X, E: numbers of labels and experts that occur at all.  The sum alone is never negative, so
    it is too large on average: if experts ignore the label, its mean is about the second term (2n times the sum is the
    G statistic of independence, whose mean is its degrees of freedom).  That term is subtracted, so the result is about
    0 without dependence and can be slightly negative.  The correction is too large, and the result too low, for labels
    that occur less than about E times, and for K > 1, since a token's experts are distinct.  0 where n is 0.
    """
    n = counts.sum()
    if n == 0:
        return 0.0
    by_label, by_expert = counts.sum(axis=1), counts.sum(axis=0)
    expected = np.outer(by_label, by_expert) / n
    seen = counts > 0
    plug_in = (counts[seen] * np.log(counts[seen] / expected[seen])).sum() / n
    return float(plug_in - (np.sum(by_label > 0) - 1) * (np.sum(by_expert > 0) - 1) / (2 * n))


def chosen(routing):
    """Which experts each token chose, before capacity.  Returns chosen_TE, an array of bool."""
    chosen_TE = np.zeros((routing.n_tokens, routing.n_experts), bool)
    chosen_TE[routing.token_A, routing.expert_A] = True
    return chosen_TE


def churn(before_TE, after_TE):
    """Share of the assignments whose token did not use that expert before; ranks and gates do not matter.

                                        [1 - router saturation of OLMoE, arXiv:2409.02060, sec. 5.1]
    before_TE, after_TE: `chosen` of the same tokens at two times.  For K = 1 it is the share of tokens that have moved;
    unlike that share, it does not grow with K.  0 where no token has an expert.
    """
    return float((after_TE & ~before_TE).sum() / max(after_TE.sum(), 1))


def coactivation(routing):
    """Number of tokens that each pair of experts shares, before capacity; 0 on the diagonal.

    If every token has K experts, row a sums to (K - 1) times the tokens of expert a.  Returns pair_EE.
    """
    chosen_TE = chosen(routing).astype(int)
    pair_EE = chosen_TE.T @ chosen_TE
    np.fill_diagonal(pair_EE, 0)
    return pair_EE


class LedgerRow(NamedTuple):
    """One assignment in words."""

    layer: int
    token: int
    rank: int
    expert: int
    gate: float
    slot: int
    kept: bool
    why: str


def first_choice(routing):
    """The expert of each token's first choice; -1 for a token without an expert.  An array of T whole numbers."""
    first = routing.rank_A == 0
    expert_T = np.full(routing.n_tokens, -1)
    expert_T[routing.token_A[first]] = routing.expert_A[first]
    return expert_T


NO_LIMIT = "no limit"
"""Why an assignment is kept where experts have no capacity."""


def ledger(routings, layers=None):
    """Every assignment of a batch as one row to print, token by token, layer by layer.

    layers: the number of each Routing's layer; None counts them from 0.
    """
    rows = []
    for layer, routing in zip(layers or range(len(routings)), routings, strict=True):
        for a in np.lexsort((routing.rank_A, routing.token_A)):
            slot, kept = int(routing.slot_A[a]), bool(routing.kept_A[a])
            rows.append(LedgerRow(layer, int(routing.token_A[a]), int(routing.rank_A[a]), int(routing.expert_A[a]),
                                  float(routing.gate_A[a]), slot, kept, _why(slot, kept, routing.capacity)))
    return rows


def _why(slot, kept, capacity):
    if capacity is None:
        return NO_LIMIT
    return f"place {slot + 1} of {capacity}" if kept else f"place {slot + 1}, room for {capacity}"
