"""Responses and chats by their ids, a row for each turn: what is new in it, and the turn that it goes on from. Pictures and
sound are kept once, by what they are, until the last turn that has them goes.

What is deleted by request is unknown from then on, but what others go on from stays for them until the last of them goes.
Age and size are bounded: the oldest turns that nobody goes on from go first.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from ..errors import ConversationTooLong, NotKept, StateError, UnfinishedPrevious, UnknownExchange, UnknownPrevious
from ..exchange import Exchange, ExchangeKind
from ..messages import Message, media_of
from . import message_text
from .database import Database

if TYPE_CHECKING:
    import sqlite3

TURNS_MAX: Final = 10_000
TEXT_MAX: Final = 64 << 20
"""Of one conversation: far beyond what any context holds, and what still is no trouble to read."""
ROW_BYTES: Final = 256
"""What a row takes besides its texts, with its share of the indexes."""
DAY_S: Final = 86400.0
FOLLOWED_S: Final = 3600.0
"""What was read to be gone on from does not go for its age or size meanwhile, however long the answer takes."""
SWEEP: Final = 500
"""Rows that one transaction removes: others wait for it. What is more, of bounds that were made narrower, is swept later."""
AFTER_ALL: Final = "\U0010ffff"
"""Behind whatever an id may go on with."""

OPEN: Final = "('queued', 'in_progress')"
"""As `Exchange.is_open` has it."""
COLUMNS: Final = "id, kind, scope, model, created, status, previous, asked, answer, body, items"
TEXTS: Final = ("id", "scope", "model", "asked", "answer", "body", "items")
SIZE: Final = f"{ROW_BYTES} + " + " + ".join(f"length(CAST(:{name} AS BLOB))" for name in TEXTS)
INSERT: Final = f"INSERT INTO exchanges ({COLUMNS}, bytes) VALUES (:{COLUMNS.replace(', ', ', :')}, {SIZE})"
UPDATE: Final = f"""
UPDATE exchanges SET model = :model, status = :status, asked = :asked, answer = :answer, body = :body, items = :items,
bytes = {SIZE} WHERE id = :id AND scope = :scope
"""
CONVERSATION: Final = f"""
WITH RECURSIVE line (turn, id, previous, deleted, is_open, bytes) AS (
    SELECT 0, id, previous, deleted, status IN {OPEN}, bytes FROM exchanges WHERE id = ? AND scope = ?
    UNION ALL
    SELECT line.turn + 1, parent.id, parent.previous, 0, 0, parent.bytes
    FROM line JOIN exchanges AS parent ON parent.id = line.previous WHERE line.turn < ?
)
SELECT id, previous, deleted, is_open, bytes FROM line ORDER BY turn
"""

Write = Callable[["sqlite3.Connection"], None]


class HistoryTable:
    """Calls block. All raise `StateError`."""

    def __init__(self, database: Database, bytes_max: int, days_max: int, clock: Callable[[], float] = time.time):
        self._database, self._clock = database, clock
        self._bytes_max, self._days_max = bytes_max, days_max
        self._followed: dict[str, float] = {}  # turns that others are about to go on from, and since when
        self._begun: set[str] | None = set()  # ids kept while what the last server left is not in order yet; None: it is

    @property
    def exists(self) -> bool:
        return self._database.exists

    # ---- reading

    def find(self, id: str, scope: str) -> Exchange:
        """Raises `UnknownExchange`."""
        if self.exists:
            with self._database.reading() as connection:
                query = f"SELECT {COLUMNS} FROM exchanges WHERE id = ? AND scope = ? AND NOT deleted"
                row = connection.execute(query, (id, scope)).fetchone()
                if row is not None:
                    return read(row, Media(connection))
        raise UnknownExchange(id)

    def find_beginning(self, beginning: str, scope: str) -> Exchange | None:
        """The one whose id begins so; None if there is not exactly one."""
        if not self.exists:
            return None
        with self._database.reading() as connection:
            query = f"SELECT {COLUMNS} FROM exchanges WHERE id >= ? AND id < ? AND scope = ? AND NOT deleted LIMIT 2"
            rows = connection.execute(query, (beginning, beginning + AFTER_ALL, scope)).fetchall()
            return read(rows[0], Media(connection)) if len(rows) == 1 else None

    def conversation(self, id: str, scope: str) -> tuple[Message, ...]:
        """All that was said up to the end of `id`. Raises `UnknownPrevious`, `UnfinishedPrevious`, `ConversationTooLong`."""
        if not self.exists:
            raise UnknownPrevious(id)
        with self._database.reading() as connection:
            line = connection.execute(CONVERSATION, (id, scope, TURNS_MAX)).fetchall()
            if not line or line[0][2]:
                raise UnknownPrevious(id)
            if line[0][3]:
                raise UnfinishedPrevious(id)
            if len(line) > TURNS_MAX or sum(row[4] for row in line) > TEXT_MAX:
                raise ConversationTooLong(len(line))
            if line[-1][1] is not None:
                raise StateError(f"what {id} goes on from is lost")
            query = "SELECT asked, answer FROM exchanges WHERE id = ?"
            texts = [connection.execute(query, (row[0],)).fetchone() for row in reversed(line)]
            media = Media(connection, lambda: ConversationTooLong(len(line)))
            conversation = tuple(message for pair in texts for text in pair for message in load(text, media))
        self._followed[id] = self._clock()
        return conversation

    # ---- writing: one transaction for all, an outcome for each

    def write(self, works: Sequence[Write]) -> list[Exception | None]:
        """Does all of `works` (what `begin`, `keep` and `delete` gave) and returns once they are on the disk: what became
        of each. If that fails for all together, they are tried one by one."""
        if len(works) > 1:  # else, and if that fails, alone
            try:
                return self._write(works)
            except StateError:
                pass
        outcomes: list[Exception | None] = []
        for work in works:
            try:
                outcomes += self._write((work,))
            except StateError as error:
                outcomes.append(error)
        return outcomes

    def _write(self, works: Sequence[Write]) -> list[Exception | None]:
        import sqlite3

        outcomes: list[Exception | None] = []
        with self._database.writing() as connection:
            for work in works:
                connection.execute("SAVEPOINT one")
                try:
                    work(connection)
                    outcomes.append(None)
                except (sqlite3.Error, UnicodeDecodeError):
                    raise
                except UnicodeEncodeError:  # half of a surrogate pair
                    connection.execute("ROLLBACK TO one")
                    outcomes.append(StateError("a text that is not valid Unicode cannot be kept"))
                except Exception as error:  # noqa: BLE001 - it belongs to whoever awaits this one
                    connection.execute("ROLLBACK TO one")
                    outcomes.append(error)
                connection.execute("RELEASE one")
        return outcomes

    def save(self, exchange: Exchange) -> Write:
        """Adds it, or puts it in the place of what was kept of it before. Raises, when done, `UnknownPrevious`, and
        `NotKept` if there is no room for it."""

        def work(connection: sqlite3.Connection) -> None:
            texts = (message_text.dump(exchange.asked), message_text.dump(exchange.answer), exchange.body, exchange.items)
            values = (
                exchange.id, exchange.kind, exchange.scope, exchange.model, exchange.created, exchange.status,
                exchange.previous, *texts,
            )  # fmt: skip
            named = dict(zip(COLUMNS.split(", "), values))
            known = connection.execute("SELECT deleted FROM exchanges WHERE id = ?", (exchange.id,)).fetchone()
            if known is not None and known[0]:  # while it ran: nobody will ask for it
                if not exchange.is_open:
                    remove(connection, exchange.id)
                return
            if known is not None:
                connection.execute(UPDATE, named)
            else:
                if exchange.previous is not None and not is_known(connection, exchange.previous, exchange.scope):
                    raise UnknownPrevious(exchange.previous)
                connection.execute(INSERT, named)
            for part in media_of((*exchange.asked, *exchange.answer)):
                connection.execute("INSERT OR IGNORE INTO media VALUES (?, ?)", (part.digest, part.data))
                connection.execute("INSERT OR IGNORE INTO exchange_media VALUES (?, ?)", (exchange.id, part.digest))
            self._make_room(connection, exchange.id)
            if self._begun is not None:
                self._begun.add(exchange.id)

        return work

    def delete(self, id: str, scope: str, kind: ExchangeKind) -> Write:
        """Raises, when done, `UnknownExchange`: of one of another kind too, whose dialect has no such request."""

        def work(connection: sqlite3.Connection) -> None:
            query = (
                f"SELECT children, status IN {OPEN} FROM exchanges WHERE id = ? AND scope = ? AND kind = ? AND NOT deleted"
            )
            row = connection.execute(query, (id, scope, kind)).fetchone()
            if row is None:
                raise UnknownExchange(id)
            children, is_open = row
            if not children and not is_open:
                remove(connection, id)
                return
            connection.execute(
                "UPDATE exchanges SET deleted = 1, body = '', items = '',"
                " bytes = bytes - length(CAST(body AS BLOB)) - length(CAST(items AS BLOB)) WHERE id = ?",
                (id,),
            )

        return work

    # ---- bounds

    def _make_room(self, connection: sqlite3.Connection, id: str) -> None:
        """For `id`, by removing others."""
        (own,) = connection.execute("SELECT bytes FROM exchanges WHERE id = ?", (id,)).fetchone()
        query = "SELECT total(length(data)) FROM media JOIN exchange_media USING (digest) WHERE exchange = ?"
        (media,) = connection.execute(query, (id,)).fetchone()
        hopeless = own + media > self._bytes_max
        for _ in range(SWEEP):
            if size_of(connection) <= self._bytes_max:
                break
            leaves = self._oldest_leaves(connection, 1, but=id)
            if hopeless or not leaves:
                raise NotKept(f"all that may be kept is {self._bytes_max >> 20} MiB (--history-size)")
            remove(connection, leaves[0][0])

    def recover(self) -> bool:
        """For a server that starts: what reads as running is of one that died. Whether that was done."""
        if not self.exists:
            self._begun = None  # no earlier server left anything: else it grows for ever
            return True
        with self._database.writing() as connection:
            left = connection.execute(f"SELECT id, deleted FROM exchanges WHERE status IN {OPEN}").fetchall()
            for id, deleted in left:
                if self._begun is not None and id in self._begun:
                    continue
                if deleted:
                    remove(connection, id)
                else:
                    connection.execute("UPDATE exchanges SET status = 'failed' WHERE id = ?", (id,))
        self._begun = None
        return True

    def sweep(self) -> bool:
        """Removes some of what is too old or too much, or of all if nothing is to be kept; whether there may be more."""
        with self._database.reading() as connection:
            if not self._goes(connection, self._oldest_leaves(connection, 1)):
                return False
        with self._database.writing() as connection:
            for leaf in self._oldest_leaves(connection, SWEEP):
                if self._goes(connection, [leaf]):
                    remove(connection, leaf[0])
        return True

    def _goes(self, connection: sqlite3.Connection, leaves: list[tuple[str, float]]) -> bool:
        """Whether the first of them is not to stay."""
        if not leaves or not self._bytes_max or not self._days_max:
            return bool(leaves)
        return leaves[0][1] <= self._clock() - self._days_max * DAY_S or size_of(connection) > self._bytes_max

    def _oldest_leaves(self, connection: sqlite3.Connection, n: int, but: str = "") -> list[tuple[str, float]]:
        """Turns that can go, with their times and in the order of these: they are over, and nobody goes on from them."""
        now = self._clock()
        self._followed = {id: since for id, since in self._followed.items() if now - since < FOLLOWED_S}
        query = f"SELECT id, created FROM exchanges WHERE children = 0 AND status NOT IN {OPEN} ORDER BY created"
        leaves = (leaf for leaf in connection.execute(query) if leaf[0] != but and leaf[0] not in self._followed)
        return list(islice(leaves, n))


def is_known(connection: sqlite3.Connection, id: str, scope: str) -> bool:
    query = "SELECT 1 FROM exchanges WHERE id = ? AND scope = ? AND NOT deleted"
    return connection.execute(query, (id, scope)).fetchone() is not None


def size_of(connection: sqlite3.Connection) -> int:
    (taken,) = connection.execute("SELECT bytes FROM history").fetchone()
    return int(taken)


def remove(connection: sqlite3.Connection, id: str) -> None:
    """A leaf, and what was deleted before and stayed for it alone."""
    gone: str | None = id
    while gone is not None:
        (previous,) = connection.execute("SELECT previous FROM exchanges WHERE id = ?", (gone,)).fetchone()
        connection.execute("DELETE FROM exchanges WHERE id = ?", (gone,))
        query = "SELECT id FROM exchanges WHERE id = ? AND deleted AND children = 0"
        (gone,) = connection.execute(query, (previous,)).fetchone() or (None,)


class Media:
    """Gives the bytes of pictures and sounds by their digests, as one and the same object each time. Those of one
    conversation have a limit, behind which it raises what `too_many` makes."""

    def __init__(self, connection: sqlite3.Connection, too_many: Callable[[], Exception] | None = None):
        self._connection, self._too_many = connection, too_many
        self._known: dict[str, bytes] = {}
        self._n_bytes = 0

    def __call__(self, digest: str) -> bytes:
        if digest not in self._known:
            row = self._connection.execute("SELECT data FROM media WHERE digest = ?", (digest,)).fetchone()
            if row is None or not isinstance(row[0], bytes):  # damage may have made a text of it
                raise StateError("a picture or sound is lost")
            self._known[digest] = row[0]
            self._n_bytes += len(row[0])
            if self._too_many is not None and self._n_bytes > TEXT_MAX:
                raise self._too_many()
        return self._known[digest]


def read(row: Sequence[Any], media: Media) -> Exchange:
    id, kind, scope, model, created, status, previous, asked, answer, body, items = row
    said = load(asked, media), load(answer, media)
    return Exchange(id, kind, scope, model, created, status, previous, *said, body, items)


def load(text: str, media: Media) -> tuple[Message, ...]:
    try:
        return message_text.load(text, media)
    except (ValueError, TypeError, AttributeError) as error:  # no text at all: damage made bytes of it, or nothing
        raise StateError(str(error)) from None
