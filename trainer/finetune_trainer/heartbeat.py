"""A sign of life for the launcher: the modification time of a file, touched at every step, batch or chunk of work."""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PULSE_SECONDS = 1.0
PULSE_LIMIT_SECONDS = 3600.0
"""What takes longer than this without a word hangs."""


class Heartbeat:
    """Touches ``path``; does nothing without one (a process that no launcher watches)."""

    def __init__(self, path: Path | None) -> None:
        self._descriptor = os.open(path, os.O_CREAT | os.O_RDWR) if path else None

    def beat(self) -> None:
        """Say that something progressed. Costs about 2 µs."""
        if self._descriptor is not None:
            os.utime(self._descriptor)

    @contextmanager
    def pulse(self) -> Iterator[None]:
        """Within: beat once a second, an hour at most.

        For a wait for others (who are watched themselves), and for one long call that cannot tell how far it is
        (loading or writing a model). A process that is stopped has no pulse.
        """
        is_over = threading.Event()
        deadline = time.monotonic() + PULSE_LIMIT_SECONDS

        def tick() -> None:
            while time.monotonic() < deadline:
                self.beat()
                if is_over.wait(PULSE_SECONDS):
                    return

        thread = threading.Thread(target=tick, name="pulse", daemon=True)
        thread.start()
        try:
            yield
        finally:
            is_over.set()
            thread.join()
            self.beat()
