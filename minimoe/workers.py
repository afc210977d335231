"""Work side by side: while NumPy computes it lets other threads run.

Matrix products are held to one thread each, and whole pieces of work, such as the groups of a batch, run at the same
time instead.  So numbers depend on how the work is cut into pieces, and never on how many threads there are.
"""

import contextlib
import contextvars
import ctypes
from concurrent.futures import ThreadPoolExecutor

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
"""Numbers of glibc's <malloc.h>."""

KEPT = 1 << 30
"""Bytes of freed memory that stay with the process, and the size from which an array gets pages of its own."""


@contextlib.contextmanager
def workers(threads):
    """Within it there is a function like the builtin `map` that runs up to `threads` calls at a time.

    Results come in the order of the arguments; an error in a call is raised when its result is due.
    """
    import threadpoolctl  # here, since `import minimoe` needs NumPy alone
    keep_freed_memory()
    with threadpoolctl.threadpool_limits(1, user_api="blas"):
        if threads == 1:
            yield map
            return
        with ThreadPoolExecutor(threads) as pool:
            def each(function, *arguments):
                context = contextvars.copy_context()  # with NumPy's error state, which a thread does not inherit
                return pool.map(lambda *one: context.copy().run(function, *one), *arguments)

            yield each


def keep_freed_memory():
    """Ask the C library to keep the memory of freed arrays for the next ones, in one pool for all threads.

    Else glibc gives big arrays back to the kernel, which clears every page of the next one anew: a tenth of the time
    of a small training step, a third of a large one's.  Returns whether it was done; C libraries other than glibc have no such setting.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return all(mallopt(option, value) == 1 for option, value in
               ((M_MMAP_THRESHOLD, KEPT), (M_TRIM_THRESHOLD, KEPT), (M_ARENA_MAX, 1)))
