"""The one parent of a cluster's processes: they are its process group, and none of them outlives it.

Run as a program it takes a folder, listens on a Unix socket in it and does what it is told, a line of JSON a request.
It ends when its folder is gone; with ``--owned`` also when its standard input ends, so that a cluster cannot outlive
the tests that started it, however these end. ``Keeper`` is what others speak to it with.
"""

import contextlib
import ctypes
import fcntl
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

SOCKET = "keeper.sock"
LONGEST_SOCKET_PATH = 107
"""Bytes that a Unix socket's address holds."""
PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None, use_errno=True)


class RefusedError(Exception):
    """The keeper could not do what it was asked."""


class Keeper:
    """The keeper of the cluster in ``folder``, from outside."""

    def __init__(self, folder: Path) -> None:
        self._address = str(folder / SOCKET)
        if len(os.fsencode(self._address)) > LONGEST_SOCKET_PATH:
            raise RefusedError(f"{folder}: too long a path for a Unix socket in it, choose a shorter one")

    def ask(self, what: str, **values: Any) -> Any:
        """What the keeper answers to one request; ``RefusedError`` says why it did not."""
        with socket.socket(socket.AF_UNIX) as line:
            line.settimeout(60)
            line.connect(self._address)
            line.sendall(json.dumps({"what": what, **values}).encode() + b"\n")
            with line.makefile() as reader:
                answer = json.loads(reader.readline() or '{"error": "the keeper hung up"}')
        if "error" in answer:
            raise RefusedError(answer["error"])
        return answer["done"]

    def is_there(self) -> bool:
        """Whether it answers."""
        try:
            self.ask("list")
        except (OSError, RefusedError):
            return False
        return True

    def start(self, name: str, command: list[str], log: Path, env: dict[str, str] | None = None) -> int:
        """Start a process; its pid (as the keeper sees it). One that already runs stays as it is."""
        command = [str(part) for part in command]
        return int(self.ask("start", name=name, command=command, log=str(log), env=env or {}))

    def stop(self, name: str, how: signal.Signals = signal.SIGTERM, seconds: float = 20) -> None:
        """Send a process the signal and wait for its end; after ``seconds`` it is killed."""
        self.ask("stop", name=name, signal=int(how), seconds=seconds)

    def signal(self, name: str, which: signal.Signals) -> None:
        """Send a process a signal, SIGSTOP and SIGCONT for example."""
        self.ask("signal", name=name, signal=int(which))

    def exits(self) -> dict[str, int | None]:
        """Each process's exit code, negative for a signal; None while it runs. What was stopped is not listed."""
        return dict(self.ask("list"))

    def pids(self) -> dict[str, int]:
        """Each process's pid, as the keeper sees it: with a real node, in a pid namespace of its own."""
        return dict(self.ask("pids"))

    def end(self) -> None:
        """End all, the last started first, and the keeper itself."""
        with contextlib.suppress(OSError):
            self.ask("end")


class _Processes:
    """What the keeper keeps. It reaps every child, also those that are not its own (it may be a namespace's init)."""

    def __init__(self) -> None:
        self._started: dict[str, subprocess.Popen[bytes]] = {}
        self._ended: dict[int, int] = {}

    def reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while (found := os.waitpid(-1, os.WNOHANG))[0]:
                self._ended[found[0]] = os.waitstatus_to_exitcode(found[1])

    def exit(self, name: str) -> int | None:
        self.reap()
        return self._ended.get(self._started[name].pid)

    def exits(self) -> dict[str, int | None]:
        return {name: self.exit(name) for name in self._started}

    def pids(self) -> dict[str, int]:
        return {name: process.pid for name, process in self._started.items()}

    def start(self, name: str, command: list[str], log: str, env: dict[str, str]) -> int:
        if name not in self._started or self.exit(name) is not None:
            Path(log).parent.mkdir(parents=True, exist_ok=True)
            with Path(log).open("ab") as output:
                self._started[name] = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=os.environ | env,
                    preexec_fn=_die_with_parent,  # noqa: PLW1509 - the keeper has one thread
                )
            self._ended.pop(self._started[name].pid, None)
        return self._started[name].pid

    def signal(self, name: str, which: int) -> None:
        if self.exit(name) is None:
            os.kill(self._started[name].pid, which)

    def stop(self, name: str, which: int, seconds: float) -> None:
        """Stop and forget it: what is still listed as ended has ended by itself."""
        if name not in self._started:
            return
        self.signal(name, which)
        deadline = time.monotonic() + seconds
        while self.exit(name) is None:
            if time.monotonic() > deadline:
                self.signal(name, signal.SIGKILL)
            time.sleep(0.02)
        del self._started[name]

    def end(self) -> None:
        """End all at once: what they leave behind is not kept either."""
        for name in reversed(list(self._started)):
            self.stop(name, signal.SIGKILL, 5)


def _die_with_parent() -> None:
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _answer(processes: _Processes, request: dict[str, Any]) -> Any:
    match request.pop("what"):
        case "start":
            return processes.start(**request)
        case "stop":
            return processes.stop(request["name"], request["signal"], request["seconds"])
        case "signal":
            return processes.signal(request["name"], request["signal"])
        case "list":
            return processes.exits()
        case "pids":
            return processes.pids()
        case other:
            raise RefusedError(f"no such request: {other}")


def _serve(listener: socket.socket, processes: _Processes) -> bool:
    """Serve one request; whether to go on."""
    line, _ = listener.accept()
    with line, contextlib.suppress(OSError), line.makefile("rw") as stream:
        request = json.loads(stream.readline() or '{"what": "list"}')
        if request["what"] == "end":
            processes.end()
            stream.write('{"done": null}\n')
            return False
        try:
            answer = {"done": _answer(processes, request)}
        except Exception as failure:  # noqa: BLE001 - told to who asked
            answer = {"error": f"{type(failure).__name__}: {failure}"}
        stream.write(json.dumps(answer) + "\n")
    return True


def _keep(folder: Path, *, owned: bool) -> None:
    address = folder / SOCKET
    address.unlink(missing_ok=True)
    processes = _Processes()
    with socket.socket(socket.AF_UNIX) as listener, selectors.DefaultSelector() as ready:
        listener.bind(str(address))
        listener.listen()
        ready.register(listener, selectors.EVENT_READ)
        if owned:
            ready.register(sys.stdin, selectors.EVENT_READ)
        while True:
            found = [key.fileobj for key, _ in ready.select(timeout=1)]
            processes.reap()
            if sys.stdin in found or (listener in found and not _serve(listener, processes)) or not address.exists():
                break
    processes.end()
    address.unlink(missing_ok=True)


def main() -> None:
    """Keep the cluster of the folder that is the first argument, until told to end."""
    folder = Path(sys.argv[1])
    for which in (signal.SIGTERM, signal.SIGINT):
        signal.signal(which, lambda *_: sys.exit(0))
    with (folder / "keeper.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _keep(folder, owned="--owned" in sys.argv)


if __name__ == "__main__":
    main()
