"""Requests like those that Codex sends, of our own making: their headers, fields, items and tools, and their size."""

from __future__ import annotations

from typing import Any

from . import claude_code

HEADERS = {
    "Accept": "text/event-stream",
    "Authorization": "Bearer any",
    "User-Agent": "codex_cli_rs/0.98.0 (Linux; x86_64)",
    "originator": "codex_cli_rs",
    "session_id": "0199a213-81c0-7800-8aa1-bbab2a035a53",
}
PATH = "/v1/responses"

PATCH = {
    "type": "grammar",
    "syntax": "lark",
    "definition": 'start: "*** Begin Patch" LF hunk+ "*** End Patch" LF?\nhunk: "*** Add File: " /.+/ LF\n',
}
CLOUD: list[dict[str, Any]] = [
    {"type": "local_shell"},
    {"type": "web_search", "external_web_access": False},
    {"type": "image_generation", "output_format": "png"},
    {"type": "tool_search", "execution": "client", "parameters": {}},
]
"""Ends in nothing here."""


def tools(small: bool = False) -> list[dict[str, Any]]:
    """Functions, one for free text, those of a tool server in a namespace, and what only a cloud can run."""
    functions = [
        {
            "type": "function",
            "name": tool["name"],
            "description": tool["description"],
            "strict": False,
            "parameters": tool["input_schema"],
        }
        for tool in claude_code.tools(small)
    ]
    namespace = {"type": "namespace", "name": "mcp__docs", "description": "Documents.", "tools": functions[-1:]}
    custom = {"type": "custom", "name": "apply_patch", "description": "Edits files.", "format": PATCH}
    return [*functions[:-1], custom, namespace, *CLOUD]


def body(items: list[dict[str, Any]], *, small: bool = False, **more: Any) -> dict[str, Any]:
    rules = "\n".join(f"- {claude_code.RULES[i % len(claude_code.RULES)]}" for i in range(1 if small else 90))
    return {
        "model": "codex",
        "instructions": f"You are a coding agent.\n\n# How to work\n{rules}",
        "input": [*context(), *items],
        "tools": tools(small),
        "tool_choice": "auto",
        "parallel_tool_calls": False,
        "reasoning": {"effort": "medium", "summary": "auto"},
        "store": False,
        "stream": True,
        "include": ["reasoning.encrypted_content"],
        "prompt_cache_key": HEADERS["session_id"],
        "text": {"verbosity": "medium"},
        "client_metadata": {"x-codex-installation-id": "0"},
        **more,
    }


def context() -> list[dict[str, Any]]:
    """What the program says first."""
    folder = "<environment_context>\n  <cwd>/home/me/project</cwd>\n  <shell>bash</shell>\n</environment_context>"
    return [message("developer", "<permissions instructions>Ask.</permissions instructions>"), message("user", folder)]


def message(role: str, words: str) -> dict[str, Any]:
    return {"type": "message", "role": role, "content": [{"type": "input_text", "text": words}]}


def sent_back(output: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The items of an answer as they come in the next request: without what only an answer has."""
    kept = []
    for item in output:
        item = {name: value for name, value in item.items() if name not in ("id", "status")}
        if item["type"] == "reasoning":
            item["content"] = None
        kept.append(item)
    return kept


def results(output: list[dict[str, Any]], words: str) -> list[dict[str, Any]]:
    """What answers all calls."""
    calls = [item for item in output if item["type"] in ("function_call", "custom_tool_call")]
    return [{"type": f"{call['type']}_output", "call_id": call["call_id"], "output": words} for call in calls]


def preload(model: str) -> dict[str, Any]:
    """What is asked so that the model is there when the user has typed something."""
    return {"model": model, "input": [], "max_output_tokens": 1, "store": False}
