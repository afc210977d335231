"""One attempt: a command or a call in a process of its own, with little time and memory, and a judgment of its end."""

import contextlib
import ctypes
import os
import re
import resource
import select
import subprocess
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import NamedTuple

import minimoe
from minimoe import cli

ROOT = Path(minimoe.__file__).parents[1]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1", "COLUMNS": "80"}
MEMORY, SECONDS, LONGEST = 1 << 30, 30.0, 700
"""Most bytes, seconds of an attempt, and characters of the line that says what is wrong."""

STATUSES = (0, 1, 2, 130)
WORDS = "the cat sat on the mat, if x: the hat\n" * 60


class End(NamedTuple):
    """How an attempt ended.  status: negative for a signal, None for none in time.  peak: bytes."""

    status: int | None
    out: str
    err: str
    seconds: float
    peak: int


def forked(function, folder, seconds=SECONDS):
    """The End of a call in a fork of this process, in a folder; what it returns is its status."""
    started, (out, err) = time.monotonic(), (folder / ".out", folder / ".err")
    process = os.fork()
    if process == 0:
        _child(function, folder, out, err)
    ready = select.select([handle := os.pidfd_open(process)], [], [], seconds)[0]
    os.close(handle)
    if not ready:
        os.kill(process, 9)
    _, code, usage = os.wait4(process, 0)
    return End(os.waitstatus_to_exitcode(code) if ready else None, *(path.read_text("utf-8", "replace")
               for path in (out, err)), time.monotonic() - started, usage.ru_maxrss * 1024)


def _child(function, folder, out, err):
    status = 99
    try:
        for stream, path in ((1, out), (2, err)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.stdout, sys.stderr = (os.fdopen(stream, "w", encoding="utf-8") for stream in (1, 2))
        os.chdir(folder)
        resource.setrlimit(resource.RLIMIT_AS, (4 * MEMORY, 4 * MEMORY))
        warnings.simplefilter("always")
        status = function() or 0
    except SystemExit as end:
        status = end.code or 0
    except BaseException:
        traceback.print_exc()
    with contextlib.suppress(BaseException):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


def command(words, folder, seconds=SECONDS):
    """The End of a command line."""
    return forked(lambda: cli.main([str(word) for word in words]), folder, seconds)


def started(words, folder, **options):
    """A command in a new interpreter, as its user starts it."""
    return subprocess.Popen([sys.executable, "-m", "minimoe", *map(str, words)], cwd=folder, env=ENVIRONMENT,
                            stdout=options.pop("stdout", subprocess.PIPE), stderr=subprocess.PIPE, encoding="utf-8",
                            errors="replace", **options)


def finished(process, seconds=120):
    """The End of a command that was `started`."""
    began = time.monotonic()
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return End(None, "", "", seconds, 0)
    return End(process.returncode, out or "", err, time.monotonic() - began, 0)


def problem(end, statuses=STATUSES):
    """What is wrong with an End, or None.  statuses: those that are right."""
    last = re.split(r"\n(?! )", end.err.strip())[-1].replace("\n", "")  # a message, with all the lines that it takes
    found = {
        "hangs": end.status is None,
        f"traceback: {last[-300:]}": "Traceback" in end.err or end.status == 99,
        f"warning: {end.err.strip()[:300]}": "Warning" in end.err,
        f"status {end.status}, not {' or '.join(map(str, statuses))}: {last[:300]}": end.status not in statuses,
        f"status 2 without its line: {last[:300]}": end.status == 2 and not last.startswith("minimoe: error: "),
        f"a line of {len(last)} characters: {last[:100]}": len(last) > LONGEST,
        f"raw characters in {ascii(last)[:300]}": not last.isprintable(),
        f"{end.peak:,} bytes": end.peak > MEMORY}
    return next((words for words, wrong in found.items() if wrong), None)


def without_privileges():
    """Even root must keep to the permissions of files from here on: in a child, before it starts its program."""
    for capability in (1, 2):  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH
        ctypes.CDLL(None).prctl(24, capability)  # PR_CAPBSET_DROP


def limited(size):
    """No file of the child grows beyond `size` bytes, as on a full disk."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
