"""From the JSON of pods and Jobs to what decisions are made from."""

import asyncio
import copy
from datetime import UTC, datetime, timedelta

import pytest

from finetune_api import Cause, TerminationMessage
from finetune_api.load import parse_job
from finetune_api.status import LastCheckpoint, ProgressReport, Result, Stage
from finetune_operator.attempts import is_in_doubt, numbers_of, observe_attempt
from finetune_operator.bucket import TokenBucket
from finetune_operator.kinds import CLAIM, FINE_TUNE_JOB, JOB, NETWORK_POLICY, POD, RUNTIME, SERVICE
from finetune_operator.observe import Memory, Observer
from finetune_operator.observed import ObservedAttempt, ObservedWorker, PlatformReason, WorkerPhase
from finetune_operator.pods import observe_worker, waiting_text
from finetune_operator.progress import relocate_message, relocate_report
from finetune_operator.records import record_attempt, record_job, record_pod
from finetune_operator.schedule import Key
from finetune_operator.store import Store

T0 = datetime(2030, 1, 1, tzinfo=UTC)
UID, KEY = "job-uid", Key("team", "demo")
LABELS = {
    "app.kubernetes.io/managed-by": "finetune-operator",
    "finetune.dev/job": "demo",
    "finetune.dev/job-uid": UID,
    "finetune.dev/attempt": "1",
}
SPEC = {"task": "causal-lm", "model": {"source": "hf://a/b"}, "data": {"source": "hf://a/c"}}


def at(seconds):
    return T0 + timedelta(seconds=seconds)


def wire(seconds):
    return at(seconds).strftime("%Y-%m-%dT%H:%M:%SZ")


def metadata(name, uid, version=1, **more):
    created = {"namespace": "team", "creationTimestamp": wire(0), "labels": LABELS}
    return {**created, "name": name, "uid": uid, "resourceVersion": str(version), **more}


def pod(
    phase="Pending", state=None, index=0, *, uid=None, version=1, node="n1", status=(), beside=None, priority=0, **more
):
    annotations = {"batch.kubernetes.io/job-completion-index": str(index)}
    one = [{"name": "sidecar", "state": beside or {"running": {}}}, {"name": "trainer", "state": state or {}}]
    return {
        "metadata": metadata(f"demo-1-{index}-x", uid or f"pod-{index}", version, annotations=annotations, **more),
        "spec": {"containers": [{}, {}], "priority": priority, **({"nodeName": node} if node else {})},
        "status": {"phase": phase, **({"containerStatuses": one} if state else {}), **dict(status)},
    }


def ended(code, reason="Error", message=None, seconds=9):
    told = {"message": message} if message else {}
    state = {"exitCode": code, "reason": reason, "startedAt": wire(5), "finishedAt": wire(seconds), **told}
    return {"terminated": state}


def disrupted(reason):
    return {"conditions": [{"type": "DisruptionTarget", "status": "True", "reason": reason}]}


BEGUN, ENDED = at(5), at(9)
LEAVING = {"deletionTimestamp": wire(130)}
BUG = TerminationMessage(exit_code=70, cause=Cause.APPLICATION, message="KeyError: 'x'", step=3)
LOST = TerminationMessage(exit_code=137, cause=Cause.INFRASTRUCTURE, message="rank 1 was ended by SIGKILL")
LOG = "Traceback (most recent call last):\nModuleNotFoundError: No module named 'torch'\n"
TOLD = TerminationMessage(
    exit_code=1, cause=Cause.APPLICATION, message="left with exit code 1: ModuleNotFoundError: No module named 'torch'"
)


def failed(code=None, message=None, reason=None, started=BEGUN, finished=ENDED, node="n1"):
    return ObservedWorker(0, WorkerPhase.FAILED, started, finished, code, message, node, reason)


WORKERS = {
    "not scheduled": (pod(node=None), ObservedWorker(0, WorkerPhase.PENDING)),
    "scheduled": (pod(), ObservedWorker(0, WorkerPhase.PENDING, node="n1")),
    "running": (
        pod("Running", {"running": {"startedAt": wire(5)}}, index=3),
        ObservedWorker(3, WorkerPhase.RUNNING, at(5), node="n1"),
    ),
    "its container has ended, another of its pod not yet": (
        pod("Running", ended(70)),
        ObservedWorker(0, WorkerPhase.RUNNING, at(5), node="n1"),
    ),
    "its containers have ended, and its node has yet to tidy up": (
        pod("Running", ended(70), beside=ended(0)),
        failed(70),
    ),
    "done, and its node has yet to tidy up: nobody waits for that": (
        pod("Running", ended(0), beside=ended(0)),
        ObservedWorker(0, WorkerPhase.RUNNING, at(5), node="n1"),
    ),
    "its containers have ended, and its place is not free to one that may push others away": (
        pod("Running", ended(70), beside=ended(0), priority=1),
        ObservedWorker(0, WorkerPhase.RUNNING, at(5), node="n1"),
    ),
    "its containers were killed, and it was not asked to leave before": (
        pod("Running", ended(137, message=LOG), beside=ended(0)),
        failed(137),
    ),
    "its containers were killed for memory": (
        pod("Running", ended(137, "OOMKilled"), beside=ended(0)),
        failed(137, reason=PlatformReason.OOM_KILLED),
    ),
    "a process of it was killed, and its launcher told so": (
        pod("Running", ended(137, message=LOST.model_dump_json(exclude_none=True)), beside=ended(0)),
        failed(137, LOST),
    ),
    "its node has lost sight of it": (
        pod("Running", ended(137, "ContainerStatusUnknown"), beside=ended(0)),
        ObservedWorker(0, WorkerPhase.RUNNING, at(5), node="n1"),
    ),
    "nobody knows": (pod("Unknown"), ObservedWorker(0, WorkerPhase.RUNNING, node="n1")),
    "done": (
        pod("Succeeded", ended(0, "Completed", '{"exitCode": 0, "step": 30}')),
        ObservedWorker(0, WorkerPhase.SUCCEEDED, at(5), at(9), 0, TerminationMessage(exit_code=0, step=30), "n1"),
    ),
    "failed, and says why": (
        pod("Failed", ended(70, message=BUG.model_dump_json(exclude_none=True))),
        failed(70, BUG),
    ),
    "a log for a message": (pod("Failed", ended(1, message=LOG)), failed(1, TOLD)),
    "a killed worker's log says nothing": (pod("Failed", ended(137, message=LOG)), failed(137)),
    "half a message": (pod("Failed", ended(143, message='{"exitCode": 1')), failed(143)),
    "out of memory": (
        pod("Failed", ended(137, "OOMKilled")),
        failed(137, reason=PlatformReason.OOM_KILLED),
    ),
    "evicted by the API": (
        pod("Failed", ended(143), status=disrupted("EvictionByEvictionAPI"), **LEAVING),
        failed(143, reason=PlatformReason.EVICTED),
    ),
    "evicted by its node": (
        pod("Failed", status={"reason": "Evicted"}),
        failed(None, reason=PlatformReason.EVICTED, started=None, finished=None),
    ),
    "its node shuts down": (
        pod("Failed", ended(143), status={"reason": "Terminated"}),
        failed(143, reason=PlatformReason.EVICTED),
    ),
    "preempted": (
        pod("Failed", ended(143), status=disrupted("PreemptionByScheduler"), **LEAVING),
        failed(143, reason=PlatformReason.PREEMPTED),
    ),
    "its node is emptied": (
        pod("Failed", ended(143), status=disrupted("DeletionByTaintManager"), **LEAVING),
        failed(143, reason=PlatformReason.EVICTED),
    ),
    "its node is lost": (
        pod("Failed", ended(137, "ContainerStatusUnknown"), status=disrupted("DeletionByTaintManager"), **LEAVING),
        failed(None, reason=PlatformReason.NODE_LOST),
    ),
    "its node is gone": (
        pod("Failed", status=disrupted("DeletionByPodGC"), **LEAVING),
        failed(None, reason=PlatformReason.NODE_LOST, started=None, finished=None),
    ),
    "deleted": (pod("Failed", ended(143), **LEAVING), failed(143, reason=PlatformReason.DELETED)),
    "a code out of range": (pod("Failed", ended(70_000)), failed(255)),
}


@pytest.mark.parametrize(("raw", "worker"), WORKERS.values(), ids=WORKERS.keys())
def test_a_pod_is_a_worker(raw, worker):
    assert observe_worker(raw) == worker


def waiting(reason, message=""):
    return {"waiting": {"reason": reason, "message": message}}


UNSCHEDULABLE = {
    "conditions": [
        {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes are available"}
    ]
}
WAITING = {
    "no node": (pod(status=UNSCHEDULABLE), "no node takes it (Unschedulable): 0/3 nodes are available"),
    "image": (
        pod(state=waiting("ErrImagePull", "not found")),
        "its image cannot be pulled (ErrImagePull): not found",
    ),
    "secret": (
        pod(state=waiting("CreateContainerConfigError", 'secret "hub" not found')),
        'its container cannot be started (CreateContainerConfigError): secret "hub" not found',
    ),
    "being made": (pod(state=waiting("ContainerCreating")), None),
    "just there": (pod(), None),
}


@pytest.mark.parametrize(("raw", "text"), WAITING.values(), ids=WAITING.keys())
def test_why_a_pod_waits(raw, text):
    assert waiting_text(raw) == text


def test_a_worker_that_runs_does_not_wait():
    assert record_pod(pod("Running", {"running": {}}, status=UNSCHEDULABLE)).waiting is None


def job(version=1, status=(), workers=2, **spec):
    mount = {"name": "claim-0", "mountPath": "/finetune/run", "subPath": "demo-job-uid"}
    volume = {"name": "claim-0", "persistentVolumeClaim": {"claimName": "runs"}}
    template = {"containers": [{"name": "trainer", "volumeMounts": [mount]}], "volumes": [volume]}
    owner = [{"kind": "FineTuneJob", "name": "demo", "uid": UID, "controller": True}]
    return {
        "metadata": metadata("demo-1", "attempt-1", version, ownerReferences=owner),
        "spec": {"completions": workers, "template": {"spec": template}, **spec},
        "status": dict(status),
    }


def over(kind, seconds=20):
    return {"conditions": [{"type": kind, "status": "True", "lastTransitionTime": wire(seconds)}]}


def seen(record, *pods, now=60, gone=(), refused=None):
    """The attempt of these objects; pods in ``gone`` (by uid) have been deleted since."""
    store = Store(lambda: at(40))
    for raw in pods:
        store.see(POD, raw)
        if raw["metadata"]["uid"] in gone:
            store.drop(POD, raw["metadata"]["uid"], KEY)
    known = store.children_of(KEY).pods.values()
    return observe_attempt(1, record and record_attempt(record), known, at(now), refused)


RUNNING = pod("Running", {"running": {"startedAt": wire(5)}})
PEER = pod("Running", {"running": {"startedAt": wire(6)}}, index=1)
FIRST = ObservedWorker(0, WorkerPhase.RUNNING, at(5), node="n1")
SECOND = ObservedWorker(1, WorkerPhase.RUNNING, at(6), node="n1")
NEVER_SEEN = ObservedWorker(1, WorkerPhase.FAILED, ended=at(20), platform_reason=PlatformReason.DELETED)
VANISHED = ObservedWorker(0, WorkerPhase.FAILED, at(5), at(40), node="n1", platform_reason=PlatformReason.DELETED)
PENDING = ObservedWorker(0, WorkerPhase.PENDING), ObservedWorker(1, WorkerPhase.PENDING)

ATTEMPTS = {
    "no pods yet": (seen(job()), ObservedAttempt(1, PENDING)),
    "both run": (seen(job(), RUNNING, PEER), ObservedAttempt(1, (FIRST, SECOND))),
    "asked to leave": (
        seen(job(activeDeadlineSeconds=1), RUNNING, PEER),
        ObservedAttempt(1, (FIRST, SECOND), stopping=True),
    ),
    "held": (seen(job(suspend=True)), ObservedAttempt(1, PENDING, held=True)),
    "a pod vanished, and the Job does not say yet what that means": (
        seen(job(), RUNNING, PEER, gone=["pod-0"]),
        ObservedAttempt(1, (PENDING[0], SECOND)),
    ),
    "a pod vanished, and that failed the Job": (
        seen(job(status=over("Failed")), RUNNING, gone=["pod-0"]),
        ObservedAttempt(1, (VANISHED, NEVER_SEEN)),
    ),
    "let go again after it was held: the new pod counts": (
        seen(job(), pod(uid="old"), pod("Running", {"running": {"startedAt": wire(5)}}, version=9), gone=["old"]),
        ObservedAttempt(1, (FIRST, PENDING[1])),
    ),
    "done, and its pods were cleaned away": (
        seen(job(status=over("Complete"), workers=1)),
        ObservedAttempt(1, (ObservedWorker(0, WorkerPhase.SUCCEEDED, ended=at(20), exit_code=0),)),
    ),
    "the Job is gone, a pod still leaves": (seen(None, RUNNING), ObservedAttempt(1, (FIRST,))),
    "the Job is gone, and so are its pods": (seen(None, RUNNING, gone=["pod-0"]), ObservedAttempt(1, (VANISHED,))),
    "peers not met": (
        seen(job(), RUNNING, pod(index=1, node=None, status=UNSCHEDULABLE)),
        ObservedAttempt(
            1,
            (FIRST, PENDING[1]),
            waiting="1 of 2 workers run; worker 1 waits: no node takes it (Unschedulable): 0/3 nodes are available",
        ),
    ),
    "not scheduled for a moment": (
        seen(job(), RUNNING, pod(index=1, node=None, status=UNSCHEDULABLE), now=3),
        ObservedAttempt(1, (FIRST, PENDING[1])),
    ),
    "no pods allowed": (
        seen(job(), refused="exceeded quota"),
        ObservedAttempt(1, PENDING, waiting="its pods cannot be made: exceeded quota"),
    ),
    "a node does not answer": (
        seen(job(), pod("Running", {"running": {"startedAt": wire(5)}}, **LEAVING), PEER, now=161),
        ObservedAttempt(
            1,
            (ObservedWorker(0, WorkerPhase.RUNNING, at(5), node="n1", platform_reason=PlatformReason.DELETED), SECOND),
            waiting="worker 0 was asked to leave, but its node n1 does not answer; nothing starts beside it until the "
            "node is back, or deleted, or tainted out-of-service",
        ),
    ),
}


@pytest.mark.parametrize(("observed", "attempt"), ATTEMPTS.values(), ids=ATTEMPTS.keys())
def test_an_attempt_is_its_job_and_its_pods(observed, attempt):
    assert observed == attempt


DOUBTS = {
    "runs": (job(), [RUNNING, PEER], False),
    "ended, and the pods do not say so yet": (job(status=over("Failed")), [RUNNING, PEER], True),
    "ended, and one was never told of": (job(status=over("Failed")), [pod("Failed", ended(1))], True),
    "ended, all of it": (job(status=over("Failed"), workers=1), [pod("Failed", ended(1))], False),
}


@pytest.mark.parametrize(("record", "pods", "doubt"), DOUBTS.values(), ids=DOUBTS.keys())
def test_two_watches_may_contradict_each_other_for_a_moment(record, pods, doubt):
    assert is_in_doubt(record_attempt(record), [record_pod(one) for one in pods]) is doubt


# --- the store


def tune_job(version=1, phase=None, finished=False, uid=UID, **spec):
    conditions = [{"type": "Succeeded", "status": "True"}] if finished else []
    status = {"status": {"phase": phase, "conditions": conditions, "completionTime": wire(50)}} if phase else {}
    return {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {**metadata("demo", uid, version), "managedFields": [{"manager": "kubectl"}]},
        "spec": {"task": "causal-lm", **spec},
        **status,
    }


@pytest.fixture
def store():
    return Store(lambda: at(40))


def test_an_older_version_never_replaces_a_newer_one(store):
    assert store.see(FINE_TUNE_JOB, tune_job(5, "Running")) == [KEY]
    assert store.see(FINE_TUNE_JOB, tune_job(4, "Starting")) == []
    assert store.see(FINE_TUNE_JOB, tune_job(5, "Starting")) == []
    assert (store.jobs[KEY].phase, dict(store.phases)) == ("Running", {("team", "Running"): 1})


def test_of_a_finished_job_little_is_kept(store):
    store.see(FINE_TUNE_JOB, tune_job(1, "Running", ttlSecondsAfterFinished=60))
    store.see(JOB, job())
    store.see(POD, RUNNING)
    store.see(FINE_TUNE_JOB, tune_job(2, "Succeeded", finished=True, ttlSecondsAfterFinished=60))
    assert (store.jobs[KEY].document, store.jobs[KEY].expires) == (None, at(110))
    assert store.children == {}
    assert store.see(POD, pod("Failed", ended(1), version=7)) == []
    assert store.lose(POD, pod("Failed", ended(1), version=8)) == []
    assert store.children == {}
    assert store.lose(FINE_TUNE_JOB, tune_job(3)) == [KEY]
    assert (store.jobs, dict(store.phases)) == ({}, {})


def test_a_record_holds_no_managed_fields():
    document = record_job(tune_job()).document
    assert b"managedFields" not in document
    assert b'"uid":"job-uid"' in document


def test_only_what_matters_is_looked_at(store):
    store.see(FINE_TUNE_JOB, tune_job())
    assert store.see(JOB, job()) == []
    assert store.see(JOB, job(2, status={"active": 2})) == []
    assert store.see(JOB, job(3, suspend=True)) == [KEY]
    assert store.see(JOB, job(4)) == [KEY]
    assert store.see(POD, pod()) == []
    assert store.see(POD, pod("Running", {"running": {}}, version=2)) == []
    assert store.see(POD, pod("Failed", ended(1), version=3)) == [KEY]
    assert store.lose(POD, pod("Failed", ended(1), version=4)) == [KEY]
    assert store.lose(POD, pod("Failed", ended(1), version=4)) == []


def test_what_hinders_a_pod_is_looked_at_once(store):
    store.see(FINE_TUNE_JOB, tune_job())
    store.see(JOB, job())
    assert store.see(POD, pod(version=1)) == []
    assert store.see(POD, pod(version=2, status=UNSCHEDULABLE)) == [KEY]
    assert store.see(POD, pod(version=3, state=waiting("ErrImagePull", "not found"))) == []
    assert store.see(POD, pod("Running", {"running": {}}, version=4)) == []
    assert store.see(POD, pod(version=5, status=UNSCHEDULABLE)) == [KEY]


def test_what_a_deleted_pod_told_stays_until_its_attempts_end_is_told(store):
    store.see(FINE_TUNE_JOB, tune_job())
    store.see(POD, RUNNING)
    store.lose(POD, pod("Failed", ended(143), version=5, **LEAVING))
    assert numbers_of(store.children_of(KEY), UID) == {1}
    (gone,) = store.children_of(KEY).pods.values()
    assert (gone.is_gone, gone.worker.exit_code) == (True, 143)
    store.forget_ended(KEY, 0)
    assert len(store.children_of(KEY).pods) == 1
    store.forget_ended(KEY, 1)
    assert store.children_of(KEY).pods == {}


def test_pods_of_a_held_job_are_no_end(store):
    store.see(FINE_TUNE_JOB, tune_job())
    store.see(JOB, job())
    store.see(POD, RUNNING)
    store.see(JOB, job(2, suspend=True))
    store.lose(POD, pod("Failed", ended(143), version=5, **LEAVING))
    assert [one for one in store.children_of(KEY).pods.values() if not one.is_gone] == []
    store.see(JOB, job(6))
    (record,) = store.children_of(KEY).attempts.values()
    workers = observe_attempt(1, record, store.children_of(KEY).pods.values(), at(60)).workers
    assert {worker.phase for worker in workers} == {WorkerPhase.PENDING}


class Asked:
    """An API server that knows of some events."""

    def __init__(self, takes=lambda: None):
        self.count, self.told, self.takes = 0, [], takes

    async def pages(self, _kind, _namespace, **query):
        assert query["fieldSelector"] == "involvedObject.kind=Job,reason=FailedCreate"
        self.count += 1
        self.takes()
        for event in self.told:
            yield [event]


def refused(uid, why, second=0):
    told = {"message": f"Error creating: {why}", "lastTimestamp": wire(second)}
    return {**told, "involvedObject": {"kind": "Job", "uid": uid}}


@pytest.mark.parametrize(("takes", "again"), [(0.1, 10), (2.0, 40)])
def test_all_jobs_of_a_namespace_are_asked_about_at_once(store, takes, again):
    """And the less often the longer the API server reads its events for it."""
    seconds = 20.0

    def read():
        nonlocal seconds
        seconds += takes

    api = Asked(read)
    api.told = [refused("b", "no room", 9), refused("b", "no rooms", 4), refused("a", "a policy"), refused("x", "x")]
    bucket = TokenBucket(1.0, 99.0, lambda: seconds)
    observer = Observer(store, api, None, bucket, bucket, lambda: at(seconds), lambda: seconds)
    told = {}
    for name in ("a", "b", "c"):
        key = Key("team", name)
        labels = {"labels": {**LABELS, "finetune.dev/job": name}}
        store.see(FINE_TUNE_JOB, {**tune_job(), "metadata": metadata(name, UID)})
        raw = job()
        store.see(JOB, {**raw, "metadata": {**raw["metadata"], **labels, "uid": name}})
        tuned = parse_job(tune_job() | {"metadata": {"name": name, "namespace": "team"}, "spec": SPEC})
        told[name] = asyncio.run(observer.observe(key, tuned, Memory())).observed.attempt.waiting
    assert told == {"a": "its pods cannot be made: a policy", "b": "its pods cannot be made: no room", "c": None}
    assert api.count == 1
    seconds += again - 0.1
    asyncio.run(observer.observe(key, tuned, Memory()))
    assert api.count == 1
    seconds += 0.2
    asyncio.run(observer.observe(key, tuned, Memory()))
    assert api.count == 2


def test_why_there_are_no_pods_is_asked_now_and_then(store):
    store.see(FINE_TUNE_JOB, tune_job())
    store.see(JOB, job())
    tuned = parse_job(tune_job() | {"spec": SPEC})
    api, seconds, memory = Asked(), 2.0, Memory()
    once = TokenBucket(1 / 40, 2, lambda: seconds)
    observer = Observer(store, api, None, once, once, lambda: at(seconds), lambda: seconds)

    def look(at_second):
        nonlocal seconds
        seconds = at_second
        found = asyncio.run(observer.observe(KEY, tuned, memory))
        return api.count, found.observed.attempt.waiting, found.quiet_seconds

    assert look(2.0) == (0, None, 6)
    assert look(8.0) == (1, None, 10), "nothing is told yet"
    api.told = [refused("attempt-1", "no room")]
    assert look(18.0) == (2, "its pods cannot be made: no room", 30)
    assert look(30.0) == (2, "its pods cannot be made: no room", 18)
    assert look(48.0) == (3, "its pods cannot be made: no room", 30)
    assert look(78.0) == (3, "its pods cannot be made: no room", 30), "too many are asking"
    assert store.see(POD, RUNNING) == [KEY], "what is awaited is looked at at once"
    assert look(80.0) == (3, "its pods cannot be made: no room", 0), "a worker that runs is looked at as ever"
    assert store.see(POD, PEER) == []
    assert look(81.0) == (3, None, 0)
    assert memory.ask_at is None


ADDRESS = {"podIP": "10.0.0.1"}
ANSWERS = pod("Running", {"running": {"startedAt": wire(5)}}, status=ADDRESS)


@pytest.mark.parametrize(
    ("pods", "pulled"),
    [
        ([ANSWERS], ["10.0.0.1"]),
        ([ANSWERS, pod("Succeeded", ended(0), index=1)], ["10.0.0.1"]),
        ([ANSWERS, pod("Failed", ended(137), index=1)], []),
        ([pod("Running", ended(137), status=ADDRESS)], []),
        ([pod("Running", {"running": {"startedAt": wire(5)}})], []),
    ],
    ids=["runs", "its peer is done", "its peer has failed", "its container has ended", "no address"],
)
def test_a_worker_that_may_be_ending_is_not_asked_how_it_goes(store, pods, pulled):
    """It would not answer, and the next attempt would wait for that."""
    store.see(FINE_TUNE_JOB, tune_job())
    store.see(JOB, job())
    for one in pods:
        store.see(POD, one)
    asked = []

    async def pull(address):
        asked.append(address)

    bucket = TokenBucket(1.0, 1.0, lambda: 0.0)
    observer = Observer(store, Asked(), pull, bucket, bucket, lambda: at(6), lambda: 6.0)
    asyncio.run(observer.observe(KEY, parse_job(tune_job() | {"spec": SPEC}), Memory()))
    assert asked == pulled


def test_a_namesakes_children_are_not_the_jobs(store):
    store.see(FINE_TUNE_JOB, tune_job(uid="new"))
    store.see(JOB, job())
    store.see(POD, RUNNING)
    assert numbers_of(store.children_of(KEY), "new") == set()
    assert store.lose(FINE_TUNE_JOB, tune_job(9, uid="old")) == []
    assert KEY in store.jobs


def test_what_only_bears_our_label_is_passed_by(store):
    ours = {"metadata": {"name": "x", "namespace": "team", "uid": "u", "labels": {"finetune.dev/job": "demo"}}}
    for kind in (JOB, POD, NETWORK_POLICY, CLAIM, SERVICE, RUNTIME, FINE_TUNE_JOB):
        store.see(kind, copy.deepcopy(ours))
        store.lose(kind, copy.deepcopy(ours))
        store.see(kind, {"metadata": {}})
    assert numbers_of(store.children_of(KEY), UID) == set()


def test_every_object_can_be_found_to_be_gone(store):
    lasting = {"metadata": metadata("demo", "policy"), "spec": {}}
    runtime = {"metadata": {"name": "default", "uid": "runtime", "resourceVersion": "1"}}
    given = [
        (FINE_TUNE_JOB, tune_job()),
        (JOB, job()),
        (POD, RUNNING),
        (NETWORK_POLICY, lasting),
        (SERVICE, {"metadata": metadata("finetune-workers-0", "service"), "spec": {}}),
        (RUNTIME, runtime),
    ]
    for kind, raw in given:
        store.see(kind, raw)
    known = {kind.name: dict(store.known(kind)) for kind, _ in given}
    assert {name: list(uids) for name, uids in known.items()} == {
        "FineTuneJob": [UID],
        "Job": ["attempt-1"],
        "Pod": ["pod-0"],
        "NetworkPolicy": ["policy"],
        "Service": ["service"],
        "FineTuneRuntime": ["runtime"],
    }
    for kind, _ in reversed(given):
        for uid, key in known[kind.name].items():
            store.drop(kind, uid, key)
    assert [list(store.known(kind)) for kind, _ in given] == [[]] * len(given)


# --- progress


def test_paths_in_the_container_become_paths_of_the_claim():
    checkpoint = LastCheckpoint(step=1, path="/finetune/run/checkpoints/step-1", time=T0)
    report = ProgressReport(stage=Stage.TRAINING, attempt=1, last_checkpoint=checkpoint)
    result = Result(reason="Completed", model="/finetune/run/model", report="/elsewhere/report.html")
    message = TerminationMessage(exit_code=0, result=result, report=report)
    moved = relocate_message(message, "pvc://runs/demo")
    assert moved.report == relocate_report(report, "pvc://runs/demo")
    assert moved.report.last_checkpoint.path == "pvc://runs/demo/checkpoints/step-1"
    assert (moved.result.model, moved.result.report) == ("pvc://runs/demo/model", "/elsewhere/report.html")
    assert record_attempt(job()).run == "pvc://runs/demo-job-uid"
