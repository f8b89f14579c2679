"""What a run keeps on disk beside the trainer's own files: the job with its status, events, logs, the lock.

Invariant: status.yaml is always whole (temporary file, fsync, rename), and whoever holds the lock is the only one that
writes. Workers inherit the lock, so a run whose command was killed stays locked until the last of them is gone.
"""

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from finetune_api.errors import Fault, SpecError
from finetune_api.job import FineTuneJob
from finetune_api.load import read_job
from finetune_api.wiring import RunFolder
from finetune_operator.actions import Event

_LOCK_POLL_SECONDS = 0.1


class Store:
    """The files of one run."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = RunFolder(root)
        self.job = root / "job.json"
        """The resolved job, for the trainer."""
        self.lock = root / ".lock"

    def attempt(self, number: int) -> Path:
        """Folder of one attempt: a folder for each of its workers, made before the worker is started."""
        return self.root / "attempts" / str(number)

    def scratch(self, attempt: int, worker: int) -> Path:
        """Folder of one worker of one attempt."""
        return self.attempt(attempt) / f"worker-{worker}"

    def termination_log(self, attempt: int, worker: int) -> Path:
        """Where a worker leaves its termination message."""
        return self.scratch(attempt, worker) / "termination.json"

    def log(self, attempt: int, worker: int) -> Path:
        """What a worker printed."""
        return self.folder.logs / f"attempt-{attempt}-worker-{worker}.log"

    def read(self) -> FineTuneJob | None:
        """The job with its status as it was last written; None for a new run.

        Raises:
            SpecError: status.yaml was damaged (never by us).
        """
        if not self.folder.status.exists():
            return None
        try:
            return read_job(self.folder.status)
        except SpecError as error:
            raise SpecError(tuple(Fault(str(self.folder.status), str(fault)) for fault in error.faults)) from error

    def write(self, job: FineTuneJob) -> None:
        """Put the job with its status into status.yaml."""
        write_atomically(self.folder.status, to_yaml(job.to_wire()))

    def write_spec(self, job: FineTuneJob) -> None:
        """Put the job without its status into job.json."""
        bare = job.model_copy(update={"status": None})
        write_atomically(self.job, json.dumps(bare.to_wire(), indent=1) + "\n")

    def append(self, events: tuple[Event, ...], now: datetime) -> None:
        """Add events to events.jsonl, a line each."""
        if not events:
            return
        with self.folder.events.open("a", encoding="utf-8") as file:
            file.writelines(_event_line(event, now) for event in events)


def _event_line(event: Event, now: datetime) -> str:
    line = {"time": now.isoformat(), "type": event.type, "reason": event.reason.value, "message": event.message}
    return json.dumps(line, ensure_ascii=False) + "\n"


def to_yaml(wire: dict[str, Any]) -> str:
    """JSON types as YAML, in the order that they have."""
    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    text: str = yaml.dump(wire, Dumper=dumper, sort_keys=False, allow_unicode=True, width=120)
    return text


def write_atomically(path: Path, text: str) -> None:
    """Replace a file as a whole: a reader, or a crash at any moment, sees the old text or the new one."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    parent = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(parent)
    finally:
        os.close(parent)


@contextmanager
def locked(path: Path, on_wait: Callable[[int | None], None], check: Callable[[], None]) -> Iterator[int]:
    """Hold the run's lock; yields its file descriptor, for workers to inherit.

    Args:
        path: The lock file.
        on_wait: Called once if the lock is taken, with the process that took it, or None if only its workers are left.
        check: Called again and again while waiting; raises to give up.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        if not _try_lock(descriptor):
            on_wait(_living_holder(descriptor))
            while not _try_lock(descriptor):
                check()
                time.sleep(_LOCK_POLL_SECONDS)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield descriptor
    finally:
        os.close(descriptor)


def is_locked(path: Path) -> bool:
    """Whether somebody works on the run now."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return not _try_lock(descriptor)
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _living_holder(descriptor: int) -> int | None:
    try:
        holder = int(os.pread(descriptor, 20, 0))
        os.kill(holder, 0)
    except PermissionError:
        return holder
    except (ValueError, ProcessLookupError):
        return None
    return holder
