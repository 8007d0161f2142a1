"""The home folder of a server: its layout, and the lock that lets one server at a time have it.

Only the command line's servers take it; a server inside a program holds no lock and writes no file. The lock is the
kernel's (`flock` on `server.lock`) and ends with the process, however that ends; what the file says is for others to
read. So a file that a dead server left is no obstacle, and what it says is still good for one thing: the last port.
POSIX only, as the engine is: on Windows there is no `fcntl`, and with it no server of the command line.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, field, replace
from pathlib import Path
from typing import Any, Final

from ..config import FILE_NAME
from ..errors import ConfigError, HomeInUse
from ..records import dataclass

PRIVATE_FOLDER: Final = 0o700
PRIVATE_FILE: Final = 0o600
MAX_LOCK_BYTES: Final = 1 << 16
"""Far above what a server writes into its lock."""
PATIENCE_S: Final = 0.2
"""Who only looks whether the lock is held holds it for some microseconds: one server waits that out."""
PAUSE_S: Final = 0.01


# ---- who has it ------------------------------------------------------------------------------------------------------


@dataclass(slots=True, frozen=True)
class Owner:
    """A server as its lock tells of it. While it starts, `url` is None and `port` that of the server before."""

    pid: int | None
    version: str = ""
    started: float = 0.0
    """Unix seconds."""
    daemon: bool = False
    """It runs in the background, with its messages in the log file."""
    port: int | None = None
    url: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    """What was chosen of the options that have another default, as the config file would have it."""

    @classmethod
    def read(cls, text: bytes) -> Owner:
        """Raises ValueError where it is nothing that a server wrote."""
        found = json.loads(text)
        match found:
            case {
                "pid": int() as pid,
                "version": str() as version,
                "started": float() as started,
                "options": dict() as options,
            }:
                port, url = found.get("port"), found.get("url")
                return cls(
                    pid=pid,
                    version=version,
                    started=started,
                    daemon=found.get("daemon") is True,
                    port=port if isinstance(port, int) else None,
                    url=url if isinstance(url, str) else None,
                    options=options,
                )
        raise ValueError("not the lock of a server")


NOBODY: Final = Owner(None)
"""Whoever holds a lock that says nothing (its disk was full)."""


# ---- the folder ------------------------------------------------------------------------------------------------------


@dataclass(slots=True, frozen=True)
class Home:
    """Where everything lies below `root`. Nothing is looked at or created before a method is called."""

    root: Path

    @property
    def config_file(self) -> Path:
        return self.root / FILE_NAME

    @property
    def models(self) -> Path:
        return self.root / "models"

    @property
    def links(self) -> Path:
        """Which links of `models` may lead out of it: those that the user made (`model_files.approval`)."""
        return self.root / "links"

    @property
    def model_settings(self) -> Path:
        return self.root / "model-settings.json"

    @property
    def state(self) -> Path:
        return self.root / "state.sqlite3"

    @property
    def prompt_cache(self) -> Path:
        """Beginnings of prompts, as models have computed them; unless the server is told another folder."""
        return self.root / "prompt-cache"

    @property
    def chat_history(self) -> Path:
        """What was typed into `lmlite chat`."""
        return self.root / "chat-history"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def log_file(self) -> Path:
        return self.logs / "server.log"

    @property
    def lock_file(self) -> Path:
        return self.root / "server.lock"

    def prepare(self) -> None:
        """Creates what is missing, for this user alone. `ConfigError` if the folder is another user's or cannot be
        written: nothing of a server would work then."""
        try:
            for folder in (self.root, self.models, self.logs):
                folder.mkdir(mode=PRIVATE_FOLDER, parents=True, exist_ok=True)
            owner = self.root.stat().st_uid
        except OSError as error:
            raise unusable(self.root, error) from None
        if owner != os.geteuid():
            raise ConfigError(
                f"home: {self.root} belongs to user {owner}, and this is user {os.geteuid()}; "
                "run it as that user, or choose another folder with --home (LMLITE_HOME)"
            )

    def take(self, version: str, options: Mapping[str, Any], daemon: bool = False) -> Lock:
        """Makes this process the owner. Raises `HomeInUse` if there is one, `ConfigError` if the lock cannot be had."""
        try:
            descriptor = open_lock(self.lock_file, os.O_RDWR | os.O_CREAT)
        except OSError as error:
            raise unusable(self.root, error) from None
        try:
            if not seize(descriptor):
                holder = read_patiently(descriptor)
                raise HomeInUse(str(self.root), holder.pid, holder.port if holder.url else None)
            last = content(descriptor) or NOBODY
            lock = Lock(descriptor, Owner(os.getpid(), version, time.time(), daemon, last.port, None, options))
        except OSError as error:
            os.close(descriptor)
            raise ConfigError(f"home: {self.lock_file} cannot be locked: {error.strerror}") from None
        except BaseException:
            os.close(descriptor)
            raise
        return lock

    def owner(self) -> Owner | None:
        """The server that has this folder now."""
        return self._ask(lambda descriptor: None if is_free(descriptor) else read_patiently(descriptor))

    def last_owner(self) -> Owner | None:
        """The server that has it, or that had it last."""
        return self._ask(content)

    def _ask(self, question: Callable[[int], Owner | None]) -> Owner | None:
        try:
            descriptor = open_lock(self.lock_file, os.O_RDONLY)
        except OSError:
            return None
        try:
            return question(descriptor)
        except OSError as error:
            raise ConfigError(f"home: {self.lock_file} cannot be read: {error.strerror}") from None
        finally:
            os.close(descriptor)


class Lock:
    """Held from `Home.take` until `release`, or until the process ends."""

    def __init__(self, descriptor: int, owner: Owner):
        self._descriptor, self.owner = descriptor, owner
        self._write()

    def publish(self, port: int, url: str) -> None:
        """Tells others where the server listens: it is ready."""
        self.owner = replace(self.owner, port=port, url=url)
        self._write()

    def release(self) -> None:
        """The file stays: removing it could take it from under the next server."""
        os.close(self._descriptor)

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _write(self) -> None:
        text = json.dumps(asdict(self.owner)).encode()
        with contextlib.suppress(OSError):  # a full disk: the lock holds without it
            os.pwrite(self._descriptor, text, 0)
            os.ftruncate(self._descriptor, len(text))


# ---- the lock --------------------------------------------------------------------------------------------------------


def open_lock(path: Path, flags: int) -> int:
    """Raises OSError, also for what is no regular file: another could block, or lead elsewhere."""
    descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, PRIVATE_FILE)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(0, f"{path.name} is no file", str(path))
    return descriptor


def seize(descriptor: int) -> bool:
    """Whether the lock is ours now."""
    import fcntl

    patience = time.monotonic() + PATIENCE_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= patience:
                return False
        time.sleep(PAUSE_S)


def is_free(descriptor: int) -> bool:
    """Shared, so that any number can ask at once."""
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    return True


def read_patiently(descriptor: int) -> Owner:
    """What the holder wrote; it may be about to."""
    patience = time.monotonic() + PATIENCE_S
    while (owner := content(descriptor)) is None:
        if time.monotonic() >= patience:
            return NOBODY
        time.sleep(PAUSE_S)
    return owner


def content(descriptor: int) -> Owner | None:
    try:
        return Owner.read(os.pread(descriptor, MAX_LOCK_BYTES, 0))
    except (ValueError, RecursionError):
        return None


def unusable(root: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"home: {error.filename or root} cannot be used: {error.strerror}; "
        "choose another folder with --home (LMLITE_HOME)"
    )
