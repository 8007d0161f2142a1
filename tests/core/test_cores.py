"""How many threads are of use, by the texts in which Linux tells of control groups and of a processor's cores."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from lmlite.core.engine.cores import Cores, cores

V2_MOUNT = "35 23 0:32 / /sys/fs/cgroup rw shared:9 - cgroup2 cgroup2 rw\n"
V1_MOUNT = "36 31 0:33 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
V2 = {"proc/self/cgroup": "0::/slice/service\n", "proc/self/mountinfo": V2_MOUNT}
V1 = {"proc/self/cgroup": "4:memory:/elsewhere\n3:cpu,cpuacct:/pod/job\n0::/\n", "proc/self/mountinfo": V1_MOUNT}
CPU = "sys/devices/system/cpu"

pytestmark = pytest.mark.skipif(sys.platform == "darwin", reason="there are no such files")


def tree(root: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def v2(path: str, text: str) -> dict[str, str]:
    return {f"sys/fs/cgroup{path}/cpu.max": text}


def v1(path: str, quota: int, period: int = 100_000) -> dict[str, str]:
    folder = f"sys/fs/cgroup/cpu,cpuacct{path}"
    return {f"{folder}/cpu.cfs_quota_us": f"{quota}\n", f"{folder}/cpu.cfs_period_us": f"{period}\n"}


def pairs(n: int) -> dict[str, str]:
    """A processor of `n` cores with two threads each, numbered as usual: 0 and n are of one core."""
    siblings = {f"{CPU}/cpu{cpu}/topology/thread_siblings_list": f"{cpu % n},{cpu % n + n}\n" for cpu in range(2 * n)}
    return {f"{CPU}/smt/active": "1\n", **siblings}


def test_without_limits_each_cpu_of_the_affinity_mask_counts(tmp_path: Path) -> None:
    assert cores(tmp_path, affinity=(3, 5, 6)) == (3, 3)


@pytest.mark.parametrize(
    ("text", "usable"),
    [
        ("max 100000\n", 8),
        ("200000 100000\n", 2),
        ("399999 100000\n", 3),
        ("50000 100000\n", 1),
        ("25000 50000\n", 1),
        ("9900000 100000\n", 8),
        ("100000\n", 8),
        ("", 8),
        ("what else\n", 8),
    ],
)
def test_a_quota_is_rounded_down_and_grants_one_core_at_least(tmp_path: Path, text: str, usable: int) -> None:
    assert cores(tree(tmp_path, V2 | v2("/slice/service", text)), affinity=range(8)) == (usable, usable)


def test_the_smallest_quota_on_the_way_up_counts(tmp_path: Path) -> None:
    groups = v2("/slice/service", "600000 100000\n") | v2("/slice", "150000 50000\n") | v2("", "max 100000\n")
    assert cores(tree(tmp_path, V2 | groups), affinity=range(8)).usable == 3


def test_a_container_that_sees_its_own_group_as_the_top(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/docker/abc\n",
        "proc/self/mountinfo": "35 23 0:32 /docker/abc /sys/fs/cgroup ro - cgroup2 cgroup2 rw\n",
    }
    assert cores(tree(tmp_path, files | v2("", "200000 100000\n")), affinity=range(8)).usable == 2


def test_version_1_has_quotas_in_nested_groups_too(tmp_path: Path) -> None:
    assert cores(tree(tmp_path, V1 | v1("/pod/job", -1) | v1("/pod", 250_000) | v1("", -1)), affinity=range(8)).usable == 2


def test_version_1_without_quotas_limits_nothing(tmp_path: Path) -> None:
    assert cores(tree(tmp_path, V1 | v1("/pod/job", -1) | v1("/pod", -1)), affinity=range(8)).usable == 8


def test_two_threads_of_a_core_can_be_used_but_count_once_where_speed_is_meant(tmp_path: Path) -> None:
    root = tree(tmp_path, pairs(4))
    assert cores(root, affinity=range(8)) == (8, 4)
    assert cores(root, affinity=(0, 4, 5)) == (3, 2)
    assert cores(root, affinity=(6, 2)) == (2, 1)


def test_a_quota_under_the_number_of_cores_is_what_computes(tmp_path: Path) -> None:
    files = V2 | v2("/slice", "600000 100000\n") | pairs(8)
    assert cores(tree(tmp_path, files), affinity=range(16)) == (6, 6)


def test_of_a_processor_with_slow_cores_the_fast_ones_compute(tmp_path: Path) -> None:
    files = pairs(2) | {f"{CPU}/cpu{cpu}/topology/thread_siblings_list": f"{cpu}\n" for cpu in range(4, 8)}
    root = tree(tmp_path, files | {"sys/devices/cpu_core/cpus": "0-3\n", "sys/devices/cpu_atom/cpus": "4-7\n"})
    assert cores(root, affinity=range(8)) == (8, 2)
    assert cores(root, affinity=(5, 6, 7)) == (3, 3)  # it has none of the fast


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity masks")
def test_this_process_may_be_kept_to_one_core() -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert cores() == Cores(1, 1)
    finally:
        os.sched_setaffinity(0, before)
    assert 1 <= cores().fast <= cores().usable <= len(before)
