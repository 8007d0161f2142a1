"""Units for service managers: what they run, how odd words are quoted, and what systemd itself thinks of them."""

from __future__ import annotations

import os
import plistlib
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lmlite.cli import build_parser, main
from lmlite.cli.serve import given_options
from lmlite.cli.server import flags_of
from lmlite.cli.service import quoted
from lmlite.config import Config, gather, options

Service = Callable[..., str]


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Service:
    """What `lmlite service` prints with these arguments."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for option in options():
        monkeypatch.delenv(option.variable, raising=False)

    def run(*arguments: str, code: int = 0) -> str:
        capsys.readouterr()
        assert main(["service", *arguments]) == code
        said = capsys.readouterr()
        return said.out if code == 0 else said.err

    return run


def lines(unit: str) -> list[str]:
    return unit.splitlines()


def start_of(unit: str) -> str:
    return next(line for line in lines(unit) if line.startswith("ExecStart="))


# ---- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [
        ["--port", "0", "--no-mmap", "--mlock", "--gpu-layers", "max", "--idle-cells", "-1"],
        ["--models-dir", "/a b", "--models-dir", "/c=d", "--alias", "x=y=z", "--lora", "/l=1.gguf=0.000000001"],
        ["--lora", "/plain", "--tensor-split", "0.5,2", "--ttl", "1.5", "--drain", "0", "--kv-type", "q8_0,q4_0"],
        ["--cors", "--allow-origin", "https://a.example", "--host", "localhost", "-p", "7"],
        ["/models/-a.gguf", "/b c.gguf"],
        ["--main-gpu", "1", "--", "/-x"],
        ["--chat-template", "granite-4.0"],
        ["--chat-template", "mine.jinja"],
        [],
    ],
)
def test_options_survive_being_spelled_again(given: list[str], tmp_path: Path) -> None:
    environ = {"LMLITE_HOME": str(tmp_path)}
    config = read(given, environ)
    flags = flags_of(config, [option.name for option in options() if option.name != "models" or config.models])
    assert read(flags, environ) == config


def read(words: list[str], environ: dict[str, str]) -> Config:
    return gather(given_options(build_parser().parse_args(["serve", *words])), environ)


# ---- systemd ---------------------------------------------------------------------------------------------------------


def test_unit_runs_this_lmlite_with_what_was_said_here(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LMLITE_PARALLEL", "8")
    (tmp_path / ".lmlite").mkdir()
    (tmp_path / ".lmlite" / "config.json").write_text('{"drain": 50}')
    unit = service("systemd", "--models-dir", "relative folder")
    assert start_of(unit).endswith(
        f' serve --home={tmp_path}/.lmlite "--models-dir={tmp_path}/relative folder" --parallel=8'
    )
    assert "Type=notify" in lines(unit)
    assert "TimeoutStopSec=60" in lines(unit)
    assert "WantedBy=default.target" in lines(unit)


def test_unit_runs_the_installed_command_where_that_is_what_runs(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = tmp_path / "my venv" / "bin" / "lmlite"
    command.parent.mkdir(parents=True)
    command.touch(0o755)
    monkeypatch.setattr("sys.argv", [str(command)])
    assert start_of(service("systemd")).startswith(f'ExecStart="{command}" serve ')


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("--port=1", "--port=1"),
        ("a b", '"a b"'),
        ("100%n", "100%%n"),
        ("$HOME", '"$$HOME"'),
        ('a"b\\c\n', '"a\\"b\\\\c\\n"'),
        ("", '""'),
        (";", '";"'),
        ("-é", '"-é"'),
    ],
)
def test_words_are_quoted_for_the_command_line_of_a_unit(word: str, line: str) -> None:
    assert quoted(word) == line


def test_locked_memory_is_allowed_where_it_is_asked_for(service: Service) -> None:
    assert "LimitMEMLOCK=infinity" not in service("systemd")
    assert "LimitMEMLOCK=infinity" in lines(service("systemd", "--mlock"))


def test_unit_of_the_machine_has_a_user_and_a_home_of_its_own(service: Service) -> None:
    unit = service("systemd", "--system")
    assert {"DynamicUser=yes", "StateDirectory=lmlite", "WantedBy=multi-user.target"} <= set(lines(unit))
    assert "--home" not in start_of(unit)
    named = service("systemd", "--system", "--run-as", "me", "--home", "/srv/lmlite")
    assert {"User=me"} <= set(lines(named))
    assert "DynamicUser" not in named
    assert "--home=/srv/lmlite" in start_of(named)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["systemd", "--system", "--home", "/x"], "name one with --run-as"),
        (["systemd", "--run-as", "me"], "it is for --system"),
        (["launchd", "--run-as", "me"], "it is for --system"),
        (["systemd", "--system", "--run-as", "me\nExecStart=x"], "is not the name of a user"),
        (["systemd", "--parallel", "0"], "from 1 to 64"),
    ],
)
def test_what_makes_no_service_is_refused(service: Service, arguments: list[str], said: str) -> None:
    assert said in service(*arguments, code=2)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
@pytest.mark.parametrize(
    "arguments",
    [["--mlock", "--alias", 'a"b\\=$c %d'], ["--system"], ["--system", "--run-as", "root", "--models-dir", "/a b"]],
)
def test_systemd_finds_no_fault(service: Service, tmp_path: Path, arguments: list[str]) -> None:
    unit = tmp_path / "lmlite.service"
    unit.write_text(service("systemd", *arguments))
    scope = [] if "--system" in arguments else ["--user"]
    environ = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}
    done = subprocess.run(
        ["systemd-analyze", *scope, "verify", "--man=no", str(unit)], env=environ, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


# ---- launchd ---------------------------------------------------------------------------------------------------------


def job_of(text: str) -> dict[str, Any]:
    job: dict[str, Any] = plistlib.loads(text.encode())
    return job


def test_property_list_runs_this_lmlite_with_what_was_said_here(service: Service, tmp_path: Path) -> None:
    job = job_of(service("launchd", "--models-dir", "<a & b>", "--drain", "5"))
    flags = ["serve", f"--home={tmp_path}/.lmlite", f"--models-dir={tmp_path}/<a & b>", "--drain=5"]
    assert job["ProgramArguments"][-4:] == flags
    assert (job["RunAtLoad"], job["KeepAlive"], job["ExitTimeOut"]) == (True, {"SuccessfulExit": False}, 15)


@pytest.mark.parametrize(
    ("flags", "log"),
    [
        ([], "{user}/.lmlite/logs/server.log"),
        (["--home", "elsewhere"], "{user}/elsewhere/logs/server.log"),
        (["--system", "--run-as", "me", "--home", "/srv/lmlite"], "/srv/lmlite/logs/server.log"),
        (["--system", "--run-as", "nobody-here"], "/Library/Logs/lmlite.log"),
    ],
)
def test_last_words_of_a_job_go_to_the_servers_log(service: Service, tmp_path: Path, flags: list[str], log: str) -> None:
    job = job_of(service("launchd", *flags))
    assert {job["StandardOutPath"], job["StandardErrorPath"]} == {log.format(user=tmp_path)}
    if "--system" not in flags:  # launchd makes the file, but no folder
        assert Path(job["StandardOutPath"]).parent.is_dir()


def test_property_list_of_the_machine_names_its_user(service: Service) -> None:
    job = job_of(service("launchd", "--system", "--run-as", "me"))
    assert job["UserName"] == "me"
    assert job["ProgramArguments"][-1] == "serve"  # the home is that user's
