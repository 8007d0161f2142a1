"""The log file of a server: bounded by turning it over, and never the reason that anything fails.

A record is one write to the end of the file. What cannot be written (a full disk, a folder gone read-only) is dropped
without a word, and tried again with the next record. A server that was started in the background has the same file as
its stdout and stderr: they are turned over with it, so that the interpreter's last words and a library's lie there too.
"""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path
from typing import Final

FORMAT: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"
MAX_BYTES: Final = 4 << 20
"""Of one file: what a person can still search in an editor."""
KEPT: Final = 3
"""Files that are kept besides the one that is written: server.log.1 is the newest."""
MAX_RECORD: Final = 64 << 10
"""Bytes of one record: an engine's last words with a traceback fit, a flood does not."""
PRIVATE_FILE: Final = 0o600
STANDARD: Final = (1, 2)


class LogFile(logging.Handler):
    def __init__(self, path: Path, max_bytes: int = MAX_BYTES, kept: int = KEPT):
        super().__init__()
        self.setFormatter(logging.Formatter(FORMAT))
        self._path, self._max_bytes, self._kept = path, max_bytes, kept
        self._descriptor: int | None = None
        self._torn = False  # the last record was cut by a full disk
        self._followers = tuple(number for number in STANDARD if is_file(number, path))

    @property
    def has_stderr(self) -> bool:
        """The process's own stderr goes to this file."""
        return 2 in self._followers

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record).encode("utf-8", "backslashreplace")[:MAX_RECORD] + b"\n"
        except Exception:  # noqa: BLE001 - arguments that do not fit their message: a bug of the caller's
            self.handleError(record)
            return
        try:
            self._write(line)
        except OSError:
            self._close()

    def close(self) -> None:
        self._close()
        super().close()

    def _write(self, line: bytes) -> None:
        descriptor = self._open()
        if self._torn:
            line = b"\n" + line
        self._torn = True
        self._torn = os.write(descriptor, line) < len(line)

    def _open(self) -> int:
        """The file to write to: a new one if the last is full, or was moved away by somebody."""
        if self._descriptor is not None:
            found = os.fstat(self._descriptor)
            if found.st_size < self._max_bytes and found.st_nlink and is_file(self._descriptor, self._path):
                return self._descriptor
            if found.st_size >= self._max_bytes and is_file(self._descriptor, self._path):
                self._turn_over()
            self._close()
        self._descriptor = open_log(self._path)
        for number in self._followers:
            os.dup2(self._descriptor, number)
        return self._descriptor

    def _turn_over(self) -> None:
        names = [self._path, *(self._path.with_name(f"{self._path.name}.{n}") for n in range(1, self._kept + 1))]
        for older, newer in zip(names[:0:-1], names[-2::-1]):
            with contextlib.suppress(FileNotFoundError):
                newer.replace(older)

    def _close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def open_log(path: Path) -> int:
    """Opened for writing at its end; created for this user alone. Raises OSError."""
    path.parent.mkdir(mode=0o700, exist_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    return os.open(path, flags, PRIVATE_FILE)


def is_file(descriptor: int, path: Path) -> bool:
    """Whether both are the same file now."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False
