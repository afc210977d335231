"""What the router did, read from Routing alone."""

from typing import NamedTuple

import numpy as np


class Summary(NamedTuple):
    """One batch, layer by layer.

    load_LE: share of the assignments, before capacity (1).   drop_L: share of them dropped (1).
    entropy_L: mean entropy of the router's distribution (nats); log E knows nothing, 0 is sure.
    margin_L: mean gap in probability between the last chosen expert and the best one left out (1).
    dead_L: experts without an assignment in this batch.
    """

    load_LE: np.ndarray
    drop_L: np.ndarray
    entropy_L: np.ndarray
    margin_L: np.ndarray
    dead_L: np.ndarray


def summarize(routings):
    """The Summary of a batch.  routings: one Routing a layer."""
    return Summary(
        np.array([r.load_E for r in routings]),
        np.array([drop_rate(r) for r in routings]),
        np.array([entropy(r) for r in routings]),
        np.array([margin(r) for r in routings]),
        np.array([int((r.count_E == 0).sum()) for r in routings]),
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
    """Mean over tokens of the K-th largest probability minus the next: how far a choice is from a flip.

    0 where every expert is chosen.
    """
    top_k, n_experts = routing.n_ranks, routing.n_experts
    if top_k == n_experts:
        return 0.0
    sorted_TE = -np.sort(-routing.prob_TE, axis=1)
    return float(routing.weight_T @ (sorted_TE[:, top_k - 1] - sorted_TE[:, top_k]))


def count_by_label(routing, label_T, n_labels):
    """How many assignments of each label go to each expert: an array [labels, E].

    label_T: a whole number in [0, n_labels) for each token, such as its domain or its position.
    """
    cell_A = label_T[routing.token_A] * routing.n_experts + routing.expert_A
    return np.bincount(cell_A, minlength=n_labels * routing.n_experts).reshape(n_labels, routing.n_experts)


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


def ledger(routings):
    """Every assignment of a batch as a row to print, token by token, layer by layer."""
    rows = []
    for layer, routing in enumerate(routings):
        for a in np.lexsort((routing.rank_A, routing.token_A)):
            slot, kept = int(routing.slot_A[a]), bool(routing.kept_A[a])
            rows.append(LedgerRow(layer, int(routing.token_A[a]), int(routing.rank_A[a]), int(routing.expert_A[a]),
                                  float(routing.gate_A[a]), slot, kept, _why(slot, kept, routing.capacity)))
    return rows


def _why(slot, kept, capacity):
    if capacity is None:
        return "no limit"
    return f"place {slot + 1} of {capacity}" if kept else f"place {slot + 1}, room for {capacity}"
