"""One notebook, run again by a kernel of its own.

Jupyter writes into a notebook when and by whom it was run, and cuts printed text into pieces as it arrives.  None of
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
"""Seconds after which a cell that has not ended is given up."""

ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
"""The matrices of lessons are too small to be worth sharing, and two threads that wait for one another are slower."""

DESCRIBE = """get_ipython().display_formatter.mimebundle_formatter.for_type_by_name(
    "matplotlib.figure", "Figure", lambda figure: ({}, {"image/png": {"alt": __import__(
        "minimoe.plots.figures", fromlist=["describe"]).describe(figure)}}))"""
"""What the kernel runs first: each picture gets a text in its place, for readers who cannot see it."""

METADATA = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"}}


def run(text, folder):
    """A notebook's text with the outputs of a new run in `folder`, and the seconds of each of its cells of code.

    Pictures have matplotlib's own style, whatever a user's matplotlibrc says.
    Raises nbclient's CellExecutionError at the first cell that fails, KeyboardInterrupt after Ctrl-C.
    """
    notebook, seconds = plain(nbformat.reads(text, as_version=4)), []
    started = {}
    client = Client(
        notebook, timeout=LIMIT, kernel_name="python3", record_timing=False,
        extra_arguments=["--IPKernelApp.log_level=40",  # of a kernel that only we talk to
                         f"--IPKernelApp.exec_lines={DESCRIBE}"],
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
