"""Printing: text that cannot control the terminal, tables and paragraphs that fit its width, and colors.

Texts, names and paths come from outside, so characters that a terminal would obey, or cannot show, are printed as
escapes such as \\x1b.  Every table of the program is drawn here, by rich.  A table that is too wide continues below,
with its first columns repeated, so that no number is broken.
"""

import contextlib
import io
import itertools
import os
import re
import shlex
import shutil
import sys
import textwrap
import unicodedata

NARROW, NOTEBOOK = 40, 120
"""Columns: the minimum that any output needs; and those of a notebook, whose outputs must not depend on the window."""
LONGEST_MESSAGE = 500
"""Largest number of characters of an error message."""


def width():
    """Number of columns: those of the terminal; COLUMNS if it is set; 80 in a pipe; NOTEBOOK in a notebook."""
    if _in_notebook():
        return NOTEBOOK
    columns = os.environ.get("COLUMNS", "")
    return max(int(columns) if columns.isdigit() and int(columns) > 0 else _real_width(), NARROW)


def _in_notebook():
    """Whether this process is a notebook's kernel.  A process that only uses kernels may have loaded the module too."""
    module = sys.modules.get("ipykernel.kernelapp")
    return module is not None and module.IPKernelApp.initialized()


def is_shown():
    """Whether standard output is a terminal, read as it comes."""
    return sys.stdout is not None and sys.stdout.isatty()


def _real_width():
    return shutil.get_terminal_size((80, 24)).columns if is_shown() else 80


def printable(text, stream=None):
    """The text with a Python escape for each character that a terminal would obey or cannot show.

    Line breaks and tabs stay.  Escaped are other control characters, such as ESC; invisible ones that change the
    writing direction; halves of surrogate pairs; and characters outside the stream's encoding (None: standard output).
    """
    encoding = getattr(sys.stdout if stream is None else stream, "encoding", None) or "utf-8"
    escaped = "".join(c if c in "\n\t" or c.isprintable() or unicodedata.category(c) == "Zs"
                      else c.encode("unicode_escape").decode("ascii") for c in text)
    return escaped.encode(encoding, "backslashreplace").decode(encoding)


def columns(text):
    """Number of columns of a line: a Chinese, Japanese or Korean character takes two, a combining mark none."""
    return sum(0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in "WF") for c in text)


def quoted(text):
    """The text as one word for a shell, to be pasted, with the escapes of bash and zsh for what cannot be shown."""
    if printable(text) == text and not set(text) & set("\n\t"):
        return shlex.quote(text)
    return "$'" + "".join("".join(f"\\x{byte:02x}" for byte in os.fsencode(c))
                          if c in "\\'\n\t" or printable(c) != c else c for c in text) + "'"


def command(*words):
    """A command of this program, to be pasted."""
    return " ".join(["python -m minimoe", *map(quoted, words)])


def say(text="", end="\n"):
    """Print text that comes from outside, or may contain such text: see `printable`."""
    print(printable(text), end=end, flush=True)


def complain(text, to_type=""):
    """Print a message on standard error, without its middle if it is very long; do nothing if that cannot be written.

    to_type: a command, on a separate line below, so that it can be pasted.
    """
    message = printable(text, sys.stderr).replace("\n", "\\n")
    if len(message) > LONGEST_MESSAGE:
        message = f"{message[:LONGEST_MESSAGE - 150]} ... {message[-145:]}"
    lines = [_wrapped(message, "", "  "), *["  " + printable(to_type, sys.stderr)] * bool(to_type)]
    with contextlib.suppress(OSError):  # the exit status also reports the error
        print(*lines, sep="\n", file=sys.stderr, flush=True)


def fill(text, indent="", hanging=""):
    """Fill each line of the text as a paragraph.  indent: before its first line.  hanging: before the others.

    Text in `backquotes` is not broken.
    """
    return "\n".join(_wrapped(line, indent, hanging or indent) for line in printable(text).split("\n"))


def _wrapped(line, indent, hanging):
    whole = re.sub("`[^`]*`", lambda quote: quote[0].replace(" ", "\0"), line)
    return textwrap.fill(whole, width(), initial_indent=indent, subsequent_indent=hanging, break_on_hyphens=False,
                         break_long_words=False, expand_tabs=False, replace_whitespace=False).replace("\0", " ")


def wrapped(pieces):
    """The pieces of a text as they come, word by word: where a word has no room, a line break replaces the gap before.

    A gap at the start of a line stays, so that code keeps its indentation.
    """
    used, gap, word = 0, "", ""
    for character in itertools.chain(itertools.chain.from_iterable(map(printable, pieces)), [""]):  # "" ends a word
        if character and not character.isspace():
            word += character
            continue
        if word:
            fits = used == 0 or used + columns(gap + word) <= width()
            yield gap + word if fits else f"\n{word}"
            used, gap, word = (used + columns(gap) if fits else 0) + columns(word), "", ""
        if character == "\n":
            yield character
            used, gap = 0, ""
        else:
            gap += character


def table(rows, left=(0,), repeat=1):
    """Rows of cells as text in columns, with the first row as the head.

    left: columns of words, aligned left and broken between words if there is no room; the others are numbers, aligned
    right and never broken.  repeat: number of first columns to repeat where a wide table continues below.
    Returns the lines, without spaces at their ends.
    """
    rows = [tuple(printable(str(cell)) for cell in row) for row in rows]
    widths = [max(columns(line) for row in rows for line in row[i].split("\n")) for i in range(len(rows[0]))]
    return "\n\n".join(_draw([[row[i] for i in block] for row in rows], [block.index(i) for i in block if i in left])
                       for block in _blocks(widths, repeat, left))


def _blocks(widths, repeat, left):
    """Lists of columns that fit side by side: as few lists as possible, and none much wider than the others.

    A column of words may shrink to a third of the width.
    """
    needed = [min(w, width() // 3) if i in left else w for i, w in enumerate(widths)]
    fewest = len(_split(needed, repeat, width()))
    return next(blocks for limit in range(width() + 1) if len(blocks := _split(needed, repeat, limit)) == fewest)


def _split(needed, repeat, limit):
    """Lists of columns, each with the first ones and as many others as the limit allows, but at least one."""
    first, blocks, block = list(range(repeat)), [], []
    for i in range(repeat, len(needed)):
        if block and sum(needed[j] + 2 for j in (*first, *block, i)) - 2 > limit:
            blocks.append([*first, *block])
            block = []
        block.append(i)
    return [*blocks, [*first, *block]]


def _draw(rows, left):
    from rich.box import Box
    from rich.table import Table
    from rich.text import Text
    grid = Table(box=Box("    \n    \n -- \n    \n    \n    \n    \n    \n"), show_edge=False, pad_edge=False,
                 padding=(0, 1, 0, 0), header_style="")
    for i, name in enumerate(rows[0]):
        words = i in left
        grid.add_column(Text(name), justify="left" if words else "right", no_wrap=not words, overflow="fold")
    for row in rows[1:]:
        grid.add_row(*map(Text, row))
    lines = [line.rstrip() for line in rendered(grid).split("\n")]
    rule = next(i for i, line in enumerate(lines) if re.fullmatch(r"-[- ]*", line))  # rich draws it with gaps
    lines[rule] = "-" * len(lines[rule])
    return "\n".join(lines)


def color_system(when="auto"):
    """The colors that standard output can show, by rich's name for them: "truecolor", "256", ...; None for none.

    when: "always", "never", or "auto", which asks the terminal; NO_COLOR and FORCE_COLOR are honored.
    """
    if when != "auto":
        return "truecolor" if when == "always" else None
    asked = console(None, "auto")
    return None if asked.no_color else asked.color_system


def rendered(thing, colors=None):
    """A Text or a Table of rich, rendered as a string.  colors: see `color_system`; None is plain text."""
    text = io.StringIO()
    console(text, colors).print(thing)
    return text.getvalue().rstrip("\n")


def console(file, colors):
    """A rich Console as wide as the terminal.  file: None is standard output.  colors: of `color_system`, or "auto".
    """
    from rich.console import Console
    return Console(file=file, width=width(), color_system=colors, highlight=False, legacy_windows=False,
                   force_jupyter=False, force_terminal=None if colors == "auto" else colors is not None,
                   no_color=None if colors == "auto" else False)
