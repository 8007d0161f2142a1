"""A conversation in OpenAI's messages: roles, texts, pictures, sound, tool calls and what answered them, reasoning of earlier
turns.

What clients send of earlier turns is taken as it is, cut-off calls and orphaned results included: a conversation that was
answered once can always go on. What would change the answer and is not served is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ...errors import InvalidRequest, InvalidType, UnsupportedField
from ...messages import Content, MediaPart, Message, Part, ReasoningPart, Role, TextPart, ToolCallPart, ToolResultPart
from ..spell import dumps
from .fields import Fields, as_array, as_name, as_object, clip
from .media import parse_audio_url, parse_image_url, parse_input_audio

ROLES: Mapping[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}
"""What a client may write, and what templates know."""

CALLS_MAX = 512
"""Tool calls of one message."""

TEXTS: Mapping[str, str] = {
    **dict.fromkeys(("text", "input_text", "output_text", "summary_text"), "text"),
    "refusal": "refusal",
}
"""Types of parts that are text, each with the field that has it."""

MEDIA: Mapping[str, Callable[[Fields], MediaPart]] = {
    "image_url": parse_image_url,
    "input_image": parse_image_url,  # the word of Responses
    "input_audio": parse_input_audio,
    "audio_url": parse_audio_url,  # vLLM's
}
"""Types of parts that are pictures or sound, which users and tools may send."""

FILES = frozenset(("file", "input_file", "file_url", "video_url", "input_video"))

THOUGHTS: Mapping[str, str] = {"reasoning": "text", "thinking": "thinking"}
"""Types of parts in which clients keep what the model thought."""


def parse_messages(fields: Fields) -> tuple[Message, ...]:
    messages = as_array(fields.require("messages"), "messages")
    if not messages:
        raise InvalidRequest("'messages' must not be empty", "messages")
    called: dict[str, str] = {}
    return tuple(_parse_message(message, f"messages[{i}]", called) for i, message in enumerate(messages))


def _parse_message(value: object, where: str, called: dict[str, str]) -> Message:
    """`called` are the tool calls before this message, by their ids: the names of the tools."""
    message = Fields(as_object(value, where), where)
    role = ROLES.get(message.require_string("role"))
    if role is None:
        raise InvalidRequest(f"'{where}.role' must be one of {', '.join(ROLES)}", f"{where}.role")
    message.name("name")
    if message.get("audio"):
        raise UnsupportedField(message.where("audio"))
    if role == "assistant":
        return _parse_assistant(message, called)
    for field in ("tool_calls", "function_call"):
        if message.get(field):
            raise InvalidRequest(f"'{where}.{field}' is for the assistant only", f"{where}.{field}")
    media = role in ("user", "tool")
    content = parse_content(message.get("content"), message.where("content"), media)
    return Message(role, (_parse_result(message, content, called),) if role == "tool" else content)


def _parse_assistant(message: Fields, called: dict[str, str]) -> Message:
    thoughts: list[Part] = []
    texts: list[Part] = []
    content = message.get("content")
    if isinstance(content, list):
        for i, value in enumerate(content):
            part = _parse_part(value, f"{message.where('content')}[{i}]", thinks=True)
            (thoughts if isinstance(part, ReasoningPart) else texts).append(part)
    else:
        texts += parse_content(content, message.where("content"))
    reasoning = message.string("reasoning_content")
    if not reasoning and isinstance(message.get("reasoning"), str):  # vLLM's and OpenRouter's word
        reasoning = message.string("reasoning")
    if reasoning and not thoughts:
        thoughts.append(ReasoningPart(reasoning))
    calls = _parse_calls(message)
    called.update((call.id, call.name) for call in calls)
    return Message("assistant", (*thoughts, *texts, *calls))


# ---- content ---------------------------------------------------------------------------------------------------------


def parse_content(content: object, where: str, media: bool = False) -> tuple[Content, ...]:
    """Nothing, a string, or an array of parts: texts, and pictures and sound if there may be `media`; what is empty says
    nothing."""
    if content is None:
        return ()
    if isinstance(content, str):
        return (TextPart(content),) if content else ()
    if not isinstance(content, list):
        raise InvalidType(where, "a string or an array of parts")
    parts = [_parse_part(part, f"{where}[{i}]", media=media) for i, part in enumerate(content)]
    return tuple(part for part in parts if not isinstance(part, ReasoningPart))


def _parse_part(
    value: object, where: str, thinks: bool = False, media: bool = False
) -> TextPart | MediaPart | ReasoningPart:
    part = Fields(as_object(value, where), where)
    kind = part.require_string("type")
    if kind in TEXTS:
        return TextPart(part.require_string(TEXTS[kind]))
    if thinks and kind in THOUGHTS:
        return ReasoningPart(part.require_string(THOUGHTS[kind]))
    if kind in MEDIA:
        if not media:
            raise UnsupportedField(part.where("type"), f"of '{kind}' is for what users say and tools give")
        if kind == "input_image" and part.get("image_url") is None and part.get("file_id") is not None:
            raise UnsupportedField(part.where("file_id"))
        return MEDIA[kind](part)
    if kind in FILES:
        raise UnsupportedField(part.where("type"), f"of '{kind}' is not supported: send text, or pictures of its pages")
    raise UnsupportedField(part.where("type"), f"of '{clip(kind)}' is not supported")


# ---- tool calls and their answers ------------------------------------------------------------------------------------


def _parse_calls(message: Fields) -> list[ToolCallPart]:
    where = message.where("tool_calls")
    given = message.array("tool_calls") or ()
    if len(given) > CALLS_MAX:
        raise InvalidRequest(f"'{where}' must have at most {CALLS_MAX} calls", where)
    calls = [_parse_call(Fields(as_object(value, f"{where}[{i}]"), f"{where}[{i}]")) for i, value in enumerate(given)]
    function = message.object("function_call")  # of before there were several calls, and ids
    return calls if calls or function is None else [_parse_function(function, "")]


def _parse_call(call: Fields) -> ToolCallPart:
    kind = call.string("type") or "function"
    if kind != "function":
        raise UnsupportedField(call.where("type"), f"of '{clip(kind)}' is not supported")
    return _parse_function(call.require_object("function"), call.name("id") or "")


def _parse_function(function: Fields, id: str) -> ToolCallPart:
    where = function.where("name")
    name = as_name(function.require("name"), where)  # whatever the model wrote then: no tool may go by it any more
    if not name:
        raise InvalidRequest(f"'{where}' must not be empty", where)
    return ToolCallPart(id, name, _parse_arguments(function))


def _parse_arguments(function: Fields) -> str:
    """The text of a JSON object as the model wrote it, which may not have come to its end; some clients send the object."""
    given = function.get("arguments")
    if isinstance(given, Mapping):
        return dumps(given)
    return function.string("arguments") or ""


def _parse_result(message: Fields, content: Sequence[Content], called: Mapping[str, str]) -> ToolResultPart:
    """Templates tell the model by the name which tool's answer it reads, clients often leave it out."""
    id = message.name("tool_call_id") or ""
    return ToolResultPart(id, called.get(id) or message.name("name") or "", tuple(content))
