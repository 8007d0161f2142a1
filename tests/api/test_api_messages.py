"""Anthropic's messages: what of a request counts, what is refused by name, and streams that say what whole answers do."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmlite import errors
from lmlite.api.anthropic import messages as anthropic
from lmlite.api.anthropic import models
from lmlite.events import (
    Event,
    Finished,
    Leased,
    LoadProgress,
    PromptProgress,
    ReasoningDelta,
    Started,
    Stats,
    StopReason,
    TextDelta,
    ToolCallArguments,
    ToolCallStart,
)
from lmlite.messages import Message, TextPart
from lmlite.request import Chat
from tests.api.golden_files import INSTANCE, ORIGIN, bracketed, leased, stream_frames

HI = [{"role": "user", "content": "Hi"}]
STATS = Stats(18, 8, 4, 0.5, 10.0, 20.0, 2)
Frames = list[tuple[str | None, str]]


def chat_of(**body: Any) -> Chat:
    prompt = anthropic.parse_messages({"messages": HI, "max_tokens": 9, **body}).turn.runs[0].prompt
    assert isinstance(prompt, Chat)
    return prompt


def system_of(system: Any) -> list[str]:
    """The texts of the system message, of the template's first."""
    first = chat_of(system=system).messages[0]
    return [part.text for part in first.parts if isinstance(part, TextPart)] if first.role == "system" else []


# ---- requests --------------------------------------------------------------------------------------------------------


def test_the_line_that_changes_with_every_request_reaches_no_template() -> None:
    line = "x-anthropic-billing-header: cc_version=2.1.36.abc; cc_entrypoint=cli; cch=1f2e3;"
    agent = {"type": "text", "text": "You are an agent."}
    assert system_of([{"type": "text", "text": line}, agent]) == ["You are an agent."]
    assert system_of([{"type": "text", "text": line}]) == []
    assert system_of(f"{line}\nYou are an agent.") == ["You are an agent."]
    assert system_of([agent, {"type": "text", "text": line}]) == ["You are an agent.", line]


IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}
PDF = {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "AAAA"}}
CLOUD = {"type": "web_search_20250305", "name": "web_search"}
URL = {"type": "document", "source": {"type": "url", "url": "http://127.0.0.1/a.pdf"}}


def asked(*blocks: dict[str, Any], role: str = "user") -> dict[str, Any]:
    return {"messages": [{"role": role, "content": list(blocks)}]}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (asked(IMAGE, role="assistant"), "messages[0].content[0].type"),
        (asked({"type": "text", "text": "a"}, PDF), "messages[0].content[1].source.type"),
        (asked(URL), "messages[0].content[0].source.type"),
        (asked({"type": "container_upload", "file_id": "a"}), "messages[0].content[0].type"),
        (asked({"type": "tool_use", "id": "a", "name": "b", "input": {}}), "messages[0].content[0].type"),
        (asked({"type": "tool_use", "id": "a", "name": "", "input": {}}, role="assistant"), "messages[0].content[0].name"),
        (asked({"type": "tool_use", "id": "a", "name": "b", "input": 5}, role="assistant"), "messages[0].content[0].input"),
        (asked({"type": "text"}), "messages[0].content[0].text"),
        (asked({"text": "a"}), "messages[0].content[0].type"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": []}, "messages"),
        ({}, "messages"),
        ({"messages": HI, "system": [IMAGE]}, "system[0].type"),
        ({"messages": HI, "mcp_servers": [{"type": "url", "url": "http://a", "name": "b"}]}, "mcp_servers"),
        ({"messages": HI, "tools": [{"name": "a", "input_schema": {}}] * 2}, "tools[1].name"),
        ({"messages": HI, "tools": [{"input_schema": {}}]}, "tools[0].name"),
        ({"messages": HI, "tool_choice": {"type": "any"}}, "tool_choice"),
        ({"messages": HI, "tools": [CLOUD], "tool_choice": {"type": "any"}}, "tool_choice"),
        ({"messages": HI, "tool_choice": {"type": "tool", "name": "a"}}, "tool_choice"),
        ({"messages": HI, "tool_choice": {"type": "some"}}, "tool_choice.type"),
        ({"messages": HI, "output_config": {"effort": "huge"}}, "output_config.effort"),
        ({"messages": HI, "max_tokens": "9"}, "max_tokens"),
        ({"messages": HI, "stop_sequences": [5]}, "stop_sequences[0]"),
        ({"messages": HI, "temperature": -1}, "temperature"),
    ],
)
def test_what_cannot_be_served_is_named(body: dict[str, Any], param: str) -> None:
    with pytest.raises(errors.InvalidRequest) as refused:
        anthropic.parse_messages(body)
    assert refused.value.param == param and param in str(refused.value)


def test_what_is_left_out_is_named_once() -> None:
    kinds = ("web_search_20250305", "a" * 999, "web_search_20250305")
    used = {"type": "web_search_tool_result", "tool_use_id": "a", "content": []}
    body = {"messages": asked(used, role="assistant")["messages"], "tools": [{"type": kind, "name": "a"} for kind in kinds]}
    names = anthropic.parse_messages(body).ignored
    assert names == ("web_search_20250305", "a" * 80 + "…", "web_search_tool_result")


@pytest.mark.parametrize(
    ("kind", "name", "commands", "takes"),
    [
        ("bash_20250124", "bash", None, {"command", "restart"}),
        ("text_editor_20250728", "str_replace_based_edit_tool", 4, {"path", "insert_text", "old_str", "new_str"}),
        ("text_editor_20250124", "str_replace_editor", 5, {"path", "insert_line", "file_text", "view_range"}),
        ("memory_20250818", "memory", 6, {"path", "insert_text", "old_path", "new_path"}),
    ],
)
def test_tools_that_clients_run_without_a_schema_get_one(
    kind: str, name: str, commands: int | None, takes: set[str]
) -> None:
    (tool,) = chat_of(tools=[{"type": kind, "name": name, "cache_control": {"type": "ephemeral"}}, CLOUD]).tools
    schema = tool["function"]["parameters"]
    jsonschema.Draft202012Validator.check_schema(schema)
    assert tool["function"]["name"] == name and tool["function"]["description"]
    assert takes <= set(schema["properties"]) and set(schema["required"]) <= set(schema["properties"])
    if commands is not None:
        assert len(schema["properties"]["command"]["enum"]) == commands
    assert ("insert_text" in schema["properties"]) == ("insert_text" in takes)


def test_tools_of_a_screen_are_a_clouds_own_here() -> None:
    tools = [{"type": "computer_20250124", "name": "computer", "display_width_px": 9, "display_height_px": 9}]
    call = anthropic.parse_messages({"messages": HI, "tools": tools})
    assert call.ignored == ("computer_20250124",)


@pytest.mark.parametrize(
    ("thinking", "variables", "budget"),
    [
        (None, {}, -1),
        ({"type": "disabled"}, {"enable_thinking": False}, -1),
        ({"type": "enabled", "budget_tokens": 2048}, {"enable_thinking": True}, 2048),
        ({"type": "enabled", "budget_tokens": 0}, {"enable_thinking": False}, 0),
        ({"type": "adaptive", "display": "omitted"}, {}, -1),
        ({"type": "between_tools"}, {}, -1),
    ],
)
def test_thinking(thinking: Any, variables: dict[str, Any], budget: int) -> None:
    run = anthropic.parse_messages({"messages": HI, "thinking": thinking}).turn.runs[0]
    assert isinstance(run.prompt, Chat)
    assert (run.prompt.template_kwargs, run.reasoning_budget) == (variables, budget)


def test_failed_results_say_so() -> None:
    def result(content: Any, **more: Any) -> Message:
        block = {"type": "tool_result", "tool_use_id": "a", "content": content, **more}
        return chat_of(messages=[{"role": "user", "content": [block]}]).messages[0]

    failed = result("Error: no such file", is_error=True)
    assert failed == result("Error: no such file")
    assert result("no such file", is_error=True) == failed
    assert result("no such file", is_error=False) != failed


odd: st.SearchStrategy[Any] = st.sampled_from([None, True, False, -9, 0, 1.5, "", "a", "text", "auto", "user", []])


def shaped(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Objects with some of `fields`, whose values are now and then of another kind."""
    return st.fixed_dictionaries({}, optional={name: values | odd for name, values in fields.items()})


kinds = st.sampled_from(["text", "image", "document", "search_result", "tool_use", "tool_result", "tool_reference",
                         "thinking", "redacted_thinking", "server_tool_use", "web_search_tool_result", "new"])  # fmt: skip
sources = shaped(type=st.sampled_from(["text", "content", "base64", "url"]), data=st.just("a"), content=st.just("b"))
blocks: st.SearchStrategy[dict[str, Any]] = st.deferred(
    lambda: shaped(
        type=kinds,
        text=st.just("a"),
        thinking=st.just("a"),
        id=st.just("a"),
        tool_use_id=st.just("a"),
        tool_name=st.just("a"),
        name=st.just("a"),
        title=st.just("a"),
        input=st.just({"a": 1}),
        is_error=st.booleans(),
        source=sources,
        content=st.just("a") | st.lists(blocks, max_size=2),
    )
)
said = st.just("a") | st.lists(blocks, max_size=3)
odd_tools = shaped(name=st.sampled_from("ab"), description=st.just("a"), input_schema=st.just({}), type=st.just("custom"))
forms = shaped(type=st.just("json_schema"), schema=st.just({}))
bodies = shaped(
    model=st.just("a"),
    messages=st.lists(shaped(role=st.sampled_from(["user", "assistant", "system"]), content=said), max_size=3),
    system=said,
    tools=st.lists(odd_tools, max_size=2),
    tool_choice=shaped(type=st.sampled_from(["auto", "any", "tool", "none"]), name=st.just("a")),
    thinking=shaped(type=st.sampled_from(["enabled", "disabled"]), budget_tokens=st.integers(0, 9)),
    output_config=shaped(effort=st.sampled_from(["low", "max"]), format=forms),
    context_management=st.just({}),
    stop_sequences=st.just(["a"]),
    max_tokens=st.integers(0, 9),
    stream=st.booleans(),
)


@settings(max_examples=300)
@given(bodies)
def test_any_body_is_a_conversation_or_a_named_refusal(body: dict[str, Any]) -> None:
    for parse in (anthropic.parse_messages, anthropic.parse_count):
        try:
            (run,) = parse(body).turn.runs
        except errors.InvalidRequest as refused:
            assert refused.param is not None and len(refused.message) < 300
        else:
            assert isinstance(run.prompt, Chat) and run.prompt.messages


def test_counting_takes_what_a_request_takes() -> None:
    call = anthropic.parse_count({"model": "a", "messages": HI, "tools": [{"name": "b", "input_schema": {}}]})
    assert call.turn.model == "a" and call.reply(12) == '{"input_tokens":12}'
    managed = anthropic.parse_count({"messages": HI, "context_management": {"edits": []}}).reply(12)
    assert json.loads(managed) == {"input_tokens": 12, "context_management": {"original_input_tokens": 12}}


# ---- answers ---------------------------------------------------------------------------------------------------------

words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
calls = st.builds(
    lambda name, value, cut: (name, json.dumps(value, ensure_ascii=False), cut),
    words,
    st.dictionaries(words, words | st.integers(), max_size=2),
    st.integers(0, 9),
)
reasons: st.SearchStrategy[StopReason] = st.sampled_from(
    ["eosFound", "maxPredictedTokensReached", "contextLengthReached", "toolCalls"]
)


@st.composite
def runs(draw: st.DrawFn) -> list[Event]:
    said: list[Event] = draw(st.lists(st.builds(TextDelta, words) | st.builds(ReasoningDelta, words), max_size=8))
    made = draw(st.lists(calls, max_size=3))
    for index, (name, arguments, cut) in enumerate(made):
        is_last = index == len(made) - 1
        text = arguments[: len(arguments) - cut] if is_last else arguments
        said.append(ToolCallStart(index, name))
        said += [ToolCallArguments(index, text[i : i + 3]) for i in range(0, len(text), 3)]
    return bracketed([PromptProgress(18, 18, 8), *said, Finished(draw(reasons), STATS)])


def accumulated(frames: Frames) -> dict[str, Any]:
    """What a client makes of a stream; it holds to the rules that clients hold streams to."""
    events = [json.loads(payload) for name, payload in frames]
    assert [event["type"] for event in events] == [name for name, _ in frames]
    events = [event for event in events if event["type"] != "ping"]
    assert [event["type"] for event in events[-2:]] == ["message_delta", "message_stop"]
    assert [event["type"] for event in events].count("message_start") == 1
    message: dict[str, Any] = events[0]["message"]
    content, is_open, texts = message["content"], False, ""
    for event in events[1:-2]:
        if event["type"] == "content_block_start":
            assert not is_open and event["index"] == len(content)
            content.append(event["content_block"])
            is_open, texts = True, ""
            continue
        assert is_open and event["index"] == len(content) - 1
        block = content[-1]
        if event["type"] == "content_block_stop":
            is_open = False
            if block["type"] == "tool_use":
                block["input"] = json.loads(texts)
            continue
        delta = event["delta"]
        match delta.pop("type"), block["type"]:
            case "text_delta", "text":
                block["text"] += delta["text"]
            case "thinking_delta", "thinking":
                block["thinking"] += delta["thinking"]
            case "signature_delta", "thinking":
                block["signature"] = delta["signature"]
            case "input_json_delta", "tool_use":
                texts += delta["partial_json"]
            case wrong:
                raise AssertionError(wrong)
    assert not is_open
    return {**message, **events[-2]["delta"], "usage": {**message["usage"], **events[-2]["usage"]}}


@settings(max_examples=60)
@given(runs())
def test_a_stream_says_what_the_whole_answer_does(run: list[Event]) -> None:
    call = anthropic.parse_messages({"messages": HI, "stream": True})
    whole = json.loads(call.reply(ORIGIN).whole(leased([run])))
    assert accumulated(stream_frames(call.reply(ORIGIN), [run])) == whole


def test_a_stream_that_must_begin_early_tells_what_the_prompt_took_at_its_end() -> None:
    reply = anthropic.parse_messages({"model": "claude-x", "messages": HI, "stream": True}).reply(ORIGIN)
    frames: Frames = [*reply.stream(0, Started("falcon-7b", loads=True)), *reply.begin(), *reply.alive()]
    assert [name for name, _ in frames] == ["message_start", "ping"]
    for event in (
        LoadProgress(0.5),
        Leased(INSTANCE, 1.0),
        *bracketed([PromptProgress(18, 18, 8), TextDelta("a"), Finished("eosFound", STATS)]),
    ):
        frames += reply.stream(0, event)
    message = accumulated([*frames, *reply.end()])
    assert (message["model"], message["content"]) == ("falcon-7b", [{"type": "text", "text": "a"}])
    assert (message["usage"]["input_tokens"], message["usage"]["cache_read_input_tokens"]) == (10, 8)


def test_before_anything_is_known_a_stream_begins_with_the_name_that_was_asked_for() -> None:
    for name in ("claude-x", None):
        reply = anthropic.parse_messages({"model": name, "messages": HI, "stream": True}).reply(ORIGIN)
        ((_, payload),) = reply.begin()
        message = json.loads(payload)["message"]
        assert message["model"] == (name or "") and message["usage"]["input_tokens"] == 0


def test_no_stop_reason_is_unknown_to_clients() -> None:
    known = {"end_turn", "max_tokens", "stop_sequence", "tool_use"}
    for reason in ("eosFound", "stopStringFound", "maxPredictedTokensReached", "contextLengthReached", "userStopped",
                   "modelUnloaded", "toolCalls", "failed"):  # fmt: skip
        reply = anthropic.parse_messages({"messages": HI}).reply(ORIGIN)
        whole = json.loads(reply.whole(leased([[Finished(reason, STATS)]])))
        assert whole["stop_reason"] in known


def test_a_run_that_never_finished_is_a_bug_and_no_answer() -> None:
    reply = anthropic.parse_messages({"messages": HI, "stream": True}).reply(ORIGIN)
    with pytest.raises(errors.InternalError):
        reply.whole(leased([[]]))
    with pytest.raises(errors.InternalError):
        list(reply.end())


# ---- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("exc", "status", "kind"),
    [
        (errors.InvalidRequest("no", "a"), 400, "invalid_request_error"),
        (errors.HttpError(401, "no"), 401, "authentication_error"),
        (errors.HttpError(403, "no"), 403, "permission_error"),
        (errors.ModelNotFound("a", ()), 404, "not_found_error"),
        (errors.UnexpectedEndpoint("GET", "/v1/messages/x"), 404, "not_found_error"),
        (errors.UnexpectedEndpoint("GET", "/v1/messages", ("POST",)), 405, "invalid_request_error"),
        (errors.HttpError(408, "no"), 408, "timeout_error"),
        (errors.HttpError(413, "no"), 413, "request_too_large"),
        (errors.HttpError(503, "no"), 503, "api_error"),
        (errors.LoadFailed("a", "no"), 400, "invalid_request_error"),
        (errors.MemoryRefused(2, 1), 400, "invalid_request_error"),
        (errors.RequestRefused("a", 2, "crashed"), 400, "invalid_request_error"),
        (errors.ModelUnloaded("a"), 529, "overloaded_error"),
        (errors.QueueFull(8), 429, "rate_limit_error"),
        (errors.EngineGone("a", "crashed"), 529, "overloaded_error"),
        (errors.ShuttingDown(), 529, "overloaded_error"),
        (errors.EngineError("out_of_memory", "no", 503), 529, "overloaded_error"),
        (errors.InternalError(), 500, "api_error"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_errors_have_the_status_by_which_clients_repeat_or_do_not(exc: errors.LmError, status: int, kind: str) -> None:
    answered, body = anthropic.error(exc, "abc")
    told = json.loads(body)
    assert (answered, told["type"], told["error"]["type"], told["request_id"]) == (status, "error", kind, "req_abc")
    reply = anthropic.parse_messages({"messages": HI, "stream": True}).reply(ORIGIN)
    ((name, payload),) = reply.failed(exc)
    assert (name, json.loads(payload)["error"]) == ("error", told["error"])


def test_an_overflow_is_told_in_the_words_that_agents_compact_on() -> None:
    status, body = anthropic.error(errors.ContextOverflow(9000, 4096), "abc")
    assert status == 400
    assert json.loads(body)["error"]["message"].startswith("prompt is too long: 9000 tokens > 4096 maximum")


def test_what_the_server_says_of_its_own_failure_stays_inside() -> None:
    _, body = anthropic.error(errors.EngineError("internal", "/home/me/secret failed"), "abc")
    assert "secret" not in body


# ---- models ----------------------------------------------------------------------------------------------------------


def test_models() -> None:
    one = models.Listed("falcon", "Falcon 7B", 4096)
    spelled = {
        "type": "model",
        "id": "falcon",
        "display_name": "Falcon 7B",
        "created_at": "1970-01-01T00:00:00Z",
        "lifecycle": "active",
        "max_input_tokens": 4096,
        "max_tokens": 4096,
    }
    assert json.loads(models.model(one)) == spelled
    two = models.Listed("owl", "Owl", 1)
    listed = json.loads(models.models([one, two]))
    assert listed == {"data": [spelled, listed["data"][1]], "has_more": False, "first_id": "falcon", "last_id": "owl"}
    assert json.loads(models.models([])) == {"data": [], "has_more": False, "first_id": None, "last_id": None}


