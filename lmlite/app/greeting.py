"""What a server says at its front door, in words for people: which APIs it speaks, and where."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from ..wire.connection import Request, Response
from ..wire.router import Route
from .state import State

SPEAKERS: Final = (
    ("/v1/messages", "Anthropic's API"),
    ("/v1", "OpenAI's API"),
    ("/api/v0", "LM Studio's REST API v0"),
    ("/api/v1", "LM Studio's native API v1"),
    ("", "More"),
)
"""Whose paths begin how: the first that fits."""


def show(app: State, request: Request, response: Response, _: str) -> None:
    response.whole(200, app.page, content_type="text/plain; charset=utf-8")


def page(routes: Iterable[Route[Any]]) -> bytes:
    """Every endpoint, under the name of the API that it belongs to."""
    spoken: dict[str, list[str]] = {name: [] for _, name in SPEAKERS}
    for route in routes:
        name = next(name for prefix, name in SPEAKERS if route.pattern.startswith(prefix))
        spoken[name].append(f"  {route.method:<6} {route.pattern}")
    parts = ["lmlite: local models for whatever speaks LM Studio's, OpenAI's or Anthropic's API."]
    parts += ["\n".join((name, *lines)) for name, lines in spoken.items() if lines]
    return ("\n\n".join(parts) + "\n").encode()
