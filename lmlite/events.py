"""What happens while a turn is answered: LM Studio v1's vocabulary, which every dialect projects down.

In this order: `Started`, `LoadProgress` if it waits for a load, `Leased`, `Notice` if a schema rules the answer,
`PromptProgress`, then the parts of the answer one after the other (reasoning, text, tool calls: each a start, deltas and an
end), `Finished`. Where servers have the tools that are called, `ToolsListed` is the first of all, then what came of calls that
were approved, and between two rounds come `RoundOver` and the results; a call that waits for approval ends the turn. A whole
(non-stream) answer is a fold over the same events that a stream would have carried. Errors are not events: who runs a turn
raises `errors.LmError`.
"""

from __future__ import annotations

from typing import Literal

from .card import Instance
from .messages import MediaPart
from .records import dataclass
from .tool_servers import ServerTool, ToolServer

StopReason = Literal[
    "eosFound",
    "stopStringFound",
    "maxPredictedTokensReached",
    "contextLengthReached",
    "userStopped",
    "modelUnloaded",
    "toolCalls",
    "failed",
]


@dataclass(slots=True, frozen=True)
class Started:
    """The instance `model` will answer; `loads` tells that it is being loaded and waited for."""

    model: str
    loads: bool


@dataclass(slots=True, frozen=True)
class LoadProgress:
    """The model of this request is being loaded; `fraction` is 0..1. Only seen by requests that wait for a load."""

    fraction: float


@dataclass(slots=True, frozen=True)
class Leased:
    """The model is at hand, for one round of the engine. `load_s` is what its load took, None if nobody waited for one."""

    instance: Instance
    load_s: float | None


@dataclass(slots=True, frozen=True)
class Notice:
    """A schema rules the answer; `unenforced` is what it says and nothing sees to."""

    unenforced: tuple[str, ...]


@dataclass(slots=True, frozen=True)
class PromptProgress:
    """Prompt tokens processed so far, those `cached` included, and the milliseconds that this has taken."""

    done: int
    total: int
    cached: int = 0
    elapsed_ms: float = 0.0


@dataclass(slots=True, frozen=True)
class TopToken:
    """A candidate: `token` is its text (U+FFFD where not UTF-8), `bytes` its exact bytes, `logprob` natural log."""

    token: str
    bytes: bytes
    logprob: float


@dataclass(slots=True, frozen=True)
class TokenLogprob:
    """A sampled token, its log probability under the unmodified distribution, and the likeliest alternatives; or a token
    of the prompt, where that is echoed."""

    token: str
    bytes: bytes
    logprob: float | None  # None: of the prompt's first token, which nothing foretells
    top: tuple[TopToken, ...] = ()
    shown: int | None = None
    """How many bytes at the end of `bytes` stand in the text; None: all."""


@dataclass(slots=True, frozen=True)
class TextStart:
    """What the model says begins here, anew after reasoning and tool calls."""


@dataclass(slots=True, frozen=True)
class TextDelta:
    """A piece of the answer: whole UTF-8, stop strings already cut. `logprobs` covers the tokens behind `text`."""

    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(slots=True, frozen=True)
class TextEnd:
    pass


@dataclass(slots=True, frozen=True)
class ReasoningStart:
    pass


@dataclass(slots=True, frozen=True)
class ReasoningDelta:
    """A piece of what the model thinks before or between its answers, whole UTF-8, without the template's marks."""

    text: str


@dataclass(slots=True, frozen=True)
class ReasoningEnd:
    pass


@dataclass(slots=True, frozen=True)
class ToolCallStart:
    """The model begins to call the tool `name`. Calls are numbered from 0."""

    index: int
    name: str


@dataclass(slots=True, frozen=True)
class ToolCallArguments:
    """A piece of the call's arguments; all of them together are one JSON object, unless the answer was cut short."""

    index: int
    text: str


@dataclass(slots=True, frozen=True)
class ToolCallEnd:
    index: int


@dataclass(slots=True, frozen=True)
class ToolsListed:
    """What a server offers the model in this turn, before its first round."""

    server: ToolServer
    tools: tuple[ServerTool, ...]


@dataclass(slots=True, frozen=True)
class RoundOver:
    """The model waits for results of its calls: those that servers have follow in the order of the calls, then what it says
    to them."""


@dataclass(slots=True, frozen=True)
class ToolResult:
    """What the call `index` gave. `id` is its name in the conversation, `output` the JSON of an array of MCP's blocks, `text`
    what the model is told of them. `error` is "" where the server answered, if only that its tool failed."""

    index: int
    id: str
    tool: ServerTool
    output: str
    text: str
    failed: bool = False
    error: str = ""
    media: tuple[MediaPart, ...] = ()
    """What the model is shown beside the text, if it can see or hear."""


@dataclass(slots=True, frozen=True)
class ToolRefused:
    """The call `index` was not made, for what the model wrote; it is told the `reason`. `tool` is None where there is none of
    that name."""

    index: int
    id: str
    reason: str
    tool: ServerTool | None


@dataclass(slots=True, frozen=True)
class ApprovalAsked:
    """The call `index` is not made before somebody has approved it: the turn ends with this round."""

    index: int
    tool: ServerTool


@dataclass(slots=True, frozen=True)
class CallResumed:
    """The call `id` of an earlier turn, which has been approved, is made now, before the first round. Its `index` is
    negative; a result of the same index follows, without this event where it was denied."""

    index: int
    id: str
    name: str
    arguments: str
    tool: ServerTool | None


@dataclass(slots=True, frozen=True)
class DraftCounts:
    """Guessed tokens: those verified and kept, those verified and not kept, and those not looked at."""

    total: int
    accepted: int
    rejected: int
    ignored: int


@dataclass(slots=True, frozen=True)
class Stats:
    """What one request cost. Times are milliseconds by the engine's monotonic clock."""

    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int
    queue_ms: float
    """From the command's arrival to its admission."""
    first_token_ms: float
    """From the command's arrival to the first sampled token (0 if none was sampled)."""
    generation_ms: float
    """From the first sampled token to the last, at least one decode step's worth."""
    reasoning_tokens: int = 0
    """Those of the generated tokens that were reasoning."""
    draft: DraftCounts | None = None
    """None where no guesses were asked for."""

    @property
    def tokens_per_second(self) -> float:
        return self.generated_tokens * 1000.0 / self.generation_ms if self.generation_ms > 0 else 0.0


@dataclass(slots=True, frozen=True)
class Finished:
    """Always the last event of a request that did not fail. `stop_string` is the one that was found, if one was."""

    reason: StopReason
    stats: Stats
    stop_string: str | None = None
    loosened: tuple[str, ...] = ()
    """Tools that may be called in ways that their schemas forbid; told once for each set of tools."""


Event = (
    Started
    | LoadProgress
    | Leased
    | Notice
    | PromptProgress
    | ReasoningStart
    | ReasoningDelta
    | ReasoningEnd
    | TextStart
    | TextDelta
    | TextEnd
    | ToolCallStart
    | ToolCallArguments
    | ToolCallEnd
    | ToolsListed
    | RoundOver
    | ToolResult
    | ToolRefused
    | ApprovalAsked
    | CallResumed
    | Finished
)
