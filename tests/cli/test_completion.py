"""Completion: what the parser's tree offers at each place, and that the scripts bring it to a shell."""

from __future__ import annotations

import argparse
import os
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lmlite.cli import build_parser, completion, main
from lmlite.cli.completion import FILES, FOLDERS, candidates
from lmlite.config import options
from tests.conftest import INSTALLED, TIMEOUT_S


def offered(*words: str) -> list[str]:
    return [found.word for found in candidates(build_parser(), list(words))]


# ---- what is offered -------------------------------------------------------------------------------------------------


def test_commands_are_offered_with_their_help_and_what_is_hidden_is_not() -> None:
    found = {candidate.word: candidate.help for candidate in candidates(build_parser(), [""])}
    assert found["serve"] == "run the server in the foreground"
    assert {"server", "daemon", "service", "version", "completion"} <= found.keys()
    assert completion.ASKED not in found
    assert all(found.values())


def test_every_command_is_offered_and_every_flag_of_each() -> None:
    def check(parser: argparse.ArgumentParser, *path: str) -> None:
        flags = parser._option_string_actions.items()
        shown = [flag for flag, action in flags if flag.startswith("--") and action.help != argparse.SUPPRESS]
        assert offered(*path, "--") == shown
        if (commands := completion.subcommands(parser)) is not None:
            names = [name for name in commands.choices if name != completion.ASKED]
            assert offered(*path, "") == names
            for name in names:
                check(commands.choices[name], *path, name)

    check(build_parser())


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["server", "st"], ["start", "stop", "status"]),
        (["serve", "--isolation", ""], ["process", "thread"]),
        (["serve", "--isolation", "t"], ["thread"]),
        (["serve", "--isolation=t"], ["--isolation=thread"]),
        (["serve", "--isolation=thread", "--no-mm"], ["--no-mmap"]),
        (["serve", "--gpu-layers", ""], ["max", "off"]),
        (["serve", "--home", "x"], [FOLDERS]),
        (["serve", "--home=x"], [FOLDERS]),
        (["serve", ""], [FILES]),
        (["serve", "one.gguf", ""], [FILES]),
        (["serve", "--", "--x"], [FILES]),
        (["serve", "--parallel", ""], []),
        (["serve", "--parallel", "--"], []),
        (["completion", ""], ["bash", "fish", "zsh"]),
        (["completion", "bash", ""], []),
        (["nonsense", "--"], ["--help", "--version"]),
        (["serve", "--nonsense", "--isol"], ["--isolation"]),
        (["serve", "--nonsense=x"], []),
    ],
)
def test_place_decides_what_is_offered(words: list[str], expected: list[str]) -> None:
    assert offered(*words) == expected


def test_flag_is_offered_once_unless_it_may_be_repeated() -> None:
    found = offered("serve", "--port", "1", "-p", "2", "--mmap", "--models-dir", "x", "--")
    assert "--port" not in found
    assert "--no-mmap" not in found
    assert "--models-dir" in found


def test_models_are_offered_by_the_names_they_have(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("LMLITE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("LMLITE_MODELS_DIR", str(model_folder))
    parser = argparse.ArgumentParser()
    parser.add_argument("key")
    assert [found.word for found in candidates(parser, ["t"])] == ["talker", "text-embedding-embedder", "text-embedding-judge"]
    assert not (tmp_path / "home").exists()


def test_broken_config_offers_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text("{")
    monkeypatch.setenv("LMLITE_HOME", str(tmp_path))
    parser = argparse.ArgumentParser()
    parser.add_argument("key")
    parser.add_argument("identifier")
    assert list(candidates(parser, [""])) == []
    assert list(candidates(parser, ["x", ""])) == []


def test_scripts_ask_with_words_that_are_no_flags_of_the_asking(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([completion.ASKED, "=serve", "=--", "=--help", "="]) == 0
    assert capsys.readouterr().out == f"{FILES}\n"
    assert main([completion.ASKED]) == 0
    assert "serve\trun the server" in capsys.readouterr().out


# ---- shells ----------------------------------------------------------------------------------------------------------


def script(shell: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["completion", shell]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_script_is_sound_where_its_shell_is_there(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = script(shell, capsys)
    assert completion.ASKED in text
    assert "ASKED" not in text
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=text, text=True, check=True)


@pytest.fixture
def bash(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[[str], str]:
    """Types keys into a bash with the completion; what `lmlite` would have been called with, one argument per line."""
    if shutil.which("bash") is None:
        pytest.skip("there is no bash here")
    program = tmp_path / "bin" / "lmlite"
    program.parent.mkdir()
    log = tmp_path / "called"
    program.write_text(
        f'#!/bin/sh\nif [ "$1" = {completion.ASKED} ]; then PYTHONPATH={INSTALLED} exec {sys.executable} -m lmlite "$@"; fi\n'
        f"printf '%s\\n' \"$@\" > {log}.new; mv {log}.new {log}\n"
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    (tmp_path / "rc").write_text(f"PS1=\nbind 'set enable-bracketed-paste off'\n{script('bash', capsys)}")

    def type_keys(keys: str) -> str:
        environ = {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}", "TERM": "dumb", "HOME": str(tmp_path)}
        near, far = os.openpty()
        command = ["bash", "--noprofile", "--rcfile", str(tmp_path / "rc"), "-i"]
        with open(near, "w+b", buffering=0) as terminal:
            with subprocess.Popen(
                command, cwd=tmp_path, env=environ, stdin=far, stdout=far, stderr=far, start_new_session=True
            ) as process:
                os.close(far)
                terminal.write(f"{keys}\nexit\n".encode())
                try:
                    drain(terminal.fileno())
                    process.wait(TIMEOUT_S)
                finally:
                    process.kill()
        return log.read_text()

    return type_keys


def drain(descriptor: int) -> None:
    """Reads what the shell shows until it is gone."""
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        try:
            if not os.read(descriptor, 4096):
                return
        except OSError:  # how Linux says that the other end is closed
            return


@pytest.mark.parametrize(
    ("keys", "called"),
    [
        ("lmlite vers\t--j\t", "version\n--json\n"),
        ("lmlite serve --isol\tth\t", "serve\n--isolation\nthread\n"),
        ("lmlite serve --isolation=p\t", "serve\n--isolation=process\n"),
        ("lmlite serve --home bi\t", "serve\n--home\nbin/\n"),
        ("lmlite serve --home=bi\t", "serve\n--home=bin/\n"),
    ],
)
def test_bash_completes(bash: Callable[[str], str], keys: str, called: str) -> None:
    assert bash(keys) == called


def test_every_option_with_words_offers_them() -> None:
    for option in options():
        if "|" in option.kind.metavar and option.kind.shape == "one":
            assert offered("serve", option.flag, ""), option.flag
