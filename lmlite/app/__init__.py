"""The application: the only place that joins HTTP, dialects and models. `App` is all that a server needs of it.

Importing the package does nothing: a command that only looks at the disk takes no endpoints along.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .application import App
    from .models import open_pool

__all__ = ["App", "open_pool"]

_HOMES = {"App": ".application", "open_pool": ".models"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name], __name__), name)
