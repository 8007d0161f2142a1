"""`lmlite token`: made, listed and revoked without a server, and shown once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from lmlite.store.database import Database
from lmlite.store.tokens import SHAPE, TokenReader
from tests.cli.conftest import Command


def test_a_token_is_shown_when_it_is_made_and_never_again(command: Command, home: Path) -> None:
    made = command("token", "create", "kitchen", "--allow", "chat,models", "--expires", "30d")
    token = made.out.strip()
    assert made.code == 0 and SHAPE.fullmatch(token) and "--auth" in made.err
    listed = command("token", "list")
    assert token[:14] in listed.out and "kitchen  chat,models  expires " in listed.out
    assert token.partition(":")[2] not in listed.out
    assert command("token", "list", "--json").json[0]["rights"] == ["chat", "models"]


def test_a_token_is_revoked_by_name_or_by_its_first_part(command: Command, home: Path) -> None:
    command("token", "create", "a")
    second = command("token", "create", "b").out.strip()
    assert command("token", "revoke", "a").code == 0
    assert command("token", "revoke", second[:14]).code == 0
    gone = command("token", "revoke", "a")
    assert (gone.code, gone.err) == (2, "lmlite: there is no token 'a'\n")
    assert command("token", "list").out == ""


@pytest.mark.parametrize(
    "arguments", [("--allow", "everything"), ("--allow", ","), ("--expires", "soon"), ("--max-requests", "0")]
)
def test_what_makes_no_sense_is_refused_by_name(command: Command, home: Path, arguments: tuple[str, str]) -> None:
    refused = command("token", "create", "x", *arguments)
    assert (refused.code, refused.out) == (2, "") and arguments[0] in refused.err


def test_a_name_is_taken_once(command: Command, home: Path) -> None:
    command("token", "create", "a")
    again = command("token", "create", "a")
    assert (again.code, again.out) == (2, "") and "'a'" in again.err


def test_those_who_administer_are_named_as_such(command: Command, home: Path) -> None:
    command("token", "create", "plain")
    command("token", "create", "boss", "--allow", "admin,chat", "--group", "home")
    plain, boss = command("token", "list", "--json").json
    assert "admin" not in plain["rights"] and boss["rights"] == ["admin", "chat"] and boss["group"] == "home"


def test_commands_leave_no_database_open(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Path] = []

    class Noted(Database):
        def __init__(self, path: Path):
            super().__init__(path)
            opened.append(path)

        def close(self) -> None:
            super().close()
            opened.pop()

    monkeypatch.setattr("lmlite.cli.token.Database", Noted)
    file = tmp_path / "tokens.json"
    assert command("token", "create", "kitchen").code == 0
    file.write_text(command("token", "export").out)
    for words in (["list"], ["import", str(file)], ["import", str(tmp_path)], ["revoke", "kitchen"], ["revoke", "nobody"]):
        command("token", *words)
        assert not opened, words


def test_tokens_are_taken_to_another_server_as_digests(command: Command, home: Path, tmp_path: Path) -> None:
    """It lets them in then, and whoever is not among them no more."""
    secret = command("token", "create", "kitchen", "--allow", "chat", "--expires", "30d", "--group", "home").out.strip()
    command("token", "create", "study", "--max-requests", "3", "--tokens-per-minute", "500")
    told = command("token", "export").out
    assert secret.partition(":")[2] not in told
    file, other = tmp_path / "tokens.json", tmp_path / "other"
    file.write_text(told)
    stranger = command("token", "create", "stranger", "--home", str(other)).out.strip()
    assert command("token", "import", str(file), "--home", str(other)).code == 0
    assert command("token", "list", "--json", "--home", str(other)).json == command("token", "list", "--json").json
    reader = TokenReader(other / "state.sqlite3", lambda: 0.0)
    found = reader.find(secret)
    assert found is not None and (found.name, found.scope, found.rights) == ("kitchen", "group home", frozenset({"chat"}))
    assert reader.find(stranger) is None
    reader.close()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda told: told[: len(told) // 2],
        lambda told: '{"tokens": []}',
        lambda told: "[7]",
        lambda told: told.replace('"sha256": "', '"sha256": "00'),
        lambda told: told.replace('"chat"', '"everything"'),
        lambda told: json.dumps(json.loads(told) * 2),
        lambda told: told.replace("max_requests", "max_wishes"),
    ],
)
def test_a_file_that_was_not_exported_changes_nothing(
    command: Command, home: Path, tmp_path: Path, spoil: Callable[[str], str]
) -> None:
    command("token", "create", "kitchen")
    file = tmp_path / "tokens.json"
    file.write_text(spoil(command("token", "export").out))
    refused = command("token", "import", str(file))
    assert refused.code == 2 and refused.err.startswith(f"lmlite: {file}: ")
    assert command("token", "list", "--json").json[0]["name"] == "kitchen"
