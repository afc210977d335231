"""Where the text comes from: the Python installation, the user's files, and a language whose best loss is known."""

import math
import string
import sys
from collections import Counter

import numpy as np
import pytest

from minimoe.config import ModelConfig, TrainConfig
from minimoe.training import corpus, data, loop

LIBRARY = "\tdef ~café():\r\n".encode() + b"\xff" + b"x" * 439_980
"""A tab is four columns; é, the carriage return and the broken byte go: 4 + 11 + 1 characters and the rest."""


def file_of(folder, content, name="text.txt"):
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return path


def test_the_embedded_text_is_english_and_python_in_printable_ascii():
    texts = corpus.embedded()
    assert {name: len(text) for name, text in texts.items()} == {"english": 440_000, "python": 440_000}
    assert set().union(*texts.values()) <= set(string.printable) - set("\t\r\v\f")
    assert texts["english"].count(" the ") > 2 * texts["python"].count(" the ")
    assert texts["python"].count(" self.") > 10 * texts["english"].count(" self.")


@pytest.mark.parametrize("files, expected", [
    ([LIBRARY, b"0123456789", b"never read"], "    def ~caf():\n" + "x" * 439_980 + "0123"),
    ([b"x" * 440_000], "x" * 440_000), ([b"x" * 439_999], None)], ids=["cut", "just enough", "one too few"])
def test_the_librarys_source_is_made_plain_and_cut_and_one_without_text_refused(files, expected, tmp_path, monkeypatch):
    for name, content in zip("abc", files, strict=False):
        file_of(tmp_path, content, f"{name}.py")
    monkeypatch.setattr(corpus.sysconfig, "get_path", {"stdlib": tmp_path}.get)
    if expected is None:
        with pytest.raises(ValueError, match="no source of its standard library.*--text"):
            corpus.embedded()
    else:
        assert corpus.embedded()["python"] == expected
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(ValueError, match="no pydoc_data.topics.*--text"):
        corpus.embedded()


def test_each_file_is_a_domain_named_by_the_file_so_names_differ(tmp_path):
    paths = [file_of(tmp_path, b"\xef\xbb\xbfna\xc3\xafve\r\n\xef\xbb\xbf", "one.txt"),
             file_of(tmp_path, b"two", "two.py")]  # a byte order mark, also of a file that was joined to another
    assert corpus.from_files(map(str, paths)) == {"one.txt": "naïve\n", "two.py": "two"}
    again = file_of(tmp_path / "folder", b"text", "one.txt")
    with pytest.raises(ValueError, match=f"^--text {again}: there is another file named one.txt"):
        corpus.from_files([*paths, again])


@pytest.mark.parametrize("content, reason", [
    (b"", "the file has no text in it"),
    (b" \n\t\r\n ", "the file has no text in it"),
    (b"text\0more", "a binary file (it has a zero byte), not text"),
    ("naïve".encode("utf-16"), "not a text file in UTF-8 (invalid start byte at byte 0); it begins as UTF-16 does"),
    (b"caf\xe9 au lait", "not a text file in UTF-8 (invalid continuation byte at byte 3)"),
    (None, "cannot be read: No such file or directory"),
])
def test_a_file_without_text_is_refused_with_the_reason(tmp_path, content, reason):
    path = tmp_path / "text.txt" if content is None else file_of(tmp_path, content)
    with pytest.raises(ValueError) as caught:
        corpus.from_files([path])
    assert str(caught.value) == f"--text {path}: {reason}"


def test_each_cluster_has_an_alphabet_of_its_own_and_comes_from_the_seed():
    texts = corpus.clusters(length=1077)
    assert list(texts) == [f"cluster {i}" for i in range(4)] and [len(text) for text in texts.values()] == [1077] * 4
    assert [set(text) for text in texts.values()] == [set(letters) for letters in corpus.ALPHABETS]
    assert len(set("".join(corpus.ALPHABETS))) == 4 * 8
    assert corpus.clusters(100, seed=1) == corpus.clusters(100, seed=1) != corpus.clusters(100, seed=2)
    assert corpus.clusters() == corpus.clusters(length=20_000, noise=0.1, seed=0)


def test_clusters_follow_permutations_of_their_own_as_often_as_the_noise_says():
    # the permutation's successor comes with 1 - 0.3 + 0.3/8 = 0.7375, each of the seven others with 0.3/8 = 0.0375
    orders = set()
    for text, letters in zip(corpus.clusters(length=40_000, noise=0.3).values(), corpus.ALPHABETS, strict=True):
        pairs = Counter(zip(text, text[1:], strict=False))
        share = np.array([[pairs[a, b] / text[:-1].count(a) for b in letters] for a in letters])
        expected = np.full((8, 8), 0.0375)
        expected[range(8), share.argmax(axis=1)] = 0.7375
        np.testing.assert_allclose(share, expected, atol=0.04)  # four standard deviations
        assert share.max(axis=1).mean() == pytest.approx(0.7375, abs=0.009)
        orders.add(tuple(share.argmax(axis=1)))
    assert len(orders) == 4 and all(sorted(order) == list(range(8)) for order in orders)


def test_the_floor_is_the_entropy_of_the_next_character():
    """Without noise what follows is certain: 0.  All noise is eight equal characters: log 8."""
    for noise in (0, 1e-6, 0.1, 0.5, 1):
        p = [noise / 8 + (1 - noise) * (i == 0) for i in range(8)]
        assert corpus.clusters_floor(noise) == pytest.approx(-sum(x * math.log(x) for x in p if x), rel=1e-12)


def test_a_model_learns_the_clusters_to_their_floor_and_does_not_beat_it():
    config = ModelConfig(vocab_size=32, d_model=16, n_layers=1, n_heads=2, d_hidden=16, n_experts=4, top_k=1,
                         max_sequence=16)
    training = TrainConfig(n_steps=150, batch=16, sequence=16, warmup_steps=10, learning_rate=2e-2, eval_every=150,
                           eval_batches=100)
    text = data.build(corpus.clusters(), training.sequence)
    ce = loop.train(loop.new_state(config, training, text), text).history["eval_ce"][-1]
    # a right guess costs 0.09 nats and a wrong one 4.4 with probability 0.0875, so a token's loss has a standard
    # deviation of 1.2 nats, and the mean over 8000 held-out tokens one of 0.014
    assert ce == pytest.approx(corpus.clusters_floor(), abs=4 * 0.014)
