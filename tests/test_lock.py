"""The run's lock reaches every process of a worker, and nothing else of the launcher does."""

import os

import psutil
import pytest

import tiny
from finetune_cli.store import is_locked, locked
from finetune_trainer.launch import Worker

FAKE = "import sys; sys.stdin.read(1)"
"""A rank that lives until its standard input is closed."""


@pytest.fixture
def standard_input():
    """A pipe as standard input; yields what keeps it open."""
    kept = os.dup(0)
    reader, writer = os.pipe()
    os.dup2(reader, 0)
    os.close(reader)
    yield writer
    os.dup2(kept, 0)
    os.close(kept)


def test_a_rank_holds_the_lock_for_as_long_as_it_lives(tmp_path, monkeypatch, standard_input):
    package = tmp_path / "fake" / "finetune_trainer"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(FAKE)
    lock, job = tmp_path / ".lock", tiny.job(tmp_path, "text-classification")
    worker = Worker(job, {**os.environ, "PYTHONPATH": str(package.parent)}, tmp_path)
    with locked(lock, lambda _: None, lambda: None) as descriptor, (tmp_path / "own").open("w") as own:
        os.set_inheritable(descriptor, True)  # as it comes from the command (Popen's pass_fds)
        worker.start()
        (rank,) = worker.ranks
        opened = {file.path for file in psutil.Process(rank.process.pid).open_files()}
        assert opened & {str(lock), own.name} == {str(lock)}
    assert is_locked(lock), "by the rank alone"
    os.close(standard_input)
    assert rank.process.wait(60) == 0
    assert not is_locked(lock)
