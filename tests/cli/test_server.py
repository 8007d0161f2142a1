"""`lmlite server` and `lmlite daemon`, and what `serve` does with its home: real processes, each with a home of its own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lmlite.cli import main
from lmlite.store.home import Home, Owner
from tests.cli.manager import manager
from tests.conftest import INSTALLED, TIMEOUT_S, Client
from tests.test_cli import ended, lmlite, started

Result = tuple[int, str, str]


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    """A home whose server does not outlive the test."""
    home = Home(tmp_path / "home")
    yield home
    if (owner := home.owner()) is not None and owner.pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(owner.pid, signal.SIGKILL)


Command = Callable[..., Result]


@pytest.fixture
def start(home: Home) -> Command:
    """Runs `lmlite server start` on any port: exit code, stdout, stderr."""
    return lambda *flags: ended(lmlite("server", "start", "--port=0", *flags, home=home.root))


@pytest.fixture
def command(home: Home, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """Runs another command in this process, which is quicker than one of its own: exit code, stdout, stderr."""
    monkeypatch.setenv("LMLITE_HOME", str(home.root))

    def run(*arguments: str) -> Result:
        capfd.readouterr()
        code = main(arguments)
        said = capfd.readouterr()
        return code, said.out, said.err

    return run


@pytest.fixture
def running(home: Home, start: Command) -> Owner:
    """A server in the background."""
    code, out, err = start("--drain", "60")
    assert (code, out) == (0, ""), err
    return owner_of(home)


def owner_of(home: Home) -> Owner:
    owner = home.owner()
    assert owner is not None
    return owner


def ask(owner: Owner, method: str, path: str, **headers: str) -> Any:
    assert owner.port is not None
    client = Client(owner.port)
    answer = client.ask(method, path, None, headers)
    client.close()
    return answer


# ---- start -----------------------------------------------------------------------------------------------------------


def test_start_returns_when_the_server_answers(home: Home, start: Command) -> None:
    code, out, err = start()
    owner = owner_of(home)
    assert (code, out, err) == (0, "", f"Success! Server is now running on port {owner.port}\n")
    assert ask(owner, "GET", "/lmstudio-greeting").json == {"lmstudio": True}
    assert owner.daemon


def test_started_server_is_in_a_session_of_its_own(running: Owner) -> None:
    assert running.pid is not None
    assert os.getsid(running.pid) == running.pid


def test_starting_again_says_that_it_runs(running: Owner, command: Command) -> None:
    said = (0, "", f"The server is already running on port {running.port}.\n")
    assert command("server", "start") == said
    assert command("daemon", "up") == said
    assert command("server", "start", "--port", str(running.port), "--drain", "60") == said


def test_starting_with_other_settings_fails_and_names_them(running: Owner, command: Command) -> None:
    code, out, err = command("server", "start", "--parallel", "8", "--cors", "--drain", "60")
    assert (code, out) == (1, "")
    assert f"already running on port {running.port}, with another --allow-origin, another --parallel;" in err


def test_levels_choose_the_messages_and_are_no_other_server(running: Owner, command: Command) -> None:
    said = (0, "", f"The server is already running on port {running.port}.\n")
    assert command("server", "start", "--log-level", "debug") == command("server", "start", "--verbose") == said
    for flags in (["--log-level", "warn"], ["--log-level", "error"], ["--log-level", "none"], ["--quiet"]):
        assert command("server", "start", *flags) == (0, "", ""), flags
    assert command("server", "start", "--log-level", "loud")[0] == 2
    for flags in (["--log-level", "warn"], ["--verbose"], ["--quiet"]):
        assert command("server", "status", *flags) == (0, f"The server is running on port {running.port}.\n", "")
        assert command("daemon", "up", *flags)[0] == 0
    assert command("server", "stop", "--quiet") == (0, "", "")
    assert command("server", "stop", "--log-level", "warn")[0] == 1


def test_level_reaches_the_server(home: Home, start: Command) -> None:
    assert start("--log-level", "warn", "--verbose")[0] == 0
    assert owner_of(home).options["log_level"] == "warning"
    assert " INFO " not in home.log_file.read_text()


def test_port_is_the_last_one_where_none_is_named(home: Home) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    had_it(home, port)
    assert ended(lmlite("server", "start", home=home.root)) == (0, "", f"Success! Server is now running on port {port}\n")


def test_port_of_the_file_wins_over_the_last_one(home: Home) -> None:
    had_it(home, 1)
    home.config_file.write_text('{"port": 0}')
    assert ended(lmlite("server", "start", home=home.root))[0] == 0
    assert owner_of(home).options == {"port": 0}


def had_it(home: Home, port: int) -> None:
    """As a server on `port` leaves it."""
    home.prepare()
    with home.take("0", {}) as lock:
        lock.publish(port, f"http://127.0.0.1:{port}")


def test_simultaneous_starts_make_one_server(home: Home) -> None:
    starts = [lmlite("server", "start", "--port", "0", home=home.root) for _ in range(3)]
    results = [ended(process) for process in starts]
    assert [(code, out) for code, out, _ in results] == [(0, "")] * 3, results
    assert sum("Success!" in err for _, _, err in results) == 1
    assert sum("already running" in err for _, _, err in results) == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["--parallel", "0"], "from 1 to 64"), (["no-such.gguf"], "/no-such.gguf'"), (["."], "--models-dir")],
)
def test_failure_is_told_as_in_the_foreground(start: Command, arguments: list[str], said: str) -> None:
    code, out, err = start(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("lmlite: ")
    assert said in err
    assert err.count("\n") == 1


def test_a_folder_of_models_that_is_not_there_is_told(home: Home, start: Command) -> None:
    assert start("-p", "0", "--models-dir", "nowhere")[0] == 0
    assert f"there is no folder '{home.root / 'nowhere'}'" in home.log_file.read_text()


def test_failure_does_not_bring_up_what_was_logged_before(home: Home, start: Command) -> None:
    home.prepare()
    home.log_file.write_text("long ago\n")
    assert "long ago" not in start("no-such.gguf")[2]


def test_options_reach_the_server(home: Home, start: Command) -> None:
    flags = ["--no-mmap", "--idle-cells", "-1", "--models-dir", "a", "--models-dir", "b=c", "--alias", "x=y", "--bind"]
    assert start("-p", "0", *flags, "localhost")[0] == 0
    found = dict(owner_of(home).options)
    folders = [str(home.root / "a"), str(home.root / "b=c")]
    assert found == {"port": 0, "mmap": False, "models_dir": folders, "alias": [["x", "y"]], "host": ["localhost"]}


def test_address_may_come_from_lm_studios_variable(
    home: Home, start: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LMS_SERVER_HOST", "localhost")
    assert start()[0] == 0
    assert owner_of(home).options["host"] == ["localhost"]


@pytest.mark.parametrize(("flags", "origin"), [([], None), (["--cors"], "*")])
def test_web_pages_may_call_where_cors_is_on(
    home: Home, start: Command, flags: list[str], origin: str | None
) -> None:
    assert start(*flags)[0] == 0
    headers = {"Origin": "https://page.example", "Access-Control-Request-Method": "POST"}
    preflight = ask(owner_of(home), "OPTIONS", "/v1/chat/completions", **headers)
    plain = ask(owner_of(home), "GET", "/v1/models", Origin="https://page.example")
    assert (preflight.status, plain.status) == ((204, 200) if flags else (403, 403))
    for answer in (preflight, plain):
        assert answer.headers.get("Access-Control-Allow-Origin") == origin


def test_package_in_the_current_folder_is_not_what_runs(home: Home, tmp_path: Path) -> None:
    """As the installed command is run: the folder of the script is looked into, not the current one."""
    home.prepare()
    (home.root / "lmlite").mkdir()
    (home.root / "lmlite" / "__init__.py").write_text("raise SystemExit('the wrong package')")
    (home.root / "asyncio.py").write_text("raise SystemExit('the wrong module')")
    script = tmp_path / "script"
    script.write_text("import sys; from lmlite.__main__ import main; sys.exit(main())")
    environ = {**os.environ, "LMLITE_HOME": str(home.root), "HOME": str(home.root), "PYTHONPATH": str(INSTALLED)}
    command = [sys.executable, str(script), "server", "start", "--port", "0"]
    done = subprocess.run(command, cwd=home.root, env=environ, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 0, done.stderr


# ---- stop ------------------------------------------------------------------------------------------------------------


def test_stop_ends_the_server_and_says_its_port(home: Home, running: Owner, command: Command) -> None:
    assert command("server", "stop") == (0, "", f"Stopped the server on port {running.port}.\n")
    assert home.owner() is None
    assert running.port is not None
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", running.port))


def test_stopping_what_does_not_run_exits_1(command: Command) -> None:
    for words in (("server", "stop"), ("daemon", "down")):
        code, out, err = command(*words)
        assert (code, out) == (1, "")
        assert "The server is not running." in err


def test_stop_ends_the_foreground_server_too(home: Home, command: Command) -> None:
    process = lmlite("serve", "--port", "0", home=home.root)
    started(process)
    assert json.loads(command("daemon", "status", "--json")[1])["isDaemon"] is False
    assert command("server", "stop")[0] == 0
    assert ended(process)[0] == 0


def test_server_that_does_not_stop_is_killed(home: Home, command: Command) -> None:
    """One that is stopped (SIGSTOP) does nothing about a SIGTERM."""
    process = lmlite("serve", "--port", "0", home=home.root)
    started(process)
    process.send_signal(signal.SIGSTOP)
    home.lock_file.write_text(json.dumps({**json.loads(home.lock_file.read_text()), "options": {"drain": -9.5}}))
    code, _, err = command("server", "stop")
    assert (code, err.startswith("Stopped the server")) == (0, True), err
    assert ended(process)[0] == -signal.SIGKILL


# ---- status ----------------------------------------------------------------------------------------------------------


def test_status_before_the_first_start_has_no_port(command: Command, home: Home) -> None:
    assert command("server", "status") == (0, "The server is not running.\n", "")
    assert command("server", "status", "--json") == (0, '{"running": false}\n', "")
    assert command("daemon", "status", "--json") == (0, '{"status": "not-running"}\n', "")
    assert not home.root.exists()


def test_status_of_a_running_server_and_after_it(running: Owner, command: Command) -> None:
    assert command("server", "status") == (0, f"The server is running on port {running.port}.\n", "")
    assert json.loads(command("server", "status", "--json")[1]) == {"running": True, "port": running.port}
    assert json.loads(command("daemon", "status", "--json")[1]) == {
        "status": "running",
        "pid": running.pid,
        "isDaemon": True,
        "version": running.version,
    }
    assert command("daemon", "up", "--json")[:2] == command("daemon", "status", "--json")[:2]
    assert command("daemon", "down", "--json")[:2] == (0, '{"status": "not-running"}\n')
    assert json.loads(command("server", "status", "--json")[1]) == {"running": False, "port": running.port}


# ---- one server per home and port ------------------------------------------------------------------------------------


def test_second_server_on_the_same_home_exits_2_and_names_the_owner(
    running: Owner, command: Command
) -> None:
    code, out, err = command("serve", "--port", "0")
    assert (code, out) == (2, "")
    assert f"process id {running.pid} on port {running.port}" in err


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="the owner is found through /proc")
def test_second_server_on_the_same_port_exits_2_and_names_the_process(running: Owner, tmp_path: Path) -> None:
    code, out, err = ended(lmlite("serve", "--port", str(running.port), home=tmp_path / "other"))
    assert (code, out) == (2, "")
    assert f"{running.port} on 127.0.0.1 is in use by process {running.pid}" in err


def test_killed_server_is_no_obstacle(home: Home, running: Owner, start: Command) -> None:
    assert running.pid is not None
    os.kill(running.pid, signal.SIGKILL)
    assert start()[0] == 0
    assert owner_of(home).pid != running.pid


def test_home_that_cannot_be_used_exits_2(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for words in (("serve",), ("server", "start")):
        process = lmlite(*words, "--port", "0", "--home", str(tmp_path / "file" / "home"), home=tmp_path / "cwd")
        code, out, err = ended(process)
        assert (code, out) == (2, "")
        assert "file/home/config.json: cannot be read: Not a directory" in err


# ---- the log ---------------------------------------------------------------------------------------------------------


def test_log_of_the_background_server_has_its_life_and_no_prompt(
    home: Home, running: Owner, command: Command
) -> None:
    assert running.port is not None
    client = Client(running.port)
    secret = {"model": "lmlite-tiny", "prompt": "the secret word is plugh", "max_tokens": 2}
    assert client.post("/v1/completions", secret, Authorization="Bearer sk-secret").status == 200
    assert client.post("/v1/completions", {**secret, "temperature": "plugh"}).status == 400
    client.close()
    assert command("server", "stop")[0] == 0
    text = home.log_file.read_text()
    assert f"is listening on {running.url}" in text
    assert text.endswith("stopped\n")
    assert "plugh" not in text
    assert "sk-secret" not in text


def test_log_that_cannot_be_written_stops_no_server(home: Home, start: Command) -> None:
    home.prepare()
    home.log_file.mkdir()
    assert start()[0] == 0
    assert ask(owner_of(home), "GET", "/v1/models").status == 200


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="writes to /dev/full")
def test_full_disk_under_stdout_and_stderr_stops_no_server(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    with manager() as (listening, name):
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        process = lmlite("serve", "--port", "0", home=home.root, shell="exec > /dev/full 2>&1")
        listening.recv(4096)
    assert ask(owner_of(home), "GET", "/v1/models").status == 200
    process.terminate()
    assert ended(process)[0] == 0


# ---- signals and service managers ------------------------------------------------------------------------------------


@pytest.mark.skipif(signal.getsignal(signal.SIGHUP) is signal.SIG_IGN, reason="the tests themselves run under nohup")
def test_closed_terminal_stops_the_server_in_order(home: Home) -> None:
    process = lmlite("serve", "--port", "0", home=home.root)
    started(process)
    process.send_signal(signal.SIGHUP)
    assert ended(process)[0] == 0


def test_hangup_is_nothing_under_nohup(home: Home) -> None:
    process = lmlite("serve", "--port", "0", home=home.root, shell="trap '' HUP")
    started(process)
    process.send_signal(signal.SIGHUP)
    assert ask(owner_of(home), "GET", "/health").status == 200
    process.terminate()
    assert ended(process)[0] == 0


def test_manager_is_told_when_the_server_is_ready_and_when_it_stops(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    with manager() as (listening, name):
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        monkeypatch.setenv("WATCHDOG_USEC", "60000000")
        process = lmlite("serve", "--port", "0", home=home.root)
        told = listening.recv(4096).decode()
        owner = owner_of(home)
        assert told == f"READY=1\nSTATUS=listening on {owner.url}"
        assert ask(owner, "GET", "/health").status == 200
        assert listening.recv(4096) == b"WATCHDOG=1"
        process.terminate()
        assert listening.recv(4096).startswith(b"STOPPING=1\n")
        assert ended(process)[0] == 0
