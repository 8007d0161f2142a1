"""What a chat template tells of its model without being rendered: whether it knows tools, what reasoning it can be told.

Only the template's tags count, not its comments nor the text between; all takes time linear in the template's length.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from ...card import Reasoning

LEVELS: Final = ("low", "medium", "high")
"""LM Studio's levels of reasoning; `api` gives them to a template as its `reasoning_effort`."""

OFF: Final = ("none", "no_think", "off")
"""Words of templates that have no switch, in the order in which one is taken."""

_OPENING: Final = re.compile(r"\{[{%#]")
_CLOSING: Final = {"{{": "}}", "{%": "%}", "{#": "#}"}
_TOOLS: Final = re.compile(r"""(?<![\w.'"])tools(?![\w'"])""")
_THINKING: Final = re.compile(r"""(?<![\w.'"])enable_thinking(?![\w'"]|\s*=(?!=))""")
_EFFORT: Final = re.compile(r"""(?<![\w.'"])reasoning_effort(?![\w'"]|\s*=(?!=))""")
_EFFORT_SET: Final = re.compile(r"""(?<![\w.'"])reasoning_effort\s*=(?!=)""")
_MARKS: Final = re.compile(r"think>|THINK|reasoning|thinking>|channel")
"""What tells thoughts from an answer, wherever it stands."""
_COMPARES: Final = re.compile(r"==|!=|\bin\b")
_QUOTED: Final = re.compile(r"""'(\w{1,16})'|"(\w{1,16})\"""")
_DEFAULT: Final = re.compile(r"""(?:(?<![=!<>])=|\belse\b|\bdefault\()\s*['"](\w{1,16})['"]""")


def tags(template: str) -> Iterator[str]:
    """The insides of `{{ }}` and `{% %}`, up to the first that is not closed."""
    at = 0
    while opening := _OPENING.search(template, at):
        end = template.find(_CLOSING[opening[0]], opening.end())
        if end < 0:
            return
        if opening[0] != "{#":
            yield template[opening.end() : end]
        at = end + 2


def reads_tools(template: str) -> bool:
    """Whether a chat template uses the variable `tools`."""
    return any(_TOOLS.search(tag) for tag in tags(template))


def reasoning(template: str) -> Reasoning | None:
    """What a request may say of reasoning, and what holds if it says nothing; None if the template cannot be told."""
    about = [tag for tag in tags(template) if "enable_thinking" in tag or "reasoning_effort" in tag]
    switched = any(_THINKING.search(tag) for tag in about)
    of_effort = [tag for tag in about if _EFFORT.search(tag) or _EFFORT_SET.search(tag)]
    usual = next((word[1] for tag in of_effort if (word := _DEFAULT.search(tag))), None)
    words, compares = _words(of_effort)
    reads_effort = any(_EFFORT.search(tag) for tag in of_effort)
    off = next((word for word in OFF if word in words), None) if reads_effort else None
    # Those that the template tells apart; all, if it hands on whatever it is told.
    levels = tuple(level for level in LEVELS if level in (*words, usual) or not compares) if reads_effort else ()
    switch = ("off", "on") if switched or (off and not levels) else ("off",) if off else ()
    options = (*switch, *levels)
    if not options:
        return None
    if usual not in levels:
        usual = "off" if off and usual == off else "medium" if "medium" in levels else None
    if "on" in switch and usual is None:
        # The engine sets enable_thinking where nobody does, unless thoughts could not be told from the answer.
        usual = "on" if off or _MARKS.search(template) else "off"
    return Reasoning(options, usual or (levels or options)[0], off)


def _words(of_effort: list[str]) -> tuple[set[str], bool]:
    """Those that an effort is compared with, and whether it is compared at all."""
    compared = [tag for tag in of_effort if _COMPARES.search(tag)]
    return {single or double for tag in compared for single, double in _QUOTED.findall(tag)}, bool(compared)
