"""Commands run in this process, with a home of their own and no terminal."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pytest

from lmlite.cli import main
from tests.cli.peer import Peer


@dataclass
class Done:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Command(Protocol):
    def __call__(self, *arguments: str, typed: str | None = None) -> Done: ...


class Terminal(io.TextIOWrapper):
    """A stream that says it is a terminal, with no descriptor: 80 columns."""

    def __init__(self, encoding: str = "utf-8"):
        super().__init__(io.BytesIO(), encoding=encoding)

    def isatty(self) -> bool:
        return True

    @property
    def text(self) -> str:
        self.flush()
        buffer = self.buffer
        assert isinstance(buffer, io.BytesIO)
        return buffer.getvalue().decode(self.encoding)


class Keyboard(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home folder; without a server that was named in the environment or models of whoever runs the tests."""
    folder = tmp_path / "home"
    monkeypatch.setenv("LMLITE_HOME", str(folder))
    monkeypatch.setenv("HOME", str(tmp_path))
    caches = ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME")
    for name in ("LMLITE_PORT", "LMLITE_HOST", "LMLITE_API_TOKEN", "LM_API_TOKEN", *caches):
        monkeypatch.delenv(name, raising=False)
    return folder


@pytest.fixture
def command(home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """`command("ls", "--json")`; an exit of argparse is its code. With `typed`, stdin and stderr are a terminal at which
    somebody types that."""

    def run(*arguments: str, typed: str | None = None) -> Done:
        capsys.readouterr()
        screen = Terminal()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdin", io.StringIO() if typed is None else Keyboard(typed))
            patch.setenv("TERM", "xterm")
            if typed is not None:
                patch.setattr(sys, "stderr", screen)
            try:
                code = main(arguments)
            except SystemExit as exit:
                assert isinstance(exit.code, int)
                code = exit.code
        out, err = capsys.readouterr()
        return Done(code, out, err + screen.text)

    return run


@pytest.fixture
def peer(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Peer]:
    """A server whose answers are the test's, and which is that of the home."""
    with Peer({("GET", "/health"): {"status": "ok"}}) as peer:
        monkeypatch.setenv("LMLITE_PORT", str(peer.port))
        yield peer
