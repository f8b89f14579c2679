"""The operator's event loop: in a burst what comes close together is handled together, else nothing waits."""

import asyncio
import selectors
import socket

import pytest

from finetune_operator.gathering import GATHER_SECONDS, GatheringSelector, run
from test_operator_schedule import Clock


@pytest.fixture
def ends():
    pairs = [socket.socketpair() for _ in range(2)]
    yield pairs
    for pair in pairs:
        for end in pair:
            end.close()


def test_what_comes_meanwhile_is_reported_at_once(ends):
    (first, far_first), (second, far_second) = ends
    clock, slept = Clock(), []

    def sleep(seconds):
        slept.append(seconds)
        clock.seconds += seconds
        far_second.send(b"2")

    with GatheringSelector(clock, sleep) as selector:
        selector.gathers = True
        for end in (first, second):
            selector.register(end, selectors.EVENT_READ)

        def ready():
            return {key.fileobj for key, _ in selector.select(0)}

        assert ready() == set()
        far_first.send(b"1")
        assert (ready(), slept) == ({first}, [])
        clock.seconds += GATHER_SECONDS / 4
        assert ready() == {first, second}
        assert slept == [pytest.approx(0.75 * GATHER_SECONDS)]
        clock.seconds += GATHER_SECONDS
        assert (ready(), len(slept)) == ({first, second}, 1)
        for end in (first, second):
            end.recv(1)
        assert (ready(), len(slept)) == (set(), 1)


def test_who_does_not_gather_does_not_wait(ends):
    slept = []
    (end, far), _ = ends
    with GatheringSelector(Clock(), slept.append) as selector:
        selector.register(end, selectors.EVENT_READ)
        far.send(b"1")
        assert [len(selector.select(0)) for _ in range(3)] == [1, 1, 1]
    assert slept == []


def test_the_loop_runs_what_any_loop_runs():
    said = []

    async def talk(selector):
        selector.gathers = True
        server = await asyncio.start_server(answer, "127.0.0.1")
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(b"a\n")
        said.append(await asyncio.wait_for(reader.readline(), 10))
        writer.close()
        server.close()

    async def answer(reader, writer):
        await asyncio.sleep(0.01)
        writer.write(await reader.readline())
        writer.close()

    run(talk)
    assert said == [b"a\n"]
