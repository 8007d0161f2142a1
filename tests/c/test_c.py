"""The C++ tests, one pytest test each: the program is built from the objects that the library was linked from."""

from __future__ import annotations

import fcntl
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from lmlite.package import bundled_model

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
PROGRAM = ROOT / "build" / "lmlite-tests"
NAMES = re.findall(r"^TEST\((\w+)\)", "".join(file.read_text() for file in sorted(HERE.glob("*.cpp"))), re.MULTILINE)


@pytest.fixture(scope="session")
def program() -> Path:
    """Incremental, and one build at a time: the other workers find it done."""
    lock = ROOT / "build" / "lmlite-tests.lock"
    lock.parent.mkdir(exist_ok=True)
    with lock.open("w") as file, tempfile.TemporaryDirectory() as elsewhere:
        fcntl.flock(file, fcntl.LOCK_EX)
        command = [sys.executable, "setup.py", "-q", "build_native", "--tests", "--build-lib", elsewhere]
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert done.returncode == 0, done.stdout[-4000:]
    return PROGRAM


@pytest.mark.timeout(600)
def test_random_walks_through_random_schemas_end_in_what_they_allow(program: Path) -> None:
    bench = ROOT / "bench" / "walks.py"
    command: list[str | Path] = [sys.executable, bench, program, "--walks", "2000", "--per-schema", "10", "--seed", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", NAMES)
def test_c(program: Path, name: str) -> None:
    done = subprocess.run([program, name, bundled_model()], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
