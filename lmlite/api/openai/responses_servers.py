"""Tools of the type `mcp` in a Responses request: servers whose tools are called here, not by the client.

One without a URL is of this server's own list. Nobody is asked for leave: `require_approval` may be "never", and absent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from ...errors import InvalidRequest, UnsupportedField
from ...tool_servers import PLUGIN_PREFIX, ToolServer, check_headers
from ..read.fields import Fields, as_name, as_object, as_string, clip

URL_MAX: Final = 4096


def parse_server(fields: Fields) -> ToolServer:
    label = as_name(fields.require("server_label"), fields.where("server_label"))
    for name in ("connector_id", "tunnel_id"):
        if fields.get(name) is not None:
            raise UnsupportedField(fields.where(name))
    _refuse_approval(fields)
    allowed = _allowed(fields)
    url = fields.string("server_url")
    if url is None:
        return ToolServer("plugin", label.removeprefix(PLUGIN_PREFIX), allowed=allowed, param="tools")
    if not url.lower().startswith(("http://", "https://")) or len(url) > URL_MAX:
        where = fields.where("server_url")
        raise InvalidRequest(f"'{where}' must be a URL of http or https", where)
    return ToolServer("ephemeral", label, url, _headers(fields), allowed, "tools")


def distinct(servers: Sequence[ToolServer]) -> tuple[ToolServer, ...]:
    seen: set[str] = set()
    for server in servers:
        if server.label in seen:
            raise InvalidRequest(f"two tools have the 'server_label' '{clip(server.label)}'", "tools")
        seen.add(server.label)
    return tuple(servers)


def _refuse_approval(fields: Fields) -> None:
    given = fields.get("require_approval")
    if given is None or given == "never" or (isinstance(given, Mapping) and not given.get("always")):
        return
    raise UnsupportedField(fields.where("require_approval"), "can only be 'never': nobody is asked")


def _allowed(fields: Fields) -> frozenset[str] | None:
    given = fields.get("allowed_tools")
    where = fields.where("allowed_tools")
    if isinstance(given, Mapping):
        if given.get("read_only") is not None:
            raise UnsupportedField(f"{where}.read_only")
        names = Fields(given, where).array("tool_names")
    else:
        names = fields.array("allowed_tools")
    return None if names is None else frozenset(as_string(name, where) for name in names)


def _headers(fields: Fields) -> tuple[tuple[str, str], ...]:
    given = fields.get("headers")
    where = fields.where("headers")
    headers = {} if given is None else {name: as_string(value, where) for name, value in as_object(given, where).items()}
    if (secret := fields.string("authorization")) is not None:
        headers["Authorization"] = f"Bearer {secret}"
    if problem := check_headers(headers.items()):
        raise InvalidRequest(f"'{where}': {problem}", where)
    return tuple(headers.items())
