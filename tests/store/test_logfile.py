"""The log file: bounded, turned over with the process's own stderr, and never the reason that anything fails."""

from __future__ import annotations

import errno
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lmlite.store.logfile import MAX_RECORD, LogFile
from tests.conftest import INSTALLED


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "logs" / "server.log"


@pytest.fixture
def log_file(path: Path) -> Iterator[LogFile]:
    path.parent.mkdir()
    handler = LogFile(path, max_bytes=1000, kept=2)
    handler.setFormatter(logging.Formatter("%(message)s"))
    yield handler
    handler.close()


def write(handler: LogFile, message: str) -> None:
    handler.handle(logging.LogRecord("test", logging.INFO, __file__, 1, message, (), None))


def test_nothing_is_written_before_the_first_record(log_file: LogFile, path: Path) -> None:
    assert not path.exists()


def test_records_are_appended_to_what_was_there(log_file: LogFile, path: Path) -> None:
    path.write_text("before\n")
    write(log_file, "one")
    write(log_file, "two")
    assert path.read_text() == "before\none\ntwo\n"


def test_new_file_is_for_this_user_alone(log_file: LogFile, path: Path) -> None:
    write(log_file, "one")
    assert path.stat().st_mode & 0o777 == 0o600


def test_size_of_all_files_is_bounded_and_the_newest_records_are_kept(log_file: LogFile, path: Path) -> None:
    for number in range(500):
        write(log_file, f"record {number:03d}")
    names = sorted(file.name for file in path.parent.iterdir())
    assert names == ["server.log", "server.log.1", "server.log.2"]
    kept = "".join((path.parent / name).read_text() for name in reversed(names)).split("\n")[:-1]
    assert kept == [f"record {number:03d}" for number in range(500)][-len(kept) :]
    assert all(file.stat().st_size <= 1000 + len("record 000\n") for file in path.parent.iterdir())


def test_endless_record_is_cut(log_file: LogFile, path: Path) -> None:
    write(log_file, "x" * 10 * MAX_RECORD)
    assert path.stat().st_size == MAX_RECORD + 1


def test_lone_surrogates_are_written_escaped(log_file: LogFile, path: Path) -> None:
    write(log_file, "\ud800")
    assert path.read_text() == "\\ud800\n"


def test_full_disk_drops_records_and_writes_again_when_there_is_room(
    log_file: LogFile, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(log_file, "one")

    def refuse(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", refuse)
        write(log_file, "two")
        write(log_file, "three")
    write(log_file, "four")
    lines = path.read_text().split("\n")
    assert [line for line in lines if line] == ["one", "four"]


def test_record_after_a_torn_one_has_a_line_of_its_own(
    log_file: LogFile, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        really = os.write
        patch.setattr(os, "write", lambda descriptor, line: really(descriptor, line[:3]))
        write(log_file, "first")
    write(log_file, "second")
    assert path.read_text() == "fir\nsecond\n"


def test_folder_that_is_gone_or_no_folder_drops_records(log_file: LogFile, path: Path) -> None:
    path.parent.rmdir()
    path.parent.write_text("a file")
    write(log_file, "one")
    path.parent.unlink()
    write(log_file, "two")
    assert path.read_text() == "two\n"


def test_removed_or_moved_file_is_made_anew(log_file: LogFile, path: Path) -> None:
    write(log_file, "one")
    path.unlink()
    write(log_file, "two")
    assert path.read_text() == "two\n"
    path.rename(path.with_name("away"))
    write(log_file, "three")
    assert path.read_text() == "three\n"


def test_link_in_place_of_the_file_is_not_followed(log_file: LogFile, path: Path) -> None:
    path.symlink_to(path.with_name("elsewhere"))
    write(log_file, "one")
    assert not path.with_name("elsewhere").exists()


def test_stderr_that_is_the_file_is_turned_over_with_it(path: Path) -> None:
    script = """
import logging, os, sys
from pathlib import Path
from lmlite.store.logfile import LogFile
handler = LogFile(Path(sys.argv[1]), max_bytes=100)
assert handler.has_stderr
for _ in range(2):
    handler.handle(logging.LogRecord("test", logging.INFO, "file", 1, "x" * 200, (), None))
os.write(2, b"last words")
"""
    path.parent.mkdir()
    with open(path, "ab") as file:
        environ = {**os.environ, "PYTHONPATH": str(INSTALLED)}
        command = [sys.executable, "-c", script, str(path)]
        subprocess.run(command, env=environ, cwd=path.parent, stdout=file, stderr=file, check=True)
    assert path.read_text().endswith("last words")
    assert "last words" not in path.with_name("server.log.1").read_text()
