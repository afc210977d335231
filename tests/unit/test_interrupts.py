"""Ctrl-C ends the program in one line, with status 130, whenever it comes."""

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import minimoe
from minimoe import interrupts

ROOT = Path(minimoe.__file__).parents[1]


@pytest.fixture(autouse=True)
def as_in_a_program():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("module", ["minimoe.cost", "minimoe.cli.train"])
def test_ctrl_c_while_the_program_is_imported_ends_it_in_one_line(module, tmp_path):
    """The import system itself presses Ctrl-C when it is asked for the module."""
    (tmp_path / "sitecustomize.py").write_text(f"""
import signal, sys

class Press:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            signal.raise_signal(signal.SIGINT)

sys.meta_path.insert(0, Press())
""", "utf-8")
    run = subprocess.run([sys.executable, "-m", "minimoe", "cost"], cwd=tmp_path, capture_output=True,
                         env={"PYTHONPATH": f"{tmp_path}:{ROOT}"}, encoding="utf-8")
    assert (run.returncode, run.stdout, run.stderr) == (130, "", "\nminimoe: interrupted\n")


def test_only_the_program_is_ended_at_once_and_only_where_no_other_handler_is_set(monkeypatch):
    for argv, program in ((["-m", "cost"], True), (["/x/bin/minimoe"], True), (["minimoe.exe"], True), ([""], False),
                          (["-c"], False), (["/x/minimoe/cli/look.py"], False), (["/x/bin/pytest"], False)):
        monkeypatch.setattr(sys, "argv", argv)
        assert interrupts.is_program() == program
    for handler, after in ((signal.SIG_IGN, signal.SIG_IGN), (signal.default_int_handler, interrupts._end)):
        signal.signal(signal.SIGINT, handler)
        interrupts.end_at_once()
        assert signal.getsignal(signal.SIGINT) is after
    interrupts.raise_again()
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    with interrupts.Ignored():
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    thread = threading.Thread(target=interrupts.Ignored().__enter__)
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_what_an_interruption_has_led_to_is_an_interruption():
    with pytest.raises(KeyboardInterrupt, match="^stop$"), interrupts.NeverHidden():
        try:
            raise KeyboardInterrupt("stop")
        finally:
            raise ValueError("cannot close the archive")
    with pytest.raises(ValueError, match="alone"), interrupts.NeverHidden():
        raise ValueError("alone")
