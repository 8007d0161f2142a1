"""A model being downloaded: what of it outlives the server (`Record`), and how far it is (`Progress`)."""

from __future__ import annotations

from typing import Literal

from .records import dataclass

DownloadStatus = Literal["downloading", "paused", "completed", "failed"]


@dataclass(slots=True, frozen=True)
class RemoteFile:
    """One file of a repository: its path there ("Q4_K_M/falcon-00001-of-00002.gguf"), bytes and checksum."""

    name: str
    size: int
    digest: str  # "sha256:<hex>"; "git:<hex>" for files that a hub keeps in git itself


@dataclass(slots=True, frozen=True)
class Record:
    """One download as it is kept. It has no URL: those may carry signatures. Times are unix seconds."""

    id: str
    repo: str  # "owner/name"
    revision: str  # a commit where the hub names one, so that all files are of one state
    files: tuple[RemoteFile, ...]
    status: DownloadStatus
    started_at: float
    completed_at: float | None = None
    error: str | None = None  # why it failed

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)


@dataclass(slots=True, frozen=True)
class Progress:
    """One download at one moment."""

    record: Record
    downloaded_bytes: int
    bytes_per_second: int = 0
    trouble: str | None = None  # why it waits before it tries again
