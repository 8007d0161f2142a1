"""The table of exchanges: conversations by their last id, deletion that leaves others theirs, and bounds."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from lmlite.errors import (
    ConversationTooLong,
    NotKept,
    StateError,
    UnfinishedPrevious,
    UnknownExchange,
    UnknownPrevious,
)
from lmlite.exchange import Exchange, Status
from lmlite.messages import MediaPart, Message, TextPart, ToolResultPart, text_message
from lmlite.store import database as database_module
from lmlite.store import history as module
from lmlite.store.database import Database
from lmlite.store.history import DAY_S, HistoryTable, Write

MIB = 1 << 20
NOW = 2_000_000_000.0


def exchange(
    id: str,
    previous: str | None = None,
    *,
    scope: str = "",
    status: Status = "completed",
    created: float = NOW,
    words: str = "",
) -> Exchange:
    asked = (text_message("user", f"to {id} {words}"),)
    answer = () if status in ("queued", "in_progress") else (text_message("assistant", f"from {id}"),)
    return Exchange(id, "response", scope, "falcon", created, status, previous, asked, answer, f'{{"id":"{id}"}}', "[1]")


def said(*ids: str) -> tuple[Message, ...]:
    return tuple(itertools.chain.from_iterable((*exchange(id).asked, *exchange(id).answer) for id in ids))


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(tmp_path / "state.sqlite3")
    yield database
    database.close()


@pytest.fixture
def table(database: Database) -> HistoryTable:
    return HistoryTable(database, 1024 * MIB, 90, lambda: NOW)


def do(table: HistoryTable, *works: Write) -> None:
    for outcome in table.write(works):
        if outcome is not None:
            raise outcome


def save(table: HistoryTable, *exchanges: Exchange) -> None:
    do(table, *(table.save(one) for one in exchanges))


def ids(database: Database) -> set[str]:
    with database.reading() as connection:
        return {id for (id,) in connection.execute("SELECT id FROM exchanges")}


def is_sound(database: Database) -> bool:
    """What the triggers count is what there is."""
    with database.reading() as connection:
        (wrong,) = connection.execute(
            "SELECT count(*) FROM exchanges AS one"
            " WHERE children <> (SELECT count(*) FROM exchanges AS other WHERE other.previous = one.id)"
        ).fetchone()
        (total,) = connection.execute("SELECT total(bytes) FROM exchanges").fetchone()
        (of_media,) = connection.execute("SELECT total(length(data)) FROM media").fetchone()
        lost = "SELECT count(*) FROM exchange_media WHERE digest NOT IN (SELECT digest FROM media)"
        orphaned = "SELECT count(*) FROM media WHERE digest NOT IN (SELECT digest FROM exchange_media)"
        wrong += sum(connection.execute(query).fetchone()[0] for query in (lost, orphaned))
        (counted,) = connection.execute("SELECT bytes FROM history").fetchone()
    return bool(wrong == 0 and total + of_media == counted)


def test_an_exchange_is_found_as_it_was_kept(table: HistoryTable) -> None:
    one = replace(exchange("a"), kind="chat", body='{"é": "🦙"}', scope="me")
    save(table, one)
    assert table.find("a", "me") == one
    for id, scope in (("a", ""), ("a", "you"), ("b", "me")):
        with pytest.raises(UnknownExchange):
            table.find(id, scope)


PICTURE, SOUND = MediaPart("image", bytes(range(256)) * 40), MediaPart("audio", b"sound" * 1000)


def showing(id: str, *media: MediaPart, previous: str | None = None) -> Exchange:
    return replace(exchange(id, previous), asked=(Message("user", (TextPart(id), *media)),))


def test_pictures_are_kept_once_until_the_last_turn_that_has_them_goes(table: HistoryTable, database: Database) -> None:
    looked = replace(exchange("c", "b"), asked=(Message("tool", (ToolResultPart("1", "look", (PICTURE,)),)),))
    save(table, showing("a", PICTURE, SOUND), showing("b", PICTURE, previous="a"), looked, showing("d", SOUND))
    conversation = table.conversation("c", "")
    assert conversation[0].parts == (TextPart("a"), PICTURE, SOUND) and conversation[4] == looked.asked[0]
    assert table.find("a", "") == showing("a", PICTURE, SOUND) and table.find_beginning("d", "") == showing("d", SOUND)

    def files() -> set[str]:
        with database.reading() as connection:
            return {digest for (digest,) in connection.execute("SELECT digest FROM media")}

    assert files() == {PICTURE.digest, SOUND.digest} and is_sound(database)
    do(table, table.delete("a", "", "response"))  # others go on from it
    do(table, table.delete("c", "", "response"), table.delete("d", "", "response"))
    assert files() == {PICTURE.digest, SOUND.digest} and is_sound(database)
    save(table, showing("b", PICTURE, previous="a"))  # once more, as when a turn ends that was begun
    do(table, table.delete("b", "", "response"))
    assert files() == set() and is_sound(database)


def test_pictures_count_as_what_is_kept(database: Database) -> None:
    small = HistoryTable(database, len(PICTURE.data) + 3000, 90, lambda: NOW)
    save(small, replace(showing("a", PICTURE), created=NOW - 2), replace(showing("b", PICTURE), created=NOW - 1))
    assert ids(database) == {"a", "b"}
    save(small, showing("c", SOUND))
    assert ids(database) == {"c"} and is_sound(database)
    with pytest.raises(NotKept):
        save(small, showing("d", MediaPart("image", bytes(20_000))))
    assert is_sound(database)


def test_a_picture_that_has_no_room_even_alone_takes_nothing_with_it(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SWEEP", 2)  # there is more than one transaction removes
    small = HistoryTable(database, len(PICTURE.data) + 3000, 90, lambda: NOW)
    save(small, *(exchange(id, created=NOW - 1) for id in "abcd"))
    with pytest.raises(NotKept):
        save(small, showing("e", PICTURE, MediaPart("image", PICTURE.data + b"more")))
    assert ids(database) == set("abcd") and is_sound(database)


def test_room_is_made_without_looking_at_more_turns_than_go(database: Database) -> None:
    table = HistoryTable(database, 1024 * MIB, 90, lambda: NOW)
    save(table, *(exchange(f"{i:03}", created=i) for i in range(200)))
    for i in range(100, 200):
        table.conversation(f"{i:03}", "")  # others are about to go on from it
    steps = 0

    def step() -> int:
        nonlocal steps
        steps += 1
        return 0

    with database.reading() as connection:
        connection.set_progress_handler(step, 1)
        assert table._oldest_leaves(connection, 1) == [("000", 0)]
        connection.set_progress_handler(None, 1)
    assert steps < 100  # instructions: one turn takes ten, and two hundred turns thousands


def test_a_picture_that_is_lost_is_told(table: HistoryTable, database: Database) -> None:
    save(table, showing("a", PICTURE))
    with database.writing() as connection:
        connection.execute("DELETE FROM media")
    for ask in (lambda: table.find("a", ""), lambda: table.conversation("a", "")):
        with pytest.raises(StateError):
            ask()


def test_damage_that_sqlite_cannot_tell_of_in_words_is_told_to_who_writes(database: Database) -> None:
    table = HistoryTable(database, 1024 * MIB, 90, lambda: NOW)
    save(table, exchange("a"))
    database.close()
    path = database.path
    path.write_bytes(path.read_bytes().replace(b"SET children = children + 1", b"SET chi\x8cdren = children + 1"))
    again = Database(path)
    damaged = HistoryTable(again, 1024 * MIB, 90, lambda: NOW)
    for works in ([exchange("b", "a")], [exchange("b", "a"), exchange("c", "a")]):
        assert [type(outcome) for outcome in damaged.write([damaged.save(one) for one in works])] == [StateError] * len(works)
    assert damaged.find("a", "") == exchange("a")
    again.close()


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE media SET data = 'words'",
        "UPDATE media SET data = NULL",
        "UPDATE exchanges SET asked = CAST(asked AS BLOB)",
        "UPDATE exchanges SET asked = NULL",
    ],
)
def test_what_damage_made_something_else_is_told(database: Database, damage: str) -> None:
    save(HistoryTable(database, 1024 * MIB, 90, lambda: NOW), showing("a", PICTURE))
    with database.reading() as connection:  # damage asks for no leave: columns are not to refuse it
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute("UPDATE sqlite_master SET sql = replace(sql, 'NOT NULL', '') WHERE type = 'table'")
    again = Database(database.path)
    with again.reading() as connection:
        connection.execute(damage)
    table = HistoryTable(again, 1024 * MIB, 90, lambda: NOW)
    for ask in (lambda: table.find("a", ""), lambda: table.conversation("a", "")):
        with pytest.raises(StateError):
            ask()
    again.close()


def test_a_conversation_is_all_that_was_said_and_can_branch(table: HistoryTable) -> None:
    save(table, exchange("a"), exchange("b", "a"), exchange("c", "b"), exchange("d", "a"))
    assert table.conversation("c", "") == said("a", "b", "c")
    assert table.conversation("d", "") == said("a", "d")
    assert table.conversation("a", "") == said("a")


def test_a_conversation_of_another_scope_is_unknown_to_readers_and_continuations(table: HistoryTable) -> None:
    save(table, exchange("a", scope="me"))
    with pytest.raises(UnknownPrevious) as caught:
        table.conversation("a", "you")
    assert (caught.value.status, caught.value.code, caught.value.param) == (
        400, "previous_response_not_found", "previous_response_id",
    )  # fmt: skip
    with pytest.raises(UnknownPrevious):
        save(table, exchange("b", "a", scope="you"))
    with pytest.raises(UnknownExchange):
        do(table, table.delete("a", "you", "response"))


def test_what_another_dialect_keeps_is_not_deleted(table: HistoryTable) -> None:
    save(table, replace(exchange("a"), kind="chat"))
    with pytest.raises(UnknownExchange):
        do(table, table.delete("a", "", "response"))
    assert table.conversation("a", "") == said("a")


def test_nothing_is_made_by_looking(table: HistoryTable, database: Database) -> None:
    with pytest.raises(UnknownExchange):
        table.find("a", "")
    with pytest.raises(UnknownPrevious):
        table.conversation("a", "")
    assert table.recover()
    assert not database.path.exists()


def test_only_a_turn_that_has_ended_is_gone_on_from(table: HistoryTable) -> None:
    save(table, exchange("a"), exchange("b", "a", status="in_progress"))
    with pytest.raises(UnfinishedPrevious):
        table.conversation("b", "")
    save(table, exchange("b", "a", status="incomplete"))
    assert table.conversation("b", "") == said("a", "b")


def test_what_ran_when_its_server_died_reads_as_failed(table: HistoryTable, database: Database) -> None:
    save(table, exchange("a"), exchange("b", "a", status="in_progress"), exchange("c", status="queued"), exchange("d"))
    save(table, exchange("e", status="in_progress"))
    do(table, table.delete("e", "", "response"))
    next_one = HistoryTable(database, 1024 * MIB, 90, lambda: NOW)
    save(next_one, exchange("f", status="in_progress"))  # the database was in somebody's hands until now
    do(next_one, next_one.delete("f", "", "response"))
    save(next_one, exchange("g", status="in_progress"))
    next_one.recover()
    assert next_one.find("g", "").status == "in_progress" and "f" in ids(database)
    do(next_one, *(next_one.save(exchange(id)) for id in "fg"))
    do(next_one, next_one.delete("g", "", "response"))
    assert [table.find(id, "").status for id in "abcd"] == ["completed", "failed", "failed", "completed"]
    assert ids(database) == set("abcd")
    assert table.conversation("b", "") == (*said("a"), *exchange("b").asked)


def test_a_server_whose_home_is_new_remembers_none_of_its_turns(table: HistoryTable) -> None:
    assert table.recover()
    save(table, exchange("a"), exchange("b", "a", status="in_progress"))
    assert not table._begun
    assert table.find("b", "").status == "in_progress"


def test_what_is_deleted_is_unknown_and_stays_for_those_that_go_on_from_it(table: HistoryTable, database: Database) -> None:
    save(table, exchange("a"), exchange("b", "a"), exchange("c", "b"), exchange("d", "b"))
    do(table, table.delete("b", "", "response"), table.delete("a", "", "response"))
    for id in "ab":
        with pytest.raises(UnknownExchange):
            table.find(id, "")
        with pytest.raises(UnknownPrevious):
            table.conversation(id, "")
        with pytest.raises(UnknownPrevious):
            save(table, exchange("e", id))
        with pytest.raises(UnknownExchange):
            do(table, table.delete(id, "", "response"))
    assert table.conversation("c", "") == said("a", "b", "c")
    do(table, table.delete("c", "", "response"))
    assert table.conversation("d", "") == said("a", "b", "d")
    assert ids(database) == set("abd")
    assert is_sound(database)
    do(table, table.delete("d", "", "response"))
    assert ids(database) == set()
    assert is_sound(database)


def test_what_was_deleted_cannot_be_read_in_the_file(table: HistoryTable, database: Database) -> None:
    save(table, exchange("a", words="marzipan" * 2000), exchange("b"))
    do(table, table.delete("a", "", "response"))
    with database.reading() as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert b"marzipan" not in database.path.read_bytes()


def test_a_turn_that_is_deleted_while_it_runs_is_not_kept(table: HistoryTable, database: Database) -> None:
    save(table, exchange("a", status="queued"))
    do(table, table.delete("a", "", "response"))
    save(table, exchange("a", status="in_progress"))
    with pytest.raises(UnknownExchange):
        table.find("a", "")
    save(table, exchange("a"))
    assert ids(database) == set()


def test_what_a_running_turn_goes_on_from_can_be_deleted_meanwhile(table: HistoryTable) -> None:
    save(table, exchange("a"), exchange("b", "a", status="in_progress"))
    do(table, table.delete("a", "", "response"))
    save(table, exchange("b", "a"))
    assert table.conversation("b", "") == said("a", "b")


def test_the_oldest_leaves_go_when_there_is_no_room(database: Database) -> None:
    """A turn that others go on from outlives them, whatever its age."""
    table = HistoryTable(database, 3 * MIB, 90, lambda: NOW)
    half = "x" * (MIB // 2)
    save(table, exchange("old", created=1, words=half), exchange("child", "old", created=5, words=half))
    for i in range(2, 5):
        save(table, exchange(f"leaf{i}", created=i, words=half))
    assert ids(database) == {"old", "child", "leaf2", "leaf3", "leaf4"}
    save(table, exchange("new", created=6, words=half))
    assert ids(database) == {"old", "child", "leaf3", "leaf4", "new"}
    for i in range(7, 9):
        save(table, exchange(f"new{i}", created=i, words=half))
    assert ids(database) == {"old", "child", "new", "new7", "new8"}
    save(table, exchange("new9", created=9, words=half))
    assert ids(database) == {"old", "new", "new7", "new8", "new9"}
    save(table, exchange("new10", created=10, words=half))
    assert ids(database) == {"new", "new7", "new8", "new9", "new10"}
    assert is_sound(database)


def test_what_has_no_room_even_alone_is_refused_and_takes_nothing_with_it(database: Database) -> None:
    table = HistoryTable(database, 2 * MIB, 90, lambda: NOW)
    save(table, exchange("a"), exchange("b", "a"))
    with pytest.raises(NotKept, match="2 MiB") as caught:
        save(table, exchange("large", words="x" * 3 * MIB))
    assert caught.value.status == 422
    with pytest.raises(NotKept):
        save(table, exchange("c", "b", words="x" * (2 * MIB - 900)))
    assert ids(database) == {"a", "b"}
    assert is_sound(database)


def test_a_turn_that_runs_is_never_in_the_way_of_bounds_nor_removed_by_them(database: Database) -> None:
    table = HistoryTable(database, MIB, 1, lambda: NOW)
    save(table, exchange("runs", status="in_progress", created=1), exchange("old", created=2))
    save(table, exchange("large", words="x" * (MIB - 2000)))
    while table.sweep():
        pass
    assert ids(database) == {"runs", "large"}


def test_what_is_about_to_be_gone_on_from_stays_meanwhile(database: Database) -> None:
    times = [NOW]
    table = HistoryTable(database, MIB, 1, lambda: times[0])
    save(table, exchange("old", created=1), exchange("other", created=2))
    assert table.conversation("old", "") == said("old")
    save(table, exchange("large", words="x" * (MIB - 1500)))
    while table.sweep():
        pass
    assert ids(database) == {"old", "large"}
    save(table, exchange("next", "old"))
    do(table, table.delete("next", "", "response"))
    assert table.conversation("old", "") == said("old")
    times[0] += module.FOLLOWED_S
    while table.sweep():
        pass
    assert ids(database) == {"large"}


def test_what_is_too_old_is_swept_from_its_leaves(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SWEEP", 2)
    table = HistoryTable(database, 1024 * MIB, 2, lambda: NOW)
    old = NOW - 2 * DAY_S - 1
    save(table, exchange("a", created=old), exchange("b", "a", created=NOW), exchange("c", created=old))
    save(table, exchange("d", "c", created=old), exchange("e", "d", created=old))
    rounds = 0
    while table.sweep():
        rounds += 1
    assert ids(database) == {"a", "b"}
    assert rounds == 3
    assert is_sound(database)


@pytest.mark.parametrize("bounds", [(0, 90), (MIB, 0)])
def test_bounds_of_zero_leave_nothing(table: HistoryTable, database: Database, bounds: tuple[int, int]) -> None:
    save(table, exchange("a"), exchange("b", "a", created=NOW + 5))
    none = HistoryTable(database, *bounds, lambda: NOW + 9)
    while none.sweep():
        pass
    assert ids(database) == set()


def test_bounds_that_were_made_narrower_are_come_to_in_parts(
    database: Database, table: HistoryTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No turn waits until all is swept."""
    monkeypatch.setattr(module, "SWEEP", 3)
    save(table, *(exchange(str(i), created=i, words="x" * (MIB // 4)) for i in range(16)))
    narrower = HistoryTable(database, MIB, 36500, lambda: NOW)
    save(narrower, exchange("new", created=99))
    assert ids(database) == {*map(str, range(3, 16)), "new"}
    rounds = 0
    while narrower.sweep():
        rounds += 1
    assert ids(database) == {"13", "14", "15", "new"}
    assert rounds == 4
    assert is_sound(database)


def test_one_that_fails_leaves_the_others_of_its_transaction(table: HistoryTable, database: Database) -> None:
    outcomes = table.write([table.save(exchange("a")), table.save(exchange("b", "gone")), table.save(exchange("c", "a"))])
    assert [type(outcome) for outcome in outcomes] == [type(None), UnknownPrevious, type(None)]
    assert ids(database) == {"a", "c"}


def test_one_that_the_disk_does_not_take_leaves_the_others(table: HistoryTable, database: Database) -> None:
    save(table, exchange("a"))
    with database.reading() as connection:
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count = {pages + 20}")
    large = exchange("large", words="x" * MIB)
    outcomes = table.write([table.save(exchange("b", "a")), table.save(large), table.save(exchange("c", "b"))])
    assert [type(outcome) for outcome in outcomes] == [type(None), StateError, type(None)]
    assert "full" in str(outcomes[1])
    assert table.conversation("c", "") == said("a", "b", "c")


def test_a_very_long_conversation_is_refused(table: HistoryTable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TURNS_MAX", 50)
    chain = [str(i) for i in range(51)]
    save(table, *(exchange(id, None if id == "0" else str(int(id) - 1)) for id in chain))
    assert table.conversation("49", "") == said(*chain[:50])
    with pytest.raises(ConversationTooLong) as caught:
        table.conversation("50", "")
    assert caught.value.code == "context_length_exceeded"
    monkeypatch.setattr(module, "TEXT_MAX", 10_000)
    with pytest.raises(ConversationTooLong):
        table.conversation("49", "")


def test_a_lost_beginning_is_told_and_not_left_out(table: HistoryTable, database: Database) -> None:
    save(table, exchange("a"), exchange("b", "a"))
    with database.writing() as connection:
        connection.execute("DELETE FROM exchanges WHERE id = 'a'")
    with pytest.raises(StateError, match="lost"):
        table.conversation("b", "")


def test_rows_of_the_database_before_histories_are_brought_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state.sqlite3"
    with monkeypatch.context() as patch:
        patch.setattr(database_module, "MIGRATIONS", database_module.MIGRATIONS[:1])
        before = Database(path)
        with before.writing() as connection:
            connection.execute("INSERT INTO downloads VALUES ('job', 'a/b', 'main', '[]', 'failed', 1, 2, 'no')")
        before.close()
    after = Database(path)
    save(HistoryTable(after, MIB, 1), exchange("a"))
    with after.reading() as connection:
        assert connection.execute("SELECT id FROM downloads").fetchall() == [("job",)]
    after.close()


def test_random_trees_keep_their_conversations_through_deletions_and_bounds(database: Database) -> None:
    draw = random.Random(7)
    table = HistoryTable(database, MIB, 90, lambda: NOW)
    lines: dict[str, tuple[str, ...]] = {}
    known: set[str] = set()
    for i in range(400):
        if known and draw.random() < 0.25:
            gone = draw.choice(sorted(known))
            known.remove(gone)
            do(table, table.delete(gone, "", "response"))
        else:
            previous = draw.choice(sorted(known)) if known and draw.random() < 0.7 else None
            lines[str(i)] = (*lines.get(previous or "", ()), str(i))
            save(table, exchange(str(i), previous, created=i))
            known.add(str(i))
    for id in lines:
        if id in known:
            assert table.conversation(id, "") == said(*lines[id])
        else:
            with pytest.raises(UnknownPrevious):
                table.conversation(id, "")
    needed = {id for last in known for id in lines[last]}
    assert ids(database) == needed
    assert is_sound(database)


def test_a_turn_is_found_by_how_its_id_begins(table: HistoryTable) -> None:
    assert table.find_beginning("resp_", "") is None
    save(table, exchange("resp_aab"), exchange("resp_aac"), exchange("resp_b", scope="other"))
    found = table.find_beginning("resp_aab", "")
    assert found is not None and found.id == "resp_aab"
    assert table.find_beginning("resp_aa", "") is None  # both
    assert table.find_beginning("resp_b", "") is None
    do(table, table.delete("resp_aac", "", "response"))
    found = table.find_beginning("resp_aa", "")
    assert found is not None and found.id == "resp_aab"
