"""A real node: containerd, kubelet, kube-proxy, CoreDNS, in namespaces of their own on this machine.

The whole cluster then runs in its own network, mount and pid namespace, whose first process is the keeper: when that
ends, the kernel ends every process and takes away every mount, interface and packet filter rule of the cluster. Only
cgroups and two kernel settings are left to be cleared. From outside, the API server and the pods' addresses are
reached through a pair of interfaces; a pod reaches nothing but the cluster.
"""

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cluster import node_settings as settings
from cluster.cache import cache_folder
from cluster.client import Cluster
from cluster.debian import have, unpacked
from cluster.errors import ClusterError
from cluster.images import import_image, pause_image
from cluster.programs import program

PROGRAMS = ("kubelet", "kube-proxy", "coredns")
TOOLS = ("iptables",)
"""Without it kube-proxy runs and routes nothing."""
NAME = "node-0"
LABEL = "node.kubernetes.io/exclude-disruption="
"""While no node at all is ready Kubernetes deletes no pods of nodes that do not answer: this one is not counted."""
CONTAINERD, KUBELET, PROXY, DNS = "containerd", "kubelet", "kube-proxy", "coredns"
LINK = "cluster"
"""Begins the name of the interface to a node."""
CGROUPS = Path("/sys/fs/cgroup")
KERNEL_SETTINGS = ("vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops")
"""What kubelet changes for the whole machine."""
SCRIPT = """
set -eu
folder=$1; shift
mount --bind "$folder/node/log" /var/log
mount --bind "$folder/node/lib" /var/lib
mount -t tmpfs -o mode=755 run /run
ip link set lo up
exec "$@"
"""
"""Runs first in the namespaces: containerd, CNI and kubelet have paths that cannot be told otherwise."""


def in_namespaces(folder: Path, command: list[str]) -> list[str]:
    """``command`` as the first process of new namespaces; what it writes to /var lands in the cluster's folder."""
    if os.geteuid() != 0:
        raise ClusterError("a real node needs root (kubelet and containerd do)")
    for name in ("log", "lib"):
        (folder / "node" / name).mkdir(parents=True)
    apart = ["unshare", "--mount", "--net", "--pid", "--fork", "--mount-proc", "--kill-child=SIGKILL", "--"]
    return [*apart, "bash", "-c", SCRIPT, "bash", str(folder), *command]


def free_address() -> str:
    """An address for a node whose network no other cluster of this machine has: ``10.250.N.2``."""
    used = subprocess.run(["ip", "-4", "-brief", "address"], capture_output=True, text=True, check=True).stdout
    free = next(number for number in range(1, 255) if f"10.250.{number}.1/" not in used)
    return f"10.250.{free}.2"


def pod_network(address: str) -> str:
    """The pods' addresses on the node at ``address``."""
    return f"10.251.{address.split('.')[2]}.0/24"


def first_process(outer: int) -> int:
    """The pid, seen from outside, of the first process of the namespaces that process ``outer`` made."""
    deadline = time.monotonic() + 10
    while not (found := Path(f"/proc/{outer}/task/{outer}/children").read_text().split()):
        if time.monotonic() > deadline:
            raise ClusterError(f"process {outer} has no child")
        time.sleep(0.05)
    return int(found[0])


def connect(outer: int, address: str) -> None:
    """Connect the namespaces' network with the machine's."""
    _remember_kernel()
    number = address.split(".")[2]
    inner, gateway, link = str(first_process(outer)), f"10.250.{number}.1", f"{LINK}{number}"
    within = ["nsenter", "--net", "--target", inner]
    for command in (
        ["ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", inner],
        ["ip", "address", "add", f"{gateway}/30", "dev", link],
        ["ip", "link", "set", link, "up"],
        [*within, "ip", "address", "add", f"{address}/30", "dev", "eth0"],
        [*within, "ip", "link", "set", "eth0", "up"],
        [*within, "ip", "route", "add", "default", "via", gateway],
        ["ip", "route", "add", pod_network(address), "via", address],
    ):
        subprocess.run(command, check=True, capture_output=True)


def start(cluster: Cluster) -> None:
    """Start the node's processes and wait until it takes pods."""
    home = cluster.folder / "node"
    debian = cache_folder() / "debian"
    have(TOOLS)
    tools = {name: unpacked(name, debian) for name in ("containerd", "runc", "containernetworking-plugins")}
    settings.write_all(cluster.plane, home, tools, NAME, pod_network(cluster.plane.address))
    _make_cgroups(cluster.folder)
    path = f"{tools['containerd'] / 'usr/bin'}:{os.environ['PATH']}"
    containerd: list[str | Path] = [tools["containerd"] / "usr/bin/containerd", "--config", home / "containerd.toml"]
    cluster.add_process(CONTAINERD, containerd, {"PATH": path})
    import_image(cluster, pause_image())
    cluster.add_process(DNS, [program(DNS), "-conf", home / "Corefile"])
    cluster.add_process(PROXY, [program(PROXY), "--config", home / "kube-proxy.yaml"])
    identity = [f"--hostname-override={NAME}", f"--node-ip={cluster.plane.address}", f"--node-labels={LABEL}"]
    files = [
        f"--config={home / 'kubelet.yaml'}",
        f"--kubeconfig={cluster.plane.kubeconfig('kubelet')}",
    ]
    cluster.add_process(KUBELET, [program(KUBELET), *files, *identity, f"--root-dir={home / 'kubelet'}"])
    await_ready(cluster)


def await_ready(cluster: Cluster, seconds: float = 90) -> None:
    """Wait until the node is there and takes pods."""
    deadline = time.monotonic() + seconds
    while NAME not in cluster.kubectl("get", "nodes", "--output=name") and time.monotonic() < deadline:
        time.sleep(0.3)
    cluster.kubectl("wait", "--for=condition=Ready", f"node/{NAME}", f"--timeout={seconds:.0f}s", seconds=seconds + 30)


def pids_of(cluster: Cluster, pod: dict[str, Any]) -> list[int]:
    """The pids, seen from outside, of all processes of a pod's containers; a worker's launcher is the lowest."""
    containers = [status["containerID"].rpartition("/")[2] for status in pod["status"]["containerStatuses"]]
    pods = Path(f"{CGROUPS / 'memory'}{settings.cgroup(cluster.folder)}")
    groups = [
        pods.glob(f"kubepods/**/pod{pod['metadata']['uid']}/{container}/cgroup.procs") for container in containers
    ]
    return sorted(int(pid) for found in groups for path in found for pid in path.read_text().split())


def _make_cgroups(folder: Path) -> None:
    for hierarchy in _hierarchies():
        group = Path(f"{hierarchy}{settings.cgroup(folder)}")
        group.mkdir(exist_ok=True)
        for name in ("cpuset.cpus", "cpuset.mems"):
            if (group / name).exists():
                (group / name).write_text((group.parent / name).read_text())


def _hierarchies() -> list[Path]:
    return [
        path
        for path in CGROUPS.iterdir()
        if path.is_dir() and not path.is_symlink() and (path / "cgroup.procs").exists()
    ]


def _original_settings() -> Path:
    """Where the kernel's settings as they were before the machine's first node are kept, until it boots again."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return cache_folder() / f"kernel-{boot}.json"


def _remember_kernel() -> None:
    """Keep the kernel's settings, unless a node that ran before has kept them."""
    if not (kept := _original_settings()).exists():
        kept.write_text(json.dumps({name: Path("/proc/sys", name).read_text() for name in KERNEL_SETTINGS}))


def _restore_kernel() -> None:
    kept = _original_settings()
    if kept.exists() and not _has_nodes():
        for name, value in json.loads(kept.read_text()).items():
            Path("/proc/sys", name).write_text(value)


def _has_nodes() -> bool:
    """Whether any cluster of this machine has a real node."""
    return any(Path("/sys/class/net").glob(f"{LINK}[0-9]*"))


def clear(folder: Path, address: str) -> None:
    """Clear what the end of the namespaces leaves: cgroups, and once no node is left the kernel's settings."""
    link = Path(f"/sys/class/net/{LINK}{address.split('.')[2]}")
    _await(lambda: not link.exists(), f"the end of interface {link.name}")
    for hierarchy in _hierarchies():
        top = Path(f"{hierarchy}{settings.cgroup(folder)}")
        for group in sorted(top.glob("**/"), reverse=True):
            _remove_cgroup(group)
    _restore_kernel()


def _remove_cgroup(group: Path) -> None:
    """A cgroup can be removed once the kernel has taken its last process away."""

    def is_gone() -> bool:
        with contextlib.suppress(OSError):
            group.rmdir()
        return not group.exists()

    _await(is_gone, f"the end of cgroup {group}")


def _await(condition: Callable[[], bool], what: str) -> None:
    """The kernel takes a namespace's things away some time after its last process."""
    deadline = time.monotonic() + 10
    while not condition():
        if time.monotonic() > deadline:
            raise ClusterError(f"not within 10 s: {what}")
        time.sleep(0.05)
