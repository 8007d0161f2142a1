"""LM Studio's `/api/v1/models/download`: what is asked, and how a job is told. Our own list tells what there is besides."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

from ...errors import UnrecognizedKeys
from ..read.fields import Fields
from ..spell import dumps

if TYPE_CHECKING:
    from ...download import Progress, Record

FIELDS: Final = ("model", "quantization")
LAST_S: Final = 253402300799.999
"""The end of the year 9999, where calendars end: a slow download may have no better estimate."""


def parse(body: Mapping[str, Any]) -> tuple[str, str | None]:
    """`model` and `quantization`."""
    fields = Fields(body)
    if unknown := tuple(name for name in body if name not in FIELDS):
        raise UnrecognizedKeys(unknown)
    return fields.require_string("model"), fields.string("quantization")


def started(progress: Progress | None) -> str:
    """`progress` None: everything is there already."""
    if progress is None:
        return dumps({"status": "already_downloaded"})
    return dumps({**_head(progress.record), **_tail(progress.record)})


def status(progress: Progress, now: float) -> str:
    """`now` in unix seconds."""
    return dumps(_spell(progress, now))


def downloads(all: Iterable[Progress], now: float) -> str:
    """Our own list: every job with its model and files, and what a running one waits for."""
    return dumps({"downloads": [_spell_ours(progress, now) for progress in all]})


def ours(progress: Progress, now: float) -> str:
    return dumps(_spell_ours(progress, now))


def cancelled(id: str) -> str:
    return dumps({"job_id": id, "status": "cancelled"})


def _spell(progress: Progress, now: float) -> dict[str, Any]:
    record = progress.record
    spelled = _head(record)
    if record.status == "downloading":
        spelled["bytes_per_second"] = progress.bytes_per_second
        if progress.bytes_per_second > 0:
            rest = record.size - progress.downloaded_bytes
            spelled["estimated_completion"] = iso(now + rest / progress.bytes_per_second)
    spelled["downloaded_bytes"] = progress.downloaded_bytes
    return spelled | _tail(record)


def _spell_ours(progress: Progress, now: float) -> dict[str, Any]:
    record = progress.record
    spelled = _spell(progress, now)
    spelled["model"] = record.repo
    spelled["files"] = [{"name": file.name, "size_bytes": file.size} for file in record.files]
    if progress.trouble is not None:
        spelled["waiting_because"] = progress.trouble
    return spelled


def _head(record: Record) -> dict[str, Any]:
    return {"job_id": record.id, "status": record.status, "total_size_bytes": record.size}


def _tail(record: Record) -> dict[str, Any]:
    tail: dict[str, Any] = {"started_at": iso(record.started_at)}
    if record.completed_at is not None:
        tail["completed_at"] = iso(record.completed_at)
    if record.status == "failed":
        tail["error_message"] = record.error or "unknown"
    return tail


def iso(unix_s: float) -> str:
    """"2026-05-01T09:00:00.000Z"."""
    from datetime import datetime, timezone  # few servers download anything

    seconds, ms = divmod(int(min(unix_s, LAST_S) * 1000), 1000)
    return f"{datetime.fromtimestamp(seconds, timezone.utc):%Y-%m-%dT%H:%M:%S}.{ms:03d}Z"
