"""What memory there is, by the texts in which Linux tells of the machine and of control groups, and macOS's numbers."""

from __future__ import annotations

import struct
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from lmlite.core.loading.memory import available, mac_pages, memory_groups

MIB = 1 << 20
MEMINFO = "MemTotal: 16000000 kB\nMemAvailable: 8388608 kB\nMapped: 1048576 kB\nShmem: 524288 kB\n"
V2_MOUNT = "35 23 0:32 / /sys/fs/cgroup rw shared:9 - cgroup2 cgroup2 rw\n"
V1_MOUNT = (
    "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
    "36 31 0:33 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"
)

pytestmark = pytest.mark.skipif(sys.platform == "darwin", reason="there are no such files")


def tree(root: Path, files: Mapping[str, str]) -> Path:
    for name, text in {"proc/meminfo": MEMINFO, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def v2(path: str, limit: str, used: int, **statistics: int) -> dict[str, str]:
    folder = f"sys/fs/cgroup{path}"
    text = "".join(f"{name} {number}\n" for name, number in statistics.items())
    return {f"{folder}/memory.max": limit, f"{folder}/memory.current": str(used), f"{folder}/memory.stat": text}


def test_mapped_files_of_others_are_in_use(tmp_path: Path) -> None:
    assert available(tree(tmp_path, {})) == (8192 - 512) * MIB


def test_a_machine_that_does_not_tell_has_half_of_its_memory(tmp_path: Path) -> None:
    assert 0 < available(tree(tmp_path, {"proc/meminfo": "MemTotal: 16000000 kB\n"}))


def test_the_tightest_of_nested_groups_counts(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/system.slice/lmlite.service\n",
        "proc/self/mountinfo": V2_MOUNT,
        **v2("/system.slice", str(3000 * MIB), 1000 * MIB, active_file=0),
        **v2("/system.slice/lmlite.service", str(4000 * MIB), 500 * MIB, active_file=0),
    }
    root = tree(tmp_path, files)
    assert [group.available // MIB for group in memory_groups(root)] == [3500, 2000]
    assert available(root) == 2000 * MIB


def test_a_group_gives_back_cached_files_that_nobody_has_mapped(tmp_path: Path) -> None:
    statistics = {"active_file": 300 * MIB, "inactive_file": 200 * MIB, "file_mapped": 150 * MIB, "shmem": 50 * MIB}
    files = {"proc/self/cgroup": "0::/a\n", "proc/self/mountinfo": V2_MOUNT}
    root = tree(tmp_path, files | v2("/a", str(1000 * MIB), 900 * MIB, **statistics))
    assert available(root) == (100 + 500 - 100) * MIB


def test_a_group_without_a_limit_limits_nothing(tmp_path: Path) -> None:
    files = {"proc/self/cgroup": "0::/a\n", "proc/self/mountinfo": V2_MOUNT}
    assert list(memory_groups(tree(tmp_path, files | v2("/a", "max\n", 900 * MIB)))) == []


def test_a_container_that_sees_its_own_group_as_the_top(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/docker/abc\n",
        "proc/self/mountinfo": "35 23 0:32 /docker/abc /sys/fs/cgroup ro - cgroup2 cgroup2 rw\n",
    }
    root = tree(tmp_path, files | v2("", str(1000 * MIB), 400 * MIB))
    assert available(root) == 600 * MIB


def test_version_1(tmp_path: Path) -> None:
    folder = "sys/fs/cgroup/memory/user"
    files = {
        "proc/self/cgroup": "5:cpu:/user\n4:memory:/user\n0::/\n",
        "proc/self/mountinfo": V1_MOUNT,
        f"{folder}/memory.limit_in_bytes": str(1000 * MIB),
        f"{folder}/memory.usage_in_bytes": str(700 * MIB),
        f"{folder}/memory.stat": f"inactive_file 1\ntotal_inactive_file {200 * MIB}\ntotal_mapped_file {50 * MIB}\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": "0",
    }
    assert available(tree(tmp_path, files)) == (300 + 150) * MIB


def test_a_group_over_its_limit_has_nothing_left(tmp_path: Path) -> None:
    files = {"proc/self/cgroup": "0::/a\n", "proc/self/mountinfo": V2_MOUNT}
    assert available(tree(tmp_path, files | v2("/a", str(MIB), 2 * MIB))) == 0


def test_this_machine_has_some() -> None:
    assert available() > MIB


def test_free_and_inactive_pages_of_macos() -> None:
    numbers = struct.pack("=4I9Q2I", 100, 9, 30, 9, *[7] * 9, 5, 6)
    assert mac_pages(numbers + bytes(128)) == 130
