"""A program that serves tools on its streams, as well or as badly as its arguments say: `program.py KEY=VALUE...`.

    era=legacy|modern     silent=METHOD (says nothing to it)      note=FILE (a line for each thing that it hears)
    tools=NAME,NAME       page=N (tools per page)                 children=FILE (starts a child and a grandchild, tells pids)
    odd=1 (tools that nobody can be told of, besides)
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from typing import Any

OPTIONS = dict(argument.split("=", 1) for argument in sys.argv[1:])
ERA = OPTIONS.get("era", "legacy")
NAMES = OPTIONS.get("tools", "add").split(",")
TEXT = {"type": "object", "properties": {"text": {"type": "string"}}, }
SCHEMAS = {"add": {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}, "required": ["a"]}}


def say(message: object) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def note(text: str) -> None:
    if "note" in OPTIONS:
        with open(OPTIONS["note"], "a") as stream:
            stream.write(text + "\n")


def result(id: object, value: dict[str, Any]) -> None:
    say({"jsonrpc": "2.0", "id": id, "result": {"resultType": "complete", **value} if ERA == "modern" else value})


def text(id: object, said: str, **more: object) -> None:
    result(id, {"content": [{"type": "text", "text": said}], **more})


def start_children() -> None:
    script = "import subprocess,sys,time; p=subprocess.Popen([sys.executable,'-c','import time; time.sleep(60)'],"
    script += f"start_new_session=True); open({OPTIONS['children']!r},'a').write(f'{{p.pid}}\\n'); time.sleep(60)"
    child = subprocess.Popen([sys.executable, "-c", script])
    with open(OPTIONS["children"], "a") as stream:
        stream.write(f"{os.getpid()}\n{child.pid}\n")


def list_tools(id: object, params: dict[str, Any]) -> None:
    tools = [{"name": name, "description": f"it does {name}", "inputSchema": SCHEMAS.get(name, TEXT)} for name in NAMES]
    if "odd" in OPTIONS:
        tools += [
            {"name": "echo", "description": "another of that name"},
            {"name": "two\nlines", "inputSchema": TEXT},
            {"name": "n" * 129, "inputSchema": TEXT},
            {"description": "it has no name"},
            {"name": "wordy", "description": "x" * (1 << 20), "inputSchema": TEXT},
            {"name": "deep", "inputSchema": {"properties": {str(n): {"type": "string"} for n in range(20_000)}}},
            {"name": "plain"},
        ]
    size = int(OPTIONS.get("page", "1000"))
    begin = int(params.get("cursor", "0"))
    more = {"nextCursor": str(begin + size)} if begin + size < len(tools) else {}
    result(id, {"tools": tools[begin : begin + size], **more})


def call(id: Any, name: str, arguments: dict[str, Any], token: object) -> None:
    if name not in NAMES:
        say({"jsonrpc": "2.0", "id": id, "error": {"code": -32602, "message": f"Unknown tool: {name}"}})
    elif name == "add":
        text(id, str(arguments["a"] + arguments.get("b", 0)))
    elif name == "echo":
        text(id, arguments["text"])
    elif name == "cut":  # as JavaScript does it, within a character
        text(id, arguments["text"] + "\ud83d")
    elif name == "look":
        picture = {"type": "image", "mimeType": "image/png", "data": "iVBORw0KGgo="}
        result(id, {"content": [{"type": "text", "text": arguments["text"]}, picture, {**picture, "data": "no base64"}]})
    elif name == "slow":
        time.sleep(float(arguments["text"]))
        text(id, "slept")
    elif name == "progress":  # says so N times, a moment apart; "x" means without end
        for n in itertools.count() if arguments["text"] == "x" else range(int(arguments["text"])):
            say({"jsonrpc": "2.0", "method": "notifications/progress", "params": {"progressToken": token, "progress": n}})
            time.sleep(0.1)
        text(id, "done")
    elif name == "fail":
        text(id, "it went wrong", isError=True)
    elif name == "crash":
        print("last words", file=sys.stderr, flush=True)
        os._exit(3)
    elif name == "silent":
        pass
    elif name == "huge":
        piece = "x" * (1 << 20)
        sys.stdout.write('{"jsonrpc":"2.0","id":' + json.dumps(id) + ',"result":{"content":[{"type":"text","text":"')
        for _ in range(int(arguments["text"])):
            sys.stdout.write(piece)
        sys.stdout.write('"}]}}\n')
        sys.stdout.flush()
    elif name == "endless":
        while True:
            sys.stdout.write("x" * (1 << 16))
    elif name == "empty":  # lines without end
        while True:
            sys.stdout.write("\n" * (1 << 16))
    elif name == "lists":  # so many, all empty
        say({"jsonrpc": "2.0", "id": id, "result": {"content": [], "more": [[]] * int(arguments["text"])}})
    elif name == "garbage":
        sys.stdout.write("\x00\x01 no json\n{\n[1,2]\n\n{\"id\":\"x\"}\n")
        for wrong in (999, "1", None, id + 1000):
            text(wrong, "wrong")
        text(id, "right")
        text(id, "again")
    elif name == "asks":
        say({"jsonrpc": "2.0", "id": "q1", "method": "sampling/createMessage", "params": {}})
        say({"jsonrpc": "2.0", "id": "q2", "method": "ping"})
        answers = [json.loads(sys.stdin.readline()) for _ in range(2)]
        text(id, json.dumps([sorted(answer) for answer in answers]))
    elif name == "grow":
        NAMES.append("late")
        say({"jsonrpc": "2.0", "method": "notifications/tools/list_changed"})
        text(id, "grown")
    elif name == "shrink":
        NAMES[:] = ["late"]
        say({"jsonrpc": "2.0", "method": "notifications/tools/list_changed"})
        text(id, "shrunk")
    elif name == "environment":
        text(id, json.dumps(dict(os.environ)))
    elif name == "refuse":
        say({"jsonrpc": "2.0", "id": id, "error": {"code": -32602, "message": "not so"}})
    elif name == "input":
        result(id, {"resultType": "input_required"})
    else:
        text(id, f"what is {name}?", isError=True)


def main() -> None:
    if "children" in OPTIONS:
        start_children()
    for line in sys.stdin:
        message = json.loads(line)
        method, id, params = message.get("method"), message.get("id"), message.get("params") or {}
        note(f"{method} {json.dumps(params)}")
        if method == OPTIONS.get("silent"):
            continue
        if method == "server/discover":
            if ERA == "modern":
                result(id, {"supportedVersions": ["2026-07-28"], "capabilities": {}})
            else:
                say({"jsonrpc": "2.0", "id": id, "error": {"code": -32601, "message": "no such method"}})
        elif method == "initialize":
            result(id, {"protocolVersion": "2025-06-18", "capabilities": {}, "serverInfo": {"name": "t", "version": "1"}})
        elif method == "tools/list":
            list_tools(id, params)
        elif method == "tools/call":
            call(id, params["name"], params["arguments"], params.get("_meta", {}).get("progressToken"))
    note("end of input")
    if "stubborn" in OPTIONS:
        time.sleep(60)


main()
