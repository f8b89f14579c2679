"""The whole truth, read now and then: what the watches do not tell is that something was deleted while they were cut.

Invariant: only what was known before the list was begun, and is not in it, is gone.

It also notices a watch that is deaf: lists have news of its kind, time and again, and it tells of none.
"""

import asyncio
import logging
import random
import time
from collections.abc import Callable
from http import HTTPStatus

from finetune_operator.api import Api
from finetune_operator.errors import ApiError, DeafWatch
from finetune_operator.kinds import WATCHED, Kind
from finetune_operator.pods import Raw
from finetune_operator.schedule import Key
from finetune_operator.store import Store

INTERVAL_SECONDS = 300.0
BURST_INTERVALS = 3
"""While there is a burst, everything is read again only after so many of them: the API server has other work."""
STARTING_SECONDS = 30.0
"""The watches' own first lists come within this, even of very many objects."""
AFTER_RELIST_SECONDS = 3.0
"""A watch that had to start anew may have missed deletions: looked after at once, but once for all watches."""
FIRST_BACKOFF_SECONDS = 0.5
MAX_BACKOFF_SECONDS = 10.0
"""Before a kind that could not be read is tried again: one request a replica, and all jobs wait for it at the start."""
PAGE, REST = 100, 4.0
"""Once everything has been read, it is read again in smaller pages, each followed by a rest so many times as long as it
took: on a cluster with 10,000 pods the API server is busy with them for seconds, and nobody waits for this."""
LONGEST_REST_SECONDS = 0.5
"""A page that took long because the API server was away tells nothing of how busy it is."""
LEISURE_SECONDS = 120.0
"""So long there are rests while a kind is read: where a list goes on is forgotten after five minutes."""
DEAF_SECONDS = 180.0
"""Two lists so far apart have news, and a watch has told of nothing meanwhile: longer than one that was cut, or is
silent, is given to begin anew."""
_log = logging.getLogger(__name__)


class Resync:
    """Reads everything again."""

    def __init__(
        self,
        store: Store,
        api: Api,
        namespaces: tuple[str, ...] | None,
        enqueue: Callable[[Key], None],
        enqueue_forgotten: Callable[[Key], None],
        is_crowded: Callable[[], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Read into the store.

        Args:
            store: What is known.
            api: Is asked.
            namespaces: Are read; None for all of them.
            enqueue: Gets the jobs that may be affected by what is found.
            enqueue_forgotten: Gets all others, which are to be looked at unless a time for that is set.
            is_crowded: Whether there is a burst of new jobs.
            clock: Seconds.
        """
        self._store, self._api = store, api
        self._enqueue, self._enqueue_forgotten, self._is_crowded = enqueue, enqueue_forgotten, is_crowded
        self._namespaces: tuple[str | None, ...] = namespaces or (None,)
        self._wanted = asyncio.Event()
        self._clock, self._synced_at = clock, 0.0
        self._going: set[tuple[str, str | None]] = set()
        """Watches (kind and namespace) that have told of changes, and so are beyond their list."""
        self._untold: dict[tuple[str, str | None], float] = {}
        """Since when lists have news of a watch's objects and it tells of none, by kind and watched namespace."""
        self._deleted: set[str] = set()
        """Uids of what was deleted since a list was begun: its later pages may have them yet."""
        self.synced = asyncio.Event()
        """Set once everything has been read for the first time."""

    def note_event(self, kind: Kind, namespace: str | None, *, listed: bool) -> None:
        """A watch tells of an object: a change, or, if it could not go on and lists anew, that it is ``listed``.

        Unless that is the watch's first list, everything is read again soon.
        """
        self._untold.pop(self._watch_of(kind, namespace), None)
        watch = kind.name, namespace
        if not listed:
            self._going.add(watch)
        elif self.synced.is_set() and (watch in self._going or self._clock() - self._synced_at > STARTING_SECONDS):
            self._going.discard(watch)
            self._wanted.set()

    def note_deleted(self, uid: str) -> None:
        """A watch tells that an object is gone."""
        self._deleted.add(uid)

    async def run(self) -> None:
        """Read everything again and again, until cancelled.

        Raises:
            ApiError: There is no such kind, or no right to it, and never was: waiting would hide that.
            DeafWatch: A watch does not tell what happens; a new process is the cure.
        """
        while True:
            await self.step()
            await self._pause()

    async def step(self) -> None:
        """Read everything once, and have every job and experiment looked at that would not be anyway."""
        self._wanted.clear()
        for kind in WATCHED:
            await self._read_patiently(kind)
        self._store.purge()
        self._synced_at = self._synced_at or self._clock()
        self.synced.set()
        for key in self._store.everything():
            self._enqueue_forgotten(key)

    async def _read_patiently(self, kind: Kind) -> None:
        """Read one kind, again and again until it can be read; the kinds before it are not read again for that."""
        backoff = FIRST_BACKOFF_SECONDS
        while True:
            try:
                return await self._read(kind)
            except ApiError as error:
                if not self.synced.is_set() and error.status in (HTTPStatus.NOT_FOUND, HTTPStatus.FORBIDDEN):
                    raise
                _log.warning("Not everything could be read: %s", error)
                await asyncio.sleep(max(error.retry_after_seconds, backoff))
                backoff = min(2 * backoff, MAX_BACKOFF_SECONDS)

    async def _read(self, kind: Kind) -> None:
        """Read one kind."""
        self._deleted.clear()
        before = dict(self._store.known(kind))
        found = await self._list(kind)
        for uid, key in before.items():
            if uid not in found:
                for affected in self._store.drop(kind, uid, key):
                    self._enqueue(affected)

    async def _list(self, kind: Kind) -> set[str]:
        found: set[str] = set()
        leisure_until = self._clock() + LEISURE_SECONDS
        rest, query = (REST, {"limit": str(PAGE)}) if self.synced.is_set() else (0.0, {})
        for namespace in self._namespaces if kind.namespaced else (None,):
            has_news, began = False, self._clock()
            async for page in self._api.pages(kind, namespace, **query):
                for raw in page:
                    uid = raw["metadata"]["uid"]
                    has_news |= uid not in self._deleted and self._take(kind, raw)
                    found.add(uid)
                now = self._clock()
                await asyncio.sleep(min(rest * (now - began), LONGEST_REST_SECONDS) if now < leisure_until else 0)
                began = self._clock()
            self._listen(kind, namespace, has_news=has_news)
        return found

    def _take(self, kind: Kind, raw: Raw) -> bool:
        """Take an object in; whether it is news, of which the watch has not told (yet)."""
        keys = self._store.see(kind, raw)
        for key in keys:
            self._enqueue(key)
        return bool(keys)

    def _listen(self, kind: Kind, namespace: str | None, *, has_news: bool) -> None:
        watch = self._watch_of(kind, namespace)
        if not has_news:
            self._untold.pop(watch, None)
            return
        if self._clock() - self._untold.setdefault(watch, self._clock()) >= DEAF_SECONDS:
            raise DeafWatch(f"{kind.plural} have changed again and again, and their watch has not told")

    def _watch_of(self, kind: Kind, namespace: str | None) -> tuple[str, str | None]:
        """The watch that tells of this kind in this namespace: one for all, or one for each that is served."""
        return kind.name, None if self._namespaces == (None,) else namespace

    async def _pause(self) -> None:
        """Until everything is to be read again: soon where a watch has begun anew, else once no burst is on."""
        for _ in range(BURST_INTERVALS):
            try:
                seconds = INTERVAL_SECONDS * random.uniform(0.8, 1.2)  # noqa: S311 - no secret
                await asyncio.wait_for(self._wanted.wait(), seconds)
            except TimeoutError:
                if not self._is_crowded():
                    return
            else:
                await asyncio.sleep(AFTER_RELIST_SECONDS)
                return
