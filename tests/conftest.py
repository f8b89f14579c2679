"""What tests of the trainer share."""

import os
import signal
import sys

import hypothesis
import pytest

pytest_plugins = ("cluster.fixtures", "browser")

hypothesis.settings.register_profile("busy", hypothesis.settings(), deadline=None)
hypothesis.settings.load_profile("busy")
"""An example may take longer than 200 ms where the machine is busy."""

os.environ["OMP_NUM_THREADS"] = "1"
"""Tiny models are slower on several threads, and where tests run beside each other, three times as slow."""

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # A shell that runs the tests in the background has them, and all that they start, ignore Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session):
    """A test that is skipped in CI is a failure there: what CI does not see, nobody sees."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = reporter.stats.get("skipped", []) if reporter else []
    if os.environ.get("CI") and skipped:
        for report in skipped:
            print(f"\nskipped, which CI=true does not allow: {report.nodeid}: {report.longrepr}", file=sys.stderr)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(scope="session")
def group():
    """Processes that run functions as the ranks of one group; started at first use, ended with the session."""
    from group import ProcessGroup

    processes = ProcessGroup()
    yield processes
    processes.close()


@pytest.fixture(scope="session")
def _workers():
    from workers import Workers

    started = Workers()
    yield started
    started.close()


@pytest.fixture
def workers(_workers):
    """Starts real workers (see ``workers.Workers``); none outlives the test."""
    yield _workers
    _workers.end_all()
