"""What is known of a model: on disk (`ModelCard`), loaded (`Instance`), and by whom it is served (`Runtime`)."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal

from .messages import Sense
from .records import dataclass
from .settings import ModelSettings

ModelType = Literal["llm", "vlm", "embedding"]
ANY_TEXT: Final = "*"
"""In a name of the user's own for a model."""
_DEPTH: Final = 4
"""Components of a path in LM Studio's layout at most: publisher, repository, a folder per quantization, file."""
Activity = Literal["idle", "loading", "processingPrompt", "generating"]


@dataclass(slots=True, frozen=True)
class Reasoning:
    """What may be said of reasoning to a model (of "off", "on", "low", "medium", "high"), and what is true unsaid."""

    options: tuple[str, ...]
    default: str
    effort_off: str | None = None  # the `reasoning_effort` that tells the model's template "off", if it has such a word


@dataclass(slots=True, frozen=True)
class ModelCard:
    """One model of the catalogue, read from its files' names and header; nothing of it needs an engine."""

    id: str
    type: ModelType
    publisher: str
    display_name: str
    arch: str
    quantization: str  # "Q4_K_M", "F32", ...; "?" if unknown
    bits_per_weight: int | None  # the nominal number: 4 of Q4_K_M
    size_bytes: int  # all split parts and the projector
    params_string: str | None  # "7B"
    max_context_length: int
    paths: tuple[Path, ...]  # the model's file, or all its split parts in order
    mmproj: Path | None = None  # the projector: what sees (type "vlm") or hears
    hears: bool = False
    has_chat_template: bool = False
    trained_for_tool_use: bool = False
    reasoning: Reasoning | None = None  # None: nothing to be said
    reranks: bool = False  # of type "embedding", but it scores documents and gives no vectors
    problem: str | None = None  # why it cannot be loaded; None: nothing seen
    settings: ModelSettings = ModelSettings()  # the user's own for this model over those of its model.yaml
    variants: tuple[str, ...] = ()  # ids of a catalogue model's (model.yaml) quantizations on disk
    selected_variant: str | None = None  # the one of them that this is
    aliases: tuple[str, ...] = ()  # the user's own names for it, patterns with `ANY_TEXT` too
    note: str | None = None  # what of its files does not count, and why

    @property
    def sees(self) -> bool:
        return self.type == "vlm"

    @property
    def senses(self) -> frozenset[Sense]:
        """What it has if it is loaded with its projector."""
        return senses_of(self.sees, self.hears)

    @property
    def path(self) -> str:
        """`publisher/repo/file.gguf`, by which a request can name it; the whole path of what lies elsewhere."""
        path = self.paths[0]
        last = path.parts[-_DEPTH:]
        return "/".join(last[last.index(self.publisher) :]) if self.publisher in last[:-2] else str(path)


@dataclass(slots=True, frozen=True)
class Runtime:
    """The inference runtime, as the engine itself reports it."""

    name: str  # "llama.cpp-linux-x86_64-cpu"
    version: str
    supported_formats: tuple[str, ...] = ("gguf",)


@dataclass(slots=True, frozen=True)
class Instance:
    """A loaded model: the effective settings, as the engine reported them after the load."""

    id: str
    card: ModelCard
    runtime: Runtime
    context_length: int  # tokens one request may use
    parallel: int  # sequences that decode at once
    kv_cells: int  # cells of the unified cache; 0: the model has none
    eval_batch_size: int
    threads: int  # that compute together
    flash_attention: bool
    gpu_layers: int
    n_params: int
    n_embd: int
    vocab_size: int
    load_ms: float
    offload_kv_cache: bool = False  # the KV cache of layers on the GPU is there too
    n_experts: int = 0  # per token; 0: the model has none
    vision: bool = False  # it takes pictures, as it is loaded
    audio: bool = False  # it takes sound
    warnings: tuple[str, ...] = ()  # what is wrong with its chat template; that no GPU was found
    remaining_ttl_s: float | None = None  # of a model loaded by a request, when it was asked; None: it stays

    @property
    def senses(self) -> frozenset[Sense]:
        return senses_of(self.vision, self.audio)


def senses_of(sees: bool, hears: bool) -> frozenset[Sense]:
    told: tuple[tuple[Sense, bool], ...] = (("vision", sees), ("audio", hears))
    return frozenset(sense for sense, has in told if has)


@dataclass(slots=True, frozen=True)
class Presence:
    """What an instance is doing at one moment, loaded or still loading."""

    id: str
    card: ModelCard
    status: Activity
    context_length: int  # what was asked for while it is loading; 0: the model's own limit
    parallel: int
    threads: int | None  # None while it is loading
    queued: int  # requests that wait for it to load or for a free sequence
    ttl_s: float | None
    remaining_ttl_s: float | None  # `ttl_s` while it is in use
    used_at: float | None  # Unix seconds of the last request's beginning or end
    pid: int | None  # None: it runs in a thread
    chat_template: str = ""  # the one in place of its own: a name or a path
    warnings: tuple[str, ...] = ()
