"""The operator as a process of its own beside a cluster without nodes, and pods that a test plays itself."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

from cluster.ports import free_ports
from finetune_api import ProgressReport, TerminationMessage

API_VERSION = "finetune.dev/v1alpha1"
RUNTIME = {
    "apiVersion": API_VERSION,
    "kind": "FineTuneRuntime",
    "metadata": {"name": "default"},
    "spec": {"image": "trainer:1", "volume": {"claimName": "runs"}},
}
_addresses = itertools.count(2)


def job(namespace, name="demo", **spec):
    return {
        "apiVersion": API_VERSION,
        "kind": "FineTuneJob",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "task": "text-classification",
            "model": {"source": "hf://owner/model"},
            "data": {"source": "hf://owner/data"},
            **spec,
        },
    }


def until(look, seconds=30.0, what=""):
    """The first thing that ``look`` returns and is true."""
    deadline, last = time.monotonic() + seconds, None
    while time.monotonic() < deadline:
        last = look()
        if last:
            return last
        time.sleep(0.2)
    raise AssertionError(f"not within {seconds} s: {(what() if callable(what) else what) or look}; last {last!r}")


class Operator:
    """One replica."""

    def __init__(self, cluster, log: Path, *flags: str):
        self.metrics_port, self.health_port = free_ports(2)
        self.log = log
        environment = os.environ | {"KUBECONFIG": str(cluster.kubeconfig)}
        command = [sys.executable, "-m", "finetune_operator", "--verbose", "--bind-address=127.0.0.1", *flags]
        ports = [f"--metrics-port={self.metrics_port}", f"--health-port={self.health_port}"]
        with log.open("ab") as output:
            self.process = subprocess.Popen([*command, *ports], env=environment, stdout=output, stderr=output)

    def fetch(self, port: int, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError as error:
            return 0, str(error)

    def await_ready(self):
        until(lambda: self.process.poll() is not None or self.fetch(self.health_port, "/readyz")[0] == 200)
        assert self.process.poll() is None, self.log.read_text()[-3000:]
        return self

    def metrics(self) -> dict[str, float]:
        lines = self.fetch(self.metrics_port, "/metrics")[1].splitlines()
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}

    def writes(self) -> float:
        """Requests so far that changed something."""
        verbs = ('verb="POST"', 'verb="PUT"', 'verb="PATCH"', 'verb="DELETE"')
        name = "finetune_operator_api_requests_total"
        return sum(v for k, v in self.metrics().items() if k.startswith(name) and any(verb in k for verb in verbs))

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(20)

    def kill(self):
        self.process.kill()
        self.process.wait(10)


class Stage:
    """A namespace, what an operator does in it, and the pods, which the test plays."""

    def __init__(self, cluster, namespace, folder: Path):
        self.cluster, self.namespace, self.folder = cluster, namespace, folder
        self.operators: list[Operator] = []

    def start(self, *flags: str) -> Operator:
        flags = flags or ("--no-leader-election",)
        log = self.folder / f"operator-{len(self.operators)}.log"
        operator = Operator(self.cluster, log, f"--namespaces={self.namespace}", "--progress-readers=ops", *flags)
        self.operators.append(operator)
        return operator

    def end(self):
        for operator in self.operators:
            if operator.process.poll() is None:
                operator.kill()
            print(operator.log.read_text()[-3000:])  # shown where the test fails

    # the cluster

    def apply(self, name="demo", **spec):
        self.cluster.apply(job(self.namespace, name, **spec))

    def get(self, *arguments):
        return self.cluster.get("-n", self.namespace, *arguments)

    def find(self, kind, name):
        """An object, or None."""
        items = self.get(kind, f"--field-selector=metadata.name={name}")
        return items[0] if items else None

    def kubectl(self, *arguments, **options):
        return self.cluster.kubectl("-n", self.namespace, *arguments, **options)

    def patch(self, kind, name, patch, *flags):
        self.kubectl("patch", kind, name, "--type=merge", f"--patch={json.dumps(patch)}", *flags)

    def status(self, name="demo"):
        found = self.find("finetunejobs", name)
        return (found or {}).get("status") or {}

    def until_phase(self, phase, name="demo", seconds=30.0):
        return until(lambda: (s := self.status(name)).get("phase") == phase and s, seconds, f"{name} {phase}")

    def message(self, name="demo", kind="Running"):
        return next((one["message"] for one in self.status(name).get("conditions", []) if one["type"] == kind), "")

    # pods

    def pods(self, attempt=1, name="demo", count=1):
        """Names of an attempt's pods, in the order of its workers, once there are so many."""
        selector = f"--selector=finetune.dev/job={name},finetune.dev/attempt={attempt}"

        def look():
            pods = self.get("pods", selector)
            return len(pods) == count and sorted(pod["metadata"]["name"] for pod in pods)

        return until(look, what=f"{count} pods of attempt {attempt}")

    def run(self, pod, address="127.0.0.1"):
        state = {"running": {"startedAt": now()}}
        self._tell(pod, {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}], **containers(state)})

    def finish(self, pod, code=0, message=None, reason=None, **status):
        """The worker of a pod ends."""
        text = message.model_dump_json(exclude_none=True, by_alias=True) if message else None
        ended = {"exitCode": code, "startedAt": now(), "finishedAt": now(), "reason": reason or "Error"}
        state = {"terminated": {**ended, **({"message": text} if text else {})}}
        self._tell(pod, {"phase": "Failed" if code else "Succeeded", **containers(state), **status})

    def wait_with(self, pod, reason, message):
        """The pod's container cannot start."""
        self._tell(pod, {"phase": "Pending", **containers({"waiting": {"reason": reason, "message": message}})})

    def _tell(self, pod, status):
        self.patch("pod", pod, {"status": status}, "--subresource=status")


def containers(state):
    one = {"name": "trainer", "image": "trainer:1", "imageID": "", "ready": False, "restartCount": 0}
    return {"containerStatuses": [{**one, "state": state}]}


def now():
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@contextmanager
def serving(report: ProgressReport):
    """Worker 0's progress on an address of its own; yields the address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            body = report.model_dump_json(exclude_none=True, by_alias=True).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    address = f"127.{os.getpid() % 250 + 1}.7.{next(_addresses)}"
    server = ThreadingHTTPServer((address, 8080), Handler)
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield address
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def killed(process, seconds=20):
    process.send_signal(signal.SIGKILL)
    process.wait(seconds)


def message(code, cause=None, text="", **fields) -> TerminationMessage:
    return TerminationMessage(exit_code=code, cause=cause, message=text, **fields)
