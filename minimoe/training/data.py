"""From texts to batches: the first nine tenths of each domain are for training, the rest is held out."""

import hashlib
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from minimoe import require
from minimoe.config import TrainConfig
from minimoe.training import corpus
from minimoe.training.tokenizer import Tokenizer

TRAIN_SHARE = 0.9


@dataclass(frozen=True, eq=False)
class Corpus:
    """Tokenized text.  domains: their names.  train, held_out: one array of tokens per domain, in the same order."""

    tokenizer: Tokenizer
    domains: tuple[str, ...]
    train: tuple[np.ndarray, ...]
    held_out: tuple[np.ndarray, ...]

    @property
    def digest(self):
        """A short hash of the data, which shows whether a checkpoint was trained on different data."""
        streams = self.train + self.held_out
        lengths = ",".join(str(len(stream)) for stream in streams)
        tokens = b"".join(stream.astype("<u4").tobytes() for stream in streams)
        return hashlib.sha256(f"{self.tokenizer.characters} {lengths} ".encode() + tokens).hexdigest()[:16]


class Batch(NamedTuple):
    """targets_BS are tokens_BS shifted by one position; domain_B is the domain of each sequence."""

    tokens_BS: np.ndarray
    targets_BS: np.ndarray
    domain_B: np.ndarray


def build(texts, sequence, tokenizer=None):
    """A Corpus from {domain: text}.

    sequence: tokens in a training sequence.  tokenizer: an existing one; None makes one from the texts' characters.
    Raises ValueError for a text that is too short to train and evaluate on, or has characters unknown to the tokenizer.
    """
    require.record("texts", texts, dict)
    require.whole("sequence", sequence, 1)
    for name, text in texts.items():
        require.record(f"texts[{name!r}]", text, str)
    tokenizer = tokenizer or Tokenizer.of(*texts.values())
    train, held_out = [], []
    for name, text in texts.items():
        tokens_S = tokenizer.encode(text)
        cut = int(TRAIN_SHARE * len(tokens_S))
        if min(cut, len(tokens_S) - cut) <= sequence:
            raise ValueError(f"the text {name!r} has {len(text)} characters: too short for sequences of {sequence}, "
                             f"since the held-out tenth must contain one; use at least {10 * sequence + 20}")
        train.append(tokens_S[:cut])
        held_out.append(tokens_S[cut:])
    return Corpus(tokenizer, tuple(texts), tuple(train), tuple(held_out))


def embedded_corpus():
    """The Corpus of the embedded texts, on which every experiment trains, for sequences of the default length."""
    return build(corpus.embedded(), TrainConfig().sequence)


def random_text(model_config, train_config):
    """A Corpus of random tokens, for measurements that do not depend on the content."""
    V = model_config.vocab_size
    stream = np.random.default_rng(0).integers(0, V, 100 * train_config.sequence)
    return Corpus(Tokenizer(range(V)), ("random",), (stream,), (stream,))  # only its length is used


def sample(streams, rng, batch, sequence):
    """A Batch of random pieces of the streams, every starting point equally likely.

    streams: arrays of tokens, one per domain.  rng: numpy.random.Generator.  batch: sequences.  sequence: tokens each.
    """
    starts = np.array([len(stream) - sequence for stream in streams])  # the last token has no target
    stop = np.cumsum(starts)
    place_B = rng.integers(0, stop[-1], batch)
    domain_B = np.searchsorted(stop, place_B, side="right")
    offset_B = place_B - (stop - starts)[domain_B]
    pieces = np.stack([streams[d][o:o + sequence + 1] for d, o in zip(domain_B, offset_B, strict=True)])
    return Batch(pieces[:, :-1], pieces[:, 1:], domain_B)
