"""The build backend: setuptools' own, with `pip install -C cuda=1 .` turned into the variables that setup.py reads.

Every switch is known by one name: the setting `cuda` and the variable LMLITE_CUDA mean the same, and the setting wins.
An unknown setting is refused, because a misspelt `cdua=1` would otherwise build for the CPU and say nothing.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping
from typing import Any

SWITCHES = ("cuda", "metal", "vulkan", "portable")
VARIABLES = {
    **{name: f"LMLITE_{name.upper()}" for name in SWITCHES},
    "cmake-args": "CMAKE_ARGS",
    "llama-cpp": "LMLITE_LLAMA_CPP",
}
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


def _setuptools(settings: Settings) -> Any:
    apply_settings(settings, os.environ)
    from setuptools import build_meta

    return build_meta


def build_wheel(wheel_directory: str, config_settings: Settings = None, metadata_directory: str | None = None) -> str:
    return _setuptools(config_settings).build_wheel(wheel_directory, config_settings, metadata_directory)


def build_editable(
    wheel_directory: str, config_settings: Settings = None, metadata_directory: str | None = None
) -> str:
    return _setuptools(config_settings).build_editable(wheel_directory, config_settings, metadata_directory)


def build_sdist(sdist_directory: str, config_settings: Settings = None) -> str:
    return _setuptools(config_settings).build_sdist(sdist_directory, config_settings)


def get_requires_for_build_wheel(config_settings: Settings = None) -> list[str]:
    return _setuptools(config_settings).get_requires_for_build_wheel(config_settings)


def get_requires_for_build_editable(config_settings: Settings = None) -> list[str]:
    return _setuptools(config_settings).get_requires_for_build_editable(config_settings)


def get_requires_for_build_sdist(config_settings: Settings = None) -> list[str]:
    return _setuptools(config_settings).get_requires_for_build_sdist(config_settings)


def prepare_metadata_for_build_wheel(metadata_directory: str, config_settings: Settings = None) -> str:
    return _setuptools(config_settings).prepare_metadata_for_build_wheel(metadata_directory, config_settings)


def prepare_metadata_for_build_editable(metadata_directory: str, config_settings: Settings = None) -> str:
    return _setuptools(config_settings).prepare_metadata_for_build_editable(metadata_directory, config_settings)
