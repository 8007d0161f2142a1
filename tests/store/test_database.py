"""The state database: what is saved is there again, whatever happened to the process or the file."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from lmlite.download import Record, RemoteFile
from lmlite.errors import StateError
from lmlite.store import database as module
from lmlite.store.database import Database
from lmlite.store.downloads import DownloadTable
from lmlite.store.home import Home
from tests.conftest import INSTALLED

FILES = (RemoteFile("Q4/é a.gguf", 2**40, "sha256:ab"), RemoteFile("mmproj.gguf", 7, "git:cd"))
RECORD = Record("job_0123456789", "acme/falcon", "main", FILES, "downloading", 1_800_000_000.25)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return Home(tmp_path / "home").state


def opened(path: Path) -> Database:
    database = Database(path)
    with database.reading():
        return database


@pytest.fixture
def database(path: Path) -> Iterator[Database]:
    database = Database(path)
    yield database
    database.close()


def test_records_are_there_after_a_restart_in_the_order_of_their_beginning(database: Database, path: Path) -> None:
    later = replace(RECORD, id="job_2", started_at=RECORD.started_at + 1)
    DownloadTable(database).save(later)
    DownloadTable(database).save(RECORD)
    DownloadTable(database).save(replace(later, status="failed", error="no\nroute"))
    database.close()
    with closing(Database(path)) as again:
        assert DownloadTable(again).all() == [RECORD, replace(later, status="failed", error="no\nroute")]
        DownloadTable(again).forget("job_2")
        DownloadTable(again).forget("job_2")
        assert DownloadTable(again).all() == [RECORD]


def test_it_is_in_wal_mode_and_whole(database: Database, path: Path) -> None:
    DownloadTable(database).save(RECORD)
    assert path.with_name(f"{path.name}-wal").exists()
    assert module.check(path) == "ok"


def test_rows_that_make_no_sense_are_left_out(database: Database, path: Path) -> None:
    DownloadTable(database).save(RECORD)
    with closing(sqlite3.connect(path)) as other, other:
        for id, files, status in (("a", "{", "failed"), ("b", "[[1]]", "failed"), ("c", "null", "failed"), ("d", "[]", "odd")):
            other.execute(
                "INSERT INTO downloads (id, repo, revision, files, status, started_at) VALUES (?, '', '', ?, ?, 1)",
                (id, files, status),
            )
    assert DownloadTable(database).all() == [RECORD]


@pytest.mark.parametrize("damage", ["not a database", "header", "pages", "empty log of another"])
def test_a_damaged_file_is_moved_aside(path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    with closing(Database(path)) as database:
        for i in range(300):
            DownloadTable(database).save(replace(RECORD, id=f"job_{i}"))
    whole = path.read_bytes()
    match damage:
        case "not a database":
            path.write_bytes(b"hello" * 1000)
        case "header":
            path.write_bytes(b"\0" * 100 + whole[100:])
        case "pages":
            path.write_bytes(whole[:4096] + os.urandom(len(whole) - 4096))
        case _:
            path.write_bytes(whole[:4096] + b"\0" * 4096 + whole[8192:])
    with closing(Database(path)) as database:
        DownloadTable(database).save(RECORD)
        assert DownloadTable(database).all() == [RECORD]
    assert module.check(path) == "ok"
    (aside,) = (other for other in path.parent.iterdir() if ".damaged-" in other.name)
    assert aside.stat().st_size > 0
    assert aside.name in caplog.text


def test_what_was_moved_aside_stays_where_another_is_moved_in_the_same_second(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = time.gmtime(0)
    monkeypatch.setattr(time, "gmtime", lambda: second)
    path.parent.mkdir(parents=True, exist_ok=True)
    damages = [b"first " * 1000, b"second" * 1000, b"third " * 1000]
    for damage in damages:
        path.write_bytes(damage)
        with closing(Database(path)) as database:
            DownloadTable(database).save(RECORD)
    assert sorted(other.read_bytes() for other in path.parent.glob("*.damaged-*")) == sorted(damages)


def test_nothing_is_opened_or_made_before_it_is_used(path: Path) -> None:
    with closing(Database(path)) as database:
        assert DownloadTable(database).all() == []
        assert not database.exists
    assert not path.parent.exists()
    with pytest.raises(StateError, match="was closed"), database.reading():
        pass


def test_damage_that_is_found_in_use_is_moved_aside_by_the_next_use(
    path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large file that was closed in order is not read as a whole when it is opened."""
    with closing(Database(path)) as database:
        for i in range(300):
            DownloadTable(database).save(replace(RECORD, id=f"job_{i}"))
    whole = path.read_bytes()
    rows = len(whole) // 4  # at the end of the file, behind the schema
    path.write_bytes(whole[:-rows] + os.urandom(rows))
    monkeypatch.setattr(module, "SMALL_BYTES", 1024)
    with closing(Database(path)) as database:
        with pytest.raises(StateError):
            DownloadTable(database).all()
        DownloadTable(database).save(RECORD)
        assert DownloadTable(database).all() == [RECORD]
    assert module.check(path) == "ok"
    assert ".damaged-" in caplog.text


def test_what_was_not_closed_in_order_is_checked_however_large(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    database = opened(path)
    for i in range(300):
        DownloadTable(database).save(replace(RECORD, id=f"job_{i}"))
    with database.writing() as connection:
        connection.execute("CREATE TABLE notes (text TEXT)")
    log = path.with_name(f"{path.name}-wal")
    with database.reading() as connection:
        connection.execute("PRAGMA wal_checkpoint")
    whole, left = path.read_bytes(), log.read_bytes()
    database.close()
    path.write_bytes(whole[:8192] + os.urandom(len(whole) - 8192))
    log.write_bytes(left[:0])
    monkeypatch.setattr(module, "SMALL_BYTES", 1024)
    opened(path).close()
    assert any(".damaged-" in other.name for other in path.parent.iterdir())


def test_nobody_else_can_read_it(path: Path) -> None:
    before = os.umask(0)
    try:
        with closing(Database(path)) as database:
            DownloadTable(database).save(RECORD)
            modes = {other.name: other.stat().st_mode & 0o777 for other in (path.parent, *path.parent.iterdir())}
    finally:
        os.umask(before)
    assert modes == {"home": 0o700, "state.sqlite3": 0o600, "state.sqlite3-wal": 0o600, "state.sqlite3-shm": 0o600}


def test_an_empty_file_is_a_new_database(path: Path) -> None:
    path.parent.mkdir()
    path.touch()
    with closing(Database(path)) as database:
        assert DownloadTable(database).all() == []


def test_one_of_a_newer_version_is_refused_and_left_alone(path: Path) -> None:
    opened(path).close()
    with closing(sqlite3.connect(path)) as other:
        other.execute("PRAGMA user_version = 99")
    before = path.read_bytes()
    with pytest.raises(StateError, match="newer lmlite .version 99"):
        opened(path)
    assert path.read_bytes() == before


def test_a_schema_is_brought_forward_step_by_step(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(Database(path)) as database:
        DownloadTable(database).save(RECORD)
    first = ("CREATE TABLE notes (text TEXT)", "INSERT INTO notes VALUES ('first')")
    further = (first, ("UPDATE notes SET text = text || '!'",))
    monkeypatch.setattr(module, "MIGRATIONS", (*module.MIGRATIONS, *further))
    for _ in range(2):
        with closing(Database(path)) as database:
            assert DownloadTable(database).all() == [RECORD]
    with closing(sqlite3.connect(path)) as other:
        assert other.execute("SELECT text FROM notes").fetchall() == [("first!",)]


def test_a_migration_that_fails_leaves_the_version_before_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(Database(path)) as database:
        DownloadTable(database).save(RECORD)
    with monkeypatch.context() as patch:
        patch.setattr(module, "MIGRATIONS", (*module.MIGRATIONS, ("CREATE TABLE notes (text TEXT)", "NONSENSE")))
        with pytest.raises(StateError, match="NONSENSE"):
            opened(path)
    with closing(Database(path)) as database:
        assert DownloadTable(database).all() == [RECORD]


def test_threads_write_at_once(database: Database) -> None:
    def write(n: int) -> None:
        for i in range(20):
            DownloadTable(database).save(replace(RECORD, id=f"job_{n}_{i}"))

    threads = [threading.Thread(target=write, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(DownloadTable(database).all()) == 160


def test_a_home_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StateError, match="cannot be opened"):
        opened(Home(tmp_path / "file" / "home").state)
    with pytest.raises(StateError, match="cannot be opened"):
        opened(tmp_path)


def test_what_was_saved_survives_a_kill(path: Path) -> None:
    program = """
import sys
from dataclasses import replace
from pathlib import Path
from lmlite.download import Record, RemoteFile
from lmlite.store.database import Database
from lmlite.store.downloads import DownloadTable
database = Database(Path(sys.argv[1]))
record = Record("", "acme/falcon", "main", (RemoteFile("a.gguf", 1, "sha256:ab"),), "downloading", 1.0)
i = 0
while True:
    DownloadTable(database).save(replace(record, id=f"job_{i}"))
    print(i, flush=True)
    i += 1
"""
    for _ in range(3):
        child = subprocess.Popen(
            [sys.executable, "-c", program, path], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(INSTALLED)}
        )
        assert child.stdout is not None
        with child.stdout:
            saved = [int(child.stdout.readline()) for _ in range(30)]
            child.send_signal(signal.SIGKILL)
            child.wait()
        assert module.check(path) == "ok"
        with closing(Database(path)) as database:
            assert {f"job_{i}" for i in saved} <= {record.id for record in DownloadTable(database).all()}
