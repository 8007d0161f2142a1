"""Where an engine runs: in a child process (a crash costs only its own requests) or in a thread of this process.

Both are the far end of a socketpair. A placement is started once; its owner closes the near end to end it, and then
calls `close`, which returns when the engine is gone, killed if it would not go. No zombie stays, whatever ends first.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Protocol

EXIT_S: Final = 2.0
"""An engine that reads EOF frees its model and returns; what needs longer than this is stuck."""
KILLED_S: Final = 5.0
"""The kernel tears down a killed process with a large model mapped in well under this."""
LINE_MAX: Final = 4 << 10
"""Bytes of one line of a child's stderr that are handed on."""
STDERR_TAIL: Final = 8 << 10
"""Bytes of the child's last words that are kept: an assertion and its surroundings, not a log."""

CRASH_SIGNALS: Final = frozenset({"SIGABRT", "SIGSEGV", "SIGBUS", "SIGILL", "SIGFPE", "SIGSYS", "SIGTRAP"})

INHERITED: Final = frozenset(
    {"PATH", "HOME", "TMPDIR", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "LD_PRELOAD",
     "LMLITE_KERNELS"}
)
INHERITED_PREFIXES: Final = (
    "GGML_", "CUDA_", "NVIDIA_", "HIP_", "HSA_", "ROCR_", "VK_", "MTL_", "ASAN_", "UBSAN_", "TSAN_"
)  # fmt: skip
"""What chooses and tunes devices. The rest, tokens and keys among it, is nothing for a parser of models to hold."""


class Placement(Protocol):
    @property
    def pid(self) -> int | None:
        """Of the child process; None before its start, and for an engine in this process."""
        ...

    async def start(self) -> socket.socket:
        """Starts the engine and returns the near end, non-blocking. Raises OSError or `BuildError`."""
        ...

    def fate(self) -> str | None:
        """How the engine ended, in a few words; None while it runs."""
        ...

    def kill(self) -> None:
        """Ends it now if that is possible. Never blocks."""
        ...

    async def wait(self, timeout_s: float) -> bool:
        """Waits until it has ended, at most `timeout_s`; whether it has."""
        ...

    async def close(self) -> None:
        """Sees it off; the near end was closed before."""
        ...


class _Ending:
    """The moment an engine ends, told by a thread to whichever loop waits for it."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._future: asyncio.Future[None] = self._loop.create_future()

    def tell(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._settle)

    def _settle(self) -> None:
        if not self._future.done():
            self._future.set_result(None)

    async def wait(self, timeout_s: float) -> bool:
        await asyncio.wait({self._future}, timeout=timeout_s)
        return self._future.done()


def _start_thread(name: str, body: Callable[..., None], *arguments: object) -> None:
    """Raises OSError where the system has no thread left."""
    try:
        threading.Thread(target=body, args=arguments, name=name, daemon=True).start()
    except RuntimeError:  # Python says no more than that
        raise OSError(errno.EAGAIN, "no thread can be started") from None


# ---- a child process -------------------------------------------------------------------------------------------------


class Process:
    """`command` is the program without the descriptor's number, which is its last argument; None: the engine of this
    package. `log` gets the tail of stderr of a child that did not end well, `on_line` the child's pid and each line at
    once; both are called in a thread."""

    def __init__(
        self,
        command: Sequence[str] | None = None,
        log: Callable[[str], None] | None = None,
        on_line: Callable[[int, str], None] | None = None,
    ):
        self._command, self._log, self._on_line = command, log, on_line
        self._child: subprocess.Popen[bytes] | None = None
        self._ending: _Ending | None = None
        self._killed_by_us = False
        self._oom_kills: tuple[int, ...] = ()

    @property
    def pid(self) -> int | None:
        return self._child.pid if self._child else None

    async def start(self) -> socket.socket:
        # In the loop: exec takes a millisecond or two, and a hop through a thread pool is no faster.
        command = self._command or engine_command()
        near, far = socket.socketpair()
        with far:
            try:
                near.setblocking(False)
                self._oom_kills = oom_kills()
                self._child = spawn(command, far.fileno())
            except BaseException:
                near.close()
                raise
        self._ending = _Ending()
        try:
            _start_thread("lmlite-child", self._attend, self._child, self._ending)
        except OSError:
            near.close()
            self._end_unattended(self._child)
            raise
        return near

    def _end_unattended(self, child: subprocess.Popen[bytes]) -> None:
        """Nobody would hear it or reap it."""
        self.kill()
        child.wait()  # as long as the kernel takes for a process that has hardly begun
        assert self._ending is not None and child.stderr is not None
        child.stderr.close()
        self._ending.tell()

    def _attend(self, child: subprocess.Popen[bytes], ending: _Ending) -> None:
        """Drains the child's stderr, then reaps it: works on any loop in any thread, and outlives them."""
        assert child.stderr is not None
        tail = line = b""
        with child.stderr as pipe:
            while chunk := pipe.read(4096):
                tail = (tail + chunk)[-STDERR_TAIL:]
                *lines, line = (line + chunk).split(b"\n")
                self._hand_on(child.pid, lines)
                line = line[:LINE_MAX]
        self._hand_on(child.pid, [line])
        code = child.wait()
        ending.tell()
        if self._log and code != 0 and not self._killed_by_us:
            self._log(f"engine process {child.pid} ended: {self.fate()}\n{tail.decode('utf-8', 'replace')}".rstrip())

    def _hand_on(self, pid: int, lines: Sequence[bytes]) -> None:
        if self._on_line is not None:
            for line in filter(None, map(bytes.rstrip, lines)):
                self._on_line(pid, line[:LINE_MAX].decode("utf-8", "replace"))

    def fate(self) -> str | None:
        code = self._child.returncode if self._child else None
        if code is None:
            return None
        if code >= 0:
            return f"exit {code}"
        try:
            name = signal.Signals(-code).name
        except ValueError:  # a real-time signal
            name = f"signal {-code}"
        if name == "SIGKILL" and not self._killed_by_us and oom_kills() != self._oom_kills:
            return "out_of_memory"
        return f"crashed ({name})" if name in CRASH_SIGNALS else f"killed ({name})"

    def kill(self) -> None:
        if self._child and self._child.returncode is None:
            self._killed_by_us = True
            self._child.kill()  # checks for itself that the child was not reaped meanwhile

    async def wait(self, timeout_s: float) -> bool:
        return self._ending is None or await self._ending.wait(timeout_s)

    async def close(self) -> None:
        try:
            if await self.wait(EXIT_S):
                return
        finally:
            self.kill()
        await self.wait(KILLED_S)


def spawn(command: Sequence[str], fd: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*command, str(fd)],
        bufsize=0,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        pass_fds=(fd,),
        start_new_session=True,  # a Ctrl-C in the terminal is for the server, which ends its engines in order
        env=environment(os.environ),
    )


def engine_command() -> tuple[str, ...]:
    from . import native  # only where an engine is really started: importing the package needs no library

    return (str(native.engine_path()),)


def environment(outer: Mapping[str, str]) -> dict[str, str]:
    """The child's environment: the little of `outer` that it needs."""
    inner = {name: value for name, value in outer.items() if name in INHERITED or name.startswith(INHERITED_PREFIXES)}
    return {**inner, "GGML_NO_BACKTRACE": "1"}  # else an abort forks a debugger


def oom_kills() -> tuple[int, ...]:
    """The kernel's counts of out-of-memory kills as this process can see them: its cgroup's and the machine's."""
    counters = []
    for file in oom_counters():
        try:
            with open(file, encoding="ascii") as lines:
                counters += [int(line.split()[1]) for line in lines if line.startswith("oom_kill ")]
        except (OSError, ValueError):  # not this kind of cgroup, or not Linux
            continue
    return tuple(counters)


def oom_counters() -> list[str]:
    files = ["/proc/vmstat"]
    try:
        with open("/proc/self/cgroup", encoding="utf-8") as lines:
            for line in lines:
                _, controllers, path = line.rstrip("\n").split(":", 2)
                if not controllers:  # version 2
                    files.append(f"/sys/fs/cgroup{path}/memory.events")
                elif "memory" in controllers.split(","):
                    files.append(f"/sys/fs/cgroup/memory{path}/memory.oom_control")
    except (OSError, ValueError):
        pass
    return files


# ---- a thread --------------------------------------------------------------------------------------------------------


class Thread:
    """`serve` blocks until the peer closes the descriptor that it is given and owns; None: the engine of this package.

    Nothing can end a thread from outside: one that hangs is abandoned, with its socket closed.
    """

    pid = None

    def __init__(self, serve: Callable[[int], int] | None = None):
        self._serve = serve
        self._ending: _Ending | None = None
        self._fate: str | None = None

    async def start(self) -> socket.socket:
        serve = self._serve or engine_serve()
        near, far = socket.socketpair()
        ending = _Ending()
        try:
            near.setblocking(False)
            _start_thread("lmlite-engine", self._run, serve, far, ending)
        except BaseException:
            near.close()
            far.close()
            raise
        self._ending = ending
        return near

    def _run(self, serve: Callable[[int], int], far: socket.socket, ending: _Ending) -> None:
        fate = "failed"  # stays if `serve` raises; the interpreter reports what
        try:
            fate = f"returned {serve(far.detach())}"
        finally:
            self._fate = fate
            ending.tell()

    def fate(self) -> str | None:
        return self._fate

    def kill(self) -> None:
        pass

    async def wait(self, timeout_s: float) -> bool:
        return self._ending is None or await self._ending.wait(timeout_s)

    async def close(self) -> None:
        await self.wait(EXIT_S)


def engine_serve() -> Callable[[int], int]:
    from . import native

    return native.serve
