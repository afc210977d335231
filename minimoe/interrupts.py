"""Ctrl-C: one line and status 130, whenever it comes."""

import contextlib
import os
import signal
import sys
import threading

STATUS = 130
"""Exit status after Ctrl-C: 128 and the number of the signal, as shells have it."""


def end_at_once():
    """Let Ctrl-C end this process without more ado: while a program is imported there is nothing to save.

    Leaves the signal alone where it is ignored, as in the background, or handled by somebody else.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


def raise_again():
    """Let Ctrl-C raise KeyboardInterrupt again, as Python does."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def is_program():
    """Whether this process is `python -m minimoe`, which is "-m" until its module is found, or the script `minimoe`."""
    return os.path.basename(getattr(sys, "argv", [""])[0]).split(".")[0] in ("-m", "minimoe")


def hidden(error):
    """The KeyboardInterrupt during which an exception was raised, or None.

    What is interrupted half-way can fail in its own ways while it is tidied up: a zip archive that still has an open
    entry raises ValueError.
    """
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error


def raise_hidden(error):
    """Raise KeyboardInterrupt if there is one behind the exception."""
    if hidden(error) is not None:
        raise KeyboardInterrupt(*hidden(error).args) from error


@contextlib.contextmanager
def never_hidden():
    """Raise KeyboardInterrupt if one is behind the exception that ends the block."""
    try:
        yield
    except Exception as error:
        raise_hidden(error)
        raise


@contextlib.contextmanager
def ignored():
    """Let Ctrl-C do nothing for a moment; in the main thread, which alone can say so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _end(signum, frame):
    os.write(2, b"\nminimoe: interrupted\n")
    os._exit(STATUS)
