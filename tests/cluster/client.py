"""A cluster that answers: what one asks of it, and how one hurts it."""

import contextlib
import json
import os
import signal
import ssl
import subprocess
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from cluster.cache import CHECKOUT, tail
from cluster.control_plane import API, ETCD, ControlPlane, Ports
from cluster.errors import ClusterError
from cluster.keeper import Keeper
from cluster.kubeconfig import write_kubeconfig
from cluster.programs import program
from cluster.state import read_state, write_state

START_SECONDS = 90
"""For anything to come up; it takes 3 s on a quiet machine."""


class Cluster:
    """A cluster that answers: one of ours (it has a folder), or a user's own."""

    def __init__(self, kubeconfig: Path, folder: Path | None = None) -> None:
        self.kubeconfig = kubeconfig
        """The administrator's."""
        self._folder = folder

    @property
    def folder(self) -> Path:
        """Where all of it lies; raises ``ClusterError`` for a user's own cluster."""
        if self._folder is None:
            raise ClusterError("this is a user's own cluster (FINETUNE_TEST_KUBECONFIG): it is not ours to touch")
        return self._folder

    @property
    def plane(self) -> ControlPlane:
        """How the control plane is set up."""
        known = read_state(self.folder)
        return ControlPlane(self.folder, known["address"], Ports(**known["ports"]))

    @property
    def keeper(self) -> Keeper:
        """Who keeps its processes."""
        return Keeper(self.folder)

    def kubectl(self, *arguments: str | Path, stdin: str | None = None, seconds: float = 60, check: bool = True) -> str:
        """What ``kubectl`` prints; raises ``ClusterError`` with what it complains of, unless ``check`` is False."""
        command = [program("kubectl"), "--kubeconfig", self.kubeconfig, *arguments]
        env = os.environ | {"KUBECACHEDIR": str(self.kubeconfig.parent / ".kube-cache")}
        done = subprocess.run(
            command, input=stdin, capture_output=True, text=True, timeout=seconds, check=False, env=env
        )
        if check and done.returncode:
            raise ClusterError(f"kubectl {' '.join(map(str, arguments))}: {done.stderr.strip()}")
        return done.stdout if check else done.stdout + done.stderr

    def get(self, *arguments: str) -> Any:
        """The objects that ``kubectl get`` finds, as they are in JSON (a list's ``items``)."""
        found = json.loads(self.kubectl("get", *arguments, "--output=json"))
        return found["items"] if found["kind"] == "List" else found

    def apply(self, *manifests: dict[str, Any]) -> None:
        """Apply manifests."""
        self.kubectl("apply", "--filename=-", stdin=yaml.safe_dump_all(manifests))

    def apply_crds(self, folder: Path = CHECKOUT / "crds") -> None:
        """Apply the project's CRDs and wait until they are served."""
        files = [f"--filename={path}" for path in sorted(folder.glob("*.yaml"))]
        self.kubectl("apply", "--server-side", *files)
        self.kubectl("wait", "--for=condition=Established", "--timeout=30s", *files)

    @contextlib.contextmanager
    def namespace(self, prefix: str = "test", labels: dict[str, str] | None = None) -> Iterator[str]:
        """Within: a new namespace in which pods can be created. It is deleted afterwards, without waiting for it."""
        name = f"{prefix}-{uuid.uuid4().hex[:8]}"
        self.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels or {}}})
        try:
            self.await_ready(name)
            yield name
        finally:
            with contextlib.suppress(ClusterError):
                self.kubectl("delete", "namespace", name, "--wait=false")

    def await_ready(self, namespace: str = "default") -> None:
        """Wait until controllers have given the namespace its service account: then pods are admitted."""
        expected = ("serviceaccount/default", "configmap/kube-root-ca.crt")

        def is_ready() -> bool:
            found = self.kubectl("--namespace", namespace, "get", *expected, "--ignore-not-found", "--output=name")
            return len(found.split()) == len(expected)

        self._until(is_ready, f"service account of namespace {namespace}")

    def user(self, name: str, groups: tuple[str, ...] = ()) -> Path:
        """The kubeconfig of a user who may do what RBAC grants to that name and those groups."""
        return write_kubeconfig(self.plane, name, name, groups)

    def start(self, name: str) -> None:
        """Start one of its processes, ``kube-apiserver`` or ``etcd`` for example; waits until it serves."""
        known = read_state(self.folder)["commands"][name]
        self.keeper.start(name, known["command"], self.log(name), known["env"])
        if name in (ETCD, API) and self.keeper.exits().get(API, 0) is None:
            self.await_api()

    def add_process(self, name: str, command: Sequence[str | Path], env: dict[str, str] | None = None) -> None:
        """Start one more process, and remember it for ``start`` and ``stop``."""
        state = read_state(self.folder)
        state["commands"][name] = {"command": [str(part) for part in command], "env": env or {}}
        write_state(self.folder, state)
        self.start(name)

    def stop(self, name: str, how: signal.Signals = signal.SIGTERM) -> None:
        """Stop one of its processes; returns when it has ended."""
        self.keeper.stop(name, how)

    def pause(self, name: str) -> None:
        """Freeze one of its processes: connections stay open and nothing answers."""
        self.keeper.signal(name, signal.SIGSTOP)

    def resume(self, name: str) -> None:
        """Let a frozen process go on."""
        self.keeper.signal(name, signal.SIGCONT)

    def log(self, name: str) -> Path:
        """The log of one of its processes."""
        return self.folder / "logs" / f"{name}.log"

    def await_api(self) -> None:
        """Wait until the API server says that it is ready."""
        plane = self.plane
        ready = f"{plane.url}/readyz"
        trusted = ssl.create_default_context(cafile=str(plane.authority.root.certificate))

        def is_ready() -> bool:
            with contextlib.suppress(OSError), urllib.request.urlopen(ready, timeout=5, context=trusted):
                return True
            return False

        self._until(is_ready, "the API server's /readyz")

    def _until(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not condition():
            if self._folder and (ended := [name for name, code in self.keeper.exits().items() if code is not None]):
                raise ClusterError(f"{', '.join(ended)} ended; {tail(self.log(ended[0]))}")
            if time.monotonic() > deadline:
                log = tail(self.log(API)) if self._folder else ""
                raise ClusterError(f"not within {START_SECONDS} s: {what}; logs of {self._folder}/logs; {log}")
            time.sleep(0.1)

    def down(self) -> None:
        """End all of it and remove its folder."""
        from cluster.running import take_down

        take_down(self.folder)
