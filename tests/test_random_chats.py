"""Random chats beside each other on the real engine: each answer is the one it is alone, and nothing is left behind."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest

from lmlite.server import Server
from tests import chats

N = 24


def test_random_chats_answer_as_alone_and_leave_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    before = chats.children()
    with Server(port=0, home=tmp_path, **chats.SERVER) as server:
        chats.fill_the_context(server.port)
        (engine,) = chats.children() - before
        held = chats.holdings(engine)
        plans = list(islice(chats.Plans(seed=7, tools=chats.accepts_tools(server.port)), N))
        answers = chats.talk_all(server.port, plans, clients=8)
        chats.fill_the_context(server.port)
        now = chats.holdings(engine)
        assert (now["descriptors"], now["threads"]) == (held["descriptors"], held["threads"])
    for plan, heard in zip(plans, answers):
        verdict = chats.judge(plan, heard)
        assert verdict.wrong is None, f"chat {plan.index}: {verdict.wrong}\n{chats.spelled(plan)}"


def test_an_answer_that_is_not_the_one_alone_is_wrong() -> None:
    """What is checked above can fail: another word, a word more, another's answer and a missing end are told."""
    body = {"model": chats.MODEL, "messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 40, "temperature": 0}
    plan = chats.Plan(1, chats.PATHS[0], body, leaves_after=None)
    right = chats.alone(body)
    assert chats.judge(plan, right) == chats.Verdict()
    for content in (right.content.replace("help", "hunt"), f"{right.content} zebra", "The fox is red.", right.content[:-1]):
        assert chats.judge(plan, chats.Heard(content, finish_reason="stop")).wrong is not None, content
    assert chats.judge(plan, chats.Heard(right.content)).wrong is not None
    left = chats.Plan(1, chats.PATHS[0], body, leaves_after=3)
    assert chats.judge(left, chats.Heard(right.content[:5])).wrong is None
    assert chats.judge(left, chats.Heard("zebra")).wrong is not None
