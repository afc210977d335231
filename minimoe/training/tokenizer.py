"""One token per character: nothing to train, nothing to download, and every token is readable."""

from dataclasses import dataclass

import numpy as np

from minimoe import require


@dataclass(frozen=True)
class Tokenizer:
    """Characters in order of their code points; a token is the index of its character in this string."""

    characters: str

    @classmethod
    def of(cls, *texts):
        """The tokenizer for all characters of the texts."""
        for text in texts:
            require.record("text", text, str)
        return cls("".join(sorted(set().union(*texts))))

    def __len__(self):
        return len(self.characters)

    def encode(self, text):
        """Convert text to an array of tokens.  Raises ValueError with the unknown characters."""
        require.record("text", text, str)
        known, asked = _code_points(self.characters), _code_points(text)
        tokens_S = np.searchsorted(known, asked)
        found = np.isin(asked, known)
        if not found.all():
            unknown = " ".join(repr(c) for c in sorted({text[i] for i in np.flatnonzero(~found)}))
            raise ValueError(f"the text has characters that the model has not seen in training: {unknown}")
        return tokens_S

    def decode(self, tokens_S):
        """Convert tokens back to text."""
        return "".join(self.characters[token] for token in tokens_S)


def _code_points(text):
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
