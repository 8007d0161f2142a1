"""The state database of a home folder: SQLite in WAL mode, sound after a kill at any moment.

One connection for all who keep something there; the tables have a module each. It is opened by its first use and checked
then; a damaged one is moved aside, never repaired and never in the way. Calls block and may come from any thread.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ..errors import StateError
from .home import PRIVATE_FILE, PRIVATE_FOLDER

if TYPE_CHECKING:  # a server that keeps nothing does without it
    import sqlite3

log = logging.getLogger(__name__)

BUSY_S: Final = 5.0
"""For another process that looks at the database: a backup, a shell."""
LOG_BYTES: Final = 16 << 20
"""What the write-ahead log keeps of the disk after a large transaction."""
SMALL_BYTES: Final = 64 << 20
"""A larger one is read as a whole, which takes seconds, only if it was not closed in order or damage was seen in it."""
CLOSE_S: Final = 2.0
"""For a use that the disk holds up; one that takes longer is left alone."""

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
    (
        """CREATE TABLE exchanges (
            id TEXT PRIMARY KEY,
            previous TEXT, -- an id that is there as long as this is
            children INTEGER NOT NULL DEFAULT 0, -- those whose previous this is
            deleted INTEGER NOT NULL DEFAULT 0, -- by request: only those that go on from it still see it
            bytes INTEGER NOT NULL, -- of all that is kept of it
            kind TEXT NOT NULL,
            scope TEXT NOT NULL,
            model TEXT NOT NULL,
            created REAL NOT NULL,
            status TEXT NOT NULL,
            asked TEXT NOT NULL, -- messages as in message_text.py
            answer TEXT NOT NULL, -- so is this
            body TEXT NOT NULL, -- JSON of its dialect
            items TEXT NOT NULL -- JSON of its dialect
        )""",
        "CREATE INDEX exchange_leaves ON exchanges (created) WHERE children = 0",
        "CREATE INDEX exchanges_open ON exchanges (status) WHERE status IN ('queued', 'in_progress')",
        "CREATE TABLE history (bytes INTEGER NOT NULL) -- one row: what all exchanges take",
        "INSERT INTO history VALUES (0)",
        """CREATE TRIGGER exchange_added AFTER INSERT ON exchanges BEGIN
            UPDATE exchanges SET children = children + 1 WHERE id = NEW.previous;
            UPDATE history SET bytes = bytes + NEW.bytes;
        END""",
        """CREATE TRIGGER exchange_changed AFTER UPDATE OF bytes ON exchanges BEGIN
            UPDATE history SET bytes = bytes + NEW.bytes - OLD.bytes;
        END""",
        """CREATE TRIGGER exchange_removed AFTER DELETE ON exchanges BEGIN
            UPDATE exchanges SET children = children - 1 WHERE id = OLD.previous;
            UPDATE history SET bytes = bytes - OLD.bytes;
        END""",
    ),
    (
        """CREATE TABLE tokens (
            id TEXT PRIMARY KEY,
            digest BLOB NOT NULL, -- of the secret part
            name TEXT NOT NULL UNIQUE,
            rights TEXT NOT NULL, -- words with spaces between
            scope TEXT NOT NULL,
            created REAL NOT NULL,
            expires REAL,
            requests_max INTEGER NOT NULL,
            tokens_per_minute INTEGER NOT NULL
        )""",
    ),
    (
        """CREATE TABLE media (
            digest TEXT PRIMARY KEY, -- SHA-256
            data BLOB NOT NULL -- a picture or sound: once, however often it was sent
        )""",
        """CREATE TABLE exchange_media (
            exchange TEXT NOT NULL,
            digest TEXT NOT NULL,
            PRIMARY KEY (exchange, digest)
        ) WITHOUT ROWID""",
        "CREATE INDEX exchanges_of_media ON exchange_media (digest)",
        """CREATE TRIGGER media_added AFTER INSERT ON media BEGIN
            UPDATE history SET bytes = bytes + length(NEW.data);
        END""",
        """CREATE TRIGGER media_removed AFTER DELETE ON media BEGIN
            UPDATE history SET bytes = bytes - length(OLD.data);
        END""",
        """CREATE TRIGGER exchange_media_removed AFTER DELETE ON exchange_media BEGIN
            DELETE FROM media WHERE digest = OLD.digest
                AND NOT EXISTS (SELECT 1 FROM exchange_media WHERE digest = OLD.digest);
        END""",
        """CREATE TRIGGER exchange_with_media_removed AFTER DELETE ON exchanges BEGIN
            DELETE FROM exchange_media WHERE exchange = OLD.id;
        END""",
    ),
)
"""The statements that lead from each version of the schema to the next; `PRAGMA user_version` counts them."""


class Database:
    """The database at `path`, whose folder is made if need be. Every use raises `StateError` where it fails."""

    def __init__(self, path: Path):
        self.path = path
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._closed = False
        self._suspect = False  # damage was seen

    @property
    def exists(self) -> bool:
        """Whether anything was ever kept: those who only look do not make one."""
        return self._connection is not None or self.path.exists()

    @property
    def is_open(self) -> bool:
        return self._connection is not None

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._told() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction, which is on the disk when this ends."""
        with self._lock, self._told() as connection, _transaction(connection):
            yield connection

    @contextmanager
    def _told(self) -> Iterator[sqlite3.Connection]:
        import sqlite3

        connection = self._opened()
        try:
            yield connection
        except (sqlite3.Error, UnicodeDecodeError) as error:
            if _is_damage(error):
                log.error("%s is damaged: %s", self.path.name, error)
                self._suspect = True
                self._close()  # the next use opens it anew, and checks it
            raise StateError(f"{self.path.name}: {error}") from None

    def _opened(self) -> sqlite3.Connection:
        import sqlite3

        if self._closed:
            raise StateError(f"{self.path.name} was closed")
        if self._connection is None:
            try:
                self.path.parent.mkdir(mode=PRIVATE_FOLDER, parents=True, exist_ok=True)
                self._connection = _open(self.path, self._suspect)
                self._suspect = False
            except OSError as error:
                raise StateError(f"{self.path.name} cannot be opened: {error.strerror}") from None
            except (sqlite3.Error, UnicodeDecodeError) as error:
                raise StateError(f"{self.path.name} cannot be opened: {error}") from None
        return self._connection

    def close(self) -> None:
        """May be called twice."""
        self._closed = True
        if self._lock.acquire(timeout=CLOSE_S):
            try:
                self._close()
            finally:
                self._lock.release()

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


# ---- opening ---------------------------------------------------------------------------------------------------------


def _open(path: Path, suspect: bool) -> sqlite3.Connection:
    import sqlite3

    try:
        return _connect(path, suspect)
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
        if not _is_damage(error):
            raise
    aside = _move_aside(path)
    log.error("%s was damaged; it is kept as %s, and a new one is begun", path.name, aside.name)
    return _connect(path, suspect=False)


def _is_damage(error: sqlite3.Error | UnicodeDecodeError) -> bool:
    """SQLITE_CORRUPT and SQLITE_NOTADB have no class of their own: others come as subclasses of DatabaseError. Where the bytes
    that SQLite tells of are no UTF-8, Python cannot say what it told."""
    import sqlite3

    return type(error) is sqlite3.DatabaseError or isinstance(error, UnicodeDecodeError)


def _connect(path: Path, suspect: bool) -> sqlite3.Connection:
    import sqlite3

    closed = not path.with_name(f"{path.name}-wal").exists()
    thorough = suspect or not closed or not path.exists() or path.stat().st_size <= SMALL_BYTES
    if not path.exists():  # conversations are in it; its log is as private as it is
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, PRIVATE_FILE))
    connection = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")  # an id that was told outlives a power cut, too
        connection.execute(f"PRAGMA journal_size_limit = {LOG_BYTES}")
        connection.execute("PRAGMA secure_delete = ON")  # what is deleted by request is not to be read in the file
        if thorough:
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
    import sqlite3

    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        with suppress(sqlite3.Error, UnicodeDecodeError):  # a full disk may have rolled back by itself
            connection.execute("ROLLBACK")
        raise


def _move_aside(path: Path) -> Path:
    """With its log, which belongs to it and would ruin another."""
    base = f"{path.name}.damaged-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}"
    names = (path.with_name(base if n == 0 else f"{base}-{n}") for n in count())
    aside = next(name for name in names if not name.exists())  # what was kept in the same second stays
    for suffix in ("", "-wal", "-shm"):
        with suppress(FileNotFoundError):
            os.replace(f"{path}{suffix}", f"{aside}{suffix}")
    return aside


def check(path: Path) -> str:
    """SQLite's full verdict on the database: "ok", or what is wrong."""
    import sqlite3

    with closing(sqlite3.connect(path, timeout=BUSY_S)) as connection:
        (verdict,) = connection.execute("PRAGMA integrity_check").fetchone()
    return str(verdict)
