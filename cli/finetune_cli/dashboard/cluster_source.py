"""Jobs and experiments of a cluster, listed and watched with the rights of whoever started the dashboard.

Two reads of the API server and nothing else: ``list`` and ``watch``.
"""

import json
import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any

from finetune_api.outcomes import ExitCode
from finetune_cli.cluster.api import Cluster, Document
from finetune_cli.cluster.errors import ClusterError
from finetune_cli.cluster.experiments import know_experiment
from finetune_cli.cluster.jobs import know
from finetune_cli.cluster.screen import what_next
from finetune_cli.dashboard.board import Board, Entry, Key, Problem
from finetune_cli.dashboard.details import experiment_detail, job_detail, spec_text
from finetune_cli.dashboard.rows import experiment_of, experiment_row, job_row, loss_of, unknown_row
from finetune_operator.kinds import FINE_TUNE_EXPERIMENT, FINE_TUNE_JOB, Kind

WATCH_SECONDS = 20
"""A watch is opened anew so often: an API server that hangs is noticed within a minute."""
PAUSE_SECONDS, REFUSED_SECONDS = 2.0, 15.0
"""Before the next try after a failure; longer where rights are missing, for somebody has to grant them first."""
Post = Callable[[Callable[[Board], None]], None]
"""Hands work to the event loop that the board belongs to."""


@dataclass(frozen=True)
class Scope:
    """What is listed in one request."""

    kind: Kind
    namespace: str | None
    """None: all of them."""

    @property
    def what(self) -> str:
        """For people."""
        return f"{self.kind.name}s in {f'namespace {self.namespace}' if self.namespace else 'all namespaces'}"

    def has(self, key: Key) -> bool:
        """Whether an object of this key is in it."""
        return key[0] == self.kind.name and self.namespace in (None, key[1])


def scopes(namespaces: Sequence[str] | None) -> list[Scope]:
    """All that is listed; None for all namespaces."""
    asked: Sequence[str | None] = [None] if namespaces is None else namespaces
    return [Scope(kind, namespace) for namespace in asked for kind in (FINE_TUNE_EXPERIMENT, FINE_TUNE_JOB)]


def start(cluster: Cluster, namespaces: Sequence[str] | None, post: Post) -> None:
    """Follow them for as long as the process lives, each in a thread of its own."""
    for scope in scopes(namespaces):
        watcher = Watcher(cluster, scope, post)
        threading.Thread(target=watcher.run, name=f"watch {scope.what}", daemon=True).start()


class Watcher:
    """Follows one scope."""

    def __init__(self, cluster: Cluster, scope: Scope, post: Post, pause: Callable[[float], Any] | None = None) -> None:
        self._cluster, self._scope, self._post = cluster, scope, post
        self._pause = pause or threading.Event().wait
        self._version = ""
        """Where to go on watching; empty if all must be listed anew."""
        self._heard: datetime | None = None
        self._is_content = False
        what = scope.what
        post(lambda board: board.expect(what))

    def run(self) -> None:
        """List and watch, for ever."""
        while True:
            self.step()

    def step(self) -> None:
        """List, or watch until the stream ends; tells the board of a failure, and waits before the next try."""
        version, self._version = self._version, ""
        try:
            self._version = self._watch(version) if version else self._list()
        except ClusterError as error:
            if error.status != HTTPStatus.GONE:  # what is gone is only the place in the stream
                self._complain(str(error))
                self._pause(PAUSE_SECONDS if error.code is ExitCode.RETRY else REFUSED_SECONDS)
        except Exception as error:  # noqa: BLE001 - were the thread to end, the page would grow old and not say so
            traceback.print_exc()
            self._complain(f"the dashboard failed, which nobody foresaw: {error!r}")
            self._pause(REFUSED_SECONDS)

    def _list(self) -> str:
        found = self._cluster.read_all(self._scope.kind, self._scope.namespace)
        entries = [entry_of(self._scope.kind, item) for item in found["items"]]
        self._post(lambda board: board.replace(entries, self._scope.has))
        self._hear()
        return str(found["metadata"]["resourceVersion"])

    def _watch(self, version: str) -> str:
        for event in self._cluster.watch(self._scope.kind, self._scope.namespace, version, WATCH_SECONDS):
            if event["type"] == "ERROR":
                self._pause(PAUSE_SECONDS / 10)
                return ""
            self._hear()
            version = event["object"]["metadata"]["resourceVersion"]
            self._tell(event)
        return version

    def _tell(self, event: Document) -> None:
        kind, item = self._scope.kind, event["object"]
        if event["type"] == "DELETED":
            key = (kind.name, item["metadata"]["namespace"], item["metadata"]["name"])
            self._post(lambda board: board.drop(key))
        elif event["type"] != "BOOKMARK":
            entry = entry_of(kind, item)
            self._post(lambda board: board.put(entry))

    def _complain(self, message: str) -> None:
        problem = Problem(self._scope.what, message, self._heard)
        self._is_content = False
        self._post(lambda board: board.complain(problem))

    def _hear(self) -> None:
        self._heard = datetime.now(UTC)
        if not self._is_content:
            self._is_content, what = True, self._scope.what
            self._post(lambda board: board.content(what))


def entry_of(kind: Kind, raw: Document) -> Entry:
    """An object of the API server; one of another version of the operator says so in its row."""
    metadata = raw["metadata"]
    metadata.pop("managedFields", None)
    text = json.dumps(raw).encode()
    """Much smaller than what it is parsed to."""
    key = (kind.name, metadata["namespace"], metadata["name"])
    try:
        row, loss = _row(kind, raw)
    except ClusterError as error:
        row, loss = unknown_row(kind.name, metadata, str(error)), None
    return Entry(key, row, lambda: {**row, **_detail(kind, json.loads(text))}, loss)


def _row(kind: Kind, raw: Document) -> tuple[Document, tuple[int, float] | None]:
    if kind is FINE_TUNE_JOB:
        known = know(raw)
        return job_row(known, experiment_of(raw["metadata"])), loss_of(known.status)
    return experiment_row(know_experiment(raw)), None


def _detail(kind: Kind, raw: Document) -> Document:
    name, namespace = raw["metadata"]["name"], raw["metadata"]["namespace"]
    try:
        if kind is FINE_TUNE_JOB:
            known = know(raw)
            logs = f"kubectl finetune logs {name} -n {namespace} --follow"
            return job_detail(known, datetime.now(UTC), what_next(known), logs)
        return experiment_detail(know_experiment(raw), namespace)
    except ClusterError as error:
        shown = {"spec": raw.get("spec"), "status": raw.get("status")}
        return {"headline": str(error), "spec": spec_text(shown)}
