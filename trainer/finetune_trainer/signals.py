"""Being asked to leave: by SIGTERM, or by the loss of the process that started this one.

While there is nothing to save (preparation) a process leaves at once. It does not raise for that: libraries swallow
what is raised in the middle of their imports. Ctrl-C is the launcher's to hear, which passes it on as SIGTERM.

Invariant: once ``defer`` was called the handler only sets a flag; all ranks learn of it together, in the reduction that
starts every step, so that none waits for one that has left.
"""

import os
import signal
from collections.abc import Callable
from types import FrameType


class StopRequest:
    """Whether this process was asked to leave."""

    def __init__(self) -> None:
        self._parent = os.getppid()
        self._is_asked = False
        self._leave: Callable[[], object] | None = None

    @property
    def is_set(self) -> bool:
        """Whether SIGTERM has come, or nobody is left who would restart what fails here."""
        return self._is_asked or os.getppid() != self._parent

    def install(self, leave: Callable[[], object]) -> None:
        """Handle SIGTERM. Until ``defer`` is called it calls ``leave``, which ends the process."""
        self._leave = leave
        signal.signal(signal.SIGTERM, self._handle)
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def defer(self) -> None:
        """From now on only note the request; the training loop looks at ``is_set``."""
        self._leave = None

    def _handle(self, _signal: int, _frame: FrameType | None) -> None:
        self._is_asked = True
        if self._leave is not None:
            self._leave()
