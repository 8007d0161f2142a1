"""Names from users and from the network, and which of them may become paths.

`parse` reads what a user may name: `owner/repo`, `owner/repo@quant`, a repository's URL, or that of one file in it.
`Unsafe` names what a hub must not list. No name that passes leads out of a folder, or into a hidden one.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final
from urllib.parse import unquote, urlsplit

from ..errors import HubError, InvalidRequest
from ..records import dataclass

TEXT_MAX: Final = 2048
"""Characters of what a user may name: a URL of a repository, a folder and a file, percent-encoded."""
COMPONENT_BYTES_MAX: Final = 255
"""What file systems allow."""
FOLDERS_MAX: Final = 1
"""Folders inside a repository: one per quantization. The catalogue looks no deeper."""

HUB: Final = "https://huggingface.co"
HUB_HOSTS: Final = frozenset(("huggingface.co", "www.huggingface.co", "hf.co"))
"""Links to the hub stay good where another endpoint stands in for it."""

OUTSIDE: Final = "is not inside the repository"

_NAME: Final = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?")
_QUANT: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_REVISION: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./-]{0,254}")
_IN_REPO: Final = frozenset(("resolve", "blob", "tree", "raw"))


@dataclass(slots=True, frozen=True)
class Wanted:
    """What is to be fetched; `file` is one file's path in the repository."""

    owner: str
    name: str
    revision: str = "main"
    file: str | None = None
    quantization: str | None = None

    @property
    def repo(self) -> str:
        return f"{self.owner}/{self.name}"


def parse(text: str, quantization: str | None = None, endpoint: str = HUB) -> Wanted:
    """`quantization` is a request's own field. Raises `InvalidRequest`."""
    if len(text) > TEXT_MAX:
        raise InvalidRequest(f"'model' must have at most {TEXT_MAX} characters", "model")
    wanted = _parse_url(text, endpoint) if "://" in text else _parse_id(text)
    if quantization is None:
        return wanted
    if _QUANT.fullmatch(quantization) is None:
        raise InvalidRequest("'quantization' must be a quantization's name, as Q4_K_M", "quantization")
    if wanted.file is not None or (wanted.quantization or quantization).lower() != quantization.lower():
        raise InvalidRequest("'model' names a file or a quantization already", "quantization")
    return Wanted(wanted.owner, wanted.name, wanted.revision, quantization=quantization)


def _parse_id(text: str) -> Wanted:
    repo, at, quant = text.partition("@")
    owner, _, name = repo.partition("/")
    if not (is_name(owner) and is_name(name)) or (at and _QUANT.fullmatch(quant) is None):
        raise InvalidRequest("'model' must be owner/repo, owner/repo@quantization or a URL of the hub", "model")
    return Wanted(owner, name, quantization=quant or None)


def _parse_url(text: str, endpoint: str) -> Wanted:
    refused = InvalidRequest("'model' must be the URL of a repository of the hub, or of one file in it", "model")
    try:
        url, ours = urlsplit(text), urlsplit(endpoint)
        at, here = (url.hostname, url.port), (ours.hostname, ours.port)
        known = at == here or url.hostname in HUB_HOSTS
    except ValueError:
        raise refused from None
    if url.scheme not in ("http", "https") or not known or url.username is not None:
        raise refused
    path = url.path
    if url.hostname not in HUB_HOSTS:
        path = path.removeprefix(ours.path.rstrip("/"))
    parts = [unquote(part) for part in path.strip("/").split("/")]
    owner, name, *rest = (*parts, "")[: len(parts)] if len(parts) > 1 else ("", "")
    name, _, quant = name.partition("@")
    if not (is_name(owner) and is_name(name)) or (quant and _QUANT.fullmatch(quant) is None):
        raise refused
    if not rest:
        return Wanted(owner, name, quantization=quant or None)
    if quant or len(rest) < 2 or rest[0] not in _IN_REPO or not _is_revision(rest[1]):
        raise refused
    file = "/".join(rest[2:])
    if not file:
        return Wanted(owner, name, rest[1])
    if rest[0] == "tree" or problem(file) is not None or not file.lower().endswith(".gguf"):
        raise InvalidRequest("'model' must be the URL of a GGUF file", "model")
    return Wanted(owner, name, rest[1], file)


def is_name(text: str) -> bool:
    """Whether `text` can be an owner's or a repository's name, which become folders."""
    return _NAME.fullmatch(text) is not None and ".." not in text and "--" not in text


def _is_revision(text: str) -> bool:
    return _REVISION.fullmatch(text) is not None and ".." not in text and "//" not in text


# ---- what a hub lists ------------------------------------------------------------------------------------------------


def leads_out(path: str) -> bool:
    """Whether `path`, which is absolute or climbs, is one that no repository can hold."""
    return any(part in ("", ".", "..") for part in path.split("/"))


def problem(path: str) -> str | None:
    """Why no file is fetched to this path, None if one may be."""
    if leads_out(path) or re.match(r"[A-Za-z]:", path):
        return OUTSIDE
    for part in path.split("/"):
        if "\\" in part or not part.isprintable():
            return "has characters that no file name should have"
        if len(part.encode("utf-8", "surrogatepass")) > COMPONENT_BYTES_MAX:
            return "is too long"
    return None


def is_visible(path: str) -> bool:
    """Whether the catalogue would list a file there."""
    parts = path.split("/")
    return len(parts) <= FOLDERS_MAX + 1 and not any(part.startswith(".") for part in parts)


def refuse_clashes(paths: list[str]) -> None:
    """`HubError` if two paths are one on a disk that does not tell cases apart, or one is the folder of another."""
    taken: dict[str, str] = {}
    for path in paths:
        key = _key(path)
        if key in taken:
            raise HubError(f"the hub lists both {taken[key]!r} and {path!r}")
        taken[key] = path
    for path in paths:
        folder = _key(path).rpartition("/")[0]
        if folder in taken:
            raise HubError(f"the hub lists {taken[folder]!r} as a file and as a folder")


def _key(path: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())
