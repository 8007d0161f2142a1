"""`mcp.json`: the servers of tools that whoever runs this server gives to models, in LM Studio's and Cursor's notation.

    {"mcpServers": {"files": {"command": "npx", "args": ["-y", "..."], "env": {"KEY": "${env:KEY}"}},
                    "hub": {"url": "https://...", "headers": {"Authorization": "Bearer ${env:TOKEN}"}}}}

It is read again when it is another file than it was. LM Studio's own counts too, below that of this server's home.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import field
from pathlib import Path
from typing import Any, Final

from ..records import dataclass
from ..tool_servers import PLUGIN_PREFIX, check_headers, kebab, plugin_id

FILE_NAME: Final = "mcp.json"
LM_STUDIO: Final = (Path(".lmstudio") / FILE_NAME, Path(".cache") / "lm-studio" / FILE_NAME)
"""In the user's home folder."""
BYTES_MAX: Final = 1 << 20
_VARIABLE: Final = re.compile(r"\$\{env:([A-Za-z_][A-Za-z0-9_]*)\}")


@dataclass(slots=True, frozen=True)
class Entry:
    """One server of the file: with a `command` a program of this machine, else at a `url`. `problem` says why it can be
    neither."""

    label: str
    command: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    cwd: str | None = None
    url: str = ""
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    problem: str = ""

    @property
    def plugin_id(self) -> str:
        return plugin_id(self.label)


class ServerFile:
    """All servers, by what the files say now."""

    def __init__(self, home: Path, environ: Mapping[str, str] = os.environ, user_home: Path | None = None):
        self._environ = environ
        lm_studio = [(user_home or Path.home()) / path for path in LM_STUDIO]
        self.paths = (home / FILE_NAME, *lm_studio)
        self._stamps: tuple[object, ...] | None = None
        self._entries: tuple[Entry, ...] = ()

    def entries(self) -> tuple[Entry, ...]:
        """Of two that are called alike the first counts."""
        stamps = tuple(stamp(path) for path in self.paths)
        if stamps != self._stamps:
            found: dict[str, Entry] = {}
            for path in self.paths:
                for entry in read_file(path, self._environ):
                    found.setdefault(kebab(entry.label), entry)
            self._entries, self._stamps = tuple(found.values()), stamps
        return self._entries

    def find(self, id: str) -> Entry | None:
        """By its label, in any case, with or without `mcp/`, or as LM Studio spells it."""
        wanted = kebab(id.removeprefix(PLUGIN_PREFIX))
        return next((entry for entry in self.entries() if kebab(entry.label) == wanted), None)


def stamp(path: Path) -> object:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def read_keys(path: Path) -> dict[str, Any]:
    """The file's object, {} if there is none. Raises ValueError that says what is wrong."""
    try:
        with open(path, "rb") as stream:
            text = stream.read(BYTES_MAX + 1)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    try:
        if len(text) > BYTES_MAX:
            raise ValueError("it is too large")
        found = json.loads(text.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {error}") from None
    if not isinstance(found, dict) or not isinstance(found.get("mcpServers", {}), dict):
        raise ValueError(f'{path} is no object with "mcpServers"')
    return found


def read_file(path: Path, environ: Mapping[str, str]) -> Iterator[Entry]:
    """A file that cannot be read is one entry that says so."""
    try:
        servers = read_keys(path).get("mcpServers", {})
    except ValueError as error:
        yield Entry(str(path), problem=str(error))
        return
    for label, value in servers.items():
        try:
            yield read_entry(label, value, environ)
        except ValueError as error:
            yield Entry(label, problem=str(error))


def read_entry(label: str, value: object, environ: Mapping[str, str]) -> Entry:
    """Raises ValueError that says what is wrong with it."""
    if not isinstance(value, dict):
        raise ValueError("it is no object")
    if isinstance(command := value.get("command"), str) and command:
        arguments = [expand(text, environ) for text in texts_of(value, "args")]
        env = tuple((name, expand(text, environ)) for name, text in pairs_of(value, "env"))
        cwd = value.get("cwd")
        if not (cwd is None or isinstance(cwd, str)):
            raise ValueError("'cwd' must be a string")
        return Entry(label, (expand(command, environ), *arguments), env, expand(cwd, environ) if cwd else None)
    if isinstance(url := value.get("url"), str) and url:
        headers = tuple((name, expand(text, environ)) for name, text in pairs_of(value, "headers"))
        if problem := check_headers(headers):
            raise ValueError(f"header {problem}")
        return Entry(label, url=expand(url, environ), headers=headers)
    raise ValueError("it has neither 'command' nor 'url'")


def texts_of(value: Mapping[str, Any], name: str) -> Iterable[str]:
    found = value.get(name) or []
    if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
        raise ValueError(f"'{name}' must be an array of strings")
    return found


def pairs_of(value: Mapping[str, Any], name: str) -> Iterable[tuple[str, str]]:
    found = value.get(name) or {}
    if not isinstance(found, dict) or not all(isinstance(item, str) for item in found.values()):
        raise ValueError(f"'{name}' must be an object of strings")
    return found.items()


def expand(text: str, environ: Mapping[str, str]) -> str:
    """Raises ValueError for a variable that is not set."""

    def look_up(found: re.Match[str]) -> str:
        if found[1] not in environ:
            raise ValueError(f"the environment has no {found[1]}")
        return environ[found[1]]

    return _VARIABLE.sub(look_up, text)
