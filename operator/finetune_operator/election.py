"""Which replica may write: the one that holds the Lease (https://kubernetes.io/docs/concepts/architecture/leases/).

Invariants: whoever holds it stops writing RENEW_WITHIN_SECONDS after its last renewal by its own clock, which is before
any other may take it; that other waits LEASE_SECONDS from when it saw the lease change last, by its own clock as well,
so clocks need not agree. Taking it over when its holder is killed lasts LEASE_SECONDS + POLL_SECONDS at most.
"""

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus

from finetune_operator.api import Api, Document
from finetune_operator.errors import ApiError
from finetune_operator.kinds import LEASE

LEASE_SECONDS = 15
RENEW_WITHIN_SECONDS = 10.0
RENEW_SECONDS = 3.0
POLL_SECONDS = 2.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Seen:
    """A lease as it was when it last changed."""

    holder: str
    renewed: str
    at: float
    """When that was seen, by our own clock."""


def may_take(seen: Seen, identity: str, now: float) -> bool:
    """Whether the lease is ours, free, or has not been renewed for as long as it lasts."""
    return seen.holder in ("", identity) or now - seen.at > LEASE_SECONDS


class Elector:
    """Takes the lease when it may be taken, and keeps it."""

    def __init__(
        self,
        api: Api,
        namespace: str,
        name: str,
        identity: str,
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Stand for election as ``identity``, which no other process may have at the same time."""
        self._api, self._namespace, self._name, self._identity = api, namespace, name, identity
        self._clock, self._now = clock, now
        self._renewed: float | None = None
        self._seen: Seen | None = None

    @property
    def is_leading(self) -> bool:
        """Whether the lease is surely ours at this moment."""
        return self._renewed is not None and self._clock() - self._renewed < RENEW_WITHIN_SECONDS

    async def run(self) -> None:
        """Stand for election until cancelled."""
        while True:
            led = self.is_leading
            try:
                await asyncio.wait_for(self.step(), RENEW_WITHIN_SECONDS / 2)
            except (ApiError, TimeoutError) as error:
                _log.warning("The lease could not be had: %s", error or "no answer in time")
            if self.is_leading and not led:
                _log.info("%s leads", self._identity)
            elif led and not self.is_leading:
                _log.warning("%s leads no more", self._identity)
            pause = RENEW_SECONDS if self.is_leading else POLL_SECONDS
            await asyncio.sleep(pause * random.uniform(0.8, 1.0))  # noqa: S311 - no secret

    async def step(self) -> None:
        """Read the lease, and take or renew it if that is allowed.

        Raises:
            ApiError: It could not be read or written; somebody else may have been faster.
        """
        # Counted from before the write: the others count from after it.
        began = self._clock()
        try:
            lease = await self._api.get(LEASE, self._namespace, self._name)
        except ApiError as error:
            if error.status != HTTPStatus.NOT_FOUND:
                raise
            await self._api.create(LEASE, self._namespace, self._build(None))
        else:
            if not may_take(self._look_at(lease), self._identity, self._clock()):
                self._renewed = None
                return
            await self._api.replace(LEASE, self._build(lease))
        self._renewed = began

    async def release(self) -> None:
        """Let another one have it at once."""
        if self._renewed is None:
            return
        self._renewed = None
        with contextlib.suppress(ApiError):
            lease = await self._api.get(LEASE, self._namespace, self._name)
            if lease["spec"].get("holderIdentity") == self._identity:
                lease["spec"]["holderIdentity"] = ""
                await self._api.replace(LEASE, lease)

    def _look_at(self, lease: Document) -> Seen:
        spec = lease.get("spec") or {}
        holder, renewed = str(spec.get("holderIdentity") or ""), str(spec.get("renewTime") or "")
        if self._seen is None or (self._seen.holder, self._seen.renewed) != (holder, renewed):
            self._seen = Seen(holder, renewed, self._clock())
        return self._seen

    def _build(self, lease: Document | None) -> Document:
        spec = (lease or {}).get("spec") or {}
        now = self._now().strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        is_ours = spec.get("holderIdentity") == self._identity
        transitions = int(spec.get("leaseTransitions") or 0)
        version = {"resourceVersion": lease["metadata"]["resourceVersion"]} if lease else {}
        return {
            "apiVersion": LEASE.api_version,
            "kind": LEASE.name,
            "metadata": {"name": self._name, "namespace": self._namespace, **version},
            "spec": {
                "holderIdentity": self._identity,
                "leaseDurationSeconds": LEASE_SECONDS,
                "acquireTime": spec.get("acquireTime", now) if is_ours else now,
                "renewTime": now,
                "leaseTransitions": transitions if is_ours or lease is None else transitions + 1,
            },
        }
