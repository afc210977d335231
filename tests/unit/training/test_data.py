"""From texts to batches: the training and held-out parts, and that every piece is drawn fairly and from one domain."""

from collections import Counter
from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest

from minimoe.training import data, tokenizer

STREAMS = (np.arange(0, 7), np.arange(100, 105), np.arange(200, 212))
"""Three domains, each of whose tokens tells its place; pieces of 4 and their target can start at 3, 1 and 8 places."""


def corpus_of(characters="abc", train=((0, 1), (2, 0)), held_out=((1,), (2,))):
    arrays = (tuple(np.array(stream) for stream in streams) for streams in (train, held_out))
    return data.Corpus(tokenizer.Tokenizer(characters), ("x", "y"), *arrays)


def test_the_last_tenth_of_each_domain_is_held_out_by_hand():
    # 20 characters: 18 train; 35: int(31.5) = 31 train
    text = data.build({"one": "ab" * 10, "two": "bcdea" * 7}, sequence=1)
    assert text.domains == ("one", "two") and text.tokenizer.characters == "abcde"
    assert [stream.tolist() for stream in text.train] == [[0, 1] * 9, [1, 2, 3, 4, 0] * 6 + [1]]
    assert [stream.tolist() for stream in text.held_out] == [[0, 1], [2, 3, 4, 0]]


def test_an_existing_tokenizer_is_kept_and_knows_no_other_characters():
    known = tokenizer.Tokenizer("abcd")
    text = data.build({"one": "bd" * 20}, 1, known)
    assert text.tokenizer is known and text.train[0][:2].tolist() == [1, 3]
    with pytest.raises(ValueError, match="'z'"):
        data.build({"one": "az" * 20}, 1, known)


@pytest.mark.parametrize("sequence, length", [(4, 41), (1, 11), (100, 1001)])
def test_the_shortest_text_by_hand(sequence, length):
    # the held-out tenth needs one token more than a sequence, as the last target: 41 - 36 = 5 for 4, and 40 - 36 = 4
    assert len(data.build({"one": "x" * length}, sequence).held_out[0]) == sequence + 1
    with pytest.raises(ValueError, match=f"the text 'two' has {length - 1} characters: too short for sequences of "
                       f"{sequence}, .* use at least {10 * sequence + 20}"):
        data.build({"one": "x" * length, "two": "x" * (length - 1)}, sequence)


def test_every_start_is_drawn_about_equally_often_with_its_targets_and_its_domain():
    # 12 starts: 0 to 2, 100, 200 to 207;  12000 draws give each 1000, with a standard deviation of 30
    batch = data.sample(STREAMS, np.random.default_rng(0), batch=12_000, sequence=4)
    start_B = batch.tokens_BS[:, 0]
    counts = Counter(start_B.tolist())
    assert sorted(counts) == [0, 1, 2, 100, *range(200, 208)]
    np.testing.assert_allclose(list(counts.values()), 1000, atol=120)
    np.testing.assert_array_equal(batch.tokens_BS, start_B[:, None] + np.arange(4))
    np.testing.assert_array_equal(batch.targets_BS, batch.tokens_BS + 1)
    np.testing.assert_array_equal(batch.domain_B, start_B // 100)
    again, other = (data.sample(STREAMS, np.random.default_rng(seed), 12_000, 4) for seed in (0, 1))
    assert np.array_equal(again.tokens_BS, batch.tokens_BS) and not np.array_equal(other.tokens_BS, batch.tokens_BS)


def test_the_digest_tells_data_apart_and_not_names():
    same, others = replace(corpus_of(), domains=("other", "names")), [corpus_of(**change) for change in (
        dict(train=((0, 1), (2, 1))), dict(held_out=((2,), (2,))), dict(characters="abd"),
        dict(train=((1, 0), (2, 0))), dict(train=((2, 0), (0, 1))),  # the order of tokens, and of domains
        dict(train=((0, 1, 2), (0,))),  # where a domain ends
        dict(train=((0, 1), (2, 0, 1)), held_out=((), (2,))))]  # where the held-out part begins
    assert same.digest == corpus_of().digest and len(same.digest) == 16
    assert len({corpus.digest for corpus in [same, *others]}) == 8
    with pytest.raises(FrozenInstanceError):
        same.train = ()
