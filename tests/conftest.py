"""Tests do not depend on the shell in which they are started."""

import signal

import pytest
import threadpoolctl


@pytest.fixture(scope="session", autouse=True)
def plain_shell():
    """Ctrl-C works even in a background job, which ignores it by default; no variable sets a width, colors or a style.

    A matrix product has one thread, since the test processes already use all cores.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.MonkeyPatch.context() as patch, threadpoolctl.threadpool_limits(1, user_api="blas"):
        for name in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "CLICOLOR_FORCE", "MATPLOTLIBRC",
                     "PYTHONIOENCODING"):
            patch.delenv(name, raising=False)
        yield
    signal.signal(signal.SIGINT, before)


def pytest_collection_modifyitems(items):
    """A test has the same name in every process, which parallel test processes rely on."""
    if named := [item.nodeid for item in items if " at 0x" in item.nodeid]:
        raise pytest.UsageError(f"give ids to the parameters of {named[0]}: an address differs between processes")
