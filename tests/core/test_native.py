"""The built library and the program around it: their surface, and what a process that serves an engine is like."""

from __future__ import annotations

import json
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import lmlite
from lmlite import package
from lmlite.core.engine import native
from lmlite.core.engine.frames import HEADER, Kind, pack
from lmlite.errors import BuildError

ROOT = Path(__file__).parent.parent.parent
PACKAGE = Path(lmlite.__file__).parent
TIMEOUT_S = 30


def test_the_version_is_that_of_the_header() -> None:
    header = (ROOT / "csrc" / "lmlite.h").read_text(encoding="utf-8")
    assert re.findall(r"#define LM_ABI_VERSION (\d+)", header) == [str(native.ABI_VERSION)]
    assert native.abi_version() == native.ABI_VERSION


def test_build_info_names_what_was_built() -> None:
    info = native.build_info()
    assert {"llama_cpp", "version", "backend"} <= info.keys()
    assert all(isinstance(info[key], str) and info[key] for key in ("llama_cpp", "version", "backend"))


@pytest.mark.skipif(shutil.which("nm") is None, reason="needs nm, which comes with most compilers")
def test_the_library_exports_only_its_own_functions() -> None:
    command = ["nm", "-gU"] if sys.platform == "darwin" else ["nm", "-D", "--defined-only"]
    listing = subprocess.run([*command, native.library_path()], capture_output=True, text=True, check=True).stdout
    names = {line.split()[-1].lstrip("_") for line in listing.splitlines() if line.strip()}
    assert names == {"lm_abi_version", "lm_build_info", "lm_engine_serve"}


def test_importing_the_module_loads_nothing() -> None:
    code = (
        "import sys; from lmlite.core.engine import native; native.engine_path(); native.library_path();"
        "print(sorted({'cffi', '_cffi_backend', 'lmlite.core.engine._lib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


# ---- serve -----------------------------------------------------------------------------------------------------------


def test_serve_returns_when_the_peer_closes() -> None:
    near, far = socket.socketpair()
    near.close()
    assert native.serve(far.detach()) == 0


def test_serve_closes_the_socket_on_a_frame_of_no_kind() -> None:
    near, far = socket.socketpair()
    with near:
        near.settimeout(TIMEOUT_S)
        near.sendall(HEADER.pack(0, 9999, 1))
        assert native.serve(far.detach()) == -1  # LM_ERR_PROTOCOL
        while near.recv(4096):
            pass


# ---- a package that was not built, or not of one piece ---------------------------------------------------------------


def copy_package(target: Path, *left_out: str) -> None:
    shutil.copytree(PACKAGE, target, ignore=shutil.ignore_patterns("__pycache__", "models", *left_out))


def run_in(folder: Path, code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


CATCH = """
from hollow.core.engine import native
from hollow.errors import BuildError
for call in (native.engine_path, native.library_path, native.build_info):
    try:
        print('no error', call())
    except BuildError as error:
        print(error)
"""


def test_a_package_without_the_library_says_how_to_build_it(tmp_path: Path) -> None:
    copy_package(tmp_path / "hollow", "lib")
    lines = run_in(tmp_path, CATCH).splitlines()
    assert len(lines) == 3
    assert all("is missing" in line and "pip install" in line for line in lines)


def test_a_damaged_library_is_a_build_error(tmp_path: Path) -> None:
    copy_package(tmp_path / "hollow")
    (tmp_path / "hollow" / "lib" / native.library_path().name).write_bytes(b"not a library")
    assert "cannot be used" in run_in(tmp_path, CATCH).splitlines()[2]


def test_a_library_without_its_bindings_is_a_build_error(tmp_path: Path) -> None:
    copy_package(tmp_path / "hollow", "_lib.py")
    assert "cannot be used" in run_in(tmp_path, CATCH).splitlines()[2]


def test_a_library_of_another_version_is_refused_and_the_socket_closed(tmp_path: Path) -> None:
    copy_package(tmp_path / "hollow")
    source = tmp_path / "hollow" / "core" / "engine" / "native.py"
    source.write_text(re.sub(r"(?m)^ABI_VERSION: Final = \d+$", "ABI_VERSION: Final = 77", source.read_text()))
    code = """
import socket
from hollow.core.engine import native
from hollow.errors import BuildError
near, far = socket.socketpair()
try:
    native.serve(far.detach())
except BuildError as error:
    print(error)
print(near.recv(1))
"""
    message, received = run_in(tmp_path, code).splitlines()
    assert "speaks version 1 " in message and "this package 77" in message
    assert received == "b''"


# ---- the child process -----------------------------------------------------------------------------------------------


class Child:
    """An engine process, with the near end of its socket."""

    def __init__(self) -> None:
        self.socket, far = socket.socketpair()
        self.socket.settimeout(TIMEOUT_S)
        with far:
            command = [str(native.engine_path()), str(far.fileno())]
            self.process = subprocess.Popen(command, pass_fds=[far.fileno()], stderr=subprocess.DEVNULL)

    def wait_until_serving(self) -> None:
        """A model that is not there makes it answer, so it is past its start."""
        self.socket.sendall(pack(Kind.LOAD, 1, json.dumps({"path": "/nowhere.gguf"}).encode()))
        assert self.socket.recv(1)

    def exit_code(self) -> int:
        self.socket.close()
        return self.process.wait(TIMEOUT_S)


@pytest.fixture
def child() -> Iterator[Child]:
    started = Child()
    yield started
    started.socket.close()
    started.process.kill()
    started.process.wait(TIMEOUT_S)


def test_the_process_ends_well_when_the_server_closes(child: Child) -> None:
    child.wait_until_serving()
    assert child.exit_code() == 0


def test_the_process_says_by_its_code_that_the_peer_spoke_nonsense(child: Child) -> None:
    child.socket.sendall(HEADER.pack(0, 9999, 1))
    assert child.process.wait(TIMEOUT_S) == 1  # -LM_ERR_PROTOCOL


def test_the_process_leaves_the_terminals_signals_to_the_server(child: Child) -> None:
    child.wait_until_serving()
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
        child.process.send_signal(number)
    assert child.exit_code() == 0


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_the_process_goes_first_when_memory_is_short_and_writes_no_core(child: Child) -> None:
    child.wait_until_serving()
    process = Path("/proc") / str(child.process.pid)
    own = int(Path("/proc/self/oom_score_adj").read_text())
    assert int((process / "oom_score_adj").read_text()) == min(own + 300, 1000)
    assert resource.prlimit(child.process.pid, resource.RLIMIT_CORE) == (0, 0)
    assert (process / "comm").read_text() == "lmlite-engine\n"


@pytest.mark.parametrize("arguments", [[], ["x"], ["3 "], ["-1"], ["99999999999999999999"], ["0"], ["0", "1"]])
def test_the_process_refuses_what_is_no_socket(arguments: list[str]) -> None:
    command = [str(native.engine_path()), *arguments]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=TIMEOUT_S)
    assert done.returncode == 64
    assert done.stderr.startswith(b"usage: lmlite-engine FD")


def test_a_missing_program_is_a_build_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(package, "ROOT", tmp_path)
    with pytest.raises(BuildError, match="lmlite-engine is missing"):
        native.engine_path()
