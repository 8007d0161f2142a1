"""What a command shows: tables, colours, progress, questions.

Data goes to stdout, everything else to stderr. Colours and bars are for terminals only, and colours not where NO_COLOR is
set. Names that come from a disk or a network go through `escaped` first: they may hold line breaks and escape sequences.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, Final, TextIO

STYLES: Final = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "cyan": "36"}
GAP: Final = 3
"""Blanks between two columns of a table; fewer where the terminal is narrow."""
MIN_COLUMN: Final = 8
"""Columns are not cut shorter to fit a narrow terminal: what is left would tell nothing."""
REDRAW_S: Final = 0.1
OBEYED: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
BAR_WIDTH: Final = 30
LEVELS: Final = ("debug", "info", "warn", "error", "none")
"""Of messages, as LM Studio calls them."""

Cell = str | tuple[str, str]
"""A text, or a text and its style."""


# ---- words -----------------------------------------------------------------------------------------------------------


def escaped(text: str) -> str:
    """`text` on one line and with nothing that a terminal would obey."""
    return text if text.isprintable() else "".join(c if c.isprintable() else _escape(c) for c in text)


def _escape(c: str) -> str:
    return c.encode("unicode_escape").decode("ascii")


def printable(text: str) -> str:
    """`text` with its lines and tabs, and nothing else that a terminal would obey: no escape sequences, nor what
    turns the direction of writing."""
    return OBEYED.sub(lambda found: _escape(found[0]), text.replace("\r\n", "\n"))


def decimal_size(n_bytes: float) -> str:
    """`4.07 GB`: as LM Studio's lists tell sizes."""
    return _size(n_bytes, 1000, ("B", "KB", "MB", "GB", "TB"))


def binary_size(n_bytes: float) -> str:
    """`3.79 GiB`: as LM Studio tells memory."""
    return _size(n_bytes, 1024, ("B", "KiB", "MiB", "GiB", "TiB"))


def _size(n_bytes: float, step: int, units: Sequence[str]) -> str:
    power = 0
    while round(n_bytes, 2) >= step and power < len(units) - 1:
        n_bytes, power = n_bytes / step, power + 1
    return f"{n_bytes:.2f} {units[power]}" if power else f"{n_bytes:.0f} {units[0]}"


def duration(seconds: float) -> str:
    """`45s`, `59m`, `1h 5m`, `2d 3h`: its two largest units, whole ones."""
    rest, parts = max(0, int(seconds)), []
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, rest = divmod(rest, length)
        if count:
            parts.append(f"{count}{unit}")
    largest_is_m = parts[:1] and parts[0].endswith("m") and int(parts[0][:-1]) >= 10
    return " ".join(parts[: 1 if largest_is_m else 2]) or "0s"


def width(text: str) -> int:
    """Columns that `text` takes on a terminal."""
    if text.isascii():
        return len(text)
    from unicodedata import combining, east_asian_width

    return sum(0 if combining(c) else 2 if east_asian_width(c) in "WF" else 1 for c in text)


def cut(text: str, limit: int) -> str:
    """`text` in at most `limit` columns."""
    if width(text) <= limit:
        return text
    while width(text) > limit - 1:
        text = text[:-1]
    return text + "…"


# ---- terminals -------------------------------------------------------------------------------------------------------


def is_terminal(stream: TextIO) -> bool:
    try:
        return stream.isatty() and os.environ.get("TERM") != "dumb"
    except ValueError:  # closed
        return False


def is_interactive() -> bool:
    """Whether somebody is there to answer a question."""
    return is_terminal(sys.stdin) and is_terminal(sys.stderr)


def columns(stream: TextIO) -> int | None:
    """The terminal's width; None where `stream` is none."""
    if not is_terminal(stream):
        return None
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError):
        return 80


def style(text: str, *names: str, stream: TextIO | None = None) -> str:
    """`text` in bold, in colour: see `STYLES`; as it is where `stream` (stdout) shows no colours."""
    if os.environ.get("NO_COLOR") or not is_terminal(stream or sys.stdout):
        return text
    codes = ";".join(STYLES[name] for name in names)
    return f"\x1b[{codes}m{text}\x1b[0m" if codes else text


def put(text: str, stream: TextIO | None = None, end: str = "\n") -> None:
    """Prints to stdout; what its encoding cannot tell is escaped."""
    stream = stream or sys.stdout
    encoding = stream.encoding or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding), file=stream, end=end)


def put_json(value: Any) -> None:
    """One value as JSON on stdout; ASCII, so that names cannot reach the terminal as anything else."""
    print(json.dumps(value, indent=2 if is_terminal(sys.stdout) else None))


def say(arguments: argparse.Namespace, text: str, level: str = "info") -> None:
    """A message on stderr, unless the flags of `client.add_flags`, which may be missing, keep messages of its level back.
    What a command fails of is no message: it is raised as `LmError`."""
    said = vars(arguments)
    shown = "debug" if said.get("verbose") else "none" if said.get("quiet") else said.get("log_level") or "info"
    shown = "warn" if shown == "warning" else shown
    if shown not in LEVELS or LEVELS.index(level) >= LEVELS.index(shown):
        put(text, sys.stderr)


# ---- tables ----------------------------------------------------------------------------------------------------------


def table(head: Sequence[str], rows: Sequence[Sequence[Cell]], limit: int | None = None) -> str:
    """Lines without trailing blanks, the cells of a column one below the other. `limit` (the terminal's width) is kept by
    less room between the columns, then by cutting the widest ones as far as that makes sense, but never the first: it is what
    other commands are given."""
    lines: list[list[tuple[str, str]]] = [[(text, "dim") for text in head]]
    lines += [[(cell, "") if isinstance(cell, str) else cell for cell in row] for row in rows]
    widths = [max(width(line[i][0]) for line in lines) for i in range(len(head))]
    if limit is None:
        limit = columns(sys.stdout)
    gap = GAP
    if limit is not None:
        while gap > 1 and sum(widths) + gap * (len(widths) - 1) > limit:
            gap -= 1
        _shrink(widths, limit - gap * (len(widths) - 1))
    return "\n".join(_line(line, widths, gap) for line in lines)


def _shrink(widths: list[int], limit: int) -> None:
    while sum(widths) > limit:
        widest = max(range(1, len(widths)), key=lambda i: widths[i], default=0)
        if widest == 0 or widths[widest] <= MIN_COLUMN:
            break
        widths[widest] -= 1


def _line(cells: Sequence[tuple[str, str]], widths: Sequence[int], gap: int) -> str:
    shown = ""
    blanks = 0
    for (text, of), column in zip(cells, widths, strict=True):
        text = cut(text, column)
        if text:
            shown += " " * blanks + (style(text, of) if of else text)
            blanks = 0
        blanks += column - width(text) + gap
    return shown


# ---- progress --------------------------------------------------------------------------------------------------------


class Bar:
    """Progress of one thing, drawn over itself on stderr; nothing is drawn where that is no terminal.

    `update` takes what is done of `total` (None: not known) and a note, which says it in words. Leaving the `with` block
    takes the bar away.
    """

    def __init__(self, total: float | None, label: str, clock: Callable[[], float] = time.monotonic):
        self.total, self.label = total, label
        self.shown = is_terminal(sys.stderr)
        self._clock = clock
        self._drawn: str | None = None
        self._drawn_at = 0.0

    def update(self, done: float, note: str = "") -> None:
        if not self.shown:
            return
        now = self._clock()
        at_end = self.total is not None and done >= self.total
        if self._drawn is None or at_end or now - self._drawn_at >= REDRAW_S:
            self._drawn_at = now
            self._draw(" ".join(self._parts(done, note)))

    def clear(self) -> None:
        if self._drawn:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
        self._drawn = None

    def _parts(self, done: float, note: str) -> Iterator[str]:
        if self.label:
            yield self.label
        if self.total:
            share = min(1.0, max(0.0, done / self.total))
            room = (columns(sys.stderr) or 80) - width(self.label) - width(note) - len("  100%  ") - 1
            if (n := min(BAR_WIDTH, room - 2)) >= 5:
                full = int(share * n)
                yield f"[{'█' * full}{'░' * (n - full)}]" if _has_blocks() else f"[{'#' * full}{'.' * (n - full)}]"
            yield f"{int(share * 100):3d}%"
        if note:
            yield note

    def _draw(self, text: str) -> None:
        # A line that is as wide as the terminal would wrap, and the next one could not be drawn over it.
        text = cut(text, (columns(sys.stderr) or 80) - 1)
        if text != self._drawn:
            put(f"\r{text}\x1b[K", sys.stderr, end="")
            sys.stderr.flush()
            self._drawn = text

    def __enter__(self) -> Bar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.clear()


def _has_blocks() -> bool:
    try:
        "█░".encode(sys.stderr.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True


# ---- questions -------------------------------------------------------------------------------------------------------


def choose(question: str, choices: Sequence[str]) -> int | None:
    """The index of the choice that the user at the terminal takes; None if they want none of them."""
    for number, choice in enumerate(choices, 1):
        put(f"{number:3d}. {choice}", sys.stderr)
    while True:
        put(f"{question} [1-{len(choices)}, empty: none] ", sys.stderr, end="")
        sys.stderr.flush()
        answer = sys.stdin.readline().strip()
        if not answer:
            return None
        if answer.isascii() and answer.isdigit() and 1 <= int(answer[:9]) <= len(choices):
            return int(answer) - 1


def confirm(question: str) -> bool:
    """Whether the user at the terminal says yes; an empty answer does."""
    put(f"{question} [Y/n] ", sys.stderr, end="")
    sys.stderr.flush()
    answer = sys.stdin.readline()
    return answer != "" and answer.strip().lower() in ("", "y", "yes")
