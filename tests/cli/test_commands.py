"""The commands as a whole: which module has which, and what a short one does not have to wait for."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from lmlite.cli import GROUPS, build_overview, build_parser, room
from tests.cli.conftest import Command
from tests.conftest import INSTALLED

HEAVY = ("lmlite.server", "lmlite.app.routes", "lmlite.core.loading.pool", "asyncio", "sqlite3", "cffi", "numpy")


@pytest.mark.parametrize("group", GROUPS)
def test_module_adds_the_commands_that_it_is_imported_for(group: str) -> None:
    commands = argparse.ArgumentParser().add_subparsers()
    import_module(f"lmlite.cli.{group}").add(commands)
    assert tuple(commands.choices) == tuple(GROUPS[group])


def test_overview_says_of_each_command_what_the_command_itself_does() -> None:
    assert build_overview().format_help() == build_parser().format_help()


def test_overview_imports_no_command(tmp_path: Path) -> None:
    look = "import sys, lmlite.cli as c; c.main([]); print([m for m in sys.modules if m.startswith('lmlite.cli.')])"
    environ = {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": str(INSTALLED)}
    done = subprocess.run([sys.executable, "-c", look], cwd=tmp_path, env=environ, capture_output=True, text=True)
    assert done.stdout == "[]\n" and "usage: lmlite" in done.stderr, done


@pytest.mark.parametrize("command", ["ls", "ps", "load x --port 9", "unload", "get acme/x --port 9", "import x.gguf"])
def test_short_command_brings_no_server_along(command: str, tmp_path: Path) -> None:
    look = f"import sys, lmlite.cli as c; c.main({command.split()!r}); print(*[m for m in {HEAVY!r} if m in sys.modules])"
    environ = {**os.environ, "LMLITE_HOME": str(tmp_path), "HOME": str(tmp_path), "PYTHONPATH": str(INSTALLED)}
    environ["LMLITE_PORT"] = "9"
    done = subprocess.run([sys.executable, "-c", look], cwd=tmp_path, env=environ, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "", done


LATER = (
    *("lmlite.core.loading.pool", "lmlite.hub.jobs", "sqlite3", "shutil", "bz2", "lzma", "datetime"),
    *("unicodedata", "cffi", "numpy"),
)
READY = f"""
import asyncio, sys
import lmlite.cli, lmlite.cli.serve
lmlite.cli.build_parser(["serve"])
from lmlite.config import Config
from lmlite.server import Service

async def main():
    service = Service(Config.of(port=0, home=sys.argv[1]))
    await service.open()
    print(*[name for name in {LATER} if name in sys.modules])
    await service.close()

asyncio.run(main())
"""


def test_server_is_ready_without_what_only_some_requests_need(tmp_path: Path) -> None:
    environ = {**os.environ, "PYTHONPATH": str(INSTALLED)}
    command = [sys.executable, "-c", READY, str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "\n"), done


@pytest.mark.parametrize("said", ["40", "133", "0", "wide", None])
def test_help_is_as_wide_as_the_terminal(said: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    if said is not None:
        monkeypatch.setenv("COLUMNS", said)
    assert room() == shutil.get_terminal_size().columns - 2


def test_unknown_command_exits_2_and_lists_those_there_are(command: Command) -> None:
    done = command("lst")
    assert (done.code, done.out) == (2, "")
    assert all((name in done.err) is not name.startswith("_") for names in GROUPS.values() for name in names)


def test_unknown_flag_is_refused_with_the_usage_of_its_command(command: Command) -> None:
    done = command("ls", "--nonsense")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("usage: lmlite ls ") and "unrecognized arguments: --nonsense" in done.err


@pytest.mark.parametrize(
    ("ends", "code", "told"),
    [(">/dev/full", 1, "lmlite: No space left on device\n"), (">&-", 0, ""), (">&- 2>&-", 0, ""), ("<&-", 0, "")],
)
def test_output_that_cannot_be_written_is_no_bug(ends: str, code: int, told: str, tmp_path: Path) -> None:
    environ = {**os.environ, "LMLITE_HOME": str(tmp_path), "HOME": str(tmp_path), "PYTHONPATH": str(INSTALLED)}
    line = f'"{sys.executable}" -m lmlite server status {ends}'
    done = subprocess.run(["sh", "-c", line], cwd=tmp_path, env=environ, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (code, told)
