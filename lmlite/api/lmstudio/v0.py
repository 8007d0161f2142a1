"""LM Studio's `/api/v0`: OpenAI's requests, answers that add true stats and model facts and have no key besides.

The key sets are closed (`additionalProperties: false` in the published schemas) but for what newer builds add and clients
rely on, the `extras`: a model's capabilities, and the context that it was loaded with.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ...card import Instance, ModelCard
from ...events import Finished
from ..answer import Answer, count_drafts, count_usage, spell_calls
from ..dialect import Call, EmbedCall
from ..openai import chat as openai_chat
from ..openai import error as openai_error
from ..openai import text as openai_text
from ..openai.completion import Choices, Projection
from ..openai.embeddings import parse_embeddings as parse_openai_embeddings
from ..served import Served
from ..spell import dumps

error = openai_error.error

FORMAT = "gguf"
"""The one file format that the engine reads."""

_TYPES = {"llm": "llm", "vlm": "vlm", "embedding": "embeddings"}


def parse_chat(body: dict[str, Any]) -> Call:
    return openai_chat.parse_as(body, V0)


def parse_completions(body: dict[str, Any]) -> Call:
    return openai_text.parse_as(body, V0)


def parse_embeddings(body: dict[str, Any]) -> EmbedCall:
    return parse_openai_embeddings(body)


# ---- answers ---------------------------------------------------------------------------------------------------------


def _spell_message(served: Served, choice: int, answer: Answer) -> dict[str, Any]:
    """Tool calls go beyond the published schema where there are any."""
    return {"tool_calls": spell_calls(served.suffix, choice, answer.tool_calls)} if answer.tool_calls else {}


def _close(served: Served, finished: Sequence[Finished], choices: Choices) -> dict[str, Any]:
    drafts = count_drafts(finished, choices.draft_model) if choices.drafted else {}
    instance, card = served.instance, served.instance.card
    return {
        "stats": {**_spell_stats(finished), **drafts},
        "model_info": {
            "arch": card.arch,
            "quant": card.quantization,
            "format": FORMAT,
            "context_length": instance.context_length,
        },
        "runtime": {
            "name": instance.runtime.name,
            "version": instance.runtime.version,
            "supported_formats": list(instance.runtime.supported_formats),
        },
    }


def _spell_stats(finished: Sequence[Finished]) -> dict[str, Any]:
    """Seconds, to the microsecond. Several choices run side by side: their tokens over the time of the longest."""
    generation_ms = max(choice.stats.generation_ms for choice in finished)
    generated_tokens = sum(choice.stats.generated_tokens for choice in finished)
    first_token_ms = min(choice.stats.first_token_ms for choice in finished)
    return {
        "tokens_per_second": round(generated_tokens * 1000 / generation_ms, 3) if generation_ms > 0 else 0.0,
        "time_to_first_token": round(first_token_ms / 1000, 6),
        "generation_time": round(generation_ms / 1000, 6),
        "stop_reason": finished[0].reason,
    }


V0 = Projection(count_usage, _close, _spell_message)


# ---- models ----------------------------------------------------------------------------------------------------------


def models(cards: Iterable[ModelCard], instances: Iterable[Instance], extras: bool = True) -> str:
    """All models of the catalogue in its order, then the instances that have an id of their own."""
    loaded = {instance.id: instance for instance in instances}
    entries = [_spell_model(card.id, card, loaded.pop(card.id, None), extras) for card in cards]
    entries += [_spell_model(id, instance.card, instance, extras) for id, instance in loaded.items()]
    return dumps({"object": "list", "data": entries})


def model(id: str, card: ModelCard, instance: Instance | None, extras: bool = True) -> str:
    return dumps(_spell_model(id, card, instance, extras))


def _spell_model(id: str, card: ModelCard, instance: Instance | None, extras: bool) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "id": id,
        "object": "model",
        "type": _TYPES[card.type],
        "publisher": card.publisher,
        "arch": card.arch,
        "compatibility_type": FORMAT,
        "quantization": card.quantization,
        "state": "not-loaded" if instance is None else "loaded",
        "max_context_length": card.max_context_length,
    }
    if extras and instance is not None:
        entry["loaded_context_length"] = instance.context_length
    if extras and card.type != "embedding":
        abilities = {"tool_use": card.trained_for_tool_use, "vision": card.type == "vlm"}
        entry["capabilities"] = [name for name, has in abilities.items() if has]
    return entry
