"""How many first attempts of a namespace are under way: made by us, and their pods not yet made by Kubernetes.

Kubernetes' Job controller serves whoever came first, and a control plane under full load is slow for everybody. So
where tenants share a cluster, each has one under way at a time and rests after it, the longer the slower the control
plane was, and far longer who floods it; the others wait here, where tenants take turns (see schedule). A tenant who has
the cluster for himself waits for nobody.

Invariant: no key is forgotten: one that was told to wait is handed to ``enqueue`` when its turn has come.
"""

import time
from collections import OrderedDict, deque
from collections.abc import Callable
from functools import partial

from finetune_operator.schedule import Key

CROWD = 64
"""So many under way, of all namespaces, are a burst; or so many within CALM_SECONDS whose pods come late."""
FLOOD = 4
"""So many that wait, of one namespace, are a flood."""
REST, REST_IN_FLOOD = 1.0, 16.0
"""Of a namespace that is not alone, after each start: so many times as long as it took."""
GIVE_WAY_SECONDS, GIVE_WAY_TIMES = 0.05, 20
"""Who floods then lets others that are under way end first: it asks so often whether they have."""
CALM_SECONDS = 20.0
"""A burst is over so long after there were last so many: their pods have yet to run."""
PATIENCE_SECONDS = 5.0
"""Pods that are not there by then (a quota, a policy) hold nobody up any longer."""
LATE_LOOKS = 2
"""So many of those are looked at each time: about no more can Kubernetes be asked, and in a burst it is but behind."""


class Starts:
    """Who may start, and who waits."""

    def __init__(
        self,
        enqueue: Callable[[Key], None],
        is_shared: Callable[[str], bool],
        call_later: Callable[[float, Callable[[], None]], object],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Nobody waits yet.

        Args:
            enqueue: Gets a key that waited, once it may start.
            is_shared: Whether others than this namespace have jobs, too.
            call_later: Calls back after so many seconds, as an event loop's.
            clock: Seconds.
        """
        self._enqueue, self._is_shared, self._call_later, self._clock = enqueue, is_shared, call_later, clock
        self._under_way: dict[str, OrderedDict[Key, float]] = {}
        self._waiting: dict[str, OrderedDict[Key, None]] = {}
        self._resting: set[str] = set()
        self._late: set[Key] = set()
        """Given up on, and their pods have yet to be made."""
        self._came_late: deque[float] = deque(maxlen=CROWD)
        """When the pods of the last of those were made."""
        self._crowded_until = clock()

    def admit(self, key: Key) -> bool:
        """Whether it may start now; if not, it is told when it may."""
        now, namespace = self._clock(), key.namespace
        if key not in self._under_way.get(namespace, ()):
            if not self._has_room(namespace):
                self._waiting.setdefault(namespace, OrderedDict())[key] = None
                return False
            self._under_way.setdefault(namespace, OrderedDict())[key] = now
        if sum(map(len, self._under_way.values())) > CROWD:
            self._crowded_until = now + CALM_SECONDS
        return True

    def is_crowded(self) -> bool:
        """Whether there is a burst: what is not for new jobs had better wait."""
        return self._clock() < self._crowded_until

    @property
    def waiting(self) -> int:
        """How many wait for their turn."""
        return sum(map(len, self._waiting.values()))

    def settle(self, key: Key) -> None:
        """Its pods are there, or none of it is under way any more: the next one may start after a rest."""
        if key in self._late:
            self._note_late(key)
        since = self._end(key)
        if since is None:
            return
        if self._is_shared(key.namespace):
            self._resting.add(key.namespace)
            floods = len(self._waiting.get(key.namespace, ())) > FLOOD
            rest = (REST_IN_FLOOD if floods else REST) * (self._clock() - since)
            self._call_later(rest, partial(self._end_rest, key.namespace, GIVE_WAY_TIMES if floods else 0))
        else:
            self._hand_on(key.namespace)

    def settle_overdue(self) -> None:
        """Give up on those that have had PATIENCE_SECONDS; of a few it is looked at why they have no pods."""
        overdue = self._clock() - PATIENCE_SECONDS
        late = [key for keys in self._under_way.values() for key, since in keys.items() if since <= overdue]
        for key in late:
            self._end(key)
            self._late.add(key)
            self._hand_on(key.namespace)
        for key in late[:LATE_LOOKS]:
            self._enqueue(key)

    def _note_late(self, key: Key) -> None:
        """Its pods are made after all: Kubernetes is behind with many, or something has held up this one."""
        now = self._clock()
        self._late.discard(key)
        self._came_late.append(now)
        if len(self._came_late) == CROWD and now - self._came_late[0] < CALM_SECONDS:
            self._crowded_until = now + CALM_SECONDS

    def _end_rest(self, namespace: str, times: int) -> None:
        """It may go on, but gives way so many times: a start beside another one slows both."""
        if times and self._under_way:
            self._call_later(GIVE_WAY_SECONDS, partial(self._end_rest, namespace, times - 1))
        else:
            self._hand_on(namespace)

    def _end(self, key: Key) -> float | None:
        """Since when it was under way."""
        under_way = self._under_way.get(key.namespace, OrderedDict())
        since = under_way.pop(key, None)
        if since is not None and not under_way:
            del self._under_way[key.namespace]
        return since

    def _hand_on(self, namespace: str) -> None:
        """A place is kept for the one that is told, until it settles: it may have no more use for it."""
        self._resting.discard(namespace)
        waiting = self._waiting.get(namespace)
        while waiting and self._has_room(namespace):
            key, _ = waiting.popitem(last=False)
            self._under_way.setdefault(namespace, OrderedDict())[key] = self._clock()
            self._enqueue(key)
        if waiting is not None and not waiting:
            del self._waiting[namespace]

    def _has_room(self, namespace: str) -> bool:
        if not self._is_shared(namespace):
            return True
        return namespace not in self._under_way and namespace not in self._resting
