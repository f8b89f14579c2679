"""SIGTERM: asks the run to save and leave. While there is nothing to save (preparation) it leaves at once.

Invariant: the handler only sets a flag (or raises, while ``unwinding``); all ranks learn of the flag together, in the
reduction that starts every step, so that none waits for one that has left.
"""

import ctypes
import signal
from types import FrameType

from finetune_trainer.errors import Preempted


_PR_SET_PDEATHSIG = 1
"""https://man7.org/linux/man-pages/man2/PR_SET_PDEATHSIG.2const.html"""


class StopRequest:
    """Whether this process was asked to leave."""

    def __init__(self) -> None:
        self.is_set = False
        self._raises = True

    def install(self) -> None:
        """Handle SIGTERM. Until ``defer`` is called it raises Preempted in the main thread.

        The kernel sends it as well when the parent, the launcher, is gone: no process outlives its worker.
        """
        signal.signal(signal.SIGTERM, self._handle)
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)

    def defer(self) -> None:
        """From now on only note the request; the training loop looks at ``is_set``."""
        self._raises = False

    def _handle(self, _signal: int, _frame: FrameType | None) -> None:
        self.is_set = True
        if self._raises:
            self._raises = False
            raise Preempted("asked to leave before training started; nothing was lost")
