"""Ctrl-C: one line and status 130, whenever it comes.

A program imports this module first.  It uses `_signal`, which `signal` wraps, since importing `signal` and `contextlib`
takes ten milliseconds in which Ctrl-C would still end in a traceback.
"""

import os
import sys
from _signal import SIG_IGN, SIGINT, default_int_handler, getsignal, signal

STATUS = 130
"""Exit status after Ctrl-C: 128 plus the number of the signal, as in shells."""


def is_program():
    """Whether this process is `python -m minimoe`, which is "-m" until its module is found, or the script `minimoe`."""
    return os.path.basename(getattr(sys, "argv", [""])[0]).split(".")[0] in ("-m", "minimoe")


def end_at_once():
    """Let Ctrl-C end this process at once: while a program is being imported there is nothing to save.

    Leaves the signal alone if it is ignored, as in background jobs, or already has a handler.
    """
    if getsignal(SIGINT) is default_int_handler:
        signal(SIGINT, _end)


def raise_again():
    """Let Ctrl-C raise KeyboardInterrupt again, as Python does."""
    if getsignal(SIGINT) is _end:
        signal(SIGINT, default_int_handler)


def _end(signum, frame):
    os.write(2, b"\nminimoe: interrupted\n")
    os._exit(STATUS)


def hidden(error):
    """The KeyboardInterrupt during which an exception was raised, or None.

    Interrupted code can fail in its own ways while it cleans up: a zip archive with an open entry raises ValueError.
    """
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error


def raise_hidden(error):
    """Raise KeyboardInterrupt if one caused the exception."""
    if hidden(error) is not None:
        raise KeyboardInterrupt(*hidden(error).args) from error


class NeverHidden:
    """A block that turns an exception into KeyboardInterrupt if one caused it."""

    def __enter__(self):
        """Nothing happens yet."""

    def __exit__(self, kind, error, trace):
        """Raise the hidden KeyboardInterrupt, if any."""
        if isinstance(error, Exception):
            raise_hidden(error)


class Ignored:
    """A block in which Ctrl-C does nothing, if it runs in the main thread; only that can handle signals."""

    def __enter__(self):
        """Take the handler away."""
        try:
            self._before = signal(SIGINT, SIG_IGN)
        except ValueError:
            self._before = None

    def __exit__(self, *_):
        """Put it back."""
        if self._before is not None:
            signal(SIGINT, self._before)
