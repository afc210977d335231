"""Routing in a terminal: nothing of the text is lost, and each number is below its character."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minimoe.analysis import route
from minimoe.moe.telemetry import NO_LIMIT, LedgerRow
from minimoe.plots import palette


@pytest.fixture(autouse=True, scope="module")
def wide():
    """60 columns."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "60")
        yield


def unpainted(text):
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def test_numbers_stand_under_their_characters_by_hand():
    # the line break is a character with an expert of its own, 7, which has no place to be shown; a tab has no shape
    assert route.colored("a\tb\ncd", [0, 1, 10, 7, 35, -1]) == "a b\n01a\ncd\nz-"
    # a wide character takes two places, a mark on the one before none: it is shown as an escape
    assert route.colored("日a\u0301本", [1, 2, 3, 4]) == "日a\\u0301本\n1 23     4"
    assert route.colored("日" * 31, [1] * 31).split("\n") == ["日" * 30, ("1 " * 30).rstrip(), "日", "1"]
    # a line that is too long is broken with its numbers
    assert route.colored("x" * 61, [1] * 60 + [2]).split("\n") == ["x" * 60, "1" * 60, "x", "2"]


@settings(derandomize=True, deadline=None, max_examples=30)
@given(st.lists(st.text(st.characters(min_codepoint=32, max_codepoint=382, categories=["L", "N", "P", "Zs"]),
                        max_size=60), min_size=1, max_size=5))
def test_the_text_is_whole_with_and_without_colors(lines):
    text = "\n".join(lines).replace("\xa0", " ")
    plain, painted = (route.colored(text, range(len(text)), colors).split("\n") for colors in (None, "truecolor"))
    assert "\n".join(plain[::2]) == text and list(map(len, plain[1::2])) == list(map(len, plain[::2]))
    assert list(map(unpainted, painted)) == plain  # the numbers are there in color too


@pytest.mark.parametrize("expert", [0, 4, 9])
def test_each_character_has_the_color_and_the_ink_of_its_expert(expert):
    painted = route.colored("xyz", [3, expert, -1], "truecolor")
    ink, ground = re.findall(r"\x1b\[38;2;([\d;]+);48;2;(\d+;\d+;\d+)m", painted)[1]
    assert palette.color(expert) == "#" + "".join(f"{int(part):02X}" for part in ground.split(";"))
    assert ink == {"#000000": "0;0;0", "#ffffff": "255;255;255"}[palette.ink(expert)]
    assert painted.split("\n")[0].endswith("my\x1b[0mz")


@pytest.mark.parametrize("colors", [None, "truecolor"])
def test_the_legend_names_every_expert_in_as_many_lines_as_it_takes(colors):
    legend = route.legend(20, colors)
    assert unpainted(legend).split() == ["experts:", *map(str, range(20))]
    assert [len(line) for line in unpainted(legend).split("\n")] == [9 + 10 * 3 + 5 * 4, 9 + 5 * 4]
    assert ("\x1b" in legend) == (colors is not None)


def test_the_ledger_by_hand():
    """60 columns less 20 are 40 for the choices: those of 15 + 2, 3 and 15 + 5 fit next to each other."""
    rows = [
        LedgerRow(0, 0, 0, 3, 0.714, 0, True, "place 1 of 1"),
        LedgerRow(0, 0, 1, 1, 0.286, 0, True, "place 1 of 1"),
        LedgerRow(0, 1, 0, 3, 0.6, 1, False, "place 2, room for 1"),
        LedgerRow(1, 0, 0, 2, 0.5, 0, True, "12"),
        LedgerRow(1, 0, 1, 3, 0.5, 0, True, "12345"),
        LedgerRow(1, 1, 0, 2, 0.5, 0, True, "12"),
        LedgerRow(1, 1, 1, 3, 0.5, 0, True, "123456"),
    ]
    assert route.ledger(rows, "a\n").split("\n") == [
        "layer  token        expert: gate, kept or dropped and why",
        "-" * 60,
        "    0      0  'a'   3: 0.71 kept (place 1 of 1)",
        "                    1: 0.29 kept (place 1 of 1)",
        r"    0      1  '\n'  3: 0.60 DROPPED (place 2, room for 1)",
        "    1      0  'a'   2: 0.50 kept (12)   3: 0.50 kept (12345)",
        r"    1      1  '\n'  2: 0.50 kept (12)",
        "                    3: 0.50 kept (123456)",
    ]
    unlimited = [row._replace(why=NO_LIMIT) for row in rows if row.kept]  # said once
    assert route.ledger(unlimited, "a\n").split("\n")[::2] == [
        "layer  token        expert: gate (no limit: all are kept)", "    0      0  'a'   3: 0.71   1: 0.29",
        r"    1      1  '\n'  2: 0.50   3: 0.50"]
