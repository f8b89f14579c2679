"""A folder of prepared data that processes and runs share: each entry is made once, and whole or not at all.

Invariant: a folder ``<kind>-<hash>`` is complete. It was made as ``.tmp-…``, every file synced, its sizes written to a
manifest, then renamed; one that no longer fits its manifest is made again. Whoever asks while another process makes an
entry waits for it, without a time-out: a lock of the kernel's (flock) ends with the process that holds it.
"""

import errno
import fcntl
import hashlib
import json
import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from finetune_trainer.durable import sync
from finetune_trainer.errors import Denied, PlatformError

T = TypeVar("T")
Beat = Callable[[], None]
"""Called now and then by what takes long, to say that the process lives."""

log = logging.getLogger(__name__)

_MANIFEST = "manifest.json"
_POLL_SECONDS = 0.05
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)
_FULL = (errno.ENOSPC, errno.EDQUOT)


def no_beat() -> None:
    """A Beat that nobody hears."""


def cached(
    cache: Path,
    kind: str,
    key: Mapping[str, Any],
    *,
    build: Callable[[Path], None],
    load: Callable[[Path], T],
    beat: Beat = no_beat,
) -> T:
    """What ``load`` reads from the entry of ``key``, which ``build`` writes if it is not there.

    ``build`` writes files, no folders. ``key`` is JSON and says all that the entry depends upon. ``load`` raises
    OSError, ValueError or KeyError on a damaged entry, which is then made again. Raises PlatformError if the volume is
    full, Denied if it is not writable.
    """
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]
    entry = cache / f"{kind}-{digest}"
    with _told_by_field(cache):
        cache.mkdir(parents=True, exist_ok=True)
        with _locked(cache / f"{entry.name}.lock", beat) as alone:
            if entry.exists():
                try:
                    return _load(entry, load)
                except (OSError, ValueError, KeyError) as error:
                    log.warning("%s is damaged and is made again: %s", entry, error)
            _make(entry, build, sweep=alone)
        return _load(entry, load)


def _load(entry: Path, load: Callable[[Path], T]) -> T:
    sizes = json.loads((entry / _MANIFEST).read_text(encoding="utf-8"))
    for name, size in sizes.items():
        found = (entry / name).stat().st_size
        if found != size:
            raise ValueError(f"{name} has {found} bytes instead of {size}")
    return load(entry)


def _make(entry: Path, build: Callable[[Path], None], *, sweep: bool) -> None:
    prefix = f".tmp-{entry.name}-"
    if sweep:  # what a killed process left; nobody else makes this entry while we hold its lock
        for rest in entry.parent.glob(f"{prefix}*"):
            shutil.rmtree(rest, ignore_errors=True)
    made = Path(tempfile.mkdtemp(prefix=prefix, dir=entry.parent))
    try:
        build(made)
        sizes = {file.name: file.stat().st_size for file in sorted(made.iterdir())}
        (made / _MANIFEST).write_text(json.dumps(sizes), encoding="utf-8")
        for path in (*made.iterdir(), made):
            sync(path)
        _publish(made, entry)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _publish(made: Path, entry: Path) -> None:
    shutil.rmtree(entry, ignore_errors=True)
    try:
        made.rename(entry)
    except OSError as error:  # on a file system without locks another process was first; its entry is as good
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
    sync(entry.parent)


@contextmanager
def _locked(path: Path, beat: Beat) -> Iterator[bool]:
    """Hold the lock of ``path``; False where the file system has no locks (an entry may then be made twice)."""
    with path.open("a") as file:
        yield _acquire(file.fileno(), path, beat)


def _acquire(descriptor: int, path: Path, beat: Beat) -> bool:
    waited = False
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not waited:
                log.info("another process prepares %s; waiting for it", path.stem)
            waited = True
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            log.warning("no locks on %s: each process prepares its data by itself", path.parent)
            return False
        else:
            return True
        beat()
        time.sleep(_POLL_SECONDS)


@contextmanager
def _told_by_field(cache: Path) -> Iterator[None]:
    """Map what the volume of ``cache`` refuses to errors that say what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise PlatformError(
                f"FINETUNE_CACHE: no space left in {cache} for prepared data; free or enlarge it"
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise Denied(f"FINETUNE_CACHE: {cache} is not writable; name a folder that is") from error
        raise
