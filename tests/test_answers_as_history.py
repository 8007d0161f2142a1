"""What the server answered is taken back by it as it is, whole or put together from a stream, cut anywhere."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.conftest import Client
from tests.test_tools import CLOCK, HELLO, QUESTION, WEATHER

CHAT = "/v1/chat/completions"
THINK = {"role": "user", "content": "What is 3 + 4? Think first."}


def kept(deltas: list[dict[str, Any]]) -> dict[str, Any]:
    """A message of a stream's deltas, as clients keep it: nothing that was not there."""
    message: dict[str, Any] = {"role": "assistant", "content": None}
    for delta in deltas:
        for name in ("content", "reasoning_content"):
            if name in delta:
                message[name] = (message.get(name) or "") + delta[name]
        for piece in delta.get("tool_calls", ()):
            calls = message.setdefault("tool_calls", [])
            if "id" in piece:
                calls.append({"id": piece["id"], "type": "function", "function": dict(piece["function"])})
            else:
                calls[-1]["function"]["arguments"] += piece["function"]["arguments"]
    return message


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8, 13, 21, 34, 100])
def test_an_answer_of_any_length_goes_on(tiny: Client, n: int) -> None:
    ends = set()
    for question, more in (
        (QUESTION, {"tools": [WEATHER, CLOCK], "tool_choice": "required"}),
        (QUESTION, {"tools": [WEATHER, CLOCK]}),
        (THINK, {}),
        (HELLO, {"stop": ["!"]}),
    ):
        body = {"messages": [question], "max_tokens": n, "temperature": 0, **more}
        whole = tiny.post(CHAT, body).json["choices"][0]
        ends.add(whole["finish_reason"])
        events = tiny.post(CHAT, {**body, "stream": True}).events[:-1]
        streamed = kept([json.loads(payload)["choices"][0]["delta"] for _, payload in events])
        for said in (whole["message"], streamed):
            results = [
                {"role": "tool", "tool_call_id": call["id"], "content": "sunny"} for call in said.get("tool_calls", ())
            ]
            for behind in ([], results, [HELLO], [*results, HELLO]):
                again = {"messages": [question, said, *behind], "max_tokens": 2, "tools": more.get("tools")}
                answer = tiny.post(CHAT, again)
                assert answer.status == 200, (said, answer.body)
    assert ends <= {"stop", "length", "tool_calls"} and ("length" in ends or n > 21)
