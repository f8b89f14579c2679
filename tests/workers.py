"""Workers of a run as real processes: started, watched, hurt and asked how they ended."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from cluster.ports import free_port
from finetune_api import FineTuneJob
from finetune_api.status import TerminationMessage
from finetune_api.wiring import PROGRESS_ADDRESS_FILE, RunFolder

DEADLINE_SECONDS = 120
"""For anything that a busy machine can do in a tenth of it."""


def until(condition: Callable[[], Any], what: str, *, seconds: float = DEADLINE_SECONDS, pause: float = 0.005) -> Any:
    """What ``condition`` returns once that is true; fails if it takes longer than ``seconds``."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(pause)
    raise AssertionError(f"not within {seconds} s: {what}")


@dataclass
class Worker:
    """One launcher and its ranks."""

    pid: int
    """The launcher; its process group is that of the whole worker."""
    run: RunFolder
    scratch: Path
    log: Path
    ask: Callable[[], int | None]
    """The launcher's exit code, negative for a signal; None while it runs."""
    _returned: int | None = None
    _family: list[psutil.Process] = field(default_factory=list)

    def poll(self) -> int | None:
        """The exit code as a shell has it; None while it runs."""
        if self._returned is None and (code := self.ask()) is not None:
            self._returned = code if code >= 0 else 128 - code
        return self._returned

    def wait(self, seconds: float = DEADLINE_SECONDS) -> int:
        """The exit code."""
        with self.told():
            until(lambda: self.poll() is not None, "the worker's end", seconds=seconds)
        assert self._returned is not None
        return self._returned

    def ranks(self, count: int) -> list[psutil.Process]:
        """Its processes in the order of their ranks, once all ``count`` are there."""

        def found() -> list[psutil.Process] | None:
            assert self.poll() is None, self.log.read_text()
            children = psutil.Process(self.pid).children()
            return children if len(children) == count else None

        children: list[psutil.Process] = until(found, f"{count} ranks")
        self._family = sorted(children, key=lambda child: (child.create_time(), child.pid))
        return self._family

    def survivors(self) -> list[int]:
        """Pids of its process group that are alive (a zombie is not)."""
        return [process.pid for process in psutil.process_iter() if _is_of_group(process, self.pid)]

    def is_gone(self) -> bool:
        """Whether nothing of it is alive."""
        return self.poll() is not None and not self.survivors()

    def kill(self) -> None:
        """SIGKILL to all of it, at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def terminate(self) -> None:
        """SIGTERM to the launcher."""
        os.kill(self.pid, signal.SIGTERM)

    def message(self) -> TerminationMessage:
        """What it left behind."""
        return TerminationMessage.model_validate_json((self.scratch / "termination.json").read_bytes())

    def address(self) -> str:
        """Where rank 0 serves its progress."""
        path = self.scratch / PROGRESS_ADDRESS_FILE
        with self.told():
            return until(lambda: path.exists() and path.read_text(), "the progress server's address")

    def get(self, path: str) -> str:
        """What its progress server answers."""
        with urllib.request.urlopen(f"http://{self.address()}{path}", timeout=10) as answer:
            return answer.read().decode()

    def await_stage(self, stage: str) -> None:
        """Wait until it is at ``stage``."""
        with self.told():
            until(lambda: json.loads(self.get("/progress"))["stage"] == stage, f"stage {stage}")

    def await_step(self, step: int) -> None:
        """Wait until the history tells of ``step``."""
        with self.told():
            until(lambda: last_step(self.run) >= step or self.poll() is not None, f"step {step}")
            assert self.poll() is None, f"ended with {self.poll()} before step {step}"

    @contextlib.contextmanager
    def told(self) -> Any:
        """Within: a failure shows the end of the log."""
        try:
            yield
        except AssertionError as failure:
            log = self.log.read_text() if self.log.exists() else ""
            raise AssertionError(f"{failure}\n{log[-3000:]}") from failure


def _is_of_group(process: psutil.Process, group: int) -> bool:
    try:
        return os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE
    except (ProcessLookupError, psutil.NoSuchProcess):
        return False


class Workers:
    """Starts workers; ``close`` ends what is left of them."""

    def __init__(self) -> None:
        self._server: subprocess.Popen[str] | None = None
        self._started: list[Worker] = []

    def start(
        self,
        job: FineTuneJob | dict[str, Any],
        run: Path,
        *,
        attempt: int = 1,
        worker: int = 0,
        port: int | None = None,
        cold: bool = False,
        scratch: Path | None = None,
        more: Mapping[str, str] | None = None,
        **wishes: Any,
    ) -> Worker:
        """Start one worker of an attempt at ``job`` in folder ``run``.

        Args:
            job: The job, or what a user took for one.
            run: The run's folder. Prepared data lies beside it, to be shared.
            attempt: Number of the attempt.
            worker: Index of the worker.
            port: Where the attempt's workers meet; a free port if there is only one.
            cold: A new interpreter, as in production, instead of a fork of one that has imported everything.
            scratch: Folder of what does not belong to the run; unset, it lies in the run's.
            more: Variables of the worker beside those that any has.
            wishes: See ``warm``.
        """
        scratch = scratch or run / f"scratch-{attempt}-{worker}"
        for folder in (run, scratch):
            folder.mkdir(parents=True, exist_ok=True)
        (scratch / "job.json").write_text(json.dumps(job if isinstance(job, dict) else job.to_wire()))
        log = scratch / "worker.log"
        variables = {
            "PATH": os.environ["PATH"],
            "HOME": str(scratch),
            "FINETUNE_JOB": str(scratch / "job.json"),
            "FINETUNE_RUN": str(run),
            "FINETUNE_SCRATCH": str(scratch),
            "FINETUNE_ATTEMPT": str(attempt),
            "FINETUNE_WORKER": str(worker),
            "FINETUNE_CACHE": str(run.parent / "cache"),
            "MASTER_PORT": str(port or free_port()),
            "OMP_NUM_THREADS": "1",
            **(more or {}),
        }
        start = self._start_cold if cold else self._start_warm
        pid, ask = start(variables, log, **wishes)
        started = Worker(pid, RunFolder(run), scratch, log, ask)
        self._started.append(started)
        return started

    def _start_cold(self, variables: dict[str, str], log: Path) -> tuple[int, Callable[[], int | None]]:
        with log.open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "finetune_trainer.launch"],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=variables,
                start_new_session=True,
            )
        return process.pid, process.poll

    def _start_warm(self, variables: dict[str, str], log: Path, **wishes: Any) -> tuple[int, Callable[[], int | None]]:
        pid = self._ask({"do": "start", "environment": variables, "log": str(log), **wishes})
        return pid, lambda: self._ask({"do": "poll", "pid": pid})

    def _ask(self, request: dict[str, Any]) -> Any:
        if self._server is None:
            self._server = _start_server()
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline())

    def end_all(self) -> None:
        """Kill what was started so far."""
        for worker in self._started:
            worker.kill()
            until(worker.is_gone, "the end of a killed worker")
        self._started.clear()

    def close(self) -> None:
        """End everything."""
        self.end_all()
        if self._server is not None:
            self._server.communicate()


def _start_server() -> "subprocess.Popen[str]":
    # One thread: OpenMP must have none when the server forks, and so little work needs no more.
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, str(Path(__file__).with_name("warm.py"))]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=variables)
    assert server.stdout is not None
    assert server.stdout.readline() == "ready\n"
    return server


def history_of(run: Path) -> list[dict[str, Any]]:
    """The complete lines of a run's history."""
    path = RunFolder(run).history
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]


def last_step(run: RunFolder) -> int:
    """The last step that the history tells of; 0 if none."""
    lines = history_of(run.root)
    return lines[-1]["step"] if lines else 0
