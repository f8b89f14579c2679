"""Threads are counted by what a container may use, not by what the node has."""

import os

import pytest

from finetune_api.cgroups import usable_cores

NODE = 64
V1 = "4:cpu,cpuacct:/kubepods/pod-1\n3:memory:/kubepods/pod-1\n"
LIMITS = {
    "v2, 2 cores": ("0::/\n", {"cpu.max": "200000 100000\n"}, 2),
    "v2, 1.5 cores": ("0::/\n", {"cpu.max": "150000 100000\n"}, 1),
    "v2, half a core": ("0::/\n", {"cpu.max": "50000 100000\n"}, 1),
    "v2, no limit": ("0::/\n", {"cpu.max": "max 100000\n"}, NODE),
    "v2, more than there is": ("0::/\n", {"cpu.max": "9600000 100000\n"}, NODE),
    "v2, a limit above its own group": (
        "0::/user.slice/shell\n",
        {"user.slice/cpu.max": "300000 100000\n", "user.slice/shell/cpu.max": "max 100000\n"},
        3,
    ),
    "v1, its own group is the mount": (
        V1,
        {"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"},
        4,
    ),
    "v1, outside of a container": (
        V1,
        {"cpu/kubepods/cpu.cfs_quota_us": "500000\n", "cpu/kubepods/cpu.cfs_period_us": "100000\n"},
        5,
    ),
    "v1, no limit": (V1, {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, NODE),
    "no cgroup": (None, {}, NODE),
}


@pytest.mark.parametrize(("groups", "files", "cores"), LIMITS.values(), ids=LIMITS)
def test_a_limit_counts_and_without_one_the_affinity(tmp_path, monkeypatch, groups, files, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: range(NODE))
    told = {"proc/self/cgroup": groups} if groups else {}
    for name, text in (told | {f"sys/fs/cgroup/{name}": text for name, text in files.items()}).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert usable_cores(tmp_path) == cores
