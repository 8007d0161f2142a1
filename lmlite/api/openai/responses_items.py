"""The input items of a Responses request as messages, and as they are kept for `input_items`.

Agents send back all that they ever got, from whichever server: calls that were cut, results of calls that nobody knows, items
of tools that ran elsewhere. What says nothing to a model here is passed over; of what is not known at all the type is told.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from ...errors import InvalidRequest, InvalidType, MissingField, UnknownItem, UnsupportedField
from ...messages import Content, Message, Part, ReasoningPart, Role, TextPart, ToolCallPart, ToolResultPart, text_message
from ...turn import Approval
from ..read.fields import Fields, as_name, as_object, as_string, clip
from ..read.media import parse_image_url
from ..read.messages import FILES, MEDIA, TEXTS, parse_content
from ..spell import dumps
from .responses_tools import join, spell_input

ROLES: Final[Mapping[str, Role]] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
}

PASSED_OVER: Final = frozenset(
    (
        "code_interpreter_call",
        "file_search_call",
        "image_generation_call",
        "mcp_list_tools",
        "web_search_call",
    )
)
"""What was run elsewhere and left nothing for a model."""

SCREENSHOTS: Final = frozenset(("computer_screenshot", "input_image"))
"""What a client calls a picture of the screen that it drives."""
UNSPOKEN: Final = frozenset(("type", "id", "call_id", "status", "pending_safety_checks"))
"""Fields of a call that are none of its arguments."""

ENCRYPTED: Final = "lmlite1."
"""What our `encrypted_content` begins with; nothing is secret in it, but its client cannot tell."""

REFERENCE: Final = "item_reference"

REASON_MAX: Final = 2000
"""Characters of why somebody decided so that the model is told."""


def parse_input(given: object, skipped: list[str], approvals: list[Approval] | None = None) -> tuple[Message, ...]:
    """A string or items. `skipped` gets the types of those that nobody knows, `approvals` what was decided about calls."""
    if isinstance(given, str):
        return (text_message("user", given) if given else Message("user", ()),)
    if not isinstance(given, list):
        raise InvalidType("input", "a string or an array of items")
    conversation = _Conversation()
    for i, value in enumerate(given):
        item = Fields(as_object(value, f"input[{i}]"), f"input[{i}]")
        kind = type_of(item.values)
        read = _READERS.get(kind)
        if read is not None:
            read(conversation, item)
        elif kind not in PASSED_OVER:
            skipped.append(clip(kind))
    if approvals is not None:
        approvals += conversation.decided()
    return conversation.close()


def type_of(item: Mapping[str, Any]) -> str:
    """An item without a type is a message, or the id of another one."""
    kind = item.get("type")
    if isinstance(kind, str) and kind:
        return kind
    return REFERENCE if item.get("role") is None and isinstance(item.get("id"), str) else "message"


def references(body: Mapping[str, Any]) -> tuple[str, ...]:
    """The ids of the items of earlier turns that the input only points at."""
    given = body.get("input")
    items = [item for item in given if isinstance(item, dict)] if isinstance(given, list) else []
    found = dict.fromkeys(item["id"] for item in items if type_of(item) == REFERENCE and isinstance(item.get("id"), str))
    return tuple(found)


def dereference(body: dict[str, Any], items: Mapping[str, Any]) -> dict[str, Any]:
    """`body` with the items themselves where it points at them."""
    if not items:
        return body
    given = [
        items.get(str(item.get("id")), item) if isinstance(item, dict) and type_of(item) == REFERENCE else item
        for item in body["input"]
    ]
    return {**body, "input": given}


def keep_input(given: Any) -> tuple[str, ...]:
    """The items as `input_items` tells them, as JSON; `join_input` gives ids to those that have none."""
    items = [{"role": "user", "content": given}] if isinstance(given, str) else list(given or ())
    return tuple(dumps(_keep(item)) for item in items)


def _keep(item: Mapping[str, Any]) -> dict[str, Any]:
    """An id stands first."""
    said = {name: value for name, value in item.items() if value is not None and name != "id"}
    kept = {**({"id": item["id"]} if isinstance(item.get("id"), str) else {}), **said, "type": type_of(item)}
    if kept["type"] == "message":
        kept.setdefault("status", "completed")
        if isinstance(kept.get("content"), str):
            kind = "output_text" if kept.get("role") == "assistant" else "input_text"
            more: dict[str, Any] = {"annotations": [], "logprobs": []} if kind == "output_text" else {}
            kept["content"] = [{"type": kind, "text": kept["content"], **more}]
    return kept


def join_input(items: Iterable[str], id: Callable[[int], str]) -> str:
    """`id` makes ids of places."""
    told = [
        item if item.startswith('{"id":') else f'{{"id":"{id(place)}",{item[1:]}' for place, item in enumerate(items)
    ]
    return f"[{','.join(told)}]"


# ---- items become messages -------------------------------------------------------------------------------------------


class _Conversation:
    """What the assistant did in one go is several items and one message: its thoughts, then its words, then its calls."""

    def __init__(self) -> None:
        self._messages: list[Message] = []
        self._parts: list[Part] = []
        self._step = 0  # how far the assistant's message has come
        self.called: dict[str, str] = {}
        self.labels: dict[str, str] = {}  # of the servers of calls that wait for approval
        self.approvals: list[Approval] = []

    def decided(self) -> list[Approval]:
        return [replace(approval, label=self.labels.get(approval.id, "")) for approval in self.approvals]

    def say(self, message: Message) -> None:
        self._flush()
        self._messages.append(message)

    def think(self, text: str) -> None:
        if text:
            self._go(0)
            self._parts.append(ReasoningPart(text))

    def answer(self, parts: Sequence[Part]) -> None:
        self._go(1)
        self._step = 2  # a further text is a message of its own
        self._parts += parts

    def call(self, call: ToolCallPart) -> None:
        self._go(3)
        self._parts.append(call)
        self.called[call.id] = call.name

    def result(self, call_id: str, content: tuple[Content, ...], name: str = "") -> None:
        self.say(Message("tool", (ToolResultPart(call_id, self.called.get(call_id) or name, content),)))

    def close(self) -> tuple[Message, ...]:
        self._flush()
        return tuple(self._messages)

    def _go(self, step: int) -> None:
        if step < self._step:
            self._flush()
        self._step = step

    def _flush(self) -> None:
        if self._parts or self._step == 2:
            self._messages.append(Message("assistant", tuple(self._parts)))
        self._parts, self._step = [], 0


def _read_message(conversation: _Conversation, item: Fields) -> None:
    role = ROLES.get(item.require_string("role"))
    if role is None:
        raise InvalidRequest(f"'{item.where('role')}' must be one of {', '.join(ROLES)}", item.where("role"))
    content = parse_content(item.get("content"), item.where("content"), media=role == "user")
    if role == "assistant":
        conversation.answer(content)
    else:
        conversation.say(Message(role, content))


def _read_reasoning(conversation: _Conversation, item: Fields) -> None:
    """The text itself, else ours that only looks secret, else a summary; what others encrypted says nothing."""
    text = _join_texts(item, "content") or decrypt(item.get("encrypted_content")) or _join_texts(item, "summary")
    conversation.think(text)


def _join_texts(item: Fields, name: str) -> str:
    texts = []
    for i, value in enumerate(item.array(name) or ()):
        where = f"{item.where(name)}[{i}]"
        text = as_object(value, where).get("text")
        texts.append("" if text is None else as_string(text, f"{where}.text"))
    return "\n\n".join(text for text in texts if text)


def encrypt(text: str) -> str:
    return ENCRYPTED + base64.urlsafe_b64encode(text.encode()).decode()


def decrypt(given: object) -> str:
    """ "" of what is not ours."""
    if not isinstance(given, str) or not given.startswith(ENCRYPTED):
        return ""
    try:
        return base64.b64decode(given[len(ENCRYPTED) :], b"-_", validate=True).decode()
    except (binascii.Error, ValueError):
        return ""


def _call_id(item: Fields) -> str:
    return item.name("call_id") or item.name("id") or ""


def _name(item: Fields) -> str:
    """Whatever the model wrote then: no tool may go by it any more."""
    name = as_name(item.require("name"), item.where("name"))
    if not name:
        raise InvalidRequest(f"'{item.where('name')}' must not be empty", item.where("name"))
    return join(item.name("namespace") or "", name)


def _arguments(item: Fields) -> str:
    given = item.get("arguments")
    return dumps(given) if isinstance(given, Mapping) else item.string("arguments") or ""


def _read_function_call(conversation: _Conversation, item: Fields) -> None:
    conversation.call(ToolCallPart(_call_id(item), _name(item), _arguments(item)))


def _read_custom_call(conversation: _Conversation, item: Fields) -> None:
    conversation.call(ToolCallPart(_call_id(item), _name(item), spell_input(item.string("input") or "")))


def _read_own_call(conversation: _Conversation, item: Fields) -> None:
    """Of a tool that its client has of its own and runs itself (a shell, patches, a screen): its name is in the type."""
    name = str(item.values["type"]).removesuffix("_call")
    said = {key: value for key, value in item.values.items() if key not in UNSPOKEN}
    conversation.call(ToolCallPart(_call_id(item), name, dumps(said)))


def _read_result(conversation: _Conversation, item: Fields) -> None:
    conversation.result(_call_id(item), _content(item.get("output"), item.where("output")))


def _read_screenshot(conversation: _Conversation, item: Fields) -> None:
    """One picture, not in a list as other results are; what is none is read as they are."""
    output = item.get("output")
    if not isinstance(output, Mapping) or output.get("type") not in SCREENSHOTS:
        return _read_result(conversation, item)
    part = Fields(output, item.where("output"))
    if part.get("image_url") is None and part.get("file_id") is not None:
        raise UnsupportedField(part.where("file_id"))
    conversation.result(_call_id(item), (parse_image_url(part),))


def _read_tool_search_result(conversation: _Conversation, item: Fields) -> None:
    conversation.result(_call_id(item), _content(item.get("tools"), item.where("tools")), "tool_search")


def _read_mcp_call(conversation: _Conversation, item: Fields) -> None:
    """A server ran it in the middle of its answer: both the call and what came of it."""
    id = item.name("approval_request_id") or ""
    if id not in conversation.called:  # else the call stands there already, as it was when approval was asked for
        id = _call_id(item)
        conversation.call(ToolCallPart(id, _name(item), _arguments(item)))
    outcome = item.get("output") if item.get("error") is None else item.get("error")
    conversation.result(id, _content(outcome, item.where("output")))


def _read_approval_request(conversation: _Conversation, item: Fields) -> None:
    id = item.name("id") or ""
    conversation.call(ToolCallPart(id, _name(item), _arguments(item)))
    conversation.labels[id] = item.name("server_label") or ""


def _read_approval_response(conversation: _Conversation, item: Fields) -> None:
    where = item.where("approval_request_id")
    id = as_name(item.require("approval_request_id"), where)
    if item.optional_boolean("approve") is None:
        raise MissingField(item.where("approve"))
    reason = (item.string("reason") or "")[:REASON_MAX]
    conversation.approvals.append(Approval(id, item.boolean("approve"), reason, param=where))


def _content(output: Any, where: str) -> tuple[Content, ...]:
    """Of a result: texts, pictures and sound, or else whatever JSON it is."""
    if isinstance(output, list) and all(isinstance(part, dict) and _is_part(part) for part in output):
        return parse_content(output, where, media=True)
    if output is None or isinstance(output, str):
        return parse_content(output, where)
    return (TextPart(dumps(output)),)


def _is_part(part: Mapping[str, Any]) -> bool:
    return part.get("type") in (*TEXTS, *MEDIA, *FILES)


def _refuse_reference(conversation: _Conversation, item: Fields) -> None:
    """Those that are known stand in its place already: see `dereference`."""
    raise UnknownItem(item.name("id") or "")


_READERS: Final[Mapping[str, Callable[[_Conversation, Fields], None]]] = {
    "message": _read_message,
    "reasoning": _read_reasoning,
    "function_call": _read_function_call,
    "function_call_output": _read_result,
    "custom_tool_call": _read_custom_call,
    "custom_tool_call_output": _read_result,
    "local_shell_call": _read_own_call,
    "local_shell_call_output": _read_result,
    "shell_call": _read_own_call,
    "shell_call_output": _read_result,
    "apply_patch_call": _read_own_call,
    "apply_patch_call_output": _read_result,
    "computer_call": _read_own_call,
    "computer_call_output": _read_screenshot,
    "tool_search_call": _read_own_call,
    "tool_search_output": _read_tool_search_result,
    "mcp_call": _read_mcp_call,
    "mcp_approval_request": _read_approval_request,
    "mcp_approval_response": _read_approval_response,
    REFERENCE: _refuse_reference,
}
