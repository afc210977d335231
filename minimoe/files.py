"""Files that are whole or not there: written under a temporary name, then renamed."""

import contextlib
import os
from pathlib import Path


@contextlib.contextmanager
def written(path):
    """The temporary Path to write to; at the end of the block it becomes `path`, and after an error it is gone.

    Makes the folder.  Raises OSError if the folder or the disk does not allow it.
    """
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):  # what could not be written may not be there to remove
            temporary.unlink()
