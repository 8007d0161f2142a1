"""Servers of tools for the requests that may use them; one that nobody uses costs nothing, the code for them included."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..config import Config
from ..errors import HttpError
from ..principal import Principal
from ..tool_servers import ToolServer

if TYPE_CHECKING:
    from ..rounds.tools import Limits, ToolServers


class Tools:
    """Lives in one event loop."""

    def __init__(self, config: Config):
        self._config = config
        self._servers: ToolServers | None = None

    def _permit(self, caller: Principal, servers: Sequence[ToolServer]) -> None:
        for server in servers:
            if server.kind == "plugin" and not self._config.mcp:
                raise HttpError(403, f"Permission denied to use local MCP server '{server.label[:80]}': see --mcp.")
            if server.kind == "ephemeral" and not self._config.mcp_ephemeral:
                raise HttpError(
                    403, f"Permission denied to use remote MCP server '{server.label[:80]}': see --mcp-ephemeral."
                )
        if servers and "mcp" not in caller.rights:
            raise HttpError(403, "The API token does not have the right 'mcp'.")

    def servers(self, caller: Principal, servers: Sequence[ToolServer]) -> tuple[ToolServers, Limits]:
        """What opens them, and the limits of their use. Raises `HttpError` 403."""
        self._permit(caller, servers)
        from ..mcp.connections import Connections
        from ..mcp.file import ServerFile
        from ..rounds.tools import Limits, ToolServers

        config = self._config
        if self._servers is None:
            self._servers = ToolServers(ServerFile(config.home), Connections(allow_private=config.mcp_private))
        limits = Limits(config.mcp_rounds, config.mcp_parallel, config.mcp_call_timeout, config.mcp_timeout)
        return self._servers, limits

    async def close(self) -> None:
        if self._servers is not None:
            await self._servers.close()
