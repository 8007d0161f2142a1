"""`model-settings.json` in lmlite's home: what the user sets for single models.

    {"falcon-7b": {"context_length": 16384, "kv_type": "q8_0", "ttl": 0, "sampling": {"temperature": 0.2}}}

A key is any name by which the model can be asked for; values are those of the options of the same names (config.py).
What a model cannot have is that model's problem: it is not loaded with settings other than the user meant. A file that
is no JSON object says nothing about any model, and raises `ConfigError`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, Final

from ...config import Kind, Refused, options
from ...errors import ConfigError
from ...records import dataclass
from ...request import INT32_MAX, SAMPLING_INTEGERS, SAMPLING_NUMBERS, TEMPLATE_RESERVED, UNLIMITED
from ...settings import ModelSettings

FILE_NAME: Final = "model-settings.json"
MAX_MODELS: Final = 4096
"""Entries of the file; a home that is not ours must not hold up the scan."""
SHOWN: Final = 80
"""Characters of a wrong value that are told."""

FLASH_ATTENTION: Final[Mapping[object, bool | str]] = {"on": True, "off": False, "auto": "auto"}


@dataclass(slots=True, frozen=True)
class Entry:
    """What is said of one model; with a `problem`, the settings are those that could be read."""

    settings: ModelSettings
    problem: str | None = None


def parse(content: str) -> dict[str, Entry]:
    """The entries of the file by the names in it; raises `ConfigError`."""
    try:
        models = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{FILE_NAME}: {error}") from None
    if not isinstance(models, dict):
        raise ConfigError(f"{FILE_NAME}: is not a JSON object")
    if len(models) > MAX_MODELS:
        raise ConfigError(f"{FILE_NAME}: has more than {MAX_MODELS} models")
    return {name: read_entry(said) for name, said in models.items()}


def read_entry(said: object) -> Entry:
    if not isinstance(said, dict):
        return Entry(ModelSettings(), f"{FILE_NAME}: must be an object, is {_shown(said)}")
    values: dict[str, Any] = {}
    problems: list[str] = []
    for key, value in said.items():
        try:
            if (reader := _readers().get(key)) is None:
                raise ConfigError(f"there is no setting {_shown(key)}; settings: {', '.join(_readers())}")
            name, read = reader
            values[name] = read(key, value)
        except ConfigError as error:
            problems.append(error.message)
    return Entry(ModelSettings(**values), f"{FILE_NAME}: {problems[0]}" if problems else None)


def read_sampling(key: str, said: object) -> dict[str, Any]:
    """Values for fields of `request.Sampling`, and "max_tokens". Raises `ConfigError`."""
    if not isinstance(said, dict):
        raise ConfigError(f"{key}: must be an object, is {_shown(said)}")
    return {name: read_sampling_value(name, value) for name, value in said.items()}


def read_sampling_value(name: str, value: object) -> float | int:
    if name in SAMPLING_NUMBERS:
        low, high = SAMPLING_NUMBERS[name]
        if not isinstance(value, bool) and isinstance(value, (int, float)) and low <= value <= high:
            return float(value)
        raise ConfigError(f"sampling.{name}: {_shown(value)} is not allowed, must be a number from {low:g} to {high:g}")
    if name in SAMPLING_INTEGERS or name == "max_tokens":
        least, most = SAMPLING_INTEGERS.get(name, (UNLIMITED, INT32_MAX))
        whole = isinstance(value, int) and not isinstance(value, bool)
        if whole and least <= value <= most and (name, value) != ("max_tokens", 0):  # type: ignore[operator]
            return value  # type: ignore[return-value]
        raise ConfigError(f"sampling.{name}: {_shown(value)} is not allowed, must be a whole number from {least} to {most}")
    known = ", ".join((*SAMPLING_NUMBERS, *SAMPLING_INTEGERS, "max_tokens"))
    raise ConfigError(f"sampling: there is no {_shown(name)}; there are {known}")


def read_template_kwargs(key: str, said: object) -> dict[str, Any]:
    if not isinstance(said, dict):
        raise ConfigError(f"{key}: must be an object, is {_shown(said)}")
    for name in said:
        if name in TEMPLATE_RESERVED:
            raise ConfigError(f"{key}: {name!r} is not to be set")
    if not isinstance(said.get("enable_thinking", True), bool):
        raise ConfigError(f"{key}.enable_thinking: must be true or false")
    return dict(said)


Reader = Callable[[str, object], Any]


def _readers() -> dict[str, tuple[str, Reader]]:
    """Words of the file: the field of `ModelSettings` that each sets, and how its value is read."""
    kinds = {option.name: option.kind for option in options()}
    kinds["ttl_s"] = kinds["ttl"]
    readers = {item.name: (item.name, of_kind(kinds[item.name])) for item in fields(ModelSettings) if item.name in kinds}
    readers["ttl"] = readers.pop("ttl_s")
    readers["sampling"] = "sampling", read_sampling
    readers["template_kwargs"] = "template_kwargs", read_template_kwargs
    return readers


def of_kind(kind: Kind) -> Reader:
    def read(key: str, value: object) -> Any:
        try:
            found = kind.convert(value)
        except Refused:
            raise ConfigError(f"{key}: {_shown(value)} is not allowed, must be {kind.allowed}") from None
        return FLASH_ATTENTION[found] if key == "flash_attention" else found

    return read


def _shown(value: object) -> str:
    """A value of the file, short and safe to print."""
    shown = ascii(value)
    return shown if len(shown) <= SHOWN else shown[: SHOWN - 3] + "..."
