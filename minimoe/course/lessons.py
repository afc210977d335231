"""The lessons, run again in place: the same outputs give the same bytes, so that a difference is a difference.

Jupyter writes into a notebook when and by whom it was run, and cuts printed text into pieces as it arrives.  None of
that is kept.
"""

import asyncio
import base64
import contextlib
import os
import signal
import time
from pathlib import Path

import matplotlib
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from minimoe import files, terminal

FOLDER = Path(__file__).parents[2] / "notebooks"

COVERS = Path("figures")

LIMIT = 600
"""Seconds after which a cell that has not ended is given up."""

ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
"""The matrices of lessons are too small to be worth sharing, and two threads that wait for one another are slower."""

METADATA = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"}}


def main(names=(), check=False, say=terminal.say):
    """Run the lessons whose file names begin with one of `names`, or all; write each when it has run.

    check: write nothing, and say which would change.  say: prints.   Returns whether all could run, and with `check`
    whether none would change.  Raises ValueError for a name that no lesson has.
    """
    good = True
    for path in find(names):
        before = path.read_text("utf-8")
        try:
            after, seconds = run(before, path.parent)
        except CellExecutionError as error:
            say(f"{path.name}: stopped by an error, and is left as it was\n{error}")
            good = False
            continue
        same = after == before
        good &= same or not check
        if not (same or check):
            with files.written(path) as temporary:
                temporary.write_text(after, "utf-8")
        say(f"{path.name}: {sum(seconds):.0f} s, the slowest cell {max(seconds):.0f} s, "
            + ("the same bytes" if same else "other bytes" if check else "written"))
    return good


def figure(say=terminal.say):
    """Write each lesson's best picture for the README: the output of the one cell that is tagged `cover`.

    Raises ValueError for a lesson that has none, or more.
    """
    for path in find():
        cells = nbformat.read(path, as_version=4).cells
        pictures = [output.data["image/png"] for cell in cells if "cover" in cell.metadata.get("tags", ())
                    for output in cell.outputs if "image/png" in output.get("data", {})]
        if len(pictures) != 1:
            raise ValueError(f"{path.name} has {len(pictures)} pictures in cells with the tag cover: must be one")
        with files.written(COVERS / f"lesson-{path.name[:2]}.png") as temporary:
            temporary.write_bytes(base64.b64decode(pictures[0]))
    say(f"wrote {COVERS / 'lesson-*.png'}")


def find(names=(), folder=FOLDER):
    """The lessons' paths in order.  Raises ValueError if there are none, or none begins with a name that is given."""
    paths = sorted(Path(folder).glob("[0-9]*.ipynb"))
    if not paths:
        raise ValueError(f"there are no lessons in {folder}: they are part of the repository, not of the package")
    for name in names:
        if not any(path.name.startswith(name) for path in paths):
            raise ValueError(f"lesson = {name!r}: must begin the name of one of {', '.join(p.stem for p in paths)}")
    return [path for path in paths if not names or path.name.startswith(tuple(names))]


def run(text, folder):
    """A notebook's text with the outputs of a new run in `folder`, and the seconds of each of its cells of code.

    Pictures have matplotlib's own style, whatever a user's matplotlibrc says.
    Raises nbclient's CellExecutionError at the first cell that fails, KeyboardInterrupt after Ctrl-C.
    """
    notebook, seconds = plain(nbformat.reads(text, as_version=4)), []
    started = {}
    client = Client(
        notebook, timeout=LIMIT, kernel_name="python3", record_timing=False,
        extra_arguments=["--IPKernelApp.log_level=40"],  # of a kernel that only we talk to
        resources={"metadata": {"path": str(folder)}},
        on_cell_execute=lambda cell, cell_index: started.update({cell_index: time.perf_counter()}),
        on_cell_executed=lambda cell, cell_index, execute_reply: seconds.append(
            time.perf_counter() - started[cell_index]))
    try:
        client.execute(env=os.environ | ONE_THREAD | {"MATPLOTLIBRC": matplotlib.get_data_path()})
    except BaseException:
        if client.interrupted:  # which nbclient reports in many ways, such as a kernel that has died
            raise KeyboardInterrupt from None
        raise
    return nbformat.writes(plain(notebook)) + "\n", seconds


class Client(NotebookClient):
    """What runs a notebook, and lets Ctrl-C end it; nbclient's own handler removes the kernel under the running cell.

    interrupted: whether it was pressed.
    """

    interrupted = False

    async def async_start_new_kernel(self, **options):
        """Start the kernel; from here on, Ctrl-C cancels what runs, and the kernel is removed as at its end."""
        running = asyncio.current_task()

        def stop():
            self.interrupted, self.shutdown_kernel = True, "immediate"
            running.cancel()

        with contextlib.suppress(NotImplementedError, RuntimeError):  # Windows; another thread than the main one
            asyncio.get_running_loop().add_signal_handler(signal.SIGINT, stop)
        await super().async_start_new_kernel(**options)


def plain(notebook):
    """The notebook without what differs between runs of the same code.  Changes and returns it."""
    notebook.metadata = nbformat.from_dict(METADATA)
    for place, cell in enumerate(notebook.cells):
        cell.id = f"cell-{place}"
        cell.metadata = nbformat.from_dict({name: cell.metadata[name] for name in ("tags",) if name in cell.metadata})
        if cell.cell_type == "code":
            cell.outputs = _joined(cell.outputs)
    return notebook


def _joined(outputs):
    """Printed text that came in pieces as one piece."""
    joined = []
    for output in outputs:
        last = joined[-1] if joined else {}
        if output.output_type == "stream" and last.get("name") == output.name:
            last.text += output.text
        else:
            joined.append(output)
    return joined
