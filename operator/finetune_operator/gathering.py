"""An event loop that can handle together what comes close together.

In a burst some hundred small events a second come in. A process that wakes for each of them, on a machine that has
other work, finds the processor's caches cold each time. Else nothing waits: a job's start is several answers, one after
the other.
"""

import asyncio
import selectors
import time
from collections.abc import Callable, Coroutine
from typing import Any

GATHER_SECONDS = 0.03
"""From one wake-up for sockets to the next; what comes to a loop that has been idle for so long does not wait."""


class GatheringSelector(selectors.DefaultSelector):
    """Reports what is ready; where it gathers, at most every GATHER_SECONDS: a timer may come late by as much."""

    gathers = False

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        """Nothing is registered yet.

        Args:
            clock: Seconds.
            sleep: Waits so many of them.
        """
        super().__init__()
        self._clock, self._sleep = clock, sleep
        self._open_at = clock()

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """What is ready (https://docs.python.org/3/library/selectors.html)."""
        ready = super().select(timeout)
        if not ready:
            return ready
        closed = self._open_at - self._clock()
        if self.gathers and closed > 0:
            self._sleep(closed)
            ready = super().select(0)
        self._open_at = self._clock() + GATHER_SECONDS
        return ready


def run(main: Callable[[GatheringSelector], Coroutine[Any, Any, None]]) -> None:
    """As ``asyncio.run``, in such a loop; ``main`` gets its selector."""
    selector = GatheringSelector()
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selector)) as runner:
        runner.run(main(selector))
