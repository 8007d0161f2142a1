"""Shows that litellm.yaml does what litellm.md says, with two nodes on this machine: a streamed chat, a call of a tool,
embeddings, Anthropic's route, stored responses that go on, sessions that stay, and one node stopped.

    python deploy/try_litellm.py [--litellm PROGRAM]

Prints one JSON object; exit code 1 if something is not so. Needs lmlite's test requirements (it writes an embedding model).
"""

from __future__ import annotations

import argparse
import http.client
import json
import signal
import sys
import tempfile
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from conversations import ROOT, free_port, node, running, until_ready

sys.path.append(str(ROOT))

from tests.random_models import write_bert  # noqa: E402

KEY = "sk-of-this-run"
NODES = {"a": 1241, "b": 1242}
WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
}
ANYTHING = {"model": "lmlite-tiny", "input": "Hello!", "max_output_tokens": 20}
QUESTION = "What is the weather in Turin?"


class Proxy:
    def __init__(self, port: int):
        self._port = port

    def ask(
        self, path: str, body: dict[str, Any] | None = None, method: str = "POST", **headers: str
    ) -> tuple[int, str, str]:
        """Status, text, and the deployment that LiteLLM says it was."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=120)
        known = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}", "anthropic-version": "2023-06-01"}
        connection.request(method, path, None if body is None else json.dumps(body), {**known, **headers})
        answer = connection.getresponse()
        text = answer.read().decode()
        return answer.status, text, answer.headers.get("x-litellm-model-id", "")

    def chat(self, words: str, session: str = "", **more: Any) -> tuple[int, Any, str]:
        headers = {"x-litellm-session-id": session} if session else {}
        body = {"model": "lmlite-tiny", "messages": [{"role": "user", "content": words}], "temperature": 0, **more}
        status, text, where = self.ask("/v1/chat/completions", body, **headers)
        return status, text if more.get("stream") else json.loads(text), where


def streamed(proxy: Proxy) -> bool:
    status, text, _ = proxy.chat("Hello!", stream=True, max_tokens=50, ignore_eos=True)
    return status == 200 and text.rstrip().endswith("data: [DONE]") and text.count("data: {") > 3


def calls_a_tool(proxy: Proxy) -> bool:
    function = {"name": "get_weather", "description": "Get the weather in a city", "parameters": WEATHER}
    status, said, _ = proxy.chat(QUESTION, tools=[{"type": "function", "function": function}])
    call = said["choices"][0]["message"]["tool_calls"][0]["function"]
    return status == 200 and call["name"] == "get_weather" and json.loads(call["arguments"]) == {"city": "Turin"}


def embeds(proxy: Proxy) -> bool:
    status, text, _ = proxy.ask("/v1/embeddings", {"model": "letters", "input": ["hello", "world"]})
    return status == 200 and [len(item["embedding"]) > 8 for item in json.loads(text)["data"]] == [True, True]


def speaks_anthropic(proxy: Proxy) -> dict[str, bool]:
    tool = {"name": "get_weather", "description": "Get the weather in a city", "input_schema": WEATHER}
    body = {"model": "lmlite-tiny", "max_tokens": 100, "messages": [{"role": "user", "content": QUESTION}], "tools": [tool]}
    status, text, _ = proxy.ask("/v1/messages", body)
    calls = [block for block in json.loads(text).get("content", []) if block["type"] == "tool_use"]
    _, stream, _ = proxy.ask("/v1/messages", {**body, "stream": True})
    return {
        "whole": status == 200 and bool(calls) and calls[0]["input"] == {"city": "Turin"},
        "streamed": "message_stop" in stream and "input_json_delta" in stream,
    }


def goes_on(proxy: Proxy) -> dict[str, Any]:
    """Stored responses, each gone on from by its id."""
    found: Counter[str] = Counter()
    for _ in range(10):
        status, text, first = proxy.ask("/v1/responses", ANYTHING)
        then = {**ANYTHING, "input": "And?", "previous_response_id": json.loads(text)["id"]}
        again, text, second = proxy.ask("/v1/responses", then)
        found["answered" if (status, again) == (200, 200) else f"{again}: {text[:200]}"] += 1
        found["by the node that has it"] += first == second != ""
        found[f"on {second}"] += 1
    return dict(found)


def reads_and_deletes(proxy: Proxy) -> bool:
    _, text, _ = proxy.ask("/v1/responses", ANYTHING)
    path = f"/v1/responses/{json.loads(text)['id']}"
    read, _, _ = proxy.ask(path, method="GET")
    deleted, _, _ = proxy.ask(path, method="DELETE")
    return (read, deleted) == (200, 200)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--litellm", default="litellm")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as made, ExitStack() as stack:
        folder, port = Path(made), free_port()
        model = write_bert(folder / "letters.gguf")
        text, nodes = (ROOT / "deploy" / "litellm.yaml").read_text(encoding="utf-8"), {}
        for name, written in NODES.items():
            found = free_port()
            text = text.replace(f"http://127.0.0.1:{written}/", f"http://127.0.0.1:{found}/")
            nodes[name] = stack.enter_context(node(name, found, folder, "--drain-delay", "0", str(model)))
        (folder / "litellm.yaml").write_text(text)
        command = [arguments.litellm, "--config", str(folder / "litellm.yaml"), "--host", "127.0.0.1", "--port", str(port)]
        stack.enter_context(running(command, LITELLM_MASTER_KEY=KEY, LM_API_TOKEN="any", LITELLM_LOCAL_MODEL_COST_MAP="True"))
        until_ready(port, "/health/liveliness")
        proxy = Proxy(port)
        spread = Counter(proxy.chat(f"Hello {i}!", max_tokens=5)[2] for i in range(20))
        sessions = [{proxy.chat(f"Hello {i}!", f"session-{i}", max_tokens=5)[2] for _ in range(5)} for i in range(6)]
        figures: dict[str, Any] = {
            "streamed": streamed(proxy),
            "calls a tool": calls_a_tool(proxy),
            "embeddings": embeds(proxy),
            "anthropic": speaks_anthropic(proxy),
            "without a session": dict(spread),
            "sessions that stay": sum(len(places) == 1 for places in sessions),
            "nodes of sessions": len(set().union(*sessions)),
            "responses that go on": goes_on(proxy),
        }
        figures["a response is read and deleted"] = reads_and_deletes(proxy)
        own = {}
        while "tiny-a" not in own:
            _, text, where = proxy.ask("/v1/responses", ANYTHING)
            own[where] = json.loads(text)["id"]
        nodes["a"].send_signal(signal.SIGTERM)
        nodes["a"].wait(60)
        after = [proxy.chat(f"Hello {i}!", max_tokens=5)[::2] for i in range(20)]
        gone = proxy.ask("/v1/responses", {**ANYTHING, "previous_response_id": own["tiny-a"]})
        figures["a response of the node that stopped"] = f"{gone[0]} {gone[1][:300]}"
        figures["one node stopped"] = {f"{status} {where}": n for (status, where), n in Counter(after).items()}
    print(json.dumps({"bench": "litellm", "figures": figures}, indent=1))
    kept = all((figures["streamed"], figures["calls a tool"], figures["embeddings"], *figures["anthropic"].values()))
    kept = kept and figures["sessions that stay"] == len(sessions) and figures["nodes of sessions"] == 2
    kept = kept and figures["responses that go on"].get("answered") == 10 and figures["a response is read and deleted"]
    kept = kept and set(figures["one node stopped"]) == {"200 tiny-b"}
    return int(not kept)


if __name__ == "__main__":
    sys.exit(main())
