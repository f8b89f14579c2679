"""The cluster that tests use: what it must do before any test of ours can be believed."""

import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from cluster import running
from cluster.errors import ClusterError
from cluster.manifests import RESTRICTED, indexed_job
from cluster.running import CHECKOUT, Shape
from workers import until

EXAMPLE = yaml.safe_load((CHECKOUT / "examples" / "digits.yaml").read_text())


def test_an_example_is_accepted(cluster, namespace):
    cluster.apply(EXAMPLE | {"metadata": EXAMPLE["metadata"] | {"namespace": namespace}})
    (found,) = cluster.get("finetunejobs", "--namespace", namespace)
    assert found["spec"]["task"] == EXAMPLE["spec"]["task"]


def test_an_unknown_field_is_refused(cluster, namespace):
    wrong = EXAMPLE | {"metadata": {"name": "wrong", "namespace": namespace}, "spec": EXAMPLE["spec"] | {"podSpec": {}}}
    with pytest.raises(ClusterError, match="podSpec"):
        cluster.apply(wrong)


def test_pods_of_an_indexed_job_are_created(cluster, namespace):
    cluster.apply(indexed_job("two", namespace))
    pods = until(
        lambda: len(found := cluster.get("pods", "--namespace", namespace)) == 2 and found, "two pods", pause=0.2
    )
    indices = [pod["metadata"]["annotations"]["batch.kubernetes.io/job-completion-index"] for pod in pods]
    assert sorted(indices) == ["0", "1"]


def test_pod_security_is_enforced(cluster):
    pod = {"apiVersion": "v1", "kind": "Pod", "spec": {"containers": [{"name": "main", "image": "none"}]}}
    with cluster.namespace(labels=RESTRICTED) as name:
        pod["metadata"] = {"name": "loose", "namespace": name}
        with pytest.raises(ClusterError, match="violates PodSecurity"):
            cluster.apply(pod)


def test_a_user_has_only_the_rights_it_was_given(cluster, namespace):
    tenant = cluster.user("tenant", ("tenants",))
    asked = ["auth", "can-i", "create", "finetunejobs", "--namespace", namespace]
    assert cluster.kubectl(*asked, "--kubeconfig", tenant, check=False).split()[0] == "no"
    cluster.kubectl("create", "role", "tuner", "--verb=create", "--resource=finetunejobs", "--namespace", namespace)
    binding = ["--role=tuner", "--group=tenants", "--namespace", namespace]
    cluster.kubectl("create", "rolebinding", "tuner", *binding)
    assert cluster.kubectl(*asked, "--kubeconfig", tenant).strip() == "yes"


@pytest.mark.parametrize("name", ["kube-apiserver", "etcd"])
def test_what_was_written_survives_an_outage(start_own, name):
    cluster = start_own
    with cluster.namespace() as namespace:
        cluster.stop(name, signal.SIGKILL)
        assert "refused" in cluster.kubectl("get", "namespaces", "--request-timeout=1s", check=False) or name == "etcd"
        cluster.start(name)
        assert cluster.get("namespace", namespace)["status"] == {"phase": "Active"}
    assert set(cluster.keeper.exits().values()) == {None}


@pytest.fixture(scope="module")
def start_own(start_cluster):
    return start_cluster(Shape())


def test_the_command_is_idempotent_and_leaves_nothing(tmp_path):
    folder = Path(os.environ.get("XDG_RUNTIME_DIR", "/tmp")) / f"cluster-{os.getpid()}"
    command = [sys.executable, str(CHECKOUT / "tests" / "cluster")]
    told = [_run(*command, "up", "--folder", str(folder)) for _ in range(2)]
    assert told == [f"export KUBECONFIG={folder}/kubeconfig\n"] * 2
    assert len(_processes_of(folder)) == 5
    _run(*command, "down", "--folder", str(folder))
    assert not folder.exists()
    assert _processes_of(folder) == []


def test_a_port_that_something_took_meanwhile_is_given_up(start_cluster, monkeypatch):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        chosen = iter([[*running.free_ports(4), taken], running.free_ports(5)])
        monkeypatch.setattr(running, "free_ports", lambda _: next(chosen))
        cluster = start_cluster(Shape())
        assert taken not in asdict(cluster.plane.ports).values()
        assert set(cluster.keeper.exits().values()) == {None}
        cluster.down()


def test_it_ends_with_its_owner(tmp_path):
    folder = Path("/tmp") / f"cluster-{os.getpid()}-owned"
    code = (
        f"from pathlib import Path; from cluster.running import bring_up; bring_up(Path({str(folder)!r}), owned=True)"
    )
    owner = subprocess.Popen([sys.executable, "-c", f"{code}; print('up', flush=True); input()"],
                             env=os.environ | {"PYTHONPATH": str(CHECKOUT / "tests")},
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
    with owner:
        assert owner.stdout.readline() == b"up\n"
        assert len(_processes_of(folder)) == 5
        owner.kill()
    until(lambda: not _processes_of(folder), "the end of an orphan cluster", seconds=30, pause=0.2)
    _run(sys.executable, str(CHECKOUT / "tests" / "cluster"), "down", "--folder", str(folder))
    assert not folder.exists()


def _run(*command: str) -> str:
    began = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, f"{done.stderr}\nafter {time.monotonic() - began:.0f} s"
    return done.stdout


def _processes_of(folder: Path) -> list[int]:
    """Pids of processes that name the folder in their arguments, the shell of the test excepted."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            arguments = path.read_bytes().decode().split("\0")
        except OSError:
            continue
        if any(f"{folder}/" in part or part == str(folder) for part in arguments):
            found.append(int(path.parent.name))
    return found
