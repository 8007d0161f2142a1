"""Models and instances as a server tells them to commands."""

from __future__ import annotations

from typing import Any


def model(key: str, **more: Any) -> dict[str, Any]:
    publisher, _, name = key.rpartition("/")
    publisher = publisher or "acme"
    path = f"{publisher}/{name}-GGUF/{name}-Q4_K_M.gguf"
    entry = {
        "type": "llm",
        "modelKey": key,
        "format": "gguf",
        "displayName": name.title(),
        "publisher": publisher,
        "path": path,
        "sizeBytes": 4_368_439_296,
        "indexedModelIdentifier": path,
        "deviceIdentifier": None,
        "paramsString": "7B",
        "architecture": "llama",
        "quantization": {"name": "Q4_K_M", "bits": 4},
        "vision": False,
        "trainedForToolUse": False,
        "maxContextLength": 32768,
    }
    return entry | more


def instance(identifier: str, **more: Any) -> dict[str, Any]:
    model = identifier.partition(":")[0]
    entry = {
        "identifier": identifier,
        "model": model,
        "type": "llm",
        "path": f"/models/acme/{model}-GGUF/{model}-Q4_K_M.gguf",
        "status": "idle",
        "sizeBytes": 4_368_439_296,
        "contextLength": 4096,
        "parallel": 4,
        "threads": 2,
        "queued": 0,
        "ttlMs": None,
        "remainingTtlMs": None,
        "lastUsedTime": None,
        "pid": 4711,
    }
    return entry | more
