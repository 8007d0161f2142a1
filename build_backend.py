"""The build backend: setuptools' own, with `pip install -C cuda=1 .` turned into the variables that setup.py reads.

Every switch is known by one name: the setting `cuda` and the variable LMLITE_CUDA mean the same, and the setting wins.
An unknown setting is refused, because a misspelt `cdua=1` would otherwise build for the CPU and say nothing.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping
from typing import Any

from setuptools import build_meta
from setuptools.build_meta import (  # the hooks that build nothing
    get_requires_for_build_editable,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

SWITCHES = ("cuda", "metal", "vulkan", "portable")
VARIABLES = {
    **{name: f"LMLITE_{name.upper()}" for name in SWITCHES},
    "target": "LMLITE_TARGET",
    "cmake-args": "CMAKE_ARGS",
    "llama-cpp": "LMLITE_LLAMA_CPP",
}
CROSS_COMPILER = "ziglang"
"""Zig, which compiles C++ for other architectures and older C libraries, in a package of PyPI's."""
SETUPTOOLS_OWN = ("--", "editable_mode", "editable-mode")
"""How settings begin that setuptools or the front end understands by itself."""

Settings = Mapping[str, Any] | None


def apply_settings(settings: Settings, environ: MutableMapping[str, str]) -> None:
    """Writes each setting into its variable; one that is given several times is joined with spaces."""
    for key, value in (settings or {}).items():
        if key.startswith(SETUPTOOLS_OWN):
            continue
        name = key.lower().replace("_", "-").removeprefix("lmlite-")
        if name not in VARIABLES:
            raise SystemExit(f"lmlite: there is no build setting '{key}'. Known: {', '.join(VARIABLES)}.")
        environ[VARIABLES[name]] = value if isinstance(value, str) else " ".join(value)


def get_requires_for_build_wheel(settings: Settings = None) -> list[str]:
    """What pyproject.toml names, and the cross compiler if one is asked for."""
    apply_settings(settings, os.environ)
    return build_meta.get_requires_for_build_wheel(settings) + [CROSS_COMPILER] * bool(os.environ.get(VARIABLES["target"]))


def build_wheel(directory: str, settings: Settings = None, metadata_directory: str | None = None) -> str:
    apply_settings(settings, os.environ)
    return build_meta.build_wheel(directory, settings, metadata_directory)


def build_editable(directory: str, settings: Settings = None, metadata_directory: str | None = None) -> str:
    apply_settings(settings, os.environ)
    return build_meta.build_editable(directory, settings, metadata_directory)


def build_sdist(directory: str, settings: Settings = None) -> str:
    apply_settings(settings, os.environ)
    return build_meta.build_sdist(directory, settings)
