"""Where the package keeps what is no Python: the native library, the engine's program, the bundled model."""

from __future__ import annotations

from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parent

BUNDLED_PUBLISHER: Final = "lmlite"
"""Of the models that the package brings along."""


def native_file(name: str) -> Path:
    """The library or program `name`, which the build puts there."""
    return ROOT / "lib" / name


def bundled_model() -> Path:
    """The model that the package brings along."""
    return ROOT / "models" / "lmlite-tiny.gguf"


def bundled_vision_model() -> Path:
    """The one of its models that sees. Its projector lies beside it."""
    return ROOT / "models" / "lmlite-tiny-vision" / "lmlite-tiny-vision.gguf"
