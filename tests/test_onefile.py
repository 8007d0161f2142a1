"""`lmlite.pyz`, made of the package under test: run by a Python that has nothing else, wherever it may unpack itself."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conftest import INSTALLED, TIMEOUT_S

TOOLS = Path(__file__).parent.parent / "tools" / "onefile"
BARE = [sys.executable, "-I", "-S"]
"""No package but those of Python itself."""


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onefile") / "lmlite.pyz"
    code = "import sys, onefile; from pathlib import Path; onefile.write(Path(sys.argv[1]), Path(sys.argv[2]))"
    command = [sys.executable, "-c", code, str(INSTALLED / "lmlite"), str(path)]
    subprocess.run(command, check=True, timeout=TIMEOUT_S, env={**os.environ, "PYTHONPATH": str(TOOLS)})
    return path


def environ(cache: Path, home: Path) -> Mapping[str, str]:
    return {"PATH": "/usr/bin:/bin", "HOME": str(home), "LMLITE_CACHE": str(cache)}


def run(archive: Path, cache: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [*BARE, str(archive), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, env=environ(cache, cache.parent))


def test_one_file_serves_without_any_other_package(archive: Path, tmp_path: Path) -> None:
    command = [*BARE, str(archive), "serve", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ(tmp_path / "c", tmp_path)) as process:
        try:
            assert process.stdout is not None
            url = re.search(r"http://\S+", process.stdout.readline())
            assert url is not None
            body = json.dumps({"messages": [{"role": "user", "content": "What is 2 plus 2?"}]}).encode()
            request = urllib.request.Request(f"{url[0]}/v1/chat/completions", body, {"Content-Type": "application/json"})
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
                assert "4" in json.load(answer)["choices"][0]["message"]["content"]
        finally:
            process.terminate()
    assert process.returncode == 0


def test_those_that_start_at_once_for_the_first_time_all_run(archive: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    with ThreadPoolExecutor(6) as pool:
        done = list(pool.map(lambda _: run(archive, cache, "ls", "--json"), range(6)))
    assert {(each.returncode, each.stderr) for each in done} == {(0, "")}
    assert len(list(cache.iterdir())) == 1


def test_a_place_that_cannot_be_written_to_is_named_with_the_way_out(archive: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    done = run(archive, file / "cache", "ls")
    assert done.returncode == 1
    assert str(file / "cache") in done.stderr and "LMLITE_CACHE" in done.stderr and "Traceback" not in done.stderr


def test_a_place_where_others_may_write_is_not_run_from(archive: Path, tmp_path: Path) -> None:
    cache = tmp_path / "open"
    cache.mkdir()
    cache.chmod(0o777)
    done = run(archive, cache, "ls")
    assert done.returncode == 1 and "others may write there" in done.stderr


def test_the_same_package_makes_the_same_file(archive: Path, tmp_path: Path) -> None:
    second = tmp_path / "again.pyz"
    code = "import sys, onefile; from pathlib import Path; onefile.write(Path(sys.argv[1]), Path(sys.argv[2]))"
    command = [sys.executable, "-c", code, str(INSTALLED / "lmlite"), str(second)]
    subprocess.run(command, check=True, timeout=TIMEOUT_S, env={**os.environ, "PYTHONPATH": str(TOOLS)})
    assert second.read_bytes() == archive.read_bytes()
