"""`model.yaml`: a model of a catalogue, or of one's own, made of files on disk, metadata and settings (modelyaml.org).

What a stranger wrote is read as data: a small document of plain values without aliases, or `YamlError`. A value of it
that lmlite cannot use is told in `ignored` and left out; the rest counts. PyYAML is used where it is installed.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, TypeGuard

from ...errors import ConfigError, LmError
from ...records import dataclass
from ...settings import ModelSettings
from .gguf import MAX_CONTEXT
from .model_settings import read_entry, read_sampling_value, read_template_kwargs

MAX_BYTES: Final = 64 << 10
"""The catalogue's own have about 2 kB."""
MAX_DEPTH: Final = 16
"""Nesting; real documents stay below 8, and the parser is recursive."""
MAX_VALUES: Final = 4096
MAX_BASES: Final = 64
MAX_TEXT: Final = 255
"""Characters of a name."""


class YamlError(LmError):
    """The document cannot be used; `reason` is short and shows no path."""

    status, code = 422, "invalid_model_yaml"

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


@dataclass(slots=True, frozen=True)
class Definition:
    """One model of a model.yaml. `bases` are what it may be made of: names of each, the first that is known counts."""

    id: str
    bases: tuple[tuple[str, ...], ...]
    from_catalogue: bool  # it says where its files are downloaded from: files on disk are there for it
    settings: ModelSettings = ModelSettings()
    arch: str | None = None
    params_string: str | None = None
    max_context_length: int | None = None
    trained_for_tool_use: bool | None = None
    reasoning: bool | None = None
    ignored: tuple[str, ...] = ()


def can_read() -> bool:
    """Whether PyYAML is there."""
    try:
        importlib.import_module("yaml")
    except ImportError:
        return False
    return True


_MENTIONED: Final = re.compile(r"\b(base|key|user|repo)\s*:\s*[\"']?([\w./@-]{1,255})")


def mentions(text: str) -> set[str]:
    """Names of the models that the document may be made of, as far as that can be seen without a parser."""
    found, user = set(), ""
    for key, value in _MENTIONED.findall(text[:MAX_BYTES]):
        if key == "user":
            user = value
        else:
            found.add(f"{user}/{value}" if key == "repo" else value)
    return found


def parse(text: str) -> Definition:
    """Raises `YamlError`."""
    document = _load(text)
    if not isinstance(document, dict):
        raise YamlError("not a mapping")
    id = document.get("model")
    if not _is_name(id):
        raise YamlError("'model' must be a name")
    bases = tuple(_bases(document.get("base")))
    if not bases:
        raise YamlError("'base' must name a model")
    ignored: list[str] = []
    metadata = document.get("metadataOverrides")
    return Definition(
        id=id,
        bases=bases,
        from_catalogue=any(len(names) > 1 for names in bases),
        settings=_settings(document, ignored),
        **_overrides(metadata if isinstance(metadata, dict) else {}),
        ignored=tuple(ignored),
    )


# ---- the document ----------------------------------------------------------------------------------------------------


def _load(text: str) -> Any:
    yaml = importlib.import_module("yaml")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    if len(text) > MAX_BYTES:
        raise YamlError(f"more than {MAX_BYTES} bytes")
    try:
        _bound(yaml, yaml.parse(text, Loader=loader))
        return yaml.load(text, Loader=loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise YamlError(f"not valid YAML{f' (line {mark.line + 1})' if mark else ''}") from None
    except (ValueError, OverflowError, RecursionError):  # a date or a number that is none
        raise YamlError("not valid YAML") from None


def _bound(yaml: Any, events: Iterator[Any]) -> None:
    """Walks over the events before anything is made of them: aliases and merges of them grow without end."""
    depth = values = 0
    for event in events:
        if isinstance(event, yaml.AliasEvent):
            raise YamlError("aliases are not supported")
        values += isinstance(event, yaml.NodeEvent)
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH or values > MAX_VALUES:
            raise YamlError("nested too deeply" if depth > MAX_DEPTH else f"more than {MAX_VALUES} values")


def _is_name(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and 0 < len(value) <= MAX_TEXT and value.isprintable() and value == value.strip()


def _bases(said: object) -> Iterator[tuple[str, ...]]:
    """A name alone, or objects with a key and the sources that such files come from."""
    for base in (said if isinstance(said, list) else [said])[:MAX_BASES]:
        if _is_name(base):
            yield (base,)
        elif isinstance(base, dict) and _is_name(key := base.get("key")):
            yield (key, *_sources(base.get("sources")))


def _sources(said: object) -> Iterator[str]:
    for source in (said if isinstance(said, list) else [])[:MAX_BASES]:
        if isinstance(source, dict) and _is_name(source.get("user")) and _is_name(source.get("repo")):
            yield f"{source['user']}/{source['repo']}"


# ---- metadata --------------------------------------------------------------------------------------------------------


def _overrides(said: Mapping[str, Any]) -> dict[str, Any]:
    """What the document knows better than the header. Vision is not among it: that is for the files to have."""
    lengths = [length for length in _items(said.get("contextLengths")) if _is_length(length)]
    return {
        "arch": next(filter(_is_name, _items(said.get("architectures"))), None),
        "params_string": next(filter(_is_name, _items(said.get("paramsStrings"))), None),
        "max_context_length": max(lengths, default=None),
        "trained_for_tool_use": _flag(said.get("trainedForToolUse")),
        "reasoning": _flag(said.get("reasoning")),
    }


def _items(said: object) -> list[Any]:
    return said if isinstance(said, list) else []


def _is_length(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= MAX_CONTEXT


def _flag(said: object) -> bool | None:
    """None for "mixed" too: then the file tells."""
    return said if isinstance(said, bool) else None


# ---- settings --------------------------------------------------------------------------------------------------------

_SAMPLING: Final[Mapping[str, tuple[str, float | None]]] = {
    "temperature": ("temperature", None),
    "topKSampling": ("top_k", 0),
    "topPSampling": ("top_p", 1.0),
    "minPSampling": ("min_p", 0.0),
    "repeatPenalty": ("repeat_penalty", 1.0),
    "maxPredictedTokens": ("max_tokens", -1),
    "llama.frequencyPenalty": ("frequency_penalty", 0.0),
    "llama.presencePenalty": ("presence_penalty", 0.0),
    "llama.locallyTypicalSampling": ("typical_p", 1.0),
    "llama.xtcProbability": ("xtc_probability", 0.0),
    "llama.xtcThreshold": ("xtc_threshold", None),
}
"""Behind `llm.prediction.`: the field of our sampling, and its value where the box is not checked."""

_LOAD: Final[Mapping[str, str]] = {
    "contextLength": "context_length",
    "numExperts": "experts",
    "offloadKVCacheToGpu": "kv_offload",
    "llama.acceleration.offloadRatio": "gpu_layers",
    "llama.cpuThreadPoolSize": "threads",
    "llama.evalBatchSize": "eval_batch_size",
    "llama.flashAttention": "flash_attention",
    "llama.keepModelInMemory": "mlock",
    "llama.tryMmap": "mmap",
}
"""Behind `llm.load.` or `embedding.load.`: the setting of ours."""

_CACHE_TYPES: Final = ("llama.kCacheQuantizationType", "llama.vCacheQuantizationType")


def _settings(document: Mapping[str, Any], ignored: list[str]) -> ModelSettings:
    config = document.get("config")
    sections = config if isinstance(config, dict) else {}
    sampling = _read_fields(_fields(sections.get("operation")), ("llm.prediction.",), _read_sampling, ignored)
    load = _read_fields(_fields(sections.get("load")), ("llm.load.", "embedding.load."), _read_load, ignored)
    types = [load.pop(name, None) for name in _CACHE_TYPES]
    if any(types):
        load["kv_type"] = ",".join(type or "f16" for type in types)
    said = {**load, "sampling": sampling, "template_kwargs": dict(_variables(document.get("customFields"), ignored))}
    return read_entry(said).settings


def _fields(section: object) -> Iterator[tuple[str, Any]]:
    for field in _items(section.get("fields") if isinstance(section, dict) else None):
        if isinstance(field, dict) and isinstance(field.get("key"), str):
            yield field["key"], field.get("value")


Read = Callable[[str, Any], tuple[str, Any] | None]


def _read_fields(
    fields: Iterator[tuple[str, Any]], scopes: tuple[str, ...], read: Read, ignored: list[str]
) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in fields:
        name = next((key[len(scope) :] for scope in scopes if key.startswith(scope)), "")
        try:
            pair = read(name, value)
        except ConfigError as error:
            ignored.append(f"{key}: {error.message}")
            continue
        if pair is None:
            ignored.append(f"{key}: not known")
        else:
            values[pair[0]] = pair[1]
    return values


def _read_sampling(name: str, value: Any) -> tuple[str, Any] | None:
    if name not in _SAMPLING:
        return None
    ours, off = _SAMPLING[name]
    checked, value = _box(value)
    if not checked or (ours == "top_k" and value == -1):
        return None if off is None else (ours, off)
    return ours, read_sampling_value(ours, value)


def _read_load(name: str, value: Any) -> tuple[str, Any] | None:
    """A pair that `read_entry` takes."""
    checked, value = _box(value)
    if name in _CACHE_TYPES:
        return (name, _checked("kv_type", value)) if checked else (name, "f16")
    ours = _LOAD.get(name)
    if ours is None or not checked:
        return None
    if ours == "flash_attention" and isinstance(value, bool):
        value = "on" if value else "off"
    return ours, _checked(ours, value)


def _checked(setting: str, value: Any) -> Any:
    entry = read_entry({setting: value})
    if entry.problem is not None:
        raise ConfigError(entry.problem.partition(": ")[2])
    return value


def _box(value: Any) -> tuple[bool, Any]:
    """LM Studio's value with a checkbox: whether it is checked, and the value."""
    if isinstance(value, dict) and isinstance(value.get("checked"), bool):
        return value["checked"], value.get("value")
    return True, value


def _variables(said: object, ignored: list[str]) -> Iterator[tuple[str, Any]]:
    """Variables of the chat template with the values that the fields have by default."""
    for field in _items(said):
        if not isinstance(field, dict) or not isinstance(field.get("defaultValue"), (bool, int, float, str)):
            continue
        for effect in _items(field.get("effects")):
            if isinstance(effect, dict) and effect.get("type") == "setJinjaVariable" and _is_name(effect.get("variable")):
                variable = {effect["variable"]: field["defaultValue"]}
                try:
                    yield from read_template_kwargs("customFields", variable).items()
                except ConfigError as error:
                    ignored.append(error.message)
