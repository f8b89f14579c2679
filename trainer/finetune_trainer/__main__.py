"""One process of a run: ``python -m finetune_trainer``, started by ``finetune_trainer.launch`` (or torchrun).

The one place where an error becomes an exit code: whatever happens is written to SCRATCH/rank-<rank>.json as a
TerminationMessage, and the process ends with its code.
"""

import contextlib
import errno
import faulthandler
import gc
import logging
import os
import signal
import sys
import traceback
from typing import NoReturn

from finetune_api.errors import SpecError
from finetune_api.outcomes import Cause, ExitCode, cause_of
from finetune_api.status import Result, TerminationMessage
from finetune_api.wiring import STACKS_FILE
from finetune_trainer.context import Context, read_context
from finetune_trainer.errors import TrainerError
from finetune_trainer.heartbeat import Heartbeat
from finetune_trainer.scratch import heartbeat_path, rank_message_path
from finetune_trainer.signals import StopRequest

log = logging.getLogger("finetune")

_LOST_PEER = (
    "closed by peer",
    "reset by peer",
    "connection refused",
    "timed out",
    "socket",
    "broken pipe",
    "heartbeat",
)
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "cannot allocate memory")
_MESSAGE_CHARACTERS = 1000
_GC_THRESHOLD = 50_000
"""New containers before the collector runs, until training begins; Python's own is 700. What is imported stays: to look
through it again and again took a sixth of a start (1.5 s of 8.8 for torch, transformers and the trainer)."""
_LEFT_EARLY = TerminationMessage(
    exit_code=ExitCode.PREEMPTED, cause=Cause.PREEMPTED, message="asked to leave before the first step"
)


def main() -> NoReturn:
    """Run, and end the process with the exit code."""
    try:
        context = read_context()
    except SpecError as error:
        print(error, file=sys.stderr)
        sys.exit(ExitCode.BAD_SPEC)
    gc.set_threshold(_GC_THRESHOLD)
    stop = StopRequest()
    stop.install(lambda: _end(context, _LEFT_EARLY))
    _set_up_logging(context)
    with (context.scratch / STACKS_FILE).open("a") as stacks:
        faulthandler.enable(stacks)
        faulthandler.register(signal.SIGUSR1, stacks, all_threads=True)
        message = _message(context, stop)
        logging.shutdown()
        sys.stdout.flush()
        _end(context, message)


def _message(context: Context, stop: StopRequest) -> TerminationMessage:
    """Run, and say what became of it."""
    report = None
    try:
        from finetune_trainer.progress import ProgressServer, Reporter

        reporter = Reporter(context.job.spec, context.attempt)
        if context.is_main:
            ProgressServer(reporter, context.progress_address, context.scratch)
        report = reporter.report
        result = _run(context, stop, reporter)
    except BaseException as error:  # noqa: BLE001 - the edge: every ending becomes a code and a sentence
        told = explain(error)
        if told.exit_code == ExitCode.BUG:
            traceback.print_exc()
        log.error("%s", told.message)  # noqa: TRY400 - the traceback is printed above, where it is worth reading
    else:
        told = TerminationMessage(exit_code=ExitCode.DONE, message="finished", result=result)
    if report is None:
        return told
    last = report()
    step = last.progress.step if last.progress else 0
    return told.model_copy(update={"step": step, "report": last if context.is_main else None})


def _run(context: Context, stop: StopRequest, reporter: object) -> Result | None:
    from finetune_trainer.progress import Reporter
    from finetune_trainer.run import Process, run

    assert isinstance(reporter, Reporter)
    heartbeat = Heartbeat(heartbeat_path(context.scratch, context.local_rank))
    return run(Process(context, reporter, heartbeat, stop))


def explain(error: BaseException) -> TerminationMessage:
    """What an error means for the run: exit code, cause and a sentence."""
    code, cause = _verdict(error)
    text = str(error).strip() or type(error).__name__
    if code == ExitCode.BUG:
        text = f"{type(error).__name__}: {text}"
    if code == ExitCode.PLATFORM and isinstance(error, OSError):
        text = f"spec.checkpoint.volume: {text}; free it, enlarge it or make it writable, and start the job again"
    return TerminationMessage(exit_code=code, cause=cause, message=text[:_MESSAGE_CHARACTERS])


def _verdict(error: BaseException) -> tuple[ExitCode, Cause]:  # noqa: PLR0911 - a list of checks
    if isinstance(error, TrainerError):
        return error.exit_code, cause_of(error.exit_code)
    if isinstance(error, SpecError):
        return ExitCode.BAD_SPEC, Cause.CONFIGURATION
    words = str(error).lower()
    kind = type(error).__name__
    if isinstance(error, MemoryError) or any(phrase in words for phrase in _OUT_OF_MEMORY):
        return ExitCode.KILLED, Cause.OUT_OF_MEMORY
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        return ExitCode.PLATFORM, Cause.CONFIGURATION
    if isinstance(error, PermissionError):
        return ExitCode.DENIED, Cause.CONFIGURATION
    is_network = kind.startswith("Dist") or isinstance(error, ConnectionError)
    if is_network or (isinstance(error, RuntimeError) and any(phrase in words for phrase in _LOST_PEER)):
        return ExitCode.RETRY, Cause.INFRASTRUCTURE
    return ExitCode.BUG, Cause.APPLICATION


def _end(context: Context, message: TerminationMessage) -> NoReturn:
    """Leave word and end the process, also from within a signal handler.

    Not by sys.exit: threads of NCCL or of a tracker may never end, and the interpreter would wait for them.
    """
    with contextlib.suppress(OSError):  # a full disk: the exit code says enough
        rank_message_path(context.scratch, context.rank).write_text(message.model_dump_json(exclude_none=True))
    os._exit(message.exit_code)


def _set_up_logging(context: Context) -> None:
    level = logging.INFO if context.is_main else logging.WARNING
    logging.basicConfig(level=level, format=f"%(asctime)s [{context.rank}] %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")


if __name__ == "__main__":
    main()
