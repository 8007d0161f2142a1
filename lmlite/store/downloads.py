"""Downloads that outlive the server, a row each. Times are unix seconds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import astuple
from typing import Any, get_args

from ..download import DownloadStatus, Record, RemoteFile
from .database import Database


class DownloadTable:
    """Calls block and raise `StateError`."""

    def __init__(self, database: Database):
        self._database = database

    @property
    def exists(self) -> bool:
        """Whether anything was ever kept."""
        return self._database.exists

    def all(self) -> list[Record]:
        """In the order in which they were begun; rows that make no sense are left out."""
        if not self._database.exists:
            return []
        with self._database.reading() as connection:
            rows = connection.execute(
                "SELECT id, repo, revision, files, status, started_at, completed_at, error FROM downloads ORDER BY started_at"
            ).fetchall()
        return [record for record in map(read, rows) if record is not None]

    def save(self, record: Record) -> None:
        files = json.dumps([astuple(file) for file in record.files])
        with self._database.writing() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO downloads (id, repo, revision, files, status, started_at, completed_at, error)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    record.id, record.repo, record.revision, files,
                    record.status, record.started_at, record.completed_at, record.error,
                ),
            )  # fmt: skip

    def forget(self, id: str) -> None:
        with self._database.writing() as connection:
            connection.execute("DELETE FROM downloads WHERE id = ?", (id,))


def read(row: Sequence[Any]) -> Record | None:
    id, repo, revision, files, status, started_at, completed_at, error = row
    try:
        listed = tuple(RemoteFile(str(name), int(size), str(digest)) for name, size, digest in json.loads(files))
    except (ValueError, TypeError):
        return None
    if status not in get_args(DownloadStatus):
        return None
    return Record(id, repo, revision, listed, status, started_at, completed_at, error)
