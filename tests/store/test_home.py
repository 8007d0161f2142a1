"""The home folder: what is created and for whom, what is refused, and that one server at a time has it."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lmlite.errors import ConfigError, HomeInUse
from lmlite.store.home import MAX_LOCK_BYTES, Home, Lock
from tests.conftest import INSTALLED

HOLD = """
import sys
from pathlib import Path
from lmlite.store.home import Home
lock = Home(Path(sys.argv[1])).take("9.9", {"parallel": 8}, daemon=True)
if len(sys.argv) > 2:
    lock.publish(int(sys.argv[2]), "http://127.0.0.1:" + sys.argv[2])
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path / "deep" / "home")
    home.prepare()
    return home


@contextlib.contextmanager
def holder(home: Home, *port: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that has the home, and says that it listens on `port`."""
    command = [sys.executable, "-c", HOLD, str(home.root), *port]
    environ = {**os.environ, "PYTHONPATH": str(INSTALLED)}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=environ, cwd=home.root, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def take(home: Home, **options: Any) -> Lock:
    return home.take("1.0", options)


# ---- the folder ------------------------------------------------------------------------------------------------------


def test_missing_folders_are_created_for_this_user_alone(home: Home) -> None:
    for folder in (home.root, home.models, home.logs):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_nothing_is_created_before_it_is_asked_for(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    assert home.owner() is None
    assert home.last_owner() is None
    assert not home.root.exists()


def test_existing_folders_keep_what_they_have(home: Home) -> None:
    home.models.chmod(0o755)
    (home.models / "a.gguf").touch()
    home.prepare()
    assert stat.S_IMODE(home.models.stat().st_mode) == 0o755
    assert (home.models / "a.gguf").exists()


def test_folder_of_another_user_is_refused_with_both_users(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: mine + 1)
    with pytest.raises(ConfigError, match=rf"belongs to user {mine}, and this is user {mine + 1}.*--home"):
        home.prepare()


def test_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for root in (tmp_path / "file", tmp_path / "file" / "home"):
        with pytest.raises(ConfigError, match="cannot be used.*--home"):
            Home(root).prepare()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_parent_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ConfigError, match=r"cannot be used: Permission denied.*--home"):
        Home(tmp_path / "home").prepare()


def test_read_only_file_system_is_refused(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str, *_: object) -> int:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(ConfigError, match=r"server\.lock cannot be used: Read-only file system.*--home"):
        take(home)


# ---- the lock --------------------------------------------------------------------------------------------------------


def test_second_server_is_told_who_has_the_home(home: Home) -> None:
    with holder(home, "4711") as process:
        with pytest.raises(HomeInUse) as caught:
            take(home)
    assert (caught.value.pid, caught.value.port) == (process.pid, 4711)
    assert f"process id {process.pid} on port 4711" in str(caught.value)


def test_lock_is_for_the_whole_process_even_within_it(home: Home) -> None:
    with take(home), pytest.raises(HomeInUse):
        take(home)


def test_killed_owner_is_no_obstacle_and_its_port_is_remembered(home: Home) -> None:
    with holder(home, "4711") as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert home.owner() is None
        last = home.last_owner()
        assert last is not None
        assert last.port == 4711
        with take(home) as lock:
            assert (lock.owner.pid, lock.owner.port, lock.owner.url) == (os.getpid(), 4711, None)


def test_owner_is_seen_from_its_start_to_its_end(home: Home) -> None:
    with take(home, parallel=2) as lock:
        starting = home.owner()
        assert starting is not None
        assert (starting.pid, starting.port, starting.url) == (os.getpid(), None, None)
        lock.publish(4711, "http://127.0.0.1:4711")
        assert home.owner() == lock.owner
        assert lock.owner.options == {"parallel": 2}
    assert home.owner() is None


def test_file_says_what_other_programs_look_for(home: Home) -> None:
    with take(home) as lock:
        lock.publish(4711, "http://127.0.0.1:4711")
        said = json.loads(home.lock_file.read_text())
        assert {key: said[key] for key in ("pid", "port", "url", "version")} == {
            "pid": os.getpid(),
            "port": 4711,
            "url": "http://127.0.0.1:4711",
            "version": "1.0",
        }
        assert stat.S_IMODE(home.lock_file.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b'{"pid": "1"}', b"\xff\xfe", b"[" * MAX_LOCK_BYTES, b"1" * 5000, b'{"pid": 1e999}'],
    ids=range(9),
)
def test_nonsense_in_the_file_is_no_obstacle(home: Home, content: bytes) -> None:
    home.lock_file.write_bytes(content)
    assert home.owner() is None
    assert home.last_owner() is None
    with take(home) as lock:
        assert home.owner() == lock.owner


def test_held_lock_that_says_nothing_is_still_held(home: Home) -> None:
    with holder(home):
        home.lock_file.write_bytes(b"")
        owner = home.owner()
        assert owner is not None
        assert owner.pid is None
        with pytest.raises(HomeInUse, match="in use by another server;"):
            take(home)


def test_those_who_look_do_not_keep_a_server_out(home: Home) -> None:
    looking = "from lmlite.store.home import *\nwhile True: Home(Path(sys.argv[1])).owner()"
    environ = {**os.environ, "PYTHONPATH": str(INSTALLED)}
    take(home).release()
    command = [sys.executable, "-c", f"import sys\nfrom pathlib import Path\nprint(flush=True)\n{looking}", str(home.root)]
    with subprocess.Popen(command, env=environ, cwd=home.root, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            for _ in range(20):
                take(home).release()
        finally:
            process.kill()


def test_lock_is_not_inherited_by_children(home: Home) -> None:
    with take(home):
        command, pipe = [sys.executable, "-c", "print(flush=True); input()"], subprocess.PIPE
        child = subprocess.Popen(command, stdin=pipe, stdout=pipe, close_fds=False)
        assert child.stdout is not None
        child.stdout.readline()
    try:
        assert home.owner() is None
    finally:
        child.communicate(b"\n")


def make_link(path: Path) -> None:
    path.symlink_to("elsewhere")


@pytest.mark.parametrize("make", [make_link, os.mkfifo, Path.mkdir], ids=["link", "fifo", "folder"])
def test_lock_that_is_no_file_is_refused(home: Home, make: Any) -> None:
    make(home.lock_file)
    with pytest.raises(ConfigError, match=r"server\.lock cannot be used"):
        take(home)
    assert home.owner() is None
    assert not (home.root / "elsewhere").exists()
