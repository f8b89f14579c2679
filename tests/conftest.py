"""What tests of the trainer share."""

import sys

import pytest


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Tiny models are slower on several threads, the more so where tests run beside each other."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


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
