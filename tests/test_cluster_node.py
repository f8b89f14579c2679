"""The real node: containers run, find each other by name, are limited, and are gone afterwards."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cluster import images
from cluster import node_settings as settings
from cluster.manifests import RESTRICTED, indexed_job, service
from cluster.node import NAME, pids_of
from cluster.running import CHECKOUT
from workers import until

pytestmark = pytest.mark.node
FIND_THE_FIRST = 'until nslookup "$0-0.peers.$1.svc.cluster.local"; do sleep 0.2; done; echo "$HOSTNAME" found it'
"""DNS knows a pod some time after it has begun."""


@pytest.fixture
def namespace(node_cluster):
    images.import_image(node_cluster, images.shell_image())
    with node_cluster.namespace(labels=RESTRICTED) as name:
        yield name


def shell_job(name, namespace, *command):
    return indexed_job(name, namespace, image=images.SHELL_IMAGE, command=command, subdomain="peers")


def test_restricted_pods_of_an_indexed_job_find_each_other_by_name(node_cluster, namespace):
    node_cluster.apply(service("peers", namespace, "pair"))
    node_cluster.apply(shell_job("pair", namespace, "sh", "-c", FIND_THE_FIRST, "pair", namespace))
    node_cluster.kubectl("--namespace", namespace, "wait", "--for=condition=Complete", "job/pair", "--timeout=50s")
    told = node_cluster.kubectl("--namespace", namespace, "logs", "--selector=app=pair", "--tail=-1")
    assert {line for line in told.splitlines() if "found it" in line} == {"pair-0 found it", "pair-1 found it"}


def test_a_service_balances_to_pods(node_cluster, namespace):
    page = "mkdir -p /dev/shm/www; echo hello > /dev/shm/www/index.html; exec httpd -f -p 8080 -h /dev/shm/www"
    node_cluster.apply(shell_job("web", namespace, "sh", "-c", page))
    node_cluster.apply(service("web", namespace, "web", ports={80: 8080}))
    ask = "printf 'GET / HTTP/1.0\r\n\r\n' | nc $WEB_SERVICE_HOST 80 | grep hello"
    fetch = f"until {ask}; do sleep 0.2; done"
    node_cluster.apply(shell_job("client", namespace, "sh", "-c", fetch))
    node_cluster.kubectl("--namespace", namespace, "wait", "--for=condition=Complete", "job/client", "--timeout=50s")
    assert "hello" in node_cluster.kubectl("--namespace", namespace, "logs", "job/client")


def test_memory_is_limited(node_cluster, namespace):
    job = shell_job("greedy", namespace, "sh", "-c", "tail /dev/zero")
    job["spec"]["template"]["spec"]["containers"][0]["resources"] = {"limits": {"memory": "32Mi"}}
    node_cluster.apply(job)
    node_cluster.kubectl("--namespace", namespace, "wait", "--for=condition=Failed", "job/greedy", "--timeout=50s")
    pods = node_cluster.get("pods", "--namespace", namespace)
    ended = {
        container["state"]["terminated"]["reason"] for pod in pods for container in pod["status"]["containerStatuses"]
    }
    assert ended == {"OOMKilled"}


def test_a_process_can_be_killed_from_outside(node_cluster, namespace):
    node_cluster.apply(shell_job("hurt", namespace, "sh", "-c", "sleep 1000 & wait"))
    running = ("pods", "--namespace", namespace, "--field-selector=status.phase=Running")
    first, _ = until(lambda: len(pods := node_cluster.get(*running)) == 2 and pods, "two pods", pause=0.2)
    launcher, _ = until(lambda: len(pids := pids_of(node_cluster, first)) == 2 and pids, "two processes", pause=0.2)
    os.kill(launcher, signal.SIGKILL)
    node_cluster.kubectl("--namespace", namespace, "wait", "--for=condition=Failed", "job/hurt", "--timeout=50s")
    failed = node_cluster.get("pod", first["metadata"]["name"], "--namespace", namespace)
    assert failed["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"] == 128 + signal.SIGKILL


def test_an_image_of_the_project_runs(node_cluster, namespace):
    image = images.import_project_image(node_cluster, "operator")
    code = "import finetune_operator, os; print(os.getuid(), finetune_operator.__name__)"
    node_cluster.apply(indexed_job("ours", namespace, image=image, command=("python", "-c", code), completions=1))
    node_cluster.kubectl("--namespace", namespace, "wait", "--for=condition=Complete", "job/ours", "--timeout=50s")
    assert node_cluster.kubectl("--namespace", namespace, "logs", "job/ours") == "65532 finetune_operator\n"


def test_a_node_that_stops_is_noticed_and_comes_back(node_cluster):
    node_cluster.stop("kubelet")
    node_cluster.kubectl("wait", "--for=condition=Ready=Unknown", f"node/{NAME}", "--timeout=100s", seconds=120)
    node_cluster.start("kubelet")
    node_cluster.kubectl("wait", "--for=condition=Ready", f"node/{NAME}", "--timeout=60s", seconds=90)


def test_nothing_is_left_of_it(tmp_path):
    folder = tmp_path / "it"
    command = [sys.executable, str(CHECKOUT / "tests" / "cluster")]
    subprocess.run([*command, "up", "--node", "--folder", str(folder)], check=True, timeout=200, capture_output=True)
    number = json.loads((folder / "cluster.json").read_text())["address"].split(".")[2]
    traces = [f"cluster{number} ", f"10.251.{number}.0/24 ", settings.cgroup(folder)]
    assert [trace in _seen() for trace in traces] == [True] * 3
    subprocess.run([*command, "down", "--folder", str(folder)], check=True, timeout=200, capture_output=True)
    assert list(tmp_path.iterdir()) == []
    until(lambda: not any(trace in _seen() for trace in [*traces, str(folder)]), "an end of its traces", pause=0.5)


def _seen() -> str:
    """What of a node one sees from outside: mounts, interfaces, routes, packet filter rules, cgroups."""
    groups = map(str, Path("/sys/fs/cgroup").glob("*/finetune-*"))
    commands = (["ip", "-brief", "link"], ["ip", "route"], ["iptables-save"])
    told = [subprocess.run(command, capture_output=True, text=True, check=True).stdout for command in commands]
    return "\n".join([Path("/proc/mounts").read_text(), *groups, *told]).replace("@", " ")
