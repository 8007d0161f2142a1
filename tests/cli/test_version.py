"""`lmlite version`."""

from __future__ import annotations

import json

import pytest

import lmlite
from lmlite.cli import main
from lmlite.core.engine import native
from lmlite.errors import BuildError


def test_version_names_lmlite_and_llama_cpp(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["version"]) == 0
    text = capsys.readouterr().out
    assert main(["version", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["version"] == lmlite.__version__
    assert found["runtime"].startswith("llama.cpp-") and found["runtime"].endswith(found["backend"])
    assert text == f"lmlite {found['version']}\nllama.cpp {found['llama.cpp']} ({found['backend']})\n"


def test_missing_library_is_told_and_is_no_failure(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise BuildError("it is missing")

    monkeypatch.setattr(native, "build_info", refuse)
    assert main(["version"]) == 0
    assert capsys.readouterr().out == f"lmlite {lmlite.__version__}\nllama.cpp: it is missing\n"
    assert main(["version", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"version": lmlite.__version__, "problem": "it is missing"}
