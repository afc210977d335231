"""Characters to tokens and back; an unknown character is named."""

from dataclasses import FrozenInstanceError

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minimoe.training import tokenizer

ANY_TEXT = st.text("ab\n é∑😀\udce9")
"""Of each kind: ASCII, white space, Latin, one and two units of UTF-16, and half a surrogate pair, as text has it that
came from bytes by "surrogateescape"."""


def test_tokens_by_hand():
    # code points: a 97, é 233, ∑ 8721, 😀 128512
    known = tokenizer.Tokenizer.of("😀é😀", "∑a")
    assert known.characters == "aé∑😀" and len(known) == 4
    assert known.encode("😀a∑éa").tolist() == [3, 0, 2, 1, 0]
    assert known.decode([2, 0, 1]) == "∑aé"


@settings(derandomize=True, deadline=None, max_examples=50)
@given(ANY_TEXT, ANY_TEXT)
def test_text_comes_back_from_its_tokens_which_are_places_in_order_of_code_points(text, other):
    known = tokenizer.Tokenizer.of(text, other)
    tokens_S = known.encode(text)
    assert list(known.characters) == sorted(set(text + other))
    assert tokens_S.tolist() == [known.characters.index(character) for character in text]
    assert np.issubdtype(tokens_S.dtype, np.integer) and known.decode(tokens_S) == text


@pytest.mark.parametrize("known, text, unknown", [
    ("banana", "zebra Ana c\nzz☃", r"'\n' ' ' 'A' 'c' 'e' 'r' 'z' '☃'"),  # before, between and behind what is known
    ("", "aa", "'a'")])
def test_every_unknown_character_is_named_once(known, text, unknown):
    with pytest.raises(ValueError) as caught:
        tokenizer.Tokenizer.of(known).encode(text)
    assert str(caught.value).endswith(f"not seen in training: {unknown}")


def test_a_tokenizer_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        tokenizer.Tokenizer("ab").characters = "abc"
