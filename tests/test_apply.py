"""Killed before and after each write of a whole life, the operator comes to the same end, with nothing twice."""

import asyncio
import json
import re

import pytest

from fake_cluster import FakeCluster, OperatorLife, job_status, run_to_the_end
from finetune_operator import reconcile
from finetune_operator.alive import POLL_SECONDS
from finetune_operator.drift import is_part
from finetune_operator.kinds import CORE_EVENT, FINE_TUNE_JOB, JOB, NETWORK_POLICY, RUNTIME
from finetune_operator.names import LABEL_QUEUE, job_labels
from finetune_operator.observe import PODLESS_SECONDS
from finetune_operator.reconcile import TURN_SECONDS
from finetune_operator.schedule import Key
from finetune_operator.starts import CROWD
from operating import RUNTIME as RUNTIME_MANIFEST
from operating import job


def suspend(value):
    def do(cluster):
        raw = cluster.objects[FINE_TUNE_JOB.name, "demo"]
        raw["spec"]["suspend"] = value
        cluster.touch(raw)

    return do


LIVES = {
    "succeeds": ([0], {}, {}),
    "fails once": ([70, 0], {}, {}),
    "fails for good": ([70, 70, 70], {}, {"recovery": {"maxRestarts": {"application": 1}}}),
    "fails for its data": ([65], {}, {}),
    "suspended and resumed": ([0, 0], {3: suspend(True), 12: suspend(False)}, {}),
    "three failures, old Jobs go": ([75, 75, 75, 0], {}, {}),
}


def lived(exits, at, spec, **faults):
    cluster = FakeCluster(exits, **faults)
    cluster.put(RUNTIME.name, RUNTIME_MANIFEST)
    cluster.put(FINE_TUNE_JOB.name, job("team", distributed={"workers": 2}, **spec))
    return cluster, run_to_the_end(cluster, at=at)


def outcome(cluster):
    """All that is left, without times, and without numbers that depend on how many writes there were."""
    objects = {f"{kind} {name}": without_times(raw) for (kind, name), raw in cluster.objects.items()}
    return json.loads(json.dumps(objects, sort_keys=True))


def without_times(raw):
    if isinstance(raw, dict):
        kept = {name: value for name, value in raw.items() if name not in ("runningSeconds", "message")}
        return {name: without_times(value) for name, value in kept.items()}
    if isinstance(raw, list):
        return [without_times(one) for one in raw]
    is_varying = isinstance(raw, str) and re.fullmatch(r"uid-\d+|\d{4}-\d\d-\d\dT.*|\d+|demo-uid-\d+", raw)
    return "…" if is_varying else raw


@pytest.mark.parametrize(("exits", "at", "spec"), LIVES.values(), ids=LIVES.keys())
def test_killed_at_any_write_the_end_is_the_same(exits, at, spec):
    faultless, kills = lived(exits, at, spec)
    assert kills == 0
    expected, writes = outcome(faultless), faultless.writes
    assert len(set(faultless.log)) >= len([line for line in faultless.log if not line.startswith("replace")])
    for number in range(1, writes + 1):
        for when in ("kill_before", "kill_after"):
            cluster, kills = lived(exits, at, spec, **{when: number})
            assert kills == 1, (when, number)
            assert outcome(cluster) == expected, (when, number, faultless.log[number - 1], cluster.log)
            created = [line for line in cluster.log if line.startswith("create Job")]
            assert len(created) - len(set(created)) <= 1


@pytest.mark.parametrize(("exits", "at", "spec"), LIVES.values(), ids=LIVES.keys())
def test_conflicts_change_nothing(exits, at, spec):
    expected = outcome(lived(exits, at, spec)[0])
    for every in (2, 3, 5):
        cluster, _ = lived(exits, at, spec, conflicts=range(0, 1000, every))
        assert outcome(cluster) == expected, (every, cluster.log)


def test_what_a_job_costs():
    """The writes of a job of two workers that fails once; the Service is for the namespace's other jobs as well."""
    cluster, _ = lived([70, 0], {}, {})
    assert cluster.log == [
        "apply Service finetune-workers-0",
        "create NetworkPolicy demo",
        "create Job demo-1",
        "replace status of FineTuneJob demo",
        "create Job demo-2",
        "replace status of FineTuneJob demo",
        "replace status of FineTuneJob demo",
    ]
    assert job_status(cluster)["phase"] == "Succeeded"
    assert [event.reason.value for event in cluster.events] == ["Starting", "Restarting", "Starting", "Completed"]


def test_at_the_end_nothing_is_written():
    cluster, _ = lived([0], {}, {})
    writes, events = cluster.writes, len(cluster.events)
    run_to_the_end(cluster, seconds=700)
    assert (cluster.writes, len(cluster.events)) == (writes, events)


def test_whoever_ends_a_job_also_waits_for_its_time_to_go():
    """Our own write is not told to us as news, so that look itself must say when the next one is due."""
    cluster = FakeCluster([0])
    cluster.put(RUNTIME.name, RUNTIME_MANIFEST)
    cluster.put(FINE_TUNE_JOB.name, job("team", ttlSecondsAfterFinished=30))
    run_to_the_end(cluster, seconds=4)
    with asyncio.Runner() as cluster.runner:
        life = OperatorLife(cluster)
        life.look()
        for _ in range(4):
            cluster.live()
        assert life.look() == [pytest.approx(30, abs=2)]
        cluster.second += 31
        life.look()
    assert [kind for kind, _ in cluster.objects] == [RUNTIME.name]


@pytest.mark.parametrize(("others", "seconds"), [(0, POLL_SECONDS), (CROWD, 40.0)])
def test_in_a_burst_progress_is_looked_for_less_often(monkeypatch, others, seconds):
    """But not for why there are no pods, or why they do not run."""
    monkeypatch.setattr(reconcile, "CROWDED_LOOKS_A_SECOND", 1 / 40)
    cluster = FakeCluster([0])
    cluster.put(RUNTIME.name, RUNTIME_MANIFEST)
    cluster.put(FINE_TUNE_JOB.name, job("team"))
    with asyncio.Runner() as cluster.runner:
        life = OperatorLife(cluster)
        for number in range(others):
            life.reconciler.starts.admit(Key("team", f"other-{number}"))
        assert life.look() == [seconds]
        assert life.look() == [PODLESS_SECONDS]
        cluster.live()
        assert life.look() == [POLL_SECONDS]


def test_who_waits_for_its_turn_is_told_so_and_why_it_cannot_run_at_once():
    cluster = FakeCluster([0])
    cluster.put(RUNTIME.name, RUNTIME_MANIFEST)
    cluster.put(FINE_TUNE_JOB.name, job("team"))
    cluster.put(FINE_TUNE_JOB.name, job("team", "refused", runtime="unknown"))
    cluster.put(FINE_TUNE_JOB.name, job("others", "elsewhere"))
    with asyncio.Runner() as cluster.runner:
        life = OperatorLife(cluster)
        life.watch()
        starts, first = life.reconciler.starts, Key("team", "first")
        starts.admit(first)
        life.look()
        assert "status" not in cluster.objects[FINE_TUNE_JOB.name, "demo"]
        assert message_of(cluster, "refused", "Accepted").startswith("spec.runtime")
        cluster.second += int(TURN_SECONDS)
        life.look()
        assert message_of(cluster, "demo", "Running").startswith("Attempt 1 cannot start: it is not its turn")
        assert (JOB.name, "demo-1") not in cluster.objects
        starts.settle(first)
        life.look()
        assert message_of(cluster, "demo", "Running") == "Attempt 1 starts"
        assert (JOB.name, "demo-1") in cluster.objects


def message_of(cluster, name, condition):
    return next(one["message"] for one in job_status(cluster, name)["conditions"] if one["type"] == condition)


def test_why_there_are_no_pods_is_told_at_once():
    cluster = FakeCluster([0])
    cluster.put(RUNTIME.name, RUNTIME_MANIFEST)
    cluster.put(FINE_TUNE_JOB.name, job("team"))
    with asyncio.Runner() as cluster.runner:
        life = OperatorLife(cluster)
        life.look()
        life.look()
        about = {"involvedObject": {"uid": cluster.objects[JOB.name, "demo-1"]["metadata"]["uid"]}}
        refused = {"metadata": {"name": "e", "namespace": "team"}, **about, "message": "Error creating: no room"}
        cluster.put(CORE_EVENT.name, refused)
        cluster.second += int(PODLESS_SECONDS)
        life.look()
    assert message_of(cluster, "demo", "Running") == "its pods cannot be made: no room"


def test_of_many_attempts_the_latest_two_jobs_stay():
    cluster, _ = lived([75, 75, 75, 0], {}, {})
    assert sorted(name for kind, name in cluster.objects if kind == JOB.name) == ["demo-3", "demo-4"]


def test_a_changed_policy_is_put_right_and_a_strangers_is_not():
    def change(cluster):
        raw = cluster.objects[NETWORK_POLICY.name, "demo"]
        raw["spec"]["ingress"] = []
        cluster.touch(raw)

    cluster, _ = lived([0], {2: change}, {})
    assert cluster.objects[NETWORK_POLICY.name, "demo"]["spec"]["ingress"]
    assert "apply NetworkPolicy demo" in cluster.log
    theirs = FakeCluster([0])
    theirs.put(RUNTIME.name, RUNTIME_MANIFEST)
    stranger = {"metadata": {"name": "demo", "namespace": "team"}, "spec": {}}
    theirs.put(NETWORK_POLICY.name, stranger)
    theirs.put(FINE_TUNE_JOB.name, job("team"))
    run_to_the_end(theirs, seconds=30)
    assert theirs.objects[NETWORK_POLICY.name, "demo"]["spec"] == {}
    assert [kind for kind, _ in theirs.objects if kind == JOB.name] == []
    running = next(one for one in job_status(theirs)["conditions"] if one["type"] == "Running")
    told = "Attempt 1 cannot start: there is a NetworkPolicy demo that is not this job's"
    assert running["message"].startswith(told)


def test_what_only_bears_our_labels_is_not_adopted():
    cluster = FakeCluster([0])
    cluster.put(RUNTIME.name, RUNTIME_MANIFEST)
    labels = job_labels("demo")
    cluster.put(NETWORK_POLICY.name, {"metadata": {"name": "demo", "namespace": "team", "labels": labels}, "spec": {}})
    cluster.put(FINE_TUNE_JOB.name, job("team"))
    run_to_the_end(cluster, seconds=30)
    assert cluster.objects[NETWORK_POLICY.name, "demo"]["spec"] == {}
    assert [kind for kind, _ in cluster.objects if kind == JOB.name] == []
    running = next(one for one in job_status(cluster)["conditions"] if one["type"] == "Running")
    told = "Attempt 1 cannot start: there is a NetworkPolicy demo that is not this job's"
    assert running["message"].startswith(told)


def queue(name):
    def do(cluster):
        cluster.objects[FINE_TUNE_JOB.name, "demo"]["spec"]["queue"] = name
        cluster.touch(cluster.objects[FINE_TUNE_JOB.name, "demo"])

    return do


def admit(cluster):
    cluster.objects[JOB.name, "demo-1"]["spec"]["suspend"] = False
    cluster.touch(cluster.objects[JOB.name, "demo-1"])


QUEUES = {
    "it waits": ({5: queue("b")}, "b"),
    "it waits, and twice": ({5: queue("b"), 8: queue("c")}, "c"),
    "it runs": ({5: admit, 6: queue("b")}, "a"),
    "there is no queue any more": ({5: queue(None)}, "a"),
}


@pytest.mark.parametrize(("at", "found"), QUEUES.values(), ids=QUEUES.keys())
def test_an_attempt_that_waits_moves_with_its_queue(at, found):
    cluster = FakeCluster([0])
    cluster.put(RUNTIME.name, RUNTIME_MANIFEST)
    cluster.put(FINE_TUNE_JOB.name, job("team", queue="a"))
    run_to_the_end(cluster, seconds=12, at=at)
    assert cluster.objects[JOB.name, "demo-1"]["metadata"]["labels"][LABEL_QUEUE] == found


PARTS = {
    "the server's own fields": ({"a": 1}, {"a": 1, "b": 2}, True),
    "missing": ({"a": 1}, {"b": 2}, False),
    "another value": ({"a": {"b": 1}}, {"a": {"b": 2}}, False),
    "longer list": ({"a": [1]}, {"a": [1, 2]}, False),
    "items with the server's own fields": ({"a": [{"b": 1}]}, {"a": [{"b": 1, "c": 2}]}, True),
    "no list": ([1], None, False),
    "no map": ({"a": 1}, None, False),
}


@pytest.mark.parametrize(("wanted", "actual", "same"), PARTS.values(), ids=PARTS.keys())
def test_what_was_asked_for_is_there(wanted, actual, same):
    assert is_part(wanted, actual) is same
