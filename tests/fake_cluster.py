"""An API server in memory, a Job controller and workers that follow a script; any write may be the operator's last."""

import asyncio
import copy
import json
from datetime import UTC, datetime, timedelta

from finetune_operator.apply import Applier
from finetune_operator.bucket import TokenBucket
from finetune_operator.errors import ApiError
from finetune_operator.kinds import FINE_TUNE_JOB, JOB, POD, WATCHED
from finetune_operator.metrics import Metrics
from finetune_operator.observe import Observer
from finetune_operator.reconcile import Reconciler
from finetune_operator.starts import Starts
from finetune_operator.store import Store

T0 = datetime(2030, 1, 1, tzinfo=UTC)


class Killed(BaseException):
    """The operator was killed with SIGKILL."""


class FakeCluster:
    """Objects by kind and name, in one namespace."""

    def __init__(self, exits, kill_before=None, kill_after=None, conflicts=()):
        """Run workers to these exit codes, an attempt each; kill at, or refuse, the writes of these numbers."""
        self.exits, self.kill_before, self.kill_after, self.conflicts = exits, kill_before, kill_after, conflicts
        self.objects = {}
        self.runner = None
        self.second, self.version, self.writes = 0, 0, 0
        self.log = []
        self.events = []

    # time

    def now(self):
        return T0 + timedelta(seconds=self.second)

    def clock(self):
        return float(self.second)

    def wire_now(self):
        return self.now().strftime("%Y-%m-%dT%H:%M:%SZ")

    # what the operator asks

    async def get(self, kind, namespace, name):
        if (kind.name, name) not in self.objects:
            raise ApiError(404, "not found")
        return copy.deepcopy(self.objects[kind.name, name])

    async def pages(self, kind, namespace, **query):
        yield [copy.deepcopy(raw) for (name, _), raw in self.objects.items() if name == kind.name]

    async def create(self, kind, namespace, manifest):
        with self.writing("create", kind, manifest["metadata"]["name"]):
            if (kind.name, manifest["metadata"]["name"]) in self.objects:
                raise ApiError(409, "there is one", "AlreadyExists")
            return self.put(kind.name, manifest)

    async def apply(self, kind, manifest, *, overwrite):
        if not overwrite:
            return await self.create(kind, None, manifest)
        with self.writing("apply", kind, manifest["metadata"]["name"]):
            return self.put(kind.name, manifest)

    async def merge(self, kind, namespace, name, patch):
        with self.writing("merge", kind, name):
            raw = self.objects[kind.name, name]
            raw["spec"].update(patch.get("spec", {}))
            raw["metadata"]["labels"].update(patch["metadata"].get("labels", {}))
            return self.touch(raw)

    async def replace(self, kind, manifest, subresource):
        with self.writing(f"replace {subresource} of", kind, manifest["metadata"]["name"]):
            raw = self.objects[kind.name, manifest["metadata"]["name"]]
            if raw["metadata"]["resourceVersion"] != manifest["metadata"]["resourceVersion"]:
                raise ApiError(409, "changed meanwhile")
            raw["status"] = json.loads(json.dumps(manifest["status"]))
            return self.touch(raw)

    async def delete(self, kind, namespace, name, preconditions):
        with self.writing("delete", kind, name):
            gone = self.objects.pop((kind.name, name), None)
            if gone is None:
                raise ApiError(404, "not found")
            self.collect(gone["metadata"]["uid"])

    def writing(self, verb, kind, name):
        return _Write(self, f"{verb} {kind.name} {name}")

    # the server

    def put(self, kind, manifest):
        raw = copy.deepcopy(manifest)
        self.version += 1
        before = self.objects.get((kind, raw["metadata"]["name"]))
        raw["metadata"]["uid"] = before["metadata"]["uid"] if before else f"uid-{self.version}"
        raw["metadata"].setdefault("creationTimestamp", self.wire_now())
        raw.setdefault("kind", kind)
        self.objects[kind, raw["metadata"]["name"]] = raw
        return self.touch(raw)

    def touch(self, raw):
        self.version += 1
        raw["metadata"]["resourceVersion"] = str(self.version)
        return copy.deepcopy(raw)

    def collect(self, uid):
        owned = [
            key
            for key, raw in self.objects.items()
            if any(owner["uid"] == uid for owner in raw["metadata"].get("ownerReferences", []))
        ]
        for key in owned:
            self.collect(self.objects.pop(key)["metadata"]["uid"])

    # controllers and workers

    def live(self):
        """A second passes."""
        self.second += 1
        for raw in [raw for (kind, _), raw in self.objects.items() if kind == JOB.name]:
            if not raw.get("status") and not raw["spec"].get("suspend"):
                self.run_job(raw)

    def run_job(self, raw):
        name, number = raw["metadata"]["name"], int(raw["metadata"]["labels"]["finetune.dev/attempt"])
        pods = [self.pod_of(raw, index) for index in range(raw["spec"]["completions"])]
        if "activeDeadlineSeconds" in raw["spec"]:
            for pod in pods:
                del self.objects[POD.name, pod["metadata"]["name"]]
            raw["status"] = self.over("Failed")
        elif (self.now() - datetime.fromisoformat(raw["metadata"]["creationTimestamp"])).total_seconds() >= 5:
            code = self.exits[number - 1] if number <= len(self.exits) else 0
            for pod in pods:
                state = {"exitCode": code, "startedAt": raw["metadata"]["creationTimestamp"]}
                state["finishedAt"] = self.wire_now()
                told = {"name": "trainer", "state": {"terminated": state}}
                pod["status"] = {"phase": "Failed" if code else "Succeeded", "containerStatuses": [told]}
                self.touch(pod)
            raw["status"] = self.over("Failed" if code else "Complete")
        self.touch(raw)
        assert name in [raw["metadata"]["name"] for raw in self.objects.values()]

    def pod_of(self, job, index):
        name = f"{job['metadata']['name']}-{index}"
        if (POD.name, name) not in self.objects:
            labels = job["spec"]["template"]["metadata"]["labels"]
            owners = [{"uid": job["metadata"]["uid"], "controller": True}]
            annotations = {"batch.kubernetes.io/job-completion-index": str(index)}
            metadata = {"name": name, "namespace": job["metadata"]["namespace"], "labels": labels}
            pod = {"metadata": {**metadata, "ownerReferences": owners, "annotations": annotations}, "spec": {}}
            self.put(POD.name, {**pod, "status": {"phase": "Pending"}})
        return self.objects[POD.name, name]

    def over(self, kind):
        return {"conditions": [{"type": kind, "status": "True", "lastTransitionTime": self.wire_now()}]}


class _Write:
    """One write: counted, and the moment at which the operator is killed or told of a conflict."""

    def __init__(self, cluster, what):
        self.cluster, self.what = cluster, what

    def __enter__(self):
        cluster = self.cluster
        cluster.writes += 1
        cluster.log.append(self.what)
        if cluster.writes == cluster.kill_before:
            raise Killed
        if cluster.writes in cluster.conflicts:
            raise ApiError(409, "injected")

    def __exit__(self, kind, *_):
        if kind is None and self.cluster.writes == self.cluster.kill_after:
            raise Killed


class FakePoster:
    def __init__(self, cluster):
        self.cluster = cluster

    def add(self, posting):
        self.cluster.events.append(posting.event)


class OperatorLife:
    """One process of the operator, from start to its end."""

    def __init__(self, cluster):
        self.cluster = cluster
        self.store = Store(cluster.now)
        full = TokenBucket(1e9, 1e9, cluster.clock)

        async def pull(_address):
            return None

        observer = Observer(self.store, cluster, pull, full, full, cluster.now, cluster.clock)
        applier = Applier(self.store, cluster, ("ops",), lambda _key: None)
        events = FakePoster(cluster)
        starts = Starts(lambda _key: None, self.store.is_shared, lambda _seconds, call: call(), cluster.clock)
        self.reconciler = Reconciler(
            self.store, observer, applier, events, Metrics(), full, full, starts, cluster.now, cluster.clock
        )

    def look(self):
        """What the watches tell, then a look at every job; returns when each is to be looked at again."""
        self.watch()
        waits = []
        for key in self.looked_at():
            try:
                waits.append(self.cluster.runner.run(self.reconciler.reconcile(key)))
            except ApiError as error:
                self.cluster.log.append(f"failed: {error}")
        return waits

    def looked_at(self):
        return list(self.store.jobs)

    def watch(self):
        for kind in WATCHED:
            there = {raw["metadata"]["uid"] for (name, _), raw in self.cluster.objects.items() if name == kind.name}
            for (name, _), raw in list(self.cluster.objects.items()):
                if name == kind.name:
                    self.store.see(kind, copy.deepcopy(raw))
            for uid, key in list(self.store.known(kind)):
                if uid not in there:
                    self.store.drop(kind, uid, key)


def run_to_the_end(cluster, seconds=45, at=None, life_of=OperatorLife, ended=lambda _cluster: False):
    """Seconds of cluster time; ``at`` maps a second to what somebody does then. Returns how often it was killed."""
    kills = 0
    with asyncio.Runner() as cluster.runner:
        life = life_of(cluster)
        for second in range(seconds):
            if ended(cluster):
                break
            if at and second in at:
                at[second](cluster)
            cluster.live()
            for _ in range(2):
                try:
                    life.look()
                except Killed:
                    kills += 1
                    life = life_of(cluster)
    return kills


def job_status(cluster, name="demo"):
    return cluster.objects[FINE_TUNE_JOB.name, name]["status"]
