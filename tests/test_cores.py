"""Threads are counted by what a container may use, not by what the node has."""

import os

import pytest

from finetune_api.cores import usable_cores

NODE = 64
LIMITS = {
    "cgroup v2, 2 cores": ({"cpu.max": "200000 100000\n"}, 2),
    "cgroup v2, 1.5 cores": ({"cpu.max": "150000 100000\n"}, 1),
    "cgroup v2, half a core": ({"cpu.max": "50000 100000\n"}, 1),
    "cgroup v2, no limit": ({"cpu.max": "max 100000\n"}, NODE),
    "cgroup v2, more than there is": ({"cpu.max": "9600000 100000\n"}, NODE),
    "cgroup v1, 3 cores": ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
    "cgroup v1, no limit": ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, NODE),
    "no cgroup": ({}, NODE),
}


@pytest.mark.parametrize(("files", "cores"), LIMITS.values(), ids=LIMITS)
def test_a_limit_counts_and_without_one_the_affinity(tmp_path, monkeypatch, files, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: range(NODE))
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert usable_cores(tmp_path) == cores
