"""What the README promises is there: its commands, flags, endpoints and extras."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from lmlite.app.routes import ROUTES
from lmlite.cli import GROUPS, build_parser
from lmlite.config import options

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_every_command_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    known = {name for commands in GROUPS.values() for name in commands}
    told = set(re.findall(r"[`( ]lmlite ([a-z]+)\b", README)) - {"serves"}
    assert told <= known and {"serve", "import", "status", "service"} <= told


@pytest.mark.parametrize("line", re.findall(r"(?:`|&& |^)lmlite (?!serves )([a-z][^`>\n]*)", README, re.MULTILINE))
def test_every_command_line_is_taken(line: str) -> None:
    words = shlex.split(line.partition(" < ")[0])
    if len(words) > 1 and "--help" not in words:
        build_parser().parse_args(words)  # exits where a word is none of the command's


def test_every_flag_of_the_server_is_there() -> None:
    table = README.partition("\n## Options")[2].partition("\n## ")[0]
    flags = {option.flag for option in options()} | {"--cors", "--help"}
    told = set(re.findall(r"`(--[a-z0-9-]+)", table))
    assert {flag for flag in told if flag not in flags and flag.replace("--no-", "--", 1) not in flags} == set()


def test_every_endpoint_is_there() -> None:
    known = {(route.method, route.pattern) for route in ROUTES}
    told = set(re.findall(r"`(GET|POST|DELETE) (/[^`?]*)`", README))
    assert told and told <= known


def test_every_extra_is_there() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    for extra in re.findall(r"\.\[([a-z]+)\]", README):
        assert re.search(rf"^{extra} = \[", project, re.MULTILINE), extra
