"""Which tokens a layer sees, beside their vectors: whose they are, where they stand, and which of them are padding."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Tokens:
    """The T tokens of a batch, sequence by sequence.

    mask_T: False for padding.   sequence_T: the number of each token's sequence, from 0.
    position_T: its place in the sequence, from 0.   id_T: its number in the vocabulary; None where nobody knows it.
    """

    mask_T: np.ndarray
    sequence_T: np.ndarray
    position_T: np.ndarray
    id_T: np.ndarray | None = None

    @property
    def n_sequences(self):
        """B."""
        return int(self.sequence_T[-1]) + 1

    @property
    def weight_T(self):
        """Weight of each token in a mean over the real tokens: 1/their number, and 0 for padding."""
        return self.mask_T / max(self.mask_T.sum(), 1)


def of_batch(tokens_BS, mask_BS=None, start=0):
    """The Tokens of a batch.  mask_BS: False for padding; None is none.  start: tokens of each sequence seen before."""
    n_sequences, length = tokens_BS.shape
    mask_T = np.ones(tokens_BS.size, bool) if mask_BS is None else mask_BS.ravel()
    return Tokens(mask_T, np.repeat(np.arange(n_sequences), length),
                  np.tile(np.arange(start, start + length), n_sequences), tokens_BS.ravel())


def nameless(mask_T):
    """The Tokens of one sequence of vectors, of which no more is known than which are padding."""
    return Tokens(mask_T, np.zeros(len(mask_T), int), np.arange(len(mask_T)))
