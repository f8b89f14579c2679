"""The dashboard's web server: the files of a page, one stream of changes, and objects in full. It only reads.

What keeps others out: it listens on the loopback address by default, and the page's address holds a secret, for other
users of the machine can reach that address too. A request by a name that is not ours is refused, so that no page of
another origin reaches us by a name of its own (DNS rebinding). No other origin is allowed anything (no CORS).
"""

import asyncio
import ipaddress
import json
import secrets
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from importlib import resources
from typing import Any

from aiohttp import web

from finetune_cli.dashboard.board import Board, Changes, Document

MOST_STREAMS = 100
ROWS_A_MESSAGE = 250
PAUSE_SECONDS = 0.2
"""Between two messages to a client: what changes more often is told once."""
BEAT_SECONDS = 10.0
"""A client that has heard nothing for three times as long takes the server for gone."""
SLOW_SECONDS = 20.0
"""A client that does not take a message within this time is dropped; it may come back and go on from there."""
_BUFFERED_BYTES = 65_536
_RETRY_MILLISECONDS = 2000
_KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cache-Control": "no-store",
}
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True)
class Site:
    """How the page is served."""

    title: str
    """What is shown: which namespaces of which cluster, or a folder."""
    place: str = "namespace"
    """What objects are grouped by: ``namespace`` or ``folder``."""
    names: tuple[str, ...] = ()
    """Names by which it may be asked for, beside localhost and every address."""
    secret: str = ""
    """First part of every path; empty for none."""

    @property
    def prefix(self) -> str:
        """What every path but the probe's begins with."""
        return f"/{self.secret}" if self.secret else ""


@dataclass(frozen=True)
class Pace:
    """How a stream is written; tests are in a hurry."""

    pause_seconds: float = PAUSE_SECONDS
    beat_seconds: float = BEAT_SECONDS
    slow_seconds: float = SLOW_SECONDS


PACE = Pace()


def new_application(board: Board, site: Site, pace: Pace = PACE) -> web.Application:
    """The server of a board."""
    dashboard = Dashboard(board, site, pace)
    application = web.Application(middlewares=[_guard(site)], client_max_size=1024)
    application.on_response_prepare.append(_add_headers)
    for name, content in page_files().items():
        path = "" if name == "index.html" else name
        application.router.add_get(f"{site.prefix}/{path}", _file(content, _KINDS[name[name.rindex(".") :]]))
    application.router.add_get(f"{site.prefix}/events", dashboard.stream, allow_head=False)
    application.router.add_get(f"{site.prefix}/object", dashboard.show)
    application.router.add_get("/healthz", _file(b"ok", "text/plain"))
    if site.prefix:
        application.router.add_get(site.prefix, _add_slash)
    return application


def page_files() -> dict[str, bytes]:
    """What the page is made of, by name."""
    ours = resources.files(__package__).joinpath("page")
    look = resources.files("finetune_cli").joinpath("look.css")
    return {file.name: file.read_bytes() for file in (look, *ours.iterdir())}


class Dashboard:
    """Answers questions about a board."""

    def __init__(self, board: Board, site: Site, pace: Pace) -> None:
        self._board, self._site, self._pace = board, site, pace
        self._epoch = secrets.token_hex(4)
        """Tells sequence numbers of this server from those of one before it."""
        self._streams = 0

    async def show(self, request: web.Request) -> web.Response:
        """One object in full."""
        kind, namespace, name = (request.query.get(part, "") for part in ("kind", "namespace", "name"))
        found = self._board.find((kind, namespace, name))
        if found is None:
            return web.json_response({"message": f"There is no {kind} {name} in {namespace}."}, status=404)
        detail, trail = found
        # What is parsed and worded there would make everybody's changes wait.
        return web.json_response({"trail": trail, **await asyncio.to_thread(detail)})

    async def stream(self, request: web.Request) -> web.StreamResponse:
        """Everything, then every change (https://html.spec.whatwg.org/multipage/server-sent-events.html)."""
        if self._streams >= MOST_STREAMS:
            raise web.HTTPServiceUnavailable(text=f"{MOST_STREAMS} pages are open, which is the most that are served\n")
        self._streams += 1
        try:
            return await self._stream(request)
        finally:
            self._streams -= 1

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        # Proxies that would collect the answer before they hand it on are told not to (nginx).
        headers = {"Content-Type": "text/event-stream; charset=utf-8", "X-Accel-Buffering": "no"}
        response = web.StreamResponse(headers=headers)
        await response.prepare(request)
        if request.transport is not None:
            request.transport.set_write_buffer_limits(high=_BUFFERED_BYTES)
        try:
            await self._write(response, f"retry: {_RETRY_MILLISECONDS}\n\n")
            await self._tell(response, self._resume(request))
        except (TimeoutError, ConnectionError):
            # Not closed in good order: that would wait for the client to take what it has not taken.
            if request.transport is not None:
                request.transport.abort()
        return response

    async def _tell(self, response: web.StreamResponse, since: int) -> None:
        while True:
            changes = self._board.changes(since)
            since = changes.upto
            for message in self._messages(changes):
                await self._write(response, message)
            await asyncio.sleep(self._pace.pause_seconds)
            await self._await_news(response, since)

    async def _await_news(self, response: web.StreamResponse, since: int) -> None:
        while True:
            try:
                async with asyncio.timeout(self._pace.beat_seconds):
                    return await self._board.wait(since)
            except TimeoutError:
                await self._write(response, "event: beat\ndata:\n\n")

    async def _write(self, response: web.StreamResponse, text: str) -> None:
        """Raises TimeoutError if the client does not take it."""
        async with asyncio.timeout(self._pace.slow_seconds):
            await response.write(text.encode())

    def _resume(self, request: web.Request) -> int:
        """The sequence number up to which a client that comes back knows everything; 0 if it must be told anew.

        A browser that connects again by itself says it in a header, a page that was told to in the query.
        """
        last = request.headers.get("Last-Event-ID") or request.query.get("last", "")
        epoch, _, number = last.partition("-")
        return int(number) if epoch == self._epoch and number.isdecimal() else 0

    def _messages(self, changes: Changes) -> Iterator[str]:
        """Changes in parts; a client that was told some of them only comes back for all."""
        title = {"title": self._site.title, "place": self._site.place}
        last = max(0, len(changes.rows) - 1) // ROWS_A_MESSAGE
        for part in range(last + 1):
            told: Document = {
                "reset": changes.reset and part == 0,
                "more": part < last,
                "rows": changes.rows[part * ROWS_A_MESSAGE : (part + 1) * ROWS_A_MESSAGE],
                "gone": changes.gone if part == last else (),
                "problems": [asdict(problem) for problem in changes.problems],
                "loading": changes.loading,
                **(title if changes.reset else {}),
            }
            known = f"id: {self._epoch}-{changes.upto}\n" if part == last else ""
            yield f"event: changes\n{known}data: {json.dumps(told, default=_wire, separators=(',', ':'))}\n\n"


def _wire(value: object) -> str:
    assert isinstance(value, datetime)
    return value.isoformat()


def _file(content: bytes, kind: str) -> _Handler:
    async def send(_request: web.Request) -> web.Response:
        return web.Response(body=content, content_type=kind, charset=None if kind.startswith("image") else "utf-8")

    return send


async def _add_slash(request: web.Request) -> web.Response:
    """The page's own paths are relative to a folder."""
    return web.Response(status=308, headers={"Location": f"{request.path.rpartition('/')[2]}/"})


def _guard(site: Site) -> Any:
    @web.middleware
    async def guard(request: web.Request, handler: _Handler) -> web.StreamResponse:
        name = name_asked_for(request.headers)
        if not is_ours(name, site):
            hint = f"allow it with --allow-host {name} (in the chart: dashboard.allowedHosts)"
            raise web.HTTPForbidden(text=f"this dashboard is not served by the name {name}: {hint}\n")
        return await handler(request)

    return guard


def name_asked_for(headers: Mapping[str, str]) -> str:
    """The Host header without its port."""
    host = headers.get("Host", "").lower()
    return host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host


def is_ours(name: str, site: Site) -> bool:
    """Whether it is an address, localhost, or a name that was allowed.

    An attacker's page can have its own name lead to our address, but not have a browser call that name an address.
    """
    if name in ("localhost", *site.names):
        return True
    try:
        ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True


async def _add_headers(_request: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(HEADERS)
    response.headers.pop("Server", None)
