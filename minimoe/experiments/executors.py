"""Where the runs of an experiment train: in this process, or in several processes of this machine at the same time."""

import contextlib
import multiprocessing
import signal
from concurrent import futures


class Here(futures.Executor):
    """The Executor that runs each call immediately, in this process, so that Ctrl-C reaches the run."""

    def submit(self, function, /, *arguments, **options):
        """A finished Future.  An interruption is raised, not stored in it."""
        future = futures.Future()
        try:
            future.set_result(function(*arguments, **options))
        except Exception as error:
            future.set_exception(error)
        return future


@contextlib.contextmanager
def side_by_side(processes):
    """A block with an Executor of this many processes on this machine, which end with the block; None if it is one.

    An interruption ends them immediately; the same command repeats what a run had not saved.
    Raises ValueError for fewer than 1.
    """
    if processes < 1:
        raise ValueError(f"processes = {processes}: must be 1 or more")
    if processes == 1:
        yield None
        return
    with futures.ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"),
                                     signal.signal, (signal.SIGINT, signal.SIG_IGN)) as executor:
        try:
            yield executor
        except BaseException:
            for worker in multiprocessing.active_children():
                worker.terminate()
            raise
