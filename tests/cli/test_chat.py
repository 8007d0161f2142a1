"""`lmlite chat`: questions in a pipe, and conversations at a pseudo-terminal as a person sees them."""

from __future__ import annotations

import os
import pty
import re
import select
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.cli.peer import Events, Peer
from tests.conftest import INSTALLED, TIMEOUT_S, FakeServer
from tests.fakes import Script

MODELS = [
    {"type": "llm", "modelKey": "talker", "publisher": "acme", "path": "acme/talker/t.gguf", "sizeBytes": 4000},
    {"type": "llm", "modelKey": "other", "publisher": "acme", "path": "acme/other/o.gguf", "sizeBytes": 4000},
    {"type": "embedding", "modelKey": "embedder", "publisher": "acme", "path": "acme/e/e.gguf", "sizeBytes": 4000},
]
USAGE = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}


def instance(identifier: str, type: str = "llm", used: int | None = None) -> dict[str, Any]:
    return {"identifier": identifier, "model": identifier, "type": type, "lastUsedTime": used}


def chunk(delta: dict[str, str], finish: str | None = None) -> tuple[None, dict[str, Any]]:
    return None, {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}


def answer(*texts: str, reasoning: Sequence[str] = (), finish: str = "stop") -> Events:
    deltas = [chunk({"reasoning_content": text}) for text in reasoning] + [chunk({"content": text}) for text in texts]
    return Events([*deltas, chunk({}, finish), (None, {"choices": [], "usage": USAGE})])


@pytest.fixture
def peer() -> Iterator[Peer]:
    answers: dict[tuple[str, str], Any] = {
        ("GET", "/health"): {"status": "ok"},
        ("GET", "/lmlite/models"): {"models": MODELS},
        ("GET", "/lmlite/instances"): {"instances": [instance("talker")]},
        ("POST", "/v1/chat/completions"): answer("Hello ", "there."),
    }
    with Peer(answers) as peer:
        yield peer


def environ(home: Path, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("LMLITE_", "LM_", "NO_COLOR"))}
    return {**kept, "PYTHONPATH": str(INSTALLED), "LMLITE_HOME": str(home), "HOME": str(home), "TERM": "xterm", **more}


def command(port: int, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "lmlite", "chat", "--port", str(port), *arguments]


@pytest.fixture
def ask(tmp_path: Path, peer: Peer) -> Callable[..., tuple[int, str, str]]:
    """Runs the command in pipes; its exit code, stdout, stderr."""

    def run(*arguments: str, stdin: bytes = b"") -> tuple[int, str, str]:
        done = subprocess.run(
            command(peer.port, *arguments), env=environ(tmp_path), input=stdin, capture_output=True, timeout=TIMEOUT_S
        )
        return done.returncode, done.stdout.decode(), done.stderr.decode()

    return run


def question(peer: Peer) -> Any:
    return next(asked.body for asked in reversed(peer.asked) if asked.method == "POST")


# ---- in a pipe -------------------------------------------------------------------------------------------------------


def test_answer_on_stdout_and_nothing_else(ask: Callable[..., Any], peer: Peer) -> None:
    assert ask("-p", "hi", "-s", "be kind", "--ttl", "60", "--reasoning", "off") == (0, "Hello there.\n", "")
    body = question(peer)
    assert (body["model"], body["ttl"], body["reasoning"], body["stream"]) == ("talker", 60, "off", True)
    assert [(message["role"], message["content"]) for message in body["messages"]] == [("system", "be kind"), ("user", "hi")]
    assert "context_overflow_policy" not in body, "a question is answered as a whole or not at all"


def test_what_is_piped_joins_the_prompt(ask: Callable[..., Any], peer: Peer) -> None:
    assert ask("-p", "summarize:", stdin="some\ntext é\n".encode())[0] == 0
    assert question(peer)["messages"] == [{"role": "user", "content": "summarize:\n\nsome\ntext é"}]
    assert ask(stdin=b"only \xff this")[0] == 0
    assert question(peer)["messages"] == [{"role": "user", "content": "only \ufffd this"}]


def test_an_empty_question_is_refused(ask: Callable[..., Any], peer: Peer) -> None:
    code, out, err = ask()
    assert (code, out) == (1, "") and "nothing to answer" in err


SEEING: list[dict[str, Any]] = [*MODELS, {**MODELS[0], "modelKey": "seer", "vision": True}]
PNG = b"\x89PNG\r\n\x1a\n"
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}


def test_a_picture_goes_with_the_question_to_a_model_that_sees(
    ask: Callable[..., Any], peer: Peer, tmp_path: Path
) -> None:
    (tmp_path / "a b.png").write_bytes(PNG)
    (tmp_path / "c.wav").write_bytes(b"RIFF")
    peer.answers["GET", "/lmlite/models"] = {"models": SEEING}
    assert ask("-p", "What?", "--image", str(tmp_path / "a b.png"), "--image", str(tmp_path / "c.wav"))[0] == 0
    sound = {"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}}
    asked = question(peer)
    assert asked["model"] == "seer"
    assert asked["messages"] == [{"role": "user", "content": [PICTURE, sound, {"type": "text", "text": "What?"}]}]
    assert ask("--image", str(tmp_path / "a b.png"))[0] == 0
    assert question(peer)["messages"] == [{"role": "user", "content": [PICTURE]}]


def test_a_picture_that_is_not_there_is_told_before_anything_is_asked(
    ask: Callable[..., Any], peer: Peer, tmp_path: Path
) -> None:
    for name, told in (("no.png", "is not there"), (".", "is not a file")):
        code, out, err = ask("-p", "What?", "--image", str(tmp_path / name))
        assert (code, out) == (1, "") and told in err
    assert not any(asked.method == "POST" for asked in peer.asked)


def test_stats_go_to_stderr(ask: Callable[..., Any]) -> None:
    code, out, err = ask("-p", "hi", "--stats")
    assert (code, out) == (0, "Hello there.\n")
    found = dict(line.strip().split(": ") for line in err.splitlines() if ": " in line)
    assert found["Stop Reason"] == "stop" and found["Total Tokens"] == "7"
    assert re.fullmatch(r"\d+\.\d{3}s", found["Time to First Token"])


def test_in_a_pipe_the_answer_is_as_it_was_and_reasoning_is_left_out(ask: Callable[..., Any], peer: Peer) -> None:
    peer.answers["POST", "/v1/chat/completions"] = answer("a\x1b[31m", "\r\nb", reasoning=("hm",))
    assert ask("-p", "hi") == (0, "a\x1b[31m\r\nb\n", "")


def test_of_loaded_models_the_one_used_last_answers(ask: Callable[..., Any], peer: Peer) -> None:
    loaded = [instance("other", used=5), instance("talker", used=3), instance("embedder", "embedding", used=9)]
    peer.answers["GET", "/lmlite/instances"] = {"instances": loaded}
    assert ask("-p", "hi")[0] == 0
    assert question(peer)["model"] == "other"


def test_without_a_loaded_model_one_has_to_be_named_if_there_are_several(ask: Callable[..., Any], peer: Peer) -> None:
    peer.answers["GET", "/lmlite/instances"] = {"instances": []}
    code, _, err = ask("-p", "hi")
    assert code == 1 and "talker, other" in err and "embedder" not in err
    assert ask("-p", "hi", "-y")[0] == 0 and question(peer)["model"] == "talker"
    peer.answers["GET", "/api/v0/models/oth"] = 404, {"error": "no such model"}
    assert ask("oth", "-p", "hi")[0] == 0 and question(peer)["model"] == "other"


def test_what_the_server_refuses_is_told(ask: Callable[..., Any], peer: Peer) -> None:
    refusal = {"error": {"message": "the request exceeds the available context size", "code": "context_length_exceeded"}}
    peer.answers["POST", "/v1/chat/completions"] = (400, refusal)
    code, out, err = ask("-p", "hi")
    assert (code, out) == (1, "") and "the available context size" in err


def test_the_reason_of_the_end_is_that_of_the_log(ask: Callable[..., Any], peer: Peer) -> None:
    events = answer("Hi").events
    events[-1] = (None, {"choices": [], "usage": USAGE, "stats": {"stop_reason": "eosFound"}})
    peer.answers["POST", "/v1/chat/completions"] = Events(events)
    assert "Stop Reason: eosFound\n" in ask("-p", "hi", "--stats")[2]
    assert question(peer)["stream_options"]["include_stats"] is True
    peer.answers["POST", "/v1/chat/completions"] = answer("Hi")  # of a server that does not tell
    assert "Stop Reason: stop\n" in ask("-p", "hi", "--stats")[2]


def test_an_answer_that_breaks_off_fails_but_what_came_is_shown(ask: Callable[..., Any], peer: Peer) -> None:
    peer.answers["POST", "/v1/chat/completions"] = Events([chunk({"content": "Hel"})], broken=True)
    code, out, err = ask("-p", "hi")
    assert (code, out) == (1, "Hel\n") and "lost" in err


def test_without_a_server_it_says_how_to_start_one(tmp_path: Path) -> None:
    with Peer({}) as gone:
        port = gone.port
    done = subprocess.run(command(port, "-p", "x"), env=environ(tmp_path), input=b"", capture_output=True, timeout=TIMEOUT_S)
    assert done.returncode == 1 and b"lmlite server start" in done.stderr


# ---- at a terminal ---------------------------------------------------------------------------------------------------


FOREGROUND = """
import fcntl, os, signal, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execv(sys.executable, sys.argv[1:])
"""
"""Starts a command as a shell does in the foreground of the terminal that is its stdin."""


class Terminal:
    """The command at a pseudo-terminal: what is typed, and all that was shown so far."""

    def __init__(self, port: int, home: Path, *arguments: str, **more: str):
        self.shown = ""
        self.fd, far = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", FOREGROUND, *command(port, *arguments)],
            env=environ(home, **more), stdin=far, stdout=far, stderr=far, start_new_session=True,
        )  # fmt: skip
        os.close(far)

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def interrupt(self, shows: str) -> None:
        """Types ^C while a line is edited, until `shows` comes: one that arrives between the last key and readline's waiting
        is noticed by CPython only together with the next."""
        self.type("\x03")
        while shows not in self.shown:
            if select.select([self.fd], [], [], 1.0)[0]:
                assert self._read(), f"waited for {shows!r}, saw {self.shown!r}"
            else:
                self.type("\x03")
        self.wait_for(shows)

    def wait_for(self, text: str) -> str:
        """Returns what was shown since the last time, up to `text`."""
        deadline = time.monotonic() + TIMEOUT_S
        while text not in self.shown:
            ready = select.select([self.fd], [], [], max(0.0, deadline - time.monotonic()))[0]
            assert ready and self._read(), f"waited for {text!r}, saw {self.shown!r}"
        before, _, self.shown = self.shown.partition(text)
        return before

    def _read(self) -> bool:
        try:
            chunk = os.read(self.fd, 1 << 16)
        except OSError:  # the command has ended (Linux)
            return False
        self.shown += chunk.decode("utf-8", "replace")
        return bool(chunk)

    def end(self) -> int:
        """Its exit code, once it has ended."""
        while self._read():
            pass
        return self.process.wait(TIMEOUT_S)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.fd)


PROMPT = "> "


@pytest.fixture
def terminal(tmp_path: Path, peer: Peer) -> Iterator[Callable[..., Terminal]]:
    terminals: list[Terminal] = []

    def start(*arguments: str, port: int | None = None, **more: str) -> Terminal:
        terminals.append(Terminal(port or peer.port, tmp_path, *arguments, **more))
        return terminals[-1]

    yield start
    for terminal in terminals:
        terminal.close()


def test_a_conversation_remembers_what_was_said(terminal: Callable[..., Terminal], peer: Peer, tmp_path: Path) -> None:
    screen = terminal("--system-prompt", "be kind")
    screen.wait_for(PROMPT)
    screen.type("hi\n")
    screen.wait_for("Hello there.")
    screen.wait_for(PROMPT)
    screen.type("and more\n")
    screen.wait_for("Hello there.")
    said = [(message["role"], message["content"]) for message in question(peer)["messages"]]
    assert said == [("system", "be kind"), ("user", "hi"), ("assistant", "Hello there."), ("user", "and more")]
    assert question(peer)["context_overflow_policy"] == "truncateMiddle"
    screen.wait_for(PROMPT)
    screen.type("\x04")
    assert screen.end() == 0
    history = tmp_path / "chat-history"
    assert stat.S_IMODE(history.stat().st_mode) == 0o600
    assert history.read_text().splitlines()[-2:] == ["hi", "and more"]


def test_history_of_the_last_time_comes_back(terminal: Callable[..., Terminal], peer: Peer, tmp_path: Path) -> None:
    for typed in ("first question\n", "\x1b[A\n"):  # the second time: the key that goes up
        screen = terminal()
        screen.wait_for(PROMPT)
        screen.type(typed)
        screen.wait_for("Hello there.")
        screen.wait_for(PROMPT)
        assert question(peer)["messages"] == [{"role": "user", "content": "first question"}]
        screen.type("\x04")
        assert screen.end() == 0


def test_pasted_lines_are_one_question(terminal: Callable[..., Terminal], peer: Peer) -> None:
    screen = terminal()
    screen.wait_for(PROMPT)
    screen.type("\x1b[200~one\ntwo\n\nthree\x1b[201~\n")
    screen.wait_for("Hello there.")
    assert question(peer)["messages"][0]["content"] == "one\ntwo\n\nthree"
    screen.wait_for(PROMPT)
    screen.type("more \\\nof it\n")
    screen.wait_for("Hello there.")
    assert question(peer)["messages"][-1]["content"] == "more \nof it"


def test_lines_pasted_into_a_plain_terminal_are_one_question(terminal: Callable[..., Terminal], peer: Peer) -> None:
    screen = terminal(TERM="dumb")
    screen.wait_for(PROMPT)
    screen.type("one\ntwo\nthree\n")
    screen.wait_for("Hello there.")
    assert question(peer)["messages"][0]["content"] == "one\ntwo\nthree"


def test_an_interrupt_stops_the_answer_and_not_the_program(
    terminal: Callable[..., Terminal], serve_fake: Callable[..., FakeServer]
) -> None:
    server = serve_fake(Script(words=("word ",) * 1_000_000))
    screen = terminal("talker", port=server.port)
    screen.wait_for(PROMPT)
    screen.type("go on\n")
    screen.wait_for("word word word")
    screen.type("\x03")
    screen.wait_for("^C")
    screen.wait_for(PROMPT)
    screen.type("half a line")
    screen.wait_for("half a line")
    screen.interrupt(shows=PROMPT)
    watching = server.client()
    while b'reason="userStopped"' not in watching.get("/metrics").body:  # or the test's time is up
        pass
    screen.type("/exit\n")
    assert screen.end() == 0


def test_pictures_are_named_or_dropped_in_a_conversation(
    terminal: Callable[..., Terminal], peer: Peer, tmp_path: Path
) -> None:
    (tmp_path / "a b.png").write_bytes(PNG)
    screen = terminal()
    screen.wait_for(PROMPT)
    for typed in (f"/image {tmp_path}/a b.png", f"{tmp_path}/a\\ b.png ", f"'{tmp_path}/a b.png'"):
        screen.type(typed + "\n")
        screen.wait_for("a b.png goes with your next question.")
        screen.wait_for(PROMPT)
    screen.type(f"file://{tmp_path}/a%20b.png What is it?\n")
    screen.wait_for("Hello there.")
    first = {"role": "user", "content": [PICTURE] * 4 + [{"type": "text", "text": "What is it?"}]}
    assert question(peer)["messages"] == [first]
    screen.wait_for(PROMPT)
    screen.type("/image nowhere.png\n")
    screen.wait_for("nowhere.png is not there.")
    screen.wait_for(PROMPT)
    screen.type("/etc/hosts is a file\n")
    screen.wait_for("Hello there.")
    answered = {"role": "assistant", "content": "Hello there."}
    assert question(peer)["messages"] == [first, answered, {"role": "user", "content": "/etc/hosts is a file"}]
    peer.answers["POST", "/v1/chat/completions"] = 400, {"error": {"message": "no picture"}}
    screen.wait_for(PROMPT)
    screen.type(f"{tmp_path}/a\\ b.png And this?\n")
    screen.wait_for("no picture")
    peer.answers["POST", "/v1/chat/completions"] = answer("Fine.")
    screen.wait_for(PROMPT)
    screen.type("go on\n")
    screen.wait_for("Fine.")
    assert question(peer)["messages"][-1] == {"role": "user", "content": "go on"}


def test_commands(terminal: Callable[..., Terminal], peer: Peer) -> None:
    screen = terminal()
    screen.wait_for(PROMPT)
    screen.type("/help\n")
    screen.wait_for("/system-prompt [TEXT]")
    for typed, shown in (
        ("/system-prompt Be brief.", "The system prompt is set."),
        ("/reasoning on", "Reasoning is on."),
        ("/reasoning maybe", "Reasoning is one of: auto, on, off"),
        ("/stats", "Statistics are shown."),
        ("/nonsense", "There is no command /nonsense"),
    ):
        screen.type(typed + "\n")
        screen.wait_for(shown)
        screen.wait_for(PROMPT)
    peer.answers["GET", "/api/v0/models/other"] = {"id": "other"}
    screen.type("/model other\n")
    screen.wait_for("You talk to other")
    screen.wait_for(PROMPT)
    screen.type("hi\n")
    screen.wait_for("Hello there.")
    screen.wait_for("Prediction Stats:")
    body = question(peer)
    assert (body["model"], body["reasoning"]) == ("other", "on")
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    screen.wait_for(PROMPT)
    screen.type("/clear\n")
    screen.wait_for("forgotten")
    screen.wait_for(PROMPT)
    screen.type("/etc/passwd is what?\n")
    screen.wait_for("Hello there.")
    assert [message["content"] for message in question(peer)["messages"]] == ["Be brief.", "/etc/passwd is what?"]
    screen.wait_for(PROMPT)
    screen.type("/exit\n")
    assert screen.end() == 0


def test_a_model_is_downloaded_from_within_a_conversation(terminal: Callable[..., Terminal], peer: Peer) -> None:
    job = {"job_id": "job_1", "status": "downloading", "total_size_bytes": 4000}
    peer.answers["POST", "/api/v1/models/download"] = job
    peer.answers["GET", "/lmlite/downloads/job_1"] = {**job, "status": "completed"}
    screen = terminal()
    for typed, shown in (
        ("/download", "Name the model: /download owner/name"),
        ("/download acme/Falcon@q8_0", "Downloading acme/Falcon@q8_0 (4.00 KB)"),
    ):
        screen.wait_for(PROMPT)
        screen.type(typed + "\n")
        screen.wait_for(shown)
    screen.wait_for("Download completed.")
    assert question(peer) == {"model": "acme/Falcon@q8_0"}
    peer.answers["GET", "/lmlite/downloads/job_1"] = {**job, "status": "failed", "error_message": "no disk"}
    screen.wait_for(PROMPT)
    screen.type("/download acme/Falcon\n")
    screen.wait_for("Error: The download failed: no disk")
    screen.wait_for(PROMPT)
    screen.type("hi\n")
    screen.wait_for("Hello there.")


def test_an_error_does_not_end_the_conversation(terminal: Callable[..., Terminal], peer: Peer) -> None:
    screen = terminal()
    screen.wait_for(PROMPT)
    good, peer.answers["POST", "/v1/chat/completions"] = answer("Back."), (503, {"error": "shutting\x1b[2J down"})
    screen.type("first\n")
    screen.wait_for("Error: shutting\\x1b[2J down")
    screen.wait_for(PROMPT)
    peer.answers["POST", "/v1/chat/completions"] = good
    screen.type("second\n")
    screen.wait_for("Back.")
    assert question(peer)["messages"] == [{"role": "user", "content": "second"}], "what failed was not said"


def test_no_control_character_of_an_answer_reaches_the_terminal(terminal: Callable[..., Terminal], peer: Peer) -> None:
    evil = "".join(map(chr, [*range(0x20), *range(0x7F, 0xA0), 0x202E, 0x2066]))
    peer.answers["POST", "/v1/chat/completions"] = answer("BEGIN", evil, "x\r", "\ny", "END", reasoning=(evil,))
    screen = terminal("-p", "hi", NO_COLOR="1")
    screen.wait_for("Thinking:")
    shown = screen.wait_for("END")
    assert not [c for c in re.sub(r"\r*\n", "\n", shown).replace("\t", "") if not c.isprintable() and c != "\n"]
    assert "\\x1b" in shown and "x\r\ny" in shown, "a line's end stays one"
    assert screen.end() == 0


def test_reasoning_is_dim_and_apart(terminal: Callable[..., Terminal], peer: Peer) -> None:
    peer.answers["POST", "/v1/chat/completions"] = answer("So be it.", reasoning=("Let me ", "see."))
    screen = terminal("-p", "hi")
    assert "\x1b[2mLet me \x1b[0m\x1b[2msee.\x1b[0m" in screen.wait_for("So be it.")
    assert screen.end() == 0


def test_the_bundled_model_answers(tiny_server: Any, tmp_path: Path) -> None:
    done = subprocess.run(
        command(tiny_server.port, "-p", "What is 2 plus 3?", "--stats"),
        env=environ(tmp_path), stdin=subprocess.DEVNULL, capture_output=True, timeout=60, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() and "Predicted Tokens: " in done.stderr
