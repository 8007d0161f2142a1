"""Lines that a person types: edited and remembered where there is readline, pasted text of several lines taken whole."""

from __future__ import annotations

import contextlib
import os
import select
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Final

HISTORY_MAX: Final = 1000
"""Lines that are remembered."""
PASTE_S: Final = 0.02
"""Nobody types the next line so soon after the last: what is there by then was pasted."""


class Keyboard:
    """The terminal's keyboard. `history` is a file for this user alone, `words` are completed at a line's beginning."""

    def __init__(self, history: Path, words: Sequence[str] = ()):
        self._history, self._words = history, tuple(words)
        self._readline = load_readline()

    def __enter__(self) -> Keyboard:
        if self._readline is not None:
            set_up(self._readline, self._complete)
            with contextlib.suppress(OSError):  # none yet, or none that can be read
                self._readline.read_history_file(self._history)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._readline is not None:
            self._readline.set_completer(None)
            with contextlib.suppress(OSError):  # a history that cannot be kept is no reason to fail
                save_history(self._readline, self._history)

    def read(self, prompt: str) -> str | None:
        """What was typed until Enter, or pasted; a line that ends in a backslash goes on. None at the end (Ctrl-D)."""
        lines: list[str] = []
        while True:
            try:
                line = self._line(prompt if not lines else ". ")
            except EOFError:
                return "\n".join(lines) if lines else None
            continued = line.endswith("\\")
            lines.append(line[:-1] if continued else line)
            if not continued and not more_is_there():
                break
        text = "\n".join(lines)
        if self._readline is not None and text.strip():
            self._readline.add_history(text)
        return text

    def _line(self, prompt: str) -> str:
        if self._readline is not None:
            return input(prompt)
        print(prompt, end="", file=sys.stderr, flush=True)  # stdout has the answers
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        return line.rstrip("\n")

    def _complete(self, text: str, state: int) -> str | None:
        found = [word for word in self._words if word.startswith(text)] if text else []
        return found[state] if state < len(found) else None


def load_readline() -> ModuleType | None:
    """None where there is none, or where `input` does not use it: it wants to draw on stdout."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return None
    try:
        import readline
    except ImportError:
        return None
    return readline


def set_up(readline: ModuleType, complete: object) -> None:
    readline.set_auto_history(False)
    readline.set_history_length(HISTORY_MAX)
    readline.set_completer(complete)
    readline.set_completer_delims(" \t\n")
    if "libedit" in (readline.__doc__ or ""):
        readline.parse_and_bind("bind ^I rl_complete")
    else:
        readline.parse_and_bind("tab: complete")
        readline.parse_and_bind("set enable-bracketed-paste on")


def save_history(readline: ModuleType, path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    umask = os.umask(0o077)  # what is asked of a model is nobody else's business, not for a moment
    try:
        readline.write_history_file(path)
    finally:
        os.umask(umask)
    os.chmod(path, 0o600)


def more_is_there() -> bool:
    return bool(select.select([sys.stdin], [], [], PASTE_S)[0])
