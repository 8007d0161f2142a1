"""Reads the header of a GGUF file, and nothing behind it: metadata, and what the tensor table adds up to.

Whatever the file holds, a read ends within about half a second and ten megabytes, with a `Header` or a `GgufError`.
Token arrays are walked over, never kept. Only regular files are read. A file that was cut off behind its header is
still read; `Header.incomplete` tells. Layout: the GGUF specification, versions 2 and 3, little-endian.
"""

from __future__ import annotations

import io
import os
import re
import stat
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from ... import archive
from ...card import Reasoning
from ...errors import LmError
from ...records import dataclass
from .chat_template import reads_tools, reasoning

MAX_HEADER: Final = 128 << 20
"""Bytes. The largest real ones (262,144 tokens, 500,000 merges) stay under 30 MB."""
MAX_KEYS: Final = 16_384
"""Real files have some dozens."""
MAX_KEY_BYTES: Final = 65_535
"""The specification's own bound."""
MAX_TENSORS: Final = 65_536
"""The largest mixtures with unmerged experts have some 50,000."""
MAX_TENSOR_NAME: Final = 63
"""llama.cpp has no room for more."""
MAX_DIMENSIONS: Final = 4
MAX_STRINGS_WALKED: Final = 2_000_000
"""In all arrays together: a quarter of a second of walking; the largest real vocabularies have 800,000."""
MAX_TEXT: Final = 64 << 10
"""A longer string of metadata (a licence, say) is walked over."""
MAX_TEMPLATE: Final = 1 << 20
"""The same for chat templates; the longest known are below 100 kB."""
MAX_KEPT: Final = 4 << 20
"""Bytes of keys and strings of one header."""
MAX_BLOCKS: Final = 512
"""llama.cpp aborts on a model with more layers, or none."""
MAX_CONTEXT: Final = 1 << 27
"""Tokens; ten times the longest trained. 2^32-1 aborts llama.cpp."""

_BLOCK: Final = 256 << 10
_DEFAULT_ALIGNMENT: Final = 32
_INT64_MAX: Final = (1 << 63) - 1

_U32: Final = struct.Struct("<I")
_U64: Final = struct.Struct("<Q")
_COUNTS: Final = struct.Struct("<qq")
_TENSOR_TAIL: Final = struct.Struct("<iQ")
_UINT32, _BOOL, _STRING, _ARRAY = 4, 7, 8, 9
_SCALARS: Final[Mapping[int, struct.Struct]] = {
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    4: _U32,
    5: struct.Struct("<i"),
    6: struct.Struct("<f"),
    _BOOL: struct.Struct("<b"),
    10: _U64,
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}

TENSOR_TYPES: Final[Mapping[int, tuple[str, int, int]]] = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 36),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18),
    42: ("Q2_0", 64, 18),
}
"""ggml's tensor types: name, elements per block, bytes per block. The gaps are types it no longer reads."""

FILE_TYPES: Final[Mapping[int, str]] = {
    0: "F32",
    1: "F16",
    2: "Q4_0",
    3: "Q4_1",
    7: "Q8_0",
    8: "Q5_0",
    9: "Q5_1",
    10: "Q2_K",
    11: "Q3_K_S",
    12: "Q3_K_M",
    13: "Q3_K_L",
    14: "Q4_K_S",
    15: "Q4_K_M",
    16: "Q5_K_S",
    17: "Q5_K_M",
    18: "Q6_K",
    19: "IQ2_XXS",
    20: "IQ2_XS",
    21: "Q2_K_S",
    22: "IQ3_XS",
    23: "IQ3_XXS",
    24: "IQ1_S",
    25: "IQ4_NL",
    26: "IQ3_S",
    27: "IQ3_M",
    28: "IQ2_S",
    29: "IQ2_M",
    30: "IQ4_XS",
    31: "IQ1_M",
    32: "BF16",
    36: "TQ1_0",
    37: "TQ2_0",
    38: "MXFP4",
    39: "NVFP4",
    40: "Q1_0",
    41: "Q2_0",
}
"""`general.file_type` as LM Studio spells it."""
_BITS: Final = re.compile(r"[0-9]{1,2}")
_GUESSED: Final = 1024
"""A flag that llama.cpp sets on a file type which it made up itself."""

EMBEDDING_ARCHITECTURES: Final = frozenset(
    {
        "bert",
        "eurobert",
        "gemma-embedding",
        "jina-bert-v2",
        "jina-bert-v3",
        "llama-embed",
        "modern-bert",
        "neo-bert",
        "nomic-bert",
        "nomic-bert-moe",
        "t5encoder",
    }
)
_CLASSIFIERS: Final = (b"cls.weight", b"cls.output.weight")
_POOLING_RANK: Final = 4
"""`pooling_type` of a model that scores; but files of rerankers seldom name theirs."""
_POOLING_UNSPECIFIED: Final = 1 << 31
"""llama.cpp's -1 is stored without its sign."""
PADDING_MAX: Final = 16 << 20
"""Bytes behind a file's last tensor; as the engine has it (csrc/model_file.cpp)."""
NOT_MODELS: Final = frozenset({"adapter", "imatrix", "controlvector"})
"""Values of `general.type` or `general.architecture` of files that stand beside a model."""


class GgufError(LmError):
    """The file's header cannot be used; `reason` is short and names no path."""

    status, code = 422, "invalid_gguf"

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


Value = int | float | bool | str


@dataclass(slots=True, frozen=True)
class Tensors:
    """What the tensor table adds up to; `elements` is per type name, `end` the file's least size in bytes."""

    count: int
    n_params: int
    n_bytes: int
    elements: Mapping[str, int]
    end: int
    classify: bool  # a classification head is among them


@dataclass(slots=True, frozen=True)
class Header:
    """Scalars and strings of the metadata (arrays and very long strings left out), and the tensor table's sums."""

    version: int
    values: Mapping[str, Value]
    alignment: int
    tensors: Tensors
    file_bytes: int

    @property
    def incomplete(self) -> str | None:
        """Why the file cannot hold its tensors, or None."""
        if self.tensors.end > self.file_bytes:
            return f"incomplete file: {self.file_bytes} of {self.tensors.end} bytes"
        return None

    @property
    def size(self) -> int:
        """In bytes. What lies behind the tensors and is no padding, be it a hole of a terabyte, is never read."""
        has_tail = self.file_bytes - self.tensors.end > PADDING_MAX
        return self.tensors.end if has_tail else self.file_bytes

    @property
    def chat_template(self) -> str | None:
        return self.text("tokenizer.chat_template")

    def text(self, key: str) -> str | None:
        value = self.values.get(key)
        return value if isinstance(value, str) else None

    def integer(self, key: str) -> int | None:
        value = self.values.get(key)
        return value if isinstance(value, int) and not isinstance(value, bool) else None


# ---- reading ---------------------------------------------------------------------------------------------------------


def read_header(path: Path) -> Header:
    """Raises GgufError, and nothing else."""
    try:
        # O_NONBLOCK: opening a FIFO would wait for its writer.
        inside = archive.part(path)
        around = path if inside is None else inside.file
        fd = os.open(around, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with io.FileIO(fd) as file:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise GgufError("not a regular file")
            if inside is None:
                return _parse(_Cursor(file, status.st_size))
            return _parse(_Cursor(file, min(inside.size, status.st_size - inside.begin), inside.begin))
    except OSError as error:
        raise GgufError(os_reason(error)) from error
    except ValueError as error:  # a NUL in the path
        raise GgufError("not a file name") from error


def os_reason(error: OSError) -> str:
    """The system's word for what failed, without the path that `str(error)` would show."""
    return (os.strerror(error.errno) if error.errno else "cannot be read").lower()


class _Cursor:
    """A position in the file's header, over one block of it."""

    def __init__(self, file: io.FileIO, size: int, begin: int = 0):
        self._file = file
        self._begin = begin  # of the header, in a file around it
        self._block = b""
        self._start = 0  # the block's place in the file
        self._strings_left = MAX_STRINGS_WALKED
        self.size = size
        self.position = 0

    def take(self, n: int) -> bytes:
        at = self.position - self._start
        if at + n > len(self._block):
            self._fill(n)
            at = 0
        self.position += n
        return self._block[at : at + n]

    def number(self, form: struct.Struct) -> int:
        value: int = form.unpack(self.take(form.size))[0]
        return value

    def skip(self, n: int) -> None:
        self._move(self.position + n)

    def skip_strings(self, count: int) -> None:
        """Walks over an array of strings, each a length and that many bytes."""
        if count > self._strings_left:
            raise GgufError(f"an array of {count} strings")
        self._strings_left -= count
        length_at = _U64.unpack_from
        while count:
            block, at, walked = self._block, self.position - self._start, 0
            try:
                for walked in range(count):  # noqa: B007 - read after the loop has failed
                    at += 8 + length_at(block, at)[0]
                walked = count
            except (struct.error, OverflowError):  # string `walked` starts behind this block
                pass
            count -= walked
            self._move(self._start + at)
            if count:
                self._fill(8)

    def _move(self, position: int) -> None:
        if position > self.size:
            raise _cut_off()
        if position > MAX_HEADER:
            raise GgufError(f"a header of more than {MAX_HEADER} bytes")
        self.position = position

    def _fill(self, n: int) -> None:
        """Makes a block that starts here and has at least `n` bytes."""
        if self.position + n > self.size:
            raise _cut_off()
        if self.position + n > MAX_HEADER:
            raise GgufError(f"a header of more than {MAX_HEADER} bytes")
        self._file.seek(self._begin + self.position)
        block = self._file.read(max(n, _BLOCK)) or b""
        while len(block) < n:
            more = self._file.read(n - len(block))
            if not more:  # the file shrank under us
                raise _cut_off()
            block += more
        self._block, self._start = block, self.position


def _cut_off() -> GgufError:
    return GgufError("incomplete file: the header is cut off")


def _parse(cursor: _Cursor) -> Header:
    version = _read_version(cursor)
    n_tensors, n_keys = _COUNTS.unpack(cursor.take(_COUNTS.size))
    if not 0 <= n_keys <= MAX_KEYS:
        raise GgufError(f"{n_keys} keys of metadata")
    if not 0 <= n_tensors <= MAX_TENSORS:
        raise GgufError(f"{n_tensors} tensors")
    values, alignment = _read_values(cursor, n_keys)
    tensors = _read_tensors(cursor, n_tensors, alignment)
    return Header(version, values, alignment, tensors, cursor.size)


def _read_version(cursor: _Cursor) -> int:
    if cursor.size == 0:
        raise GgufError("an empty file")
    if cursor.take(min(4, cursor.size)) != b"GGUF"[: cursor.size]:
        raise GgufError("not a GGUF file")
    version = cursor.number(_U32)
    if version & 0xFFFF == 0 and version:
        raise GgufError("a big-endian GGUF file is not supported")
    if version not in (2, 3):
        raise GgufError(f"GGUF version {version} is not supported")
    return version


def _read_values(cursor: _Cursor, n_keys: int) -> tuple[dict[str, Value], int]:
    values: dict[str, Value] = {}
    seen: set[bytes] = set()
    alignment = _DEFAULT_ALIGNMENT
    kept = 0
    for _ in range(n_keys):
        key = _read_key(cursor)
        if key in seen:
            raise GgufError(f"duplicate key {_shown(key)}")
        seen.add(key)
        kind = cursor.number(_U32)
        if key == b"general.alignment":
            if kind != _UINT32:
                raise GgufError("general.alignment is not a uint32")
            alignment = _read_alignment(cursor)
            value: Value | None = alignment
        else:
            value = _read_value(cursor, key, kind)
        kept += len(key) + (len(value) if isinstance(value, str) else 0)
        if kept > MAX_KEPT:
            raise GgufError(f"more than {MAX_KEPT} bytes of metadata")
        if value is not None:
            values[key.decode("utf-8", "replace")] = value
    return values, alignment


def _read_key(cursor: _Cursor) -> bytes:
    length = cursor.number(_U64)
    if not 0 < length <= MAX_KEY_BYTES:
        raise GgufError(f"a key of {length} bytes")
    return cursor.take(length)


def _read_alignment(cursor: _Cursor) -> int:
    alignment = cursor.number(_U32)
    if alignment == 0 or alignment & (alignment - 1):
        raise GgufError(f"alignment {alignment} is not a power of 2")
    return alignment


def _read_value(cursor: _Cursor, key: bytes, kind: int) -> Value | None:
    """The value, or None for one that is not kept."""
    if kind == _STRING:
        length = cursor.number(_U64)
        limit = MAX_TEMPLATE if key.startswith(b"tokenizer.chat_template") else MAX_TEXT
        if length > limit:
            cursor.skip(length)
            return None
        return cursor.take(length).decode("utf-8", "replace")
    if kind == _ARRAY:
        _skip_array(cursor, key)
        return None
    form = _SCALARS.get(kind)
    if form is None:
        raise GgufError(f"key {_shown(key)} has unknown type {kind}")
    value: int | float = form.unpack(cursor.take(form.size))[0]
    return bool(value) if kind == _BOOL else value


def _skip_array(cursor: _Cursor, key: bytes) -> None:
    kind = cursor.number(_U32)
    count = cursor.number(_U64)
    if kind == _STRING:
        cursor.skip_strings(count)
    elif kind in _SCALARS:
        cursor.skip(count * _SCALARS[kind].size)
    else:
        raise GgufError(f"key {_shown(key)} is an array of unknown type {kind}")


def _read_tensors(cursor: _Cursor, count: int, alignment: int) -> Tensors:
    seen: set[bytes] = set()
    elements: dict[str, int] = {}
    n_params = n_bytes = end = next_offset = 0
    for _ in range(count):
        name = _read_tensor_name(cursor)
        if name in seen:
            raise GgufError(f"duplicate tensor {_shown(name)}")
        seen.add(name)
        row, n = _read_shape(cursor, name)
        kind, offset = _TENSOR_TAIL.unpack(cursor.take(_TENSOR_TAIL.size))
        if kind not in TENSOR_TYPES:
            raise GgufError(f"tensor {_shown(name)} has unknown type {kind}")
        type_name, block_elements, block_bytes = TENSOR_TYPES[kind]
        if row % block_elements:
            raise GgufError(f"tensor {_shown(name)} has rows of {row} elements, not whole {type_name} blocks")
        if offset != next_offset:
            raise GgufError(f"tensor {_shown(name)} is at offset {offset}, expected {next_offset}")
        size = n // block_elements * block_bytes
        end = offset + size
        next_offset = _padded(end, alignment)
        elements[type_name] = elements.get(type_name, 0) + n
        n_params += n
        n_bytes += size
    start = _padded(cursor.position, alignment) if count else cursor.position
    return Tensors(count, n_params, n_bytes, elements, start + end, not seen.isdisjoint(_CLASSIFIERS))


def _read_tensor_name(cursor: _Cursor) -> bytes:
    length = cursor.number(_U64)
    if length > MAX_TENSOR_NAME:
        raise GgufError(f"a tensor name of {length} bytes")
    return cursor.take(length)


def _read_shape(cursor: _Cursor, name: bytes) -> tuple[int, int]:
    """Elements of one row, and of the whole tensor."""
    n_dimensions = cursor.number(_U32)
    if n_dimensions > MAX_DIMENSIONS:
        raise GgufError(f"tensor {_shown(name)} has {n_dimensions} dimensions")
    dimensions = struct.unpack(f"<{n_dimensions}q", cursor.take(8 * n_dimensions))
    n = 1
    for dimension in dimensions:
        n *= dimension
        if dimension <= 0 or n > _INT64_MAX:
            raise GgufError(f"tensor {_shown(name)} has an impossible shape")
    return (dimensions[0] if dimensions else 1), n


def _padded(n: int, alignment: int) -> int:
    return (n + alignment - 1) & -alignment


def _shown(name: bytes) -> str:
    """A name from the file, safe to print: reasons reach logs and clients."""
    shown = ascii(name[:64].decode("utf-8", "replace"))
    return shown if len(shown) <= 100 else shown[:96] + "...'"  # escapes are up to six times as long


# ---- what the header says of the model -------------------------------------------------------------------------------


@dataclass(slots=True, frozen=True)
class Facts:
    """What the catalogue wants to know of a model; `n_params` and `bits_per_weight` are of all its parts."""

    arch: str  # "" if the file names none
    general_type: str  # "model" if the file names none
    quantization: str  # "Q4_K_M"; "?" if nothing tells
    bits_per_weight: float | None  # what the tensors take
    n_params: int
    params_string: str | None  # "7B"
    context_length: int | None
    embedding_length: int | None
    block_count: int | None
    is_embedding: bool
    is_reranker: bool  # an embedding model too
    is_projector: bool
    sees: bool  # of a projector
    hears: bool  # the same
    has_chat_template: bool
    trained_for_tool_use: bool
    reasoning: Reasoning | None
    split_no: int | None
    split_count: int | None


def facts(headers: Sequence[Header]) -> Facts:
    """`headers` are those of all parts of one model, the first part first; it holds the metadata."""
    first = headers[0]
    arch = first.text("general.architecture") or ""
    general_type = first.text("general.type") or "model"
    n_params = sum(header.tensors.n_params for header in headers)
    n_bytes = sum(header.tensors.n_bytes for header in headers)
    template = first.chat_template
    pooling = first.integer(f"{arch}.pooling_type") or 0
    if not 0 < pooling < _POOLING_UNSPECIFIED:
        pooling = 0
    is_projector = arch == "clip" or general_type == "mmproj"
    hears = is_projector and first.values.get("clip.has_audio_encoder") is True
    encodes = arch in EMBEDDING_ARCHITECTURES
    classifies = any(header.tensors.classify for header in headers)
    return Facts(
        arch=arch,
        general_type=general_type,
        quantization=_quantization(headers),
        bits_per_weight=round(n_bytes * 8 / n_params, 2) if n_params else None,
        n_params=n_params,
        params_string=_size_label(first) or _scaled(n_params),
        context_length=first.integer(f"{arch}.context_length"),
        embedding_length=first.integer(f"{arch}.embedding_length"),
        block_count=first.integer(f"{arch}.block_count"),
        is_embedding=encodes or pooling > 0,
        is_reranker=pooling == _POOLING_RANK or (encodes and not pooling and classifies),
        is_projector=is_projector,
        sees=is_projector and (first.values.get("clip.has_vision_encoder") is True or not hears),
        hears=hears,
        has_chat_template=template is not None,
        trained_for_tool_use=first.text("tokenizer.chat_template.tool_use") is not None
        or (template is not None and reads_tools(template)),
        reasoning=reasoning(template) if template is not None else None,
        split_no=first.integer("split.no"),
        split_count=first.integer("split.count"),
    )


def nominal_bits(quantization: str) -> int | None:
    """Bits per weight as people call them, by the number in the name: 4 of `Q4_K_M` (which takes 4.8), 16 of `BF16`."""
    named = _BITS.search(quantization)
    return int(named[0]) if named else None


def _quantization(headers: Sequence[Header]) -> str:
    file_type = headers[0].integer("general.file_type")
    if file_type is not None and file_type & ~_GUESSED in FILE_TYPES:
        return FILE_TYPES[file_type & ~_GUESSED]
    elements: dict[str, int] = {}
    for header in headers:
        for name, n in header.tensors.elements.items():
            elements[name] = elements.get(name, 0) + n
    return max(sorted(elements), key=lambda name: elements[name], default="?")


_SIZE_LABEL: Final = re.compile(r"(?:[0-9]{1,4}x)?[0-9]{1,4}(?:\.[0-9]{1,3})?[KMBTQ](?:-[0-9A-Za-z.]{1,12})?")
"""The naming convention's form: "7B", "8x7B", "30B-A3B"."""


def _size_label(header: Header) -> str | None:
    label = header.text("general.size_label")
    return label if label is not None and _SIZE_LABEL.fullmatch(label) else None


def _scaled(n_params: int) -> str | None:
    """ "260K", "22.7M", "7B"; None for no parameters at all."""
    if n_params <= 0:
        return None
    if n_params < 1000:
        return str(n_params)
    value = float(n_params)
    for suffix in "KMBT":
        value /= 1000
        digits = 1 if value < 99.95 else 0
        if round(value, digits) < 1000 or suffix == "T":
            break
    return f"{value:.{digits}f}".removesuffix(".0") + suffix
