"""The order of work: fair, coalesced, one look at a time, with back-off; on a clock that the test turns."""

import asyncio
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_operator.bucket import TokenBucket
from finetune_operator.queue import FIRST_BACKOFF_SECONDS, MAX_BACKOFF_SECONDS, KeyedQueue
from finetune_operator.schedule import Key, Schedule

A, B = Key("a", "1"), Key("b", "1")


class Clock:
    def __init__(self):
        self.seconds = 100.0

    def __call__(self):
        return self.seconds

    def now(self):
        return datetime.fromtimestamp(self.seconds, UTC)


def taken(schedule, count):
    return [schedule.take()[0] for _ in range(count)]


def test_one_tenants_many_jobs_delay_no_other():
    schedule = Schedule()
    many = [Key("busy", str(number)) for number in range(5000)]
    for key in many:
        schedule.add(key, 0)
    quiet = Key("quiet", "1")
    schedule.add(quiet, 1)
    assert taken(schedule, 4) == [many[0], quiet, many[1], many[2]]
    assert schedule.depth == 4997


def test_a_key_is_coalesced_and_worked_on_once_at_a_time():
    schedule = Schedule()
    assert (schedule.add(A, 1), schedule.add(A, 2), schedule.depth) == (True, False, 1)
    assert schedule.take() == (A, 1)
    assert (schedule.add(A, 3), schedule.add(A, 4), schedule.depth, schedule.working) == (False, False, 0, 1)
    assert schedule.done(A)
    assert schedule.add(A, 5)
    taken(schedule, 1)
    assert not schedule.done(A)
    with pytest.raises(KeyError):
        schedule.take()


def test_of_several_later_times_the_last_one_said_counts():
    schedule = Schedule()
    schedule.add_later(A, 10)
    schedule.add_later(A, 30)
    schedule.add_later(B, 20)
    assert schedule.next_due() == 20
    assert list(schedule.ripe(25)) == [B]
    schedule.add(B, 25)
    schedule.add(A, 26)
    assert (schedule.next_due(), list(schedule.ripe(100))) == (None, [])


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["add", "later", "take", "done", "ripe"]), st.integers(0, 5)), max_size=60))
def test_no_key_is_lost_and_none_is_worked_on_twice(steps):
    """Whatever is added is taken after that, for any order of events."""
    schedule, now, wanted, working = Schedule(), 0.0, set(), set()
    for step, number in [*steps, *[("done", n) for n in range(6)] * 2, ("ripe", 0)]:
        key, now = Key(str(number % 2), str(number)), now + 1
        if step == "add":
            schedule.add(key, now)
            wanted.add(key)
        elif step == "later" and key not in working:
            schedule.add_later(key, now + number)
            wanted.add(key)
        elif step == "take" and schedule.depth:
            taken_key, _ = schedule.take()
            assert taken_key not in working
            working.add(taken_key)
            wanted.discard(taken_key)
        elif step == "done" and key in working:
            working.discard(key)
            if schedule.done(key):
                schedule.add(key, now)
        elif step == "ripe":
            for ripe in list(schedule.ripe(1e9)):
                schedule.add(ripe, now)
    assert wanted <= {schedule.take()[0] for _ in range(schedule.depth)}


def test_failures_back_off_and_success_forgets():
    async def scenario():
        clock = Clock()
        queue = KeyedQueue(clock=clock)
        queue.add(A)
        delays = []
        for _ in range(9):
            assert (await queue.get())[0] == A
            delays.append(queue.failed(A))
            queue.add(A)
        assert delays[:4] == [FIRST_BACKOFF_SECONDS * 2**n for n in range(4)]
        assert delays[-1] == MAX_BACKOFF_SECONDS
        await queue.get()
        assert queue.failed(A, at_least=77) == 77
        clock.seconds += 77
        queue.add(A)
        await queue.get()
        queue.done(A)
        queue.add(A)
        await queue.get()
        assert queue.failed(A) == FIRST_BACKOFF_SECONDS

    asyncio.run(scenario())


@pytest.mark.parametrize("is_working", [True, False], ids=["while it is worked on", "afterwards"])
def test_what_happens_does_not_hurry_whom_the_server_told_to_wait(is_working):
    async def scenario():
        clock = Clock()
        queue = KeyedQueue(clock=clock, jitter=lambda: 1.0)
        queue.add(A)
        await queue.get()
        if is_working:
            queue.add(A)
        queue.failed(A, at_least=0.1)
        queue.add(A)
        assert queue.depth == 0
        clock.seconds += 0.1
        assert (await asyncio.wait_for(queue.get(), 5))[0] == A

    asyncio.run(scenario())


def test_a_key_comes_back_when_its_time_has_come():
    async def scenario():
        queue = KeyedQueue()
        queue.add(A)
        await queue.get()
        queue.done(A, again_after=0.05)
        assert (queue.depth, queue.working) == (0, 0)
        key, waited = await asyncio.wait_for(queue.get(), 5)
        assert key == A
        assert waited < 1
        queue.add(A)
        queue.done(A, again_after=60)
        assert (await asyncio.wait_for(queue.get(), 5))[0] == A

    asyncio.run(scenario())


def test_who_will_be_looked_at_anyway_is_not_forgotten():
    async def scenario():
        queue = KeyedQueue()
        for key, again in ((A, 60.0), (B, None)):
            queue.add(key)
            await queue.get()
            queue.done(key, again)
        for key in (A, B):
            queue.add_forgotten(key)
        return queue.depth, await queue.get()

    depth, (key, _) = asyncio.run(scenario())
    assert (depth, key) == (1, B)


def test_stuck_is_who_has_work_and_does_not_move():
    async def scenario():
        clock = Clock()
        queue = KeyedQueue(clock=clock)
        clock.seconds += 1000
        assert not queue.is_stuck(60)
        queue.add(A)
        assert not queue.is_stuck(60)
        clock.seconds += 61
        assert queue.is_stuck(60)
        await queue.get()
        assert not queue.is_stuck(60)
        clock.seconds += 61
        assert queue.is_stuck(60)
        queue.done(A)
        assert not queue.is_stuck(60)

    asyncio.run(scenario())


def test_a_bucket_lets_a_burst_pass_and_then_its_rate():
    clock = Clock()
    bucket = TokenBucket(rate=2, burst=3, clock=clock)
    assert [bucket.take() for _ in range(4)] == [True, True, True, False]
    clock.seconds += 1
    assert [bucket.take() for _ in range(3)] == [True, True, False]
    assert [bucket.reserve_seconds() for _ in range(3)] == [0.5, 1.0, 1.5]
