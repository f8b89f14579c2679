"""kopf's part: its watch streams, which go on after every cut, and hand each event on. Nothing else of kopf is used.

Handlers of creation, deletion and time would write annotations, add finalizers and cost three patches an object
(https://docs.kopf.dev/en/stable/continuity/). ``on.event`` writes nothing, but makes a queue, a task, three loggers and
a look for changes of each event, which was a quarter of the operator's CPU; so its streams are read as they are.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field

import kopf
from kopf._cogs.clients.watching import Bookmark, infinite_watch  # not exported, like the two below
from kopf._cogs.structs.references import NamespaceName, Resource
from kubernetes.aio.client.configuration import Configuration

from finetune_operator.kinds import WATCHED, Kind
from finetune_operator.pods import Raw

SERVER_TIMEOUT_SECONDS = 300
"""A watch ends after this and goes on from where it was; a connection that died silently is noticed sooner."""
INACTIVITY_SECONDS = 90
"""The API server sends a bookmark a minute."""
PAGE = 500
BACKOFF_SECONDS = (0.5, 1, 2, *[3] * 40)
"""Between tries while the API server cannot be reached or answers 5xx: two minutes in all, then the process ends; never
long, for a watch that comes back late is what everything waits for after an outage."""

_log = logging.getLogger(__name__)
Sink = Callable[[Kind, str | None, Raw], None]
"""(kind, ADDED, MODIFIED, DELETED or None for listed, the object)"""


@dataclass(frozen=True)
class Course:
    """How far kopf has come."""

    ready: asyncio.Event = field(default_factory=asyncio.Event)
    """It has set itself up."""
    ending: asyncio.Event = field(default_factory=asyncio.Event)
    """It ends, for a watch cannot go on. Nothing is watched from now on, and it may never come to its end: a watch that
    it cancels while its request is under way can swallow that (1.45, ``api.stream``), and is waited for."""


def build_registry(configuration: Configuration, course: Course) -> kopf.OperatorRegistry:
    """The credentials of ``configuration``, and who is told of the end."""
    registry = kopf.OperatorRegistry()

    @kopf.on.login(registry=registry)
    async def login(**_options: object) -> kopf.ConnectionInfo:
        return await _connection(configuration)

    @kopf.on.cleanup(registry=registry)
    async def clean_up(**_options: object) -> None:
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
    for kind in WATCHED:
        if kind.selector:
            settings.watching.label_selectors[kind.group, kind.version, kind.plural] = kind.selector
    return settings


async def watch(sink: Sink, configuration: Configuration, namespaces: tuple[str, ...] | None, course: Course) -> None:
    """Watch until cancelled.

    Raises:
        Exception: A watch cannot go on; a new process is the cure.
    """
    settings = build_settings()
    await kopf.operator(
        registry=build_registry(configuration, course),
        settings=settings,
        ready_flag=course.ready,
        standalone=True,
        clusterwide=namespaces is None,
        namespaces=namespaces or (),
        _command=_watch_all(sink, namespaces, settings),
    )


async def _watch_all(sink: Sink, namespaces: tuple[str, ...] | None, settings: kopf.OperatorSettings) -> None:
    """A stream a kind and namespace; one that cannot go on ends them all."""
    async with asyncio.TaskGroup() as streams:
        for kind in WATCHED:
            for namespace in (namespaces or (None,)) if kind.namespaced else (None,):
                streams.create_task(_watch(kind, namespace, sink, settings), name=f"watch {kind.plural} {namespace}")


async def _watch(kind: Kind, namespace: str | None, sink: Sink, settings: kopf.OperatorSettings) -> None:
    resource = Resource(kind.group, kind.version, kind.plural, namespaced=kind.namespaced)
    where = None if namespace is None else NamespaceName(namespace)
    async for event in infinite_watch(settings=settings, resource=resource, namespace=where):
        if isinstance(event, Bookmark) or event["type"] == "BOOKMARK":
            continue
        try:
            sink(kind, event["type"], event["object"])
        except Exception:  # noqa: BLE001 - one object that nobody can read must not make the operator blind
            _log.exception("An event of a %s could not be taken in", kind.name)


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
