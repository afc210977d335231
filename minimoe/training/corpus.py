"""Real text without a download: what every Python installation contains, and the user's own files.

A corpus comes as {domain: text}.  Domains are labels for analyzing the router; the model never sees them.
"""

import codecs
import sysconfig
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from minimoe import files, require
from minimoe.config import fields

EMBEDDED_CHARACTERS = 440_000
"""Length of each domain of the embedded corpus, in characters: nearly all of the documentation topics."""

LARGEST_FILE = 1 << 30
"""Largest size of a text file, in bytes: the token of a character takes eight, and eight more while it is made."""

ALPHABETS = ("abcdefgh", "ABCDEFGH", "01234567", "!#$%&*+-")
"""The alphabets of the synthetic task's clusters.  They are disjoint, so that one character identifies its cluster."""


def embedded():
    """English and Python: the documentation topics and the source of the standard library.

    Both differ slightly between versions of Python, and so do losses.  Raises ValueError if an installation lacks
    either.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise ValueError("this Python has no pydoc_data.topics, the English half of the embedded corpus; "
                         "train on files of your own with --text") from error
    english = "\n".join(topics[name] for name in sorted(topics))
    return {"english": _plain(english)[:EMBEDDED_CHARACTERS], "python": _library_source()}


def from_files(paths):
    """Text files, one domain each, named after the file.  Byte order marks are removed, and CRLF is a line break.

    Raises ValueError for a file that is missing, not UTF-8 text, or empty, and for two files with the same name.
    """
    fields.require(isinstance(paths, Iterable) and not isinstance(paths, (str, bytes, np.ndarray)), "paths", paths,
                   "must be a list of paths")
    texts = {}
    for path in map(files.as_path, paths):
        if path.name in texts:
            raise ValueError(f"--text {path}: there is another file named {path.name}; domains need different names")
        texts[path.name] = _read(path)
    return texts


def clusters(length=20_000, noise=0.1, seed=0):
    """A language that suits four experts: four alphabets, each with a permutation that gives the next character.

    Each domain is one alphabet.  The next character is the permutation's with probability 1 - noise, otherwise drawn
    uniformly from the alphabet.  length: characters of each domain.  Returns {domain: text}.  The best possible router
    sends each alphabet to an expert of its own; `clusters_floor` is the loss that the model can then reach.
    """
    require.whole("length", length, 1)
    require.whole("seed", seed)
    fields.require(isinstance(noise, (int, float)) and 0 <= noise <= 1, "noise", noise, "must be from 0 to 1")
    rng = np.random.default_rng(seed)
    return {f"cluster {i}": _walk(alphabet, length, noise, rng) for i, alphabet in enumerate(ALPHABETS)}


def clusters_floor(noise=0.1):
    """Entropy of the next character in `clusters`, nats per token: no model can have a lower expected loss."""
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
    """Source code of the standard library's modules in alphabetical order, up to the length of the English half."""
    parts, length = [], 0
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        parts.append(_plain(path.read_text(encoding="utf-8", errors="ignore")))
        length += len(parts[-1])
        if length >= EMBEDDED_CHARACTERS:
            return "".join(parts)[:EMBEDDED_CHARACTERS]
    raise ValueError("this Python has no source of its standard library, the other half of the embedded corpus; "
                     "train on files of your own with --text")


def _plain(text):
    """Printable ASCII and line breaks only, so that the vocabulary stays below 100 characters."""
    return "".join(c for c in text.expandtabs(4) if c == "\n" or " " <= c <= "~")


def _read(path):
    try:
        files.check_regular(path, LARGEST_FILE)
        text = path.read_text(encoding="utf-8").replace("\ufeff", "")  # concatenated files have more than one
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
