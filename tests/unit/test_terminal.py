"""What is printed fits the terminal, and no number and no character is lost on the way."""

import io
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from rich import text

from minimoe import terminal
from minimoe.training import progress

WIDE = [("name", "words", *"abcdef"), ("first", "one two three", *(["12345678"] * 6))]


@pytest.fixture(autouse=True)
def plain(monkeypatch):
    """Neither a variable nor a notebook decides the width or the colors."""
    for name in ("COLUMNS", "NO_COLOR", "FORCE_COLOR", "COLORTERM", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


def screen(monkeypatch):
    """From now on standard output is a terminal of 100 columns."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr(terminal.shutil, "get_terminal_size", lambda fallback: os.terminal_size((100, 24)))


def test_the_width_is_that_of_the_terminal_and_80_in_a_pipe(monkeypatch):
    screen(monkeypatch)
    assert terminal.width() == 100
    monkeypatch.setattr(sys.stdout, "isatty", lambda: False)
    assert terminal.width() == 80
    monkeypatch.setattr(sys, "stdout", None)  # a program without a console
    assert terminal.width() == 80


@pytest.mark.parametrize(("columns", "width"), [("90", 90), ("7", terminal.NARROW), ("0", 80), ("wide", 80)])
def test_columns_is_honored_if_it_is_a_width(monkeypatch, columns, width):
    monkeypatch.setenv("COLUMNS", columns)
    assert terminal.width() == width


def test_a_notebook_has_its_own_width_whatever_runs_it(monkeypatch):
    screen(monkeypatch)
    monkeypatch.setenv("COLUMNS", "90")
    for is_kernel, width in ((True, 120), (False, 90)):  # what only talks to kernels loads the module too
        kernelapp = SimpleNamespace(IPKernelApp=SimpleNamespace(initialized=lambda is_kernel=is_kernel: is_kernel))
        monkeypatch.setitem(sys.modules, "ipykernel.kernelapp", kernelapp)
        assert terminal.width() == width


def test_a_table_by_hand():
    """Numbers right, words left, no spaces at the ends; what looks like markup is text."""
    assert terminal.table([("name", "loss", "in\nwords"), ("[b]a", 1.25, ":x:"), ("b", 10, "")], left=(0, 2)) == (
        "            in\nname  loss  words\n-----------------\n[b]a  1.25  :x:\nb       10")


@pytest.mark.parametrize(("text", "shown"), [
    ("\x1b[31mred\r\x07\x7f\x9b", "\\x1b[31mred\\r\\x07\\x7f\\x9b"), ("\u202eab\u2028", "\\u202eab\\u2028"),
    ("\udc80\ufeff", "\\udc80\\ufeff"), ("a é\tж\n\xa0", "a é\tж\n\xa0")])
def test_what_commands_a_terminal_is_shown_and_not_obeyed(capsys, text, shown):
    assert terminal.printable(text) == shown
    terminal.say(text, end="")
    terminal.complain(text)
    assert capsys.readouterr() == (shown, shown.replace("\n", "\\n") + "\n")


def test_a_message_is_wrapped_and_what_is_to_be_typed_is_not(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "40")
    terminal.complain("minimoe: note: words until here `python -m minimoe` and more", "python -m minimoe " + "x " * 40)
    assert capsys.readouterr().err.split("\n") == [
        "minimoe: note: words until here", "  `python -m minimoe` and more", "  python -m minimoe " + "x " * 40, ""]


@pytest.mark.parametrize("word", ["plain", "two words", "it's", "a\x1b[1m b", "x\ny\tz", "\\n'\u202e", "\udc80", "",
                                  "日本"])
def test_a_word_to_paste_is_the_word_for_a_shell_and_nothing_else(word):
    shown = terminal.command(word)
    assert terminal.printable(shown) == shown and "\n" not in shown
    given = subprocess.run(["bash", "-c", shown.replace("python -m minimoe", "printf %s")], stdout=subprocess.PIPE)
    assert os.fsdecode(given.stdout) == word


def test_a_message_that_cannot_be_written_is_no_error(monkeypatch):
    class Full(io.StringIO):
        def write(self, text):
            raise OSError("no space")

    monkeypatch.setattr(sys, "stderr", Full())
    terminal.complain("word")
    assert list(progress.rounds(2)) == [0, 1]


def test_a_table_and_a_paragraph_have_room_for_escapes(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    assert terminal.table([("a", "b"), ("\x1b", 1)]) == "a     b\n-------\n\\x1b  1"
    assert terminal.fill("\x1b" * 9 + " " + "\x1b") == "\\x1b" * 9 + "\n\\x1b"


def test_what_a_console_cannot_show_is_escaped_and_a_long_message_loses_its_middle(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), "cp1252"))
    assert terminal.printable("é ж") == "é \\u0436"
    for n, length in ((terminal.LONGEST_MESSAGE, terminal.LONGEST_MESSAGE), (10**6, terminal.LONGEST_MESSAGE)):
        terminal.complain("<" + "x" * (n - 2) + ">")
        line = capsys.readouterr().err.replace("\n  ", " ")
        assert len(line) == length + 1 and line.startswith("<") and line.endswith(">\n")


def test_words_that_have_no_room_are_broken_between_words(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    assert terminal.table([("n", "what"), ("7", "one two three four five six seven eight")], left=(1,)) == (
        "n  what\n----------------------------------------\n7  one two three four five six seven\n   eight")


def test_a_wide_table_goes_on_below_in_parts_of_equal_width(monkeypatch):
    """5 + 2 + 13 columns of words, then 10 for each number: all in 80; three and three in 60 and in 50."""
    assert len(terminal.table(WIDE).split("\n\n")) == 1
    for columns in ("60", "50"):
        monkeypatch.setenv("COLUMNS", columns)
        first, second = terminal.table(WIDE, left=(0, 1), repeat=2).split("\n\n")
        assert first.split("\n") == ["name   words                 a         b         c", "-" * 50,
                                     "first  one two three  12345678  12345678  12345678"]
        assert second.split("\n")[0] == "name   words                 d         e         f"


@pytest.mark.parametrize(("number", "parts"), [("1" * 11, 1), ("1" * 12, 2)])
def test_words_shrink_to_a_third_of_the_width_before_a_table_is_cut(monkeypatch, number, parts):
    """60 columns: 20 for words, and 2 + 11 for each of three numbers are 59; 2 + 12 are 62 in all."""
    monkeypatch.setenv("COLUMNS", "60")
    table = terminal.table([("words", *"abc"), ("word " * 10, number, number, number)])
    assert len(table.split("\n\n")) == parts and table.count(number) == 3


def test_no_number_is_broken_where_the_table_is_wider_than_the_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    table = terminal.table(WIDE, left=(0, 1), repeat=2)
    assert table.count("12345678") == 6 and max(map(len, table.split("\n"))) <= 40


def test_paragraphs_are_filled():
    assert terminal.fill("word " * 15 + "a-b" * 30 + "\nnext", "- ", "  ").split("\n") == [
        "- " + " ".join(["word"] * 15), "  " + "a-b" * 30, "- next"]


@pytest.mark.parametrize(("variables", "when", "colors"), [
    ({}, "auto", "256"), ({"NO_COLOR": "1"}, "auto", None), ({"NO_COLOR": ""}, "auto", "256"), ({}, "never", None),
    ({"TERM": "dumb"}, "auto", None), ({"NO_COLOR": "1"}, "always", "truecolor"),
    ({"COLORTERM": "truecolor"}, "auto", "truecolor")])
def test_colors_are_those_of_the_terminal_unless_they_are_asked_for(monkeypatch, variables, when, colors):
    """NO_COLOR counts when it is set and not empty [no-color.org]; what is asked for outright comes first."""
    screen(monkeypatch)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert terminal.color_system(when) == colors


def test_a_pipe_has_colors_only_if_they_are_forced(monkeypatch):
    assert terminal.color_system() is None
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert terminal.color_system() == "256"


def test_what_is_drawn_has_the_colors_and_no_others():
    red = text.Text("a", style="#ff0000")
    assert terminal.rendered(red, "truecolor") == "\x1b[38;2;255;0;0ma\x1b[0m" and terminal.rendered(red) == "a"


def test_inside_a_notebook_text_is_returned_and_not_displayed(monkeypatch):
    """rich writes to the notebook itself where it finds one."""
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    assert terminal.table([("a",), ("1",)]) == "a\n-\n1"
