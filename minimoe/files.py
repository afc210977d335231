"""Files that are whole or not there: written under a temporary name, then renamed."""

import contextlib
import os
from pathlib import Path


class NotWritten(ValueError):
    """The folder or the disk does not allow a file to be written."""


@contextlib.contextmanager
def written(path, what="the file"):
    """The temporary Path to write to; at the end of the block it becomes `path`, and after an error it is gone.

    Makes the folder.  what: the file is called in messages.
    Raises NotWritten, a ValueError, if the folder or the disk does not allow it.
    """
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise NotWritten(f"cannot write {what} {path}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):  # what could not be written may not be there to remove
            temporary.unlink()


def check_ending(path, what, ending):
    """Raise ValueError unless the path has this ending, such as ".png".  what: the file is called in the message."""
    if Path(path).suffix.lower() != ending:
        raise ValueError(f"{what} {path}: must end in {ending}, since it is written as {ending[1:].upper()}")
