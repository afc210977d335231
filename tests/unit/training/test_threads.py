"""Work on threads: in order, with its errors, really at the same time; BLAS has one thread meanwhile."""

import threading
import time
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import threadpoolctl

from minimoe.training import threads

each_number = pytest.mark.parametrize("n", [1, 2, 3])


def of_blas():
    """The number of threads of each BLAS library that is loaded."""
    return [pool["num_threads"] for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"]


@each_number
def test_it_is_a_map_whose_errors_come_when_their_results_are_due(n):
    def slow(base, power):
        time.sleep(0.01 * power)  # later ones are done first
        return base ** power

    with threads.workers(n) as each:
        assert (each is map) == (n == 1)
        assert list(each(slow, [2, 3, 4, 5], [5, 2, 1, 0])) == [32, 9, 4, 1]
        assert list(each(slow, [], [])) == []
        results = each(lambda i: 12 // i, [3, 2, 0, 1])
        assert [next(results), next(results)] == [4, 6]
        with pytest.raises(ZeroDivisionError):
            next(results)
        assert list(each(abs, [-1])) == [1]  # work goes on


def test_as_many_calls_run_at_a_time_as_there_are_threads_and_the_threads_end_with_the_block():
    running, most, lock, barrier = [0], [0], threading.Lock(), threading.Barrier(2, timeout=30)

    def call(_):
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        barrier.wait()  # none passes before two have come
        time.sleep(0.01)
        with lock:
            running[0] -= 1

    before = threading.active_count()
    with threads.workers(2) as each:
        list(each(call, range(8)))
    assert most == [2] and threading.active_count() == before


def test_calls_that_have_not_begun_when_the_block_ends_never_do():
    begun, go_on = [], threading.Event()

    def call(i):
        begun.append(i)
        go_on.wait(10)

    with pytest.raises(KeyboardInterrupt), threads.workers(2) as each:
        each(call, range(60))
        threading.Timer(0.1, go_on.set).start()
        raise KeyboardInterrupt
    assert len(begun) <= 2


@pytest.mark.parametrize("over", ["ignore", "raise"])
def test_the_error_state_of_numpy_reaches_the_calls_and_does_not_come_back(over):
    """That of the caller, whatever the default is, at the time of the call of `each`."""
    def change(_):
        before = np.geterr()
        np.seterr(over="warn")
        return before["over"], before["divide"]

    with threads.workers(2) as each, np.errstate(over=over, divide="call"):
        for _ in range(2):
            assert list(each(change, range(4))) == [(over, "call")] * 4
            assert np.geterr()["over"] == over


@each_number
def test_blas_has_one_thread_inside_and_as_many_as_before_outside(n):
    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        assert set(of_blas()) == {2}
        with pytest.raises(RuntimeError), threads.workers(n) as each:
            assert all(set(pools) == {1} for pools in [of_blas(), *each(lambda _: of_blas(), range(3))])
            raise RuntimeError
        assert set(of_blas()) == {2}


def test_of_two_blocks_side_by_side_the_first_to_end_leaves_the_limit_to_the_other():
    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        first, second = threads.workers(1), threads.workers(1)
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert set(of_blas()) == {1}
        second.__exit__(None, None, None)
        assert set(of_blas()) == {2}


@pytest.mark.parametrize("refused", [None, -4])
def test_what_the_c_library_is_asked_for(monkeypatch, refused):
    """By glibc's <malloc.h>: M_MMAP_MAX is -4, M_TRIM_THRESHOLD -1, M_ARENA_MAX -8.  A refusal (0) stops nothing."""
    asked = {}
    library = SimpleNamespace(mallopt=lambda option, value: asked.update({option: value}) or int(option != refused))
    monkeypatch.setattr(threads.ctypes, "CDLL", {None: library}.__getitem__)
    assert threads.keep_freed_memory() is (refused is None)
    assert asked == {-4: 0, -1: 2**30, -8: 1}


@pytest.mark.parametrize("error", [AttributeError, OSError, TypeError], ids=["no mallopt", "no library", "Windows"])
def test_a_c_library_without_mallopt_is_no_error_but_a_bad_number_is(monkeypatch, error):
    monkeypatch.setattr(threads.ctypes, "CDLL", mock.Mock(side_effect=error))
    assert threads.keep_freed_memory() is False
    for n in (0, -1, 1.5, "2"):
        with pytest.raises(ValueError, match=f"threads = {n!r}: must be a whole number"), threads.workers(n):
            pass
