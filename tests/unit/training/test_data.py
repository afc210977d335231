"""Texts to batches: what trains and what is held out, and that every piece is drawn fairly and from one domain."""

import re
from collections import Counter
from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minimoe.training import data, tokenizer

PLAIN = settings(derandomize=True, deadline=None)
STREAMS = (np.arange(0, 7), np.arange(100, 105), np.arange(200, 212))
"""Three domains, each of whose tokens tells its place; pieces of 4 and their target can start at 3, 1 and 8 places."""


def draw(batch=1000, sequence=4, seed=0, streams=STREAMS):
    return data.sample(streams, np.random.default_rng(seed), batch, sequence)


def corpus_of(characters="abc", train=((0, 1), (2, 0)), held_out=((1,), (2,))):
    arrays = (tuple(np.array(stream) for stream in streams) for streams in (train, held_out))
    return data.Corpus(tokenizer.Tokenizer(characters), ("x", "y"), *arrays)


def test_the_last_tenth_of_each_domain_is_held_out_by_hand():
    # 20 characters: 18 train; 35: int(31.5) = 31 train
    text = data.build({"one": "ab" * 10, "two": "bcdea" * 7}, sequence=1)
    assert text.domains == ("one", "two") and text.tokenizer.characters == "abcde"
    assert [stream.tolist() for stream in text.train] == [[0, 1] * 9, [1, 2, 3, 4, 0] * 6 + [1]]
    assert [stream.tolist() for stream in text.held_out] == [[0, 1], [2, 3, 4, 0]]


def test_an_existing_tokenizer_is_kept():
    known = tokenizer.Tokenizer("abcd")
    text = data.build({"one": "bd" * 20}, 1, known)
    assert text.tokenizer is known and text.train[0][:2].tolist() == [1, 3]


def test_a_character_that_an_existing_tokenizer_does_not_know_is_named():
    with pytest.raises(ValueError, match="'z'"):
        data.build({"one": "az" * 20}, 1, tokenizer.Tokenizer("ab"))


def test_the_shortest_text_by_hand():
    # pieces of 4 tokens need a fifth as the last target; 41 characters leave 41 - 36 = 5, 40 leave 4
    assert len(data.build({"one": "x" * 41}, sequence=4).held_out[0]) == 5
    with pytest.raises(ValueError, match="the text 'one' has 40 characters: too short for sequences of 4"):
        data.build({"one": "x" * 40}, sequence=4)


def test_the_domain_that_is_too_short_is_named():
    with pytest.raises(ValueError, match="the text 'two' has 9 characters"):
        data.build({"one": "x" * 99, "two": "x" * 9}, sequence=4)


@PLAIN
@given(st.integers(1, 3000))
def test_the_length_that_the_error_asks_for_is_long_enough(sequence):
    with pytest.raises(ValueError) as caught:
        data.build({"one": "x"}, sequence)
    length = int(re.search(r"(\d+) would do", str(caught.value))[1])
    draw(1, sequence, streams=data.build({"one": "x" * length}, sequence).held_out)
    assert length < 10 * sequence + 30


def test_a_batch_has_the_shape_asked_for():
    batch = draw(batch=5, sequence=3)
    assert [array.shape for array in batch] == [(5, 3), (5, 3), (5,)]


def test_targets_are_the_tokens_one_place_on():
    batch = draw()
    np.testing.assert_array_equal(batch.targets_BS, batch.tokens_BS + 1)


def test_pieces_stay_in_their_domain_and_labels_say_which():
    batch = draw()
    for tokens_BS in (batch.tokens_BS, batch.targets_BS):
        np.testing.assert_array_equal(tokens_BS // 100, np.broadcast_to(batch.domain_B[:, None], (1000, 4)))


def test_every_start_is_drawn_about_equally_often():
    # 12 starts: 0 to 2, 100, 200 to 207;  12000 draws give each 1000, with a standard deviation of 30
    counts = Counter(draw(batch=12_000).tokens_BS[:, 0].tolist())
    assert sorted(counts) == [0, 1, 2, 100, *range(200, 208)]
    np.testing.assert_allclose(list(counts.values()), 1000, atol=120)


def test_the_same_generator_draws_the_same_pieces():
    for first, second, other in zip(draw(), draw(), draw(seed=1), strict=True):
        np.testing.assert_array_equal(first, second)
        assert not np.array_equal(first, other)


def test_the_digest_is_the_same_for_the_same_data():
    assert corpus_of().digest == corpus_of().digest
    assert len(corpus_of().digest) == 16


@pytest.mark.parametrize("other", [
    pytest.param(corpus_of(train=((0, 1), (2, 1))), id="a token"),
    pytest.param(corpus_of(held_out=((2,), (2,))), id="a held-out token"),
    pytest.param(corpus_of(characters="abd"), id="a character"),
    pytest.param(corpus_of(characters="abcd"), id="one character more"),
    pytest.param(corpus_of(train=((0, 1), (2, 0, 0))), id="one token more"),
    pytest.param(corpus_of(train=((1, 0), (2, 0))), id="the order of tokens"),
    pytest.param(corpus_of(train=((2, 0), (0, 1))), id="the order of domains"),
    pytest.param(corpus_of(train=((0, 1, 2), (0,))), id="where a domain ends"),
    pytest.param(corpus_of(train=((0, 1), (2, 0, 1)), held_out=((), (2,))), id="where the held-out part begins"),
])
def test_the_digest_tells_other_data_apart(other):
    assert other.digest != corpus_of().digest


def test_the_digest_does_not_look_at_the_names_of_domains():
    assert replace(corpus_of(), domains=("other", "names")).digest == corpus_of().digest


def test_a_corpus_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        corpus_of().train = ()
