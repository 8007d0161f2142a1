"""`lmlite log stream`, against a server whose lines the test writes, and once against a real one."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lmlite.cli import main
from tests.cli.peer import Events, Peer
from tests.conftest import INSTALLED, TIMEOUT_S, FakeServer

INPUT = {"type": "llm.prediction.input", "modelPath": "a/b.gguf", "modelIdentifier": "b", "input": "<user>hi\nthere\x1b[31m"}
STATS = {"stopReason": "eosFound", "tokensPerSecond": 9.5, "predictedTokensCount": 3}
OUTPUT = {"type": "llm.prediction.output", "modelIdentifier": "b", "output": "Hi!\r\n\u202eok", "stats": STATS}


def line(data: dict[str, Any]) -> tuple[None, dict[str, Any]]:
    return None, {"timestamp": 1_790_000_000_123, "data": data}


@pytest.fixture
def stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Runs the command against the events that it is given; its exit code, stdout, and the request."""
    monkeypatch.setenv("LMLITE_HOME", str(tmp_path))

    def run(events: list[Any], *flags: str) -> tuple[int, str, str]:
        with Peer({("GET", "/lmlite/log"): Events(events)}) as peer:
            code = main(["log", "stream", "--port", str(peer.port), *flags])
        return code, capsys.readouterr().out, peer.asked[0].path

    return run


def test_predictions_are_shown_in_blocks_that_no_terminal_obeys(stream: Callable[..., Any]) -> None:
    code, out, path = stream([line(INPUT), line(OUTPUT)])
    assert (code, path) == (0, "/lmlite/log?source=model")
    assert re.sub(r"timestamp: \d{4}-\d\d-\d\d \d\d:\d\d:\d\d", "timestamp: T", out).splitlines() == [
        "timestamp: T",
        "type: llm.prediction.input",
        "modelPath: a/b.gguf",
        "modelIdentifier: b",
        "input:",
        "<user>hi",
        "there\\x1b[31m",
        "",
        "timestamp: T",
        "type: llm.prediction.output",
        "modelIdentifier: b",
        "output:",
        "Hi!",
        "\\u202eok",
        "stats:",
        "  Stop Reason: eosFound",
        "  Tokens/Second: 9.5",
        "  Predicted Tokens: 3",
        "",
    ]


def test_json_lines_are_those_of_the_server(stream: Callable[..., Any]) -> None:
    code, out, path = stream([line(INPUT), line(OUTPUT)], "--json", "--stats", "--filter", "input,output")
    assert (code, path) == (0, "/lmlite/log?source=model&stats=1&filter=input,output")
    assert [json.loads(text) for text in out.splitlines()] == [line(INPUT)[1], line(OUTPUT)[1]]
    assert out.isascii() and "\x1b" not in out


def test_lines_of_the_server_and_of_engines(stream: Callable[..., Any]) -> None:
    told = [
        line({"type": "server.log", "level": "info", "content": "GET /x: 200 after 3 ms"}),
        line({"type": "log.lost", "lines": 12}),
        line({"type": "runtime.log", "level": "error", "message": "boo\x07", "pid": 42}),
    ]
    code, out, path = stream(told, "-s", "server")
    assert (code, path) == (0, "/lmlite/log?source=server")
    lines = [re.sub(r"^\[[^]]*\]", "[T]", text) for text in out.splitlines()]
    assert lines == [
        "[T][INFO] GET /x: 200 after 3 ms",
        "(12 lines are missing here: they came faster than they were shown)",
        "[T][ERROR][42] boo\\x07",
    ]


def test_without_a_server_it_says_how_to_start_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LMLITE_HOME", str(tmp_path))
    with Peer({}) as gone:
        port = gone.port
    assert main(["log", "stream", "--port", str(port)]) == 1
    assert "lmlite server start" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [["--filter", "thoughts"], ["--source", "kernel"], ["--filter", ""]])
def test_what_cannot_be_watched_is_refused(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        main(["log", "stream", *flags])
    assert exit.value.code == 2 and capsys.readouterr().err


INTERRUPTIBLE = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.executable, sys.argv[1:])"
"""Starts a command as a shell does in the foreground: what runs in the background may inherit that interrupts are ignored."""


def test_an_interrupt_ends_it_well(fake_server: FakeServer) -> None:
    environ = {**os.environ, "PYTHONPATH": str(INSTALLED), "LMLITE_HOME": str(fake_server.config.home)}
    stream = [sys.executable, "-m", "lmlite", "log", "stream", "--json", "--port", str(fake_server.port)]
    command = [sys.executable, "-c", INTERRUPTIBLE, *stream]
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None and running.stderr is not None
        assert running.stderr.readline() == "Streaming logs.\n"
        fake_server.client().post("/v1/completions", {"model": "talker", "prompt": "once", "max_tokens": 1})
        told = [json.loads(running.stdout.readline()) for _ in range(2)]
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=TIMEOUT_S)
    assert (running.returncode, out, err) == (0, "", "")
    assert [entry["data"]["type"] for entry in told] == ["llm.prediction.input", "llm.prediction.output"]


def test_it_ends_with_the_server(fake_server: FakeServer) -> None:
    environ = {**os.environ, "PYTHONPATH": str(INSTALLED), "LMLITE_HOME": str(fake_server.config.home)}
    command = [sys.executable, "-m", "lmlite", "log", "stream", "-s", "server", "--port", str(fake_server.port)]
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert running.stderr is not None
        assert running.stderr.readline() == "Streaming logs.\n"
        fake_server.close()
        _, err = running.communicate(timeout=TIMEOUT_S)
    assert (running.returncode, err) == (0, "The server has stopped.\n")
