"""`GET /lmlite/models`: the catalogue as LM Studio's command line spells it (contract section 8, `ls --json`).

Beyond that contract: `problem`, of a model that cannot be loaded only; `hears` of one that does; `aliases` and `note`
where there are any.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, Final

from ...card import ModelCard

FORMAT: Final = "gguf"


def models(cards: Iterable[ModelCard], notes: Iterable[str] = ()) -> str:
    """ASCII: a path from the disk need not be Unicode. `notes` are sentences about what is not among the models."""
    return json.dumps({"models": [spell(card) for card in cards], "notes": list(notes)}, separators=(",", ":"))


def spell(card: ModelCard) -> dict[str, Any]:
    path = card.path
    entry: dict[str, Any] = {
        "type": "embedding" if card.type == "embedding" else "llm",
        "modelKey": card.id,
        "format": FORMAT,
        "displayName": card.display_name,
        "publisher": card.publisher,
        "path": path,
        "sizeBytes": card.size_bytes,
        "indexedModelIdentifier": path,
        "deviceIdentifier": None,
    }
    if card.params_string is not None:
        entry["paramsString"] = card.params_string
    if card.problem is None:
        entry["architecture"] = card.arch
    if card.quantization != "?":
        entry["quantization"] = {"name": card.quantization, "bits": card.bits_per_weight or 0}
    if card.variants:
        entry |= {"variants": list(card.variants), "selectedVariant": card.selected_variant}
    if card.type != "embedding":
        entry |= {"vision": card.sees, "trainedForToolUse": card.trained_for_tool_use}
    if card.hears:
        entry["hears"] = True
    entry["maxContextLength"] = card.max_context_length
    if card.aliases:
        entry["aliases"] = list(card.aliases)
    if card.note is not None:
        entry["note"] = card.note
    if card.problem is not None:
        entry["problem"] = card.problem
    return entry
