"""Routing is data: which token goes to which expert, with what gate, to which slot, and whether there was room.

A router makes this record; capacity clears `kept_A`; everything else reads it.  One row per assignment:

    assignment   token  rank  expert  gate  slot  kept
             0       0     0       3  0.71     0  True
             1       0     1       1  0.29     0  True
             2       1     0       3  0.64     1  False   <- expert 3 had room for one
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from minimoe.moe import gates


@dataclass(frozen=True, eq=False)
class Tokens:
    """The T tokens that a layer sees, sequence by sequence: which are padding, their positions, and what they are.

    mask_T: False for padding.   sequence_T: the number of each token's sequence, from 0.
    position_T: its position in the sequence, from 0.   id_T: its number in the vocabulary; None where it is unknown.
    """

    mask_T: np.ndarray
    sequence_T: np.ndarray
    position_T: np.ndarray
    id_T: np.ndarray | None = None

    @classmethod
    def of_batch(cls, tokens_BS, mask_BS=None, start=0):
        """Those of a batch.  mask_BS: False for padding; None: no padding.  start: position of the first tokens."""
        n_sequences, length = tokens_BS.shape
        mask_T = np.ones(tokens_BS.size, bool) if mask_BS is None else mask_BS.ravel()
        return cls(mask_T, np.repeat(np.arange(n_sequences), length),
                   np.tile(np.arange(start, start + length), n_sequences), tokens_BS.ravel())

    @classmethod
    def anonymous(cls, mask_T):
        """Those of one sequence of vectors, of which only the padding is known."""
        return cls(mask_T, np.zeros(len(mask_T), int), np.arange(len(mask_T)))

    @property
    def n_sequences(self):
        """B."""
        return int(self.sequence_T[-1]) + 1

    @property
    def weight_T(self):
        """Weight of each token in a mean over the real tokens: 1 / their number, and 0 for padding."""
        return self.mask_T / max(self.mask_T.sum(), 1)


@dataclass(frozen=True, eq=False)
class Routing:
    """The decisions of one MoE layer on T tokens, as A assignments of a token to an expert.

    token_A, expert_A: which token goes to which expert; the experts of a token are distinct.
    rank_A: 0 for a token's first choice, 1 for its second, ...; a token has each rank at most once.
    gate_A: the weight of the expert's output in the token's output.
    slot_A: place in the expert's queue, from 0.   kept_A: whether that place is within the capacity.
    logit_TE: the router's scores.   prob_TE: the distribution over all experts that they give.
    tokens: describes the tokens; padding has no assignments.   capacity: slots per expert; None is dropless.
    chance_TE: probability that a new draw of the router's noise would choose the expert; None without such noise.
    """

    token_A: np.ndarray
    expert_A: np.ndarray
    rank_A: np.ndarray
    gate_A: np.ndarray
    slot_A: np.ndarray
    kept_A: np.ndarray
    logit_TE: np.ndarray
    prob_TE: np.ndarray
    tokens: Tokens
    capacity: int | None = None
    chance_TE: np.ndarray | None = None

    @property
    def mask_T(self):
        """False for padding."""
        return self.tokens.mask_T

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
        """The largest number of experts that any token has, at least 1: K for a router that gives every token K."""
        return int(self.rank_A.max(initial=0)) + 1

    @property
    def count_E(self):
        """Assignments to each expert, before capacity."""
        return np.bincount(self.expert_A, minlength=self.n_experts)

    @property
    def first_count_E(self):
        """Assignments to each expert that are first choices, before capacity."""
        return np.bincount(self.expert_A[self.rank_A == 0], minlength=self.n_experts)

    @property
    def kept_count_E(self):
        """Assignments that each expert has room for: the number of rows that it computes."""
        return np.bincount(self.expert_A[self.kept_A], minlength=self.n_experts)

    @property
    def n_slots(self):
        """Slots in each expert's buffer, if it has one: the capacity, or as many as the busiest expert needs."""
        return int(self.kept_count_E.max(initial=0)) if self.capacity is None else self.capacity

    @property
    def load_E(self):
        """Each expert's share of all assignments, before capacity; sums to 1 (0 if there are none)."""
        return self.count_E / max(len(self.expert_A), 1)

    @property
    def weight_T(self):
        """Weight of each token in a mean over the real tokens: 1 / their number, and 0 for padding."""
        return self.tokens.weight_T.astype(self.prob_TE.real.dtype)

    @cached_property
    def kept_N(self):
        """Indices of the kept assignments, sorted by expert and slot: the rows that the experts compute."""
        kept = np.flatnonzero(self.kept_A)
        kept_N = np.empty_like(kept)
        kept_N[self._row(kept)] = kept
        return kept_N

    @cached_property
    def row_TK(self):
        """The row of a token's k-th choice in `kept_N`; N, one past the last, if there is none or it was dropped.

        In the table at the top, with two more experts that are idle: kept_N = [1, 0] (expert 1's row, then expert 3's),
        and row_TK = [[1, 0], [2, 2]]: the second token was dropped, so both its entries point to a row of zeros, row 2.
        """
        kept = np.flatnonzero(self.kept_A)
        row_TK = np.full((self.n_tokens, self.n_ranks), len(kept))
        row_TK[self.token_A[kept], self.rank_A[kept]] = self._row(kept)
        return row_TK

    def _row(self, kept):
        """The row of each kept assignment: its slot, counted from the expert's first row (slots have no gaps)."""
        count_E = self.kept_count_E
        start_E = np.cumsum(count_E) - count_E
        return start_E[self.expert_A[kept]] + self.slot_A[kept]

    def one_hot(self):
        """The same decisions as GShard's dense tensors, dispatch_TEC (0 or 1) and combine_TEC (gates).

        For teaching and tests: T*E*C numbers, almost all of them 0.
        """
        slots = self.capacity or int(self.slot_A.max(initial=0)) + 1
        dispatch_TEC = np.zeros((self.n_tokens, self.n_experts, slots), self.gate_A.dtype)
        combine_TEC = np.zeros_like(dispatch_TEC)
        kept = self.kept_A
        where = self.token_A[kept], self.expert_A[kept], self.slot_A[kept]
        dispatch_TEC[where] = 1
        combine_TEC[where] = self.gate_A[kept]
        return dispatch_TEC, combine_TEC


def dropless_routing(token_A, expert_A, rank_A, gate_A, logit_TE, prob_TE, tokens, chance_TE=None):
    """The Routing that a router returns: every assignment is kept, and no queue has been formed yet."""
    slot_A = np.zeros(len(expert_A), int)
    return Routing(token_A, expert_A, rank_A, gate_A, slot_A, np.ones(len(expert_A), bool), logit_TE, prob_TE, tokens,
                   chance_TE=chance_TE)


def scoreless_routing(expert_TK, tokens, n_experts, dtype):
    """The Routing of a policy that ignores the vectors: gates of 1/K, equal probabilities, and scores of 0."""
    top_k = expert_TK.shape[1]
    token_A, expert_A, rank_A = gates.assignments_by_token(expert_TK, tokens.mask_T)
    prob_TE = np.zeros((len(expert_TK), n_experts), dtype)
    np.put_along_axis(prob_TE, expert_TK, 1 / top_k, axis=1)
    gate_A = np.full(len(token_A), 1 / top_k, dtype)
    return dropless_routing(token_A, expert_A, rank_A, gate_A, np.zeros_like(prob_TE), prob_TE, tokens)


class RoutingGrad(NamedTuple):
    """Gradients of the arrays of a Routing, passed back from whatever reads it to the router that made it."""

    dgate_A: np.ndarray
    dprob_TE: np.ndarray
    dlogit_TE: np.ndarray
    dchance_TE: np.ndarray


def zero_gradient(routing):
    """The RoutingGrad of zeros for a Routing."""
    dgate_A, zeros_TE = np.zeros_like(routing.gate_A), np.zeros_like(routing.prob_TE)
    return RoutingGrad(dgate_A, zeros_TE, zeros_TE, zeros_TE)


def require_rng(rng, who):
    """Return the random generator.  Raises ValueError if there is none."""
    if rng is None:
        raise ValueError(f"{who} needs rng, a numpy.random.Generator, in training")
    return rng
