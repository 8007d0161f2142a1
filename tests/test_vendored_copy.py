"""A copy of the package inside another program, under another name, beside the original: `hostapp._vendor.lmlite`."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import lmlite
from lmlite.cli import main

TWO_VERSIONS = """
import json, sys, urllib.request
from bundled import one, two

with one.Server(port=0, home=sys.argv[1]) as first, two.Server(port=0, home=sys.argv[2]) as second:
    served = [json.load(urllib.request.urlopen(server.url + "/health"))["status"] for server in (first, second)]
models = [each.load(each.package.bundled_model()) for each in (one, two)]
texts = {model.complete("Hello", max_tokens=5, temperature=0.0) for model in models}
for model in models:
    model.close()
print(json.dumps([one.__version__, two.__version__, *served, len(texts)]))
"""

PROGRAM = """
import json, sys, urllib.request
from hostapp._vendor import lmlite as copy
import lmlite as original
from hostapp._vendor.lmlite.package import bundled_model

def complete(url):
    body = json.dumps({"model": "lmlite-tiny", "prompt": "Hello", "max_tokens": 5, "temperature": 0}).encode()
    request = urllib.request.Request(url + "/v1/completions", body, {"Content-Type": "application/json"})
    return json.load(urllib.request.urlopen(request))["choices"][0]["text"]

with copy.Server(port=0, home=sys.argv[1]) as vendored, original.Server(port=0, home=sys.argv[1]) as beside:
    assert type(vendored) is not type(beside)
    texts = {complete(vendored.url), complete(beside.url)}
with copy.load(bundled_model()) as model:
    texts.add(model.complete("Hello", max_tokens=5, temperature=0.0))
assert len(texts) == 1 and texts != {""}, texts
strays = [name for name in sys.modules if name.startswith("hostapp._vendor.lmlite")]
assert "hostapp._vendor.lmlite.core.engine.native" in strays
print("served", bundled_model())
"""


def test_a_vendored_copy_works_beside_the_original(tmp_path: Path) -> None:
    package = Path(lmlite.__file__).parent
    vendor = tmp_path / "hostapp" / "_vendor"
    shutil.copytree(package, vendor / "lmlite", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "hostapp" / "__init__.py").touch()
    (vendor / "__init__.py").touch()
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM, str(tmp_path / "home")],
        cwd=tmp_path,
        env={"PYTHONPATH": f"{tmp_path}:{package.parent}", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"served {vendor / 'lmlite' / 'models' / 'lmlite-tiny.gguf'}\n"


def test_the_copy_never_reaches_for_the_original(tmp_path: Path) -> None:
    """Without the original on the path the copy's command works too."""
    package = Path(lmlite.__file__).parent
    shutil.copytree(package, tmp_path / "renamed", ignore=shutil.ignore_patterns("__pycache__"))
    code = "import sys; sys.modules['lmlite'] = None; from renamed.cli import main; sys.exit(main(['--version']))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("lmlite ")


def test_two_versions_work_in_one_process(tmp_path: Path) -> None:
    for name, version in (("one", "1.0"), ("two", "2.0")):
        assert vendor(tmp_path / "bundled", "--name", name) == 0
        init = tmp_path / "bundled" / name / "__init__.py"
        init.write_text(init.read_text().replace(lmlite.__version__, version))
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", TWO_VERSIONS, str(tmp_path / "a"), str(tmp_path / "b")],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == ["1.0", "2.0", "ok", "ok", 1]


def vendor(folder: Path, *options: str) -> int:
    return main(["vendor", str(folder), *options])


def test_a_copy_is_put_in_the_place_of_another_only_if_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert vendor(tmp_path, "--name", "ours") == 0
    (tmp_path / "ours" / "stray.py").touch()
    assert vendor(tmp_path, "--name", "ours") == 1
    assert "--replace" in capsys.readouterr().err
    assert vendor(tmp_path, "--name", "ours", "--replace") == 0
    assert not (tmp_path / "ours" / "stray.py").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["ours"]


def test_what_is_no_copy_is_never_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "lmlite").mkdir()
    (tmp_path / "lmlite" / "precious").touch()
    assert vendor(tmp_path, "--replace") == 1
    assert "is no copy of lmlite" in capsys.readouterr().err
    assert (tmp_path / "lmlite" / "precious").exists()


@pytest.mark.parametrize("name", ["a-b", "1st", "class", "a.b", "../up", ""])
def test_a_name_that_no_package_can_have_is_refused(name: str, tmp_path: Path) -> None:
    assert vendor(tmp_path, "--name", name) == 2
    assert not list(tmp_path.iterdir())
