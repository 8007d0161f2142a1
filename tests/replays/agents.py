"""Requests like those that Codex, Zed, Cline, Continue and opencode send, of our own making: their headers, fields and habits.

Each is one of `tests.voices` and what its client adds; tools and rules of real size are those of `claude_code`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.replays import claude_code
from tests.voices import CHAT, RESPONSES, V0, Message, Voice

WEATHER = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"], "additionalProperties": False}


@dataclass(frozen=True)
class Agent:
    """`more` is in each body; `habit` changes what `voice` makes of the conversation; `lists` is where it looks for models."""

    name: str
    voice: Voice
    lists: str
    more: Mapping[str, Any]
    limit: str
    """What it calls the number of tokens that it wants at most."""
    habit: Callable[[dict[str, Any], bool], dict[str, Any]]
    """Of a body, and whether its tools are few."""
    headers: Mapping[str, str] = field(default_factory=dict)

    def body(self, messages: Sequence[Message], limit: int, *, small: bool = False) -> dict[str, Any]:
        tools = functions(small)
        body = {**self.voice.body(messages, tools, None), **self.more, self.limit: limit, "stream": True}
        return self.habit(body, small)


def functions(small: bool) -> list[dict[str, Any]]:
    """In the shape of OpenAI's chats; a single small one."""
    if small:
        function = {"name": "get_weather", "description": "Get the weather in a city", "parameters": WEATHER}
        return [{"type": "function", "function": function}]
    made = [(tool["name"], tool["description"], tool["input_schema"]) for tool in claude_code.tools()]
    return [
        {"type": "function", "function": {"name": name, "description": about, "parameters": schema}}
        for name, about, schema in made
    ]


def rules(n: int) -> str:
    return "You are a coding agent.\n" + "\n".join(f"- {claude_code.RULES[i % len(claude_code.RULES)]}" for i in range(n))


# ---- habits ----------------------------------------------------------------------------------------------------------


def codex(body: dict[str, Any], small: bool) -> dict[str, Any]:
    """The rules are instructions, what is allowed comes from a developer, thoughts come back encrypted, and beside functions
    there are tools of free text, of a cloud and of servers with names of their own."""
    system, *items = body["input"]
    allowed = {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "Writing is allowed."}]}
    place = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "<cwd>/home/me</cwd>"}]}
    for item in items:
        if item.get("role") == "user":
            item |= {"type": "message", "content": [{"type": "input_text", "text": item["content"]}]}
    tools = [{**tool, "strict": False} for tool in body["tools"]]
    if not small:
        patch = {"type": "grammar", "syntax": "lark", "definition": 'start: "*** Begin Patch" /(.|\\n)*/ "*** End Patch"'}
        served = {"type": "function", "name": "lookup", "description": "Looks up.", "strict": False, "parameters": WEATHER}
        tools += [
            {"type": "custom", "name": "apply_patch", "description": "Changes files by a patch.", "format": patch},
            {"type": "web_search", "external_web_access": False},
            {"type": "namespace", "name": "mcp__docs__", "description": "Documents.", "tools": [served]},
        ]
    return {**body, "instructions": system["content"], "input": [*([] if small else [allowed, place]), *items], "tools": tools}


def zed(body: dict[str, Any], small: bool) -> dict[str, Any]:
    """Contents are arrays, empty ones where nothing was said beside a call."""
    messages = [
        {**message, "content": [{"type": "text", "text": message["content"]}] if message["content"] else []}
        if message["role"] in ("user", "assistant")
        else message
        for message in body["messages"]
    ]
    return {**body, "messages": messages}


def cline(body: dict[str, Any], small: bool) -> dict[str, Any]:
    """What is said of where it works is a part of its own behind what the user says."""
    place = {"type": "text", "text": "<environment_details>\n# Visible files\na.py\n</environment_details>"}
    messages = [
        {**message, "content": [{"type": "text", "text": message["content"]}, place]}
        if message["role"] == "user" and not small
        else message
        for message in body["messages"]
    ]
    return {**body, "messages": messages}


def plain(body: dict[str, Any], small: bool) -> dict[str, Any]:
    """No content at all beside calls."""
    messages = [
        {**message, "content": None} if message.get("tool_calls") and not message["content"] else message
        for message in body["messages"]
    ]
    return {**body, "messages": messages}


def opencode(body: dict[str, Any], small: bool) -> dict[str, Any]:
    """Its rules are two system messages."""
    first, *others = body["messages"]
    system = [{"role": "system", "content": text} for text in first["content"].split("\n", 1)]
    return {**body, "messages": [*system, *others]}


AGENTS = (
    Agent(
        "codex",
        RESPONSES,
        "/v1/models",
        {
            "tool_choice": "auto",
            "parallel_tool_calls": False,
            "reasoning": {"effort": "medium", "summary": "auto"},
            "store": False,
            "include": ["reasoning.encrypted_content"],
            "prompt_cache_key": "0199a213-81c0-7800-8aa1-bbab2a035a53",
            "text": {"verbosity": "low"},
            "client_metadata": {"x-codex-installation-id": "0199a213"},
        },
        "max_output_tokens",
        codex,
        {"Accept": "text/event-stream", "originator": "codex_cli_rs", "User-Agent": "codex_cli_rs/0.99.0 (Linux 6.1; x86_64)",
         "session_id": "0199a213-81c0-7800-8aa1-bbab2a035a53", "Authorization": "Bearer any"},
    ),
    Agent(
        "zed",
        V0,
        "/api/v0/models",
        {"temperature": 1.0, "stop": [], "tool_choice": "auto", "stream_options": {"include_usage": True}},
        "max_tokens",
        zed,
        {"User-Agent": "Zed/0.211.0 (linux; x86_64)"},
    ),
    Agent(
        "cline",
        V0,
        "/api/v0/models",
        {"temperature": 0, "stream_options": {"include_usage": True}, "tool_choice": "auto", "parallel_tool_calls": False},
        "max_completion_tokens",
        cline,
        {"HTTP-Referer": "https://cline.bot", "X-Title": "Cline", "Authorization": "Bearer noop"},
    ),
    Agent(
        "continue",
        CHAT,
        "/v1/models",
        {"temperature": 0.0, "stop": ["</s>"], "parallel_tool_calls": False, "stream_options": {"include_usage": True}},
        "max_tokens",
        plain,
        {"Authorization": "Bearer any", "api-key": "any"},
    ),
    Agent(
        "opencode",
        CHAT,
        "/api/v1/models",
        {"temperature": 0.55, "top_p": 1, "tool_choice": "auto", "stream_options": {"include_usage": True}},
        "max_tokens",
        opencode,
        {"Authorization": "Bearer any", "User-Agent": "ai-sdk/openai-compatible/1.0.22 ai-sdk/provider-utils/3.0.20"},
    ),
)  # fmt: skip
