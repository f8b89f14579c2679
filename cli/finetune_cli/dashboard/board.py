"""What the page shows, as the server knows it, and what of it a client has not been told yet.

Invariant: a client that knows everything up to a sequence number, and is told the changes since, knows what the board
knows. Of an object only its present row is kept, never its changes: however slowly a client reads, nothing piles up.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from finetune_cli.dashboard.trail import Trail

Document = dict[str, Any]
Key = tuple[str, str, str]
"""Kind, namespace (of a local run its folder) and name."""
KEPT_TOMBSTONES = 1000
"""Deleted objects that are remembered. Who has missed more than these is told everything anew."""


@dataclass(frozen=True)
class Entry:
    """One object."""

    key: Key
    row: Document
    """What the list shows of it; ``uid`` tells it from a later one of the same name."""
    detail: Callable[[], Document]
    """All that the page shows of it; made when somebody asks, in any thread."""
    loss: tuple[int, float] | None = None
    """Step and training loss, where the board is to keep their course."""


@dataclass(frozen=True)
class Problem:
    """Something that cannot be read at present."""

    what: str
    """``FineTuneJobs in namespace a``."""
    message: str
    since: datetime | None
    """When it was last heard of; None if never."""


@dataclass(frozen=True)
class Changes:
    """What a client is told next."""

    reset: bool
    """It must forget all that it knows."""
    rows: tuple[Document, ...]
    gone: tuple[Key, ...]
    problems: tuple[Problem, ...]
    """All that there are now."""
    loading: bool
    """Something has never been read so far."""
    upto: int
    """The sequence number up to which it then knows everything."""


class Board:
    """Everything that is shown. It belongs to one event loop; sources in other threads hand over through it."""

    def __init__(self, kept_tombstones: int = KEPT_TOMBSTONES) -> None:
        self.sequence = 0
        self._states: OrderedDict[Key, tuple[int, Entry | None]] = OrderedDict()
        """By the time of their last change, oldest first; None for what was deleted."""
        self._tombstones: deque[Key] = deque()
        self._kept_tombstones, self._forgotten = kept_tombstones, 0
        self._awaited: set[str] = set()
        self._problems: dict[str, Problem] = {}
        self._trails: dict[str, Trail] = {}
        self._news = asyncio.Event()

    def expect(self, what: str) -> None:
        """Something is about to be read for the first time."""
        self._awaited.add(what)

    def put(self, entry: Entry) -> None:
        """An object is new, or has changed."""
        known = self._states.get(entry.key)
        before = known[1] if known else None
        if before is not None and before.row == entry.row:
            return
        if before is not None and before.row["uid"] != entry.row["uid"]:
            self._trails.pop(before.row["uid"], None)
        if entry.loss is not None:
            self._trails.setdefault(entry.row["uid"], Trail()).add(*entry.loss)
        self._change(entry.key, entry)

    def drop(self, key: Key) -> None:
        """An object was deleted."""
        known = self._states.get(key)
        if known is None or known[1] is None:
            return
        self._trails.pop(known[1].row["uid"], None)
        self._change(key, None)
        self._tombstones.append(key)
        while len(self._tombstones) > self._kept_tombstones:
            self._bury(self._tombstones.popleft())

    def replace(self, entries: Iterable[Entry], is_of: Callable[[Key], bool]) -> None:
        """These are all objects that there are among those whose key ``is_of`` says yes to."""
        present = {entry.key: entry for entry in entries}
        for key in [key for key, (_, entry) in self._states.items() if entry is not None and is_of(key)]:
            if key not in present:
                self.drop(key)
        for entry in present.values():
            self.put(entry)

    def complain(self, problem: Problem) -> None:
        """Something cannot be read."""
        self._problems[problem.what] = problem
        self._awaited.discard(problem.what)
        self._wake()

    def content(self, what: str) -> None:
        """It can be read."""
        self._problems.pop(what, None)
        self._awaited.discard(what)
        self._wake()

    def find(self, key: Key) -> tuple[Callable[[], Document], list[tuple[int, float]]] | None:
        """What makes all that the page shows of an object, and the course of its loss; None if it is not there."""
        _, entry = self._states.get(key, (0, None))
        if entry is None:
            return None
        trail = self._trails.get(entry.row["uid"])
        return entry.detail, list(trail.points) if trail else []

    def changes(self, since: int) -> Changes:
        """What has changed since a sequence number; 0 for a client that knows nothing."""
        reset = since < self._forgotten or since > self.sequence or since == 0
        found = self._since(0 if reset else since)
        return Changes(
            reset=reset,
            rows=tuple(entry.row for _, entry in found if entry is not None),
            gone=() if reset else tuple(key for key, entry in found if entry is None),
            problems=tuple(self._problems.values()),
            loading=bool(self._awaited),
            upto=self.sequence,
        )

    async def wait(self, since: int) -> None:
        """Returns when there is something later than ``since``."""
        while self.sequence <= since:
            await self._news.wait()

    def _since(self, since: int) -> list[tuple[Key, Entry | None]]:
        """What has changed later, the oldest change first."""
        found = []
        for key in reversed(self._states):
            at, entry = self._states[key]
            if at <= since:
                break
            found.append((key, entry))
        return found[::-1]

    def _change(self, key: Key, entry: Entry | None) -> None:
        self._wake()
        self._states[key] = (self.sequence, entry)
        self._states.move_to_end(key)

    def _wake(self) -> None:
        self.sequence += 1
        news, self._news = self._news, asyncio.Event()
        news.set()

    def _bury(self, key: Key) -> None:
        at, entry = self._states.get(key, (0, None))
        if entry is None and key not in self._tombstones:
            self._states.pop(key, None)
            self._forgotten = max(self._forgotten, at)
