"""Responses that are kept, as they are asked for later: the object, its events once more, what was asked, that it is gone."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final
from urllib.parse import parse_qs

from ...errors import InvalidRequest, UnknownExchange
from ...exchange import Exchange
from ..dialect import Frame
from ..kept_media import with_media
from ..spell import dumps
from .responses_events import TEXT, Item, Kind, Numbers

LIMIT: Final = 20
LIMIT_MAX: Final = 100
"""Items of one page: OpenAI's bounds."""

DECODER: Final = json.JSONDecoder()

LOST: Final = {"code": "server_error", "message": "the server ended before the answer did"}


def parse_show(query: str) -> tuple[bool, int]:
    """Whether a stream is wanted, and the number of the event that it is to begin behind."""
    given = read_query(query)
    stream = given.get("stream", "false")
    if stream not in ("true", "false"):
        raise InvalidRequest("'stream' must be true or false", "stream")
    after = given.get("starting_after", "")
    if after and not (after.isascii() and after.isdigit() and len(after) < 10):
        raise InvalidRequest("'starting_after' must be the number of an event", "starting_after")
    return stream == "true", int(after) if after else -1


def read_query(query: str) -> dict[str, str]:
    return {name: values[-1] for name, values in parse_qs(query).items()}


def spell_response(exchange: Exchange) -> str:
    return dumps(response_of(exchange))


def response_of(exchange: Exchange) -> dict[str, Any]:
    """As it was told; of one that came to its end in another way than by its own words, with that end."""
    if exchange.kind != "response":
        raise UnknownExchange(exchange.id)
    response: dict[str, Any] = json.loads(exchange.body)["response"]
    if response["status"] != exchange.status:
        response["status"] = exchange.status
        response["error"] = LOST if exchange.status == "failed" else None
    return response


def spell_deleted(id: str) -> str:
    return dumps({"id": id, "object": "response.deleted", "deleted": True})


def spell_count(n_tokens: int) -> str:
    return dumps({"object": "response.input_tokens", "input_tokens": n_tokens})


def spell_input(exchange: Exchange, query: str) -> str:
    """A page of what was asked, the latest first unless the query says otherwise."""
    given = read_query(query)
    limit = given.get("limit", str(LIMIT))
    if not (limit.isascii() and limit.isdigit() and len(limit) < 10 and 1 <= int(limit) <= LIMIT_MAX):
        raise InvalidRequest(f"'limit' must be between 1 and {LIMIT_MAX}", "limit")
    if (order := given.get("order", "desc")) not in ("asc", "desc"):
        raise InvalidRequest("'order' must be one of 'asc', 'desc'", "order")
    items = input_of(exchange)
    if order == "desc":
        items = items[::-1]
    if after := given.get("after"):
        places = [place for place, item in enumerate(items) if item["id"] == after]
        if not places:
            raise InvalidRequest(f"'after' names no item of the response: {after[:80]}", "after")
        items = items[places[0] + 1 :]
    page = items[: int(limit)]
    return dumps(
        {
            "object": "list",
            "data": page,
            "first_id": page[0]["id"] if page else None,
            "last_id": page[-1]["id"] if page else None,
            "has_more": len(items) > len(page),
        }
    )


def input_of(exchange: Exchange) -> list[dict[str, Any]]:
    if exchange.kind != "response":
        raise UnknownExchange(exchange.id)
    items = list(read_items(exchange.items))
    restored: list[dict[str, Any]] = with_media(items, exchange.asked)
    return restored


def read_items(text: str) -> Iterator[dict[str, Any]]:
    """As `join_input` has written them: one by one, since the decoder keeps all other threads from the interpreter."""
    at, end = 1, len(text) - 1
    while at < end:
        item, at = DECODER.raw_decode(text, at)
        at += 1
        yield item


def items_of(exchange: Exchange) -> dict[str, dict[str, Any]]:
    """All of its items, asked or answered, by their ids."""
    if exchange.kind != "response":
        return {}
    return {item["id"]: item for item in (*input_of(exchange), *response_of(exchange)["output"])}


# ---- the stream once more --------------------------------------------------------------------------------------------


def replay(exchange: Exchange, after: int) -> list[Frame]:
    """Its events, numbered as they were if it was streamed; log probabilities come with the text's end only."""
    frames = list(_events(response_of(exchange), json.loads(exchange.body)["lengths"]))
    return frames[after + 1 :]


def _events(response: Mapping[str, Any], lengths: Sequence[Sequence[int]] | None) -> Iterator[Frame]:
    numbers = Numbers()
    blank: dict[str, Any] = {"completed_at": None, "incomplete_details": None, "output": [], "error": None, "usage": None}
    for kind in ("created", "queued", "in_progress") if response["background"] else ("created", "in_progress"):
        status = "queued" if response["background"] and kind != "in_progress" else "in_progress"
        early = dumps({**response, **blank, "status": status})
        yield numbers.event(f"response.{kind}", f',"response":{early}')
    for index, spelled in enumerate(response["output"]):
        item, text, logprobs = _read(index, spelled)
        yield from item.opening(numbers)
        for piece in cut(text, lengths[index] if lengths is not None else [len(text)] if text else []):
            yield item.delta(numbers, piece)
        yield from item.closing(numbers, text, dumps(spelled), logprobs)
    yield numbers.event(f"response.{response['status']}", f',"response":{dumps(response)}')


def _read(index: int, spelled: Mapping[str, Any]) -> tuple[Item, str, Sequence[Any]]:
    """An item apart from what it says, and that."""
    kind: Kind = spelled["type"]
    if kind == "reasoning" and spelled["summary"]:
        kind = "summary"
    call = {name: spelled[name] for name in ("call_id", "name", "namespace") if name in spelled}
    item = Item(kind, spelled["id"], index, **call)
    if kind == "mcp_list_tools":
        return Item(kind, spelled["id"], index, label=spelled["server_label"], tools=spelled["tools"]), "", ()
    if kind == "mcp_call":
        item.label, item.output, item.error = spelled["server_label"], spelled["output"], spelled["error"]
        item.approval = spelled.get("approval_request_id")
        return item, spelled["arguments"], ()
    if kind == "mcp_approval_request":
        item.label, item.arguments = spelled["server_label"], spelled["arguments"]
        return item, "", ()
    if kind in ("function_call", "custom_tool_call"):
        return item, spelled[TEXT[kind][1]], ()
    (part,) = spelled["summary" if kind == "summary" else "content"]
    return item, part["text"], part.get("logprobs", ())


def cut(text: str, lengths: Sequence[int]) -> Iterator[str]:
    begin = 0
    for length in lengths:
        yield text[begin : begin + length]
        begin += length
