"""LM Studio's native `POST /api/v1/chat`: a strict body, turns that are kept and gone on from by their ids, named events.

A stream begins when it is certain that the request will be answered: with a load, or with the engine's first word, so that
what fails before is an HTTP status. After an error comes what there is of the answer, in `chat.end` as always.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from json.encoder import encode_basestring as quote
from typing import Any, Final

from ...config import CONTEXT_MAX
from ...errors import InvalidRequest, InvalidType, LmError
from ...events import (
    Event,
    Finished,
    Leased,
    LoadProgress,
    PromptProgress,
    ReasoningDelta,
    ReasoningEnd,
    ReasoningStart,
    RoundOver,
    Started,
    TextDelta,
    TextEnd,
    TextStart,
    ToolCallEnd,
    ToolCallStart,
    ToolRefused,
    ToolResult,
    ToolsListed,
)
from ...exchange import Exchange, Status
from ...messages import Content, Message, TextPart, text_message
from ...records import dataclass
from ...request import Chat
from ...settings import ModelSettings
from ...tool_servers import ServerTool
from ...turn import Follows
from ...values import load_whole
from ..answer import FINISH_REASON, call_id
from ..dialect import Call, Frame, Origin, Reply
from ..kept_media import without_media
from ..read.effort import set_effort
from ..read.fields import Fields, as_object
from ..read.media import parse_url
from ..read.sampling import parse_options
from ..spell import dumps
from ..transcript import Piece, Transcript
from .integrations import parse_integrations, provider_info
from .load import required_name, strict
from .models import error_object

KEYS: Final = frozenset(
    ("model", "input", "system_prompt", "integrations", "stream", "store", "temperature", "top_p", "top_k", "min_p",
     "repeat_penalty", "max_output_tokens", "context_length", "reasoning", "previous_response_id")
)  # fmt: skip
INPUT_KEYS: Final[Mapping[str, frozenset[str]]] = {
    "text": frozenset(("type", "content")),
    "message": frozenset(("type", "content")),  # the word of LM Studio's tables; its examples have the other one
    "image": frozenset(("type", "data_url")),
}
EFFORTS: Final = ("off", "low", "medium", "high", "on")
ID_PREFIX: Final = "resp_"


@dataclass(slots=True, frozen=True)
class Asked:
    """What a reply has to know of its request. `items` is its input as JSON."""

    model: str
    messages: tuple[Message, ...]
    items: str
    previous: str | None
    store: bool


def parse_chat(body: dict[str, Any]) -> Call:
    fields = strict(body, KEYS)
    model = required_name(fields, "model")
    messages = (*_parse_system(fields), Message("user", _parse_input(fields.require("input"))))
    servers = parse_integrations(fields.array("integrations") or ())
    fields.number("temperature", 0, 1)  # all that this dialect's may be
    effort = fields.choice("reasoning", EFFORTS)
    previous = fields.name("previous_response_id")
    stream, store = fields.boolean("stream"), fields.boolean("store", default=True)
    prompt = Chat(messages, {} if effort is None else set_effort(effort))
    options = parse_options(fields, prompt, max_tokens=("max_output_tokens",))
    follows = None if previous is None else Follows(previous, one_system=True)
    turn = options.turn("chat", (replace(options.generate, progress=stream),), follows)
    load = ModelSettings(context_length=fields.integer("context_length", 1, CONTEXT_MAX))
    asked = Asked(model, messages, dumps(without_media(body["input"], "input", messages)), previous, store)
    return Call(replace(turn, load=load, effort=effort, servers=servers), stream, lambda origin: NativeChat(origin, asked))


def _parse_system(fields: Fields) -> tuple[Message, ...]:
    """An empty one says nothing, and leaves that of an earlier turn in its place."""
    prompt = fields.string("system_prompt")
    return (text_message("system", prompt),) if prompt else ()


def _parse_input(given: object) -> tuple[Content, ...]:
    if isinstance(given, str):
        return (TextPart(given),) if given else ()
    if not isinstance(given, list):
        raise InvalidType("input", "a string or an array")
    if not given:
        raise InvalidRequest("'input' must not be empty", "input")
    return tuple(_parse_item(item, f"input[{i}]") for i, item in enumerate(given))


def _parse_item(value: object, where: str) -> Content:
    kind = Fields(as_object(value, where), where).require_string("type")
    if kind not in INPUT_KEYS:
        listing = ", ".join(f"'{word}'" for word in INPUT_KEYS)
        raise InvalidRequest(f"'{where}.type' must be one of {listing}", f"{where}.type")
    item = strict(as_object(value, where), INPUT_KEYS[kind], where)
    if kind == "image":
        return parse_url(item.require("data_url"), item.where("data_url"), "image")
    return TextPart(item.require_string("content"))


# ---- answers ---------------------------------------------------------------------------------------------------------


class NativeChat(Reply):
    """A delta costs a join of three strings, and what `Transcript` takes."""

    def __init__(self, origin: Origin, asked: Asked):
        self._origin, self._asked = origin, asked
        self._id = ID_PREFIX + origin.digits
        self._instance: str | None = None
        self._tools: dict[str, ServerTool] = {}
        self._heard = Transcript()
        self._error: LmError | None = None
        self._n_prompt = 0  # tokens, as far as they are known before the end
        self._has_begun = False  # chat.start has been said
        self._reads = False  # the prompt is being processed, and that has been said
        self._has_read = False

    def begin(self) -> Iterable[Frame]:
        """As long as nobody knows who will answer there is no word for it."""
        return () if self._instance is None else self._begin()

    def stream(self, index: int, event: Event) -> Iterable[Frame]:
        self._heard.hear(event)
        if type(event) is TextDelta:
            return (("message.delta", f'{{"type":"message.delta","content":{quote(event.text)}}}'),)
        if type(event) is ReasoningDelta:
            return (("reasoning.delta", f'{{"type":"reasoning.delta","content":{quote(event.text)}}}'),)
        return self._tell(event)

    def end(self) -> Iterable[Frame]:
        return (spell("chat.end", result=self._result()),)

    def failed(self, exc: LmError) -> Iterable[Frame]:
        self._error = exc
        yield from self._begin()
        yield spell("error", error=error_object(exc))
        yield spell("chat.end", result=self._result())

    def whole(self, runs: Sequence[Sequence[Event]]) -> str:
        for event in runs[0]:
            self._heard.hear(event)
        return dumps(self._result())

    def exchange(self) -> Exchange | None:
        if not self._asked.store:
            return None
        answer = self._heard.messages(lambda number: call_id(self._origin.suffix, 0, number))
        return Exchange(
            id=self._id,
            kind="chat",
            scope="",
            model=self._model(),
            created=self._origin.created,
            status=self._status(),
            previous=self._asked.previous,
            asked=self._asked.messages,
            answer=answer,
            body="" if self._heard.finished is None else dumps(self._result()),
            items=self._asked.items,
        )

    def _status(self) -> Status:
        if self._error is not None:
            return "failed"
        if self._heard.finished is None:
            return "in_progress"
        return "incomplete" if FINISH_REASON[self._heard.finished.reason] == "length" else "completed"

    def _model(self) -> str:
        """The instance's id; the name that was asked for until that is known."""
        if self._heard.leased is not None:
            return self._heard.leased.instance.id
        return self._instance or self._asked.model

    # ---- events

    def _begin(self) -> Iterator[Frame]:
        if not self._has_begun:
            self._has_begun = True
            yield spell("chat.start", model_instance_id=self._model())

    def _tell(self, event: Event) -> Iterator[Frame]:
        """Of what is no delta."""
        match event:
            case Started(model=instance, loads=loads):
                self._instance = instance
                if loads:
                    yield from self._begin()
                    yield spell("model_load.start", model_instance_id=instance)
            case LoadProgress(fraction=fraction):
                yield spell("model_load.progress", model_instance_id=self._model(), progress=round(fraction, 4))
            case Leased(instance=served, load_s=load_s):
                if load_s is not None:
                    yield spell("model_load.end", model_instance_id=served.id, load_time_seconds=round(load_s, 3))
            case PromptProgress(done=done, total=total):
                self._n_prompt = total
                yield from self._begin()
                yield from self._read(done, total)
            case TextStart() | ReasoningStart():
                yield from self._begin()
                yield from self._end_prompt()
                yield spell("message.start" if isinstance(event, TextStart) else "reasoning.start")
            case ToolsListed(tools=tools):
                self._tools.update((tool.called, tool) for tool in tools)
            case ToolCallStart(name=name):
                yield from self._begin()
                yield from self._end_prompt()
                if (tool := self._tools.get(name)) is not None:
                    yield spell("tool_call.start", **spell_tool(tool))
            case ToolCallEnd(index=index):
                piece = self._heard.calls[index]
                tool, arguments = self._tools.get(piece.name), read_object(piece.text)
                if tool is not None and arguments is not None:
                    yield spell("tool_call.arguments", **spell_tool(tool), arguments=arguments)
            case RoundOver():
                self._reads = self._has_read = False
            case ToolResult(index=index, tool=tool, output=output, error=error):
                arguments = read_object(self._heard.calls[index].text)
                if error:
                    metadata = {"type": "tool_error", "tool_name": tool.name, "arguments": arguments}
                    yield spell("tool_call.failure", reason=error, metadata={**metadata, **provider_of(tool)})
                else:
                    yield spell("tool_call.success", **spell_tool(tool), arguments=arguments, output=output)
            case ToolRefused():
                yield spell("tool_call.failure", **spell_refusal(self._heard.calls[event.index], event))
            case TextEnd():
                yield spell("message.end")
            case ReasoningEnd():
                yield spell("reasoning.end")
            case Finished():
                yield from self._begin()
                yield from self._end_prompt()
                if not self._heard.pieces:  # an empty answer is a message too
                    yield spell("message.start")
                    yield spell("message.end")

    def _read(self, done: int, total: int) -> Iterator[Frame]:
        if self._has_read:
            return
        if not self._reads:
            self._reads = True
            yield spell("prompt_processing.start")
        yield spell("prompt_processing.progress", progress=round(done / total, 4) if total else 1.0)
        if done >= total:
            yield from self._end_prompt()

    def _end_prompt(self) -> Iterator[Frame]:
        if self._reads and not self._has_read:
            yield spell("prompt_processing.end")
        self._has_read = True

    # ---- the whole

    def _result(self) -> dict[str, Any]:
        result: dict[str, Any] = {"model_instance_id": self._model(), "output": self._output(), "stats": self._stats()}
        if self._asked.store and self._origin.keeps and self._error is None:
            result["response_id"] = self._id
        return result

    def _output(self) -> list[dict[str, Any]]:
        """A call that nobody answers is none of the answer's: the model wrote it for tools that there are not."""
        pieces = [piece for piece in self._heard.pieces if piece.kind != "tool_call" or piece.result is not None]
        if not pieces and self._error is None:
            return [{"type": "message", "content": ""}]
        return [spell_piece(piece) for piece in pieces]

    def _stats(self) -> dict[str, Any]:
        """Of an answer that failed only what was known by then."""
        finished = self._heard.finished
        stats = None if finished is None else finished.stats
        spelled: dict[str, Any] = {
            "input_tokens": self._n_prompt if stats is None else stats.prompt_tokens,
            "total_output_tokens": 0 if stats is None else stats.generated_tokens,
            "reasoning_output_tokens": 0 if stats is None else stats.reasoning_tokens,
            "tokens_per_second": 0.0 if stats is None else round(stats.tokens_per_second, 3),
            "time_to_first_token_seconds": 0.0 if stats is None else round(stats.first_token_ms / 1000, 6),
        }
        if self._heard.load_s is not None:
            spelled["model_load_time_seconds"] = round(self._heard.load_s, 3)
        return spelled


def spell(name: str, **members: Any) -> Frame:
    return name, dumps({"type": name, **members})


def spell_piece(piece: Piece) -> dict[str, Any]:
    match piece.result:
        case ToolResult(tool=tool, output=output):
            arguments = read_object(piece.text)
            return {"type": "tool_call", "tool": tool.name, "arguments": arguments, "output": output, **provider_of(tool)}
        case ToolRefused():
            return {"type": "invalid_tool_call", **spell_refusal(piece, piece.result)}
    return {"type": "reasoning" if piece.kind == "reasoning" else "message", "content": piece.text}


def spell_refusal(piece: Piece, refused: ToolRefused) -> dict[str, Any]:
    if refused.tool is None:
        return {"reason": refused.reason, "metadata": {"type": "invalid_name", "tool_name": piece.name}}
    arguments = read_object(piece.text)
    told = {"arguments": piece.text if arguments is None else arguments, **provider_of(refused.tool)}
    return {
        "reason": refused.reason,
        "metadata": {"type": "invalid_arguments", "tool_name": refused.tool.name, **told},
    }


def spell_tool(tool: ServerTool) -> dict[str, Any]:
    return {"tool": tool.name, **provider_of(tool)}


def provider_of(tool: ServerTool) -> dict[str, Any]:
    return {"provider_info": provider_info(tool.server)}


def read_object(text: str) -> dict[str, Any] | None:
    """Arguments that are some."""
    try:
        found = load_whole(text) if text else {}
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
