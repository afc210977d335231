"""Where the text comes from: the Python installation, the user's files, and a language whose best loss is known."""

import math
import string
import sys
from collections import Counter

import numpy as np
import pytest

from minimoe.config import ModelConfig, TrainConfig
from minimoe.training import corpus, data, loop

PRINTABLE = set(string.printable) - set("\t\r\v\f")


def refusal_of(*paths):
    """The message of the error that these files raise."""
    with pytest.raises(ValueError) as caught:
        corpus.from_files(paths)
    return str(caught.value)


def file_of(folder, content, name="text.txt"):
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return path


def test_the_embedded_text_has_two_domains_of_one_length():
    lengths = {name: len(text) for name, text in corpus.embedded().items()}
    assert lengths == {"english": 440_000, "python": 440_000}


def test_the_embedded_text_is_printable_ascii_and_line_breaks():
    assert set().union(*corpus.embedded().values()) <= PRINTABLE


def test_the_embedded_text_is_the_same_at_every_call():
    assert corpus.embedded() == corpus.embedded()


def test_the_embedded_domains_are_english_and_python():
    texts = corpus.embedded()
    assert texts["english"].count(" the ") > 2 * texts["python"].count(" the ")
    assert texts["python"].count(" self.") > 10 * texts["english"].count(" self.")


def test_the_library_source_is_made_plain_and_cut(tmp_path, monkeypatch):
    file_of(tmp_path, "\tdef ~café():\r\n".encode() + b"\xff" + b"x" * 439_980, "a.py")
    file_of(tmp_path, b"0123456789", "b.py")
    monkeypatch.setattr(corpus.sysconfig, "get_path", {"stdlib": tmp_path}.get)
    # a tab is four columns; é, the carriage return and the broken byte go: 4 + 11 + 1 characters, then 4 more fit
    assert corpus.embedded()["python"] == "    def ~caf():\n" + "x" * 439_980 + "0123"


def test_just_enough_source_is_enough(tmp_path, monkeypatch):
    file_of(tmp_path, b"x" * 440_000, "a.py")
    monkeypatch.setattr(corpus.sysconfig, "get_path", {"stdlib": tmp_path}.get)
    assert corpus.embedded()["python"] == "x" * 440_000


def test_an_installation_without_enough_source_is_refused(tmp_path, monkeypatch):
    file_of(tmp_path, b"x" * 439_999, "a.py")
    monkeypatch.setattr(corpus.sysconfig, "get_path", {"stdlib": tmp_path}.get)
    with pytest.raises(ValueError, match="no source of its standard library.*--text"):
        corpus.embedded()


def test_an_installation_without_documentation_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(ValueError, match="no pydoc_data.topics.*--text"):
        corpus.embedded()


def test_each_file_is_a_domain_named_by_the_file(tmp_path):
    paths = [file_of(tmp_path, "naïve\n".encode(), "one.txt"), file_of(tmp_path, b"two", "two.py")]
    assert corpus.from_files(map(str, paths)) == {"one.txt": "naïve\n", "two.py": "two"}


@pytest.mark.parametrize("content, reason", [
    (b"", "the file has no text in it"),
    (b" \n\t\r\n ", "the file has no text in it"),
    (b"text\0more", "a binary file (it has a zero byte), not text"),
    (b"caf\xe9 au lait", "not a text file in UTF-8 (invalid continuation byte at byte 3)"),
    ("text".encode("utf-16"), "not a text file in UTF-8 (invalid start byte at byte 0)"),
])
def test_a_file_without_text_is_refused_with_the_reason(tmp_path, content, reason):
    path = file_of(tmp_path, content)
    assert refusal_of(path) == f"--text {path}: {reason}"


def test_a_missing_file_is_refused(tmp_path):
    path = tmp_path / "nothing.txt"
    assert refusal_of(path) == f"--text {path}: cannot be read: No such file or directory"


def test_a_folder_is_refused(tmp_path):
    assert refusal_of(tmp_path) == f"--text {tmp_path}: cannot be read: Is a directory"


def test_two_files_of_one_name_are_refused(tmp_path):
    first, second = (file_of(tmp_path / folder, b"text") for folder in "ab")
    assert refusal_of(first, second).startswith(f"--text {second}: there is another file named text.txt")


def test_each_cluster_has_an_alphabet_of_its_own():
    assert [set(text) for text in corpus.clusters().values()] == [set(letters) for letters in corpus.ALPHABETS]
    assert len(set("".join(corpus.ALPHABETS))) == 4 * 8


def test_clusters_have_the_length_asked_for():
    assert [len(text) for text in corpus.clusters(length=17).values()] == [17] * 4


def test_clusters_follow_their_permutation_exactly_without_noise():
    for text in corpus.clusters(length=500, noise=0).values():
        following = dict(zip(text, text[1:], strict=False))
        assert all(following[first] == second for first, second in zip(text, text[1:], strict=False))
        assert len(set(following.values())) == len(following)


def test_clusters_follow_their_permutation_as_often_as_the_noise_says():
    # the permutation's successor comes with 1 - 0.3 + 0.3/8 = 0.7375, each of the seven others with 0.3/8 = 0.0375
    for text in corpus.clusters(length=40_000, noise=0.3).values():
        pairs = Counter(zip(text, text[1:], strict=False))
        for first in set(text):
            shares = sorted(pairs[first, second] / text[:-1].count(first) for second in set(text))
            np.testing.assert_allclose(shares, [0.0375] * 7 + [0.7375], atol=0.04)  # four standard deviations
        followed = sum(max(pairs[first, second] for second in set(text)) for first in set(text))
        assert followed / (len(text) - 1) == pytest.approx(0.7375, abs=0.009)


def test_each_cluster_has_a_permutation_of_its_own():
    orders = set()
    for text, letters in zip(corpus.clusters(noise=0.5).values(), corpus.ALPHABETS, strict=True):
        pairs = Counter(zip(text, text[1:], strict=False))
        orders.add(tuple(max(range(8), key=lambda i, a=a: pairs[a, letters[i]]) for a in letters))  # noqa: B023
    assert len(orders) == 4 and all(sorted(order) == list(range(8)) for order in orders)


def test_clusters_come_from_the_seed():
    assert corpus.clusters(100, seed=1) == corpus.clusters(100, seed=1) != corpus.clusters(100, seed=2)


def test_the_floor_by_hand():
    # no noise: what follows is certain.  all noise: eight equal characters.
    assert corpus.clusters_floor(0) == 0
    assert corpus.clusters_floor(1) == pytest.approx(math.log(8), rel=1e-15)


@pytest.mark.parametrize("noise", [1e-6, 0.1, 0.5, 0.99])
def test_the_floor_is_the_entropy_of_the_next_character(noise):
    p = [noise / 8 + (1 - noise) * (i == 0) for i in range(8)]
    assert sum(p) == pytest.approx(1)
    assert corpus.clusters_floor(noise) == pytest.approx(-sum(x * math.log(x) for x in p), rel=1e-12)


def test_the_floor_is_the_loss_of_one_who_knows_the_language():
    right, wrong = 1 - 0.1 + 0.1 / 8, 0.1 / 8
    losses = []
    for text in corpus.clusters().values():
        pairs = Counter(zip(text, text[1:], strict=False))
        for first in set(text):
            *others, permuted = sorted(pairs[first, second] for second in set(text))
            losses += [-math.log(right)] * permuted + [-math.log(wrong)] * sum(others)
    # 80000 losses with a standard deviation of 1.2 nats
    assert np.mean(losses) == pytest.approx(corpus.clusters_floor(), abs=4 * 0.0042)


@pytest.mark.parametrize("n_experts, top_k", [(4, 1), (4, 2), (1, 1)])
def test_a_model_learns_the_clusters_and_does_not_beat_their_floor(n_experts, top_k):
    config = ModelConfig(vocab_size=32, d_model=16, n_layers=1, n_heads=2, d_hidden=16, n_experts=n_experts,
                         top_k=top_k, max_sequence=16)
    training = TrainConfig(n_steps=150, batch=16, sequence=16, warmup_steps=10, learning_rate=2e-2, eval_every=150,
                           eval_batches=100)
    text = data.build(corpus.clusters(), training.sequence)
    ce = loop.train(loop.new_state(config, training, text), text).history["eval_ce"][-1]
    # a right guess costs 0.09 nats and a wrong one 4.4 with probability 0.0875, so a token's loss has a standard
    # deviation of 1.2 nats, and the mean over 8000 held-out tokens one of 0.014
    assert corpus.clusters_floor() - 4 * 0.014 < ce < math.log(8)
