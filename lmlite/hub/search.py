"""Repositories with GGUF files that match some words, as the hub finds them."""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import urlencode

from ..errors import HubError
from ..records import dataclass
from .http import Client, Interrupt, refusal
from .names import is_name

BYTES_MAX: Final = 2 << 20
FOUND_MAX: Final = 50
CANNOT: Final = frozenset((404, 405, 501))
"""Statuses of mirrors that have models and no search."""
PREFERRED: Final = ("lmstudio-community", "bartowski", "TheBloke")
"""Who is known for sound quantizations, best first: LM Studio's order."""


@dataclass(slots=True, frozen=True)
class Found:
    repo: str  # "owner/name"
    downloads: int


def search(client: Client, words: str, interrupt: Interrupt) -> list[Found]:
    """The preferred owners' first, then the most downloaded. Blocks. Raises `HubError`."""
    asked = {"search": words, "filter": "gguf", "sort": "downloads", "direction": "-1", "limit": FOUND_MAX}
    url = client.site.url(f"/api/models?{urlencode(asked)}")
    with client.get(url, {"Accept": "application/json"}, interrupt) as response:
        if response.status in CANNOT:
            raise HubError(f"{response.host} cannot be searched (status {response.status}); name a model as owner/name")
        if response.status != 200:
            raise refusal(response)
        listed = response.read_json(BYTES_MAX, "the hub's list of models")
    return read(listed)


def read(listed: Any) -> list[Found]:
    """What is no repository's entry is left out: nothing is done with it before somebody names it."""
    if not isinstance(listed, list):
        raise HubError("the hub's list of models is no list")
    found = [entry for entry in map(_read_entry, listed[:FOUND_MAX]) if entry is not None]
    return sorted(found, key=_rank)


def _read_entry(entry: Any) -> Found | None:
    id = entry.get("id") if isinstance(entry, dict) else None
    if not isinstance(id, str) or id.count("/") != 1 or not all(map(is_name, id.split("/"))):
        return None
    downloads = entry.get("downloads")
    return Found(id, downloads if isinstance(downloads, int) and not isinstance(downloads, bool) else 0)


def _rank(found: Found) -> tuple[int, int]:
    owner = found.repo.partition("/")[0]
    return PREFERRED.index(owner) if owner in PREFERRED else len(PREFERRED), -found.downloads
