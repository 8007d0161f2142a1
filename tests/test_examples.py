"""The programs in examples/ do what they say."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lmlite.core.engine.native import library_path
from lmlite.package import bundled_model
from tests.conftest import INSTALLED, ROOT, TIMEOUT_S


def test_a_program_in_c_has_the_engine_inside(tmp_path: Path) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    library = library_path()
    program = tmp_path / "embed"
    source = [str(ROOT / "examples" / "embed.c"), f"-I{ROOT / 'csrc'}", "-Wall", "-Wextra", "-Werror"]
    command = [compiler, *source, str(library), f"-Wl,-rpath,{library.parent}", "-lpthread", "-o", str(program)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    done = subprocess.run(
        [program, bundled_model(), "The sky is"], capture_output=True, text=True, timeout=TIMEOUT_S
    )
    assert done.returncode == 0 and done.stdout.strip(), done.stderr
    done = subprocess.run([program, "/no such.gguf", "Hello"], capture_output=True, text=True, timeout=TIMEOUT_S)
    assert "load_failed" in done.stderr


def test_a_program_in_python_has_a_model_and_a_server_inside(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", str(ROOT / "examples" / "embed.py"), str(bundled_model())],
        env={**os.environ, "PYTHONPATH": str(INSTALLED), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S * 2,
    )
    assert done.returncode == 0, done.stderr
    *answers, models = done.stdout.splitlines()
    assert len(answers) >= 2 and "lmlite-tiny" in models
