"""Who may start now, and who is told later that it may."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_operator.schedule import Key
from finetune_operator.starts import (
    CALM_SECONDS,
    CROWD,
    FLOOD,
    GIVE_WAY_SECONDS,
    GIVE_WAY_TIMES,
    LATE_LOOKS,
    PATIENCE_SECONDS,
    REST,
    REST_IN_FLOOD,
    Starts,
)
from test_operator_schedule import Clock


def keys(count, namespace="loud"):
    return [Key(namespace, f"job-{number}") for number in range(count)]


@pytest.fixture
def told():
    return []


class Timers(Clock):
    """A clock whose time passes only in ``wait``, which calls back what is due."""

    def __init__(self):
        super().__init__()
        self.due = []

    def call_later(self, seconds, call):
        self.due.append((self.seconds + seconds, call))

    def wait(self, seconds):
        self.seconds += seconds
        ripe = [call for due, call in self.due if due <= self.seconds]
        self.due = [(due, call) for due, call in self.due if due > self.seconds]
        for call in ripe:
            call()


@pytest.fixture
def clock():
    return Timers()


@pytest.fixture
def starts(told, clock):
    return Starts(told.append, lambda _namespace: True, clock.call_later, clock)


@pytest.fixture
def lone_starts(told, clock):
    return Starts(told.append, lambda _namespace: False, clock.call_later, clock)


def test_a_tenant_has_one_under_way_and_holds_up_no_other(starts, told):
    assert [starts.admit(key) for key in keys(3)] == [True, False, False]
    assert starts.admit(Key("quiet", "one"))
    assert starts.admit(keys(1)[0])  # looked at once more
    assert told == []


def test_those_that_wait_are_told_in_their_order(starts, told, clock):
    first, second, third = keys(3)
    for key in (first, second, third):
        starts.admit(key)
    starts.settle(first)
    starts.settle(first)
    clock.wait(0)
    assert told == [second]
    assert starts.admit(second)
    starts.settle(second)  # it was deleted meanwhile
    clock.wait(0)
    assert told == [second, third]


@pytest.mark.parametrize(("waiting", "rest"), [(1, REST), (FLOOD, REST), (FLOOD + 1, REST_IN_FLOOD)])
def test_a_tenant_rests_the_longer_the_longer_its_last_start_took(starts, told, clock, waiting, rest):
    first, second, *others = keys(waiting + 1)
    for key in (first, second, *others):
        starts.admit(key)
    clock.wait(1)
    starts.admit(first)
    clock.wait(1)
    starts.settle(first)
    clock.wait(2 * rest - 0.1)
    assert told == []
    assert not starts.admit(Key("loud", "new"))
    clock.wait(0.1)
    assert told == [second]


@pytest.mark.parametrize(("waiting", "times"), [(FLOOD, 0), (FLOOD + 1, 3), (FLOOD + 1, GIVE_WAY_TIMES)])
def test_who_floods_gives_way_to_others_but_not_for_ever(starts, told, clock, waiting, times):
    first, second, *others = keys(waiting + 1)
    for key in (first, second, *others):
        starts.admit(key)
    starts.settle(first)  # at once: no rest
    other = Key("quiet", "one")
    starts.admit(other)
    for _ in range(times):
        clock.wait(GIVE_WAY_SECONDS)
        assert told == []
    if times < GIVE_WAY_TIMES:
        starts.settle(other)
    clock.wait(GIVE_WAY_SECONDS)
    assert told == [second]


def test_pods_that_do_not_come_hold_nobody_up_for_long(starts, told, clock):
    first, second = keys(2)
    for key in (first, second):
        starts.admit(key)
    starts.settle_overdue()
    assert told == []
    clock.wait(PATIENCE_SECONDS)
    starts.settle_overdue()
    assert told == [second, first]


def test_of_those_whose_pods_do_not_come_a_few_are_looked_at(lone_starts, told, clock):
    for key in keys(LATE_LOOKS + 2):
        lone_starts.admit(key)
    lone_starts.settle(keys(1)[0])
    clock.wait(PATIENCE_SECONDS)
    lone_starts.settle_overdue()
    lone_starts.settle_overdue()
    assert told == keys(LATE_LOOKS + 1)[1:]


def test_who_has_the_cluster_alone_waits_for_nobody(told, clock):
    others = [True]
    starts = Starts(told.append, lambda _namespace: others[0], clock.call_later, clock)
    first, *rest = keys(4)
    assert [starts.admit(key) for key in (first, *rest)] == [True, False, False, False]
    others[0] = False
    starts.settle(first)
    assert told == rest
    assert all(starts.admit(key) for key in keys(100, "other"))


def test_a_burst_lasts_until_its_pods_have_had_time_to_run(lone_starts, clock):
    for key in keys(CROWD):
        lone_starts.admit(key)
    assert not lone_starts.is_crowded()
    lone_starts.admit(Key("other", "one"))
    for key in keys(CROWD):
        lone_starts.settle(key)
    clock.wait(CALM_SECONDS - 1)
    assert lone_starts.is_crowded()
    clock.wait(1)
    assert not lone_starts.is_crowded()


@given(st.lists(st.tuples(st.sampled_from(["admit", "settle", "wait"]), st.integers(0, 40)), max_size=200))
def test_nobody_is_forgotten(steps):
    clock, told, asked, admitted = Timers(), [], set(), set()
    starts = Starts(told.append, lambda _namespace: True, clock.call_later, clock)
    for step, number in steps:
        key = Key("loud" if number % 3 else "other", str(number))
        if step == "admit":
            asked.add(key)
            if starts.admit(key):
                admitted.add(key)
        elif step == "settle":
            starts.settle(key)
        else:
            clock.wait(1)
            starts.settle_overdue()
    for _ in range(41 + int(REST_IN_FLOOD) + GIVE_WAY_TIMES):  # one each, after what a rest may take
        clock.wait(PATIENCE_SECONDS)
        starts.settle_overdue()
    assert asked == admitted | set(told)


def test_a_burst_lasts_while_kubernetes_is_behind_with_the_pods_of_many(lone_starts, clock):
    started = keys(3 * CROWD)
    for key in started:
        lone_starts.admit(key)
    clock.wait(CALM_SECONDS + 1)
    lone_starts.settle_overdue()
    assert not lone_starts.is_crowded()
    for key in started[: 2 * CROWD]:
        clock.wait(0.2)
        lone_starts.settle(key)
    assert lone_starts.is_crowded()
    clock.wait(CALM_SECONDS)
    assert not lone_starts.is_crowded()
    for key in started[2 * CROWD :]:
        clock.wait(1)
        lone_starts.settle(key)
    assert not lone_starts.is_crowded()
