"""Clusters brought up and taken down. Everything of a cluster is in its folder, and every process in one group."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from cluster import node, simulated
from cluster.cache import CHECKOUT, cache_folder, locked, tail
from cluster.client import START_SECONDS, Cluster
from cluster.control_plane import ControlPlane, Ports
from cluster.errors import ClusterError
from cluster.keeper import Keeper
from cluster.kubeconfig import write_kubeconfig
from cluster.ports import free_ports
from cluster.programs import CONTROL_PLANE, build_all, program
from cluster.state import FILE, read_state, write_state

__all__ = ["CHECKOUT", "Cluster", "ClusterError", "Shape", "bring_up", "take_down", "users_own"]

USERS = {
    "admin": ("admin", ("system:masters",)),
    "controllers": ("system:kube-controller-manager", ()),
    "scheduler": ("system:kube-scheduler", ()),
}
TAKEN = "address already in use"
"""What the log of a process ends with that does not get its port."""

_keepers: dict[Path, subprocess.Popen[bytes]] = {}
"""Those that this process started, by their folder: an owned one ends when the pipe to it is closed."""


@dataclass(frozen=True)
class Shape:
    """What a cluster is made of."""

    simulated_nodes: int = 0
    """kwok's nodes, each as large as ``simulated.NODE_SIZE`` says."""
    real_node: bool = False
    """One node with a kubelet and containerd. Needs root."""
    flags: dict[str, list[str]] = field(default_factory=dict)
    """More arguments for a process, by its name."""

    def programs(self) -> tuple[str, ...]:
        """What it needs built."""
        extra = (simulated.PROGRAMS if self.simulated_nodes else ()) + (node.PROGRAMS if self.real_node else ())
        return (*CONTROL_PLANE, *extra)


def users_own() -> Cluster | None:
    """The cluster that FINETUNE_TEST_KUBECONFIG names; None if it is not set."""
    named = os.environ.get("FINETUNE_TEST_KUBECONFIG")
    return Cluster(Path(named)) if named else None


def bring_up(folder: Path, shape: Shape | None = None, *, owned: bool = False) -> Cluster:
    """The cluster in ``folder``: the one that runs there, or a new one.

    With ``owned`` it ends with the process that called this. Of one that does not come up nothing runs on and the
    folder with its logs stays. Raises ``ClusterError`` or ``BuildError``.
    """
    shape = shape or Shape()
    folder = folder.absolute()
    build_all(shape.programs())
    with locked(folder.with_name(f"{folder.name}.lock")):
        cluster = Cluster(folder / "kubeconfig", folder)
        if not _is_running(folder):
            return _bring_up_new(cluster, shape, owned=owned)
        _start_all(cluster, _grown(folder, shape))
        return cluster


def take_down(folder: Path) -> None:
    """End the cluster in ``folder`` and remove it, a broken one as well; nothing happens where there is none."""
    folder = folder.absolute()
    with locked(folder.with_name(f"{folder.name}.lock")):
        _clear(folder)
    folder.with_name(f"{folder.name}.lock").unlink(missing_ok=True)


def _grown(folder: Path, wanted: Shape) -> Shape:
    """The shape of the cluster that runs there, with as many simulated nodes as are wanted; it never gets fewer."""
    known = read_state(folder)
    have = Shape(**known["shape"])
    if replace(have, simulated_nodes=wanted.simulated_nodes) != wanted:
        raise ClusterError(f"{folder}: a cluster of another shape runs there ({have}), take it down first")
    grown = replace(have, simulated_nodes=max(have.simulated_nodes, wanted.simulated_nodes))
    write_state(folder, known | {"shape": asdict(grown)})
    return grown


def _is_running(folder: Path) -> bool:
    return (folder / FILE).exists() and Keeper(folder).is_there()


def _bring_up_new(cluster: Cluster, shape: Shape, *, owned: bool, tries: int = 3) -> Cluster:
    """On other ports where something took one of the chosen before the cluster's process did."""
    _clear(cluster.folder)
    try:
        return _bring_up_once(cluster, shape, owned=owned)
    except ClusterError as error:
        if tries == 1 or TAKEN not in str(error):
            raise
    return _bring_up_new(cluster, shape, owned=owned, tries=tries - 1)


def _bring_up_once(cluster: Cluster, shape: Shape, *, owned: bool) -> Cluster:
    try:
        # Two nodes that start at the same time must not take the same network.
        with locked(cache_folder() / "node.lock") if shape.real_node else contextlib.nullcontext():
            _create(cluster.folder, shape, owned=owned)
        _start_all(cluster, shape)
    except BaseException:
        _end(cluster.folder)
        raise
    return cluster


def _clear(folder: Path) -> None:
    if folder.exists():
        _end(folder)
        shutil.rmtree(folder)


def _end(folder: Path) -> None:
    """End every process, and what a real node leaves; the folder stays."""
    Keeper(folder).end()
    if (folder / FILE).exists():
        known = read_state(folder)
        with contextlib.suppress(ProcessLookupError):
            if _is_keeper(known["group"], folder):
                os.killpg(known["group"], signal.SIGKILL)
        if known["shape"]["real_node"]:
            node.clear(folder, known["address"])
    if ours := _keepers.pop(folder, None):
        ours.communicate(timeout=START_SECONDS)


def _is_keeper(pid: int, folder: Path) -> bool:
    """Whether that process is still the keeper of this folder: pids are used again."""
    with contextlib.suppress(OSError):
        return os.fsencode(folder) in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    return False


def _create(folder: Path, shape: Shape, *, owned: bool) -> None:
    folder.mkdir(parents=True)
    address = node.free_address() if shape.real_node else "127.0.0.1"
    plane = ControlPlane(folder, address, Ports(*free_ports(5)))
    for name, (user, groups) in USERS.items():
        write_kubeconfig(plane, name, user, groups)
    commands = {
        name: {"command": [str(program(name)), *arguments, *shape.flags.get(name, [])], "env": {}}
        for name, arguments in plane.arguments().items()
    }
    group = _start_keeper(folder, shape, owned=owned)
    known = {"address": address, "ports": asdict(plane.ports), "group": group, "shape": asdict(shape)}
    write_state(folder, known | {"commands": commands})
    if shape.real_node:
        node.connect(group, address)


def _start_keeper(folder: Path, shape: Shape, *, owned: bool) -> int:
    """The keeper's process group, which is the whole cluster's."""
    command = [sys.executable, str(Path(__file__).with_name("keeper.py")), str(folder), *(["--owned"] if owned else [])]
    if shape.real_node:
        command = node.in_namespaces(folder, command)
    told = subprocess.PIPE if owned else subprocess.DEVNULL
    with (folder / "keeper.log").open("w") as log:
        process = subprocess.Popen(command, stdin=told, stdout=log, stderr=log, start_new_session=True)
    _keepers[folder] = process
    deadline = time.monotonic() + START_SECONDS
    while not Keeper(folder).is_there():
        if process.poll() is not None or time.monotonic() > deadline:
            raise ClusterError(f"the cluster's keeper does not answer; {tail(folder / 'keeper.log')}")
        time.sleep(0.02)
    return process.pid


def _start_all(cluster: Cluster, shape: Shape) -> None:
    for name in cluster.plane.arguments():
        cluster.start(name)
    cluster.await_ready()
    if shape.simulated_nodes:
        simulated.start(cluster, shape.simulated_nodes)
    if shape.real_node:
        node.start(cluster)
