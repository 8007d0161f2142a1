"""Commands with the real server and the bundled model, as a new user types them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lmlite.core.engine import native
from lmlite.package import bundled_model
from tests.cli.conftest import Command, Done
from tests.conftest import INSTALLED, Client


@pytest.fixture
def stopped(command: Command, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Servers that a test starts take any free port, and are gone after it."""
    monkeypatch.setenv("LMLITE_PORT", "0")
    yield
    command("server", "stop")


def process(home: Path, *arguments: str) -> Done:
    """A command in a process of its own, as those have to be that leave a server behind."""
    environ = {**os.environ, "PYTHONPATH": str(INSTALLED)}
    command = [sys.executable, "-m", "lmlite", *arguments]
    done = subprocess.run(command, cwd=home.parent, env=environ, capture_output=True, text=True)
    return Done(done.returncode, done.stdout, done.stderr)


def test_model_is_loaded_used_listed_and_unloaded(command: Command, stopped: None, home: Path) -> None:
    assert command("ps").code == 1

    done = process(home, "load", "lmlite-tiny", "--ttl", "3600", "-c", "256", "--identifier", "mine")
    assert (done.code, done.out) == (0, "")
    assert "Success! Server is now running on port " in done.err
    assert done.err.endswith('To use the model in the API/SDK, use the identifier "mine".\n')

    (entry,) = command("ps", "--json").json
    expected = {"identifier": "mine", "modelKey": "lmlite-tiny", "status": "idle", "contextLength": 256, "ttlMs": 3_600_000}
    assert entry | expected == entry
    assert 3_590_000 < entry["remainingTtlMs"] <= 3_600_000
    assert command("ps").out.splitlines()[2].split()[:3] == ["mine", "lmlite-tiny", "IDLE"]
    assert "✓ LOADED" in command("ls").out
    status = command("status").out.splitlines()
    assert status[0].startswith("Server: ON (port ") and status[-1].startswith("  mine - ")
    told = command("status", "--json").json
    assert (told["running"], [model["identifier"] for model in told["models"]]) == (True, ["mine"])

    port = int(command("server", "status").out.rpartition(" ")[2].rstrip(".\n"))
    client = Client(port)
    assert client.post("/v1/completions", {"model": "mine", "prompt": "Hello", "max_tokens": 2}).status == 200
    client.close()

    estimate = command("load", "lmlite-tiny", "--estimate-only", "-c", "256", "--json").json
    assert (estimate["fits"], 0 < estimate["weights"] < estimate["total"] < estimate["available"]) == (True, True)
    assert "Estimate: it fits" in command("load", "lmlite-tiny", "--estimate-only").out
    assert len(command("ps", "--json").json) == 1

    assert command("load", "lmlite-tiny").code == 0
    done = command("unload")
    assert (done.code, "Several models are loaded: " in done.err) == (1, True)
    assert command("unload", "min").err == 'Model "mine" unloaded.\n'
    assert command("unload", "--all").err == 'Unloading "lmlite-tiny"...\nUnloaded 1 model.\n'
    assert command("ps", "--json").json == []
    done = command("unload", "mine")
    assert (done.code, done.out) == (1, "")

    done = command("load", "no-such-model", "-y")
    assert (done.code, 'No model matches "no-such-model"' in done.err) == (1, True)
    assert command("server", "stop").code == 0
    assert command("ps").code == 1
    done = command("status")
    assert (done.code, done.out, "lmlite server start" in done.err) == (0, "Server: OFF\n", True)
    assert command("status", "--json").json == {"running": False, "models": []}


def test_runtime_is_the_one_that_answers_name(command: Command) -> None:
    (runtime,) = command("runtime", "ls", "--json").json
    built = native.build_info()
    assert (runtime["name"], runtime["version"], runtime["selected"]) == (built["runtime"], built["llama_cpp"], True)
    rows = command("runtime", "ls").out.splitlines()
    assert rows[2].split() == [f"{built['runtime']}@{built['llama_cpp'][:12]}", "✓", "GGUF"]


def test_model_that_was_imported_is_there_at_once(command: Command, stopped: None, home: Path, tmp_path: Path) -> None:
    assert process(home, "server", "start").code == 0
    for name in ("falcon", "owl"):  # the second comes right after a look at the disk
        file = tmp_path / f"{name}.gguf"
        shutil.copy(bundled_model(), file)
        assert command("load", name, "-y").code == 1
        assert command("import", str(file), "--user-repo", f"acme/{name}", "-y").code == 0
        assert command("load", name).code == 0
    assert [entry["modelKey"] for entry in command("ps", "--json").json] == ["falcon", "owl"]


def test_setting_that_the_server_refuses_exits_1_in_its_words(home: Path, stopped: None) -> None:
    done = process(home, "load", "lmlite-tiny", "--parallel", "65")
    assert (done.code, "'parallel' must be" in done.err) == (1, True)


def test_broken_model_that_is_named_is_refused_with_its_reason(command: Command, stopped: None, home: Path) -> None:
    file = home / "models" / "acme" / "bad" / "bad.gguf"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"GGUF")
    assert process(home, "server", "start").code == 0
    done = command("load", "bad")
    assert (done.code, 'Model "bad" cannot be loaded: ' in done.err) == (1, True)
