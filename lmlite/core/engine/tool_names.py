"""The names of tools as models are told them: letters, digits, `_`, `-` and `.`, which every template and grammar can take.

A name that is made of those stays as it is. Another one gets `_` for what it must not have, and a number where that is some
other tool's name; the client hears its own name again.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from ...messages import Message, ToolCallPart, ToolResultPart
from ...request import Chat

NAME_MAX: Final = 256
"""Letters: what the engine takes (csrc/protocol.cpp)."""

_FINE: Final = re.compile(rf"[A-Za-z0-9_.-]{{1,{NAME_MAX}}}")
_OTHER: Final = re.compile(r"[^A-Za-z0-9_.-]")


def spell_names(chat: Chat) -> Mapping[str, str]:
    """What stands for the names of `chat` that cannot stay as they are: usually nothing.

    Those of offered tools come first, so that what stands for them does not depend on what was said.
    """
    return _spell((*offered(chat.tools), *_mentioned(chat.messages)))


def given_names(tools: Sequence[Mapping[str, Any]]) -> Mapping[str, str]:
    """The names that a client gave to `tools`, by what stands for them; those that stay as they are are not in it."""
    return {spelled: given for given, spelled in _spell(offered(tools)).items()}


def offered(tools: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    return tuple(tool["function"]["name"] for tool in tools)


def _mentioned(messages: Iterable[Message]) -> Iterator[str]:
    for message in messages:
        for part in message.parts:
            if isinstance(part, ToolCallPart | ToolResultPart) and part.name:
                yield part.name


def _spell(names: Iterable[str]) -> dict[str, str]:
    names = dict.fromkeys(names)
    others = [name for name in names if not _FINE.fullmatch(name)]
    if not others:
        return {}
    taken = set(names).difference(others)
    spelled = {}
    for name in others:
        spelled[name] = _free(_OTHER.sub("_", name)[:NAME_MAX], taken)
        taken.add(spelled[name])
    return spelled


def _free(wanted: str, taken: set[str]) -> str:
    name, n = wanted, 1
    while name in taken:
        n += 1
        end = f"_{n}"
        name = wanted[: NAME_MAX - len(end)] + end
    return name
