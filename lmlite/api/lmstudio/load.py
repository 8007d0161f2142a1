"""`/api/v1/models/load` and `/unload`: strict bodies, what they answer, and the events of a load that is streamed.

Beyond LM Studio's fields a load takes `parallel`, `ttl`, `identifier`, `gpu`, `kv_type`, `projector`, `force` and `stream`;
where there is something to know about the model's chat template, its answer has `warnings`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Final

from ...card import Instance, Presence
from ...config import BATCH_MAX, CACHE_TYPES, CONTEXT_MAX, EXPERTS_MAX, PARALLEL_MAX
from ...errors import InvalidRequest, InvalidType, LmError, ModelNotFound, SettingRefused, UnrecognizedKeys
from ...records import dataclass
from ...settings import ModelSettings
from ..dialect import Frame
from ..read.fields import Fields, as_number
from ..read.sampling import TTL_S_MAX
from ..spell import dumps
from . import models as lmstudio_v1
from .models import error_object, instance_config

LOAD_KEYS: Final = frozenset(
    ("model", "context_length", "eval_batch_size", "flash_attention", "num_experts", "offload_kv_cache_to_gpu",
     "echo_load_config", "parallel", "ttl", "identifier", "gpu", "kv_type", "projector", "force", "stream")
)  # fmt: skip
UNLOAD_KEYS: Final = frozenset(("instance_id",))


@dataclass(slots=True, frozen=True)
class Load:
    """`gpu` is the share of the layers on the GPU, 0..1; with `force` memory is no matter."""

    model: str
    settings: ModelSettings
    identifier: str | None
    gpu: float | None
    force: bool
    echo: bool
    stream: bool


def parse_load(body: dict[str, Any]) -> Load:
    fields = strict(body, LOAD_KEYS)
    return Load(
        model=required_name(fields, "model"),
        settings=ModelSettings(
            context_length=fields.integer("context_length", 1, CONTEXT_MAX),
            parallel=fields.integer("parallel", 1, PARALLEL_MAX),
            eval_batch_size=fields.integer("eval_batch_size", 1, BATCH_MAX),
            flash_attention=switch(fields, "flash_attention"),
            kv_offload=switch(fields, "offload_kv_cache_to_gpu"),
            experts=fields.integer("num_experts", 0, EXPERTS_MAX),  # 0: as it was trained, or none
            kv_type=kv_type(fields),
            projector=switch(fields, "projector"),
            ttl_s=fields.number("ttl", 0, TTL_S_MAX),
        ),
        identifier=fields.name("identifier"),
        gpu=gpu(fields),
        force=fields.boolean("force"),
        echo=fields.boolean("echo_load_config"),
        stream=fields.boolean("stream"),
    )


_NAMES: Final = {"experts": "num_experts", "kv_offload": "offload_kv_cache_to_gpu", "gpu_layers": "gpu", "ttl_s": "ttl"}
"""What a load's fields are called that are others than those of `ModelSettings`."""


def spelled(asked: Load, error: SettingRefused) -> LmError:
    """`error` by the name that the request has for the setting; as it is if the request does not have it."""
    said = asked.gpu if error.setting == "gpu_layers" else getattr(asked.settings, error.setting, None)
    if said is None:
        return error
    name = _NAMES.get(error.setting, error.setting)
    return InvalidRequest(f"'{name}': {error.why}", name)


def parse_unload(body: dict[str, Any]) -> str:
    """The instance's id."""
    return required_name(strict(body, UNLOAD_KEYS), "instance_id")


def strict(body: Mapping[str, Any], keys: frozenset[str], path: str = "") -> Fields:
    if unknown := tuple(key for key in body if key not in keys):
        raise UnrecognizedKeys(unknown)
    return Fields(body, path)


def required_name(fields: Fields, name: str) -> str:
    fields.require(name)
    found = fields.name(name)
    if found is None:
        raise InvalidRequest(f"'{name}' must not be empty", name)
    return found


def switch(fields: Fields, name: str) -> bool | None:
    """None where the request says nothing."""
    return None if fields.get(name) is None else fields.boolean(name)


def kv_type(fields: Fields) -> str | None:
    """One type for K and V, or two joined by a comma."""
    text = fields.string("kv_type")
    if text is not None and not (text.count(",") <= 1 and all(part in CACHE_TYPES for part in text.split(","))):
        listing = ", ".join(f"'{type}'" for type in CACHE_TYPES)
        raise InvalidRequest(f"'kv_type' must be one of {listing}, or two of them joined by ','", "kv_type")
    return text


def gpu(fields: Fields) -> float | None:
    value = fields.get("gpu")
    if isinstance(value, str):
        if value not in ("off", "max"):
            raise InvalidType("gpu", "'off', 'max' or a number between 0 and 1")
        return 1.0 if value == "max" else 0.0
    return None if value is None else as_number(value, "gpu", 0, 1)


# ---- answers ---------------------------------------------------------------------------------------------------------


def loaded(instance: Instance, load_s: float, echo: bool) -> str:
    """`load_s` is the time from the request to the end of the load."""
    is_llm = instance.card.type != "embedding"
    answer: dict[str, Any] = {
        "type": "llm" if is_llm else "embedding",
        "instance_id": instance.id,
        "load_time_seconds": round(load_s, 3),
        "status": "loaded",
    }
    if echo:
        answer["load_config"] = instance_config(instance, echoed=True)
    if instance.warnings:
        answer["warnings"] = list(instance.warnings)
    return dumps(answer)


def unloaded(instance_id: str) -> str:
    return dumps({"instance_id": instance_id})


def started(instance_id: str) -> Frame:
    return "model_load.start", dumps({"type": "model_load.start", "model_instance_id": instance_id})


def progressed(instance_id: str, fraction: float) -> Frame:
    event = {"type": "model_load.progress", "model_instance_id": instance_id, "progress": round(fraction, 4)}
    return "model_load.progress", dumps(event)


def ended(answer: str) -> Frame:
    """`answer` is what the load would answer if it were not streamed."""
    return "model_load.end", answer


def failed(exc: LmError) -> Frame:
    return "error", dumps({"type": "error", "error": error_object(exc)})


def error(exc: LmError) -> tuple[int, str]:
    """As everywhere in `/api/v1`, but that the type of what is unknown is its code here."""
    if isinstance(exc, ModelNotFound):
        return exc.status, json.dumps({"error": {**error_object(exc), "type": exc.code}}, separators=(",", ":"))
    return lmstudio_v1.error(exc)


# ---- instances -------------------------------------------------------------------------------------------------------


@dataclass(slots=True, frozen=True)
class KeptPrompts:
    """The prompt cache on the disk, which all models share."""

    used_bytes: int
    budget_bytes: int


def instances(presences: Iterable[Presence], kept: KeptPrompts | None = None) -> str:
    """ASCII: a path from the disk need not be Unicode. `kept` is told where there is such a cache."""
    spelled: dict[str, Any] = {"instances": [_spell_presence(presence) for presence in presences]}
    if kept is not None:
        spelled["promptCache"] = {"usedBytes": kept.used_bytes, "budgetBytes": kept.budget_bytes}
    return json.dumps(spelled, separators=(",", ":"))


def _spell_presence(presence: Presence) -> dict[str, Any]:
    """In the words of LM Studio's own command line."""
    card = presence.card
    spelled: dict[str, Any] = {
        "identifier": presence.id,
        "model": card.id,
        "type": "embedding" if card.type == "embedding" else "llm",
        "path": card.path,
        "status": presence.status,
        "sizeBytes": card.size_bytes,
        "contextLength": presence.context_length,
        "parallel": presence.parallel,
        "threads": presence.threads,
        "queued": presence.queued,
        "ttlMs": _ms(presence.ttl_s),
        "remainingTtlMs": _ms(presence.remaining_ttl_s),
        "lastUsedTime": _ms(presence.used_at),
        "pid": presence.pid,
    }
    if presence.chat_template:
        spelled["chatTemplate"] = presence.chat_template
    if presence.warnings:
        spelled["warnings"] = list(presence.warnings)
    return spelled


def _ms(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds * 1000)
