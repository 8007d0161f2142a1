"""mcp.json: whose it is, what it may say, and that a change is seen."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from lmlite.mcp.file import Entry, ServerFile, read_entry


def write(path: Path, servers: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"mcpServers": servers}))


def test_programs_and_urls_with_variables_of_the_environment() -> None:
    environ = {"KEY": "k", "TOKEN": "t"}
    program = {"command": "npx", "args": ["-y", "${env:KEY}"], "env": {"A": "x${env:KEY}y"}, "cwd": "/srv"}
    assert read_entry("a", program, environ) == Entry("a", ("npx", "-y", "k"), (("A", "xky"),), "/srv")
    web = {"url": "https://h/mcp", "headers": {"Authorization": "Bearer ${env:TOKEN}"}}
    entry = read_entry("b", web, environ)
    assert entry == Entry("b", url="https://h/mcp", headers=(("Authorization", "Bearer t"),))
    assert "Bearer" not in repr(entry)


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("npx", "no object"),
        ({}, "neither"),
        ({"command": "a", "args": "b"}, "'args'"),
        ({"command": "a", "args": [1]}, "'args'"),
        ({"command": "a", "env": {"A": 1}}, "'env'"),
        ({"command": "a", "cwd": 1}, "'cwd'"),
        ({"command": "${env:MISSING}"}, "MISSING"),
        ({"url": "http://h", "headers": {"Host": "x"}}, "'Host' cannot be set"),
        ({"url": "http://h", "headers": {"A": "x\r\ny"}}, "'A' has a value"),
    ],
)
def test_an_entry_that_cannot_be_says_why_and_leaves_the_others_alone(tmp_path: Path, value: Any, why: str) -> None:
    write(tmp_path / "mcp.json", {"broken": value, "fine": {"command": "x"}})
    broken, fine = ServerFile(tmp_path, {}, tmp_path / "user").entries()
    assert why in broken.problem and fine == Entry("fine", ("x",))


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    (tmp_path / "mcp.json").write_text('{"mcpServers": ')
    (entry,) = ServerFile(tmp_path, {}, tmp_path / "user").entries()
    assert "mcp.json" in entry.problem


def test_lm_studios_file_counts_below_ones_own_and_changes_are_seen(tmp_path: Path) -> None:
    file = ServerFile(tmp_path, {}, tmp_path / "user")
    assert file.entries() == ()
    write(tmp_path / "user" / ".lmstudio" / "mcp.json", {"Web Search": {"command": "theirs"}, "other": {"command": "o"}})
    assert [entry.command for entry in file.entries()] == [("theirs",), ("o",)]
    write(tmp_path / "mcp.json", {"web-search": {"command": "mine"}})
    assert [entry.command for entry in file.entries()] == [("mine",), ("o",)]
    write(tmp_path / "mcp.json", {"web-search": {"command": "more"}})
    os.utime(tmp_path / "mcp.json", ns=(1, 1))
    found = file.find("mcp/Web_Search")
    assert found is not None and found.command == ("more",) and found.plugin_id == "mcp/web-search"
    assert file.find("nothing") is None
