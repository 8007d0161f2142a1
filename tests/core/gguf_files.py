"""Writes GGUF bytes for tests: sound ones by default, broken ones where a test says so."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY, UINT64 = 4, 5, 6, 7, 8, 9, 10
F32, F16, Q4_0, Q8_0, Q4_K = 0, 1, 2, 8, 12
BLOCKS = {F32: (1, 4), F16: (1, 2), Q4_0: (32, 18), Q8_0: (32, 34), Q4_K: (256, 144)}


@dataclass(frozen=True)
class Typed:
    """A value of a type that Python's own does not imply; `raw` bytes go in as they are."""

    kind: int
    raw: bytes


@dataclass(frozen=True)
class Tensor:
    name: str
    shape: Sequence[int] = (4,)
    kind: int = F32
    offset: int | None = None  # None: where it belongs


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def uint32(n: int) -> Typed:
    return Typed(UINT32, struct.pack("<I", n))


def strings(values: Sequence[str]) -> Typed:
    return Typed(ARRAY, struct.pack("<IQ", STRING, len(values)) + b"".join(text(value) for value in values))


def floats(n: int) -> Typed:
    return Typed(ARRAY, struct.pack("<IQ", FLOAT32, n) + bytes(4 * n))


def typed(value: Any) -> Typed:
    match value:
        case Typed():
            return value
        case bool():
            return Typed(BOOL, bytes([value]))
        case int():
            return uint32(value)
        case float():
            return Typed(FLOAT32, struct.pack("<f", value))
        case str() | bytes():
            return Typed(STRING, text(value))
        case _:
            raise TypeError(type(value))


def pair(key: str | bytes, value: Any) -> bytes:
    content = typed(value)
    return text(key) + struct.pack("<I", content.kind) + content.raw


def prologue(n_tensors: int, n_keys: int, version: int = 3, magic: bytes = b"GGUF") -> bytes:
    return magic + struct.pack("<Iqq", version, n_tensors, n_keys)


def padded(n: int, alignment: int) -> int:
    return -(-n // alignment) * alignment if alignment else n


def size_of(tensor: Tensor) -> int:
    n = 1
    for dimension in tensor.shape:
        n *= dimension
    elements, size = BLOCKS.get(tensor.kind, (1, 4))
    return n // elements * size


def gguf(
    values: Mapping[str, Any] | Sequence[tuple[str, Any]],
    tensors: Sequence[Tensor] = (Tensor("weight"),),
    *,
    alignment: int = 32,
    version: int = 3,
    data: bool = True,
) -> bytes:
    """A whole file; `values` as pairs can hold a key twice. Without `data`, it ends with the tensor table."""
    pairs = list(values.items()) if isinstance(values, Mapping) else list(values)
    out = prologue(len(tensors), len(pairs), version) + b"".join(pair(key, value) for key, value in pairs)
    next_offset = end = 0
    for tensor in tensors:
        offset = next_offset if tensor.offset is None else tensor.offset
        out += text(tensor.name) + struct.pack("<I", len(tensor.shape))
        out += struct.pack(f"<{len(tensor.shape)}q", *tensor.shape) + struct.pack("<iQ", tensor.kind, offset)
        end = offset + size_of(tensor)
        next_offset = padded(end, alignment)
    return out + bytes(padded(len(out), alignment) - len(out) + end) if data and tensors else out


def llama(name: str = "llama", **more: Any) -> dict[str, Any]:
    """The metadata of a small text model; `more` adds keys, with `__` for the dot."""
    values: dict[str, Any] = {
        "general.architecture": name,
        "general.type": "model",
        "general.file_type": 15,
        f"{name}.context_length": 4096,
        f"{name}.embedding_length": 64,
        f"{name}.block_count": 2,
        "tokenizer.ggml.tokens": strings(["<s>", "a", "b"]),
        "tokenizer.ggml.scores": floats(3),
        "tokenizer.chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}",
    }
    values.update((key.replace("__", "."), value) for key, value in more.items())
    return values


def bert(**more: Any) -> dict[str, Any]:
    values = llama("bert", **{"bert__pooling_type": 1, **more})
    del values["tokenizer.chat_template"]
    return values


def projector() -> dict[str, Any]:
    return {"general.architecture": "clip", "general.type": "mmproj", "general.file_type": 1, "clip.has_vision_encoder": True}
