"""Whose a token is, where it stands and whether it is real, by hand."""

import numpy as np

from minimoe.moe.routing import Tokens

TOKENS_BS = np.array([[5, 6, 7], [8, 9, 5]])
MASK_BS = np.array([[True, True, False], [True, True, True]])


def test_a_batch_is_laid_out_sequence_by_sequence():
    batch = Tokens.of_batch(TOKENS_BS, MASK_BS)
    assert batch.id_T.tolist() == [5, 6, 7, 8, 9, 5]
    assert batch.sequence_T.tolist() == [0, 0, 0, 1, 1, 1]
    assert batch.position_T.tolist() == [0, 1, 2, 0, 1, 2]
    assert batch.mask_T.tolist() == [True, True, False, True, True, True]


def test_a_batch_without_a_mask_has_no_padding():
    assert Tokens.of_batch(TOKENS_BS).mask_T.tolist() == [True] * 6


def test_positions_go_on_where_the_tokens_seen_before_end():
    batch = Tokens.of_batch(TOKENS_BS, start=4)
    assert batch.position_T.tolist() == [4, 5, 6, 4, 5, 6]
    assert batch.sequence_T.tolist() == [0, 0, 0, 1, 1, 1]


def test_the_number_of_sequences_counts_those_of_one_token_too():
    assert Tokens.of_batch(TOKENS_BS).n_sequences == 2
    assert Tokens.of_batch(TOKENS_BS.T[:, :1]).n_sequences == 3
    assert Tokens.of_batch(TOKENS_BS[:1]).n_sequences == 1


def test_real_tokens_weigh_the_same_and_padding_nothing():
    np.testing.assert_array_equal(Tokens.of_batch(TOKENS_BS, MASK_BS).weight_T, [0.2, 0.2, 0, 0.2, 0.2, 0.2])


def test_padding_alone_weighs_nothing():
    assert Tokens.of_batch(TOKENS_BS, np.zeros((2, 3), bool)).weight_T.tolist() == [0] * 6


def test_vectors_without_names_are_one_sequence():
    vectors = Tokens.anonymous(np.array([True, False, True, True]))
    assert vectors.id_T is None
    assert vectors.sequence_T.tolist() == [0, 0, 0, 0]
    assert vectors.position_T.tolist() == [0, 1, 2, 3]
    assert vectors.mask_T.tolist() == [True, False, True, True]
    assert vectors.n_sequences == 1
