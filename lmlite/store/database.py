"""The state database of a home folder: SQLite in WAL mode, sound after a kill at any moment.

It is checked when it is opened; a damaged one is moved aside, never repaired and never in the way. Calls block and may come
from any thread. Times are unix seconds.
"""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import astuple
from pathlib import Path
from typing import Any, Final, get_args

from ..download import Record, RemoteFile, Status
from ..errors import LmError

log = logging.getLogger(__name__)

BUSY_S: Final = 5.0
"""For another process that looks at the database: a backup, a shell."""

MIGRATIONS: Final[tuple[Sequence[str], ...]] = (
    (
        """CREATE TABLE downloads (
            id TEXT PRIMARY KEY,
            repo TEXT NOT NULL,
            revision TEXT NOT NULL,
            files TEXT NOT NULL, -- JSON: [[name, size, digest], ...]
            status TEXT NOT NULL,
            started_at REAL NOT NULL,
            completed_at REAL,
            error TEXT
        )""",
    ),
)
"""The statements that lead from each version of the schema to the next; `PRAGMA user_version` counts them."""


class StateError(LmError):
    """The database cannot be opened or written."""

    code = "state_error"


class Database:
    """The open database at `path`, whose folder is made if need be. Raises `StateError`."""

    def __init__(self, path: Path):
        self.path = path
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = _open(path)
        except OSError as error:
            raise StateError(f"{path.name} cannot be opened: {error.strerror}") from None
        except sqlite3.Error as error:
            raise StateError(f"{path.name} cannot be opened: {error}") from None

    def close(self) -> None:
        """May be called twice."""
        with self._lock:
            self._connection.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                with _transaction(self._connection):
                    yield self._connection
            except sqlite3.Error as error:
                raise StateError(f"{self.path.name}: {error}") from None

    # ---- downloads

    def downloads(self) -> list[Record]:
        """In the order in which they were begun; rows that make no sense are left out."""
        with self._transaction() as connection:
            rows = connection.execute(
                "SELECT id, repo, revision, files, status, started_at, completed_at, error FROM downloads ORDER BY started_at"
            ).fetchall()
        return [record for record in map(_read_download, rows) if record is not None]

    def save_download(self, record: Record) -> None:
        files = json.dumps([astuple(file) for file in record.files])
        with self._transaction() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO downloads (id, repo, revision, files, status, started_at, completed_at, error)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    record.id, record.repo, record.revision, files,
                    record.status, record.started_at, record.completed_at, record.error,
                ),
            )  # fmt: skip

    def forget_download(self, id: str) -> None:
        with self._transaction() as connection:
            connection.execute("DELETE FROM downloads WHERE id = ?", (id,))


def _read_download(row: Sequence[Any]) -> Record | None:
    id, repo, revision, files, status, started_at, completed_at, error = row
    try:
        listed = tuple(RemoteFile(str(name), int(size), str(digest)) for name, size, digest in json.loads(files))
    except (ValueError, TypeError):
        return None
    if status not in get_args(Status):
        return None
    return Record(id, repo, revision, listed, status, started_at, completed_at, error)


# ---- opening ---------------------------------------------------------------------------------------------------------


def _open(path: Path) -> sqlite3.Connection:
    try:
        return _connect(path)
    except sqlite3.DatabaseError as error:
        if not _is_damage(error):
            raise
    aside = _move_aside(path)
    log.error("%s was damaged; it is kept as %s, and a new one is begun", path.name, aside.name)
    return _connect(path)


def _is_damage(error: sqlite3.DatabaseError) -> bool:
    """SQLITE_CORRUPT and SQLITE_NOTADB have no class of their own: others come as subclasses of DatabaseError."""
    return type(error) is sqlite3.DatabaseError


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")  # an id that was told outlives a power cut, too
        (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise sqlite3.DatabaseError(verdict)
        _migrate(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _migrate(connection: sqlite3.Connection) -> None:
    with _transaction(connection):
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version > len(MIGRATIONS):
            raise StateError(f"the state database was written by a newer lmlite (version {version} of its schema)")
        for statements in MIGRATIONS[version:]:
            for statement in statements:
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        with suppress(sqlite3.Error):  # a full disk may have rolled back by itself
            connection.execute("ROLLBACK")
        raise


def _move_aside(path: Path) -> Path:
    """With its log, which belongs to it and would ruin another."""
    aside = path.with_name(f"{path.name}.damaged-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}")
    for suffix in ("", "-wal", "-shm"):
        with suppress(FileNotFoundError):
            os.replace(f"{path}{suffix}", f"{aside}{suffix}")
    return aside


def check(path: Path) -> str:
    """SQLite's full verdict on the database: "ok", or what is wrong."""
    with closing(sqlite3.connect(path, timeout=BUSY_S)) as connection:
        (verdict,) = connection.execute("PRAGMA integrity_check").fetchone()
    return str(verdict)
