"""The queue of jobs to look at: coalesced, fair, with back-off after failures (the order is ``Schedule``'s)."""

import asyncio
import time
from collections.abc import Callable

from finetune_operator.schedule import Key, Schedule

FIRST_BACKOFF_SECONDS = 0.5
MAX_BACKOFF_SECONDS = 30.0
"""So short that a job goes on within half a minute once the API server is back."""


class KeyedQueue:
    """Keys for a number of workers, each of which gets one, works on it and says how that went."""

    def __init__(
        self, *, clock: Callable[[], float] = time.monotonic, jitter: Callable[[], float] = lambda: 0.5
    ) -> None:
        """An empty queue.

        Args:
            clock: Seconds.
            jitter: 0 to 1, at random; it spreads keys that failed together.
        """
        self._schedule, self._clock, self._jitter = Schedule(), clock, jitter
        self._available = asyncio.Semaphore(0)
        self._failures: dict[Key, int] = {}
        self._held: dict[Key, float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due = 0.0
        self._moved_at = clock()
        self._idle = asyncio.Event()
        self._idle.set()

    def add(self, key: Key) -> None:
        """Have it looked at as soon as a worker is free, and whoever refused it last wants to be asked again."""
        now, held = self._clock(), self._held.pop(key, 0.0)
        if now < held:
            self._held[key] = held
            self._schedule.add_later(key, held)
            self._set_timer()
        elif self._schedule.add(key, now):
            self._available.release()

    def add_forgotten(self, key: Key) -> None:
        """Have it looked at, unless it will be anyway."""
        if not self._schedule.is_due_later(key):
            self.add(key)

    async def get(self) -> tuple[Key, float]:
        """The next key, and the seconds that it has waited."""
        await self._available.acquire()
        key, since = self._schedule.take()
        self._idle.clear()
        self._moved_at = self._clock()
        return key, self._clock() - since

    def done(self, key: Key, again_after: float | None = None) -> None:
        """It went well; look again after so many seconds (None: when something happens)."""
        self._failures.pop(key, None)
        self._end(key, again_after)

    def failed(self, key: Key, at_least: float = 0.0) -> float:
        """It did not go well; returns the seconds until it is tried again.

        Whatever happens meanwhile, it is not before ``at_least`` seconds (an answer's Retry-After).
        """
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        if at_least:
            self._held[key] = self._clock() + at_least
        backoff = min(MAX_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * 2.0 ** min(failures, 16))
        delay = max(at_least, backoff * (0.5 + self._jitter()))
        self._end(key, delay)
        return delay

    @property
    def depth(self) -> int:
        """Keys that wait for a worker."""
        return self._schedule.depth

    @property
    def working(self) -> int:
        """Keys that are worked on."""
        return self._schedule.working

    @property
    def oldest_seconds(self) -> float:
        """How long the first in line has waited; 0 if there is none."""
        since = self._schedule.oldest()
        return 0.0 if since is None else self._clock() - since

    async def wait_idle(self) -> None:
        """Until no key is worked on."""
        await self._idle.wait()

    def is_stuck(self, seconds: float) -> bool:
        """There has been work for so many seconds, and none of it began or ended since."""
        waits = self.working > 0 or self.oldest_seconds > seconds
        return waits and self._clock() - self._moved_at > seconds

    def _end(self, key: Key, again_after: float | None) -> None:
        self._moved_at = self._clock()
        added = self._schedule.done(key)
        if not self.working:
            self._idle.set()
        if added:
            self.add(key)
        elif again_after is not None:
            self._schedule.add_later(key, self._clock() + again_after)
            self._set_timer()

    def _set_timer(self) -> None:
        due = self._schedule.next_due()
        if due is None or (self._timer is not None and self._timer_due <= due):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_due = due
        self._timer = asyncio.get_running_loop().call_later(max(0.0, due - self._clock()), self._ripen)

    def _ripen(self) -> None:
        self._timer = None
        for key in self._schedule.ripe(self._clock()):
            self.add(key)
        self._set_timer()
