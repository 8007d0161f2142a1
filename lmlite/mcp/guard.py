"""The process between this server and a program that serves tools: when the server is gone, however it went, so are the
program and all that it started.

`python guard.py PIPE COMMAND...`: runs the command with its own streams until it ends, or until the pipe does, which is open
as long as the server lives. Runs alone, without the package.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time

POLITE_S = 0.8
"""A program that reads the end of its input goes by itself; then it is asked to; then it is ended."""
SUBREAPER = 36
"""PR_SET_CHILD_SUBREAPER: whoever loses its parent becomes a child of this process, and is found."""


def main(pipe: int, command: list[str]) -> int:
    adopt_orphans()
    for ignored in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(ignored, lambda *_: None)  # a handler, which no child inherits
    told, tell = os.pipe()
    os.set_blocking(tell, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(tell, warn_on_full_buffer=False)
    try:
        child = subprocess.Popen(command)
    except (OSError, ValueError) as error:
        print(f"cannot be started: {error}", file=sys.stderr, flush=True)
        return 127
    with open(os.devnull, "r+b") as nothing:  # the program alone has its streams: who loses it shall notice
        os.dup2(nothing.fileno(), 0)
        os.dup2(nothing.fileno(), 1)
    while child.poll() is None:
        ready, _, _ = select.select([pipe, told], [], [])
        if told in ready:
            os.read(told, 4096)
        if pipe in ready:
            see_off(child)
            break
    end_rest()
    return child.returncode if child.returncode is not None and child.returncode >= 0 else 1


def adopt_orphans() -> None:
    with contextlib.suppress(OSError, AttributeError, ImportError):
        import ctypes

        ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)


def see_off(child: subprocess.Popen[bytes]) -> None:
    if not ended(child):
        os.killpg(0, signal.SIGTERM)
        if not ended(child):
            child.kill()
            child.wait()


def ended(child: subprocess.Popen[bytes]) -> bool:
    deadline = time.monotonic() + POLITE_S
    while child.poll() is None:
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.01)
    return True


def end_rest() -> None:
    """What the program started and left behind, whatever group it made itself part of."""
    while remaining := children():
        for pid in remaining:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.01)


def children() -> list[int]:
    mine = os.getpid()
    found = []
    with contextlib.suppress(OSError):
        for name in os.listdir("/proc"):
            if name.isdigit() and parent_of(name) == mine:
                found.append(int(name))
    return found


def parent_of(pid: str) -> int:
    try:
        with open(f"/proc/{pid}/stat", "rb") as stream:
            return int(stream.read().rpartition(b")")[2].split()[1])
    except (OSError, IndexError, ValueError):
        return 0


if __name__ == "__main__":
    code = main(int(sys.argv[1]), sys.argv[2:])
    if not os.path.isdir("/proc/self"):  # nobody could be found: the group is all that there is to go by
        os.killpg(0, signal.SIGKILL)
    os._exit(code)
