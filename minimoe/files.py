"""Files that are complete or absent: written under a temporary name, then renamed; and which paths may be read."""

import contextlib
import errno
import os
import secrets
import stat
from pathlib import Path

from minimoe import interrupts

KINDS = {stat.S_IFIFO: "a pipe", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device", stat.S_IFSOCK: "a socket"}
"""In words, what a path can be that is neither a file nor a folder."""


class ShortError(ValueError):
    """A ValueError whose message stays short, whatever names it contains."""

    def __init__(self, message):
        super().__init__(message if len(message) <= 600 else f"{message[:400]} ... {message[-150:]}")


class NotWritten(ShortError):
    """The folder or the disk does not allow a file to be written."""


@contextlib.contextmanager
def written(path, what="the file", before_rename=lambda: None):
    """The temporary Path to write to.  It becomes `path` at the end of the block, and is removed after an error.

    Makes the folder.  The temporary name is unique to this process and call, so that two writers of the same file do
    not interfere.  The content is forced to disk before the file gets its name.

    Args:
        path: path of the file.
        what: what messages call the file.
        before_rename: called when everything is written; if it raises, the old file stays in place.
    Raises NotWritten, a ValueError, if the folder or the disk does not allow it, and KeyboardInterrupt after an
    interruption, whatever other error that caused.
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
        with contextlib.suppress(OSError, ValueError):  # it may never have been created
            temporary.unlink()


def remove_temporary(path):
    """Remove temporary files of `path` that killed processes left; only while no other process can be writing it."""
    for left in Path(path).parent.glob("*.tmp"):
        if left.name.startswith(Path(path).name[:100] + "."):
            with contextlib.suppress(OSError):
                left.unlink()


def sync_folder(folder):
    """Make a rename in a folder survive a power cut, where the system allows folders to be opened."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def as_path(path):
    """Return a Path.  Raises ValueError for a value that is neither a string nor a path."""
    if not isinstance(path, (str, os.PathLike)):
        raise ValueError(f"path = {str(path):.100}: must be a string or a Path")
    return Path(path)


def check_name(path):
    """Raise OSError for a name that no file can have; Python raises several kinds of ValueError."""
    path = as_path(path)
    try:
        possible = b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:
        possible = False
    if not possible:
        raise OSError(errno.EINVAL, "No file can have this name", str(path))


def check_regular(path, largest=None):
    """Raise OSError unless the path is that of a regular file, of at most `largest` bytes.

    It is not opened otherwise: a pipe would wait forever, and a device may never end or may react to being opened.
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
    """Raise ValueError unless the path has this ending, such as ".png".  what: what the message calls the file."""
    if Path(path).suffix.lower() != ending:
        raise ValueError(f"{what} {path}: must end in {ending}, since it is written as {ending[1:].upper()}")
