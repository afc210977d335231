"""Routing in a terminal: nothing of the text is lost, and each number stands under its character."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minimoe.analysis import route
from minimoe.moe.telemetry import LedgerRow
from minimoe.plots import palette

PLAIN = settings(derandomize=True, deadline=None)
TEXTS = st.text(st.characters(min_codepoint=32, max_codepoint=382, exclude_categories=["Cc"]) | st.just("\n"))


def unpainted(text):
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def test_numbers_stand_under_their_characters_by_hand():
    # the line break is a character with an expert of its own, 7, which has no place to be shown
    assert route.coloured("ab\ncd", [0, 10, 7, 35, 36], colour=False) == "ab\n0a\ncd\nz0"


@PLAIN
@given(TEXTS)
def test_text_and_numbers_alternate_and_have_the_same_length(text):
    lines = route.coloured(text, range(len(text)), colour=False).split("\n")
    assert lines[::2] == text.split("\n")
    assert [len(line) for line in lines[1::2]] == [len(line) for line in lines[::2]]
    digits = iter("".join(lines[1::2]))
    assert [int(next(digits), 36) for i, c in enumerate(text) if c != "\n"] == [
        i % 36 for i, c in enumerate(text) if c != "\n"]


@PLAIN
@given(TEXTS)
def test_without_its_colours_the_text_is_the_text(text):
    assert unpainted(route.coloured(text, range(len(text)))) == text


@pytest.mark.parametrize("expert", [0, 4, 9])
def test_each_character_has_the_colour_and_the_ink_of_its_expert(expert):
    painted = route.coloured("xy", [3, expert])
    red, green, blue = re.findall(r"\x1b\[48;2;(\d+);(\d+);(\d+);38;2;(?:0;0;0|255;255;255)m", painted)[1]
    assert f"#{int(red):02X}{int(green):02X}{int(blue):02X}" == palette.colour(expert)
    ink = {"#000000": "0;0;0", "#ffffff": "255;255;255"}[palette.ink(expert)]
    assert painted.endswith(f";38;2;{ink}my\x1b[0m")


def test_every_colour_ends_before_the_line_does():
    for line in route.coloured("ab\nc\n\nd", range(7)).split("\n"):
        assert line == "" or line.endswith("\x1b[0m")


@pytest.mark.parametrize("colour", [True, False])
def test_the_legend_names_every_expert(colour):
    legend = route.legend(11, colour)
    assert unpainted(legend).split() == ["experts:", *map(str, range(11))]
    assert ("\x1b" in legend) == colour


def test_colour_is_there_unless_it_is_not_wanted():
    assert route.legend(2) == route.legend(2, colour=True)
    assert route.coloured("a", [0]) == route.coloured("a", [0], colour=True)


def test_the_ledger_by_hand():
    rows = [
        LedgerRow(0, 0, 0, 3, 0.714, 0, True, "place 1 of 1"),
        LedgerRow(0, 0, 1, 1, 0.286, 0, True, "place 1 of 1"),
        LedgerRow(0, 1, 0, 3, 0.6, 1, False, "place 2, room for 1"),
        LedgerRow(1, 0, 0, 2, 1.0, 0, True, "no limit"),
    ]
    assert route.ledger(rows, "a\n").split("\n") == [
        "layer  token        experts: gate, kept or dropped and why",
        "    0      0 'a'   3: 0.71 kept (place 1 of 1)   1: 0.29 kept (place 1 of 1)",
        r"    0      1 '\n'  3: 0.60 DROPPED (place 2, room for 1)",
        "    1      0 'a'   2: 1.00 kept (no limit)",
    ]


def test_the_ledger_of_nothing_is_its_heading():
    assert route.ledger([], "") == "layer  token        experts: gate, kept or dropped and why"
