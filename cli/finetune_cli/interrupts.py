"""Signals that ask the command to stop.

Invariant: a handler only counts, so nothing is ever interrupted half-way; the loop looks at the count.
"""

import signal
from types import FrameType
from typing import Any, Self

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Cancelled(Exception):  # noqa: N818 - what was asked for, not an error
    """Asked to stop before anything was begun."""


class Interrupts:
    """Counts SIGINT (Ctrl-C), SIGTERM and SIGHUP while it is entered."""

    def __init__(self) -> None:
        self.count = 0
        self._first = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        # What is ignored already (nohup, a script's background job) stays ignored.
        heard = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        self._before = {number: signal.signal(number, self._handle) for number in heard}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @property
    def exit_code(self) -> int:
        """128 + the first signal, as shells have it: 130 for Ctrl-C, 143 for SIGTERM."""
        return 128 + self._first

    def check(self) -> None:
        """Raise Cancelled if a signal has come."""
        if self.count:
            raise Cancelled

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        self._first = self._first or number
        self.count += 1
