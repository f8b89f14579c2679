"""Starts workers as forks of a process that has imported everything once: importing torch is 10 s of CPU a process.

Everything else is as in production: the launcher of ``finetune_trainer.launch`` and its ranks are processes of their
own, with their own signals, sockets and memory. Run by ``workers.Workers``, which sends one JSON object a line:
``{"do": "start", "environment": …, "log": path, …}`` → pid, ``{"do": "poll", "pid": …}`` → exit code or null.

What a start may ask for beside:
  witness                a file that every rank adds a line to for each step: which samples it takes
  join_timeout_seconds   instead of half an hour
  with_parent            a process between the server and the launcher, which can be killed; its pid is returned
  without_privileges     drop root's capabilities, so that file modes bind
"""

import ctypes
import datetime as dt
import importlib
import json
import os
import signal
import sys
import types
from typing import Any, NoReturn

EXIT_BROKEN = 99
"""The harness itself failed."""


def import_everything() -> None:
    for name in ("finetune_trainer.report", "finetune_trainer.run", "matplotlib.pyplot", "torchmetrics.classification"):
        importlib.import_module(name)
    transformers = importlib.import_module("transformers")  # imports what is asked for when it is asked for
    for name in ("AutoImageProcessor", "AutoTokenizer", "BertForSequenceClassification", "ViTForImageClassification"):
        getattr(transformers, name)


def start(request: dict[str, Any]) -> int:
    """Fork a launcher; returns its pid, which is its process group as well."""
    pid = os.fork()
    if not pid:
        _in_child(lambda: _launch(request))
    os.setpgid(pid, pid)  # so does the child, but it may be a while until it runs, and whoever asked may kill the group
    return pid


def poll(request: dict[str, Any]) -> int | None:
    pid, status = os.waitpid(request["pid"], os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if pid else None


def _launch(request: dict[str, Any]) -> int:
    from finetune_trainer import launch

    os.setpgid(0, 0)
    if request.get("with_parent") and (child := os.fork()):
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    if request.get("without_privileges"):
        drop_capabilities()
    os.environ.clear()
    os.environ.update(request["environment"])
    launch.subprocess = types.SimpleNamespace(Popen=lambda _command, env, **_: Forked(env, request))  # type: ignore[attr-defined]
    return launch.main()


class Forked:
    """What the launcher needs of a subprocess.Popen."""

    def __init__(self, environment: dict[str, str], request: dict[str, Any]) -> None:
        self.returncode: int | None = None
        # A process that is executed has no handler of its parent's; a fork has, until ``_train`` removes it.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        self.pid = os.fork()
        if not self.pid:
            _in_child(lambda: _train(environment, request))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})

    def poll(self) -> int | None:
        return self._reap(os.WNOHANG)

    def wait(self) -> int | None:
        return self._reap(0)

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def _reap(self, options: int) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, options)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode


def _train(environment: dict[str, str], request: dict[str, Any]) -> int:
    import logging

    from finetune_trainer import __main__, distributed

    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    logging.getLogger().handlers.clear()
    os.environ.clear()
    os.environ.update(environment)
    if "witness" in request:
        _watch_steps(request["witness"])
    if "join_timeout_seconds" in request:
        distributed.JOIN_TIMEOUT = dt.timedelta(seconds=request["join_timeout_seconds"])
    __main__.main()


def _watch_steps(path: str) -> None:
    """Have every step that begins tell of its samples, in one write a line: none can be done that not all began."""
    from finetune_trainer.loop import Loop

    step = Loop._step
    witness = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def told(loop: Any, state: Any, parts: Any, *arguments: Any) -> Any:
        indices = [int(index) for part in parts if part.is_counted for index in part.indices]
        line = {"attempt": int(os.environ["FINETUNE_ATTEMPT"]), "step": state.step + 1, "epoch": state.epoch}
        os.write(witness, json.dumps(line | {"rank": loop.group.rank, "samples": indices}).encode() + b"\n")
        return step(loop, state, parts, *arguments)

    Loop._step = told  # type: ignore[method-assign]


def drop_capabilities() -> None:
    """Be a root without rights (capset(2)); nothing to an ordinary user."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    nothing = (ctypes.c_uint32 * 6)()
    if ctypes.CDLL(None, use_errno=True).capset(header, nothing):
        raise OSError(ctypes.get_errno(), "capset")


def _in_child(work: Any) -> NoReturn:
    code = EXIT_BROKEN
    try:
        code = work()
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else EXIT_BROKEN
    except BaseException:  # noqa: BLE001 - told in the log
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(code)


def main() -> None:
    import_everything()
    answers = {"start": start, "poll": poll}
    print("ready", flush=True)
    for line in iter(sys.stdin.readline, ""):
        request = json.loads(line)
        print(json.dumps(answers[request["do"]](request)), flush=True)


if __name__ == "__main__":
    main()
