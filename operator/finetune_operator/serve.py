"""One replica, put together: watches fill the store and the queue, workers empty it while this replica leads.

It ends in three ways: asked to (SIGTERM: what is under way is finished, the lease released, exit code 0), because a
watch or a task of its own cannot go on (exit code 1: the pod is started again), or killed, at any moment.
"""

import asyncio
import contextlib
import logging
import os
import random
import signal
import threading
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import aiohttp
from kubernetes.aio.client.api_client import ApiClient
from kubernetes.aio.client.configuration import Configuration
from prometheus_client import start_http_server

from finetune_operator.api import Api, load_configuration
from finetune_operator.apply import Applier
from finetune_operator.bucket import TokenBucket
from finetune_operator.election import Elector
from finetune_operator.errors import ApiError, NotLeading
from finetune_operator.events import BURST, RATE, EventPoster
from finetune_operator.experiment_apply import ExperimentApplier
from finetune_operator.experiment_reconcile import ExperimentReconciler
from finetune_operator.gathering import GatheringSelector
from finetune_operator.handlers import Course, watch
from finetune_operator.health import BEAT_SECONDS, STUCK_SECONDS, Heart, serve_health
from finetune_operator.kinds import FINE_TUNE_EXPERIMENT, FINE_TUNE_JOB, POD, Kind
from finetune_operator.metrics import Metrics
from finetune_operator.observe import Observer
from finetune_operator.pods import Raw
from finetune_operator.progress import pull_report
from finetune_operator.queue import KeyedQueue
from finetune_operator.reconcile import LOOKS_A_SECOND, TURNS_TOLD_A_SECOND, Reconciler
from finetune_operator.records import key_of
from finetune_operator.resync import Resync
from finetune_operator.schedule import Key
from finetune_operator.settings import Settings
from finetune_operator.starts import Starts
from finetune_operator.store import Store

WORKERS = 32
"""Jobs and experiments that are looked at at a time; each look makes its requests one after the other."""
PROGRESS_WRITES_A_SECOND = 20.0
ASKS_A_SECOND = 2.0
STOP_SECONDS = 8.0
"""What is under way when asked to end gets so long."""
END_SECONDS = 2.0
"""kopf gets so long to end once the lease is released."""
_log = logging.getLogger(__name__)


@dataclass
class Replica:
    """What the tasks of one process share."""

    settings: Settings
    store: Store
    queue: KeyedQueue
    metrics: Metrics
    elector: Elector
    resync: Resync
    reconcilers: dict[str, Reconciler | ExperimentReconciler]
    """By kind."""
    starts: Starts
    selector: GatheringSelector
    """The event loop's."""
    events: EventPoster
    heart: Heart
    stopping: bool = False
    missed: bool = False
    """Something was to be done while this replica might not."""

    @property
    def may_write(self) -> bool:
        """Whether this replica is the one that writes."""
        return not self.settings.leader_election or self.elector.is_leading

    def sink(self, kind: Kind, event: str | None, raw: Raw) -> None:
        """Take an event of a watch."""
        if event == "DELETED":
            self.resync.note_deleted(raw["metadata"]["uid"])
            keys = self.store.lose(kind, raw)
        else:
            keys = self.store.see(kind, raw)
        self.resync.note_event(kind, raw["metadata"].get("namespace"), listed=event is None)
        for key in keys:
            self.queue.add(key)
        job = key_of(raw) if kind is POD else None
        if job is not None:
            self.starts.settle(job)

    async def work(self) -> None:
        """Look at one job after the other, until asked to stop."""
        await self.resync.synced.wait()
        while True:
            key, waited = await self.queue.get()
            if self.stopping:
                return
            self.metrics.wait_seconds.observe(waited)
            await self._look(key)
            await asyncio.sleep(0)  # a look may wait for nothing: what comes in meanwhile has its turn

    async def _look(self, key: Key) -> None:
        if not self.may_write:
            self.missed = True
            self.queue.done(key)
            return
        began = time.monotonic()
        try:
            again = await self.reconcilers[key.kind].reconcile(key)
        except (ApiError, NotLeading) as error:
            delay = self.queue.failed(key, getattr(error, "retry_after_seconds", 0.0))
            _log.warning("%s: %s; again in %.1f s", key, error, delay)
            result = "retried"
        except Exception:  # noqa: BLE001 - one job's bad luck must not be that of all others
            _log.exception("%s: a bug; it is looked at again in %.1f s", key, self.queue.failed(key))
            result = "bug"
        else:
            self.queue.done(key, again)
            _log.debug("%s: looked at, again in %s s", key, again)
            result = "done"
        self.metrics.reconcile_seconds.labels(result).observe(time.monotonic() - began)

    async def beat(self) -> None:
        """Show that the event loop turns; once this replica leads, catch up with what it has let pass."""
        while True:
            self.heart.beat()
            self.metrics.leading.set(self.may_write)
            self.starts.settle_overdue()
            self.selector.gathers = self.starts.is_crowded()
            if self.missed and self.may_write:
                self.missed = False
                for key in self.store.everything():
                    self.queue.add(key)
            await asyncio.sleep(BEAT_SECONDS)

    def health_fault(self) -> str | None:
        """What is wrong with this process, if something is."""
        if self.heart.is_stale():
            return "the event loop hangs"
        return "no job is being looked at" if self.queue.is_stuck(STUCK_SECONDS) else None

    def readiness_fault(self) -> str | None:
        """Why it is not ready, if it is not."""
        return None if self.resync.synced.is_set() else "not everything has been read yet"


def assemble(
    settings: Settings, selector: GatheringSelector, client: ApiClient, session: aiohttp.ClientSession
) -> Replica:
    """All parts of a replica, connected."""
    clock, metrics = time.monotonic, Metrics()
    elector = Elector(
        Api(client, told=metrics.count_request), settings.lease_namespace, settings.lease_name, settings.identity
    )
    may_write = (lambda: elector.is_leading) if settings.leader_election else (lambda: True)
    api = Api(client, may_write=may_write, told=metrics.count_request)
    store, queue = Store(utc_now), KeyedQueue(jitter=random.random)
    events = EventPoster(api, TokenBucket(RATE, BURST, clock), settings.identity)
    pulls = TokenBucket(LOOKS_A_SECOND, LOOKS_A_SECOND, clock)
    asks = TokenBucket(ASKS_A_SECOND, 5 * ASKS_A_SECOND, clock)
    observer = Observer(store, api, lambda address: pull_report(session, address), pulls, asks, utc_now, clock)
    applier = Applier(store, api, settings.progress_readers, queue.add)
    writes = TokenBucket(PROGRESS_WRITES_A_SECOND, 5 * PROGRESS_WRITES_A_SECOND, clock)
    turns = TokenBucket(TURNS_TOLD_A_SECOND, TURNS_TOLD_A_SECOND, clock)
    starts = Starts(queue.add, store.is_shared, lambda *call: asyncio.get_running_loop().call_later(*call))
    reconcilers: dict[str, Reconciler | ExperimentReconciler] = {
        FINE_TUNE_JOB.name: Reconciler(
            store, observer, applier, events, metrics, writes, turns, starts, utc_now, clock
        ),
        FINE_TUNE_EXPERIMENT.name: ExperimentReconciler(
            store, ExperimentApplier(store, api, queue.add), events, writes, utc_now
        ),
    }
    resync = Resync(store, api, settings.namespaces, queue.add, queue.add_forgotten, starts.is_crowded)
    metrics.watch_phases("jobs", "FineTuneJobs by phase.", lambda: dict(store.phases))
    metrics.watch_phases("experiments", "FineTuneExperiments by phase.", lambda: dict(store.experiments.phases))
    metrics.watch("queue_depth", "Jobs that are due and wait to be looked at.", lambda: queue.depth)
    metrics.watch("queue_oldest_seconds", "How long the first of them has waited.", lambda: queue.oldest_seconds)
    return Replica(settings, store, queue, metrics, elector, resync, reconcilers, starts, selector, events, Heart())


async def serve(settings: Settings, selector: GatheringSelector) -> None:
    """Run one replica until it is asked to end.

    Raises:
        Exception: It cannot go on.
    """
    stop = asyncio.Event()
    configuration = await load_configuration()
    async with ApiClient(configuration) as client, aiohttp.ClientSession(trust_env=False) as session:
        replica = assemble(settings, selector, client, session)
        servers = (
            serve_health(
                settings.bind_address,
                settings.health_port,
                {"/healthz": replica.health_fault, "/readyz": replica.readiness_fault},
            ),
            start_http_server(settings.metrics_port, settings.bind_address or "0.0.0.0", replica.metrics.registry)[0],  # noqa: S104
        )
        try:
            await _run(replica, configuration, stop)
        finally:
            for server in servers:
                server.shutdown()
                server.server_close()


async def _run(replica: Replica, configuration: Configuration, stop: asyncio.Event) -> None:
    """Run every task until ``stop`` is set or one of them ends, which none does of itself."""
    workers = [asyncio.create_task(replica.work(), name=f"worker {number}") for number in range(WORKERS)]
    loops: list[Coroutine[Any, Any, None]] = [replica.resync.run(), replica.events.run(), replica.beat()]
    if replica.settings.leader_election:
        loops.append(replica.elector.run())
    tasks = [*workers, *(asyncio.create_task(loop) for loop in loops)]
    # Last: kopf takes every task that begins after it for one of its own, and ends it when it ends.
    course, ended = Course(), asyncio.create_task(stop.wait())
    handling = asyncio.create_task(_handle_signals(stop, course.ready))
    blind = asyncio.create_task(_await_ending(course))
    watching = asyncio.create_task(watch(replica.sink, configuration, replica.settings.namespaces, course), name="kopf")
    try:
        done, _ = await asyncio.wait([*tasks, watching, blind, ended], return_when=asyncio.FIRST_COMPLETED)
        replica.stopping = True
        await _finish(replica)
        if ended not in done:
            await _raise_from(done, watching)
    finally:
        await _cancel([*tasks, blind, handling])
        await replica.elector.release()
        _end_soon(0 if ended.done() else 1)
        await _cancel([watching])


async def _handle_signals(stop: asyncio.Event, ready: asyncio.Event) -> None:
    """SIGTERM and SIGINT set ``stop``: from the start, and again once kopf, which has them end itself, is ready."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await ready.wait()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)


def _end_soon(code: int) -> None:
    """End the process with this code unless it ends of itself: what swallows its cancellation is not waited for."""
    deadline = threading.Timer(END_SECONDS, os._exit, (code,))
    deadline.daemon = True
    deadline.start()


async def _await_ending(course: Course) -> None:
    """Raise once kopf ends."""
    await course.ending.wait()
    raise RuntimeError("a watch cannot go on, for the reason that kopf has told")


async def _raise_from(done: set[asyncio.Task[Any]], watching: asyncio.Task[None]) -> None:
    """Raise what ended the tasks. One that was cancelled is the victim of kopf, which is about to tell why it ends."""
    for task in done:
        if not task.cancelled():
            task.result()
    await asyncio.wait_for(watching, STOP_SECONDS)
    raise RuntimeError(f"{', '.join(task.get_name() for task in done)} ended")


async def _finish(replica: Replica) -> None:
    """Wait for the looks that are under way."""
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(replica.queue.wait_idle(), STOP_SECONDS)


async def _cancel(tasks: list[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    for task in tasks:
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await task


def utc_now() -> datetime:
    """The present time."""
    return datetime.now(UTC)
