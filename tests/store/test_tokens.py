"""Tokens at rest: only a digest of the secret, gone when revoked, and what another process does is seen at once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lmlite.errors import StateError
from lmlite.principal import Principal
from lmlite.store.database import Database
from lmlite.store.tokens import SHAPE, TokenReader, TokenTable

ANN = Principal("ann", "token ann", frozenset({"chat"}), 2, 1000)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.db"


@pytest.fixture
def table(path: Path) -> Iterator[TokenTable]:
    database = Database(path)
    yield TokenTable(database)
    database.close()


@pytest.fixture
def reader(path: Path) -> Iterator[TokenReader]:
    reader = TokenReader(path, Clock())
    yield reader
    reader.close()


def test_a_token_has_the_shape_that_clients_know_and_finds_its_owner(table: TokenTable, reader: TokenReader) -> None:
    token = table.create(ANN, 900.0, None)
    assert SHAPE.fullmatch(token)
    assert reader.find(token) == ANN
    assert reader.find(token[:-1] + ("a" if token[-1] != "a" else "b")) is None


def test_the_secret_is_nowhere_on_the_disk(table: TokenTable, path: Path) -> None:
    secret = table.create(ANN, 900.0, None).partition(":")[2]
    for file in path.parent.iterdir():
        assert secret.encode() not in file.read_bytes()


def test_a_token_ends_with_its_time(table: TokenTable, reader: TokenReader) -> None:
    assert reader.find(table.create(ANN, 900.0, 1000.0)) is None
    assert reader.find(table.create(Principal("ben", "", frozenset()), 900.0, 1000.1)) is not None


def test_what_another_connection_does_is_seen_at_once(table: TokenTable, reader: TokenReader) -> None:
    assert reader.count() == 0
    token = table.create(ANN, 900.0, None)
    assert reader.find(token) == ANN
    assert table.revoke(token[6:14])
    assert reader.find(token) is None


def test_no_two_tokens_have_one_name(table: TokenTable) -> None:
    table.create(ANN, 900.0, None)
    with pytest.raises(ValueError, match="ann"):
        table.create(ANN, 901.0, None)
    assert [token.principal for token in table.all()] == [ANN]


def test_damage_is_told_whatever_it_made_of_a_token(table: TokenTable, reader: TokenReader, path: Path) -> None:
    table.create(ANN, 900.0, None)
    table._database.close()
    whole = path.read_bytes()
    damaged = whole.replace(b"TABLE tokens", b"\xe0ABLE tokens")  # SQLite tells of it in bytes that are no text
    assert damaged != whole
    path.write_bytes(damaged)
    with pytest.raises(StateError):
        reader.count()
    path.write_bytes(whole)
    assert reader.count() == 1
    database = Database(path)
    with database.writing() as connection:
        connection.execute("UPDATE tokens SET digest = 'words'")
    with pytest.raises(StateError):
        reader.count()
    database.close()
