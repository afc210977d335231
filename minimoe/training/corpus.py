"""Real text without a download: what every Python installation carries, and the user's own files.

A corpus comes as {domain: text}.  Domains are labels for looking at the router; the model never sees them.
"""

import codecs
import sysconfig
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from minimoe import files, require
from minimoe.config import fields

EMBEDDED_CHARACTERS = 440_000
"""Length of each domain of the embedded corpus: about all of the documentation topics."""

LARGEST_FILE = 1 << 30
"""Bytes of a text file that is read: a token of each character takes eight, and as many while it is made."""

ALPHABETS = ("abcdefgh", "ABCDEFGH", "01234567", "!#$%&*+-")
"""Characters of the synthetic task's clusters: disjoint, so that one character tells its cluster."""


def embedded():
    """English and Python: the documentation topics and the source of the standard library.

    Both differ a little between versions of Python, and so do losses.  Raises ValueError where an installation has been
    stripped of either.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise ValueError("this Python has no pydoc_data.topics, the English half of the embedded corpus; "
                         "train on files of your own with --text") from error
    english = "\n".join(topics[name] for name in sorted(topics))
    return {"english": _plain(english)[:EMBEDDED_CHARACTERS], "python": _library_source()}


def from_files(paths):
    """Text files, one domain each, named by the file.  Byte order marks are left out, and CRLF is a line break.

    Raises ValueError for a file that is missing, not text in UTF-8, or empty, and for two files of one name.
    """
    fields.require(isinstance(paths, Iterable) and not isinstance(paths, (str, bytes, np.ndarray)), "paths", paths,
                   "must be a list of paths")
    texts = {}
    for path in map(files.as_path, paths):
        if path.name in texts:
            raise ValueError(f"--text {path}: there is another file named {path.name}; domains need distinct names")
        texts[path.name] = _read(path)
    return texts


def clusters(length=20_000, noise=0.1, seed=0):
    """A language that four experts fit exactly: four alphabets, each with a permutation that says what comes next.

    Each domain is one alphabet.  The next character is the permutation's with probability 1 - noise, else any of
    the alphabet, evenly.  length: characters of each domain.  Returns {domain: text}.  A router that sends each
    alphabet to an expert of its own is the best there is; `clusters_floor` is the loss that it can reach.
    """
    require.whole("length", length, 1)
    require.whole("seed", seed)
    fields.require(isinstance(noise, (int, float)) and 0 <= noise <= 1, "noise", noise, "must be from 0 to 1")
    rng = np.random.default_rng(seed)
    return {f"cluster {i}": _walk(alphabet, length, noise, rng) for i, alphabet in enumerate(ALPHABETS)}


def clusters_floor(noise=0.1):
    """Entropy of the next character in `clusters`, nats per token: no model has a lower loss in expectation."""
    size = len(ALPHABETS[0])
    right, wrong = 1 - noise + noise / size, noise / size
    return -(right * np.log(right) + (size - 1) * wrong * np.log(wrong)) if noise else 0.0


def _walk(alphabet, length, noise, rng):
    size = len(alphabet)
    following, jump = rng.permutation(size), rng.random(length) < noise
    anywhere, state, letters = rng.integers(0, size, length), 0, []
    for i in range(length):
        state = anywhere[i] if jump[i] else following[state]
        letters.append(alphabet[state])
    return "".join(letters)


def _library_source():
    """Source of the standard library's own modules in alphabetical order, to the length of the English half."""
    parts, length = [], 0
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        parts.append(_plain(path.read_text(encoding="utf-8", errors="ignore")))
        length += len(parts[-1])
        if length >= EMBEDDED_CHARACTERS:
            return "".join(parts)[:EMBEDDED_CHARACTERS]
    raise ValueError("this Python carries no source of its standard library, the other half of the embedded corpus; "
                     "train on files of your own with --text")


def _plain(text):
    """Printable ASCII and line breaks only, so that the vocabulary stays below 100 characters."""
    return "".join(c for c in text.expandtabs(4) if c == "\n" or " " <= c <= "~")


def _read(path):
    try:
        files.check_regular(path, LARGEST_FILE)
        text = path.read_text(encoding="utf-8").replace("\ufeff", "")  # files that were joined have more than one
    except UnicodeDecodeError as error:
        other = "; it begins as UTF-16 does" * error.object.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        raise ValueError(f"--text {path}: not a text file in UTF-8 ({error.reason} at byte {error.start}){other}"
                         ) from error
    except OSError as error:
        raise ValueError(f"--text {path}: cannot be read: {error.strerror}") from error
    if "\0" in text:
        raise ValueError(f"--text {path}: a binary file (it has a zero byte), not text")
    if not text.strip():
        raise ValueError(f"--text {path}: the file has no text in it")
    return text
