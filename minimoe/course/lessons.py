"""Reruns the lessons in place.  The same outputs give the same bytes, so that every difference is a real one."""

import base64
import json
from pathlib import Path

from minimoe import files, terminal

FOLDER = Path(__file__).parents[2] / "notebooks"

COVERS = Path("figures")


def main(names=(), check=False, say=terminal.say):
    """Run the lessons whose file names begin with one of `names`, or all; write each one after its run.

    check: write nothing, and report which would change.  say: prints.   Returns whether all could run, and with `check`
    whether none would change.  Raises ValueError for a name that no lesson has.
    """
    from nbclient.exceptions import CellExecutionError

    from minimoe.course import kernel
    good = True
    paths = find(names)
    for i, path in enumerate(paths, 1):
        terminal.complain(f"lesson {i} of {len(paths)}: {path.name} is running, for a minute at most")
        before = path.read_text("utf-8")
        try:
            after, seconds = kernel.run(before, path.parent)
        except CellExecutionError as error:
            say(f"{path.name}: stopped by an error, file not changed\n{error}")
            good = False
            continue
        same = after == before
        good &= same or not check
        if not (same or check):
            with files.written(path) as temporary:
                temporary.write_text(after, "utf-8")
        say(f"{path.name}: {sum(seconds):.0f} s, the slowest cell {max(seconds):.0f} s, "
            + ("the same bytes" if same else "different bytes" if check else "written"))
    return good


def figure(say=terminal.say):
    """Write each lesson's best picture for the README: the output of the one cell that is tagged `cover`.

    Raises ValueError for a lesson that has none, or several.
    """
    for path in find():
        cells = json.loads(path.read_text("utf-8"))["cells"]
        pictures = [output["data"]["image/png"] for cell in cells if "cover" in cell["metadata"].get("tags", ())
                    for output in cell["outputs"] if "image/png" in output.get("data", {})]
        if len(pictures) != 1:
            raise ValueError(f"{path.name} has {len(pictures)} pictures in cells with the tag cover: must be 1")
        with files.written(COVERS / f"lesson-{path.name[:2]}.png") as temporary:
            temporary.write_bytes(base64.b64decode(pictures[0]))
    say(f"wrote {COVERS / 'lesson-*.png'}")


def find(names=(), folder=FOLDER):
    """The lessons' paths in order.  Raises ValueError if there are none, or no lesson begins with a given name."""
    paths = sorted(Path(folder).glob("[0-9]*.ipynb"))
    if not paths:
        raise ValueError(f"there are no lessons in {folder}: they are part of the repository, not of the package")
    for name in names:
        if not any(path.name.startswith(name) for path in paths):
            raise ValueError(f"lesson = {name!r}: must be the beginning of one of {', '.join(p.stem for p in paths)}")
    return [path for path in paths if not names or path.name.startswith(tuple(names))]
