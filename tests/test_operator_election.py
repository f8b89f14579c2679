"""The election: several replicas, one lease, clocks that the test turns, and a server that only keeps versions."""

import asyncio
import copy

import pytest

from finetune_operator.election import LEASE_SECONDS, POLL_SECONDS, RENEW_WITHIN_SECONDS, Elector
from finetune_operator.errors import ApiError
from finetune_operator.kinds import LEASE
from test_operator_schedule import Clock


class Server:
    """The Lease as the API server keeps it."""

    def __init__(self):
        self.lease = None
        self.down = False
        self.writes = 0

    async def get(self, kind, namespace, name):
        self._ask(kind)
        if self.lease is None:
            raise ApiError(404, "not found")
        return copy.deepcopy(self.lease)

    async def create(self, kind, namespace, manifest):
        self._ask(kind)
        if self.lease is not None:
            raise ApiError(409, "exists", "AlreadyExists")
        return self._store(manifest)

    async def replace(self, kind, manifest):
        self._ask(kind)
        if manifest["metadata"]["resourceVersion"] != self.lease["metadata"]["resourceVersion"]:
            raise ApiError(409, "conflict")
        return self._store(manifest)

    def _ask(self, kind):
        assert kind is LEASE
        if self.down:
            raise ApiError(0, "down")

    def _store(self, manifest):
        self.writes += 1
        self.lease = copy.deepcopy(manifest)
        self.lease["metadata"]["resourceVersion"] = str(self.writes)
        return self.lease

    @property
    def spec(self):
        return self.lease["spec"]


@pytest.fixture
def server():
    return Server()


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def stand(server, clock):
    return lambda identity: Elector(server, "ns", "lease", identity, clock=clock, now=clock.now)


def steps(*electors):
    for elector in electors:
        asyncio.run(elector.step())
    return [elector.is_leading for elector in electors]


def test_the_first_one_leads_and_stays(server, clock, stand):
    a, b = stand("a"), stand("b")
    assert steps(a, b) == [True, False]
    for _ in range(20):
        clock.seconds += 3
        assert steps(b, a) == [False, True]
    assert (server.spec["holderIdentity"], server.spec["leaseTransitions"]) == ("a", 0)


def test_when_it_dies_another_one_leads_within_twenty_seconds(server, clock, stand):
    a, b = stand("a"), stand("b")
    steps(a, b)
    died = clock.seconds
    while not steps(b)[0]:
        clock.seconds += POLL_SECONDS
    assert LEASE_SECONDS < clock.seconds - died <= LEASE_SECONDS + POLL_SECONDS
    assert (server.spec["holderIdentity"], server.spec["leaseTransitions"]) == ("b", 1)
    assert not a.is_leading
    assert steps(a) == [False]


def test_whoever_cannot_renew_stops_before_another_one_may_take_over(server, clock, stand):
    a, b = stand("a"), stand("b")
    steps(a, b)
    clock.seconds += RENEW_WITHIN_SECONDS - 0.1
    assert a.is_leading
    clock.seconds += 0.2
    assert not a.is_leading
    assert steps(b) == [False]
    server.down = True
    with pytest.raises(ApiError):
        steps(a)
    assert not a.is_leading


def test_two_that_take_it_at_once_do_not_both_have_it(server, clock, stand):
    a, b = stand("a"), stand("b")
    steps(a, b)
    clock.seconds += LEASE_SECONDS + 1
    stale = server.get

    async def together():
        seen = await stale(LEASE, "ns", "lease")

        async def get(*_):
            return copy.deepcopy(seen)

        server.get = get
        await b.step()
        with pytest.raises(ApiError):
            await a.step()

    asyncio.run(together())
    assert (b.is_leading, server.spec["holderIdentity"]) == (True, "b")


def test_released_it_is_free_at_once(server, clock, stand):
    a, b = stand("a"), stand("b")
    steps(a, b)
    asyncio.run(a.release())
    assert not a.is_leading
    assert steps(b) == [True]
    asyncio.run(a.release())
    assert server.spec["holderIdentity"] == "b"


def test_a_process_that_is_started_again_has_it_at_once(server, clock, stand):
    steps(stand("a"))
    assert steps(stand("a")) == [True]
    assert server.spec["leaseTransitions"] == 0
