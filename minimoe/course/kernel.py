"""Reruns one notebook in its own kernel.

Jupyter records in a notebook when and by what it was run, and splits printed text into pieces as it arrives.  None of
that is kept.
"""

import asyncio
import contextlib
import os
import signal
import time

import matplotlib
import nbformat
from nbclient import NotebookClient

LIMIT = 600
"""Time limit of a cell, in seconds."""

ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
"""One thread: the lessons' matrices are too small to share, and threads that wait for each other are slower."""

DESCRIBE = """get_ipython().display_formatter.mimebundle_formatter.for_type_by_name(
    "matplotlib.figure", "Figure", lambda figure: ({}, {"image/png": {"alt": __import__(
        "minimoe.plots.figures", fromlist=["describe"]).describe(figure)}}))"""
"""What the kernel runs first: each picture gets a text in its place, for readers who cannot see it."""

METADATA = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"}}


def run(text, folder):
    """A notebook's text with the outputs of a new run in `folder`, and the seconds of each code cell.

    Figures use matplotlib's default style, whatever the user's matplotlibrc says.
    Raises nbclient's CellExecutionError at the first cell that fails, KeyboardInterrupt after Ctrl-C.
    """
    notebook, seconds = plain(nbformat.reads(text, as_version=4)), []
    started = {}
    client = Client(
        notebook, timeout=LIMIT, kernel_name="python3", record_timing=False,
        extra_arguments=["--IPKernelApp.log_level=40",  # a kernel that only this program uses
                         f"--IPKernelApp.exec_lines={DESCRIBE}"],
        resources={"metadata": {"path": str(folder)}},
        on_cell_execute=lambda cell, cell_index: started.update({cell_index: time.perf_counter()}),
        on_cell_executed=lambda cell, cell_index, execute_reply: seconds.append(
            time.perf_counter() - started[cell_index]))
    try:
        client.execute(env=os.environ | ONE_THREAD | {"MATPLOTLIBRC": matplotlib.get_data_path()})
    except BaseException:
        if client.interrupted:  # nbclient reports this in many ways, such as a kernel that has died
            raise KeyboardInterrupt from None
        raise
    return nbformat.writes(plain(notebook)) + "\n", seconds


class Client(NotebookClient):
    """A notebook client that Ctrl-C can end; nbclient's own handler removes the kernel under the running cell.

    interrupted: whether Ctrl-C was pressed.
    """

    interrupted = False

    async def async_start_new_kernel(self, **options):
        """Start the kernel; from here on, Ctrl-C cancels the run, and the kernel is removed as after a normal end."""
        running = asyncio.current_task()

        def stop():
            self.interrupted, self.shutdown_kernel = True, "immediate"
            running.cancel()

        with contextlib.suppress(NotImplementedError, RuntimeError):  # Windows; not the main thread
            asyncio.get_running_loop().add_signal_handler(signal.SIGINT, stop)
        await super().async_start_new_kernel(**options)


def plain(notebook):
    """Remove from the notebook whatever differs between runs of the same code.  Changes and returns it."""
    notebook.metadata = nbformat.from_dict(METADATA)
    for place, cell in enumerate(notebook.cells):
        cell.id = f"cell-{place}"
        cell.metadata = nbformat.from_dict({name: cell.metadata[name] for name in ("tags",) if name in cell.metadata})
        if cell.cell_type == "code":
            cell.outputs = _joined(cell.outputs)
    return notebook


def _joined(outputs):
    """Join printed text that came in pieces."""
    joined = []
    for output in outputs:
        last = joined[-1] if joined else {}
        if output.output_type == "stream" and last.get("name") == output.name:
            last.text += output.text
        else:
            joined.append(output)
    return joined
