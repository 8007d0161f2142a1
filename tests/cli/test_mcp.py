"""`lmlite mcp`: mcp.json is listed, tried and changed, and nothing secret is shown."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Command

PROGRAM = Path(__file__).parent.parent / "mcp" / "program.py"


def test_a_program_is_added_tried_and_removed(command: Command, home: Path) -> None:
    added = command("mcp", "add", "My Calc", "--env", "KEY=secret", "--", sys.executable, str(PROGRAM), "tools=add,echo")
    assert added.code == 0 and "My Calc" in added.err
    file = home / "mcp.json"
    assert file.stat().st_mode & 0o777 == 0o600
    entry = json.loads(file.read_text())["mcpServers"]["My Calc"]
    assert entry == {"command": sys.executable, "args": [str(PROGRAM), "tools=add,echo"], "env": {"KEY": "secret"}}
    listed = command("mcp", "ls")
    assert listed.out.startswith("mcp/my-calc  ") and "secret" not in listed.out + command("mcp", "ls", "--json").out
    tried = command("mcp", "test", "my-calc", "--json").json
    assert tried["protocol"] == "2025-06-18" and [tool["name"] for tool in tried["tools"]] == ["add", "echo"]
    assert command("mcp", "test", "mcp/my-calc").out == "add  it does add\necho  it does echo\n"
    assert command("mcp", "remove", "My Calc").code == 0
    assert command("mcp", "ls").out == ""
    assert command("mcp", "remove", "My Calc").code == 2


def test_what_else_is_in_the_file_stays(command: Command, home: Path) -> None:
    home.mkdir(exist_ok=True)
    (home / "mcp.json").write_text('{"other": 1, "mcpServers": {"a": {"url": "http://a", "more": 2}}}')
    assert command("mcp", "add", "b", "--url", "https://b?key=k", "--header", "X-Key: ${env:MISSING}").code == 0
    assert json.loads((home / "mcp.json").read_text()) == {
        "other": 1,
        "mcpServers": {
            "a": {"url": "http://a", "more": 2},
            "b": {"url": "https://b?key=k", "headers": {"X-Key": "${env:MISSING}"}},
        },
    }
    a, b = command("mcp", "ls").out.splitlines()
    assert a == "mcp/a  http://a" and "MISSING" in b


@pytest.mark.parametrize(
    "arguments",
    [("a",), ("a", "--url", "u", "--", "b"), ("a", "--url", "u", "--header", "Host: x"), ("a", "--env", "x", "--", "b")],
)
def test_what_can_be_no_server_is_refused(command: Command, home: Path, arguments: tuple[str, ...]) -> None:
    refused = command("mcp", "add", *arguments)
    assert refused.code == 2 and refused.err and not (home / "mcp.json").exists()


def test_a_server_that_does_not_run_says_why(command: Command, home: Path) -> None:
    command("mcp", "add", "gone", "--", "/nowhere/program")
    tried = command("mcp", "test", "gone")
    assert tried.code == 2 and "No such file" in tried.err
    assert command("mcp", "test", "other").code == 2
