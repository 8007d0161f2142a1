"""What the dialects ask of an engine, in one vocabulary: no dialect's name, no wire format, only validated values."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import field, replace
from typing import Any, Literal

from .messages import Conversation, MediaPart, Message, Sense
from .records import dataclass
from .settings import ModelSettings

INT32_MAX = 2**31 - 1

UNLIMITED = -1
"""`max_tokens`: no limit but the context."""


@dataclass(slots=True, frozen=True)
class Sampling:
    """How the next token is chosen. Defaults are LM Studio's, with no penalty and no randomness added beyond them."""

    temperature: float = 0.8
    top_k: int = 40  # 0 or -1: off
    top_p: float = 0.95  # 1: off
    min_p: float = 0.05  # 0: off
    typical_p: float = 1.0  # 1: off
    repeat_penalty: float = 1.0  # 1: off
    repeat_last_n: int = 64  # tokens; -1: the whole context
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()  # (token id, bias); -inf bans
    mirostat: Literal[0, 1, 2] = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    dry_multiplier: float = 0.0  # 0: off
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = -1
    dry_sequence_breakers: tuple[str, ...] = ("\n", ":", '"', "*")
    xtc_probability: float = 0.0  # 0: off
    xtc_threshold: float = 0.1
    top_n_sigma: float = -1.0  # standard deviations below the best; not above 0: off
    dynatemp_range: float = 0.0  # the temperature lies so far around `temperature`, by the entropy; 0: off
    dynatemp_exponent: float = 1.0
    samplers: tuple[str, ...] | None = None  # of `SAMPLERS`, in this order and no others; None: in that order
    seed: int | None = None  # 0 .. 2**32-2; None: drawn by the engine


SAMPLERS = ("penalties", "dry", "top_n_sigma", "top_k", "typ_p", "top_p", "min_p", "xtc", "temperature", "infill")
"""The steps of a choice in llama.cpp's words and order; `infill`, for text in a gap, is taken only where it is asked for."""

SAMPLING_NUMBERS: Mapping[str, tuple[float, float]] = {
    "temperature": (0.0, 5.0),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "typical_p": (0.0, 1.0),
    "repeat_penalty": (0.01, 10.0),
    "presence_penalty": (-2.0, 2.0),
    "frequency_penalty": (-2.0, 2.0),
    "mirostat_tau": (0.0, 100.0),
    "mirostat_eta": (0.0, 1.0),
    "dry_multiplier": (0.0, 100.0),
    "dry_base": (1.0, 10.0),
    "xtc_probability": (0.0, 1.0),
    "xtc_threshold": (0.0, 1.0),
    "top_n_sigma": (-1.0, 100.0),
    "dynatemp_range": (0.0, 5.0),
    "dynatemp_exponent": (0.0, 100.0),
}
"""Fields of `Sampling` and what they may be, whoever sets them: least and most, both included."""

SAMPLING_INTEGERS: Mapping[str, tuple[int, int]] = {
    "top_k": (-1, INT32_MAX),
    "repeat_last_n": (-1, INT32_MAX),
    "mirostat": (0, 2),
    "dry_allowed_length": (0, INT32_MAX),
    "dry_penalty_last_n": (-1, INT32_MAX),
}

TEMPLATE_RESERVED = frozenset(
    (
        "add_generation_prompt",
        "bos_token",
        "chat_template",
        "continue_final_message",
        "conversation",
        "documents",
        "eos_token",
        "functions",
        "messages",
        "raise_exception",
        "tokenize",
        "tools",
    )
)
"""Variables of a template that are the renderer's to set: through them a request could speak past its own messages."""


ToolChoice = Literal["auto", "none", "required"]


@dataclass(slots=True, frozen=True)
class Chat:
    """A conversation to be rendered by the model's own template, and the tools that the model may call.

    `tools` are `{"type": "function", "function": {"name", ...}}`.
    """

    messages: tuple[Message, ...]
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    tools: tuple[Mapping[str, Any], ...] = ()
    tool_choice: ToolChoice = "auto"
    parallel_tool_calls: bool | None = None  # None: if the template can write several calls of one message
    continues: bool | None = None
    """Whether the last message, an answer without calls, is gone on with; None: if nothing rules what the answer looks like
    (a grammar, a schema, a call that has to be)."""

    def __post_init__(self) -> None:
        """Looks the messages through, now: where a large request is read, which is beside the loop."""
        if not isinstance(self.messages, Conversation):
            messages = Conversation(self.messages)
            object.__setattr__(self, "messages", messages)
            messages.media  # noqa: B018 - known from here on

    @property
    def media(self) -> tuple[MediaPart, ...]:
        """All pictures and sounds, in their order."""
        assert isinstance(self.messages, Conversation)
        return self.messages.media


@dataclass(slots=True, frozen=True)
class Text:
    """A raw prompt: BOS is added as the model asks, and special tokens written in it are parsed, as templates need."""

    text: str


@dataclass(slots=True, frozen=True)
class Tokens:
    """A prompt that is token ids already, taken as it is."""

    ids: tuple[int, ...]


@dataclass(slots=True, frozen=True)
class Infill:
    """A text with a gap that the model fills, by the fill-in-the-middle tokens of its vocabulary.

    `begun` is what the gap begins with. With `files` (name, text), even none, the model is told of other files first, and
    what is farthest from the gap is left out if the context has no room for it.
    """

    prefix: str
    suffix: str
    begun: str = ""
    files: tuple[tuple[str, str], ...] | None = None


Prompt = Chat | Text | Tokens | Infill


def senses(prompt: Prompt) -> frozenset[Sense]:
    """What a model has to have for it."""
    media = prompt.media if isinstance(prompt, Chat) else ()
    return frozenset(["vision" if part.kind == "image" else "audio" for part in media])


@dataclass(slots=True, frozen=True)
class Grammar:
    """A constraint on the answer: GBNF text with root rule `root`, a JSON schema as JSON text, a regular expression that the
    content matches, or a JSON list of texts that it is one of."""

    kind: Literal["gbnf", "json_schema", "regex", "choice"]
    text: str
    strict: bool = False
    """A schema is refused if it says what cannot be enforced."""


@dataclass(slots=True, frozen=True)
class Draft:
    """Speculation: tokens are guessed by the attached draft model or from repetitions in the text, then verified."""

    kind: Literal["model", "ngram"]
    max: int = 16  # guessed at once
    min: int = 0  # so many even where it does not seem to pay, and never fewer
    min_p: float = 0.75  # a less likely guess of the draft model is the last


@dataclass(slots=True, frozen=True)
class Generate:
    """One sequence to be generated. A request with `n` choices or several prompts is several of these."""

    prompt: Prompt
    max_tokens: int = UNLIMITED
    stop: tuple[str, ...] = ()
    sampling: Sampling = Sampling()
    grammar: Grammar | None = None
    top_logprobs: int | None = None  # None: no logprobs; 0: only the sampled token's
    echo: bool = False  # the prompt's text is the first text delta
    ignore_eos: bool = False
    stop_tokens: tuple[int, ...] = ()  # token ids that end the answer and do not belong to it
    min_tokens: int = 0  # before, neither a token nor a string ends it
    line_ms: int = 0  # once a line is complete, the answer ends after so long; 0: it does not
    reasoning_budget: int = UNLIMITED  # tokens, of a chat
    whole: bool = False  # the text is wanted at the end, in one piece
    large: bool = False  # what is asked may take long to write down, whatever its prompt looks like
    progress: bool = False  # of the prompt is wanted from the beginning, however short it is
    overflow: Literal["error", "stop", "drop_middle"] = "error"  # what happens to what does not fit the context
    draft: Draft | None = None
    scope: str = ""  # only requests of one scope share cached prefixes, whose timing could tell one caller of another
    loras: tuple[tuple[int, float], ...] | None = None  # (adapter, scale), the rest off; None: the scales of the load


def with_defaults(
    work: Generate, given: Collection[str], model: ModelSettings, effort_off: str | None = None
) -> Generate:
    """`work` with what the model's settings say where its request says nothing. `given` are the fields of `Sampling`, and
    "max_tokens", that the request did set; `effort_off` is as in `card.Reasoning`."""
    if not model.sampling and not model.template_kwargs and effort_off is None:
        return work
    missing = {name: value for name, value in model.sampling.items() if name not in given}
    max_tokens = missing.pop("max_tokens", work.max_tokens)
    prompt = work.prompt
    if isinstance(prompt, Chat):
        variables = {**model.template_kwargs, **prompt.template_kwargs}
        if effort_off is not None and variables.get("enable_thinking") is False:
            variables.setdefault("reasoning_effort", effort_off)
        if variables != prompt.template_kwargs:
            prompt = replace(prompt, template_kwargs=variables)
    if not missing and prompt is work.prompt and max_tokens == work.max_tokens:
        return work
    return replace(work, prompt=prompt, max_tokens=max_tokens, sampling=replace(work.sampling, **missing))


@dataclass(slots=True, frozen=True)
class Embed:
    """Inputs for the embedding model, each a text or its token ids; answers come in this order."""

    inputs: Sequence[str | tuple[int, ...]]
    as_json: bool = False  # vectors as JSON text
    dimensions: int | None = None  # the first ones of each vector, normalised anew; None: all


@dataclass(slots=True, frozen=True)
class Embedding:
    """One input's vector, L2-normalised, and the tokens that the input had. The vector is little-endian float32, or a JSON
    array of the same numbers if `Embed.as_json`."""

    vector: bytes
    n_tokens: int


@dataclass(slots=True, frozen=True)
class Rerank:
    """A query and the documents whose worth for it the reranking model scores; answers come in their order."""

    query: str
    documents: Sequence[str]


@dataclass(slots=True, frozen=True)
class Score:
    """One document's score as the model gives it (a logit or a probability: only the order means something), and the
    tokens that it had together with the query."""

    score: float
    n_tokens: int
