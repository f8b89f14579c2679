"""Operators that are hurt: started again as a kubelet would, seen from outside, on simulated nodes."""

import http.client
import itertools
import json
import re
import signal
import socket
import ssl
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any

from api_proxy import ApiProxy, Call, trusted
from operating import RUNTIME, Operator, job, until

_CLASS = "survival"
SIZED = {
    **RUNTIME,
    "metadata": {"name": "sized"},
    "spec": {**RUNTIME["spec"], "volume": {"size": "1Gi", "storageClassName": _CLASS}},
}
"""A runtime whose jobs have a claim made for them."""
RESTART_SECONDS = 1.0
ANSWER_SECONDS = 60.0
"""An API server takes no longer over a request; soon after etcd's return it took more than 10 s over a write."""
_volumes = itertools.count()


class Replica:
    """An operator behind a proxy of its own."""

    def __init__(self, cluster: Any, namespace: str, folder: Path, *flags: str) -> None:
        self.proxy = ApiProxy(cluster, folder)
        self.kills: list[float] = []
        self.paused_at: float | None = None
        self.ends: list[int] = []
        """Exit codes of the processes that ended of themselves."""
        self._log = folder / f"operator-{self.proxy.kubeconfig.stem}.log"
        self._flags = (f"--namespaces={namespace}", "--progress-readers=ops", *(flags or ("--no-leader-election",)))
        self._lock, self._closing = Lock(), Event()
        self.operator = self._start()
        self._keeper = Thread(target=self._keep_up)
        self._keeper.start()

    def _start(self) -> Operator:
        return Operator(self.proxy, self._log, *self._flags)

    def kill(self) -> None:
        """SIGKILL; at once the next one starts."""
        with self._lock:
            self.operator.kill()
            self.kills.append(time.monotonic())
            self.operator = self._start()

    def end(self) -> float:
        """SIGKILL, and nobody starts it again; returns when that was, in ``time.monotonic``'s seconds."""
        self._closing.set()
        self._keeper.join()
        self.operator.kill()
        return time.monotonic()

    def pause_after(self, write: str) -> None:
        """SIGSTOP as soon as the API server has carried out the first write of this kind (``POST jobs``)."""

        def strike(call: Call, now: str) -> bool:
            if (str(call), now) == (write, "after") and self.paused_at is None:
                self.operator.process.send_signal(signal.SIGSTOP)
                self.paused_at = time.monotonic()
            return False

        self.proxy.strike = strike

    def resume(self) -> None:
        """SIGCONT."""
        self.operator.process.send_signal(signal.SIGCONT)

    @property
    def leads(self) -> bool:
        return self.operator.metrics().get("finetune_operator_leading") == 1

    def kill_at(self, number: int, when: str) -> None:
        """Kill it ``before`` the API server gets its write of this number, or ``after`` it has carried it out."""

        def strike(call: Call, now: str) -> bool:
            if (call.number, now) != (number, when) or self.kills:
                return False
            self.kill()
            return True

        self.proxy.strike = strike

    def _keep_up(self) -> None:
        """Start it again whenever it has ended."""
        while not self._closing.wait(RESTART_SECONDS):
            with self._lock:
                code = self.operator.process.poll()
                if code is not None:
                    self.ends.append(code)
                    self.operator = self._start()

    def log(self) -> str:
        return self._log.read_text()

    def close(self) -> None:
        self._closing.set()
        self._keeper.join()
        if self.operator.process.poll() is None:
            self.operator.kill()
        self.proxy.close()


class Outside:
    """A namespace as the API server has it, asked directly and cheaply."""

    def __init__(self, cluster: Any, namespace: str) -> None:
        self.cluster, self.namespace = cluster, namespace
        self._context = trusted(cluster)

    def ask(self, verb: str, path: str, body: Any = None) -> Any:
        """The answer; None if there is no such object."""
        url = f"{self.cluster.plane.url}{path.format(namespace=self.namespace)}"
        data = None if body is None else json.dumps(body).encode()
        kind = "application/merge-patch+json" if verb == "PATCH" else "application/json"
        request = urllib.request.Request(url, data, {"Content-Type": kind}, method=verb)
        try:
            with urllib.request.urlopen(request, timeout=ANSWER_SECONDS, context=self._context) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                if error.code == 404:
                    return None
                raise AssertionError(f"{verb} {path}: {error.read().decode()}") from error

    def items(self, path: str) -> list[dict[str, Any]]:
        return self.ask("GET", path)["items"]

    def pods(self, name: str, attempt: int) -> list[dict[str, Any]]:
        """Pods of an attempt in the order of its workers; those that are being deleted count."""
        selector = f"finetune.dev%2Fjob%3D{name},finetune.dev%2Fattempt%3D{attempt}"
        pods = self.items(f"/api/v1/namespaces/{{namespace}}/pods?labelSelector={selector}")
        return sorted(pods, key=lambda pod: pod["metadata"]["name"])

    def running(self, name: str, attempt: int) -> list[str]:
        """Uids of those that run."""
        return [pod["metadata"]["uid"] for pod in self.pods(name, attempt) if pod["status"].get("phase") == "Running"]

    def finish(self, name: str, attempt: int, code: int = 0, message: Any = None, workers: tuple[int, ...] = (0,)):
        """Workers of an attempt end."""
        text = message.model_dump_json(exclude_none=True, by_alias=True) if message else ""
        said = {"runs-for": "0s", "exit-code": str(code), "message": text}
        patch = {"metadata": {"annotations": {f"simulated.test/{key}": value for key, value in said.items()}}}
        pods = self.pods(name, attempt)
        for worker in workers:
            self.ask("PATCH", f"/api/v1/namespaces/{{namespace}}/pods/{pods[worker]['metadata']['name']}", patch)

    def apply(self, *names: str, **spec: Any) -> None:
        """Make jobs."""
        for name in names:
            self.ask("POST", JOBS, job(self.namespace, name, runtime="sized", **spec))

    def give_volumes(self, count: int) -> None:
        """What claims are to be bound to. A claim that came before its volume would wait for 15 s."""
        names = [self.ask("POST", VOLUMES, volume())["metadata"]["name"] for _ in range(count)]
        until(
            lambda: all(
                self.ask("GET", f"{VOLUMES}/{name}").get("status", {}).get("phase") == "Available" for name in names
            )
        )

    def change(self, name: str, **spec: Any) -> None:
        """Change fields of a job's spec; None takes one away."""
        self.ask("PATCH", f"{JOBS}/{name}", {"spec": spec})

    def suspend(self, name: str, wanted: bool) -> None:
        self.change(name, suspend=wanted)

    def admit(self, name: str, attempt: int) -> None:
        """As the queue does in which an attempt waits."""
        self.ask("PATCH", f"{CHILDREN}/{name}-{attempt}", {"spec": {"suspend": False}})

    def queue(self, name: str, attempt: int) -> str | None:
        """The queue that an attempt is to wait in; None if there is no attempt, or no queue."""
        found = self.ask("GET", f"{CHILDREN}/{name}-{attempt}")
        return found and found["metadata"]["labels"].get("kueue.x-k8s.io/queue-name")

    def status(self, name: str) -> dict[str, Any]:
        return (self.ask("GET", f"{JOBS}/{name}") or {}).get("status") or {}

    def until_phase(self, name: str, phase: str, seconds: float = 60.0) -> dict[str, Any]:
        return until(lambda: (s := self.status(name)).get("phase") == phase and s, seconds, f"{name} {phase}")

    def until_runs(self, name: str, attempt: int = 1, workers: int = 1, seconds: float = 60.0) -> list[str]:
        """Uids of the workers of an attempt, once they all run and the status knows of it."""

        def look() -> Any:
            known = [one["number"] for one in self.status(name).get("attempts", []) if "end" not in one]
            found = self.running(name, attempt)
            return known == [attempt] and len(found) == workers and found

        return until(look, seconds, f"{workers} workers of {name}'s attempt {attempt} run")


VOLUMES = "/api/v1/persistentvolumes"
JOBS = "/apis/finetune.dev/v1alpha1/namespaces/{namespace}/finetunejobs"
CHILDREN = "/apis/batch/v1/namespaces/{namespace}/jobs"
CLAIMS = "/api/v1/namespaces/{namespace}/persistentvolumeclaims"


def volume() -> dict[str, Any]:
    """A volume that the next claim is bound to."""
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"generateName": f"pool-{next(_volumes)}-"},
        "spec": {
            "capacity": {"storage": "1Gi"},
            "storageClassName": _CLASS,
            "accessModes": ["ReadWriteOnce", "ReadWriteMany"],
            "hostPath": {"path": "/nowhere"},
        },
    }


def claim(name: str) -> dict[str, Any]:
    """What is bound to such a volume."""
    return {
        "metadata": {"name": name},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": _CLASS,
            "resources": {"requests": {"storage": "1Gi"}},
        },
    }


class PodWitness:
    """Every pod that ever was in a namespace, by a watch of its own."""

    def __init__(self, outside: Outside) -> None:
        self.names: dict[str, str] = {}
        """Uid → name without its random end."""
        self.overlaps: list[str] = []
        """Pods that were made while one of an earlier attempt was alive."""
        self._alive: dict[str, tuple[str, int]] = {}
        address = outside.cluster.plane.url.partition("://")[2]
        context: ssl.SSLContext = trusted(outside.cluster)
        self._connection = http.client.HTTPSConnection(address, context=context, timeout=900)
        self._connection.request("GET", f"/api/v1/namespaces/{outside.namespace}/pods?watch=true&resourceVersion=0")
        self._socket = self._connection.sock
        self._answer = self._connection.getresponse()
        self._thread = Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        with suppress(OSError, http.client.HTTPException, ValueError):
            for line in self._answer:
                event = json.loads(line)
                self._see(event["type"], event["object"])

    def _see(self, event: str, pod: dict[str, Any]) -> None:
        metadata = pod["metadata"]
        uid, name = metadata["uid"], metadata["name"].rpartition("-")[0]
        attempt = int(metadata["labels"]["finetune.dev/attempt"])
        if event == "ADDED":
            self.names[uid] = name
            earlier = [one for one, (_, number) in self._alive.items() if number < attempt]
            self.overlaps += [f"{name} beside {self.names[one]}" for one in earlier]
        if event == "DELETED" or pod["status"].get("phase") in ("Succeeded", "Failed"):
            self._alive.pop(uid, None)
        else:
            self._alive[uid] = name, attempt

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._connection.close()


_DROPPED = {"managedFields", "resourceVersion", "creationTimestamp", "runningSeconds", "volumeName"}
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")


def normalised(objects: list[dict[str, Any]], namespace: str) -> Any:
    """Objects without what differs from run to run: uids, versions, times, the names of volumes and nodes."""
    for one in objects:
        _forget_partings(one.get("status") or {})
    text = json.dumps(sorted((_without(one) for one in objects), key=_sort_key))
    for one in objects:
        metadata = one["metadata"]
        told = f"{one['kind']}-{metadata['name']}"
        text = text.replace(metadata["uid"], f"<uid of {told}>").replace(metadata["uid"][:8], f"<id of {told}>")
    text = _TIME.sub("<time>", text).replace(namespace, "<namespace>")
    return json.loads(re.sub(r"simulated-\d+", "<node>", text))


def _forget_partings(status: dict[str, Any]) -> None:
    """What a worker says as it leaves when asked to goes with its pod, if no operator looks at that moment."""
    for attempt in status.get("attempts", []):
        if attempt.get("cause") == "Preempted":
            for name in ("exitCode", "node", "reason"):
                attempt.pop(name, None)


def _sort_key(one: dict[str, Any]) -> tuple[str, str]:
    return one["kind"], one["metadata"]["name"]


def _without(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without(one) for key, one in value.items() if key not in _DROPPED}
    return [_without(one) for one in value] if isinstance(value, list) else value
