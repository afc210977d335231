"""Work side by side: while NumPy computes it lets other threads run.

Matrix products are held to one thread each, and whole pieces of work, such as the groups of a batch, run at the same
time instead.  So numbers depend on how the work is cut into pieces, and never on how many threads there are.  (That
holds for every BLAS that threadpoolctl knows how to limit: OpenBLAS, MKL, BLIS; not Apple's Accelerate.)
"""

import contextlib
import contextvars
import ctypes
import threading
from concurrent.futures import ThreadPoolExecutor

M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8
"""Numbers of glibc's <malloc.h>."""

KEPT = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: 1 << 30, M_ARENA_MAX: 1}
"""No array gets pages of its own from the kernel; a GiB of freed memory stays; one pool of it serves all threads."""


class _OneBlasThread:
    """Within it a matrix product has one thread.  The limit is the process's own: of blocks that run side by side, the
    first sets it and the last takes it away.
    """

    def __init__(self):
        self.lock, self.inside, self.limits = threading.Lock(), 0, None

    def __enter__(self):
        with self.lock:
            if self.inside == 0:
                import threadpoolctl  # here, since `import minimoe` needs NumPy alone
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
    """Within it there is a function like the builtin `map` that runs up to `threads` calls at a time.

    Results come in the order of the arguments; an error in a call is raised when its result is due, and the calls that
    have not begun by the end of the block never do.  Freed memory is kept from then on, see `keep_freed_memory`.
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
            context = contextvars.copy_context()  # with NumPy's error state, which a thread does not inherit
            return pool.map(lambda *one: context.copy().run(function, *one), *arguments)

        try:
            yield each
        finally:
            pool.shutdown(cancel_futures=True)


def keep_freed_memory():
    """Ask the C library to keep the memory of freed arrays for the next ones, as long as the process lives.

    Else glibc gives big arrays back to the kernel, which clears every page of the next one anew: a tenth of the time
    of a small training step, a third of a large one's.  Returns whether it was done; C libraries other than glibc have
    no such setting.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return all([mallopt(option, value) == 1 for option, value in KEPT.items()])  # a list: each is asked for
