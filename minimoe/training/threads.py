"""Parallel work in threads: NumPy releases the interpreter lock while it computes.

Each matrix product uses one thread, and whole pieces of work, such as the groups of a batch, run in parallel instead.
So results depend on how the work is divided, but never on the number of threads.  (That holds for every BLAS that
threadpoolctl can limit: OpenBLAS, MKL, BLIS; not Apple's Accelerate.)
"""

import contextlib
import contextvars
import ctypes
import threading
from concurrent.futures import ThreadPoolExecutor

M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8
"""Constants of glibc's <malloc.h>."""

KEPT = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: 1 << 30, M_ARENA_MAX: 1}
"""No array gets its own pages from the kernel; a GiB of freed memory is kept; one pool of it serves all threads."""


class _OneBlasThread:
    """A block in which each matrix product uses one thread.  The limit applies to the whole process: if blocks overlap,
    the first sets it and the last removes it.
    """

    def __init__(self):
        self.lock, self.inside, self.limits = threading.Lock(), 0, None

    def __enter__(self):
        with self.lock:
            if self.inside == 0:
                import threadpoolctl  # imported here, since `import minimoe` needs NumPy alone
                self.limits = threadpoolctl.threadpool_limits(1, user_api="blas")
            self.inside += 1

    def __exit__(self, *_):
        with self.lock:
            self.inside -= 1
            if self.inside == 0:
                self.limits.restore_original_limits()


ONE_BLAS_THREAD = _OneBlasThread()


@contextlib.contextmanager
def workers(threads):
    """A block with a function like the builtin `map` that runs up to `threads` calls at a time.

    Results come in the order of the arguments.  An error in a call is raised when its result is due, and calls that
    have not started by the end of the block never do.  Freed memory is kept from then on, see `keep_freed_memory`.
    Raises ValueError unless threads is a whole number of 1 or more.
    """
    if not isinstance(threads, int) or threads < 1:
        raise ValueError(f"threads = {threads!r:.100}: must be a whole number, 1 or more")
    keep_freed_memory()
    with ONE_BLAS_THREAD:
        if threads == 1:
            yield map
            return
        pool = ThreadPoolExecutor(threads)

        def each(function, *arguments):
            context = contextvars.copy_context()  # includes NumPy's error state, which a thread does not inherit
            return pool.map(lambda *one: context.copy().run(function, *one), *arguments)

        try:
            yield each
        finally:
            pool.shutdown(cancel_futures=True)


def keep_freed_memory():
    """Ask the C library to keep the memory of freed arrays for the next ones, for the rest of the process.

    Otherwise glibc returns large arrays to the kernel, which clears every page of the next array again: that takes a
    tenth of the time of a small training step, and a third of a large one.  Returns whether it succeeded; C libraries
    other than glibc have no such setting.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return all([mallopt(option, value) == 1 for option, value in KEPT.items()])  # a list, so that every option is set
