"""Which key is to be looked at next: the order of work, without clocks, tasks or waiting.

Invariants: a key is worked on once at a time; however often it is added meanwhile, it is looked at once more; of the
namespaces that have work each gets its turn, so that one with 5,000 jobs delays no other's one.
"""

import heapq
from collections import OrderedDict, deque
from collections.abc import Iterator
from typing import NamedTuple


class Key(NamedTuple):
    """What is looked at: a FineTuneJob, or an object of another kind."""

    namespace: str
    name: str
    kind: str = "FineTuneJob"

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


class Schedule:
    """Keys that are ready, keys that are due later, and keys that are worked on. Times are seconds of any one clock."""

    def __init__(self) -> None:
        self._lanes: OrderedDict[str, deque[Key]] = OrderedDict()
        self._since: dict[Key, float] = {}
        self._due: dict[Key, float] = {}
        self._heap: list[tuple[float, Key]] = []
        self._working: set[Key] = set()
        self._again: set[Key] = set()

    def add(self, key: Key, now: float) -> bool:
        """Have it looked at as soon as can be; returns whether that makes it one more that is ready."""
        self._due.pop(key, None)
        if key in self._working:
            self._again.add(key)
            return False
        if key in self._since:
            return False
        self._since[key] = now
        self._lanes.setdefault(key.namespace, deque()).append(key)
        return True

    def add_later(self, key: Key, due: float) -> None:
        """Have it looked at when ``due`` has come, instead of any other time to come."""
        if key not in self._since and key not in self._again:
            self._due[key] = due
            heapq.heappush(self._heap, (due, key))

    def is_due_later(self, key: Key) -> bool:
        """Whether a time is set for it."""
        return key in self._due

    def ripe(self, now: float) -> Iterator[Key]:
        """Keys whose time has come; each is to be added."""
        while self._heap and self._heap[0][0] <= now:
            due, key = heapq.heappop(self._heap)
            if self._due.get(key) == due:
                yield key

    def next_due(self) -> float | None:
        """When the next key ripens; None if none will."""
        while self._heap and self._due.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def take(self) -> tuple[Key, float]:
        """The next key to work on, and since when it is ready.

        Raises:
            KeyError: None is ready.
        """
        namespace, lane = self._lanes.popitem(last=False)
        key = lane.popleft()
        if lane:
            self._lanes[namespace] = lane
        self._working.add(key)
        return key, self._since.pop(key)

    def done(self, key: Key) -> bool:
        """The work on it has ended; returns whether it was added meanwhile, and so is to be added again."""
        self._working.discard(key)
        again = key in self._again
        self._again.discard(key)
        return again

    @property
    def depth(self) -> int:
        """Keys that are ready and wait."""
        return len(self._since)

    @property
    def working(self) -> int:
        """Keys that are worked on."""
        return len(self._working)

    def oldest(self) -> float | None:
        """Since when the key is ready that waits longest."""
        return min((self._since[lane[0]] for lane in list(self._lanes.values()) if lane), default=None)
