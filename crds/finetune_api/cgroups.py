"""What Linux grants this process: the control groups that it is in, and the cores that they leave it.

https://docs.kernel.org/admin-guide/cgroup-v2.html and https://docs.kernel.org/scheduler/sched-bwc.html (v1).
"""

import os
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/")


def cgroup_folders(controller: str, root: Path = ROOT) -> set[Path]:
    """Where the groups of this process, its own and all above, tell of a controller (``cpu``, ``memory``), v2 or v1.

    In a container its own group is the mount itself, and what ``/proc/self/cgroup`` says may lie outside of it.
    """
    found: set[Path] = set()
    for line in read_or_nothing(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / (controller if controllers else "")
        group = mount / path.lstrip("/")
        found |= {folder for folder in (mount, group, *group.parents) if folder.is_relative_to(mount)}
    return found


def usable_cores(root: Path = ROOT) -> int:
    """Cores that this process may use, 1 at least: those it may run on, as far as its groups' CPU limits go.

    A pod that is given 2 cores of a node with 64 may run on each of the 64. With a thread for each its computations
    would wait, most of the time, for threads that the kernel has stopped until the next period begins. What is left of
    a limit like 1.5 is for what runs beside the computation.
    """
    return max(1, int(min((len(os.sched_getaffinity(0)), *_cpu_limits(root)))))


def cores_for_each(processes: int) -> int:
    """Cores that each of so many processes has for itself, 1 at least."""
    return max(1, usable_cores() // processes)


def _cpu_limits(root: Path) -> Iterator[float]:
    """Seconds of CPU a second, of each group that has a limit."""
    for folder in cgroup_folders("cpu", root):
        v1 = (read_or_nothing(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period"))
        quota, _, period = (read_or_nothing(folder / "cpu.max").strip() or " ".join(v1)).partition(" ")
        if quota.isdecimal() and period.isdecimal():
            yield int(quota) / int(period)


def read_or_nothing(path: Path) -> str:
    """A file's text; nothing if there is none."""
    try:
        return path.read_text()
    except OSError:
        return ""
