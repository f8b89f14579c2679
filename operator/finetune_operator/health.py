"""/healthz and /readyz, served by a thread of their own: an event loop that hangs cannot say that it does."""

import time
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

BEAT_SECONDS = 1.0
STALE_SECONDS = 30.0
"""The event loop has not turned for so long."""
STUCK_SECONDS = 300.0
"""There is work, and none of it has begun or ended for so long; a request of ours times out much sooner."""


class Heart:
    """Beaten by the event loop, listened to by the thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._beaten = clock()

    def beat(self) -> None:
        """The loop turns."""
        self._beaten = self._clock()

    def is_stale(self) -> bool:
        """Whether the loop hangs."""
        return self._clock() - self._beaten > STALE_SECONDS


Check = Callable[[], str | None]
"""What is wrong, in a sentence; None if nothing is."""


def serve_health(address: str, port: int, checks: dict[str, Check]) -> ThreadingHTTPServer:
    """Serve each check under its path (``/healthz``): 200, or 503 with what is wrong. Port 0 takes a free one."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            check = checks.get(self.path)
            fault = check() if check else None
            body = (fault or "ok").encode()
            status = HTTPStatus.SERVICE_UNAVAILABLE if fault else HTTPStatus.OK
            self.send_response(status if check else HTTPStatus.NOT_FOUND)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - http.server's name
            """Probes are no news."""

    server = ThreadingHTTPServer((address, port), Handler)
    Thread(target=server.serve_forever, name="health", daemon=True).start()
    return server
