"""Names of the user's own for models, and patterns of names, where `*` is any text."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Final

from ...card import ANY_TEXT
from .model_files import key_of


class Aliases:
    """`given` maps names and patterns to what they stand for. Of patterns the longest counts, of equally long ones the
    first."""

    def __init__(self, given: Mapping[str, str]):
        self._given: Final = dict(given)
        self._names = {key_of(name): key_of(target) for name, target in given.items() if ANY_TEXT not in name}
        patterns = sorted((key_of(name) for name in given if ANY_TEXT in name), key=len, reverse=True)
        targets = {key_of(name): key_of(target) for name, target in given.items()}
        self._patterns = [(_compiled(pattern), targets[pattern]) for pattern in patterns]

    def __iter__(self) -> Iterator[tuple[str, str, str]]:
        """Each as it was given, with what it stands for, and the key of that."""
        for name, target in self._given.items():
            yield name, target, key_of(target)

    def key(self, name: str) -> str:
        """Of what `name` stands for, which is itself unless it is a name of the user's own."""
        key = key_of(name)
        return self._names.get(key, key)

    def matched(self, name: str) -> str | None:
        """The key of what the pattern that `name` has the form of stands for; None of a name of the user's own."""
        key = key_of(name)
        if key in self._names:
            return None
        return next((target for pattern, target in self._patterns if pattern.fullmatch(key)), None)


def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(".*".join(map(re.escape, re.split(r"\*+", pattern))), re.DOTALL)
