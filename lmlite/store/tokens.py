"""API tokens, a row each: of the secret only a digest is kept. Times are unix seconds.

A token is `sk-lm-` and eight characters that find its row, a colon, and twenty that prove it: by their number nobody guesses
them, so a plain digest is enough.
"""

from __future__ import annotations

import hmac
import re
import secrets
import string
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ..errors import StateError
from ..principal import RIGHTS, Principal
from ..records import dataclass
from .database import Database

if TYPE_CHECKING:
    import sqlite3

LETTERS: Final = string.ascii_letters + string.digits
ID_LENGTH, SECRET_LENGTH, DIGEST_BYTES = 8, 20, 32
SHAPE: Final = re.compile(rf"sk-lm-([A-Za-z0-9]{{{ID_LENGTH}}}):([A-Za-z0-9]{{{SECRET_LENGTH}}})")
COLUMNS: Final = "id, digest, name, rights, scope, requests_max, tokens_per_minute, created, expires"
INSERT: Final = f"INSERT INTO tokens ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
BUSY_S: Final = 0.05
"""For another process that brings the database in order at this moment: a loop waits for it."""


@dataclass(slots=True, frozen=True)
class Token:
    id: str
    digest: bytes
    created: float
    expires: float | None
    principal: Principal

    def is_of(self, secret: str) -> bool:
        """In a time that says nothing of how much of it is right."""
        return hmac.compare_digest(self.digest, digest_of(secret))


def digest_of(secret: str) -> bytes:
    import hashlib  # where nobody asks for tokens, nobody waits for it

    return hashlib.sha256(secret.encode()).digest()


NOBODY: Final = digest_of("")
"""What a secret is compared with where no token has the id, so that it takes as long."""


class TokenTable:
    """Calls block and raise `StateError`."""

    def __init__(self, database: Database):
        self._database = database

    def create(self, principal: Principal, created: float, expires: float | None) -> str:
        """The token itself, which nobody can tell again. Raises `ValueError` if another one has the name."""
        id, secret = ("".join(secrets.choice(LETTERS) for _ in range(n)) for n in (ID_LENGTH, SECRET_LENGTH))
        row = (*row_of(id, digest_of(secret), principal), created, expires)
        with self._database.writing() as connection:
            if connection.execute("SELECT 1 FROM tokens WHERE name = ?", (principal.name,)).fetchone():
                raise ValueError(f"there is a token called {principal.name!r} already")
            connection.execute(INSERT, row)
        return f"sk-lm-{id}:{secret}"

    def replace(self, tokens: Iterable[Token]) -> None:
        """These are all that there are from now on. Raises `ValueError` where two of them have one name, or one id."""
        rows = [(*row_of(token.id, token.digest, token.principal), token.created, token.expires) for token in tokens]
        if len({row[0] for row in rows}) < len(rows) or len({row[2] for row in rows}) < len(rows):
            raise ValueError("two of them have the same name or id")
        with self._database.writing() as connection:
            connection.execute("DELETE FROM tokens")
            connection.executemany(INSERT, rows)

    def all(self) -> list[Token]:
        """In the order in which they were made."""
        if not self._database.exists:
            return []
        with self._database.reading() as connection:
            return read_all(connection)

    def revoke(self, name: str) -> bool:
        """By name, or by the eight characters; False if there is none."""
        if not self._database.exists:
            return False
        with self._database.writing() as connection:
            done = connection.execute("DELETE FROM tokens WHERE name = ? OR id = ?", (name, name))
            return done.rowcount > 0


class TokenReader:
    """The tokens that there are at this moment, whichever process made or revoked them, for a loop that must not wait: it
    reads past what others write. To ask costs microseconds as long as nobody wrote anything."""

    def __init__(self, path: Path, clock: Callable[[], float]):
        self._path, self._clock = path, clock
        self._connection: sqlite3.Connection | None = None
        self._seen: tuple[int, int] | None = None
        self._tokens: dict[str, Token] = {}

    def find(self, text: str) -> Principal | None:
        """Whose the token is; None for one that is not, is revoked or has expired. Raises `StateError`."""
        match = SHAPE.fullmatch(text)
        if match is None:
            return None
        self._refresh()
        id, secret = match.groups()
        token = self._tokens.get(id)
        if token is None:
            hmac.compare_digest(NOBODY, digest_of(secret))
            return None
        if not token.is_of(secret) or (token.expires is not None and token.expires <= self._clock()):
            return None
        return token.principal

    def count(self) -> int:
        self._refresh()
        return len(self._tokens)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _refresh(self) -> None:
        """`data_version` tells of what others committed; a file of another number is another database."""
        import sqlite3

        try:
            inode = self._path.stat().st_ino
        except OSError:
            self.close()
            self._seen, self._tokens = None, {}
            return
        try:
            if self._connection is None or self._seen is None or self._seen[0] != inode:
                self.close()
                uri = f"{self._path.absolute().as_uri()}?mode=ro"
                self._connection = sqlite3.connect(uri, uri=True, timeout=BUSY_S, isolation_level=None)
                self._seen = None
            (version,) = self._connection.execute("PRAGMA data_version").fetchone()
            if self._seen != (inode, version):
                self._tokens = {token.id: token for token in read_all(self._connection)}
                self._seen = inode, version
        except (sqlite3.Error, ValueError, TypeError) as error:  # a damaged row; or SQLite tells of bytes that are no text
            with suppress(sqlite3.Error):
                self.close()
            self._seen, self._tokens = None, {}
            raise StateError(f"{self._path.name}: {error}") from None


def row_of(id: str, digest: bytes, principal: Principal) -> tuple[str | bytes | int, ...]:
    """The first columns of one."""
    rights = " ".join(sorted(principal.rights))
    return id, digest, principal.name, rights, principal.scope, principal.requests_max, principal.tokens_per_minute


def read_all(connection: sqlite3.Connection) -> list[Token]:
    """A database that was never written to by a version that knows tokens has none."""
    if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'tokens'").fetchone():
        return []
    rows = connection.execute(f"SELECT {COLUMNS} FROM tokens ORDER BY created, rowid").fetchall()
    return [read(row) for row in rows]


def read(row: Sequence[Any]) -> Token:
    id, digest, name, rights, scope, requests_max, tokens_per_minute, created, expires = row
    known = frozenset(str(rights).split()) & frozenset(RIGHTS)
    principal = Principal(str(name), str(scope), known, int(requests_max), int(tokens_per_minute))
    return Token(str(id), bytes(digest), float(created), None if expires is None else float(expires), principal)
