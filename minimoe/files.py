"""Files that are whole or not there: written under a temporary name, then renamed; and what may be read as a file."""

import contextlib
import errno
import os
import secrets
import stat
from pathlib import Path

from minimoe import interrupts

KINDS = {stat.S_IFIFO: "a pipe", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device", stat.S_IFSOCK: "a socket"}
"""What a name can stand for that is neither a file nor a folder, in words."""


class ShortError(ValueError):
    """A ValueError whose message is short, whatever is named in it."""

    def __init__(self, message):
        super().__init__(message if len(message) <= 600 else f"{message[:400]} ... {message[-150:]}")


class NotWritten(ShortError):
    """The folder or the disk does not allow a file to be written."""


@contextlib.contextmanager
def written(path, what="the file", before_rename=lambda: None):
    """The temporary Path to write to; at the end of the block it becomes `path`, and after an error it is gone.

    Makes the folder.  The temporary name is of this process and this call alone, so that two that write one file do
    not write into each other's.  The content is forced to disk before it gets its name.

    Args:
        path: of the file.
        what: the file is called in messages.
        before_rename: called when all is written; what it raises leaves the old file in place.
    Raises NotWritten, a ValueError, if the folder or the disk does not allow it; KeyboardInterrupt whatever an
    interruption has led to.
    """
    path = as_path(path)
    temporary = path.parent / (f"{path.name[:100]}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        check_name(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        before_rename()
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        interrupts.raise_hidden(error)
        raise NotWritten(f"cannot write {what} {path}: {error.strerror or error}") from error
    except ValueError as error:
        interrupts.raise_hidden(error)
        raise
    finally:
        with contextlib.suppress(OSError, ValueError):  # what could not be written may not be there to remove
            temporary.unlink()


def remove_temporary(path):
    """Remove what processes that were killed have left of `path`; only while no other process can be writing it."""
    for left in Path(path).parent.glob("*.tmp"):
        if left.name.startswith(Path(path).name[:100] + "."):
            with contextlib.suppress(OSError):
                left.unlink()


def sync_folder(folder):
    """Make a rename in it last through a power cut, where the system allows a folder to be opened."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def as_path(path):
    """A Path.  Raises ValueError for what is neither text nor a path."""
    if not isinstance(path, (str, os.PathLike)):
        raise ValueError(f"path = {str(path):.100}: must be text or a Path")
    return Path(path)


def check_name(path):
    """Raise OSError for a name that no file can have, for which Python raises several kinds of ValueError."""
    path = as_path(path)
    try:
        possible = b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:
        possible = False
    if not possible:
        raise OSError(errno.EINVAL, "No file can have this name", str(path))


def check_regular(path, largest=None):
    """Raise OSError unless the path is that of a regular file, of at most `largest` bytes.

    A pipe would wait for ever, a device may never end, and what opening it does is not known: so it is not opened.
    """
    check_name(path)
    found = os.stat(path)
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, f"It is {KINDS[stat.S_IFMT(found.st_mode)]}, not a file", str(path))
    if largest is not None and found.st_size > largest:
        raise OSError(errno.EFBIG, f"It has {found.st_size:,} bytes; {largest:,} is the limit", str(path))


def check_ending(path, what, ending):
    """Raise ValueError unless the path has this ending, such as ".png".  what: the file is called in the message."""
    if Path(path).suffix.lower() != ending:
        raise ValueError(f"{what} {path}: must end in {ending}, since it is written as {ending[1:].upper()}")
