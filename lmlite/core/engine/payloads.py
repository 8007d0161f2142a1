"""What the frames carry: commands as JSON, answers as values (csrc/protocol.md), and nothing of sockets.

Each reader raises one of `MALFORMED` for what the protocol does not allow.
"""

from __future__ import annotations

import itertools
import json
import operator
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import field, fields
from pathlib import Path
from typing import Any, Final, TypeVar, get_args

from ... import archive
from ...errors import (
    ContextOverflow,
    EngineError,
    InvalidRequest,
    LmError,
    LoadFailed,
    MediaRefused,
    QueueFull,
    WrongModelType,
)
from ...events import DraftCounts, Finished, Notice, PromptProgress, Stats, StopReason, TokenLogprob, TopToken
from ...messages import Content, MediaPart, Message, Part, ReasoningPart, TextPart, ToolCallPart, ToolResultPart
from ...records import dataclass
from ...request import UNLIMITED, Chat, Draft, Embed, Generate, Grammar, Infill, Prompt, Sampling, Score, Text, Tokens
from .frames import MAX_PAYLOAD
from .tool_names import spell_names

LOGPROB_FLOOR: Final = -9999.0
"""Stands for a probability of zero, whose logarithm JSON cannot say; the value that OpenAI's API uses too."""
MALFORMED: Final = (LookupError, TypeError, ValueError, ArithmeticError, RecursionError, struct.error)
"""What reading a payload raises when it is not what the protocol says."""

MEDIA_MAX: Final = 256
"""Pictures and sounds of one conversation; more fit no context. What an agent sees in an hour is some dozens."""
MEDIA_BYTES_MAX: Final = 64 << 20
"""Bytes of all of them: twice what one HTTP request can bring."""

T = TypeVar("T")

SAMPLING_NAMES: Final = tuple(item.name for item in fields(Sampling))
_sampling_values: Final = operator.attrgetter(*SAMPLING_NAMES)

_SCORE: Final = struct.Struct("<f")


# ---- what an engine is told and what it reports ----------------------------------------------------------------------


@dataclass(slots=True, frozen=True)
class Lora:
    """A LoRA adapter and the scale that it has where a request says nothing of adapters."""

    path: Path
    scale: float = 1.0


def of_option(name: str, default: T) -> T:
    """A setting whose option has another name than it."""
    return field(default=default, metadata={"option": name})


@dataclass(slots=True, frozen=True)
class LoadSettings:
    """The one list of what is chosen of a load, by the engine's names (csrc/protocol.md, LOAD); zeros, -1 and None leave the
    choice to it. Each is an option of `config.Config`, and of a model's own settings if those have one of that name."""

    context_length: int = 4096  # tokens; 0: what the model was trained for
    parallel: int = 4
    max_queue: int = 512
    kv_cells: int = 0
    eval_batch_size: int = 512
    threads: int = 0
    gpu_layers: int = -1  # -1: all that fit
    flash_attention: bool | None = None
    k_cache_type: str = of_option("kv_type", "f16")
    v_cache_type: str = of_option("kv_type", "f16")
    offload_kv_cache: bool = of_option("kv_offload", True)
    n_experts: int = of_option("experts", 0)
    mmap: bool = True
    mlock: bool = False
    main_gpu: int = 0
    split_mode: str = "layer"
    tensor_split: tuple[float, ...] = ()
    idle_cells: int = -1
    spill_bytes: int = of_option("spill", -1)
    prompt_cache_bytes: int = of_option("prompt_cache", 0)
    loras: tuple[Lora, ...] = of_option("lora", ())
    projector: bool = True  # if the model has one
    chat_template: str = ""  # a template, the name of one, or (before `effective.fitting`) the absolute path of one


OPTION_OF: Final[Mapping[str, str]] = {item.name: item.metadata.get("option", item.name) for item in fields(LoadSettings)}
"""The option that says what each of the engine's settings is."""


@dataclass(slots=True, frozen=True)
class LoadSpec:
    """`paths` is the model's file, or all its split parts in order."""

    paths: tuple[Path, ...]
    settings: LoadSettings = LoadSettings()
    vocab_only: bool = False
    projector: Path | None = None  # of what sees or hears; loaded if the settings have it so
    prompt_cache: Path | None = None  # the folder for prompts that outlive the engine, if the settings give it room
    host_memory: int = 0  # bytes that the machine, or the control group, has for it; 0: nobody has looked
    cores: int = 0  # threads that compute fastest; 0: nobody has looked

    @property
    def loads(self) -> Path | None:
        """The projector that is loaded beside the model."""
        return self.projector if self.settings.projector and not self.vocab_only else None


@dataclass(slots=True, frozen=True)
class Loaded:
    """The effective settings and the facts of the model, as the engine reported them."""

    type: str  # "llm", "embedding", "vocab"
    arch: str
    context_length: int
    train_context_length: int
    parallel: int
    kv_cells: int
    eval_batch_size: int
    threads: int
    flash_attention: bool
    gpu_layers: int
    offload_kv_cache: bool
    n_experts: int  # per token; 0: the model has none
    n_params: int
    n_embd: int
    vocab_size: int
    size_bytes: int
    load_ms: float
    has_chat_template: bool
    warnings: tuple[str, ...]  # what whoever loads it should know
    runtime_name: str
    runtime_version: str
    vision: bool = False
    audio: bool = False


@dataclass(slots=True, frozen=True)
class Report:
    """The engine's counters: the first four of this moment, the rest since the load."""

    running: int
    queued: int
    cells: int
    cells_used: int
    decode_steps: int
    decoded_tokens: int
    prompt_tokens: int
    cached_tokens: int
    media_encoded: int
    media_reused: int  # pictures and sounds that were known, of the prompt or of their own
    disk_hits: int  # prompts of which something was found on the disk
    disk_tokens: int
    disk_read_bytes: int
    disk_written_bytes: int
    disk_bytes: int  # in the prompt cache's folder, of all models; 0: nobody has looked yet
    disk_damaged: int  # files that were removed for it


@dataclass(slots=True, frozen=True)
class DeviceMemory:
    """What a load takes of one device and what is free there, in bytes."""

    name: str  # "CPU" for the machine's own memory
    gpu: bool
    shares_host_memory: bool  # what it takes is taken of the machine's own memory
    weights: int
    kv_cache: int  # recurrent states, too
    compute: int
    free: int

    @property
    def needed(self) -> int:
        return self.weights + self.kv_cache + self.compute


@dataclass(slots=True, frozen=True)
class Measured:
    """What an engine says that a load would take."""

    devices: tuple[DeviceMemory, ...]
    process: int  # the engine itself: its program, the tokenizer's tables, rows of outputs
    projector: int  # of the machine's own memory
    file_pages: int  # of a mapped file, read while it is loaded and then of no more use
    context_length: int
    kv_cells: int
    threads: int


ENCODER: Final = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
INLINE_BYTES_MAX: Final = 32 * 1024
"""Commands up to here are written at once: within a millisecond."""
MESSAGE_SIZE: Final = 64
STEP: Final = 1 << 12
"""Characters that are written in one go: a tenth of a millisecond, three where they are small objects."""
SCALAR: Final = 8
"""Characters of a number, roughly; what matters is that many of them are much."""


# ---- commands as JSON ------------------------------------------------------------------------------------------------


def encode(command: Mapping[str, Any], in_steps: bool = False) -> bytes:
    """Raises `InvalidRequest` for what no frame can carry: lone surrogates, numbers that are not finite, sheer size.

    `in_steps` takes longer and never keeps other threads from the interpreter for more than a moment."""
    try:
        payload = b"".join(map(str.encode, steps(command))) if in_steps else ENCODER.encode(command).encode()
    except UnicodeEncodeError:
        raise InvalidRequest("text is not valid Unicode") from None
    except (ValueError, RecursionError):
        raise InvalidRequest("a value is not a finite number, or is nested too deeply") from None
    if len(payload) > MAX_PAYLOAD:
        raise InvalidRequest(f"the request is larger than {MAX_PAYLOAD} bytes")
    return payload


def steps(value: Any) -> Iterator[str]:
    """The JSON of `value` in pieces that are short to make: the encoder itself writes all of a value in one go."""
    if weigh(value) <= STEP:
        yield ENCODER.encode(value)
        return
    match value:
        case str():
            yield '"'
            for start in range(0, len(value), STEP):
                yield ENCODER.encode(value[start : start + STEP])[1:-1]
            yield '"'
        case dict():
            before = "{"
            for key, item in value.items():
                yield before + ENCODER.encode(key) + ":"
                yield from steps(item)
                before = ","
            yield "}"
        case _:
            before = "["
            for items in handfuls(value):
                yield before
                if len(items) == 1:
                    yield from steps(items[0])
                else:
                    yield ENCODER.encode(items)[1:-1]
                before = ","
            yield "]"


def handfuls(items: Sequence[Any]) -> Iterator[list[Any]]:
    """The items in their order, as many together as are no more than a step."""
    together: list[Any] = []
    weight = 0
    for item in items:
        more = weigh(item)
        if together and weight + more > STEP:
            yield together
            together, weight = [], 0
        together.append(item)
        weight += more
    if together:
        yield together


def weigh(value: Any) -> int:
    """About how many characters the JSON of `value` has; of much more than a step only that it is more."""
    match value:
        case str():
            return 2 + len(value)
        case dict():
            return 2 + weigh_all(value) + weigh_all(value.values())
        case list() | tuple():
            return 2 + weigh_all(value)
    return SCALAR


def weigh_all(values: Iterable[Any]) -> int:
    weight = 0
    for value in values:
        weight += weigh(value)
        if weight > STEP:
            break
    return weight


def is_large(prompt: Prompt) -> bool:
    """Its command has more than so many bytes, about; quick, and blind to what is rarely large."""
    match prompt:
        case Text(text=text):
            return len(text) > INLINE_BYTES_MAX
        case Tokens(ids=ids):
            return 6 * len(ids) > INLINE_BYTES_MAX
        case Infill(prefix=prefix, suffix=suffix, files=files):
            return len(prefix) + len(suffix) + sum(len(text) for _, text in files or ()) > INLINE_BYTES_MAX
    left = INLINE_BYTES_MAX - MESSAGE_SIZE * len(prompt.messages)
    for message in prompt.messages:
        for part in message.parts:
            left -= part_size(part)
            if left < 0:
                return True
    return left < 0


def part_size(part: Part) -> int:
    match part:
        case TextPart(text=text) | ReasoningPart(text=text):
            return len(text)
        case MediaPart():
            return MESSAGE_SIZE
        case ToolCallPart(arguments=arguments):
            return MESSAGE_SIZE + len(arguments)
        case ToolResultPart(content=content):
            return MESSAGE_SIZE + sum(map(part_size, content))


def load_object(spec: LoadSpec) -> dict[str, Any]:
    settings = {name: getattr(spec.settings, name) for name in OPTION_OF}
    loras = [{"path": path_value(lora.path), "scale": lora.scale} for lora in spec.settings.loras]
    machine = {"host_memory": spec.host_memory, "cores": spec.cores}
    said = {**paths_object(spec.paths), **settings, **machine, "loras": loras, "vocab_only": spec.vocab_only}
    del said["projector"]
    others = {"projector": spec.loads, "prompt_cache": spec.prompt_cache}
    return {**said, **{name: path_value(path) for name, path in others.items() if path is not None}}


def paths_object(paths: Sequence[Path]) -> dict[str, Any]:
    """A model's file, or all its split parts in order."""
    parts = {"splits": [path_value(path) for path in paths]} if len(paths) > 1 else {}
    return {"path": path_value(paths[0]), **parts}


def path_value(path: Path) -> str | dict[str, str]:
    """A path is bytes, and JSON's strings are none: what is not UTF-8 travels as their digits."""
    name = os.fsencode(str(archive.part(path) or path))
    try:
        return name.decode()
    except UnicodeDecodeError:
        return {"hex": name.hex()}


def chat_object(chat: Chat) -> dict[str, Any]:
    names, indices = spell_names(chat), itertools.count()
    return {
        "messages": [message_object(message, names, indices) for message in chat.messages],
        "template_kwargs": dict(chat.template_kwargs),
        **({"tools": [tool_object(tool, names) for tool in chat.tools]} if chat.tools else {}),
        **({} if chat.continues is None else {"continue_final": chat.continues}),
    }


def tool_object(tool: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    function = tool["function"]
    spelled = names.get(function["name"])
    return dict(tool) if spelled is None else {**tool, "function": {**function, "name": spelled}}


def message_object(message: Message, names: Mapping[str, str], indices: Iterator[int]) -> dict[str, Any]:
    """As templates know messages, which is OpenAI's way; this is the one place that spells them. `names` stand for those of
    tools that cannot stay as they are; of `indices` each of its media takes one."""
    spelled: dict[str, Any] = {"role": message.role}
    said: list[Content] = []
    calls: list[dict[str, Any]] = []
    reasoning = ""
    for part in message.parts:
        match part:
            case TextPart() | MediaPart():
                said.append(part)
            case ReasoningPart(text=text):
                reasoning += text
            case ToolCallPart(id=id, name=name, arguments=arguments):
                call = {"type": "function", "function": {"name": names.get(name, name), "arguments": arguments}}
                calls.append({"id": id, **call} if id else call)
            case ToolResultPart(call_id=call_id, name=name, content=content):
                spelled.update({"tool_call_id": call_id} if call_id else {})
                spelled.update({"name": names.get(name, name)} if name else {})
                said += content
    spelled["content"] = content_object(said, indices)
    if reasoning:
        spelled["reasoning_content"] = reasoning
    if calls:
        spelled["tool_calls"] = calls
    return spelled


def content_object(said: Sequence[Content], indices: Iterator[int]) -> str | list[dict[str, Any]]:
    """Several texts stay parts: templates that know parts get them, to the others they are lines. Media are always parts."""
    match said:
        case ():
            return ""
        case (TextPart(text=text),):
            return text
    return [
        {"type": "text", "text": part.text}
        if isinstance(part, TextPart)
        else {"type": "media", "kind": part.kind, "index": next(indices)}
        for part in said
    ]


def media_files(prompt: Prompt) -> tuple[MediaPart, ...]:
    """The pictures and sounds of a prompt, in the order of their indices. Raises `MediaRefused` for too many, or too large
    ones."""
    media = prompt.media if isinstance(prompt, Chat) else ()
    n_bytes = 0
    for index, part in enumerate(media):
        n_bytes += len(part.data)
        if index >= MEDIA_MAX:
            raise MediaRefused(f"a conversation may have {MEDIA_MAX} pictures and sounds", index, part.where)
        if n_bytes > MEDIA_BYTES_MAX:
            told = f"the pictures and sounds of a conversation may have {MEDIA_BYTES_MAX >> 20} MiB in all"
            raise MediaRefused(told, index, part.where)
    return media


def choice_object(chat: Chat) -> dict[str, Any]:
    """What is said of tools to a generation, besides the tools themselves."""
    if not chat.tools:
        return {}
    parallel = chat.parallel_tool_calls
    return {"tool_choice": chat.tool_choice, **({} if parallel is None else {"parallel_tool_calls": parallel})}


def grammar_object(grammar: Grammar | None) -> dict[str, Any]:
    if grammar is None:
        return {}
    strict = {"strict": True} if grammar.strict else {}
    return {"grammar": {"kind": grammar.kind, "text": grammar.text, **strict}}


def sampling_object(sampling: Sampling) -> dict[str, Any]:
    return {
        **dict(zip(SAMPLING_NAMES, _sampling_values(sampling))),
        "logit_bias": [[token, None if bias == float("-inf") else bias] for token, bias in sampling.logit_bias],
    }


def embed_object(embed: Embed) -> dict[str, Any]:
    inputs = [text if isinstance(text, str) else list(text) for text in embed.inputs]
    dimensions = {} if embed.dimensions is None else {"dimensions": embed.dimensions}
    return {"inputs": inputs, "as_json": embed.as_json, **dimensions}


def infill_object(infill: Infill) -> dict[str, Any]:
    spelled: dict[str, Any] = {"prefix": infill.prefix, "suffix": infill.suffix, "begun": infill.begun}
    if infill.files is not None:
        spelled["files"] = [{"name": name, "text": text} for name, text in infill.files]
    return spelled


def generate_object(generate: Generate) -> dict[str, Any]:
    match generate.prompt:
        case Chat() as chat:
            prompt = {**chat_object(chat), **choice_object(chat)}
        case Text(text=text):
            prompt = {"text": text}
        case Tokens(ids=ids):
            prompt = {"tokens": ids}
        case Infill() as infill:
            prompt = {"infill": infill_object(infill)}
    loras = generate.loras
    return {
        **prompt,
        "max_tokens": generate.max_tokens,
        "stop": generate.stop,
        "echo": generate.echo,
        "whole": generate.whole,
        "ignore_eos": generate.ignore_eos,
        "top_logprobs": generate.top_logprobs,
        **grammar_object(generate.grammar),
        **({} if loras is None else {"loras": [{"id": id, "scale": scale} for id, scale in loras]}),
        "sampling": sampling_object(generate.sampling),
        **options_object(generate),
    }


def options_object(generate: Generate) -> dict[str, Any]:
    """What few requests ask for, and only those carry."""
    options: dict[str, Any] = {}
    if generate.overflow != "error":
        options["overflow"] = generate.overflow
    if generate.progress:
        options["progress"] = True
    if generate.scope:
        options["scope"] = generate.scope
    if generate.stop_tokens:
        options["stop_tokens"] = generate.stop_tokens
    for name, nothing in (("min_tokens", 0), ("line_ms", 0), ("reasoning_budget", UNLIMITED)):
        if getattr(generate, name) != nothing:
            options[name] = getattr(generate, name)
    if generate.draft is not None:
        options["draft"] = {field.name: getattr(generate.draft, field.name) for field in fields(Draft)}
    return options


# ---- payloads as values ----------------------------------------------------------------------------------------------


def read_object(payload: bytes) -> dict[str, Any]:
    value = json.loads(payload)
    if not isinstance(value, dict):
        raise TypeError("not an object")
    return value


def read_text(payload: bytes) -> str:
    return payload.decode("utf-8", "replace")


def read_notice(payload: bytes) -> Notice:
    return Notice(tuple(map(str, read_object(payload)["unenforced"])))


def read_progress(payload: bytes) -> PromptProgress:
    value = read_object(payload)
    return PromptProgress(int(value["done"]), int(value["total"]), int(value["cached"]), float(value["ms"]))


def read_counted(payload: bytes) -> tuple[str, int]:
    """A prompt, and its number of tokens, which stands in the first line."""
    count, _, prompt = payload.partition(b"\n")
    return read_text(prompt), int(count)


def read_score(payload: bytes, n_tokens: int) -> Score:
    (score,) = _SCORE.unpack(payload)
    return Score(score, n_tokens)


def read_tokens(payload: bytes) -> tuple[tuple[int, ...], tuple[bytes, ...]]:
    value = read_object(payload)
    return tuple(map(int, value["tokens"])), tuple(map(bytes, value["pieces"]))


def read_loaded(payload: bytes) -> Loaded:
    value = read_object(payload)
    return Loaded(
        type=str(value["type"]),
        arch=str(value["arch"]),
        context_length=int(value["context_length"]),
        train_context_length=int(value["train_context_length"]),
        parallel=int(value["parallel"]),
        kv_cells=int(value["kv_cells"]),
        eval_batch_size=int(value["eval_batch_size"]),
        threads=int(value["threads"]),
        flash_attention=bool(value["flash_attention"]),
        gpu_layers=int(value["gpu_layers"]),
        offload_kv_cache=bool(value["offload_kv_cache"]),
        n_experts=int(value["n_experts"]),
        n_params=int(value["n_params"]),
        n_embd=int(value["n_embd"]),
        vocab_size=int(value["vocab_size"]),
        size_bytes=int(value["size_bytes"]),
        load_ms=float(value["load_ms"]),
        has_chat_template=bool(value["has_chat_template"]),
        vision=bool(value.get("vision", False)),
        audio=bool(value.get("audio", False)),
        warnings=tuple(str(warning) for warning in value["warnings"]),
        runtime_name=str(value["runtime"]["name"]),
        runtime_version=str(value["runtime"]["version"]),
    )


def read_estimated(payload: bytes) -> Measured:
    value = read_object(payload)
    return Measured(
        devices=tuple(read_device(device) for device in value["devices"]),
        process=int(value["process"]),
        projector=int(value.get("projector", 0)),
        file_pages=int(value["file_pages"]),
        context_length=int(value["context_length"]),
        kv_cells=int(value["kv_cells"]),
        threads=int(value["threads"]),
    )


def read_device(value: Mapping[str, Any]) -> DeviceMemory:
    return DeviceMemory(
        name=str(value["name"]),
        gpu=bool(value["gpu"]),
        shares_host_memory=bool(value["shares_host_memory"]),
        weights=int(value["weights"]),
        kv_cache=int(value["kv_cache"]),
        compute=int(value["compute"]),
        free=int(value["free"]),
    )


def read_report(payload: bytes) -> Report:
    value = read_object(payload)
    return Report(**{field.name: int(value[field.name]) for field in fields(Report)})


def read_logprobs(payload: bytes) -> list[TokenLogprob]:
    found = []
    for token in read_object(payload)["tokens"]:
        raw = bytes(token["b"])
        top = tuple(TopToken(read_text(piece), piece, read_logprob(p)) for piece, p in read_top(token["top"]))
        p, shown = token["p"], token.get("shown")
        logprob = None if p is None else read_logprob(p)
        found.append(TokenLogprob(read_text(raw), raw, logprob, top, None if shown is None else int(shown)))
    return found


def read_top(pairs: list[Any]) -> list[tuple[bytes, float | None]]:
    return [(bytes(piece), logprob) for piece, logprob in pairs]


def read_logprob(value: float | None) -> float:
    return LOGPROB_FLOOR if value is None else max(float(value), LOGPROB_FLOOR)


def read_finished(payload: bytes, names: Mapping[str, str]) -> Finished:
    """`names` are those that a client gave to tools, by what stands for them."""
    value = read_object(payload)
    reason: StopReason = value["reason"]
    if reason not in get_args(StopReason):
        raise ValueError(f"stop reason {reason!r}")
    stop_string = value["stop_string"]
    stats = Stats(
        prompt_tokens=int(value["prompt_tokens"]),
        cached_tokens=int(value["cached_tokens"]),
        generated_tokens=int(value["generated_tokens"]),
        queue_ms=float(value["queue_ms"]),
        first_token_ms=float(value["first_token_ms"]),
        generation_ms=float(value["generation_ms"]),
        reasoning_tokens=int(value.get("reasoning_tokens", 0)),
        draft=read_draft(value.get("draft")),
    )
    loosened = tuple(names.get(name, str(name)) for name in value.get("loosened", ()))
    return Finished(reason, stats, None if stop_string is None else str(stop_string), loosened)


def read_draft(value: Mapping[str, Any] | None) -> DraftCounts | None:
    return None if value is None else DraftCounts(**{field.name: int(value[field.name]) for field in fields(DraftCounts)})


def read_tool_call(payload: bytes) -> tuple[int, str | None, str]:
    """The call's index, its name if this begins it, and a piece of its arguments."""
    value = read_object(payload)
    index, name, arguments = int(value["index"]), value.get("name"), value["arguments"]
    if not isinstance(arguments, str) or not (name is None or (isinstance(name, str) and name)):
        raise TypeError("a name or arguments that are no string")
    return index, name, arguments


# -- errors: the engine's code chooses the class


def _context_overflow(name: str, message: str, details: Mapping[str, Any]) -> LmError:
    index = details.get("index")
    return ContextOverflow(int(details["needed"]), int(details["limit"]), None if index is None else int(index))


def _queue_full(name: str, message: str, details: Mapping[str, Any]) -> LmError:
    return QueueFull(int(details["limit"]))


def _load_failed(name: str, message: str, details: Mapping[str, Any]) -> LmError:
    return LoadFailed(name, message)


def _model_type(name: str, message: str, details: Mapping[str, Any]) -> LmError:
    return WrongModelType(name, str(details["needs"]))


def _invalid_request(name: str, message: str, details: Mapping[str, Any]) -> LmError:
    param = details.get("param")
    if param == "media":
        return MediaRefused(message, int(details["index"]))
    return InvalidRequest(message, None if param is None else str(param))


def _out_of_memory(name: str, message: str, details: Mapping[str, Any]) -> LmError:
    return EngineError("out_of_memory", message, status=503)


def _internal(name: str, message: str, details: Mapping[str, Any]) -> LmError:
    return EngineError("internal", message)


_ERRORS: Final[Mapping[str, Callable[[str, str, Mapping[str, Any]], LmError]]] = {
    "context_overflow": _context_overflow,
    "queue_full": _queue_full,
    "load_failed": _load_failed,
    "model_type": _model_type,
    "invalid_request": _invalid_request,
    "out_of_memory": _out_of_memory,
    "internal": _internal,
}


def read_error(name: str, payload: bytes) -> LmError:
    """A code that is not in the table is no error of this protocol."""
    value = read_object(payload)
    details = value.get("details") or {}
    if not isinstance(details, dict):
        raise TypeError("details are not an object")
    return _ERRORS[value["code"]](name, str(value["message"]), details)
