"""Everything is read again: when a watch had to list anew, and however often a list fails."""

import asyncio
import logging
from contextlib import nullcontext

import pytest

from finetune_operator import resync
from finetune_operator.apply import Applier
from finetune_operator.errors import ApiError, DeafWatch
from finetune_operator.kinds import FINE_TUNE_JOB, JOB, POD, WATCHED
from finetune_operator.resync import (
    BURST_INTERVALS,
    DEAF_SECONDS,
    LEISURE_SECONDS,
    LONGEST_REST_SECONDS,
    PAGE,
    REST,
    STARTING_SECONDS,
    Resync,
)
from finetune_operator.schedule import Key
from finetune_operator.store import Store
from operating import job
from test_operator_schedule import Clock


class Lists:
    """The API server's lists: of FineTuneJobs as they are told, of all else none."""

    def __init__(self, *names, faults=()):
        self.names, self.faults, self.asked = names, list(faults), []

    async def pages(self, kind, namespace, **query):
        self.asked.append(kind.name)
        if kind is FINE_TUNE_JOB:
            yield [stored(name) for name in self.names]
            if self.faults:
                raise ApiError(self.faults.pop(0), "refused")


def stored(name):
    made = job("ns", name)
    return {**made, "metadata": {**made["metadata"], "uid": name, "resourceVersion": "1", "generation": 1}}


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def store(clock):
    return Store(clock.now)


def reader(store, lists, clock, enqueue=lambda _key: None, is_crowded=lambda: False):
    return Resync(store, lists, None, enqueue, enqueue, is_crowded, clock)


def test_what_is_not_listed_any_more_is_gone(store, clock):
    store.see(FINE_TUNE_JOB, stored("gone"))
    found = []
    asyncio.run(reader(store, Lists("there"), clock, found.append).step())
    assert (list(store.jobs), set(found)) == ([Key("ns", "there")], {Key("ns", "there"), Key("ns", "gone")})


@pytest.mark.parametrize("status", [0, 410, 429, 500], ids=["no answer", "expired", "throttled", "failed"])
def test_a_list_that_fails_is_read_again_and_the_others_are_not(store, clock, status, monkeypatch, caplog):
    monkeypatch.setattr(resync, "FIRST_BACKOFF_SECONDS", 0.01)
    caplog.set_level(logging.ERROR)
    store.see(FINE_TUNE_JOB, stored("gone"))
    lists = Lists("there", faults=[status, status])
    asyncio.run(reader(store, lists, clock).step())
    before, after = (WATCHED[: (place := WATCHED.index(FINE_TUNE_JOB))], WATCHED[place + 1 :])
    assert lists.asked == [kind.name for kind in (*before, *[FINE_TUNE_JOB] * 3, *after)]
    assert list(store.jobs) == [Key("ns", "there")]


@pytest.mark.parametrize("status", [403, 404], ids=["no right", "no CRD"])
def test_at_the_start_a_kind_that_cannot_be_read_is_told(store, clock, status):
    with pytest.raises(ApiError, match="refused"):
        asyncio.run(reader(store, Lists(faults=[status]), clock).step())


def test_what_is_found_is_looked_at_before_all_is_read(store, clock):
    found = []

    class Slow(Lists):
        async def pages(self, kind, namespace, **query):
            if kind is WATCHED[-1]:
                assert found == [Key("ns", "gone"), Key("ns", "there")]
            async for page in super().pages(kind, namespace):
                yield page

    store.see(FINE_TUNE_JOB, stored("gone"))
    lists = Slow("there")
    asyncio.run(reader(store, lists, clock, lambda key: found.insert(0, key)).step())
    assert lists.asked[-1] == WATCHED[-1].name


def test_what_is_deleted_while_a_list_is_read_does_not_come_back(store, clock):
    class Long(Lists):
        async def pages(self, kind, namespace, **query):
            async for page in super().pages(kind, namespace):
                yield page[:1]
                store.lose(FINE_TUNE_JOB, stored("two"))
                one.note_deleted("two")
                yield page[1:]

    one = reader(store, Long("one", "two"), clock)
    store.see(FINE_TUNE_JOB, stored("two"))
    asyncio.run(one.step())
    assert list(store.jobs) == [Key("ns", "one")]


TOLD = {
    "nothing": (None, DEAF_SECONDS, True),
    "nothing yet": (None, DEAF_SECONDS - 1, False),
    "of one": (FINE_TUNE_JOB, DEAF_SECONDS, False),
    "of another kind": (JOB, DEAF_SECONDS, True),
}


@pytest.mark.parametrize(("told", "seconds", "deaf"), TOLD.values(), ids=TOLD.keys())
def test_a_watch_that_tells_nothing_of_what_happens_is_deaf(store, clock, told, seconds, deaf):
    async def read():
        lists = Lists("one")
        one = reader(store, lists, clock)
        await one.step()
        if told is not None:
            one.note_event(told, "ns", listed=False)
        clock.seconds += seconds
        lists.names = ("one", "two")
        await one.step()

    with pytest.raises(DeafWatch, match="finetunejobs") if deaf else nullcontext():
        asyncio.run(read())


@pytest.mark.parametrize(("seconds", "rest"), [(0.1, 0.1 * REST), (60, LONGEST_REST_SECONDS), (LEISURE_SECONDS, 0)])
def test_later_it_is_read_at_leisure(store, clock, monkeypatch, seconds, rest):
    """And who will be looked at anyway is not looked at for that."""
    slept, asked, forgotten = [], [], []

    class Slow:
        async def pages(self, kind, namespace, **query):
            asked.append(query)
            clock.seconds += seconds
            yield [stored("one")] if kind is FINE_TUNE_JOB else []

    async def sleep(seconds):
        slept.append(seconds)

    async def read():
        monkeypatch.setattr(resync.asyncio, "sleep", sleep)
        one = Resync(store, Slow(), None, lambda _key: None, forgotten.append, lambda: False, clock)
        for _ in range(2):
            await one.step()

    asyncio.run(read())
    count = len(WATCHED)
    assert slept == [0] * count + [pytest.approx(rest)] * count
    assert asked == [{}] * count + [{"limit": str(PAGE)}] * count
    assert forgotten == [Key("ns", "one")] * 2


PAUSES = {
    "no burst": ([False], False, 1),
    "a burst that ends": ([True, False], False, 2),
    "a burst without an end": ([True] * 99, False, BURST_INTERVALS),
    "a watch that has begun anew in a burst": ([True] * 99, True, 0),
}


@pytest.mark.parametrize(("crowded", "wanted", "asked"), PAUSES.values(), ids=PAUSES.keys())
def test_in_a_burst_it_is_read_again_later(store, clock, monkeypatch, crowded, wanted, asked):
    monkeypatch.setattr(resync, "INTERVAL_SECONDS", 0.001)
    monkeypatch.setattr(resync, "AFTER_RELIST_SECONDS", 0)
    answers, left = iter(crowded), len(crowded)

    async def pause():
        one = reader(store, Lists(), clock, is_crowded=lambda: next(answers))
        if wanted:
            one._wanted.set()
        await one._pause()

    asyncio.run(pause())
    assert left - len(list(answers)) == asked


def test_a_watch_of_which_nothing_happens_is_not_deaf(store, clock):
    async def read():
        one = reader(store, Lists("one"), clock)
        for _ in range(5):
            await one.step()
            clock.seconds += DEAF_SECONDS

    asyncio.run(read())
    assert list(store.jobs) == [Key("ns", "one")]


JOB_EVENTS = {
    "another spec": ({"generation": 2}, {}, True),
    "a label": ({"labels": {"a": "b"}}, {}, False),
    "a deletion": ({"deletionTimestamp": "2030-01-01T00:00:00Z"}, {}, True),
    "a status": ({}, {"phase": "Running"}, False),
    "its end": ({}, {"conditions": [{"type": "Succeeded", "status": "True"}]}, True),
}


@pytest.mark.parametrize(("metadata", "status", "asks"), JOB_EVENTS.values(), ids=JOB_EVENTS.keys())
def test_what_asks_for_a_look(store, metadata, status, asks):
    """The operator's own status comes back by the watch."""
    before = stored("one")
    assert store.see(FINE_TUNE_JOB, before) == [Key("ns", "one")]
    changed = {**before, "metadata": {**before["metadata"], "resourceVersion": "2", **metadata}, "status": status}
    assert store.see(FINE_TUNE_JOB, changed) == ([Key("ns", "one")] if asks else [])


RELISTS = {
    "a first list": ([(POD, "ns", True), (POD, "ns", True)], 0, False),
    "a list after a change": ([(POD, "ns", False), (POD, "ns", True)], 0, True),
    "a list after another watch's change": ([(JOB, "ns", False), (POD, "ns", True)], 0, False),
    "a list after another namespace's change": ([(POD, "other", False), (POD, "ns", True)], 0, False),
    "a list long after the start": ([(POD, "ns", True)], STARTING_SECONDS + 1, True),
    "changes": ([(POD, "ns", False), (POD, "ns", False)], STARTING_SECONDS + 1, False),
}


@pytest.mark.parametrize(("told", "later", "wanted"), RELISTS.values(), ids=RELISTS.keys())
def test_when_a_watch_lists_anew_everything_is_read_again(store, clock, told, later, wanted):
    one = reader(store, Lists(), clock)
    asyncio.run(one.step())
    clock.seconds += later
    for kind, namespace, listed in told:
        one.note_event(kind, namespace, listed=listed)
    assert one._wanted.is_set() is wanted


@pytest.mark.parametrize(
    ("told", "left"),
    [('finetunejobs.finetune.dev "one" not found', []), ("the server could not find it", [Key("ns", "one")])],
    ids=["the job is gone", "the kind is not served"],
)
def test_a_job_whose_deletion_was_missed_is_dropped_at_its_next_write(store, told, left):
    class Gone:
        async def replace(self, *_):
            raise ApiError(404, told)

    store.see(FINE_TUNE_JOB, stored("one"))
    key = Key("ns", "one")
    with pytest.raises(ApiError):
        asyncio.run(Applier(store, Gone(), (), lambda _key: None).write_wire_status(key, store.jobs[key], {}))
    assert list(store.jobs) == left
