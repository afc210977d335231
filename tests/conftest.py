"""Tests do not depend on the shell that they are started from."""

import signal

import pytest
import threadpoolctl


@pytest.fixture(scope="session", autouse=True)
def plain_shell():
    """Ctrl-C interrupts, also in a background job, which ignores it; no variable sets a width, colours or a style.

    A matrix product has one thread: the processes that share the tests have all cores already.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.MonkeyPatch.context() as patch, threadpoolctl.threadpool_limits(1, user_api="blas"):
        for name in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "CLICOLOR_FORCE", "MATPLOTLIBRC",
                     "PYTHONIOENCODING"):
            patch.delenv(name, raising=False)
        yield
    signal.signal(signal.SIGINT, before)


def pytest_collection_modifyitems(items):
    """A test's name says the same in every process, which the processes that share them rely on."""
    if named := [item.nodeid for item in items if " at 0x" in item.nodeid]:
        raise pytest.UsageError(f"give ids to the parameters of {named[0]}: an address differs between processes")
