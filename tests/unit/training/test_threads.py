"""Work on threads: in order, with its errors, really at the same time; BLAS has one thread meanwhile."""

import re
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import threadpoolctl

from minimoe.training import threads
from minimoe.training.threads import keep_freed_memory, workers

each_number = pytest.mark.parametrize("threads", [1, 2, 3])


def of_blas():
    """The number of threads of each BLAS library that is loaded."""
    return [pool["num_threads"] for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"]


@each_number
def test_results_come_in_the_order_of_the_arguments(threads):
    """Though later ones are done first."""
    def slow(i):
        time.sleep(0.02 * (4 - i))
        return i * i

    with workers(threads) as each:
        assert list(each(slow, range(5))) == [0, 1, 4, 9, 16]


@each_number
def test_a_function_of_several_arguments_gets_one_of_each(threads):
    with workers(threads) as each:
        assert list(each(pow, [2, 3, 4], [5, 2, 1])) == [32, 9, 4]
        assert list(each(pow, [], [])) == []


@each_number
def test_an_error_is_raised_when_its_result_is_due(threads):
    with workers(threads) as each:
        results = each(lambda i: 12 // i, [3, 2, 0, 1])
        assert [next(results), next(results)] == [4, 6]
        with pytest.raises(ZeroDivisionError):
            next(results)
        assert list(each(abs, [-1])) == [1]  # work goes on


def test_one_thread_is_the_builtin_map():
    with workers(1) as each:
        assert each is map


def test_calls_run_at_the_same_time():
    """A barrier lets nobody pass before two have come."""
    barrier = threading.Barrier(2, timeout=30)
    with workers(2) as each:
        assert sorted(each(lambda _: barrier.wait(), range(2))) == [0, 1]


def test_no_more_calls_run_at_a_time_than_there_are_threads():
    running, most, lock = [0], [0], threading.Lock()

    def count(_):
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        time.sleep(0.01)
        with lock:
            running[0] -= 1

    with workers(2) as each:
        list(each(count, range(8)))
    assert most == [2]


def test_threads_end_with_the_block():
    before = threading.active_count()
    with workers(3) as each:
        list(each(abs, range(9)))
    assert threading.active_count() == before


@each_number
@pytest.mark.parametrize("over", ["ignore", "raise"])
def test_the_error_state_of_numpy_reaches_the_calls(threads, over):
    """That of the caller, whatever the default is, at the time of the call of `each`."""
    with workers(threads) as each, np.errstate(over=over, divide="call"):
        states = list(each(lambda _: np.geterr(), range(3)))
    assert [(state["over"], state["divide"]) for state in states] == [(over, "call")] * 3


@pytest.mark.parametrize("over", ["ignore", "raise"])
def test_an_error_state_that_is_set_in_a_call_stays_in_it(over):
    def change(_):
        np.seterr(over="warn")
        return np.geterr()["over"]

    with workers(2) as each, np.errstate(over=over):
        assert list(each(change, range(4))) == ["warn"] * 4
        assert np.geterr()["over"] == over
        assert [state["over"] for state in each(lambda _: np.geterr(), range(2))] == [over] * 2


@each_number
def test_blas_has_one_thread_inside_and_as_many_as_before_outside(threads):
    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        before = of_blas()
        assert before and set(before) == {2}
        with workers(threads) as each:
            assert set(of_blas()) == {1}
            assert all(set(pools) == {1} for pools in each(lambda _: of_blas(), range(3)))
        assert of_blas() == before
        with pytest.raises(RuntimeError), workers(threads):
            raise RuntimeError
        assert of_blas() == before


def test_freed_memory_is_kept_or_not_and_either_is_said():
    assert type(keep_freed_memory()) is bool


class Library:
    """A C library whose mallopt takes note, and says that it has done (1) or not done (0) what it was asked."""

    def __init__(self, done):
        self.asked, self.done = [], done

    def mallopt(self, option, value):
        self.asked.append((option, value))
        return self.done


@pytest.mark.parametrize("done", [1, 0])
def test_what_the_c_library_is_asked_for(monkeypatch, done):
    """By glibc's <malloc.h>: M_MMAP_MAX is -4, M_TRIM_THRESHOLD -1, M_ARENA_MAX -8.  A refusal stops nothing."""
    library = Library(done)
    monkeypatch.setattr(threads, "ctypes", SimpleNamespace(CDLL=lambda name: library))
    assert keep_freed_memory() is (done == 1)
    assert dict(library.asked) == {-4: 0, -1: 2**30, -8: 1}


@pytest.mark.parametrize("threads", [0, -1, 1.5, None, "2"])
def test_a_bad_number_of_threads_is_named(threads):
    with pytest.raises(ValueError, match=re.escape(f"threads = {threads!r}: must be a whole number")), workers(threads):
        pass


def test_calls_that_have_not_begun_when_the_block_ends_never_do():
    begun, go_on = [], threading.Event()

    def call(i):
        begun.append(i)
        go_on.wait(10)

    with pytest.raises(KeyboardInterrupt), workers(2) as each:
        each(call, range(60))
        threading.Timer(0.2, go_on.set).start()
        raise KeyboardInterrupt
    assert len(begun) <= 2


class WithoutMallopt:
    """macOS has a C library and no mallopt."""


def of_windows(name):
    raise TypeError("LoadLibrary() argument 1 must be str, not None")


def not_found(name):
    raise OSError("no such library")


@pytest.mark.parametrize("load", [lambda name: WithoutMallopt(), of_windows, not_found],
                         ids=["no mallopt", "Windows", "no library"])
def test_a_c_library_without_mallopt_is_no_error(monkeypatch, load):
    monkeypatch.setattr(threads, "ctypes", SimpleNamespace(CDLL=load))
    assert threads.keep_freed_memory() is False
    with workers(2) as each:
        assert list(each(abs, [-3, 4])) == [3, 4]
