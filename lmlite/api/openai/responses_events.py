"""The items of a Responses answer, each as the object that it is and as the events that a stream tells it in.

Every event has its `sequence_number`; what opens and closes an item is spelled here alone, for streams that run and for those
that are told again. The one event that comes per token costs a join: see `Item.delta`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from json.encoder import encode_basestring as quote
from typing import Any, Final, Literal

from ...records import dataclass
from ..dialect import Frame
from ..spell import dumps

Kind = Literal[
    "reasoning",
    "summary",
    "message",
    "function_call",
    "custom_tool_call",
    "mcp_call",
    "mcp_list_tools",
    "mcp_approval_request",
]
"""A "summary" is reasoning that is told as one."""

ItemStatus = Literal["in_progress", "completed", "incomplete", "calling", "failed"]
"""The last two only of calls that a server is given."""

PREFIXES: Final[Mapping[Kind, str]] = {
    "reasoning": "rs_",
    "summary": "rs_",
    "message": "msg_",
    "function_call": "fc_",
    "custom_tool_call": "ctc_",
    "mcp_call": "mcp_",
    "mcp_list_tools": "mcpl_",
    "mcp_approval_request": "mcpr_",
}

PART: Final[Mapping[Kind, tuple[str, str, str]]] = {
    "reasoning": ("content_part", "content_index", "reasoning_text"),
    "summary": ("reasoning_summary_part", "summary_index", "summary_text"),
    "message": ("content_part", "content_index", "output_text"),
}
"""Of items that have one: what its events are called, where its number stands, its type."""

TEXT: Final[Mapping[Kind, tuple[str, str]]] = {
    "reasoning": ("reasoning_text", "text"),
    "summary": ("reasoning_summary_text", "text"),
    "message": ("output_text", "text"),
    "function_call": ("function_call_arguments", "arguments"),
    "custom_tool_call": ("custom_tool_call_input", "input"),
    "mcp_call": ("mcp_call_arguments", "arguments"),
    "mcp_list_tools": ("mcp_list_tools", "tools"),
    "mcp_approval_request": ("mcp_approval_request", "arguments"),
}
"""What the events of an item's text are called, and where the last of them has all of it."""


class Numbers:
    """Numbers the events of one response."""

    __slots__ = ("n",)

    def __init__(self) -> None:
        self.n = 0

    def event(self, kind: str, members: str) -> Frame:
        """`members` are JSON members, each behind a comma."""
        n = self.n
        self.n = n + 1
        return kind, f'{{"type":"{kind}","sequence_number":{n}{members}}}'


@dataclass(slots=True)
class Item:
    """One item of an answer, apart from what it says. `index` is its place among the items; the name is the tool's."""

    kind: Kind
    id: str
    index: int
    call_id: str = ""
    name: str = ""
    namespace: str = ""
    label: str = ""  # of the server, if one has the tool
    tools: Sequence[Any] = ()  # that a list has
    output: str | None = None  # of a server's tool
    error: str | None = None
    approval: str | None = None  # the request for approval that was answered before
    arguments: str = ""  # of a call that waits for approval, which is told in one piece
    delta_kind: str = ""
    _delta_head: str = ""
    _delta_place: str = ""
    _delta_tail: str = ""
    _at: str = ""

    def __post_init__(self) -> None:
        place = f',"item_id":{quote(self.id)},"output_index":{self.index}'
        self._at = f'{place},"{PART[self.kind][1]}":0' if self.kind in PART else place
        self.delta_kind = f"response.{TEXT[self.kind][0]}.delta"
        self._delta_head = f'{{"type":"{self.delta_kind}","sequence_number":'
        self._delta_place = self._at + ',"delta":'
        self._delta_tail = ',"logprobs":[]}' if self.kind == "message" else "}"

    def spell(
        self, text: str, status: ItemStatus, logprobs: Sequence[Any] = (), encrypted: str | None = None
    ) -> dict[str, Any]:
        head = {"id": self.id, "type": self.kind}
        parts = [self._part(text, logprobs)] if self.kind in PART and status != "in_progress" else []
        if self.kind == "message":
            return {**head, "role": "assistant", "status": status, "content": parts}
        if self.kind in ("reasoning", "summary"):
            said = {"summary": parts, "content": []} if self.kind == "summary" else {"summary": [], "content": parts}
            secret = {} if encrypted is None else {"encrypted_content": encrypted}
            return {**head, "type": "reasoning", **said, **secret, "status": status}
        if self.kind == "mcp_list_tools":
            tools = [] if status == "in_progress" else list(self.tools)
            return {**head, "server_label": self.label, "tools": tools, "error": None}
        if self.kind == "mcp_call":
            is_over = status != "in_progress"
            outcome = {"output": self.output if is_over else None, "error": self.error if is_over else None}
            called = {"server_label": self.label, "name": self.name, "arguments": text}
            return {**head, **called, **outcome, "approval_request_id": self.approval, "status": status}
        if self.kind == "mcp_approval_request":
            return {**head, "server_label": self.label, "name": self.name, "arguments": self.arguments}
        space = {"namespace": self.namespace} if self.namespace else {}
        call = {"call_id": self.call_id, "name": self.name, **space, TEXT[self.kind][1]: text}
        return {**head, **call, "status": status}

    def _part(self, text: str, logprobs: Sequence[Any]) -> dict[str, Any]:
        more = {"annotations": [], "logprobs": list(logprobs)} if self.kind == "message" else {}
        return {"type": PART[self.kind][2], "text": text, **more}

    # ---- as events

    def opening(self, numbers: Numbers) -> Iterator[Frame]:
        item = dumps(self.spell("", "in_progress"))
        yield numbers.event("response.output_item.added", f',"output_index":{self.index},"item":{item}')
        if self.kind in PART:
            part = dumps(self._part("", ()))
            yield numbers.event(f"response.{PART[self.kind][0]}.added", f'{self._at},"part":{part}')
        if self.kind in ("mcp_call", "mcp_list_tools"):
            yield numbers.event(f"response.{self.kind}.in_progress", self._at)

    def delta(self, numbers: Numbers, text: str, logprobs: str | None = None) -> Frame:
        n = numbers.n
        numbers.n = n + 1
        tail = self._delta_tail if logprobs is None else f',"logprobs":{logprobs}}}'
        return self.delta_kind, f"{self._delta_head}{n}{self._delta_place}{quote(text)}{tail}"

    def closing(self, numbers: Numbers, text: str, spelled: str, logprobs: Sequence[Any] = ()) -> Iterator[Frame]:
        """`spelled` is the item as it is now, as JSON."""
        if self.kind == "mcp_call":
            yield self.told(numbers, text)
        if self.kind in ("mcp_call", "mcp_list_tools"):
            yield from self.settling(numbers, spelled)
            return
        if self.kind == "mcp_approval_request":
            yield numbers.event("response.output_item.done", f',"output_index":{self.index},"item":{spelled}')
            return
        what, member = TEXT[self.kind]
        more = f',"logprobs":{dumps(list(logprobs))}' if self.kind == "message" else ""
        more += f',"name":{quote(self.name)}' if self.kind == "function_call" else ""
        yield numbers.event(f"response.{what}.done", f"{self._at},{quote(member)}:{quote(text)}{more}")
        if self.kind in PART:
            part = dumps(self._part(text, logprobs))
            yield numbers.event(f"response.{PART[self.kind][0]}.done", f'{self._at},"part":{part}')
        yield numbers.event("response.output_item.done", f',"output_index":{self.index},"item":{spelled}')

    def told(self, numbers: Numbers, arguments: str) -> Frame:
        """Of a server's tool: all that it is given."""
        return numbers.event("response.mcp_call_arguments.done", f'{self._at},"arguments":{quote(arguments)}')

    def settling(self, numbers: Numbers, spelled: str) -> Iterator[Frame]:
        """What a server made of it."""
        word = "completed" if self.error is None else "failed"
        yield numbers.event(f"response.{self.kind}.{word}", self._at)
        yield numbers.event("response.output_item.done", f',"output_index":{self.index},"item":{spelled}')
