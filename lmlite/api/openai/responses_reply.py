"""The answer to a Responses request: its events in a stream, and the response object that they add up to.

A whole answer is what its stream would have ended with. Items begin with the first thing that they say, and end where the
next one begins, or with the answer: only then is it known whether they came to their end.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field
from typing import Any, Final

from ...errors import ContextOverflow, ConversationTooLong, InternalError, LmError, QueueFull
from ...events import (
    ApprovalAsked,
    CallResumed,
    Event,
    Finished,
    Leased,
    PromptProgress,
    ReasoningDelta,
    ReasoningStart,
    RoundOver,
    Started,
    TextDelta,
    TextStart,
    ToolCallArguments,
    ToolCallStart,
    ToolRefused,
    ToolResult,
    ToolsListed,
)
from ...exchange import Exchange, Status
from ...messages import Message
from ...records import dataclass
from ...tool_servers import ServerTool
from ..answer import FINISH_REASON, call_id, spell_logprobs
from ..dialect import Frame, Origin, Reply
from ..spell import dumps
from ..transcript import Piece, Transcript
from .error import response_error_object
from .responses_events import PREFIXES, Item, ItemStatus, Kind, Numbers
from .responses_items import encrypt, join_input
from .responses_tools import InputText, Told

PLACE_DIGITS: Final = 18
"""Of a response's id: they stand in those of its items, and lead from there to it."""
INPUT_PLACES: Final = 0x8000
"""From here on the numbers of items that were asked, and not answered."""

TERMINAL: Final = ("completed", "incomplete")


@dataclass(slots=True, frozen=True)
class Asked:
    """What of a request its answer has to know. `echo` are the members of the response that repeat it, as JSON text;
    `messages` are without the instructions, which are said for one answer only."""

    model: str
    echo: str
    messages: tuple[Message, ...] = ()
    input: tuple[str, ...] = ()  # its items, as `keep_input` has them
    previous: str | None = None
    told: Mapping[str, Told] = field(default_factory=dict)
    store: bool = True
    background: bool = False
    summary: bool = False
    encrypted: bool = False
    logprobs: bool = False


def item_id(kind: Kind, digits: str, place: int) -> str:
    return f"{PREFIXES[kind]}{digits[:PLACE_DIGITS]}{place:04x}"


def response_beginning(item_id: str) -> str:
    """What the id of the response begins with that the item belongs to; "" if that is no id of ours."""
    digits = item_id.partition("_")[2][:PLACE_DIGITS]
    return f"resp_{digits}" if len(digits) == PLACE_DIGITS and digits.isalnum() else ""


class ResponseReply(Reply):
    def __init__(self, origin: Origin, asked: Asked):
        self.id = f"resp_{origin.digits}"
        self._origin, self._asked = origin, asked
        self._model = asked.model
        self._transcript = Transcript()
        self._numbers = Numbers()
        self._begun = False  # the stream has said its first
        self._runs = False  # the engine has
        self._cancelled = False
        self._error: LmError | None = None
        self._items: list[str] = []  # those that are done, as JSON
        self._lengths: list[list[int]] = []  # of the pieces that the stream told of each
        self._open: Item | None = None
        self._piece = Piece("text")  # what the open item says
        self._is_plain = False  # it says nothing but texts, which are told as they are
        self._hears: type[Event] | None = None  # what goes on with the open item
        self._input = InputText()  # of the open call of a custom tool
        self._kept_input = join_input(asked.input, self._input_id) if asked.store else ""
        self._listed: list[ToolsListed] = []  # still to be told
        self._server_tools: dict[str, ServerTool] = {}
        self._waiting: dict[int, tuple[Item, Piece]] = {}  # calls that servers have
        self._held: dict[int, Piece] = {}  # calls of which it is not known yet whether they have to wait for approval
        self._approval_ids: dict[int, str] = {}  # the ids under which others wait for it

    # ---- as a stream

    def begin(self) -> Iterable[Frame]:
        if self._begun:
            return ()
        self._begun = True
        status: Status = "queued" if self._asked.background else "in_progress"
        members = f',"response":{self._spell(status, ())}'
        return [self._numbers.event(f"response.{kind}", members) for kind in ("created", status)]

    def stream(self, index: int, event: Event) -> Iterable[Frame]:
        if type(event) is self._hears:
            if self._is_plain:  # as nearly all are
                text = event.text  # type: ignore[union-attr]
                self._piece.texts.append(text)
                self._lengths[-1].append(len(text))
                return (self._open.delta(self._numbers, text),)  # type: ignore[union-attr]
            self._transcript.hear(event)
            return self._go_on(event)  # type: ignore[arg-type]
        self._transcript.hear(event)
        if isinstance(event, TextDelta):
            return self._enter("message", event) if event.text or event.logprobs else ()
        if isinstance(event, ReasoningDelta):
            return self._enter("summary" if self._asked.summary else "reasoning", event) if event.text else ()
        if isinstance(event, TextStart | ReasoningStart):
            self._hears = None
        elif isinstance(event, ToolCallStart):
            return [*self._close("completed"), *self._open_call(event)]
        elif isinstance(event, PromptProgress):
            return self._start()
        elif isinstance(event, ToolsListed):
            self._listed.append(event)
            self._server_tools.update((tool.called, tool) for tool in event.tools)
        elif isinstance(event, RoundOver):
            return self._close("completed")
        elif isinstance(event, ToolResult | ToolRefused):
            return self._settle(event)
        elif isinstance(event, ApprovalAsked):
            return self._ask_approval(event)
        elif isinstance(event, CallResumed):
            return self._resume(event)
        elif isinstance(event, Finished):
            return self._finish(event)
        elif isinstance(event, Started):
            self._model = event.model
        elif isinstance(event, Leased):
            self._model = event.instance.id
        return ()

    def _start(self) -> list[Frame]:
        """The engine is at it."""
        frames = [*self.begin()]
        if not self._runs:
            self._runs = True
            if self._asked.background:
                begun = self._spell("in_progress", ())
                frames.append(self._numbers.event("response.in_progress", f',"response":{begun}'))
        listed, self._listed = self._listed, []
        for one in listed:
            frames += self._list(one)
        return frames

    def _list(self, listed: ToolsListed) -> list[Frame]:
        tools = [
            {"name": tool.name, "description": tool.description, "input_schema": tool.schema, "annotations": None}
            for tool in listed.tools
        ]
        id = self._item_id("mcp_list_tools")
        item = Item("mcp_list_tools", id, len(self._items), label=listed.server.label, tools=tools)
        spelled = dumps(item.spell("", "completed"))
        self._items.append(spelled)
        self._lengths.append([])
        return [*item.opening(self._numbers), *item.closing(self._numbers, "", spelled)]

    def _tell(self, status: Status) -> Frame:
        return self._numbers.event(f"response.{status}", f',"response":{self.body()}')

    def _enter(self, kind: Kind, event: TextDelta | ReasoningDelta) -> list[Frame]:
        """Something else begins."""
        frames = [*self._start(), *self._close("completed")]
        self._hears = type(event)
        self._piece = self._transcript.pieces[-1] if self._transcript.pieces else Piece("text")
        self._is_plain = not (isinstance(event, TextDelta) and self._asked.logprobs)
        self._open = Item(kind, self._item_id(kind), len(self._items))
        self._lengths.append([])
        return [*frames, *self._open.opening(self._numbers), *self._go_on(event)]

    def _open_call(self, event: ToolCallStart) -> list[Frame]:
        frames = self._start()
        told = self._asked.told.get(event.name) or Told(event.name)
        kind: Kind = "custom_tool_call" if told.custom else "function_call"
        id = call_id(self._origin.suffix, 0, event.index)
        if self._server_tools and event.name not in self._asked.told:
            kind = "mcp_call"
            tool = self._tool(event.name)
            if tool.called == event.name and tool.needs_approval:
                self._held[event.index] = self._transcript.pieces[-1]
                self._hears = None
                return frames
            name = tool.name if tool.called == event.name else event.name
            self._open = Item(kind, self._item_id(kind), len(self._items), name=name, label=tool.server.label)
            self._waiting[event.index] = self._open, self._transcript.pieces[-1]
        else:
            self._open = Item(kind, self._item_id(kind), len(self._items), id, told.name, told.namespace)
        self._hears = ToolCallArguments
        self._is_plain = not told.custom
        self._piece = self._transcript.pieces[-1]
        self._input = InputText()
        self._lengths.append([])
        return [*frames, *self._open.opening(self._numbers)]

    def _tool(self, called: str) -> ServerTool:
        """Some server's, where none has it."""
        return self._server_tools.get(called) or next(iter(self._server_tools.values()))

    def _item_id(self, kind: Kind) -> str:
        return item_id(kind, self._origin.digits, len(self._items))

    def _go_on(self, event: TextDelta | ReasoningDelta | ToolCallArguments) -> tuple[Frame, ...]:
        item = self._open
        assert item is not None
        text = event.text
        if type(event) is TextDelta and event.logprobs:
            self._lengths[-1].append(len(text))
            return (item.delta(self._numbers, text, dumps(spell_logprobs(event.logprobs))),)
        if item.kind == "custom_tool_call":
            text = self._input.hear(text)
        if not text:
            return ()
        self._lengths[-1].append(len(text))
        return (item.delta(self._numbers, text),)

    def _close(self, status: ItemStatus) -> list[Frame]:
        """The item that is open, if one is."""
        item = self._open
        if item is None:
            return []
        frames: list[Frame] = []
        if item.kind == "custom_tool_call" and (rest := self._input.rest()):
            self._lengths[-1].append(len(rest))
            frames.append(item.delta(self._numbers, rest))
        text, logprobs = self._said(item), spell_logprobs(self._piece.logprobs)
        if item.kind == "mcp_call" and status == "completed":  # its end is what the server makes of it
            self._items.append(self._spell_item(item, text, "calling", ()))
            self._open = self._hears = None
            return [item.told(self._numbers, text)]
        spelled = self._spell_item(item, text, status, logprobs)
        self._items.append(spelled)
        self._open = self._hears = None
        return [*frames, *item.closing(self._numbers, text, spelled, logprobs)]

    def _ask_approval(self, event: ApprovalAsked) -> list[Frame]:
        """The call is all that there is of it."""
        piece, tool = self._held.pop(event.index), event.tool
        id = self._approval_ids[event.index] = self._item_id("mcp_approval_request")
        item = Item("mcp_approval_request", id, len(self._items), name=tool.name, label=tool.server.label)
        item.arguments = piece.text
        spelled = dumps(item.spell("", "completed"))
        self._items.append(spelled)
        self._lengths.append([])
        return [*item.opening(self._numbers), *item.closing(self._numbers, "", spelled)]

    def _resume(self, event: CallResumed) -> list[Frame]:
        frames = self._start()
        return [*frames, *self._tell_call(event.index, self._transcript.pieces[-1], event.tool, event.id)]

    def _tell_call(self, index: int, piece: Piece, tool: ServerTool | None, approval: str | None = None) -> list[Frame]:
        """Of a server's tool, in one piece."""
        name, label = (piece.name, "") if tool is None else (tool.name, tool.server.label)
        item = Item("mcp_call", self._item_id("mcp_call"), len(self._items), name=name, label=label, approval=approval)
        self._waiting[index] = item, piece
        frames = [*item.opening(self._numbers)]
        if piece.text:
            frames.append(item.delta(self._numbers, piece.text))
        self._lengths.append([len(piece.text)])
        self._items.append(self._spell_item(item, piece.text, "calling", ()))
        return [*frames, item.told(self._numbers, piece.text)]

    def _settle(self, event: ToolResult | ToolRefused) -> list[Frame]:
        frames = []
        if event.index in self._held:
            frames = self._tell_call(event.index, self._held.pop(event.index), event.tool)
        if event.index not in self._waiting:  # it was denied, which its client knows
            return self._start()
        item, piece = self._waiting.pop(event.index)
        if isinstance(event, ToolRefused):
            item.error = event.reason
        elif event.failed:
            item.error = event.error or event.text
        else:
            item.output = event.text
        spelled = self._spell_item(item, piece.text, "completed" if item.error is None else "failed", ())
        self._items[item.index] = spelled
        return [*frames, *item.settling(self._numbers, spelled)]

    def _said(self, item: Item) -> str:
        """By the open item, up to now."""
        return self._input.text if item.kind == "custom_tool_call" else self._piece.text

    def _spell_item(self, item: Item, text: str, status: ItemStatus, logprobs: Sequence[Any]) -> str:
        secret = self._asked.encrypted and item.kind in ("reasoning", "summary")
        return dumps(item.spell(text, status, logprobs, encrypt(text) if secret else None))

    def _finish(self, event: Finished) -> list[Frame]:
        frames = self._start()
        if self._open is None and not self._items:  # an answer that says nothing has a text, too
            frames += self._enter("message", TextDelta(""))
        frames += self._close("incomplete" if is_cut(event) else "completed")
        for number, piece in self._held.items():
            frames += self._tell_call(number, piece, self._tool(piece.name))
        self._held = {}
        for number in list(self._waiting):  # what the model called and nobody was given
            item, piece = self._waiting.pop(number)
            item.error = "the call was not made"
            spelled = self._spell_item(item, piece.text, "incomplete", ())
            self._items[item.index] = spelled
            frames += item.settling(self._numbers, spelled)
        return frames

    def end(self) -> Iterable[Frame]:
        if self._transcript.finished is None:
            raise InternalError
        return (self._tell(self.status),)

    def failed(self, exc: LmError) -> Iterable[Frame]:
        """Clients look for one of the two, or for the other; of the second in one of two shapes."""
        self._error = exc
        frames = [*self.begin(), self._tell("failed")]
        error = response_error_object(exc)
        told = {"code": error["code"], "message": error["message"], "param": error.get("param")}
        nested = dumps({"type": error["type"], **told})
        frames.append(self._numbers.event("error", f',{dumps(told)[1:-1]},"error":{nested}'))
        return frames

    def cancelled(self) -> Iterable[Frame]:
        """Its client wanted no more of it."""
        self._cancelled = True
        return (self._tell("cancelled"),)

    # ---- whole

    def whole(self, runs: Sequence[Sequence[Event]]) -> str:
        (events,) = runs
        for event in events:
            self.stream(0, event)
        if self._transcript.finished is None:
            raise InternalError
        return self.body()

    @property
    def status(self) -> Status:
        if self._cancelled:
            return "cancelled"
        if self._error is not None:
            return "failed"
        if (finished := self._transcript.finished) is not None:
            return "incomplete" if is_cut(finished) else "completed"
        return "queued" if self._asked.background and not self._runs else "in_progress"

    @property
    def is_open(self) -> bool:
        """Its turn still runs."""
        return self.status in ("queued", "in_progress")

    def body(self) -> str:
        """The response as it is now."""
        items = self._items
        if self._open is not None:
            logprobs = spell_logprobs(self._piece.logprobs)
            items = [*items, self._spell_item(self._open, self._said(self._open), "incomplete", logprobs)]
        return self._spell(self.status, items, self._transcript.finished)

    def _spell(self, status: Status, items: Iterable[str], finished: Finished | None = None) -> str:
        head = {
            "id": self.id,
            "object": "response",
            "created_at": self._origin.created,
            "completed_at": self._completed_at() if status in TERMINAL else None,
            "status": status,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "model": self._model,
        }
        tail = {
            "error": None if self._error is None else spell_error(self._error),
            "usage": None if finished is None else spell_usage(finished),
        }
        return f'{dumps(head)[:-1]},"output":[{",".join(items)}],{dumps(tail)[1:-1]},{self._asked.echo}}}'

    def _completed_at(self) -> int:
        """By what the engine says that it took."""
        finished, leased = self._transcript.finished, self._transcript.leased
        if finished is None:
            return self._origin.created
        load_s = leased.load_s or 0.0 if leased is not None else 0.0
        ms = finished.stats.first_token_ms + finished.stats.generation_ms
        return self._origin.created + round(load_s + ms / 1000)

    def exchange(self) -> Exchange | None:
        return self.kept() if self._asked.store else None

    def kept(self) -> Exchange:
        asked = self._asked
        lengths = dumps(self._lengths) if self._begun else "null"
        return Exchange(
            id=self.id,
            kind="response",
            scope="",  # the dialect does not know who asks
            model=self._model,
            created=self._origin.created,
            status=self.status,
            previous=asked.previous,
            asked=asked.messages,
            answer=self._transcript.messages(self._call_id),
            body=f'{{"lengths":{lengths},"response":{self.body()}}}',
            items=self._kept_input,
        )

    def _call_id(self, number: int) -> str:
        return self._approval_ids.get(number) or call_id(self._origin.suffix, 0, number)

    def _input_id(self, place: int) -> str:
        return item_id("message", self._origin.digits, INPUT_PLACES + place)


def is_cut(finished: Finished) -> bool:
    return FINISH_REASON[finished.reason] == "length"


def spell_usage(finished: Finished) -> dict[str, Any]:
    stats = finished.stats
    return {
        "input_tokens": stats.prompt_tokens,
        "input_tokens_details": {"cached_tokens": stats.cached_tokens},
        "output_tokens": stats.generated_tokens,
        "output_tokens_details": {"reasoning_tokens": stats.reasoning_tokens},
        "total_tokens": stats.prompt_tokens + stats.generated_tokens,
    }


def spell_error(error: LmError) -> dict[str, Any]:
    """Of a response that failed. Clients know few codes: by these two they shorten what they send, or wait."""
    known = (ContextOverflow, ConversationTooLong, QueueFull)
    code = error.code if isinstance(error, known) or error.status < 500 else "server_error"
    return {"code": code, "message": response_error_object(error)["message"]}
