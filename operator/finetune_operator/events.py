"""Events for ``kubectl describe``, posted in the background at a rate that leaves the API server alone.

Invariant: nothing waits for them and nothing depends on them; when too many are due, the newest are not posted.
"""

import asyncio
import logging
from dataclasses import dataclass
from datetime import datetime
from secrets import token_hex

from finetune_operator.actions import Event
from finetune_operator.api import Api, Document
from finetune_operator.bucket import TokenBucket
from finetune_operator.errors import OperatorError
from finetune_operator.kinds import BY_NAME, EVENT
from finetune_operator.names import MANAGER
from finetune_operator.schedule import Key

RATE = 20.0
"""Events a second."""
BURST = 50.0
WAITING = 20_000
"""So many wait at most: 4,000 jobs' whole lives."""
_NOTE_CHARACTERS = 1024
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Posting:
    """An event, and what it is about."""

    key: Key
    uid: str
    event: Event
    time: datetime


class EventPoster:
    """Posts events, one after the other."""

    def __init__(self, api: Api, bucket: TokenBucket, identity: str) -> None:
        self._api, self._bucket, self._identity = api, bucket, identity
        self._queue: asyncio.Queue[Posting] = asyncio.Queue(WAITING)

    def add(self, posting: Posting) -> None:
        """Have an event posted; it is dropped if too many wait."""
        try:
            self._queue.put_nowait(posting)
        except asyncio.QueueFull:
            _log.warning("Too many events are due: one of %s is dropped", posting.key.name)

    async def run(self) -> None:
        """Post until cancelled."""
        while True:
            posting = await self._queue.get()
            await asyncio.sleep(self._bucket.reserve_seconds())
            try:
                await self._api.create(EVENT, posting.key.namespace, build_event(posting, self._identity))
            except OperatorError as error:
                _log.debug("An event of %s could not be posted: %s", posting.key.name, error)


def build_event(posting: Posting, identity: str) -> Document:
    """The manifest (https://kubernetes.io/docs/reference/kubernetes-api/cluster-resources/event-v1/)."""
    key, event, kind = posting.key, posting.event, BY_NAME[posting.key.kind]
    return {
        "apiVersion": EVENT.api_version,
        "kind": EVENT.name,
        "metadata": {"name": f"{key.name}.{token_hex(8)}", "namespace": key.namespace},
        "eventTime": posting.time.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "reportingController": MANAGER,
        "reportingInstance": identity,
        "action": event.reason.value,
        "reason": event.reason.value,
        "regarding": {
            "apiVersion": kind.api_version,
            "kind": kind.name,
            "namespace": key.namespace,
            "name": key.name,
            "uid": posting.uid,
        },
        "note": event.message[:_NOTE_CHARACTERS],
        "type": event.type,
    }
