"""Tools of the type `mcp` in a Responses request: servers whose tools are called here, not by the client.

One without a URL is of this server's own list, as LM Studio has it. Calls wait for approval where the request says so, in
OpenAI's words, and are made at once where it does not, as LM Studio does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from ...errors import InvalidRequest, UnsupportedField
from ...tool_servers import PLUGIN_PREFIX, ToolServer, check_headers
from ..read.fields import Fields, as_name, as_object, as_string, clip

URL_MAX: Final = 4096


def parse_server(fields: Fields) -> ToolServer:
    label = as_name(fields.require("server_label"), fields.where("server_label"))
    for name in ("connector_id", "tunnel_id"):
        if fields.get(name) is not None:
            raise UnsupportedField(fields.where(name))
    allowed = _allowed(fields)
    url = fields.string("server_url")
    asks, otherwise = _approval(fields)
    if url is None:
        label = label.removeprefix(PLUGIN_PREFIX)
        return ToolServer("plugin", label, allowed=allowed, param="tools", asks=asks, otherwise=otherwise)
    if not url.lower().startswith(("http://", "https://")) or len(url) > URL_MAX:
        where = fields.where("server_url")
        raise InvalidRequest(f"'{where}' must be a URL of http or https", where)
    return ToolServer("ephemeral", label, url, _headers(fields), allowed, "tools", asks, otherwise)


def distinct(servers: Sequence[ToolServer]) -> tuple[ToolServer, ...]:
    seen: set[str] = set()
    for server in servers:
        if server.label in seen:
            raise InvalidRequest(f"two tools have the 'server_label' '{clip(server.label)}'", "tools")
        seen.add(server.label)
    return tuple(servers)


def _approval(fields: Fields) -> tuple[bool, frozenset[str]]:
    """Whether calls wait for approval, and the tools for which it is the other way. Of tools that neither list has, those wait
    whose request says which do not. Where nothing is said none does, as in LM Studio: the operator lets servers be called."""
    given, where = fields.get("require_approval"), fields.where("require_approval")
    if given is None:
        return False, frozenset()
    if not isinstance(given, Mapping):
        return fields.choice("require_approval", ("always", "never")) == "always", frozenset()
    always, never = (_filtered(Fields(given, where), word) for word in ("always", "never"))
    if always is None and never is None:
        return False, frozenset()
    if never is None:
        assert always is not None
        return False, always
    if shared := never & (always or frozenset()):
        raise InvalidRequest(f"'{where}' has '{clip(min(shared))}' in both lists", where)
    return True, never


def _filtered(fields: Fields, word: str) -> frozenset[str] | None:
    found = fields.object(word)
    return None if found is None else _names(found.values, fields.where(word))


def _allowed(fields: Fields) -> frozenset[str] | None:
    given = fields.get("allowed_tools")
    where = fields.where("allowed_tools")
    if isinstance(given, Mapping):
        return _names(given, where)
    names = fields.array("allowed_tools")
    return None if names is None else frozenset(as_string(name, where) for name in names)


def _names(given: Mapping[str, Any], where: str) -> frozenset[str] | None:
    """Of a filter; None for one that says nothing."""
    if given.get("read_only") is not None:
        raise UnsupportedField(f"{where}.read_only")
    names = Fields(given, where).array("tool_names")
    return None if names is None else frozenset(as_string(name, f"{where}.tool_names") for name in names)


def _headers(fields: Fields) -> tuple[tuple[str, str], ...]:
    given = fields.get("headers")
    where = fields.where("headers")
    headers = {} if given is None else {name: as_string(value, where) for name, value in as_object(given, where).items()}
    if (secret := fields.string("authorization")) is not None:
        headers["Authorization"] = f"Bearer {secret}"
    if problem := check_headers(headers.items()):
        raise InvalidRequest(f"'{where}': {problem}", where)
    return tuple(headers.items())
