"""`integrations` of the native chat: the servers of tools that a request wants (LM Studio docs: MCP via API)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from ...errors import InvalidRequest, InvalidType
from ...tool_servers import PLUGIN_PREFIX, ToolServer, check_headers, plugin_id
from ..read.fields import Fields, as_name, as_object, as_string, clip
from .load import strict

PLUGIN_KEYS: Final = frozenset(("type", "id", "allowed_tools"))
EPHEMERAL_KEYS: Final = frozenset(("type", "server_label", "server_url", "allowed_tools", "headers"))
SERVERS_MAX: Final = 32
URL_MAX: Final = 4096


def parse_integrations(given: Sequence[Any]) -> tuple[ToolServer, ...]:
    if len(given) > SERVERS_MAX:
        raise InvalidRequest(f"'integrations' must have at most {SERVERS_MAX} items", "integrations")
    servers: dict[tuple[str, str], ToolServer] = {}
    for i, value in enumerate(given):
        server = _parse(value, f"integrations[{i}]")
        if servers.setdefault((server.kind, server.label), server) is not server:
            raise InvalidRequest(f"'integrations[{i}]' repeats '{clip(server.label)}'", f"integrations[{i}]")
    return tuple(servers.values())


def _parse(value: object, where: str) -> ToolServer:
    if isinstance(value, str):
        return _plugin(as_name(value, where), None, where)
    if not isinstance(value, dict):
        raise InvalidType(where, "a string or an object")
    match Fields(value, where).require_string("type"):
        case "plugin":
            fields = strict(value, PLUGIN_KEYS, where)
            return _plugin(as_name(fields.require("id"), fields.where("id")), _allowed(fields), where)
        case "ephemeral_mcp":
            return _ephemeral(strict(value, EPHEMERAL_KEYS, where), where)
    raise InvalidRequest(f"'{where}.type' must be 'plugin' or 'ephemeral_mcp'", f"{where}.type")


def _plugin(id: str, allowed: frozenset[str] | None, where: str) -> ToolServer:
    label = id.removeprefix(PLUGIN_PREFIX)
    if not label:
        raise InvalidRequest(f"'{where}' names no plugin", where)
    return ToolServer("plugin", label, allowed=allowed, param=where)


def _ephemeral(fields: Fields, where: str) -> ToolServer:
    label = as_name(fields.require("server_label"), fields.where("server_label"))
    url = as_string(fields.require("server_url"), fields.where("server_url"))
    if not label:
        raise InvalidRequest(f"'{where}.server_label' must not be empty", f"{where}.server_label")
    if not url.lower().startswith(("http://", "https://")) or len(url) > URL_MAX:
        raise InvalidRequest(f"'{where}.server_url' must be a URL of http or https", f"{where}.server_url")
    return ToolServer("ephemeral", label, url, _headers(fields), _allowed(fields), where)


def _headers(fields: Fields) -> tuple[tuple[str, str], ...]:
    given = fields.get("headers")
    if given is None:
        return ()
    where = fields.where("headers")
    headers = tuple((name, as_string(value, f"{where}.{clip(name)}")) for name, value in as_object(given, where).items())
    if problem := check_headers(headers):
        raise InvalidRequest(f"'{where}': {problem}", where)
    return headers


def _allowed(fields: Fields) -> frozenset[str] | None:
    names = fields.array("allowed_tools")
    if names is None:
        return None
    where = fields.where("allowed_tools")
    return frozenset(as_string(name, f"{where}[{i}]") for i, name in enumerate(names))


def provider_info(server: ToolServer) -> dict[str, Any]:
    if server.kind == "plugin":
        return {"type": "plugin", "plugin_id": plugin_id(server.label)}
    return {"type": "ephemeral_mcp", "server_label": server.label}
