"""Quotas as kernels and container engines show them, in a folder that stands for the root."""

import os

import pytest

from octavo_kernels.native import cores

V2 = "29 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate"
V1 = "33 32 0:29 / /sys/fs/cgroup/cpu,cpuacct rw shared:6 - cgroup cgroup rw,cpu,cpuacct"
DOCKER = "900 899 0:29 /docker/abc /sys/fs/cgroup/cpu,cpuacct ro - cgroup cgroup rw,cpu,cpuacct"

CASES = {
    "none": ("", "", {}, 64),
    "v2, a container of its own": (V2, "0::/", {"cpu.max": "200000 100000"}, 2),
    "v2, no limit": (V2, "0::/", {"cpu.max": "max 100000"}, 64),
    "v2, above": (V2, "0::/a/b", {"a/cpu.max": "300000 100000", "a/b/cpu.max": "max 100000"}, 3),
    "v2, below what is above": (V2, "0::/a/b", {"a/cpu.max": "max 100000", "a/b/cpu.max": "150000 100000"}, 1),
    "v2, half a core": (V2, "0::/", {"cpu.max": "50000 100000"}, 1),
    "v2, more than there are": (V2, "0::/", {"cpu.max": "9900000 100000"}, 64),
    "v2, the machine's path": (V2, "0::/../../x", {"cpu.max": "400000 100000"}, 4),
    "v1": (V1, "4:cpu,cpuacct:/a", {"cpu,cpuacct/a/cpu.cfs_quota_us": "250000",
                                     "cpu,cpuacct/a/cpu.cfs_period_us": "50000"}, 5),
    "v1, no limit": (V1, "4:cpu,cpuacct:/", {"cpu,cpuacct/cpu.cfs_quota_us": "-1",
                                              "cpu,cpuacct/cpu.cfs_period_us": "100000"}, 64),
    "v1, docker": (DOCKER, "4:cpu,cpuacct:/docker/abc", {"cpu,cpuacct/cpu.cfs_quota_us": "700000",
                                                          "cpu,cpuacct/cpu.cfs_period_us": "100000"}, 7),
    "v2, a space in the path": (V2.replace("cgroup rw", "cgroup/my\\040group rw"), "0::/",
                                {"my group/cpu.max": "200000 100000"}, 2),
    "a line of another form": (V2, "x\n0::/", {"cpu.max": "200000 100000"}, 2),
    "no period": (V2, "0::/", {"cpu.max": "200000 0"}, 64),
    "nonsense": (V2 + "\nx", "0::/", {"cpu.max": "many"}, 64),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_quota_is_respected(tmp_path, monkeypatch, name):
    mounts, groups, files, want = CASES[name]
    for path, text in {"proc/self/mountinfo": mounts, "proc/self/cgroup": groups}.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text + "\n")
    for path, text in files.items():
        file = tmp_path / "sys/fs/cgroup" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")
    monkeypatch.setattr(cores, "ROOT", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    assert cores.available_cores() == want


def test_this_machine_has_at_least_one():
    assert 1 <= cores.available_cores() <= len(os.sched_getaffinity(0))
