"""A copy of the package inside another program, under another name, beside the original: `hostapp._vendor.lmlite`."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import lmlite

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
