"""Who may start now, and who is told later that it may."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_operator.schedule import Key
from finetune_operator.starts import CALM_SECONDS, CROWD, LATE_LOOKS, PATIENCE_SECONDS, UNDER_WAY, Starts
from test_operator_schedule import Clock


def keys(count, namespace="loud"):
    return [Key(namespace, f"job-{number}") for number in range(count)]


@pytest.fixture
def told():
    return []


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def starts(told, clock):
    return Starts(told.append, lambda _namespace: True, clock)


def test_a_tenant_has_a_few_under_way_and_holds_up_no_other(starts, told):
    assert [starts.admit(key) for key in keys(UNDER_WAY + 2)] == [True] * UNDER_WAY + [False] * 2
    assert starts.admit(Key("quiet", "one"))
    assert starts.admit(keys(1)[0])  # looked at once more
    assert told == []


def test_those_that_wait_are_told_in_their_order(starts, told):
    first, *others = keys(UNDER_WAY + 3)
    for key in (first, *others):
        starts.admit(key)
    starts.settle(first)
    starts.settle(first)
    assert told == keys(UNDER_WAY + 1)[-1:]
    assert starts.admit(told[0])
    starts.settle(told[0])  # it was deleted meanwhile
    assert told == keys(UNDER_WAY + 2)[-2:]


def test_pods_that_do_not_come_hold_nobody_up_for_long(starts, told, clock):
    for key in keys(2 * UNDER_WAY):
        starts.admit(key)
    starts.settle_overdue()
    assert told == []
    clock.seconds += PATIENCE_SECONDS
    starts.settle_overdue()
    overdue, waiting = keys(2 * UNDER_WAY)[:UNDER_WAY], keys(2 * UNDER_WAY)[UNDER_WAY:]
    assert told == waiting + overdue[:LATE_LOOKS]


def test_of_those_whose_pods_do_not_come_a_few_are_looked_at(told, clock):
    starts = Starts(told.append, lambda _namespace: False, clock)
    for key in keys(LATE_LOOKS + 2):
        starts.admit(key)
    starts.settle(keys(1)[0])
    clock.seconds += PATIENCE_SECONDS
    starts.settle_overdue()
    starts.settle_overdue()
    assert told == keys(LATE_LOOKS + 1)[1:]


def test_who_has_the_cluster_alone_waits_for_nobody(told, clock):
    others = [True]
    starts = Starts(told.append, lambda _namespace: others[0], clock)
    first, *rest = keys(UNDER_WAY + 3)
    assert [starts.admit(key) for key in (first, *rest)] == [True] * UNDER_WAY + [False] * 3
    others[0] = False
    starts.settle(first)
    assert told == rest[-3:]
    assert all(starts.admit(key) for key in keys(100, "other"))


def test_a_burst_lasts_until_its_pods_have_had_time_to_run(told, clock):
    starts = Starts(told.append, lambda _namespace: False, clock)
    for key in keys(CROWD):
        starts.admit(key)
    assert not starts.is_crowded()
    starts.admit(Key("other", "one"))
    for key in keys(CROWD):
        starts.settle(key)
    clock.seconds += CALM_SECONDS - 1
    assert starts.is_crowded()
    clock.seconds += 1
    assert not starts.is_crowded()


@given(st.lists(st.tuples(st.sampled_from(["admit", "settle", "wait"]), st.integers(0, 40)), max_size=200))
def test_nobody_is_forgotten(steps):
    clock, told = Clock(), []
    starts, asked, admitted = Starts(told.append, lambda _namespace: True, clock), set(), set()
    for step, number in steps:
        key = Key("loud", str(number))
        if step == "admit":
            asked.add(key)
            if starts.admit(key):
                admitted.add(key)
        elif step == "settle":
            starts.settle(key)
        else:
            clock.seconds += 1
            starts.settle_overdue()
    for _ in range(10):
        clock.seconds += PATIENCE_SECONDS
        starts.settle_overdue()
    assert asked == admitted | set(told)
