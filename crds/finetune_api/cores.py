"""How many cores this process may use: those that it may run on, as far as its container's CPU limit goes.

A pod that is given 2 cores of a node with 64 may run on each of the 64. With a thread for each its computations would
spend their time waiting for threads that the kernel has stopped until the next 100 ms begin.
"""

import os
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
UNLIMITED = ("max", "-1")


def usable_cores(cgroups: Path = CGROUPS) -> int:
    """Whole cores, 1 at least: what is left of a limit like 1.5 is for what runs beside the computation."""
    cores = len(os.sched_getaffinity(0))
    limit = _limit(cgroups)
    return cores if limit is None else max(1, min(cores, int(limit)))


def _limit(cgroups: Path) -> float | None:
    """Seconds of CPU that this container gets a second (cgroup v2, else v1); None if there is no limit."""
    try:
        quota, period = (cgroups / "cpu.max").read_text(encoding="ascii").split()
    except OSError:
        try:
            quota, period = ((cgroups / f"cpu/cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        except OSError:
            return None
    return None if quota in UNLIMITED else int(quota) / int(period)
