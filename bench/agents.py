"""Claim: the real coding agents on PATH do an errand through this server, and know when a prompt is too long for a model.

A fake engine plays the model: asked with an agent's own prompt and tools, it calls the one that runs commands, and says so
once it sees the result. The file that the command writes, and the last words, show that the loop went round. Then the
bundled model is asked, whose context no agent's prompt fits in. Agents that are not on PATH are passed over. Each has a
home of its own, and needs no other network. Prints one JSON object; exit code 1 if an errand was not done.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent.parent))  # at the end: an installed lmlite is the one to measure

from bench import client  # noqa: E402
from lmlite.core.engine.frames import Kind, pack  # noqa: E402
from tests.core import gguf_files  # noqa: E402
from tests.fakes import FakeEngine, Script, finished, frame, rounds_of, tool_calls  # noqa: E402

LIMIT_S = 180
CONTEXT = 131_072
MADE, WORDS = "made.txt", "I have made the file."
COMMAND = f"echo hi > {MADE}; cat {MADE}"
SHELLS: dict[str, dict[str, Any]] = {
    "Bash": {"command": COMMAND, "description": "Make a file"},
    "bash": {"command": COMMAND, "description": "Make a file"},
    "exec_command": {"cmd": COMMAND},
    "shell": {"command": ["bash", "-c", COMMAND]},
    "shell_command": {"command": COMMAND},
}
"""What agents call the tool that runs commands, and how it is told of one."""
MODELS = ("claude-*", "gpt-*", "toy")


@dataclass(frozen=True)
class Agent:
    """`prepare` writes what the agent reads in its home and its folder of work. What it says where a prompt is too long has
    `overflow` in it."""

    command: tuple[str, ...]
    prepare: Callable[[Path, Path, str], None]
    environ: Callable[[str], dict[str, str]]
    overflow: str


# ---- the agents ------------------------------------------------------------------------------------------------------


def codex_home(home: Path, work: Path, url: str) -> None:
    provider = f'name = "lmlite"\nbase_url = "{url}/v1"\nwire_api = "responses"\n'
    (home / ".codex").mkdir()
    config = f'model = "gpt-oss"\nmodel_provider = "lmlite"\n[model_providers.lmlite]\n{provider}'
    (home / ".codex" / "config.toml").write_text(config)


def opencode_home(home: Path, work: Path, url: str) -> None:
    provider = {"npm": "@ai-sdk/openai-compatible", "options": {"baseURL": f"{url}/v1"}, "models": {"toy": {"name": "toy"}}}
    (work / "opencode.json").write_text(json.dumps({"provider": {"lmlite": provider}}))


AGENTS = {
    "claude": Agent(
        ("claude", "-p", "Make a file", "--model", "claude-sonnet-4-5", "--allowedTools", "Bash"),
        lambda home, work, url: None,
        lambda url: {
            "ANTHROPIC_BASE_URL": url,
            "ANTHROPIC_AUTH_TOKEN": "any",
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        },
        "Prompt is too long",
    ),
    "codex": Agent(
        ("codex", "exec", "--dangerously-bypass-approvals-and-sandbox", "Make a file"),
        codex_home,
        lambda url: {},
        "ran out of room in the model's context window",
    ),
    "opencode": Agent(
        ("opencode", "run", "-m", "lmlite/toy", "Make a file"), opencode_home, lambda url: {}, "The conversation was compacted"
    ),
}


def run(agent: Agent, url: str) -> tuple[str, bool]:
    """What it said, and whether the file is there."""
    with tempfile.TemporaryDirectory() as folder:
        home, work = Path(folder) / "home", Path(folder) / "work"
        home.mkdir()
        work.mkdir()
        agent.prepare(home, work, url)
        environ = {**os.environ, "HOME": str(home), "PWD": str(work), **agent.environ(url)}
        subprocess.run(["git", "init", "--quiet", work], check=True)
        try:
            done = subprocess.run(
                agent.command, cwd=work, env=environ, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LIMIT_S
            )
        except subprocess.TimeoutExpired as error:
            return (error.stdout or b"").decode(errors="replace"), False
        return done.stdout + done.stderr, (work / MADE).exists()


# ---- the model -------------------------------------------------------------------------------------------------------


class Errand(FakeEngine):
    def _generate(self, request_id: int, command: dict[str, Any]) -> Iterator[bytes]:
        offered = [tool["function"]["name"] for tool in command.get("tools") or ()]
        shell = next((name for name in SHELLS if name in offered), None)
        length = len(json.dumps(command["messages"]))
        yield frame(Kind.PROMPT_PROGRESS, request_id, {"done": length, "ms": 1.5, "total": length, "cached": 0})
        yield pack(Kind.REASONING, request_id, b"Let me think.")
        if shell and not rounds_of(command["messages"]):
            yield from tool_calls(request_id, [(shell, [json.dumps(SHELLS[shell])])])
            yield frame(Kind.FINISHED, request_id, finished("toolCalls", 9))
        else:
            yield pack(Kind.TEXT, request_id, WORDS.encode())
            yield frame(Kind.FINISHED, request_id, finished("eosFound", 9))


def serve(folder: Path) -> None:
    model = folder / "errand.gguf"
    model.write_bytes(gguf_files.gguf({**gguf_files.llama(), "llama.context_length": CONTEXT}))
    aliases = tuple((name, "errand") for name in MODELS)
    command = (sys.executable, __file__, "--engine")
    client.serve_fakes(command, models=[model], home=folder, alias=aliases, context_length=CONTEXT)


@contextmanager
def servers() -> Iterator[tuple[str, str]]:
    """The addresses of one in front of the fake, and of one with the bundled model."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "home"
        aliases = [f"--alias={name}=lmlite-tiny" for name in MODELS]
        with (
            client.serving([sys.executable, __file__, "--serve", folder]) as fake,
            client.serving(client.lmlite("--home", home, "--log-level", "error", *aliases)) as toy,
        ):
            yield f"http://127.0.0.1:{fake.port}", f"http://127.0.0.1:{toy.port}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--serve", type=Path)
    parser.add_argument("--engine", nargs=1)
    arguments, rest = parser.parse_known_args()
    if arguments.engine:
        Errand(Script()).serve(int(arguments.engine[0]))
        return
    if arguments.serve:
        serve(arguments.serve)
        return
    found: dict[str, Any] = {}
    with servers() as (errand, toy):
        for name, agent in AGENTS.items():
            if shutil.which(name) is None:
                continue
            said, made = run(agent, errand)
            refused, _ = run(agent, toy)
            found[name] = {
                "version": subprocess.run([name, "--version"], capture_output=True, text=True).stdout.strip(),
                "did the errand": made and WORDS in said,
                "knows an overflow": agent.overflow in refused,
            }
    print(json.dumps({"bench": "agents", "agents": found}, indent=1))
    sys.exit(not all(agent["did the errand"] and agent["knows an overflow"] for agent in found.values()))


if __name__ == "__main__":
    main()
