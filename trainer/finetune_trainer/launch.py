"""A worker: starts one process a device, watches over them, ends them together, and says how it went.

``python -m finetune_trainer.launch`` is the command of a pod and of a local worker; its variables are those of
``finetune_api.wiring``. The processes find each other by torch.distributed's own variables (RANK, WORLD_SIZE,
MASTER_ADDR, MASTER_PORT), which Accelerate reads, so that ``torchrun -m finetune_trainer`` works as well.

Invariant: when it returns, no process of its own is alive, and the termination message tells the first failure, not
its consequences. It imports no torch: a worker is up in a tenth of a second.
"""

import contextlib
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from finetune_api.cgroups import cores_for_each
from finetune_api.errors import SpecError
from finetune_api.job import FineTuneJob, JobSpec
from finetune_api.load import read_job
from finetune_api.outcomes import Cause, ExitCode, cause_of
from finetune_api.status import TERMINATION_MESSAGE_BYTES, TerminationMessage
from finetune_api.wiring import STACKS_FILE, RunFolder, Variable
from finetune_trainer.attempts import record_end
from finetune_trainer.history import last_step
from finetune_trainer.scratch import heartbeat_path, rank_message_path

log = logging.getLogger("finetune.worker")

POLL_SECONDS = 0.05
GRACE_SECONDS = 5.0
"""For the others to notice by themselves that a peer is gone, before they are killed."""
DUMP_SECONDS = 0.5
"""For a process to write its stacks."""
CUT_SHORT = TerminationMessage(
    exit_code=ExitCode.KILLED,
    cause=Cause.PREEMPTED,
    message="was asked to leave and had to be killed; what it did after its last checkpoint is lost",
)
"""Said as soon as it is asked to leave, for a killed worker says nothing; what it says as it leaves takes the place."""
START_SECONDS = 120.0
"""Imports alone may take this long on a busy machine; until its first sign of life a process is given it."""

FEW_KERNELS = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "8"}
"""oneDNN keeps the last 1,024 kernels it made, one for every shape (https://uxlfoundation.github.io/oneDNN, Primitive
Cache). Each lies on the heap between the activations of its pass, which glibc then cannot join into free space again:
with texts of 50 lengths an evaluation of MiniLM took 175 MiB, with 8 kernels kept 92. In fp32 only the activation
function is made anew, 0.2 ms a shape; bf16's matrix products would cost a fifth of the time."""


@dataclass
class Rank:
    """One process."""

    number: int
    local: int
    process: "subprocess.Popen[bytes]"

    @property
    def exit_code(self) -> int | None:
        """None while it runs; 128 + signal if a signal ended it, as a shell has it."""
        code = self.process.poll()
        return code if code is None or code >= 0 else 128 - code


@dataclass
class Worker:
    """The processes of one worker, from start to end."""

    job: FineTuneJob
    environment: Mapping[str, str]
    scratch: Path
    oom_kills: int = 0
    """The kernel's count of processes that it killed for memory in this container, at the start."""
    ranks: list[Rank] = field(default_factory=list)
    asked_to_leave: bool = False

    @property
    def index(self) -> int:
        """This worker among all."""
        return int(self.environment.get(Variable.WORKER, "0"))

    def start(self) -> None:
        """Start every process."""
        for local in range(self.job.spec.distributed.processes):
            variables = {**self.environment, **rank_variables(self.job, self.index, local, self.environment)}
            heartbeat_path(self.scratch, local).touch()
            number = int(variables["RANK"])
            rank_message_path(self.scratch, number).unlink(missing_ok=True)
            # In the launcher's own process group: whoever ends that, ends all of the worker.
            # Descriptors that the launcher was given (the run's lock) go on to it: the run stays locked while it lives.
            # Those that the launcher has opened itself do not: Python makes them not inheritable.
            process = subprocess.Popen([sys.executable, "-m", "finetune_trainer"], env=variables, close_fds=False)
            self.ranks.append(Rank(number, local, process))

    def watch(self) -> TerminationMessage:
        """Wait for the end; returns how it went, with every process gone."""
        parent, started = os.getppid(), time.time()
        while True:
            failed = [rank for rank in self.ranks if rank.exit_code not in (None, 0)]
            if failed:
                return self._end_together(failed)
            if all(rank.exit_code == 0 for rank in self.ranks):
                return self._word_of(self.ranks[0])
            if os.getppid() != parent:
                self.ask_to_leave()
            stalled = self._stalled(started)
            if stalled:
                return self._end_stalled(stalled)
            time.sleep(POLL_SECONDS)

    def ask_to_leave(self) -> None:
        """Pass SIGTERM on: save and leave."""
        if not self.asked_to_leave:
            self.asked_to_leave = True
            self._signal(signal.SIGTERM)

    def _end_together(self, failed: list[Rank]) -> TerminationMessage:
        """A process failed: the others cannot go on without it."""
        deadline = time.monotonic() + GRACE_SECONDS
        while time.monotonic() < deadline and any(rank.exit_code is None for rank in self.ranks):
            time.sleep(POLL_SECONDS)
        self.kill()
        others = [rank for rank in self.ranks if rank not in failed]
        words = [self._word_of(rank) for rank in (*failed, *others)]
        return next((word for word in words if word.exit_code not in (0, ExitCode.RETRY)), words[0])

    def _word_of(self, rank: Rank) -> TerminationMessage:
        """What a process said of its end, or what its exit code says if it could not."""
        path = rank_message_path(self.scratch, rank.number)
        code = rank.exit_code
        assert code is not None
        try:
            message = TerminationMessage.model_validate_json(path.read_bytes())
        except (OSError, ValueError):
            return _wordless(rank.number, code, is_oom=count_oom_kills() > self.oom_kills)
        return message if message.exit_code == code else _wordless(rank.number, code, is_oom=False)

    def _stalled(self, started: float) -> list[Rank]:
        timeout = self.job.spec.recovery.stall_timeout_seconds
        now = time.time()
        if now - started < max(timeout, START_SECONDS) and not all(
            self._has_beaten(rank, started) for rank in self.ranks
        ):
            return []
        return [
            rank
            for rank in self.ranks
            if rank.exit_code is None and now - heartbeat_path(self.scratch, rank.local).stat().st_mtime > timeout
        ]

    def _has_beaten(self, rank: Rank, started: float) -> bool:
        return heartbeat_path(self.scratch, rank.local).stat().st_mtime > started

    def _end_stalled(self, stalled: list[Rank]) -> TerminationMessage:
        """Have every process write its stacks, then end them all."""
        for rank in self.ranks:
            self._dump_stacks(rank)
        self.kill()
        numbers = ", ".join(str(rank.number) for rank in stalled)
        return TerminationMessage(
            exit_code=ExitCode.RETRY,
            cause=Cause.STALLED,
            message=f"rank {numbers}: nothing progressed for {self.job.spec.recovery.stall_timeout_seconds} s"
            f" (spec.recovery.stallTimeoutSeconds); the stacks of all processes are in {self.scratch / STACKS_FILE}",
        )

    def _dump_stacks(self, rank: Rank) -> None:
        """Have one process write its stacks: one after the other, since they write to the same file."""
        with (self.scratch / STACKS_FILE).open("a") as stacks:
            stacks.write(f"\n── rank {rank.number} (process {rank.process.pid}) ──\n")
        if rank.exit_code is None:
            rank.process.send_signal(signal.SIGUSR1)
            rank.process.send_signal(signal.SIGCONT)  # a stopped process writes its stacks once it goes on
            time.sleep(DUMP_SECONDS)

    def kill(self) -> None:
        """End whatever is left."""
        self._signal(signal.SIGKILL)
        for rank in self.ranks:
            rank.process.wait()

    def _signal(self, number: int) -> None:
        for rank in self.ranks:
            if rank.exit_code is None:
                rank.process.send_signal(number)


def rank_variables(job: FineTuneJob, worker: int, local: int, environment: Mapping[str, str]) -> dict[str, str]:
    """The variables of one process, as torchrun would set them."""
    spread = job.spec.distributed
    threads = environment.get("OMP_NUM_THREADS", str(cores_for_each(spread.processes)))
    return {
        "RANK": str(worker * spread.processes + local),
        "LOCAL_RANK": str(local),
        "WORLD_SIZE": str(spread.world_size),
        "LOCAL_WORLD_SIZE": str(spread.processes),
        "MASTER_ADDR": environment.get("MASTER_ADDR", "127.0.0.1"),
        "MASTER_PORT": environment.get("MASTER_PORT", "29400"),
        # Left to themselves as many threads compute, and processes compile, as the node has cores.
        "OMP_NUM_THREADS": threads,
        "TORCHINDUCTOR_COMPILE_THREADS": environment.get("TORCHINDUCTOR_COMPILE_THREADS", threads),
        "TOKENIZERS_PARALLELISM": environment.get("TOKENIZERS_PARALLELISM", "true"),
        "PYTHONUNBUFFERED": "1",
        **{name: environment.get(name, value) for name, value in _kernels_kept(job.spec).items()},
    }


def _kernels_kept(spec: JobSpec) -> Mapping[str, str]:
    """Texts come in many shapes, images in one."""
    is_text_in_fp32 = spec.task != "image-classification" and spec.training.precision in {"auto", "fp32"}
    return FEW_KERNELS if is_text_in_fp32 else {}


def count_oom_kills() -> int:
    """How often the kernel killed for memory in this container so far (cgroup v2, else v1); 0 if it does not tell."""
    for path in ("/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control"):
        try:
            lines = Path(path).read_text(encoding="ascii").splitlines()
        except OSError:
            continue
        counts = dict(line.split() for line in lines)
        return int(counts.get("oom_kill", 0))
    return 0


def _wordless(number: int, code: int, *, is_oom: bool) -> TerminationMessage:
    """What to say of a process that could say nothing itself."""
    if code <= 128:  # noqa: PLR2004 - above are signals
        return TerminationMessage(
            exit_code=code, cause=cause_of(code), message=f"rank {number} left with exit code {code}"
        )
    name = signal.Signals(code - 128).name
    if is_oom:
        text = f"rank {number} was killed for memory; raise spec.distributed.resources.memory or lower the batch size"
        return TerminationMessage(exit_code=code, cause=Cause.OUT_OF_MEMORY, message=text)
    is_crash = name in {"SIGSEGV", "SIGABRT", "SIGBUS", "SIGFPE", "SIGILL"}
    is_asked = name in {"SIGTERM", "SIGINT"}
    cause = Cause.APPLICATION if is_crash else Cause.PREEMPTED if is_asked else Cause.INFRASTRUCTURE
    return TerminationMessage(exit_code=code, cause=cause, message=f"rank {number} was ended by {name}")


def bounded(message: TerminationMessage) -> bytes:
    """The message as JSON of at most 4,096 bytes: metrics and progress go before the sentence does."""
    text = message.model_dump_json(exclude_none=True).encode()
    if len(text) > TERMINATION_MESSAGE_BYTES and message.report is not None:
        message = message.model_copy(update={"report": message.report.model_copy(update={"evaluations": ()})})
        text = message.model_dump_json(exclude_none=True).encode()
    if len(text) > TERMINATION_MESSAGE_BYTES:
        text = message.model_copy(update={"report": None}).model_dump_json(exclude_none=True).encode()
    if len(text) > TERMINATION_MESSAGE_BYTES:
        short = message.model_copy(update={"report": None, "message": message.message[:200]})
        text = short.model_dump_json(exclude_none=True).encode()
    return text


def main() -> int:
    """Run this worker's processes; returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s [worker] %(message)s", datefmt="%H:%M:%S")
    environment = dict(os.environ)
    run = RunFolder(Path(environment[Variable.RUN]))
    scratch = Path(environment.setdefault(Variable.SCRATCH, str(run.root)))
    scratch.mkdir(parents=True, exist_ok=True)
    try:
        job = read_job(Path(environment[Variable.JOB]))
    except SpecError as error:
        message = TerminationMessage(exit_code=ExitCode.BAD_SPEC, cause=Cause.CONFIGURATION, message=str(error)[:1000])
    else:
        message = _run(Worker(job, environment, scratch, oom_kills=count_oom_kills()))
    if not message.step:  # a process that was killed or stalled could not say how far it was
        message = message.model_copy(update={"step": last_step(run.history)})
    log.info("%s (exit code %d)", message.message, message.exit_code)
    _write(message, environment)
    with contextlib.suppress(OSError):
        if environment.get(Variable.WORKER, "0") == "0":
            record_end(run.attempts, attempt=int(environment.get(Variable.ATTEMPT, "1")), message=message)
    return message.exit_code


def _run(worker: Worker) -> TerminationMessage:
    def leave(_signal: int, _frame: FrameType | None) -> None:
        if not worker.asked_to_leave:
            _write(CUT_SHORT, worker.environment)
        worker.ask_to_leave()

    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGINT, leave)
    try:
        worker.start()
        return worker.watch()
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        worker.kill()


def _write(message: TerminationMessage, environment: Mapping[str, str]) -> None:
    """Put it where whoever runs this worker looks for it."""
    path = environment.get(Variable.TERMINATION_LOG, f"{environment[Variable.SCRATCH]}/termination.json")
    with contextlib.suppress(OSError):  # a full disk: the exit code says enough
        Path(path).write_bytes(bounded(message))


if __name__ == "__main__":
    sys.exit(main())
