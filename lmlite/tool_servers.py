"""Servers of tools as requests name them, and the tools that they have: plain data, of no protocol."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import field
from typing import Any, Final, Literal

from .records import dataclass

PLUGIN_PREFIX: Final = "mcp/"
_SEPARATORS: Final = re.compile(r"[^a-z0-9]+")


def kebab(label: str) -> str:
    """As LM Studio spells names: small letters, and `-` for all that is neither letter nor digit."""
    return _SEPARATORS.sub("-", label.lower()).strip("-") or label


def plugin_id(label: str) -> str:
    return PLUGIN_PREFIX + kebab(label)


@dataclass(slots=True, frozen=True)
class ToolServer:
    """A "plugin" is the server `label` of this server's own list; one that is "ephemeral" is the request's own, at `url`, and
    is told `headers`. With `allowed` the model may call only these of its tools. Calls wait for approval if `asks` says so,
    and those of `otherwise` if it does not. `param` is where the request names it."""

    kind: Literal["plugin", "ephemeral"]
    label: str
    url: str = ""
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    allowed: frozenset[str] | None = None
    param: str | None = None
    asks: bool = False
    otherwise: frozenset[str] = frozenset()


@dataclass(slots=True, frozen=True)
class ServerTool:
    """A tool of `server`, which calls it `name`; the model calls it `called`, which no other tool of its turn is."""

    called: str
    name: str
    server: ToolServer
    description: str
    schema: Mapping[str, Any]

    @property
    def needs_approval(self) -> bool:
        return self.server.asks != (self.name in self.server.otherwise)

    def spell(self) -> Mapping[str, Any]:
        """As `request.Chat` has tools."""
        function: dict[str, Any] = {"name": self.called}
        if self.description:
            function["description"] = self.description
        return {"type": "function", "function": {**function, "parameters": self.schema}}


# ---- headers that a server is told -----------------------------------------------------------------------------------

HEADERS_MAX: Final = 64
VALUE_MAX: Final = 8 << 10
REFUSED: Final = frozenset(
    ("host", "connection", "transfer-encoding", "te", "trailer", "upgrade", "keep-alive", "expect", "accept",
     "accept-encoding", "proxy-authorization", "proxy-connection", "mcp-session-id", "mcp-protocol-version", "mcp-method",
     "mcp-name")
)  # fmt: skip
"""What the connection and the protocol say themselves; so is all that begins with `content-`."""
_NAME: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}")


def check_headers(headers: Iterable[tuple[str, str]]) -> str:
    """What is wrong with the first one that cannot be sent, "" if none is. Values are not told."""
    for i, (name, value) in enumerate(headers):
        if i >= HEADERS_MAX:
            return f"number {i + 1} is one too many"
        if not _NAME.fullmatch(name):
            return f"{ascii(name)[:80]} is no name of a header"
        if name.lower() in REFUSED or name.lower().startswith("content-"):
            return f"'{name}' cannot be set"
        if len(value) > VALUE_MAX or not value.isascii() or any(c < " " and c != "\t" or c == "\x7f" for c in value):
            return f"'{name}' has a value that no header can have"
    return ""
