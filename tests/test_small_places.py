"""Where there is little: --small, little memory, a root that cannot be written to, no /dev/shm, nobody's rights."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lmlite.config import SMALL, Config, gather, options
from lmlite.errors import ConfigError
from tests.conftest import INSTALLED, address, complete


def test_small_is_what_is_said_of_nothing_else(tmp_path: Path) -> None:
    environ = {"LMLITE_HOME": str(tmp_path)}
    small = gather({"small": True}, environ)
    assert {name: getattr(small, name) for name in SMALL} == dict(SMALL)
    assert gather({"small": True, "parallel": "3"}, environ).parallel == 3
    assert gather({"small": True}, {**environ, "LMLITE_TTL": "0"}).ttl == 0
    (tmp_path / "config.json").write_text('{"small": true, "spill": 100}')
    filed = gather({}, environ)
    assert (filed.parallel, filed.spill) == (1, 100)
    assert gather({"small": False}, environ).parallel == Config.of().parallel


def test_small_says_nothing_that_an_option_would_refuse() -> None:
    assert Config.of(**SMALL) != Config.of()
    known = {option.name for option in options()}
    assert set(SMALL) <= known
    with pytest.raises(ConfigError):
        Config.of(small="much")


MEMORY = 80 << 20
"""Bytes for the server, an engine with the bundled model, and what they have of their files in memory."""
ROOT_FOLDERS = ("usr", "bin", "lib", "lib64", "opt", "etc", "sys")
CONTAINER = """
set -e
root=$1; shift
mkdir -p $root
mount -t tmpfs none $root
for name in {folders}; do [ -e /$name ] && mkdir $root/$name && mount --rbind /$name $root/$name; done
for path in {paths}; do mkdir -p $root/$path && mount --rbind $path $root/$path; done
mkdir $root/proc $root/dev $root/tmp $root/data
mount --rbind /proc $root/proc
for device in null urandom; do touch $root/dev/$device; mount --bind /dev/$device $root/dev/$device; done
mount -t tmpfs -o size=8m,mode=1777 none $root/tmp
mount -t tmpfs -o size=8m,mode=777 none $root/data
mount -o remount,ro none $root
exec chroot --userspec=65534:65534 $root env -i PATH=/usr/bin:/bin HOME=/data LMLITE_HOME=/data/home "$@"
"""


@pytest.fixture
def memory_group() -> Iterator[Path | None]:
    """A control group with little memory, as a service's MemoryMax or a container makes one; None where none can be made."""
    for parent, limit in (("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")):
        group = Path(parent, f"lmlite-test-{os.getpid()}")
        if not Path(parent, "cgroup.procs").exists():
            continue
        try:
            group.mkdir()
            (group / limit).write_text(str(MEMORY))
        except OSError:
            continue
        yield group
        group.rmdir()
        return
    yield None


def test_it_serves_as_nobody_in_little_memory_from_a_root_that_cannot_be_written_to_without_shared_memory(
    tmp_path: Path, memory_group: Path | None
) -> None:
    paths = {str(INSTALLED / "lmlite"), sys.base_prefix, sys.prefix, str(Path(sys.executable).parent)}
    script = CONTAINER.format(folders=" ".join(ROOT_FOLDERS), paths=" ".join(sorted(paths)))
    inside = ["unshare", "--mount", "sh", "-c", script, "sh", str(tmp_path / "root")]
    python = [f"PYTHONPATH={INSTALLED}", sys.executable, "-s"]
    if subprocess.run([*inside, *python, "-c", ""], capture_output=True).returncode != 0:
        pytest.skip("nothing can be mounted here, or not for nobody to read")
    look = "import os; print(os.getuid(), os.path.exists('/dev/shm'), os.access('/', os.W_OK))"
    looked = subprocess.run([*inside, *python, "-c", look], capture_output=True, text=True)
    assert looked.stdout.split() == ["65534", "False", "False"], looked.stderr
    serve = [*python, "-m", "lmlite", "serve", "--small", "--port", "0"]
    limited = ["sh", "-c", 'echo $$ > "$0" && exec "$@"', str(memory_group / "cgroup.procs")] if memory_group else []
    with subprocess.Popen([*limited, *inside, *serve], stdout=subprocess.PIPE, text=True) as process:
        try:
            complete(address(process), "lmlite-tiny", 5)
        finally:
            process.terminate()
    assert process.returncode == 0
