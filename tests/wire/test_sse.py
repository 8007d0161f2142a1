"""Server-sent events as the WHATWG's event stream format reads them."""

from __future__ import annotations

import json

import pytest

from lmlite.wire import sse


def test_frame_without_name() -> None:
    assert sse.frame(None, '{"a":1}') == b'data: {"a":1}\n\n'


def test_frame_with_name() -> None:
    assert sse.frame("message.delta", '"\u20ac"') == 'event: message.delta\ndata: "\u20ac"\n\n'.encode()


@pytest.mark.parametrize("line_end", ["\n", "\r", "\r\n"])
def test_payload_of_several_lines_stays_one_event(line_end: str) -> None:
    raw = sse.frame(None, line_end.join(["{", '"a": 1', "}"])).decode()
    assert raw.endswith("\n\n") and raw.count("\n\n") == 1
    assert all(line.startswith("data: ") for line in raw.rstrip("\n").split("\n"))
    assert json.loads("\n".join(line.removeprefix("data: ") for line in raw.rstrip("\n").split("\n"))) == {"a": 1}


def test_name_of_several_lines_is_refused() -> None:
    with pytest.raises(ValueError, match="event name"):
        sse.frame("a\ndata: b", "{}")


def test_fixed_frames() -> None:
    assert sse.DONE == b"data: [DONE]\n\n"
    assert sse.KEEP_ALIVE.startswith(b":") and sse.KEEP_ALIVE.endswith(b"\n\n")
    assert dict(sse.HEADERS)["Content-Type"] == "text/event-stream"
