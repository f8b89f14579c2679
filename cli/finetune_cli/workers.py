"""Workers of an attempt as processes of this machine.

Invariant: each worker leads a session and process group of its own, so that a terminal's Ctrl-C reaches only the
command, and that nothing of a worker outlives it: whatever is left in its group when it has ended is killed.
"""

import contextlib
import os
import platform
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from finetune_api.cgroups import cores_for_each
from finetune_api.job import FineTuneJob
from finetune_api.outcomes import ExitCode
from finetune_api.status import TERMINATION_MESSAGE_BYTES, TerminationMessage
from finetune_api.wiring import Variable
from finetune_cli.store import Store
from finetune_operator.observed import ObservedAttempt, ObservedWorker, PlatformReason, WorkerPhase

_END_POLL_SECONDS = 0.05
_THREADS = "OMP_NUM_THREADS"
LINGER_SECONDS = 2.0
"""How long a killed group may take to vanish. Longer, and only zombies are left, which hold nothing."""


@dataclass
class WorkerProcess:
    """One launcher and all that it started."""

    index: int
    process: subprocess.Popen[bytes]
    termination_log: Path
    started: datetime
    oom_kills: int
    """What the kernel had counted when it started."""
    _left: datetime | None = None
    _end: ObservedWorker | None = field(default=None, repr=False)

    def observe(self, now: datetime) -> ObservedWorker:
        """The worker as it is now. It is alive for as long as anything of its group is."""
        if self._end is None and self._has_ended(now):
            self._end = self._observe_end(now)
        return self._end or ObservedWorker(self.index, WorkerPhase.RUNNING, self.started, node=platform.node())

    def ask_to_leave(self) -> None:
        """SIGTERM to the launcher, which has its processes save and leave."""
        if self.process.poll() is None:
            self.process.terminate()

    def kill(self) -> None:
        """SIGKILL to everything of it."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def _has_ended(self, now: datetime) -> bool:
        if self.process.poll() is None:
            return False
        self._left = self._left or now
        self.kill()
        return not self._group_exists() or (now - self._left).total_seconds() >= LINGER_SECONDS

    def _group_exists(self) -> bool:
        try:
            os.killpg(self.process.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return False  # macOS says so of a group of zombies
        return True

    def _observe_end(self, now: datetime) -> ObservedWorker:
        returned = self.process.returncode
        code = 128 - returned if returned < 0 else returned
        starved = code == ExitCode.KILLED and count_oom_kills() > self.oom_kills
        return ObservedWorker(
            self.index,
            WorkerPhase.SUCCEEDED if code == ExitCode.DONE else WorkerPhase.FAILED,
            self.started,
            now,
            code,
            read_message(self.termination_log),
            platform.node(),
            PlatformReason.OOM_KILLED if starved else None,
        )


@dataclass
class RunningAttempt:
    """The workers of one attempt."""

    number: int
    workers: tuple[WorkerProcess, ...]
    asked_to_leave: datetime | None = None

    def observe(self, now: datetime) -> ObservedAttempt:
        """The attempt as it is now."""
        workers = tuple(worker.observe(now) for worker in self.workers)
        return ObservedAttempt(self.number, workers, stopping=self.asked_to_leave is not None)

    def ask_to_leave(self, now: datetime) -> None:
        """SIGTERM to every worker."""
        self.asked_to_leave = self.asked_to_leave or now
        for worker in self.workers:
            worker.ask_to_leave()

    def kill(self) -> None:
        """SIGKILL to every worker that has not ended."""
        for worker in self.workers:
            if worker.process.poll() is None:
                worker.kill()

    def end(self, now: datetime, grace_seconds: float) -> None:
        """Ask every worker to leave, wait for it, and kill what has not left in time."""
        self.ask_to_leave(now)
        deadline = time.monotonic() + grace_seconds
        while time.monotonic() < deadline and any(worker.process.poll() is None for worker in self.workers):
            time.sleep(_END_POLL_SECONDS)
        self.kill()
        for worker in self.workers:
            worker.process.wait()


def start_attempt(
    store: Store,
    job: FineTuneJob,
    number: int,
    *,
    command: tuple[str, ...],
    environment: Mapping[str, str],
    lock: int,
    now: datetime,
) -> RunningAttempt:
    """Start every worker of an attempt; each inherits the run's lock."""
    port = str(_free_port())
    oom_kills = count_oom_kills()
    workers = []
    shutil.rmtree(store.attempt(number), ignore_errors=True)
    for index in range(job.spec.distributed.workers):
        variables = {
            _THREADS: str(threads_per_process(job)),
            **environment,
            **_variables(store, number, index),
            Variable.MASTER_PORT.value: port,
        }
        log = store.log(number, index)
        log.parent.mkdir(parents=True, exist_ok=True)
        store.scratch(number, index).mkdir(parents=True)
        with log.open("ab") as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=variables,
                pass_fds=(lock,),
                start_new_session=True,
            )
        workers.append(WorkerProcess(index, process, store.termination_log(number, index), now, oom_kills))
    return RunningAttempt(number, tuple(workers))


def threads_per_process(job: FineTuneJob) -> int:
    """Cores that each process of the run has for itself: all of its workers share this machine."""
    return cores_for_each(job.spec.distributed.world_size)


def _variables(store: Store, number: int, index: int) -> dict[str, str]:
    return {
        Variable.JOB.value: str(store.job),
        Variable.RUN.value: str(store.root),
        Variable.ATTEMPT.value: str(number),
        Variable.WORKER.value: str(index),
        Variable.MASTER_ADDRESS.value: "127.0.0.1",
        Variable.SCRATCH.value: str(store.scratch(number, index)),
        Variable.TERMINATION_LOG.value: str(store.termination_log(number, index)),
        Variable.PROGRESS_ADDRESS.value: "127.0.0.1:0",
    }


def observe_orphaned(store: Store, number: int) -> ObservedAttempt:
    """An attempt whose command was killed, from what its workers left behind; all of them are gone.

    A worker that left no message counts as taken away, not as failed: that costs no budget.
    """
    # Not as many as the spec has: that may have been changed since.
    workers = range(max(1, len(list(store.attempt(number).glob("worker-*")))))
    return ObservedAttempt(number, tuple(_observe_orphan(store, number, index) for index in workers))


def _observe_orphan(store: Store, number: int, index: int) -> ObservedWorker:
    message = read_message(store.termination_log(number, index))
    done = message is not None and message.exit_code == ExitCode.DONE
    return ObservedWorker(
        index,
        WorkerPhase.SUCCEEDED if done else WorkerPhase.FAILED,
        ended=_changed_at(store.termination_log(number, index) if message else store.folder.status),
        exit_code=message.exit_code if message else None,
        message=message,
        node=platform.node(),
        platform_reason=None if message else PlatformReason.SUPERVISOR_LOST,
    )


def _changed_at(path: Path) -> datetime:
    return datetime.fromtimestamp(path.stat().st_mtime, UTC)


def read_message(path: Path) -> TerminationMessage | None:
    """The termination message in a file; None if there is none, or none that can be read."""
    try:
        with path.open("rb") as file:
            return TerminationMessage.model_validate_json(file.read(TERMINATION_MESSAGE_BYTES))
    except (OSError, ValidationError):
        return None


def count_oom_kills(path: Path = Path("/proc/vmstat")) -> int:
    """Processes that the kernel has killed for lack of memory since it started; 0 where nobody counts (not Linux)."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


def _free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
