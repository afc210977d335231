"""How progress is shown: a bar on a screen, a few lines of plain text in a log."""

import io
import itertools
import re
from types import SimpleNamespace

import pytest

from minimoe.config import ModelConfig, TrainConfig
from minimoe.training import progress

STATE = SimpleNamespace(
    model_config=ModelConfig(capacity_factor=1.0), step=2,
    train_config=TrainConfig(n_steps=12, batch=2, sequence=5, accumulate=10), history={
    "ce": [9.0, *[1.25] * 20], "seconds": [0.05], "drop": [0.125], "balance": [1.5]})
"""2 sequences of 5 tokens in 10 micro-batches are 100 tokens, in 0.05 s; only the last 20 steps count."""

WORDS = "loss 1.250, 2,000 tokens/s, dropped 12.5%, balance 1.500"


def screen(monkeypatch, columns):
    """Standard error as a terminal of this many columns, which records what is drawn."""
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(progress.sys, "stderr", stream)
    monkeypatch.setattr(progress, "SCREEN_SECONDS", 0)
    for name, value in {"COLUMNS": columns, "TERM": "xterm", "NO_COLOR": "1"}.items():
        monkeypatch.setenv(name, str(value))
    return stream


def lines(stream):
    """All that was drawn, one frame below the other, without escape codes."""
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", stream.getvalue().replace("\r", "\n")).strip().split("\n")


def test_a_log_has_a_line_after_ten_seconds_and_one_at_the_end(monkeypatch, capsys):
    """It looks at the clock every 3 s: at 100 and 103 s, and after the steps at 106, 109 and 112 s, 12 s after the
    first: time for a line, at 115 s.  3 steps of 10 have taken the 12 s from 103 s on, so the other 7 take 28 s.
    """
    monkeypatch.setattr(progress.time, "monotonic", itertools.count(100, 3).__next__)
    with progress.bar(STATE, "a run") as on_step:
        for _ in range(10):
            on_step(STATE)
    out, err = capsys.readouterr()
    assert out == "" and "\x1b" not in err and "\r" not in err
    first, *_, last = err.splitlines()
    assert first == f"a run: 5 of 12 steps, 28 s left, {WORDS}"
    assert last == f"a run: 12 of 12 steps, {WORDS}"
    assert len(err.splitlines()) < 5
    assert list(progress.rounds(3, "bench")) == [0, 1, 2]  # as of range
    assert capsys.readouterr().err == "bench: 3 of 3 rounds\n"


def test_what_cannot_drop_or_be_uneven_has_no_number_for_it(capsys):
    for fields, words in ((dict(), ", balance 1.500"), (dict(n_experts=1, top_k=1, capacity_factor=1.0), ""),
                          (dict(router="soft"), "")):
        with progress.bar(SimpleNamespace(**vars(STATE) | {"model_config": ModelConfig(**fields)}), "a run") as on_step:
            for _ in range(10):
                on_step(STATE)
        assert capsys.readouterr().err.splitlines()[-1] == f"a run: 12 of 12 steps, loss 1.250, 2,000 tokens/s{words}"


@pytest.mark.parametrize("columns", [80, 120])
def test_a_screen_has_a_bar_that_fits_it(monkeypatch, columns):
    stream = screen(monkeypatch, columns)
    with progress.bar(STATE, "runs/a [b]") as on_step:
        for _ in range(10):
            on_step(STATE)
    seen = lines(stream)
    assert max(map(len, seen)) <= columns
    assert "runs/a [b]" in seen[0] and "2/12 steps" in seen[0]
    assert all(words in " ".join(" ".join(seen[-2:]).split()) for words in ("12/12 steps", *WORDS.split(", ")))


def test_a_bar_within_a_bar_one_after_another_and_an_interrupted_one_that_gives_the_cursor_back(monkeypatch):
    stream = screen(monkeypatch, 80)
    for _ in progress.rounds(2, "outer"):
        list(progress.rounds(2, "inner"))
    assert list(progress.rounds(1, "after")) == [0]
    seen = "\n".join(lines(stream))
    assert re.search(r"outer .* 0/2 rounds.*\ninner .* 2/2 rounds", seen) and "after" in seen
    with pytest.raises(KeyboardInterrupt):
        for _ in progress.rounds(3):
            raise KeyboardInterrupt
    assert stream.getvalue().endswith("\x1b[?25h")
