"""A server of tools by the official Python package, of whichever generation is there: `package_server.py stdio|PORT`."""

import importlib
import sys
from typing import Any

try:
    made: Any = importlib.import_module("mcp.server.mcpserver").MCPServer("demo")
    settings = {"port": int(sys.argv[1])} if sys.argv[1] != "stdio" else {}
except ModuleNotFoundError:  # the first generation, which is told its port at once
    port = {"port": int(sys.argv[1])} if sys.argv[1] != "stdio" else {}
    made = importlib.import_module("mcp.server.fastmcp").FastMCP("demo", **port)
    settings = {}


def add(a: int, b: int) -> int:
    """Add two numbers"""
    return a + b


def fail() -> str:
    """Fails"""
    raise ValueError("it went wrong")


made.tool()(add)
made.tool()(fail)
made.run("stdio" if sys.argv[1] == "stdio" else "streamable-http", **settings)
