"""`lmlite mcp`: the servers of tools in mcp.json, listed, tried, added and removed, whether lmlite runs or not."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..config import home_folder
from ..errors import ConfigError
from ..mcp.file import FILE_NAME, Entry, ServerFile, read_entry, read_keys
from .terminal import escaped, put, put_json, say


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    help = "list, try, add or remove MCP servers, whose tools models can call"
    parser = commands.add_parser("mcp", help=help, description=f"{help[0].upper()}{help[1:]}.", allow_abbrev=False)
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    listing = actions.add_parser("ls", help="list them", allow_abbrev=False)
    test = actions.add_parser("test", help="connect to one, and list its tools", allow_abbrev=False)
    test.add_argument("name", metavar="NAME", help="what it is called in mcp.json")
    adding = actions.add_parser("add", help="add a program, or a server on the web", allow_abbrev=False)
    adding.add_argument("name", metavar="NAME", help="what it shall be called")
    adding.add_argument("--url", metavar="URL", help="where it is, if on the web")
    adding.add_argument("--header", metavar="'NAME: VALUE'", action="append", default=[], help="what it is told with all that")
    adding.add_argument("--env", metavar="NAME=VALUE", action="append", default=[], help="what the program sees besides")
    adding.add_argument("program", metavar="COMMAND", nargs="*", help="the program and its arguments, after --")
    removing = actions.add_parser("remove", help="remove one", allow_abbrev=False)
    removing.add_argument("name", metavar="NAME", help="what it is called in mcp.json")
    for action, run in ((listing, show), (test, connect), (adding, put_in), (removing, take_out)):
        action.add_argument("--home", metavar="DIR", help="another home folder than LMLITE_HOME")
        action.add_argument("--json", action="store_true", help="print JSON")
        action.add_argument("--quiet", action="store_true", help="no messages but errors")
        action.set_defaults(run=run)


def home(arguments: argparse.Namespace, environ: Mapping[str, str]) -> Path:
    return home_folder({} if arguments.home is None else {"home": arguments.home}, environ)


def show(arguments: argparse.Namespace, environ: Mapping[str, str]) -> int:
    entries = ServerFile(home(arguments, environ), environ).entries()
    if arguments.json:
        put_json([as_json(entry) for entry in entries])
        return 0
    if not entries:
        say(arguments, "There are no servers. To add one: lmlite mcp add NAME -- COMMAND, or --url URL")
    for entry in entries:
        what = entry.problem or entry.url.partition("?")[0] or " ".join(entry.command)
        put(f"{escaped(entry.plugin_id)}  {escaped(what)}")
    return 0


def connect(arguments: argparse.Namespace, environ: Mapping[str, str]) -> int:
    from ..mcp.message import Fault

    file = ServerFile(home(arguments, environ), environ)
    entry = file.find(arguments.name)
    if entry is None:
        raise ConfigError(f"there is no server {arguments.name!r} in {file.paths[0]}")
    try:
        version, tools = asyncio.run(look(entry))
    except Fault as fault:
        raise ConfigError(f"{entry.label}: {fault}") from None
    if arguments.json:
        put_json({"protocol": version, "tools": [{"name": name, "description": text} for name, text in tools]})
        return 0
    say(arguments, f"{escaped(entry.plugin_id)} speaks MCP {version} and has {len(tools)} tools.")
    for name, text in tools:
        put(f"{escaped(name)}  {escaped(text.partition(chr(10))[0])}".rstrip())
    return 0


async def look(entry: Entry) -> tuple[str, list[tuple[str, str]]]:
    from ..mcp.connections import Connections

    session = await Connections().open(entry)
    try:
        return session.version, [(tool.name, tool.description) for tool in await session.tools()]
    finally:
        await session.close()


def put_in(arguments: argparse.Namespace, environ: Mapping[str, str]) -> int:
    if bool(arguments.url) == bool(arguments.program):
        raise ConfigError("add: name a program after --, or a --url")
    value: dict[str, Any]
    if arguments.url:
        value = {"url": arguments.url}
        if arguments.header:
            value["headers"] = dict(pair(text, ":") for text in arguments.header)
    else:
        value = {"command": arguments.program[0], "args": arguments.program[1:]}
        if arguments.env:
            value["env"] = dict(pair(text, "=") for text in arguments.env)
    try:
        read_entry(arguments.name, value, Anything())
    except ValueError as error:
        raise ConfigError(f"{arguments.name}: {error}") from None
    path = home(arguments, environ) / FILE_NAME
    keys = read(path)
    if arguments.name in keys.setdefault("mcpServers", {}):
        raise ConfigError(f"there is a server {arguments.name!r} already; remove it first")
    keys["mcpServers"][arguments.name] = value
    write(path, keys)
    say(arguments, f"Added {escaped(arguments.name)}. To try it: lmlite mcp test; for requests: lmlite serve --auth --mcp")
    return 0


class Anything(dict[str, str]):
    """An environment in which every variable is set: whose it will be is not known yet."""

    def __contains__(self, name: object) -> bool:
        return True

    def __missing__(self, name: str) -> str:
        return "x"


def take_out(arguments: argparse.Namespace, environ: Mapping[str, str]) -> int:
    path = home(arguments, environ) / FILE_NAME
    keys = read(path)
    if keys.get("mcpServers", {}).pop(arguments.name, None) is None:
        raise ConfigError(f"there is no server {arguments.name!r} in {path}")
    write(path, keys)
    say(arguments, f"Removed {escaped(arguments.name)}.")
    return 0


def pair(text: str, separator: str) -> tuple[str, str]:
    name, found, value = text.partition(separator)
    if not found or not name.strip():
        raise ConfigError(f"{name[:80]!r} has no {separator!r} after its name")
    return name.strip(), value.strip() if separator == ":" else value


def read(path: Path) -> dict[str, Any]:
    try:
        return read_keys(path)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def write(path: Path, keys: dict[str, Any]) -> None:
    """For this user alone, and whole or not at all: it may hold keys."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{FILE_NAME}.")
    try:
        with open(descriptor, "w", encoding="utf-8") as stream:
            json.dump(keys, stream, ensure_ascii=False, indent=2)
            stream.write("\n")
        os.replace(name, os.path.realpath(path))
    except BaseException:
        os.unlink(name)
        raise


def as_json(entry: Entry) -> dict[str, Any]:
    """Without what may be secret."""
    told: dict[str, Any] = {"id": entry.plugin_id, "label": entry.label}
    if entry.problem:
        return {**told, "problem": entry.problem}
    return {**told, **({"url": entry.url.partition("?")[0]} if entry.url else {"command": list(entry.command)})}
