"""`lmlite.pyz`, made of the package under test: run by a Python that has nothing else, wherever it may unpack itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lmlite.package import bundled_model
from tests.conftest import INSTALLED, TIMEOUT_S, address, complete
from tests.core.gguf_files import gguf, llama, projector

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


def write(target: Path, *models: Path) -> subprocess.CompletedProcess[str]:
    code = "import sys, onefile; from pathlib import Path; a, b, *more = map(Path, sys.argv[1:]); onefile.write(a, b, more)"
    command = [sys.executable, "-c", code, str(INSTALLED / "lmlite"), str(target), *map(str, models)]
    environ = {**os.environ, "PYTHONPATH": str(TOOLS)}
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, env=environ)


def environ(cache: Path, home: Path) -> Mapping[str, str]:
    return {"PATH": "/usr/bin:/bin", "HOME": str(home), "LMLITE_CACHE": str(cache)}


def run(archive: Path, cache: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [*BARE, str(archive), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, env=environ(cache, cache.parent))


def test_one_file_serves_without_any_other_package(archive: Path, tmp_path: Path) -> None:
    command = [*BARE, str(archive), "serve", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ(tmp_path / "c", tmp_path)) as process:
        try:
            body = json.dumps({"messages": [{"role": "user", "content": "What is 2 plus 2?"}]}).encode()
            json_type = {"Content-Type": "application/json"}
            request = urllib.request.Request(f"{address(process)}/v1/chat/completions", body, json_type)
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
                assert "4" in json.load(answer)["choices"][0]["message"]["content"]
        finally:
            process.terminate()
    assert process.returncode == 0


def test_its_version_is_told_and_what_the_engine_in_a_thread_would_need(archive: Path, tmp_path: Path) -> None:
    done = run(archive, tmp_path / "cache", "version")
    assert done.returncode == 0 and done.stdout.startswith("lmlite ")
    assert "pip install cffi" in done.stdout and "einstall" not in done.stdout.replace("pip install cffi", "")


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


def test_what_was_tidied_away_is_unpacked_again(archive: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    assert run(archive, cache, "ls", "--json").returncode == 0
    (package,) = cache.glob("lmlite-*/lmlite")
    (package / "config.py").unlink()
    (package / "models" / "lmlite-tiny.gguf").write_bytes(b"cut")
    done = run(archive, cache, "ls", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert "lmlite-tiny" in {each["modelKey"] for each in json.loads(done.stdout)}
    assert len(list(cache.iterdir())) == 1


@pytest.mark.parametrize(
    ("options", "why"),
    [("noexec", "Operation not permitted"), ("ro", "Read-only file system"), ("size=1m", "No space left on device")],
)
def test_a_disk_that_it_cannot_be_run_from_is_named_and_the_next_place_taken(
    archive: Path, tmp_path: Path, options: str, why: str
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = ["unshare", "--mount", "sh", "-c", f'mount -t tmpfs -o {options} none "{disk}" && exec "$@"', "sh"]
    if subprocess.run([*mounted, "true"], capture_output=True).returncode != 0:
        pytest.skip("nothing can be mounted here")
    command = [*mounted, *BARE, str(archive), "ls", "--json"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=TIMEOUT_S, env=environ(disk / "cache", tmp_path)
    )
    assert done.returncode == 1
    assert f"{disk}/cache: {why}" in done.stderr and "Traceback" not in done.stderr
    elsewhere = {"PATH": "/usr/bin:/bin", "HOME": str(disk), "TMPDIR": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, env=elsewhere)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_same_package_makes_the_same_file(archive: Path, tmp_path: Path) -> None:
    second = tmp_path / "again.pyz"
    code = "import sys, onefile; from pathlib import Path; onefile.write(Path(sys.argv[1]), Path(sys.argv[2]))"
    command = [sys.executable, "-c", code, str(INSTALLED / "lmlite"), str(second)]
    subprocess.run(command, check=True, timeout=TIMEOUT_S, env={**os.environ, "PYTHONPATH": str(TOOLS)})
    assert second.read_bytes() == archive.read_bytes()


def test_a_model_goes_with_it_and_is_used_where_it_lies(tmp_path: Path) -> None:
    model = tmp_path / "acme" / "falcon" / "Falcon-Q8_0.gguf"
    model.parent.mkdir(parents=True)
    model.write_bytes(bundled_model().read_bytes())
    path = tmp_path / "with model"  # called as one likes
    assert write(path, model).returncode == 0
    model.unlink()
    command = [*BARE, str(path), "serve", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ(tmp_path / "c", tmp_path)) as process:
        try:
            url = address(process)
            with urllib.request.urlopen(f"{url}/v1/models", timeout=TIMEOUT_S) as answer:
                assert [each["id"] for each in json.load(answer)["data"]] == ["falcon"]
            complete(url, "acme/falcon", 3)
        finally:
            process.terminate()
    assert process.returncode == 0
    unpacked = {file.name for file in (tmp_path / "c").rglob("*.gguf")}
    assert "lmlite-tiny.gguf" in unpacked and model.name not in unpacked


def test_models_keep_their_projectors_and_parts(tmp_path: Path) -> None:
    sources = tmp_path / "sources"
    (sources / "one").mkdir(parents=True)
    (sources / "two").mkdir()
    (sources / "one" / "eagle.gguf").write_bytes(gguf(llama("eagle")))
    (sources / "one" / "mmproj-eagle.gguf").write_bytes(gguf(projector()))
    for i in (1, 2):
        split = {"split.no": i - 1, "split.count": 2} if i == 1 else {"split.no": 1, "split.count": 2}
        (sources / "two" / f"hawk-0000{i}-of-00002.gguf").write_bytes(gguf(llama("hawk", **split)))
    path = tmp_path / "several.pyz"
    models = [sources / "one" / "eagle.gguf", sources / "one" / "mmproj-eagle.gguf"]
    assert write(path, *models, sources / "two" / "hawk-00002-of-00002.gguf").returncode == 0
    listed = json.loads(run(path, tmp_path / "cache", "ls", "--json").stdout)
    assert {each["modelKey"]: each.get("vision", False) for each in listed} == {"eagle": True, "hawk": False}


@pytest.mark.parametrize(("content", "why"), [(None, "no such file"), (b"no model", "is no GGUF file")])
def test_what_is_no_model_does_not_go_with_it(content: bytes | None, why: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "a.gguf").write_bytes(content)
    done = write(tmp_path / "lmlite.pyz", tmp_path / "a.gguf")
    assert done.returncode == 1 and why in done.stderr
    assert not list(tmp_path.glob("lmlite.pyz*"))
