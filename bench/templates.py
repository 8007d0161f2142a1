"""What models see: the prompts of 20 conversations by each of llama.cpp's chat templates, beside llama-server's.

`python bench/templates.py [NAME ...]` prints where lmlite writes another prompt than `POST /apply-template` of llama-server,
counted by reason, and exits with 1 if a difference has none. The names choose templates. Both have the bundled model, whose
vocabulary knows none of the marks: here only the text counts.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import peers
from lmlite.api.openai.chat import parse_chat
from lmlite.core.engine.client import Engine
from lmlite.core.engine.payloads import LoadSettings, LoadSpec
from lmlite.core.engine.worker import Process
from lmlite.errors import LmError
from lmlite.package import bundled_model
from lmlite.request import Chat

Body = dict[str, Any]
REFUSED = None
"""Stands for the prompt of a conversation that was not taken."""


def tool(name: str) -> Body:
    parameters = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    return {"type": "function", "function": {"name": name, "description": f"Tells the {name}", "parameters": parameters}}


def said(role: str, content: Any, **more: Any) -> Body:
    return {"role": role, "content": content, **more}


def call(id: str, name: str, arguments: str = '{"city": "Turin"}') -> Body:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def parts(*texts: str) -> list[Body]:
    return [{"type": "text", "text": text} for text in texts]


USER, SYSTEM, ANSWER = said("user", "Hello there"), said("system", "Speak plainly."), said("assistant", "Good day.")
THEN, LATER = said("user", "And then?"), said("system", "Now in rhymes.")
ONE = said("assistant", "", tool_calls=[call("call00001", "weather")])
TWO = said("assistant", "", tool_calls=[call("call00001", "weather"), call("call00002", "clock")])
FOREIGN = "toolu_01-x"
RAIN, NOON = said("tool", "rain", tool_call_id="call00001"), said("tool", "noon", tool_call_id="call00002")
THOUGHT = said("assistant", "Good day.", reasoning_content="A greeting calls for one.")
TOOLS = [tool("weather"), tool("clock")]

TALKS: dict[str, list[Body]] = {
    "a question": [USER],
    "instructions": [SYSTEM, USER],
    "three turns": [SYSTEM, USER, ANSWER, THEN],
    "two instructions": [SYSTEM, LATER, USER],
    "instructions later": [USER, ANSWER, LATER, THEN],
    "two questions": [USER, THEN],
    "an answer first": [ANSWER, THEN],
    "an empty answer": [USER, said("assistant", ""), THEN],
    "parts": [said("user", parts("Hello", "there"))],
    "parts of instructions": [said("system", parts("Speak", "plainly.")), USER],
    "thought before": [USER, THOUGHT, THEN],
    "a schema of marks": [said("user", "Say <tool_call> and [INST].")],
}
CALLS: dict[str, list[Body]] = {
    "tools": [USER],
    "a call": [USER, ONE, RAIN],
    "a call and an answer": [USER, ONE, RAIN, ANSWER, THEN],
    "two calls": [USER, TWO, RAIN, NOON],
    "a call with words": [USER, {**ONE, "content": "One moment."}, RAIN],
    "a call that was thought about": [USER, {**ONE, "reasoning_content": "It asks for weather."}, RAIN],
    "another server's ids": [USER, {**ONE, "tool_calls": [call(FOREIGN, "weather")]}, {**RAIN, "tool_call_id": FOREIGN}],
    "a result of no call": [USER, {**RAIN, "tool_call_id": "call00009"}],
}  # fmt: skip


def bodies() -> dict[str, Body]:
    talks = {name: {"messages": messages} for name, messages in TALKS.items()}
    return talks | {name: {"messages": messages, "tools": TOOLS} for name, messages in CALLS.items()}


# ---- the two sides ---------------------------------------------------------------------------------------------------


async def ours(template: Path) -> dict[str, str | None]:
    settings = LoadSettings(context_length=2048, threads=1, chat_template=template.read_text(encoding="utf-8"))
    engine = await Engine.open(Process(), template.stem)
    try:
        await engine.load(LoadSpec((bundled_model(),), settings))
        return {name: await rendered(engine, body) for name, body in bodies().items()}
    finally:
        await engine.close()


async def rendered(engine: Engine, body: Body) -> str | None:
    chat = parse_chat(body).turn.runs[0].prompt
    assert isinstance(chat, Chat)
    try:
        return await engine.render(chat)
    except LmError:
        return REFUSED


def theirs(template: Path) -> tuple[dict[str, str | None], dict[str, str | None]]:
    """As the conversations are, and with the tools' names on their results."""
    flags = ("--jinja", "--chat-template-file", template, "-c", 2048, "-t", 1, "-np", 1, "--no-warmup", "--no-repack")
    with peers.llama_server(bundled_model(), *flags) as server:
        plain = {name: asked(server.port, body) for name, body in bodies().items()}
        return plain, {name: asked(server.port, named(body)) for name, body in bodies().items()}


def named(body: Body) -> Body:
    names = {call["id"]: call["function"]["name"] for message in body["messages"] for call in message.get("tool_calls", ())}
    messages = [
        {**message, "name": names[message["tool_call_id"]]} if message.get("tool_call_id") in names else message
        for message in body["messages"]
    ]
    return {**body, "messages": messages}


def asked(port: int, body: Body) -> str | None:
    request = urllib.request.Request(f"http://127.0.0.1:{port}/apply-template", json.dumps(body).encode())
    request.add_header("Content-Type", "application/json")
    try:
        with urllib.request.urlopen(request) as answer:
            return str(json.loads(answer.read())["prompt"])
    except urllib.error.HTTPError:
        return REFUSED


# ---- why they differ -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    template: str
    talk: str
    ours: str | None
    theirs: str | None
    named: str | None  # theirs, with the tools' names on their results

    @property
    def body(self) -> Body:
        return bodies()[self.talk]

    def texts(self) -> list[str]:
        """What a prompt must have of the conversation."""
        contents = [message["content"] for message in self.body["messages"]]
        return [text for content in contents for text in texts_of(content)]


def texts_of(content: Any) -> list[str]:
    return [content] if isinstance(content, str) else [part["text"] for part in content]


def reason(difference: Difference) -> str | None:
    """The first that holds; None: there is none, and something is wrong."""
    mine, other = difference.ours, difference.theirs
    if mine is REFUSED:
        return None
    if other is REFUSED:
        return "llama-server refuses the conversation; here it is given in a form that the template takes"
    if any(text not in other and text in mine for text in difference.texts()):
        return "llama-server's prompt leaves out what somebody said"
    if "tools" in difference.body:
        if "[TOOL_REQUEST]" in mine:
            return "the template lists no tools: LM Studio's default format instead of none, or of a foreign one"
        if any(text not in other and text in mine for text in ("Tells the weather", "Turin")):
            return "llama-server's prompt lists no tools, or leaves out a call that was made"
        if mine == difference.named:
            return "the template writes the name of the tool that gave a result, which clients leave out and we look up"
    if any("reasoning_content" in message and message["reasoning_content"] in mine for message in difference.body["messages"]):
        return "the template keeps thoughts in a field of its own, which llama-server does not fill"
    return None


def report(differences: Iterable[Difference], n_prompts: int) -> int:
    why = Counter[str]()
    where: dict[str, set[str]] = {}
    unexplained = 0
    for difference in differences:
        found = reason(difference)
        if found is None:
            unexplained += 1
            print(f"{difference.template}, {difference.talk}:", file=sys.stderr)
            print(f" ours {difference.ours!r}\n theirs {difference.theirs!r}", file=sys.stderr)
        else:
            why[found] += 1
            where.setdefault(found, set()).add(difference.template)
    print(f"{n_prompts} prompts, {n_prompts - sum(why.values()) - unexplained} the same")
    for found, count in why.most_common():
        print(f"{count} of {len(where[found])} templates: {found}\n    {', '.join(sorted(where[found]))}")
    return 1 if unexplained else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="parts of templates' names; all if none is given")
    names = parser.parse_args().names or [""]
    files = [file for file in sorted(peers.templates().glob("*.jinja")) if any(name in file.stem for name in names)]
    differences = []
    for file in files:
        mine, (other, named) = asyncio.run(ours(file)), theirs(file)
        differences += [
            Difference(file.stem, talk, mine[talk], other[talk], named[talk]) for talk in mine if mine[talk] != other[talk]
        ]
    return report(differences, len(files) * len(bodies()))


if __name__ == "__main__":
    raise SystemExit(main())
