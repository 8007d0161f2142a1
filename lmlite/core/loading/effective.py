"""What one model is loaded with: the request's settings over the model's own over the server's."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from typing import Any, Final

from ...card import ModelCard
from ...config import Config
from ...errors import InvalidRequest, LmError, LoadFailed, SettingRefused
from ...settings import ModelSettings
from ..disk.gguf import GgufError, facts, read_header
from ..engine.payloads import OPTION_OF, LoadSettings, Lora

TEMPLATE_BYTES_MAX: Final = 128 * 1024
"""The engine takes no longer ones; some other file must not be read whole."""


def of_server(config: Config) -> LoadSettings:
    """What the server's own options say of every load."""
    return LoadSettings(**{name: spelled(name, getattr(config, option)) for name, option in OPTION_OF.items()})


def effective(server: LoadSettings, model: ModelSettings) -> LoadSettings:
    """`server`, and `model` where it says something."""
    said = {name: getattr(model, option, None) for name, option in OPTION_OF.items()}
    return replace(server, **{name: spelled(name, value) for name, value in said.items() if value is not None})


def spelled(name: str, value: Any) -> Any:
    """The value of an option as the engine has it for the setting `name`."""
    match name, value:
        case "k_cache_type", str():
            return value.partition(",")[0]
        case "v_cache_type", str():  # one that is named alone is both
            return value.rpartition(",")[2]
        case "flash_attention", _:
            return {"on": True, "off": False, "auto": None}.get(value, value)
        case "spill_bytes" | "prompt_cache_bytes", int():
            return value if value < 0 else value << 20
        case "loras", _:
            return tuple(Lora(path, scale) for path, scale in value)
    return value


def refused(card: ModelCard, error: InvalidRequest) -> LmError:
    """`error`, with which an engine refuses to load the model, in the words of whoever chose the setting."""
    if error.param is None:
        return error
    return SettingRefused(card.id, OPTION_OF.get(error.param, error.param), error.message)


async def fitting(card: ModelCard, settings: LoadSettings) -> LoadSettings:
    """`settings` with those LoRA adapters that are for the model's architecture, or that the engine has to refuse, and with
    the text of the chat template that they name the file of. Raises `LoadFailed`."""

    def fits(lora: Lora) -> bool:
        try:
            return read_header(lora.path).text("general.architecture") in (card.arch, None)
        except GgufError:
            return True

    def fit() -> LoadSettings:
        return replace(
            settings,
            loras=tuple(filter(fits, settings.loras)),
            chat_template=read_template(card, settings.chat_template),
        )

    needed = settings.loras or settings.chat_template
    return await asyncio.to_thread(fit) if needed else settings


def read_template(card: ModelCard, chosen: str) -> str:
    """The text of a file; a name stays what it is."""
    if not os.path.isabs(chosen):
        return chosen
    if os.path.exists(chosen) and not os.path.isfile(chosen):
        raise LoadFailed(card.id, f"the chat template {chosen} is not a file")
    try:
        with open(chosen, encoding="utf-8") as file:
            text = file.read(TEMPLATE_BYTES_MAX + 1)
    except (OSError, UnicodeDecodeError) as error:
        reason = "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error.strerror)
        raise LoadFailed(card.id, f"the chat template {chosen} cannot be read: {reason}") from None
    if "{" not in text:
        raise LoadFailed(card.id, f"{chosen} is no chat template: it has no Jinja in it")
    return text


async def with_share(card: ModelCard, settings: ModelSettings, gpu: float | None) -> ModelSettings:
    """`settings` with that share (0..1) of the model's layers on the GPU; None leaves them as they are."""
    return settings if gpu is None else replace(settings, gpu_layers=await asyncio.to_thread(gpu_layers, card, gpu))


def gpu_layers(card: ModelCard, share: float) -> int:
    """As many layers as the `share` (0..1) of the model; -1, all and the output layer, for 1. Reads the file's header;
    one that cannot be read, or says nothing of layers, has none to share."""
    if share >= 1:
        return -1
    try:
        n_layers = facts([read_header(card.paths[0])]).block_count or 0
    except GgufError:
        n_layers = 0
    return round(share * n_layers)
