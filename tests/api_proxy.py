"""A proxy between one operator and the API server: it counts, refuses, cuts, and strikes at a chosen write.

Everybody else (tests, controllers, kubectl) speaks to the API server itself.
"""

import asyncio
import json
import ssl
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from typing import Any

import aiohttp
import yaml
from aiohttp import web

WRITES = ("POST", "PUT", "PATCH", "DELETE")
_KEPT_HEADERS = ("Content-Type", "Retry-After")
_SENT_HEADERS = ("Accept", "Content-Type", "User-Agent")
_GONE = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 410, "reason": "Expired"}
_EXPIRED = json.dumps({"type": "ERROR", "object": {**_GONE, "message": "too old resource version"}}).encode() + b"\n"
_LONGEST_LINE = 2**21
"""No object is longer: etcd takes 1.5 MiB."""


@dataclass
class Call:
    """A request of the operator."""

    verb: str
    path: str
    query: dict[str, str]
    body: bytes = b""
    agent: str = ""
    """The client's name: the operator's own, or kopf's for watches and the lists before them."""
    number: int = 0
    """Of the writes without those of the Lease, from 1; 0 for what does not write."""
    status: int = 0
    """Of the answer; 0 if there was none."""
    answer: Any = field(default=None, repr=False)
    """The object that a write has got as its answer."""
    at: float = 0.0
    """When it came, in the loop's seconds, which are ``time.monotonic``'s."""

    @property
    def is_watch(self) -> bool:
        return "watch" in self.query

    @property
    def is_lease(self) -> bool:
        return "/leases" in self.path

    @property
    def is_write(self) -> bool:
        return self.verb in WRITES

    @property
    def plural(self) -> str:
        """``jobs``, and ``finetunejobs/status`` for a subresource."""
        parts = self.path.split("/namespaces/")[-1].split("/")[1:]
        return "/".join(parts[::2]) if len(parts) > 1 else parts[0]

    def __str__(self) -> str:
        return f"{self.verb} {self.plural}"


@dataclass(frozen=True)
class Refusal:
    """An answer that is not the API server's."""

    status: int
    reason: str = "Injected"
    headers: dict[str, str] = field(default_factory=dict)


Judge = Callable[[Call], Refusal | None]
Strike = Callable[[Call, str], bool]
"""(a write, "before" or "after" the API server gets it) → whether its connection is to be cut. It may block."""


class ApiProxy:
    """Listens on a port of loopback from the start until ``close``; ``kubeconfig`` leads there."""

    def __init__(self, cluster: Any, folder: Path) -> None:
        self.calls: list[Call] = []
        self.judge: Judge = lambda _call: None
        self.strike: Strike = lambda _call, _when: False
        self.page: int | None = None
        """Objects in a page of a list, in place of what is asked for."""
        self._cluster, self._url, self._writes, self._reachable = cluster, cluster.plane.url, 0, True
        self._expired: set[str] = set()
        self._watches: dict[web.StreamResponse, asyncio.Transport] = {}
        self._transports: set[asyncio.Transport] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        self._runner, port = self._do(self._open())
        self.kubeconfig = folder / f"proxy-{port}.kubeconfig"
        self.kubeconfig.write_text(yaml.safe_dump(_kubeconfig(f"http://127.0.0.1:{port}")))

    def disconnect(self) -> None:
        """Cut every connection, and every one that comes, until ``connect``."""
        self._reachable = False
        self._loop.call_soon_threadsafe(self._cut)

    def connect(self) -> None:
        """The API server can be reached again."""
        self._reachable = True

    def cut_watches(self) -> None:
        """Cut the connections of all watches."""
        self._do(self._end_watches(None))

    def expire_watches(self) -> None:
        """Tell all watches that their version is too old (410) and end them."""
        self._do(self._end_watches(_EXPIRED))

    def expire_next_watches(self) -> None:
        """Whoever goes on with a watch is told that its version is too old, until it has listed anew."""
        self._expired = {call.path for call in self.calls if call.is_watch}

    def writes(self, *, events: bool = False) -> list[Call]:
        """Writes that the API server has carried out, the Lease's left out, and so are events' unless asked for."""
        done = [call for call in list(self.calls) if call.number and 200 <= call.status < 300]
        return [call for call in done if events or call.plural != "events"]

    def close(self) -> None:
        """End it, and its connections."""
        self._do(self._shut())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _do(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _open(self) -> tuple[web.AppRunner, int]:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=trusted(self._cluster), limit=0),
            auto_decompress=False,
            read_bufsize=_LONGEST_LINE // 2,
        )
        application = web.Application(client_max_size=2**24)
        application.router.add_route("*", "/{path:.*}", self._handle)
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        return runner, runner.addresses[0][1]

    async def _shut(self) -> None:
        self._cut()
        await self._runner.cleanup()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        await self._session.close()
        await asyncio.sleep(0.25)  # TLS connections end a little later: aiohttp's documentation, "graceful shutdown"

    def _cut(self) -> None:
        for transport in self._transports:
            transport.abort()

    async def _end_watches(self, last: bytes | None) -> None:
        for watch, transport in list(self._watches.items()):
            with suppress(ConnectionError):  # it has just ended of itself
                if last is not None:
                    await watch.write(last)
            transport.close()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        if request.transport is not None:
            self._transports.add(request.transport)
        call = Call(request.method, request.path, dict(request.query), await request.read(), at=self._loop.time())
        call.agent = request.headers.get("User-Agent", "")
        self.calls.append(call)
        if not self._reachable:
            return _drop(request)
        if call.is_write and not call.is_lease:
            self._writes += 1
            call.number = self._writes
            if self.strike(call, "before"):
                return _drop(request)
        if call.path in self._expired:
            if call.is_watch:
                return web.Response(body=_EXPIRED, content_type="application/json")
            self._expired.discard(call.path)
        refusal = self.judge(call)
        if refusal is not None:
            call.status = refusal.status
            return _refused(refusal)
        return await self._forward(request, call)

    async def _forward(self, request: web.Request, call: Call) -> web.StreamResponse:
        query = {**call.query, "limit": str(self.page)} if self.page and "limit" in call.query else call.query
        headers = {name: request.headers[name] for name in _SENT_HEADERS if name in request.headers}
        url = self._url + request.raw_path.partition("?")[0]
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=5)
        try:
            async with self._session.request(
                call.verb, url, params=query, data=call.body or None, headers=headers, timeout=timeout
            ) as answer:
                call.status = answer.status
                if call.is_watch and answer.status == 200:
                    return await self._stream(request, answer)
                body = await answer.read()
        except (aiohttp.ClientError, OSError):
            return _drop(request)
        call.answer = json.loads(body) if call.number and answer.ok else None
        if call.number and self.strike(call, "after"):
            return _drop(request)
        kept = {name: answer.headers[name] for name in _KEPT_HEADERS if name in answer.headers}
        return web.Response(status=answer.status, body=body, headers=kept)

    async def _stream(self, request: web.Request, answer: aiohttp.ClientResponse) -> web.StreamResponse:
        watch = web.StreamResponse(headers={"Content-Type": "application/json"})
        await watch.prepare(request)
        if request.transport is None:
            return watch
        self._watches[watch] = transport = request.transport
        try:
            async for line in answer.content:  # chunks may end within an event, where none can expire
                await watch.write(line)
        except (aiohttp.ClientError, OSError):
            transport.abort()
        finally:
            del self._watches[watch]
            transport.close()
        return watch


def trusted(cluster: Any) -> ssl.SSLContext:
    """The cluster's administrator."""
    authority = cluster.plane.authority
    admin = authority.issue("admin", "admin", groups=("system:masters",))
    context = ssl.create_default_context(cafile=str(authority.root.certificate))
    context.load_cert_chain(admin.certificate, admin.key)
    return context


def _drop(request: web.Request) -> web.Response:
    if request.transport is not None:
        request.transport.abort()
    return web.Response()


def _refused(refusal: Refusal) -> web.Response:
    told = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "refused by the test"}
    body = {**told, "reason": refusal.reason, "code": refusal.status}
    return web.json_response(body, status=refusal.status, headers=refusal.headers)


def _kubeconfig(url: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "proxy",
        "contexts": [{"name": "proxy", "context": {"cluster": "proxy", "user": "nobody"}}],
        "clusters": [{"name": "proxy", "cluster": {"server": url}}],
        "users": [{"name": "nobody", "user": {}}],
    }
