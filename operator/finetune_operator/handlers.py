"""kopf's part: it watches, and hands every event on. Nothing else of kopf is used.

Handlers of creation, deletion and time would write annotations, add finalizers and cost three patches an object
(https://docs.kopf.dev/en/stable/continuity/); ``on.event`` writes nothing.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import kopf
from kopf._core.reactor.inventory import ResourceMemories, ResourceMemory  # not exported, and 2 KB an object if left
from kubernetes.aio.client.configuration import Configuration

from finetune_operator.kinds import WATCHED, Kind
from finetune_operator.pods import Raw

SERVER_TIMEOUT_SECONDS = 300
"""A watch ends after this and goes on from where it was; a connection that died silently is noticed sooner."""
INACTIVITY_SECONDS = 90
"""The API server sends a bookmark a minute."""
IDLE_SECONDS = 0.1
"""kopf keeps a task for each object for so long after its last event."""
PAGE = 500
BACKOFF_SECONDS = (0.5, 1, 2, *[3] * 40)
"""Between tries while the API server cannot be reached or answers 5xx: two minutes in all, then the process ends; never
long, for a watch that comes back late is what everything waits for after an outage."""

Sink = Callable[[Kind, str | None, Raw], None]
"""(kind, ADDED, MODIFIED, DELETED or None for listed, the object)"""


class _NoMemories(ResourceMemories):
    """kopf remembers each object it sees, for handlers that we have none of."""

    async def recall(self, raw_body: Any, **_options: Any) -> ResourceMemory:  # noqa: ARG002 - kopf's signature
        return ResourceMemory()

    async def forget(self, raw_body: Any) -> None:
        """Nothing was kept."""


class _NoDiffs(kopf.DiffBaseStorage):
    """kopf compares each object with what it had seen before, for handlers that we have none of."""

    def build(self, **_options: Any) -> kopf.BodyEssence:
        return kopf.BodyEssence()

    def fetch(self, **_options: Any) -> None:
        return None

    def store(self, **_options: Any) -> None:
        """Nothing is kept."""


@dataclass(frozen=True)
class Course:
    """How far kopf has come."""

    ready: asyncio.Event = field(default_factory=asyncio.Event)
    """It has set itself up."""
    ending: asyncio.Event = field(default_factory=asyncio.Event)
    """It ends, for a watch cannot go on. Nothing is watched from now on, and it may never come to its end: a watch that
    it cancels while its request is under way can swallow that (1.45, ``api.stream``), and is waited for."""


def build_registry(sink: Sink, configuration: Configuration, course: Course) -> kopf.OperatorRegistry:
    """One handler a kind, all of which call ``sink``; and the credentials of ``configuration``."""
    registry = kopf.OperatorRegistry()
    for kind in WATCHED:
        kopf.on.event(kind.group, kind.version, kind.plural, id=kind.plural, registry=registry)(_handler(kind, sink))

    @kopf.on.login(registry=registry)
    async def login(**_options: Any) -> kopf.ConnectionInfo:
        return await _connection(configuration)

    @kopf.on.cleanup(registry=registry)
    async def clean_up(**_options: Any) -> None:
        course.ending.set()

    return registry


def build_settings() -> kopf.OperatorSettings:
    """Watches, and nothing besides."""
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.peering.standalone = True
    settings.scanning.disabled = True
    settings.process.ultimate_exiting_timeout = None
    settings.watching.server_timeout = SERVER_TIMEOUT_SECONDS
    settings.watching.inactivity_timeout = INACTIVITY_SECONDS
    settings.watching.chunk_size = PAGE
    settings.networking.error_backoffs = BACKOFF_SECONDS
    settings.queueing.idle_timeout = IDLE_SECONDS
    settings.persistence.diffbase_storage = _NoDiffs()
    for kind in WATCHED:
        if kind.selector:
            settings.watching.label_selectors[kind.group, kind.version, kind.plural] = kind.selector
    return settings


async def watch(sink: Sink, configuration: Configuration, namespaces: tuple[str, ...] | None, course: Course) -> None:
    """Watch until cancelled.

    Raises:
        Exception: A watch cannot go on; a new process is the cure.
    """
    await kopf.operator(
        registry=build_registry(sink, configuration, course),
        settings=build_settings(),
        memories=_NoMemories(),
        ready_flag=course.ready,
        standalone=True,
        clusterwide=namespaces is None,
        namespaces=namespaces or (),
    )


def _handler(kind: Kind, sink: Sink) -> Callable[..., Any]:
    async def handle(event: kopf.RawEvent, **_options: Any) -> None:
        sink(kind, event["type"], event["object"])

    return handle


async def _connection(configuration: Configuration) -> kopf.ConnectionInfo:
    header = await configuration.get_api_key_with_prefix("BearerToken", alias="authorization")
    scheme, _, token = header.rpartition(" ") if header else ("", "", "")
    return kopf.ConnectionInfo(
        server=configuration.host,
        ca_path=configuration.ssl_ca_cert,
        insecure=not configuration.verify_ssl,
        username=configuration.username or None,
        password=configuration.password or None,
        scheme=scheme or None,
        token=token or None,
        certificate_path=configuration.cert_file,
        private_key_path=configuration.key_file,
        proxy_url=configuration.proxy,
    )
