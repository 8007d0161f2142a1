"""A program on this machine that serves tools: JSON lines through its streams, what it says on stderr in the log.

It runs below `guard.py`, in a process group of its own, and sees of the environment what it needs and what it was given.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from ..beside import Turns
from .message import Fault, Lines, Progress, Waiting, notification, request, result_of, spell, with_token

log = logging.getLogger(__name__)

INHERITED: Final = (
    *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "TERM", "TMPDIR", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "PWD"),
    *("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "SSL_CERT_FILE", "SSL_CERT_DIR", "NODE_EXTRA_CA_CERTS"),
    *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"),
)
"""What programs need to run at all. Tokens and keys are given by name, in `env`."""
CHUNK: Final = 64 << 10
STEP: Final = 4 << 10
"""Bytes that are cut into lines at once: they may be as many lines."""
STDERR_LINE_MAX: Final = 2 << 10
STDERR_LINES_PER_S: Final = 50
"""A program that says more has the rest counted and not logged."""
GONE_S: Final = 5.0
"""The guard needs at most two of its patient moments."""


class Stdio:
    """`label` is for the log."""

    def __init__(self, label: str, command: Sequence[str], env: Mapping[str, str], cwd: str | None):
        self.label = label
        self.changed = False  # the list of tools is another one
        self._command, self._env, self._cwd = tuple(command), dict(env), cwd
        self._ids = itertools.count(1)
        self._waiting = Waiting(self._send, self._change)
        self._process: asyncio.subprocess.Process | None = None
        self._pipe: int | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._last_words = ""

    @property
    def fault(self) -> Fault | None:
        return self._waiting.fault

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    async def start(self) -> None:
        """Raises `Fault`."""
        environment = {name: os.environ[name] for name in INHERITED if name in os.environ}
        guard = str(Path(__file__).with_name("guard.py"))
        watched, self._pipe = os.pipe()
        try:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-S", guard, str(watched), *self._command),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env={**environment, **self._env},
                cwd=self._cwd,
                pass_fds=(watched,),
                start_new_session=True,
                limit=CHUNK,
            )
        except (OSError, ValueError) as error:
            self._close_pipe()
            raise Fault(f"cannot be started: {error}") from None
        finally:
            os.close(watched)
        self._tasks = [asyncio.ensure_future(self._read()), asyncio.ensure_future(self._log())]

    async def request(
        self, method: str, params: Mapping[str, Any], headers: Mapping[str, str], progress: Progress | None = None
    ) -> dict[str, Any]:
        """Raises `Fault`. Whoever waits no longer tells the program so."""
        id = next(self._ids)
        future = self._waiting.expect(id, progress)
        self._send(request(id, method, with_token(params, id, progress)))
        try:
            return result_of(await future)
        except asyncio.CancelledError:
            if method != "initialize":
                self._send(notification("notifications/cancelled", {"requestId": id, "reason": "nobody waits for it"}))
            raise
        finally:
            self._waiting.forget(id)

    async def notify(self, method: str, params: Mapping[str, Any]) -> None:
        self._send(notification(method, params))

    async def close(self) -> None:
        self._waiting.end(Fault("the server was stopped"))
        if self._process is None:
            return
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._close_pipe()
        await self._ended()
        self._kill()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._process._transport.close()  # type: ignore[attr-defined]  # else pipes that nobody reads stay open

    async def _ended(self) -> int | None:
        """How the guard did, whatever is still to be read of the program; None: it has not."""
        assert self._process is not None
        deadline = asyncio.get_running_loop().time() + GONE_S
        while self._process.returncode is None and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.01)
        return self._process.returncode

    def _kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(OSError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def _close_pipe(self) -> None:
        if self._pipe is not None:
            os.close(self._pipe)
            self._pipe = None

    # ---- its streams

    def _send(self, message: Mapping[str, Any]) -> None:
        """What it does not read stays where it is: requests have their time, and answers to its own are few."""
        stdin = self._process.stdin if self._process else None
        if stdin is None or stdin.is_closing():
            return
        if "method" not in message and stdin.transport.get_write_buffer_size() > CHUNK:
            return  # an answer to a program that asks and does not listen
        stdin.write(spell(message) + b"\n")

    def _change(self) -> None:
        self.changed = True

    async def _read(self) -> None:
        assert self._process is not None and self._process.stdout is not None
        lines = Lines(self._waiting)
        fault = None
        try:
            while chunk := await self._process.stdout.read(CHUNK):
                turns = Turns()
                for begin in range(0, len(chunk), STEP):
                    lines.feed(chunk[begin : begin + STEP])
                    await turns.pause()
                if len(chunk) == CHUNK:  # there is no hurry with one that says that much
                    await asyncio.sleep(0)
        except Fault as error:
            fault = error
        except OSError:
            pass
        self._close_pipe()
        if fault is None:
            code = await self._ended()
            await asyncio.wait(self._tasks[1:], timeout=0.2)  # its last words
            said = f": {self._last_words}" if self._last_words else ""
            fault = Fault(f"the program has ended{'' if code is None else f' (exit {code})'}{said}"[:500])
        if self._waiting.fault is None:
            log.warning("mcp server %s: %s", self.label, fault)
            self._waiting.end(fault)

    async def _log(self) -> None:
        assert self._process is not None and self._process.stderr is not None
        loop = asyncio.get_running_loop()
        line, since, n_lines, n_left_out = b"", loop.time(), 0, 0
        while chunk := await self._process.stderr.read(CHUNK):
            *lines, line = (line + chunk).split(b"\n")
            line = line[:STDERR_LINE_MAX]
            for text in lines:
                if loop.time() - since >= 1:
                    if n_left_out:
                        log.info("mcp server %s: %d more lines", self.label, n_left_out)
                    since, n_lines, n_left_out = loop.time(), 0, 0
                self._tell(text) if n_lines < STDERR_LINES_PER_S else None
                n_left_out += n_lines >= STDERR_LINES_PER_S
                n_lines += 1
            if len(chunk) == CHUNK:
                await asyncio.sleep(0)
        self._tell(line)

    def _tell(self, line: bytes) -> None:
        text = line[:STDERR_LINE_MAX].decode("utf-8", "replace").strip()
        if text:
            self._last_words = text
            log.info("mcp server %s: %s", self.label, text if text.isprintable() else repr(text))
