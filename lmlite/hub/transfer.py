"""One file on its way from the hub to the disk, blocking, in a thread of its own.

Bytes gather in a hidden folder. A file that is whole and has its checksum is `.ready` there; nothing else gets a name that
the catalogue lists. What was received is kept through every failure but a wrong checksum, and used again only if the hub
still has the very same file.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from ..download import RemoteFile
from ..errors import HubError
from .http import Client, Interrupt, Response, refusal

if TYPE_CHECKING:
    from hashlib import _Hash

log = logging.getLogger(__name__)
T = TypeVar("T")

HIDDEN: Final = ".download"
"""The folder beside a repository's files that has what is not whole yet; hidden, so that no catalogue looks there."""
CHUNK: Final = 256 << 10
FOLDER_TRIES: Final = 16
"""Each that fails is another job that ends in that very moment; there never are more than a few."""
ETAG_MAX: Final = 512
_STRONG_ETAG: Final = re.compile(r'"[!#-~]{0,500}"')
_RANGE: Final = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})")
_NAMELESS: Final = re.compile(r"[0-9a-f]{40,64}\.(?:part|ready|etag)")
"""Parts as they were called when files of one content shared theirs: nothing goes on from them any more."""
FULL: Final = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
NO_LOCKS: Final = frozenset((errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK))
"""What file systems say that have no locks, as some of networks and of FUSE do."""


class _AnotherPart(Exception):
    """Of the file than the one asked for, or nobody knows which: a proxy or a cache is broken, the whole may still come."""


class Place:
    """Where one file of a repository goes, and where its parts gather: two files of one content have parts of their own, and
    so have two revisions of one file."""

    def __init__(self, folder: Path, file: RemoteFile):
        """`folder` is the repository's."""
        self.file = file
        self.target = folder / file.name
        name = hashlib.sha256(file.name.encode("utf-8", "surrogatepass")).hexdigest()[:8]
        stem = f"{file.digest.partition(':')[2]}-{name}"
        self.part = folder / HIDDEN / f"{stem}.part"
        self.ready = folder / HIDDEN / f"{stem}.ready"
        self.etag = folder / HIDDEN / f"{stem}.etag"

    def has_target(self) -> bool:
        """Whether a file of this size is in place; its content is not looked at."""
        return _size(self.target) == self.file.size

    def received(self) -> int:
        """Bytes of the file that are on the disk and in no place yet."""
        return min(max(_size(self.part), _size(self.ready), 0), self.file.size)

    def discard(self) -> None:
        for path in (self.part, self.ready, self.etag):
            path.unlink(missing_ok=True)

    def publish(self) -> None:
        """Puts the ready file in its place. What was there goes."""
        try:
            in_folder(self.target.parent, lambda: os.replace(self.ready, self.target))
        except FileNotFoundError:
            if not self.has_target():  # from the start, or by another job
                raise
        sync_folder(self.target.parent)


class Transfer:
    """`run` brings the file of `place` to where it is ready. `have` and `received` may be read from other threads."""

    def __init__(self, client: Client, repo: str, revision: str, place: Place):
        from urllib.parse import quote

        file = place.file
        self._client, self._place, self.file = client, place, file
        self._url = client.site.url(f"/{repo}/resolve/{quote(revision, safe='')}/{quote(file.name)}")
        self.interrupt = Interrupt()
        self.have = 0  # bytes of the file that are here
        self.received = 0  # bytes that came over the wire
        self.on_wire = False  # whether it is the hub that is waited for
        self._hash = self._new_hash()

    def run(self) -> None:
        """Raises `HubError`, `OSError` of the disk, or `Interrupted`."""
        place = self._place
        if _size(place.ready) == self.file.size or self._is_in_place():
            self.have = self.file.size
            return
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0)
        fd = in_folder(place.part.parent, lambda: os.open(place.part, flags, 0o644))
        try:
            hold(fd, place.part)
            resumed = self._take_up(fd)
            if self.have < self.file.size:
                resumed = self._fetch(fd) and resumed
            self._verify(resumed)
            os.fsync(fd)
        finally:
            os.close(fd)
        self.interrupt.check()
        os.replace(place.part, place.ready)
        place.etag.unlink(missing_ok=True)
        sync_folder(place.part.parent)

    # ---- what is here already

    def _is_in_place(self) -> bool:
        if not self._place.has_target():
            return False
        with open(self._place.target, "rb") as file:
            self._hash_from(file.fileno())
        return self._digest() == self.file.digest

    def _take_up(self, fd: int) -> bool:
        """Goes on behind what an earlier transfer left; whether it left something."""
        self._hash, self.have = self._new_hash(), 0
        size = os.fstat(fd).st_size
        if size > self.file.size or (0 < size < self.file.size and self._read_etag() is None):
            os.ftruncate(fd, 0)  # nothing tells what it is of
        os.lseek(fd, 0, os.SEEK_SET)
        self._hash_from(fd)
        return self.have > 0

    def _hash_from(self, fd: int) -> None:
        while piece := os.read(fd, CHUNK):
            self.interrupt.check()
            self._hash.update(piece)
            self.have += len(piece)

    def _read_etag(self) -> str | None:
        try:
            with open(self._place.etag, encoding="ascii") as file:
                etag = file.read(ETAG_MAX)
        except (OSError, ValueError):
            return None
        return etag if _STRONG_ETAG.fullmatch(etag) else None

    # ---- what is not

    def _fetch(self, fd: int) -> bool:
        """Receives the rest; whether what was here could be used."""
        etag = self._read_etag() if self.have else None
        self.on_wire = True
        try:
            try:
                return self._ask(fd, etag)
            except _AnotherPart:
                log.info("%s: the hub sends another part than the one asked for; it is fetched from the start", self.file.name)
                self._start_over(fd)
                self._place.etag.unlink(missing_ok=True)
                return self._ask(fd, None)
        finally:
            self.on_wire = False

    def _ask(self, fd: int, etag: str | None) -> bool:
        """For the rest of the file with this `etag`; None: for all of it. `_AnotherPart` comes before anything is received."""
        headers = {"Accept": "application/octet-stream"}
        if etag is not None:
            headers |= {"Range": f"bytes={self.have}-", "If-Range": etag}
        with self._client.get(self._url, headers, self.interrupt) as response:
            resumed = self._accept(response, fd, etag)
            self._receive(response, fd)
        return resumed

    def _accept(self, response: Response, fd: int, etag: str | None) -> bool:
        """Checks that the answer is the file, or the rest of it, and makes the disk ready for it."""
        if (response.header("content-encoding") or "identity").lower() != "identity":
            raise HubError(f"{response.host} sends the file compressed, which was not asked for")
        if response.status == 206 and etag is not None:
            self._check_range(response, etag)
        elif response.status == 200:
            self._start_over(fd)
            self._keep_etag(response.header("etag"))
        elif response.status == 416:
            self._start_over(fd)
            raise HubError(f"{response.host} has another file than the one begun", retry=True)
        else:
            raise refusal(response)
        rest = self.file.size - self.have
        if response.length is not None and response.length != rest:
            raise HubError(f"{response.host} sends {response.length} bytes of a file that has {rest} more")
        return self.have > 0

    def _check_range(self, response: Response, etag: str) -> None:
        found = _RANGE.fullmatch((response.header("content-range") or "").strip())
        if found is None or tuple(map(int, found.groups())) != (self.have, self.file.size - 1, self.file.size):
            raise _AnotherPart
        if response.header("etag") not in (None, etag):
            self._place.etag.unlink(missing_ok=True)  # the next attempt begins anew
            raise HubError(f"{response.host} has another file than the one begun", retry=True)

    def _start_over(self, fd: int) -> None:
        os.ftruncate(fd, 0)
        os.lseek(fd, 0, os.SEEK_SET)
        self._hash, self.have = self._new_hash(), 0

    def _keep_etag(self, etag: str | None) -> None:
        """Before the first byte, so that bytes without it are bytes of nothing known."""
        self._place.etag.unlink(missing_ok=True)
        if etag is not None and _STRONG_ETAG.fullmatch(etag):
            self._place.etag.write_text(etag, encoding="ascii")

    def _receive(self, response: Response, fd: int) -> None:
        announced = response.length is not None
        while piece := response.read(CHUNK):
            if self.have + len(piece) > self.file.size:
                self._place.discard()
                raise HubError(f"{response.host} sends more than the {self.file.size} bytes that it listed")
            append(fd, piece)
            self._hash.update(piece)
            self.have += len(piece)
            self.received += len(piece)
            if announced and self.have == self.file.size:
                break
        if self.have < self.file.size:
            raise HubError(f"{response.host} ended after {self.have} of {self.file.size} bytes", retry=True)

    def _verify(self, resumed: bool) -> None:
        """A wrong file is thrown away. What was taken up from before may be to blame: then once more from the start."""
        if self._digest() != self.file.digest:
            self._place.discard()
            raise HubError(f"{self.file.name} does not have the checksum that the hub lists", retry=resumed)

    # ---- checksums

    def _new_hash(self) -> _Hash:
        if self.file.digest.startswith("sha256:"):
            return hashlib.sha256()
        return hashlib.sha1(b"blob %d\0" % self.file.size, usedforsecurity=False)  # as git names contents

    def _digest(self) -> str:
        return f"{self.file.digest.partition(':')[0]}:{self._hash.hexdigest()}"


def hold(fd: int, path: Path) -> None:
    """Makes this transfer the only one that writes to `path`, until `fd` is closed. Another may be in a thread that was given
    up, or in a server of another process."""
    try:
        import fcntl
    except ImportError:  # there, a file that two write to is found out by its checksum
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        is_ours = os.path.samestat(os.fstat(fd), path.stat())
    except (BlockingIOError, FileNotFoundError):
        is_ours = False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        return  # as above
    if not is_ours:
        raise HubError("the same file is being fetched already", retry=True)


def in_folder(folder: Path, work: Callable[[], T]) -> T:
    """What `work`, which puts a name into `folder`, returns. The folder is made, and made anew if another job takes it away
    as empty before the name is there."""
    for _ in range(FOLDER_TRIES - 1):
        with contextlib.suppress(FileNotFoundError, FileExistsError):
            folder.mkdir(parents=True, exist_ok=True)
            return work()
    folder.mkdir(parents=True, exist_ok=True)
    return work()


def append(fd: int, piece: bytes) -> None:
    view = memoryview(piece)
    while view:
        view = view[os.write(fd, view) :]


def _size(path: Path) -> int:
    """-1 if it is not there."""
    try:
        return path.stat().st_size if path.is_file() else -1
    except OSError:
        return -1


def sync_folder(folder: Path) -> None:
    """A name is safe from a power cut once its folder is; where folders cannot be synced, it is when the system likes."""
    with contextlib.suppress(OSError):
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def tidy(folder: Path, up_to: Path) -> None:
    """Removes `folder` and its parents below `up_to`, as far as they are empty."""
    tidy_hidden(folder)
    with contextlib.suppress(OSError):
        while up_to in folder.parents:
            folder.rmdir()
            folder = folder.parent


def tidy_hidden(folder: Path) -> None:
    """Removes what no transfer goes on from any more, and the hidden folder of `folder` if that was all."""
    hidden = folder / HIDDEN
    with contextlib.suppress(OSError):
        for name in os.listdir(hidden):
            if _NAMELESS.fullmatch(name):
                (hidden / name).unlink()
        hidden.rmdir()
