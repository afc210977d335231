"""Routing is data: which token goes to which expert, with what gate, to which slot, and whether there was room.

A router makes this record; capacity clears `kept_A`; everything else reads it.  One row an assignment:

    assignment   token  rank  expert  gate  slot  kept
             0       0     0       3  0.71     0  True
             1       0     1       1  0.29     0  True
             2       1     0       3  0.64     1  False   <- expert 3 had room for one
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True, eq=False)
class Routing:
    """The decisions of one MoE layer on T tokens, as A assignments of a token to an expert.

    token_A, expert_A: who goes where; the experts of a token are distinct.
    rank_A: 0 for a token's first choice, 1 for its second, ...; a token has each rank at most once.
    gate_A: the weight of the expert's output in the token's.
    slot_A: place in the expert's queue, from 0.   kept_A: whether that place is within the capacity.
    logit_TE: the router's scores.   prob_TE: the distribution over all experts made from them.
    mask_T: False for padding, which has no assignments.   capacity: slots an expert has; None is dropless.
    """

    token_A: np.ndarray
    expert_A: np.ndarray
    rank_A: np.ndarray
    gate_A: np.ndarray
    slot_A: np.ndarray
    kept_A: np.ndarray
    logit_TE: np.ndarray
    prob_TE: np.ndarray
    mask_T: np.ndarray
    capacity: int | None = None

    @property
    def n_tokens(self):
        """T, padding included."""
        return len(self.mask_T)

    @property
    def n_experts(self):
        """E."""
        return self.prob_TE.shape[1]

    @property
    def n_ranks(self):
        """Most experts that any token has, at least 1: K for a router that gives every token K."""
        return int(self.rank_A.max(initial=0)) + 1

    @property
    def count_E(self):
        """Assignments of each expert, before capacity."""
        return np.bincount(self.expert_A, minlength=self.n_experts)

    @property
    def kept_count_E(self):
        """Assignments of each expert that it has room for: the rows that it computes."""
        return np.bincount(self.expert_A[self.kept_A], minlength=self.n_experts)

    @property
    def load_E(self):
        """Share of all assignments that each expert has, before capacity; sums to 1 (0 if there are none)."""
        return self.count_E / max(len(self.expert_A), 1)

    @property
    def weight_T(self):
        """Weight of each token in a mean over the real tokens: 1/their number, and 0 for padding."""
        return (self.mask_T / max(self.mask_T.sum(), 1)).astype(self.prob_TE.real.dtype)

    @cached_property
    def kept_N(self):
        """Indices of the kept assignments, sorted by expert and slot: the rows that the experts compute."""
        kept = np.flatnonzero(self.kept_A)
        kept_N = np.empty_like(kept)
        kept_N[self._row(kept)] = kept
        return kept_N

    @cached_property
    def row_TK(self):
        """The row of a token's k-th choice in `kept_N`; N, one past the last, where it has none or was dropped.

        In the table at the top, with two more experts that are idle: kept_N = [1, 0] (expert 1's row, then expert 3's),
        and row_TK = [[1, 0], [2, 2]]: the second token was dropped, and row 2 is the zeros that stand for nothing.
        """
        kept = np.flatnonzero(self.kept_A)
        row_TK = np.full((self.n_tokens, self.n_ranks), len(kept))
        row_TK[self.token_A[kept], self.rank_A[kept]] = self._row(kept)
        return row_TK

    def _row(self, kept):
        """Kept slots number an expert's queue from 0 without a gap: rows, counted from the expert's first."""
        count_E = self.kept_count_E
        start_E = np.cumsum(count_E) - count_E
        return start_E[self.expert_A[kept]] + self.slot_A[kept]

    def one_hot(self):
        """The same decisions as GShard's dense tensors, dispatch_TEC (0 or 1) and combine_TEC (gates).

        For teaching and tests: T*E*C numbers, almost all 0.
        """
        slots = self.capacity or int(self.slot_A.max(initial=0)) + 1
        dispatch_TEC = np.zeros((self.n_tokens, self.n_experts, slots), self.gate_A.dtype)
        combine_TEC = np.zeros_like(dispatch_TEC)
        kept = self.kept_A
        where = self.token_A[kept], self.expert_A[kept], self.slot_A[kept]
        dispatch_TEC[where] = 1
        combine_TEC[where] = self.gate_A[kept]
        return dispatch_TEC, combine_TEC


def by_token(expert_TK, mask_T):
    """Assignments of a router that gives each real token K experts, token by token, best first.

    Returns token_A, expert_A, rank_A.
    """
    real = np.flatnonzero(mask_T)
    top_k = expert_TK.shape[1]
    return np.repeat(real, top_k), expert_TK[real].ravel(), np.tile(np.arange(top_k), len(real))


def without_limit(token_A, expert_A, rank_A, gate_A, logit_TE, prob_TE, mask_T):
    """What a router returns: every assignment kept, and no queue formed yet."""
    slot_A = np.zeros_like(expert_A)
    return Routing(token_A, expert_A, rank_A, gate_A, slot_A, np.ones(len(expert_A), bool), logit_TE, prob_TE, mask_T)
