"""How a download is told, to the letter."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from lmlite.api.lmstudio import download as spelling
from lmlite.download import Progress, Record, RemoteFile

FILE = RemoteFile("a.gguf", 1000, "sha256:ab")
RECORD = Record("job_7c02e9b1aa", "acme/falcon", "main", (FILE,), "downloading", 1777626000.0)
NOW = 1777626010.0


def test_a_job_begun_has_its_size_and_time() -> None:
    assert json.loads(spelling.started(Progress(RECORD, 0))) == {
        "job_id": "job_7c02e9b1aa",
        "status": "downloading",
        "total_size_bytes": 1000,
        "started_at": "2026-05-01T09:00:00.000Z",
    }
    assert json.loads(spelling.started(None)) == {"status": "already_downloaded"}


def test_a_running_job_has_a_pace_and_an_end() -> None:
    told = json.loads(spelling.status(Progress(RECORD, 400, 20), NOW))
    assert told == {
        "job_id": "job_7c02e9b1aa",
        "status": "downloading",
        "bytes_per_second": 20,
        "estimated_completion": "2026-05-01T09:00:40.000Z",
        "total_size_bytes": 1000,
        "downloaded_bytes": 400,
        "started_at": "2026-05-01T09:00:00.000Z",
    }
    assert "estimated_completion" not in json.loads(spelling.status(Progress(RECORD, 400, 0), NOW))


def test_a_job_that_ended_says_when_or_why() -> None:
    done = replace(RECORD, status="completed", completed_at=NOW + 0.5)
    assert json.loads(spelling.status(Progress(done, 1000, 5), NOW))["completed_at"] == "2026-05-01T09:00:10.500Z"
    assert "bytes_per_second" not in spelling.status(Progress(done, 1000, 5), NOW)
    failed = replace(RECORD, status="failed", error="the disk is full")
    told = json.loads(spelling.status(Progress(failed, 10), NOW))
    assert told["error_message"] == "the disk is full" and "completed_at" not in told


def test_our_own_list_tells_model_files_and_what_is_waited_for() -> None:
    (told,) = json.loads(spelling.downloads([Progress(RECORD, 400, 0, "the hub fails")], NOW))["downloads"]
    assert told["model"] == "acme/falcon" and told["files"] == [{"name": "a.gguf", "size_bytes": 1000}]
    assert told["waiting_because"] == "the hub fails"


@pytest.mark.parametrize(
    ("unix_s", "text"),
    [
        (0.0, "1970-01-01T00:00:00.000Z"),
        (0.9994, "1970-01-01T00:00:00.999Z"),
        (1e18, "9999-12-31T23:59:59.999Z"),
    ],
)
def test_times_are_utc_with_milliseconds(unix_s: float, text: str) -> None:
    assert spelling.iso(unix_s) == text
