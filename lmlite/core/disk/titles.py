"""What people read in place of a model's id: LM Studio's `display_name`.

Its rule as far as its own examples show it: words part at hyphens, underscores and blanks, each begins with a capital and
is otherwise as it was written, a version (`v1.5`) stays small, `it` is `Instruct`, and an embedding model is not called one
behind its name.
"""

from __future__ import annotations

import re
from typing import Final

from .model_files import printable

_GAP: Final = re.compile(r"[-_ ]+")
_VERSION: Final = re.compile(r"v[0-9].*")


def title_of(name: str, is_embedding: bool = False) -> str:
    """`gemma-3-270m-it-qat` is "Gemma 3 270m Instruct Qat"."""
    words = [word for word in _GAP.split(printable(name)) if word]
    if is_embedding:
        words = words[2:] if [word.lower() for word in words[:2]] == ["text", "embedding"] and len(words) > 2 else words
        if len(words) > 1 and words[-1].lower() == "embedding" and any("embed" in word.lower() for word in words[:-1]):
            words = words[:-1]
    return " ".join(map(_word, words)) or printable(name)


def _word(word: str) -> str:
    if _VERSION.fullmatch(word):
        return word
    return "Instruct" if word.lower() == "it" else word[0].upper() + word[1:]
