"""What is built once for all checkouts: atomically, under a lock, with a log of what went wrong."""

import fcntl
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from cluster.errors import BuildError

CHECKOUT = Path(__file__).resolve().parents[2]
TAIL_LINES = 30


def cache_folder() -> Path:
    """Where builds are kept, outside the checkout."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "finetune-operator" / "cluster"


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file ``path``: whoever else wants it waits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def build_once(target: Path, build: Callable[[Path], None]) -> Path:
    """``target``, a file or a folder; unless it is there, ``build`` makes it at the path that it is given.

    It appears whole or not at all, and two processes do not build it twice.
    """
    if target.exists():
        return target
    with locked(target.with_name(f".{target.name}.lock")):
        if not target.exists():
            partial = target.with_name(f".{target.name}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            build(partial)
            partial.rename(target)
    return target


def run_logged(
    command: Sequence[str | Path],
    log: Path,
    *,
    what: str,
    cwd: Path | None = None,
    env: dict[str, str] | None = None,
    seconds: float = 3600,
) -> None:
    """Run a command, its output appended to ``log``; raises ``BuildError`` with the end of it."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as output:
        output.write(f"\n$ {' '.join(map(str, command))}\n")
        output.flush()
        try:
            subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=cwd,
                env=os.environ | (env or {}),
                timeout=seconds,
                check=True,
            )
        except (OSError, subprocess.SubprocessError) as failure:
            raise BuildError(f"{what} failed: {failure}\n{tail(log)}") from failure


def tail(log: Path) -> str:
    """Where ``log`` is, and its last lines."""
    if not log.exists():
        return f"(no log at {log})"
    lines = log.read_text(errors="replace").splitlines()[-TAIL_LINES:]
    return "\n".join([f"the end of {log}:", *lines])
