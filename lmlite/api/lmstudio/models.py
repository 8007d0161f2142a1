"""LM Studio's native `/api/v1`: its list of models and its error shape."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from ...card import Instance, ModelCard
from ...errors import JobNotFound, LmError, NothingToDownload, ToolServerFailed, UnexpectedEndpoint
from ..openai.error import tell
from ..spell import dumps

FORMAT = "gguf"


def models(cards: Iterable[ModelCard], instances: Iterable[Instance]) -> str:
    """Every model of the catalogue with its loaded instances; one that left the catalogue stays while it is loaded."""
    listed: dict[str, ModelCard] = {card.id: card for card in cards}
    loaded: dict[str, list[Instance]] = {}
    for instance in instances:
        listed.setdefault(instance.card.id, instance.card)
        loaded.setdefault(instance.card.id, []).append(instance)
    return dumps({"models": [_spell_model(card, loaded.get(id, [])) for id, card in listed.items()]})


def _spell_model(card: ModelCard, instances: list[Instance]) -> dict[str, Any]:
    is_llm = card.type != "embedding"
    entry: dict[str, Any] = {
        "type": "llm" if is_llm else "embedding",
        "publisher": card.publisher,
        "key": card.id,
        "display_name": card.display_name,
    }
    if is_llm:
        entry["architecture"] = card.arch
    entry |= {
        "quantization": {
            "name": None if card.quantization == "?" else card.quantization,
            "bits_per_weight": card.bits_per_weight,
        },
        "size_bytes": card.size_bytes,
        "params_string": card.params_string,
        "loaded_instances": [_spell_instance(instance) for instance in instances],
        # Clients that validate refuse the whole list for a 0; a file that cannot be read has no length.
        "max_context_length": max(1, card.max_context_length),
        "format": FORMAT,
    }
    if is_llm:
        entry["capabilities"] = _spell_capabilities(card)
        entry["description"] = card.note if card.problem is None else f"Cannot be loaded: {card.problem}"
    if card.variants:
        entry["variants"] = list(card.variants)
        entry["selected_variant"] = card.selected_variant
    return entry


def _spell_capabilities(card: ModelCard) -> dict[str, Any]:
    capabilities: dict[str, Any] = {"vision": card.type == "vlm", "trained_for_tool_use": card.trained_for_tool_use}
    if card.reasoning is not None:
        capabilities["reasoning"] = {
            "allowed_options": list(card.reasoning.options),
            "default": card.reasoning.default,
        }
    return capabilities


def _spell_instance(instance: Instance) -> dict[str, Any]:
    spelled: dict[str, Any] = {"id": instance.id, "config": instance_config(instance)}
    if instance.remaining_ttl_s is not None:
        spelled["remaining_ttl_seconds"] = round(instance.remaining_ttl_s, 3)
    return spelled


def instance_config(instance: Instance, echoed: bool = False) -> dict[str, Any]:
    """The effective settings of a loaded model, which a load takes as they are; of an embedding model only its context. The
    number of experts of a model without any is left out of what is `echoed`, as LM Studio does."""
    config: dict[str, Any] = {"context_length": instance.context_length}
    if instance.card.type != "embedding":
        config |= {
            "eval_batch_size": instance.eval_batch_size,
            "parallel": instance.parallel,
            "flash_attention": instance.flash_attention,
            "offload_kv_cache_to_gpu": instance.offload_kv_cache,
        }
        if instance.n_experts or not echoed:
            config["num_experts"] = instance.n_experts
    return config


def error(exc: LmError) -> tuple[int, str]:
    """HTTP status and body; ASCII, as in the other dialects."""
    spelled: Any = exc.message if isinstance(exc, UnexpectedEndpoint) else error_object(exc)
    return exc.status, json.dumps({"error": spelled}, separators=(",", ":"))


def error_object(exc: LmError) -> dict[str, Any]:
    kind = "internal_error" if exc.status >= 500 else "invalid_request"
    if isinstance(exc, (JobNotFound, NothingToDownload, ToolServerFailed)):
        kind = exc.code
    spelled = {"type": kind, "message": tell(exc), "code": exc.code}
    if exc.param is not None:
        spelled["param"] = exc.param
    return spelled
