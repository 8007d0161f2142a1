"""Servers of tools in LM Studio's native chat, on whole servers: what models call is called, told and kept."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lmlite.errors import ConfigError
from lmlite.server import LoopThread, Server
from lmlite.store.home import Home
from tests.conftest import TIMEOUT_S, Client, FakeServer
from tests.fakes import Script
from tests.mcp.web_server import WebServer
from tests.test_auth import Keys, bearer
from tests.test_native_chat import generations, names, said

Serve = Callable[..., FakeServer]
CHAT = "/api/v1/chat"
PROGRAM = Path(__file__).parent / "mcp" / "program.py"
ASKED: dict[str, Any] = {"model": "talker", "input": "what is 2 + 3?", "integrations": ["mcp/calc"]}
ADD = ("add", ('{"a":2,', '"b":3}'))
TEXT = "The quick brown fox jumps over the lazy dog. "
PLUGIN = {"provider_info": {"type": "plugin", "plugin_id": "mcp/calc"}}
FIVE = '[{"type":"text","text":"5"}]'


@pytest.fixture
def token(tmp_path: Path) -> Iterator[dict[str, str]]:
    keys = Keys(tmp_path / "home")
    yield bearer(keys.create("all"))
    keys.close()


def program(home: Path, **servers: dict[str, str]) -> None:
    """mcp.json with a program under each name."""
    entries = {
        label.replace("_", " "): {
            "command": sys.executable,
            "args": [str(PROGRAM), *(f"{key}={value}" for key, value in options.items())],
        }
        for label, options in servers.items()
    }
    home.mkdir(exist_ok=True)
    (home / "mcp.json").write_text(json.dumps({"mcpServers": entries}))


@pytest.fixture
def serve_tools(serve_fake: Serve, tmp_path: Path, token: dict[str, str]) -> Callable[..., Ask]:
    """Starts a server whose model makes `calls` in each of `rounds`, with the server `calc` of the tools named."""

    def serve(*calls: Any, rounds: int = 1, tools: str = "add,echo", era: str = "legacy", **options: Any) -> Ask:
        program(tmp_path / "home", calc={"tools": tools, "era": era, "note": str(tmp_path / "heard")})
        script = Script(calls=calls or (ADD,), call_rounds=rounds)
        return Ask(serve_fake(script, auth=True, mcp=True, **options), token)

    return serve


class Ask:
    def __init__(self, server: FakeServer, token: dict[str, str]):
        self.server, self.token = server, token
        self.client: Client = server.client()

    def __call__(self, **more: Any) -> Any:
        return self.client.post(CHAT, {**ASKED, **more}, **self.token)


@pytest.mark.parametrize("era", ["legacy", "modern"])
def test_a_tool_is_called_and_the_model_goes_on_with_what_it_gave(serve_tools: Callable[..., Ask], era: str) -> None:
    ask = serve_tools(era=era)
    answer = ask()
    assert answer.status == 200
    called = {"type": "tool_call", "tool": "add", "arguments": {"a": 2, "b": 3}, "output": FIVE, **PLUGIN}
    assert answer.json["output"] == [called, {"type": "message", "content": TEXT}]
    first, second = generations(ask.server)
    assert [tool["function"]["name"] for tool in first["tools"]] == ["add", "echo"]
    user, assistant, tool = second["messages"]
    (call,) = assistant["tool_calls"]
    assert call["function"] == {"name": "add", "arguments": '{"a":2,"b":3}'}
    assert (tool["content"], tool["tool_call_id"]) == ("5", call["id"])


def test_a_model_that_sees_is_shown_the_pictures_that_a_tool_gave(serve_tools: Callable[..., Ask], seeing: Path) -> None:
    look = ("look", ('{"text":"Here:"}',))
    ask = serve_tools(look, tools="look", models_dir=[seeing])
    first = ask(model="seer").json
    assert json.loads(first["output"][0]["output"])[1] == {"type": "image", "mimeType": "image/png", "data": "iVBORw0KGgo="}
    result = generations(ask.server)[1]["messages"][-1]
    assert result["content"] == [{"type": "text", "text": "Here:"}, {"type": "media", "kind": "image", "index": 0}]
    assert ask.server.engine.media == [b"\x89PNG\r\n\x1a\n"]
    ask(model="seer", input="and now?", integrations=[], previous_response_id=first["response_id"])
    assert generations(ask.server)[2]["messages"][2] == result


def test_a_model_that_does_not_see_is_told_that_there_is_a_picture(serve_tools: Callable[..., Ask]) -> None:
    ask = serve_tools(("look", ('{"text":"Here:"}',)), tools="look")
    assert ask().status == 200
    lines = generations(ask.server)[1]["messages"][-1]["content"].split("\n")
    assert lines == ["Here:", *["[image of type image/png, which cannot be shown here]"] * 2]


def test_a_stream_tells_of_calls_as_they_are_made(serve_tools: Callable[..., Ask]) -> None:
    answer = serve_tools()(stream=True)
    told = [name for name in names(answer) if name and not name.startswith("model_load")]
    prompt = ["prompt_processing.start", "prompt_processing.progress", "prompt_processing.end"]
    calls = ["tool_call.start", "tool_call.arguments", "tool_call.success"]
    assert told == ["chat.start", *prompt, *calls, *prompt, "message.start", "message.delta", "message.end", "chat.end"]
    assert said(answer, "tool_call.start") == [{"type": "tool_call.start", "tool": "add", **PLUGIN}]
    (success,) = said(answer, "tool_call.success")
    assert (success["arguments"], success["output"]) == ({"a": 2, "b": 3}, FIVE)
    result = said(answer, "chat.end")[0]["result"]
    assert [item["type"] for item in result["output"]] == ["tool_call", "message"]


def test_usage_is_that_of_all_rounds(serve_tools: Callable[..., Ask]) -> None:
    ask = serve_tools(rounds=2)
    stats = ask().json["stats"]
    prompts = [sum(len(f"<{m['role']}>{m['content']}") for m in command["messages"]) for command in generations(ask.server)]
    assert len(prompts) == 3 and stats["input_tokens"] == sum(prompts)
    assert stats["total_output_tokens"] == 2 * 3 + 9  # a name and two pieces of arguments, twice, and the words


def test_parallel_calls_are_told_in_their_order(serve_tools: Callable[..., Ask]) -> None:
    slow, quick = ("slow", ('{"text":"0.5"}',)), ("echo", ('{"text":"quick"}',))
    ask = serve_tools(slow, quick, tools="slow,echo")
    answer = ask(stream=True)
    assert [payload["tool"] for payload in said(answer, "tool_call.success")] == ["slow", "echo"]
    _, assistant, *results = generations(ask.server)[1]["messages"]
    assert [result["content"] for result in results] == ["slept", "quick"]
    assert [call["id"] for call in assistant["tool_calls"]] == [result["tool_call_id"] for result in results]


@pytest.mark.parametrize("stream", [False, True])
def test_half_a_character_costs_no_answer(serve_tools: Callable[..., Ask], stream: bool) -> None:
    ask = serve_tools(("echo", ('{"text":"asked \\ud83d"}',)), ("cut", ('{"text":"given "}',)), tools="echo,cut")
    answer = ask(stream=stream)
    assert answer.status == 200
    assert [result["content"] for result in generations(ask.server)[1]["messages"][2:]] == ["asked \ufffd", "given \ufffd"]
    if not stream:
        assert answer.json["output"][0]["arguments"] == {"text": "asked \ufffd"}
        assert ask(integrations=[], previous_response_id=answer.json["response_id"]).status == 200


def test_what_was_called_and_given_is_part_of_the_conversation(serve_tools: Callable[..., Ask]) -> None:
    ask = serve_tools()
    first = ask()
    ask(input="and now?", integrations=[], previous_response_id=first.json["response_id"])
    _, within, later = generations(ask.server)
    roles = ["user", "assistant", "tool", "assistant", "user"]
    assert [message["role"] for message in later["messages"]] == roles
    assert later["messages"][:3] == within["messages"]  # the same to the last digit, so that the cache has it


def test_names_that_there_are_not_and_wrong_arguments_are_told_to_the_model(serve_tools: Callable[..., Ask]) -> None:
    ask = serve_tools(("rain", ("{}",)), ("add", ("[1]",)), ("add", ("{}",)))
    answer = ask(stream=True)
    name, kind, missing = said(answer, "tool_call.failure")
    assert name["reason"] == "Cannot find tool with name rain."
    assert name["metadata"] == {"type": "invalid_name", "tool_name": "rain"}
    assert kind["metadata"] == {"type": "invalid_arguments", "tool_name": "add", "arguments": "[1]", **PLUGIN}
    assert missing["reason"] == "The arguments lack a."
    output = said(answer, "chat.end")[0]["result"]["output"]
    assert [item["type"] for item in output] == [*["invalid_tool_call"] * 3, "message"]
    contents = [message["content"] for message in generations(ask.server)[1]["messages"][2:]]
    assert contents[0] == "Error: Cannot find tool with name rain."


def test_c7_a_tool_that_is_not_allowed_is_neither_offered_nor_called(serve_tools: Callable[..., Ask], tmp_path: Path) -> None:
    ask = serve_tools()
    answer = ask(integrations=[{"type": "plugin", "id": "mcp/calc", "allowed_tools": ["echo"]}])
    assert answer.json["output"][0]["metadata"] == {"type": "invalid_name", "tool_name": "add"}
    assert [tool["function"]["name"] for tool in generations(ask.server)[0]["tools"]] == ["echo"]
    assert "tools/call" not in (tmp_path / "heard").read_text()


def test_c6_a_loop_without_end_ends_with_an_answer_without_tools(serve_tools: Callable[..., Ask]) -> None:
    ask = serve_tools(rounds=1000, mcp_rounds=3)
    output = ask().json["output"]
    assert [item["type"] for item in output] == [*["tool_call"] * 3, "message"]
    assert [command["tool_choice"] for command in generations(ask.server)] == ["auto"] * 3 + ["none"]


def test_no_tool_is_called_once_a_request_has_taken_its_time(serve_tools: Callable[..., Ask], tmp_path: Path) -> None:
    ask = serve_tools(rounds=1000, mcp_timeout=0)
    assert [item["type"] for item in ask().json["output"]] == ["message"]
    assert "tools/call" not in (tmp_path / "heard").read_text()


def test_a_model_that_only_calls_what_cannot_be_called_answers_without(serve_tools: Callable[..., Ask]) -> None:
    ask = serve_tools(("rain", ("{}",)), rounds=1000)
    output = ask().json["output"]
    assert [item["type"] for item in output] == [*["invalid_tool_call"] * 3, "message"]


@pytest.mark.parametrize(
    ("tool", "arguments", "reason"),
    [("crash", "{}", "has ended"), ("silent", "{}", "within 0.3 seconds"), ("huge", '{"text":"5"}', "4 MiB")],
)
def test_what_a_server_does_wrong_costs_its_call_and_the_chat_goes_on(
    serve_tools: Callable[..., Ask], tool: str, arguments: str, reason: str
) -> None:
    limits = {"mcp_call_timeout": 0.3} if tool == "silent" else {}
    ask = serve_tools((tool, (arguments,)), tools=f"{tool},add", **limits)
    answer = ask(stream=True)
    (failure,) = said(answer, "tool_call.failure")
    assert reason in failure["reason"] and failure["metadata"]["tool_name"] == tool
    called, message = said(answer, "chat.end")[0]["result"]["output"]
    assert reason in called["output"] and message["content"] == TEXT
    assert reason in generations(ask.server)[1]["messages"][-1]["content"]


def test_c4_garbage_wrong_ids_and_bursts_mislead_nobody(serve_tools: Callable[..., Ask]) -> None:
    ask = serve_tools(("garbage", ("{}",)), ADD, tools="garbage,add")
    first, second, _ = ask().json["output"]
    assert first["output"] == '[{"type":"text","text":"right"}]' and second["output"] == FIVE


def test_c4_output_without_end_costs_its_call_and_the_chat_goes_on(
    serve_tools: Callable[..., Ask], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lmlite.mcp.message.NOISE_BYTES_MAX", 8 << 20)
    ask = serve_tools(("endless", ("{}",)), tools="endless,add")
    called, message = ask().json["output"]
    assert "nobody asked for" in called["output"] and message["content"] == TEXT


def test_c5_tools_that_change_in_the_middle_of_a_chat_cost_the_calls_of_those_that_are_gone(
    serve_tools: Callable[..., Ask], caplog: pytest.LogCaptureFixture
) -> None:
    ask = serve_tools(("shrink", ("{}",)), ADD, tools="shrink,add", mcp_parallel=1)
    shrunk, gone, message = ask().json["output"]
    assert shrunk["output"] == '[{"type":"text","text":"shrunk"}]' and message["content"] == TEXT
    assert gone["type"] == "invalid_tool_call" and "Unknown tool: add" in gone["reason"]
    assert ask().json["output"][0]["metadata"] == {"type": "invalid_name", "tool_name": "shrink"}
    assert [tool["function"]["name"] for tool in generations(ask.server)[2]["tools"]] == ["late"]
    assert "its tools are others now: 'late'" in caplog.text


def test_c6_a_result_that_is_too_long_for_any_model_is_cut_and_says_so(serve_tools: Callable[..., Ask]) -> None:
    ask = serve_tools(("huge", ('{"text":"1"}',)), tools="huge")
    called, _ = ask().json["output"]
    told = generations(ask.server)[1]["messages"][-1]["content"]
    assert len(called["output"]) > 1 << 20 and told.endswith("more characters were cut off]") and len(told) < 300_000


def test_c1_one_that_dies_at_its_start_costs_those_who_ask_for_it(serve_tools: Callable[..., Ask], tmp_path: Path) -> None:
    ask = serve_tools()
    file = tmp_path / "home" / "mcp.json"
    servers = json.loads(file.read_text())["mcpServers"]
    servers["broken"] = {"command": sys.executable, "args": ["-c", "import sys; sys.exit('no licence')"]}
    file.write_text(json.dumps({"mcpServers": servers}))
    answer = ask(integrations=["mcp/calc", "mcp/broken"])
    error = answer.json["error"]
    assert (answer.status, error["type"], error["param"]) == (424, "plugin_connection_error", "integrations[1]")
    assert "no licence" in error["message"]
    assert ask().json["output"][0]["output"] == FIVE


def test_a_failure_of_the_tool_itself_is_what_it_gave(serve_tools: Callable[..., Ask]) -> None:
    ask = serve_tools(("fail", ('{"text":""}',)), tools="fail")
    called, _ = ask().json["output"]
    assert called["output"] == '[{"type":"text","text":"it went wrong"}]'
    assert generations(ask.server)[1]["messages"][-1]["content"] == "Error: it went wrong"


def test_c1_a_server_that_cannot_run_is_named(serve_tools: Callable[..., Ask], tmp_path: Path) -> None:
    ask = serve_tools()
    (tmp_path / "home" / "mcp.json").write_text('{"mcpServers": {"calc": {"command": "/nowhere/x"}}}')
    for stream in (False, True):
        answer = ask(stream=stream)
        error = answer.json["error"]
        told = (answer.status, error["type"], error["param"])
        assert told == (424, "plugin_connection_error", "integrations[0]") and "No such file" in error["message"]
    unknown = ask(integrations=["mcp/other"])
    assert (unknown.status, unknown.json["error"]["type"]) == (424, "plugin_connection_error")
    program(tmp_path / "home", calc={"tools": "add"})  # seen without a restart, and another server now
    assert ask().status == 200


@pytest.mark.parametrize("id", ["mcp/my-tools", "My Tools", "mcp/My Tools", "mcp/MY-TOOLS"])
def test_servers_are_found_by_their_label_and_by_lm_studios_spelling_of_it(
    serve_tools: Callable[..., Ask], tmp_path: Path, id: str
) -> None:
    ask = serve_tools()
    program(tmp_path / "home", My_Tools={"tools": "add"})
    called = ask(integrations=[id]).json["output"][0]
    assert called["tool"] == "add" and called["provider_info"]["plugin_id"] == "mcp/my-tools"


def test_lm_studios_own_file_counts_too(serve_tools: Callable[..., Ask], tmp_path: Path) -> None:
    ask = serve_tools()
    (tmp_path / "home" / "mcp.json").rename(tmp_path / "moved")
    (tmp_path / ".lmstudio").mkdir()
    (tmp_path / "moved").rename(tmp_path / ".lmstudio" / "mcp.json")
    assert ask().json["output"][0]["output"] == FIVE


def test_two_servers_with_a_tool_of_one_name_are_told_apart(serve_tools: Callable[..., Ask], tmp_path: Path) -> None:
    ask = serve_tools(("other__add", ('{"a":1}',)))
    program(tmp_path / "home", calc={"tools": "add"}, other={"tools": "add"})
    called, _ = ask(integrations=["mcp/calc", "mcp/other"]).json["output"]
    assert called["tool"] == "add" and called["provider_info"]["plugin_id"] == "mcp/other"
    assert [tool["function"]["name"] for tool in generations(ask.server)[0]["tools"]] == ["add", "other__add"]


def test_a_tool_that_is_called_as_its_neighbours_would_be_is_told_apart_from_them(
    serve_tools: Callable[..., Ask], tmp_path: Path
) -> None:
    ask = serve_tools(("b__add_2", ('{"a":1}',)))
    program(tmp_path / "home", a={"tools": "add,b__add"}, b={"tools": "add"})
    called, _ = ask(integrations=["mcp/a", "mcp/b"]).json["output"]
    assert (called["tool"], called["output"]) == ("add", '[{"type":"text","text":"1"}]')
    assert called["provider_info"]["plugin_id"] == "mcp/b"
    offered = [tool["function"]["name"] for tool in generations(ask.server)[0]["tools"]]
    assert offered == ["add", "b__add", "b__add_2"]


# ---- who may ---------------------------------------------------------------------------------------------------------


def test_a5_a_token_without_the_right_calls_no_tools(serve_tools: Callable[..., Ask], tmp_path: Path) -> None:
    ask = serve_tools()
    keys = Keys(tmp_path / "home")
    ask.token = bearer(keys.create("chatter", frozenset(("chat",))))
    keys.close()
    answer = ask()
    assert (answer.status, answer.json["error"]["code"]) == (403, "permission_denied")
    assert ask(integrations=[]).status == 200


def test_both_settings_are_off_and_the_servers_own_need_tokens(serve_fake: Serve, token: dict[str, str]) -> None:
    client = serve_fake(auth=True).client()
    stranger = {"type": "ephemeral_mcp", "server_label": "x", "server_url": "https://x.example/mcp"}
    for asked, option in (("mcp/calc", "--mcp."), (stranger, "--mcp-ephemeral.")):
        answer = client.post(CHAT, {**ASKED, "integrations": [asked]}, **token)
        assert answer.status == 403 and option in answer.json["error"]["message"]
    with pytest.raises(ConfigError, match="--auth"):
        serve_fake(mcp=True)


# ---- servers that a request brings along -----------------------------------------------------------------------------


@pytest.fixture
def web_server() -> Iterator[WebServer]:
    thread = LoopThread("test-tools")
    server = WebServer()
    stack = contextlib.AsyncExitStack()
    thread.call(stack.enter_async_context(server.serving()))
    yield server
    thread.call(stack.aclose())
    thread.close()


def stranger(server: WebServer, **more: Any) -> dict[str, Any]:
    return {"type": "ephemeral_mcp", "server_label": "wx", "server_url": server.url, **more}


def test_a_server_of_the_request_is_told_its_headers_and_never_the_callers_token(
    serve_fake: Serve, token: dict[str, str], web_server: WebServer, caplog: pytest.LogCaptureFixture
) -> None:
    server = serve_fake(Script(calls=(ADD,), call_rounds=1), auth=True, mcp_ephemeral=True, mcp_private=True)
    asked = {**ASKED, "integrations": [stranger(web_server, headers={"X-Key": "hush"}, allowed_tools=["add"])]}
    with caplog.at_level("DEBUG"):
        answer = server.client().post(CHAT, asked, **token)
    called, _ = answer.json["output"]
    assert (called["tool"], called["provider_info"]) == ("add", {"type": "ephemeral_mcp", "server_label": "wx"})
    assert {heard.headers["x-key"] for heard in web_server.heard} == {"hush"}
    assert not any("authorization" in heard.headers for heard in web_server.heard)
    assert "hush" not in caplog.text
    server.close()
    state = b"".join(path.read_bytes() for path in Home(server.config.home).state.parent.glob("state.sqlite3*"))
    assert answer.json["response_id"].encode() in state and b"hush" not in state


def test_c9_a_url_that_leads_here_is_refused_unless_the_operator_allows_it(
    serve_fake: Serve, token: dict[str, str], web_server: WebServer
) -> None:
    client = serve_fake(auth=True, mcp_ephemeral=True).client()
    for stream in (False, True):
        answer = client.post(CHAT, {**ASKED, "stream": stream, "integrations": [stranger(web_server)]}, **token)
        error = answer.json["error"]
        assert (answer.status, error["type"]) == (403, "mcp_connection_error")
        assert "URL resolves to a non-public address." in error["message"] and "key=k" not in error["message"]
    assert web_server.heard == []


@pytest.mark.parametrize("name", ["Host", "content-length", "Transfer-Encoding", "CONNECTION", "Mcp-Session-Id", "a b"])
def test_headers_that_are_not_the_requests_to_set_are_named(
    serve_fake: Serve, token: dict[str, str], web_server: WebServer, name: str
) -> None:
    client = serve_fake(auth=True, mcp_ephemeral=True, mcp_private=True).client()
    for headers in ({name: "x"}, {"X-Ok": "a\r\nb: c"}):
        asked = {**ASKED, "integrations": [stranger(web_server, headers=headers)]}
        error = client.post(CHAT, asked, **token).json["error"]
        assert error["param"] == "integrations[0].headers" and next(iter(headers)) in error["message"]


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ([5], "integrations[0]"),
        (["mcp/"], "integrations[0]"),
        ([{"type": "plugin"}], "integrations[0].id"),
        ([{"type": "web"}], "integrations[0].type"),
        ([{"type": "plugin", "id": "a", "server_url": "b"}], "server_url"),
        (["mcp/a", "a"], "integrations[1]"),
        ([{"type": "ephemeral_mcp", "server_label": "a", "server_url": "ftp://x"}], "integrations[0].server_url"),
        ([{"type": "plugin", "id": "a", "allowed_tools": [1]}], "integrations[0].allowed_tools[0]"),
    ],
)
def test_what_no_integration_can_be_is_named(fake_server: FakeServer, given: Any, param: str) -> None:
    answer = fake_server.client().post(CHAT, {**ASKED, "integrations": given})
    assert (answer.status, answer.json["error"]["param"]) == (400, param)


def await_true(question: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not question():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_client_that_leaves_ends_the_call(serve_fake: Serve, token: dict[str, str], web_server: WebServer) -> None:
    web_server.answers["tools/call"] = b""
    server = serve_fake(Script(calls=(ADD,), call_rounds=1), auth=True, mcp_ephemeral=True, mcp_private=True)
    client = server.client()
    response = client.start("POST", CHAT, {**ASKED, "stream": True, "integrations": [stranger(web_server)]}, token)
    await_true(lambda: bool(web_server.said("tools/call")))
    response.close()
    client.close()
    await_true(web_server.left.is_set)
    assert len(generations(server)) == 1


def test_a_program_is_told_that_its_call_is_cancelled_when_the_client_leaves(
    serve_tools: Callable[..., Ask], tmp_path: Path
) -> None:
    ask = serve_tools(("silent", ("{}",)), tools="silent")
    response = ask.client.start("POST", CHAT, {**ASKED, "stream": True}, ask.token)
    heard = tmp_path / "heard"
    await_true(lambda: heard.exists() and "tools/call" in heard.read_text())
    response.close()
    ask.client.close()
    await_true(lambda: "notifications/cancelled" in heard.read_text())
    assert len(generations(ask.server)) == 1


def test_a_tool_that_tells_of_its_progress_has_longer_than_one_that_says_nothing(serve_tools: Callable[..., Ask]) -> None:
    ask = serve_tools(("progress", ('{"text":"30"}',)), tools="progress", mcp_call_timeout=2)
    called, message = ask().json["output"]
    assert called["output"] == '[{"type":"text","text":"done"}]' and message["content"] == TEXT


def test_while_a_tool_runs_no_place_of_the_model_is_taken(
    serve_fake: Serve, token: dict[str, str], web_server: WebServer
) -> None:
    web_server.answers["tools/call"] = b""
    server = serve_fake(Script(calls=(ADD,), call_rounds=1), auth=True, mcp_ephemeral=True, mcp_private=True, parallel=1)
    waiting = server.client().start("POST", CHAT, {**ASKED, "stream": True, "integrations": [stranger(web_server)]}, token)
    await_true(lambda: bool(web_server.said("tools/call")))
    (instance,) = server.client().get("/lmlite/instances", **token).json["instances"]
    assert instance["status"] == "idle"
    other = server.client().post(CHAT, {**ASKED, "integrations": []}, **token)
    assert other.status == 200
    unloaded = server.client().post("/api/v1/models/unload", {"instance_id": "talker"}, **token)
    assert unloaded.status == 200  # and nobody has to wait for the tool
    waiting.close()


# ---- the real engine -------------------------------------------------------------------------------------------------


def test_the_bundled_model_calls_a_tool_and_its_second_round_comes_from_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token: dict[str, str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    home = tmp_path / "home"
    program(home, calc={"tools": "add"})
    with Server(port=0, home=home, auth=True, mcp=True) as server:
        client = Client(server.port)
        body = {"model": "lmlite-tiny", "temperature": 0, "input": "Add 2 and 3.", "integrations": ["mcp/calc"]}
        whole = client.post(CHAT, body, **token).json
        called, message = whole["output"]
        assert (called["arguments"], called["output"]) == ({"a": 2, "b": 3}, FIVE) and "5" in message["content"]
        streamed = client.post(CHAT, {**body, "stream": True}, **token)
        assert said(streamed, "chat.end")[0]["result"]["output"] == whole["output"]
        told = [payload["progress"] for payload in said(streamed, "prompt_processing.progress")]
        second = told[told.index(1.0) + 1 :]
        assert second[0] > 0.8  # all but the result was computed before
        previous = {"previous_response_id": whole["response_id"]}
        later = client.post(CHAT, {**body, **previous, "input": "And 1 more?", "stream": True}, **token)
        assert said(later, "prompt_processing.progress")[0]["progress"] > 0.5
        client.close()
