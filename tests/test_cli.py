"""The command line: where options come from and which one wins, how wrong ones are refused, a server's whole life."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lmlite.cli import build_parser
from lmlite.config import Config, gather, options
from lmlite.errors import ConfigError
from tests.conftest import INSTALLED, TIMEOUT_S, Client

PEM = Path(__file__).parent / "hub" / "hub.example.pem"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def write_file(home: Path, content: str) -> dict[str, str]:
    home.mkdir(exist_ok=True)
    (home / "config.json").write_text(content)
    return {"LMLITE_HOME": str(home)}


# ---- one name, three places ------------------------------------------------------------------------------------------


def test_flag_wins_over_variable_over_file_over_default(home: Path) -> None:
    environ = write_file(home, '{"parallel": 2, "context_length": 2048, "ttl": 60}')
    environ |= {"LMLITE_PARALLEL": "3", "LMLITE_CONTEXT_LENGTH": "1024"}
    config = gather({"parallel": "5"}, environ)
    assert (config.parallel, config.context_length, config.ttl, config.threads) == (5, 1024, 60.0, 0)


def test_home_is_taken_from_flag_before_variable(home: Path, tmp_path: Path) -> None:
    environ = write_file(home, '{"parallel": 2}')
    assert gather({}, environ).parallel == 2
    assert gather({"home": str(tmp_path)}, environ).parallel == 4


def test_every_option_has_the_same_value_from_each_place(home: Path) -> None:
    for option in options():
        if option.name == "home":
            continue
        text, value = a_value_for(option.kind.shape, option.default, option.kind.allowed)
        needs = {"host": "INSECURE_NO_AUTH", "tls_cert": "TLS_KEY", "tls_key": "TLS_CERT", "mcp": "AUTH"}
        with_it = {f"LMLITE_{needs[option.name]}": "1"} if option.name in needs else {}
        nothing = {"LMLITE_HOME": str(home / "none"), **with_it}
        by_flag = gather({option.name: [text] if option.kind.shape == "many" else text}, nothing)
        by_variable = gather({}, nothing | {option.variable: text})
        by_file = gather({}, write_file(home, json.dumps({option.name: value})) | with_it)
        found = {getattr(config, option.name) for config in (by_flag, by_variable, by_file)}
        assert len(found) == 1, option.name
        assert found != {option.default}, option.name


def a_value_for(shape: str, default: object, allowed: str) -> tuple[str, object]:
    """A value other than the default, as flag text and as JSON."""
    if shape == "many":
        kinds = {"NAME=": "a=b", "IP ": "10.0.0.0/8"}
        text = next((text for beginning, text in kinds.items() if allowed.startswith(beginning)), "/some/thing")
        return text, [text]
    if shape == "switch":
        return str(not default).lower(), not default
    if isinstance(default, int):
        return "7", 7
    if default == ():
        return "3,1", [3, 1]
    if isinstance(default, float):
        return "7.5", 7.5
    if allowed == "a path" and default is None:
        return "/some/file", "/some/file"
    words = {"process or thread": "thread", "auto or on or off": "off", "none or layer or row or tensor": "row"}
    text = "q8_0,q4_0" if "q8_0" in allowed else words.get(allowed, "debug")
    return text, text


def test_lists_in_variables_are_joined(home: Path) -> None:
    environ = {"LMLITE_HOME": str(home), "LMLITE_MODELS_DIR": os.pathsep.join(("/a", "/b")), "LMLITE_ALIAS": "x=y,z=w"}
    config = gather({}, environ)
    assert config.models_dir == (Path("/a"), Path("/b"))
    assert config.alias == (("x", "y"), ("z", "w"))


@pytest.mark.parametrize(("text", "layers"), [("max", -1), ("off", 0), ("12", 12)])
def test_gpu_layers_takes_words(home: Path, text: str, layers: int) -> None:
    assert gather({"gpu_layers": text}, {"LMLITE_HOME": str(home)}).gpu_layers == layers


# ---- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", " 1", "+1", "1_0", "٥", "1.0", "-1", "65", "1" * 40, "nan"])
def test_odd_numbers_are_refused_by_flag_and_range(home: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"--parallel: .* from 1 to 64"):
        gather({"parallel": text}, {"LMLITE_HOME": str(home)})


def test_refusal_names_the_variable(home: Path) -> None:
    with pytest.raises(ConfigError, match="LMLITE_ISOLATION: 'fork' is not allowed, must be process or thread"):
        gather({}, {"LMLITE_HOME": str(home), "LMLITE_ISOLATION": "fork"})


def test_refusal_names_file_and_key(home: Path) -> None:
    with pytest.raises(ConfigError, match=r"config\.json: parallel: 'True' is not allowed"):
        gather({}, write_file(home, '{"parallel": true}'))


@pytest.mark.parametrize("content", ["", "[]", "{", "null", '{"a":' * 100_000, '{"parallel": 1e999}'])
def test_broken_files_are_refused_by_name(home: Path, content: str) -> None:
    with pytest.raises(ConfigError, match=r"config\.json"):
        gather({}, write_file(home, content))


def test_unknown_key_is_refused_with_those_that_are_known(home: Path) -> None:
    with pytest.raises(ConfigError, match=r"no option 'paralel'.*parallel"):
        gather({}, write_file(home, '{"paralel": 4}'))


def test_unreadable_home_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").mkdir()
    with pytest.raises(ConfigError, match="cannot be read"):
        gather({}, {"LMLITE_HOME": str(tmp_path)})


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org", "127.0.0.1.example.org"])
def test_address_in_reach_of_others_needs_the_flag_that_the_message_names(home: Path, host: str) -> None:
    with pytest.raises(ConfigError, match="--insecure-no-auth"):
        gather({"host": host}, {"LMLITE_HOME": str(home)})
    assert gather({"host": host, "insecure_no_auth": True}, {"LMLITE_HOME": str(home)}).host == (host,)
    with pytest.raises(ConfigError, match="--insecure-no-auth"):
        gather({"host": ["127.0.0.1", host]}, {"LMLITE_HOME": str(home)})


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "localhost", "LOCALHOST", "::1", "[::1]"])
def test_loopback_needs_no_flag(host: str) -> None:
    assert Config.of(host=host).host == (host.strip("[]"),)


def test_several_addresses_are_listened_on_wherever_they_are_said(home: Path) -> None:
    both = ("127.0.0.1", "::1")
    assert Config.of(host=["127.0.0.1", "[::1]"]).host == both
    assert gather({}, {"LMLITE_HOME": str(home), "LMLITE_HOST": "127.0.0.1,::1"}).host == both
    home.mkdir(exist_ok=True)
    (home / "config.json").write_text('{"host": ["127.0.0.1", "::1"]}')
    assert gather({}, {"LMLITE_HOME": str(home)}).host == both
    assert Config.of(host=("127.0.0.1", "127.0.0.1")).host == ("127.0.0.1",)


def test_python_options_are_checked_in_the_same_words() -> None:
    with pytest.raises(ConfigError, match="parallel: '0' is not allowed"):
        Config.of(parallel=0)
    with pytest.raises(ConfigError, match="no such option"):
        Config.of(paralel=4)


# ---- the command -----------------------------------------------------------------------------------------------------


def lmlite(*arguments: str, home: Path, shell: str = "") -> subprocess.Popen[str]:
    """The command; `shell` runs before it in the same process."""
    home.mkdir(exist_ok=True)
    environ = {**os.environ, "LMLITE_HOME": str(home), "HOME": str(home), "PYTHONPATH": str(INSTALLED)}
    command = [sys.executable, "-m", "lmlite", *arguments]
    if shell:
        command = ["sh", "-c", f'{shell}; exec "$@"', "sh", *command]
    pipe, no_input = subprocess.PIPE, subprocess.DEVNULL
    # From another folder: the current one would come before what is installed.
    return subprocess.Popen(command, cwd=home, env=environ, text=True, stdin=no_input, stdout=pipe, stderr=pipe)


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=30)
    return process.returncode, out, err


def started(process: subprocess.Popen[str]) -> tuple[str, list[str]]:
    """The server's address and the rest of what it says at its start."""
    assert process.stdout is not None
    lines = [process.stdout.readline().rstrip("\n") for _ in range(3)]
    assert lines[0].startswith("lmlite is listening on http://127.0.0.1:"), process.communicate(timeout=30)
    return lines[0].rpartition(" ")[2], lines[1:]


def test_version_names_lmlite_and_llama_cpp(home: Path) -> None:
    code, out, err = ended(lmlite("--version", home=home))
    assert (code, err) == (0, "")
    assert out.startswith("lmlite ")
    assert "\nllama.cpp " in out


def test_without_a_command_help_is_shown_and_nothing_runs(home: Path) -> None:
    code, out, err = ended(lmlite(home=home))
    assert (code, out) == (2, "")
    assert "serve" in err


def test_help_lists_every_option(home: Path) -> None:
    code, out, _ = ended(lmlite("serve", "--help", home=home))
    assert code == 0
    assert [option.flag for option in options() if not option.positional and option.flag not in out] == []


def test_wrong_option_exits_2_and_starts_nothing(home: Path) -> None:
    code, out, err = ended(lmlite("serve", "--parallel", "0", home=home))
    assert (code, out) == (2, "")
    assert err == "lmlite: --parallel: '0' is not allowed, must be a whole number from 1 to 64\n"


@pytest.mark.parametrize(
    "words",
    [
        ["a.gguf", "--port", "0", "b.gguf", "--no-mmap", "c.gguf"],
        ["--port", "0", "a.gguf", "b.gguf", "--no-mmap", "c.gguf"],
        ["a.gguf", "--port=0", "--no-mmap", "--", "b.gguf", "c.gguf"],
        ["a.gguf", "b.gguf", "c.gguf", "--no-mmap", "-p", "0"],
    ],
)
@pytest.mark.parametrize("command", [["serve"], ["server", "start"], ["service", "systemd"]])
def test_files_may_stand_between_options(command: list[str], words: list[str]) -> None:
    found = build_parser().parse_args([*command, *words])
    assert (found.models, found.port, found.mmap) == (["a.gguf", "b.gguf", "c.gguf"], "0", False)


@pytest.mark.parametrize("words", [["a.gguf", "--no-such", "b.gguf"], ["a.gguf", "-x"], ["a.gguf", "-p0", "b.gguf", "--x"]])
def test_unknown_option_among_files_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        build_parser().parse_args(["serve", *words])
    said = capsys.readouterr().err.rpartition("unrecognized arguments: ")[2]
    assert (exit.value.code, said.startswith("-"), "b.gguf" in said) == (2, True, False)


def test_port_in_use_exits_2_and_says_so(home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, out, err = ended(lmlite("serve", "--port", str(port), home=home))
    assert (code, out) == (2, "")
    assert f"{port} on 127.0.0.1 is in use" in err


def test_model_file_that_is_not_there_exits_2(home: Path) -> None:
    code, out, err = ended(lmlite("serve", "no-such.gguf", home=home))
    assert (code, out) == (2, "")
    assert "no-such.gguf" in err


def test_model_of_the_command_line_is_the_one_to_try(home: Path, model_folder: Path) -> None:
    named = model_folder / "acme" / "embedder" / "embedder-Q4_K_M.gguf"
    process = lmlite("serve", str(named), "--models-dir", str(model_folder), "--port", "0", home=home)
    url, said = started(process)
    process.terminate()
    assert ended(process)[0] == 0
    assert said[0] == "models: talker, text-embedding-embedder, text-embedding-judge"
    assert said[1].startswith(f"try: curl {url}/v1/embeddings ")


def test_file_of_the_command_line_that_is_no_model_is_told_with_the_reason(home: Path, model_folder: Path) -> None:
    bad = home.parent / "bad.gguf"
    bad.write_bytes(b"GGUF")
    process = lmlite("serve", str(bad), "--models-dir", str(model_folder), "--port", "0", home=home)
    _, said = started(process)
    process.terminate()
    code, _, err = ended(process)
    assert (code, said[0]) == (0, "models: talker, text-embedding-embedder, text-embedding-judge")
    assert "lmlite: bad cannot be loaded: " in err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_stops_the_server_with_exit_code_0(home: Path, number: signal.Signals) -> None:
    process = lmlite("serve", "--port", "0", home=home)
    url, said = started(process)
    assert said[0] == "models: lmlite-tiny, lmlite-tiny-vision"
    assert said[1].startswith(f"try: curl {url}/v1/chat/completions ")
    process.send_signal(number)
    code, out, _ = ended(process)
    assert (code, out) == (0, "")


# ---- a whole life, with the real engine and the bundled model -------------------------------------------------------

ENDLESS = {"model": "lmlite-tiny", "prompt": ["Hello"] * 64, "max_tokens": 1900, "ignore_eos": True, "stream": True}
"""Far more text than a connection holds while nobody reads it."""
SHORT = {"model": "lmlite-tiny", "prompt": "Hello", "max_tokens": 3}


@pytest.fixture
def server(home: Path) -> Iterator[tuple[subprocess.Popen[str], Client]]:
    process = lmlite("serve", "--port", "0", "--drain", "60", home=home)
    url, _ = started(process)
    client = Client(int(url.rpartition(":")[2]))
    yield process, client
    client.close()
    process.kill()
    process.communicate()


def test_the_printed_curl_works(home: Path) -> None:
    process = lmlite("serve", "--port", "0", home=home)
    _, (_, line) = started(process)
    done = subprocess.run(["sh", "-c", f"{line.removeprefix('try: ')} -s"], capture_output=True, text=True)
    process.terminate()
    assert json.loads(done.stdout)["choices"][0]["message"]["content"]
    assert ended(process)[0] == 0


@pytest.mark.parametrize("flags", [["--auth"], ["--tls-cert", str(PEM), "--tls-key", str(PEM)]], ids=["auth", "tls"])
def test_the_printed_curl_works_where_tokens_are_asked_for_or_tls_is_spoken(home: Path, flags: list[str]) -> None:
    code, token, _ = ended(lmlite("token", "create", "mine", home=home))
    assert code == 0
    process = lmlite("serve", "--port", "0", *flags, home=home)
    assert process.stdout is not None
    line = next(line for line in process.stdout if line.startswith("try: "))
    environ = {**os.environ, "LM_API_TOKEN": token.strip()}
    command = f"{line.strip().removeprefix('try: ')} -s"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, env=environ)
    process.terminate()
    assert json.loads(done.stdout)["choices"][0]["message"]["content"]
    assert ended(process)[0] == 0


def test_second_signal_does_not_wait_for_running_requests(server: tuple[subprocess.Popen[str], Client]) -> None:
    process, client = server
    response = client.start("POST", "/v1/completions", ENDLESS)
    assert response.status == 200
    assert response.read1(1)
    process.terminate()
    assert process.stderr is not None
    assert any("second signal" in line for line in process.stderr), "after the lines about what was served"
    assert process.poll() is None
    process.terminate()
    code, _, _ = ended(process)
    assert code == 0


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the child through /proc")
def test_killed_engine_ends_its_stream_with_an_error_and_the_next_request_is_answered(
    server: tuple[subprocess.Popen[str], Client],
) -> None:
    process, client = server
    response = client.start("POST", "/v1/completions", ENDLESS)
    assert response.read1(1)
    (engine,) = children(process.pid)
    os.kill(engine, signal.SIGKILL)
    *_, last = response.read().split(b"\n\n")[:-1]
    assert last.startswith(b"event: error\ndata: ")
    assert b"SIGKILL" in last
    assert client.post("/v1/completions", SHORT).status == 200
    process.terminate()
    code, _, err = ended(process)
    assert code == 0
    assert "Traceback" not in err


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the child through /proc")
def test_no_engine_outlives_its_server(server: tuple[subprocess.Popen[str], Client]) -> None:
    process, client = server
    client.post("/v1/completions", SHORT)
    (engine,) = children(process.pid)
    process.kill()
    process.communicate()
    with contextlib.suppress(ProcessLookupError):
        pidfd = os.pidfd_open(engine)
        with contextlib.closing(select.epoll()) as poll:
            poll.register(pidfd, select.EPOLLIN)
            assert poll.poll(TIMEOUT_S), "the engine still runs"
        os.close(pidfd)


def test_server_out_of_descriptors_pauses_and_recovers(home: Path) -> None:
    process = lmlite("serve", "--port", "0", home=home, shell="ulimit -n 48")
    url, _ = started(process)
    port = int(url.rpartition(":")[2])
    with contextlib.ExitStack() as crowd:
        for _ in range(100):
            crowd.enter_context(socket.create_connection(("127.0.0.1", port)))
        assert process.stderr is not None
        assert "cannot accept connections" in process.stderr.readline()
    client = Client(port)
    assert client.post("/v1/completions", SHORT).status == 200
    client.close()
    process.terminate()
    code, _, err = ended(process)
    assert (code, "Traceback" in err) == (0, False)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
