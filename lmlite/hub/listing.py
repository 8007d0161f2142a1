"""What a repository holds, as the hub lists it: names, sizes, checksums, and the commit that they are of.

The list is from the network: it is bounded before it is parsed, and one hostile name refuses all of it. A name that is only
odd refuses it where the file could be fetched; pictures are called all kinds of things.
"""

from __future__ import annotations

import re
from typing import Any, Final
from urllib.parse import quote

from ..download import RemoteFile
from ..errors import AccessDenied, HubError, NothingToDownload
from ..records import dataclass
from . import names
from .http import Client, Interrupt, refusal
from .names import Wanted

BYTES_MAX: Final = 8 << 20
"""A listing of some ten thousand files; the largest repositories of models have some hundreds."""
SIZE_MAX: Final = 1 << 50
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_SHA1: Final = re.compile(r"[0-9a-f]{40}")


@dataclass(slots=True, frozen=True)
class Listing:
    """The GGUF files of a repository that may be fetched."""

    repo: str  # in the hub's own spelling
    revision: str
    files: tuple[RemoteFile, ...]


def fetch(client: Client, wanted: Wanted, interrupt: Interrupt) -> Listing:
    """Blocks. Raises `NothingToDownload`, `AccessDenied` or `HubError`."""
    path = f"/api/models/{wanted.repo}"
    if wanted.revision != "main":
        path += f"/revision/{quote(wanted.revision, safe='')}"
    with client.get(client.site.url(path + "?blobs=true"), {"Accept": "application/json"}, interrupt) as response:
        if response.status in (401, 404):  # a hub does not tell strangers what is private from what is not there
            raise NothingToDownload(f"the hub has no {wanted.repo}, or none that it gives to this server (HF_TOKEN)")
        if response.status == 403:
            raise AccessDenied(wanted.repo)
        if response.status != 200:
            raise refusal(response)
        listed = response.read_json(BYTES_MAX, "the hub's list of files")
    return read(listed, wanted)


def read(listed: Any, wanted: Wanted) -> Listing:
    """The listing that a hub's JSON is. Raises `HubError`."""
    siblings = listed.get("siblings") if isinstance(listed, dict) else None
    if not isinstance(siblings, list):
        raise HubError("the hub's list of files has no files")
    files = [file for file in map(_read_file, siblings) if file is not None]
    names.refuse_clashes([file.name for file in files])
    id, sha = listed.get("id"), listed.get("sha")
    return Listing(
        repo=id if isinstance(id, str) and id.lower() == wanted.repo.lower() else wanted.repo,
        revision=sha if isinstance(sha, str) and _SHA1.fullmatch(sha) else wanted.revision,
        files=tuple(files),
    )


def _read_file(sibling: Any) -> RemoteFile | None:
    """None for what is no model file."""
    name = sibling.get("rfilename") if isinstance(sibling, dict) else None
    if not isinstance(name, str):
        raise HubError("the hub lists a file without a name")
    is_offered = name.lower().endswith(".gguf") and names.is_visible(name)
    why = names.problem(name) if is_offered else names.OUTSIDE if names.leads_out(name) else None
    if why is not None:
        raise HubError(f"the hub lists a file whose name {why}: {name[:200]!r}")
    if not is_offered:
        return None
    lfs = sibling.get("lfs")
    lfs = lfs if isinstance(lfs, dict) else {}
    size = sibling.get("size", lfs.get("size"))
    if type(size) is not int or not 0 < size <= SIZE_MAX:
        raise HubError(f"the hub lists no size for {name!r}")
    return RemoteFile(name, size, _digest(name, lfs.get("sha256"), sibling.get("blobId")))


def _digest(name: str, sha256: Any, blob: Any) -> str:
    if isinstance(sha256, str) and _SHA256.fullmatch(sha256.lower()):
        return f"sha256:{sha256.lower()}"
    if isinstance(blob, str) and _SHA1.fullmatch(blob.lower()):
        return f"git:{blob.lower()}"
    raise HubError(f"the hub lists no checksum for {name!r}")
