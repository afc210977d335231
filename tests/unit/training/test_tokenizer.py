"""Characters to tokens and back; a character that is not known is named."""

from dataclasses import FrozenInstanceError

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minimoe.training import tokenizer

PLAIN = settings(derandomize=True, deadline=None)
ANY_TEXT = st.text()  # all of Unicode
EXAMPLE = tokenizer.Tokenizer.of("banana")


def test_tokens_by_hand():
    # the characters in order: a, b, n
    assert EXAMPLE.characters == "abn"
    assert EXAMPLE.encode("banana").tolist() == [1, 0, 2, 0, 2, 0]
    assert EXAMPLE.decode([2, 0, 1]) == "nab"


def test_its_length_is_the_number_of_distinct_characters():
    assert len(EXAMPLE) == 3


def test_characters_beyond_ascii_by_hand():
    # code points: a 97, é 233, ∑ 8721, 😀 128512
    known = tokenizer.Tokenizer.of("😀é", "∑a")
    assert known.characters == "aé∑😀"
    assert known.encode("😀a∑é").tolist() == [3, 0, 2, 1]


def test_half_a_surrogate_pair_is_a_character_too():
    """Text that came from bytes by "surrogateescape" has such halves."""
    text = b"caf\xe9".decode(errors="surrogateescape")
    known = tokenizer.Tokenizer.of(text)
    assert known.decode(known.encode(text)) == text


@PLAIN
@given(ANY_TEXT, ANY_TEXT)
def test_text_comes_back_from_its_tokens(text, other):
    known = tokenizer.Tokenizer.of(text, other)
    assert known.decode(known.encode(text)) == text


@PLAIN
@given(ANY_TEXT)
def test_tokens_equal_a_search_for_each_character(text):
    known = tokenizer.Tokenizer.of(text)
    assert known.encode(text).tolist() == [known.characters.index(character) for character in text]


@PLAIN
@given(st.lists(ANY_TEXT, min_size=1))
def test_each_character_is_known_once_in_order_of_its_code_point(texts):
    characters = tokenizer.Tokenizer.of(*texts).characters
    assert list(characters) == sorted(set("".join(texts)))


def test_tokens_are_whole_numbers_even_of_no_text():
    tokens_S = EXAMPLE.encode("")
    assert tokens_S.shape == (0,) and np.issubdtype(tokens_S.dtype, np.integer)


def test_every_unknown_character_is_named_once():
    # A is before what is known, z behind it, c between
    with pytest.raises(ValueError) as caught:
        EXAMPLE.encode("zebra Ana c\nzz\N{SNOWMAN}")
    assert str(caught.value).endswith(r"not seen in training: '\n' ' ' 'A' 'c' 'e' 'r' 'z' '☃'")


def test_a_tokenizer_of_nothing_knows_no_character():
    with pytest.raises(ValueError, match="'a'"):
        tokenizer.Tokenizer.of("").encode("a")


def test_a_tokenizer_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        EXAMPLE.characters = "abc"
