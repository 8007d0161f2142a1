"""lmlite: LM Studio's and OpenAI's APIs in front of local GGUF models.

    with lmlite.Server(port=0) as server: ...      # the HTTP server, inside this program
    with lmlite.load("model.gguf") as model: ...   # one model, no HTTP

Importing the package does nothing: each name is fetched when it is first used.
"""

from __future__ import annotations

TYPE_CHECKING = False  # without `typing`, which takes longer than the whole of this
if TYPE_CHECKING:
    from typing import Any

    from .config import Config
    from .embedded import Model, load
    from .errors import LmError
    from .request import Grammar
    from .server import Server

__version__ = "0.1.0"
__all__ = ["Config", "Grammar", "LmError", "Model", "Server", "__version__", "load"]

_HOMES = {
    "Config": ".config",
    "Grammar": ".request",
    "LmError": ".errors",
    "Model": ".embedded",
    "Server": ".server",
    "load": ".embedded",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name], __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
