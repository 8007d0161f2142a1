"""`lmlite chat`: a conversation with a model of the running server, or one question and its answer in a pipe.

The answer goes to stdout, everything else to stderr. On a terminal the model's reasoning is shown dim and its control
characters are escaped; in a pipe the answer alone goes through, as it is.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import field
from pathlib import Path
from typing import Any, Final, Literal

from ..config import gather
from ..errors import LmError
from ..package import BUNDLED_PUBLISHER
from ..records import dataclass
from ..store.home import Home
from . import attachments
from .client import Client, add_flags
from .get import get_model
from .keyboard import Keyboard
from .loading import asked_for, at_least, pick
from .models import Entry, instances
from .terminal import Bar, escaped, is_terminal, printable, put, say, style

COMMAND: Final = re.compile(r"/([a-z-]+)(?: +(.*))?")
REASONING: Final = ("auto", "on", "off")

Kind = Literal["reasoning", "answer"]


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    chat = commands.add_parser(
        "chat",
        help="talk to a model",
        description="Talks to a model of the running server. With -p, or with text piped in, it answers that and ends; "
        "both together are one question. Ctrl-C stops an answer, Ctrl-D leaves.",
        allow_abbrev=False,
    )
    chat.add_argument("key", nargs="?", help="the model, or a part of its name (default: the one that is loaded)")
    chat.add_argument("-p", "--prompt", metavar="TEXT", help="answer this and end")
    chat.add_argument(
        "--image", metavar="FILE", action="append", default=[], help="a picture, or a sound, for the question; may be repeated"
    )
    chat.add_argument("-s", "--system-prompt", metavar="TEXT", help="what the model is told before all else")
    chat.add_argument("--stats", action="store_true", help="show speed and token counts after each answer")
    chat.add_argument("--ttl", type=at_least(1), metavar="S", help="idle seconds after which a model that this loads leaves")
    chat.add_argument("--reasoning", choices=REASONING, default="auto", help="whether the model thinks first (default: auto)")
    chat.add_argument("--dont-fetch-catalog", action="store_true", help=argparse.SUPPRESS)  # LM Studio's; there is none
    chat.add_argument("-y", "--yes", action="store_true", help="ask nothing: of several models, take the first")
    add_flags(chat)
    chat.set_defaults(run=run)


def run(arguments: argparse.Namespace, environ: Mapping[str, str]) -> int:
    client = Client.find(environ, arguments.host, arguments.port)
    client.get("/health")  # says how to start one, if none answers
    somebody_types = sys.stdin.isatty()
    piped = "" if somebody_types else read_pipe()
    question = "\n\n".join(part for part in (arguments.prompt, piped) if part)
    files = [attachments.read(attachments.named(name)) for name in arguments.image]
    if not question and not somebody_types and not files:
        raise LmError("There is nothing to answer: stdin is empty, and there is no -p.")
    model = choose_model(client, arguments.key, arguments.yes, sees=bool(files))
    talk = Talk(client, model, arguments.system_prompt, arguments.reasoning, arguments.ttl, files=files)
    if question or (files and not somebody_types):
        stats = say_answer(talk, question)
        if arguments.stats:
            show_stats(stats)
        return 0
    Conversation(talk, arguments, environ).go_on()
    return 0


def read_pipe() -> str:
    return sys.stdin.buffer.read().decode("utf-8", "replace").strip()


def choose_model(client: Client, key: str | None, yes: bool, sees: bool = False) -> str:
    """The model that `key` names; without one the language model that was used last of those loaded, or the one there is.
    Where something is to be seen or heard, only those count that can, if any can."""
    models: list[Entry] = [model for model in client.get("/lmlite/models")["models"] if model["type"] == "llm"]
    if key is not None:
        loaded = {instance["identifier"] for instance in instances(client)}
        return key if key in loaded else pick(client, models, key, yes=yes)
    if sees:
        models = [model for model in models if model.get("vision") or model.get("hears")] or models
    keys = {model["modelKey"] for model in models}
    talking = [instance for instance in instances(client) if instance["type"] != "embedding"]
    if sees:
        talking = [instance for instance in talking if instance["model"] in keys]
    if talking:
        return str(max(talking, key=lambda instance: instance["lastUsedTime"] or 0)["identifier"])
    sound = [model for model in models if "problem" not in model]
    if not sound:
        raise LmError("There is no model to talk to. Download one with: lmlite get")
    bundled_only = all(model["publisher"] == BUNDLED_PUBLISHER for model in sound)  # who has no model is asked nothing
    return str(sound[0]["modelKey"]) if yes or len(sound) == 1 or bundled_only else asked_for(sound, None)


# ---- talking ---------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Stats:
    """Of one answer, as it was seen here; why it ended, in the words of the log."""

    stop_reason: str = ""
    prompt_tokens: int = 0
    predicted_tokens: int = 0
    asked_at: float = field(default_factory=time.monotonic)
    first_at: float | None = None
    last_at: float = 0.0

    def heard(self) -> None:
        self.last_at = time.monotonic()
        if self.first_at is None:
            self.first_at = self.last_at

    def rows(self) -> Iterator[tuple[str, str]]:
        yield "Stop Reason", escaped(self.stop_reason)
        if self.first_at is not None:
            if self.predicted_tokens > 1 and self.last_at > self.first_at:
                yield "Tokens/Second", f"{(self.predicted_tokens - 1) / (self.last_at - self.first_at):.2f}"
            yield "Time to First Token", f"{self.first_at - self.asked_at:.3f}s"
        yield "Prompt Tokens", str(self.prompt_tokens)
        yield "Predicted Tokens", str(self.predicted_tokens)
        yield "Total Tokens", str(self.prompt_tokens + self.predicted_tokens)


def show_stats(stats: Stats) -> None:
    put("\nPrediction Stats:", sys.stderr)
    for name, value in stats.rows():
        put(f"  {name}: {value}", sys.stderr)


@dataclass(slots=True)
class Talk:
    """What has been said to one model, and how it is asked."""

    client: Client
    model: str
    system_prompt: str | None
    reasoning: str
    ttl_s: int | None
    lossy: bool = False
    """The oldest turns are forgotten when the context is full; else that is an error."""
    turns: list[dict[str, Any]] = field(default_factory=list)
    files: list[dict[str, Any]] = field(default_factory=list)
    """What goes with the next question."""

    def said(self, question: str) -> dict[str, Any]:
        text = [{"type": "text", "text": question}] if question else []
        return {"role": "user", "content": [*self.files, *text] if self.files else question}

    def body(self, question: str) -> dict[str, Any]:
        system = [{"role": "system", "content": self.system_prompt}] if self.system_prompt else []
        body = {
            "model": self.model,
            "messages": [*system, *self.turns, self.said(question)],
            "stream": True,
            "stream_options": {"include_usage": True, "include_stats": True},
        }
        if self.ttl_s is not None:
            body["ttl"] = self.ttl_s
        if self.reasoning != "auto":
            body["reasoning"] = self.reasoning
        if self.lossy:
            body["context_overflow_policy"] = "truncateMiddle"
        return body

    def ask(self, question: str, stats: Stats) -> Generator[tuple[Kind, str], None, None]:
        """The pieces of the answer. What has come of it is remembered, also if the iterator is closed before its end."""
        answer: list[str] = []
        body, said = self.body(question), self.said(question)
        self.files = []  # one that the server refuses must not go with every further question
        events = self.client.events("POST", "/v1/chat/completions", body)
        try:
            for _, chunk in events:
                for kind, text in pieces(chunk, stats):
                    if kind == "answer":
                        answer.append(text)
                    yield kind, text
        finally:
            events.close()
            if answer:
                self.turns.append(said)
                self.turns.append({"role": "assistant", "content": "".join(answer)})


def pieces(chunk: Mapping[str, Any], stats: Stats) -> Iterator[tuple[Kind, str]]:
    if usage := chunk.get("usage"):
        stats.prompt_tokens, stats.predicted_tokens = usage["prompt_tokens"], usage["completion_tokens"]
        stats.stop_reason = chunk.get("stats", {}).get("stop_reason", stats.stop_reason)
    for choice in chunk.get("choices", ()):
        stats.stop_reason = choice.get("finish_reason") or stats.stop_reason  # all that another server tells
        delta = choice.get("delta", {})
        if thought := delta.get("reasoning_content"):
            stats.heard()
            yield "reasoning", thought
        if text := delta.get("content"):
            stats.heard()
            yield "answer", text


def say_answer(talk: Talk, question: str) -> Stats:
    """Shows the answer as it comes."""
    stats = Stats()
    screen = Screen()
    events = talk.ask(question, stats)
    try:
        with Bar(None, "Waiting for " + escaped(talk.model)) as bar:
            bar.update(0)
            first = next(events, None)
        if first is not None:
            screen.show(*first)
        for kind, text in events:
            screen.show(kind, text)
    finally:
        events.close()
        screen.end()
    return stats


class Screen:
    """One answer on stdout."""

    def __init__(self) -> None:
        self._obeys = sys.stdout.isatty()  # also one without colours
        self._styled = is_terminal(sys.stdout)
        self._kind: Kind | None = None
        self._held = ""  # a carriage return, until it is seen whether a line ends there
        self._last = "\n"

    def show(self, kind: Kind, text: str) -> None:
        if kind == "reasoning" and not self._obeys:
            return
        if kind != self._kind:
            self._begin(kind)
        if self._obeys:
            text, self._held = self._held + text, ""
            if text.endswith("\r"):
                text, self._held = text[:-1], "\r"
            text = printable(text)
        if text:
            self._last = text[-1]
            put(style(text, "dim") if kind == "reasoning" and self._styled else text, end="")
            sys.stdout.flush()

    def _begin(self, kind: Kind) -> None:
        if self._kind is not None:
            put("" if self._last == "\n" else "\n")
        if kind == "reasoning":
            put(style("Thinking:", "dim"))
        self._kind = kind

    def end(self) -> None:
        if self._last != "\n":
            put("")
        sys.stdout.flush()


# ---- conversations ---------------------------------------------------------------------------------------------------


class Conversation:
    """Questions at the terminal until Ctrl-D, and commands that begin with a slash."""

    def __init__(self, talk: Talk, arguments: argparse.Namespace, environ: Mapping[str, str]):
        talk.lossy = True
        self._talk, self._arguments, self._environ = talk, arguments, environ
        self._stats: bool = arguments.stats
        self._over = False
        home = Home(gather({}, environ).home)
        self._keyboard = Keyboard(home.chat_history, [f"/{name}" for name in COMMANDS])

    def go_on(self) -> None:
        self._note(f"You talk to {escaped(self._talk.model)}. /help lists commands, Ctrl-D leaves.")
        with self._keyboard:
            while not self._over:
                try:
                    self._turn()
                except KeyboardInterrupt:  # ends the line or the answer, not the conversation
                    put("", sys.stderr)
                except LmError as error:
                    put(style(f"Error: {escaped(str(error))}", "red", stream=sys.stderr), sys.stderr)

    def _turn(self) -> None:
        line = self._keyboard.read("> ")
        if line is None:
            put("", sys.stderr)
            self._over = True
            return
        paths, line = attachments.dropped(line)
        for path in paths:
            self._attach(path)
        if found := COMMAND.fullmatch(line.strip()):
            self._obey(found[1], (found[2] or "").strip())
        elif line.strip():
            stats = say_answer(self._talk, line)
            if stats.stop_reason in ("contextLengthReached", "length"):
                self._note("(The answer ends here because the context is full.)")
            if self._stats:
                show_stats(stats)
            put("", sys.stderr)

    def _obey(self, name: str, rest: str) -> None:
        command = COMMANDS.get(name)
        if command is None:
            raise LmError(f"There is no command /{name}; /help lists those there are.")
        command.run(self, rest)

    def _attach(self, path: Path) -> None:
        self._talk.files.append(attachments.read(path))
        self._note(f"{escaped(path.name)} goes with your next question.")

    def _note(self, text: str) -> None:
        say(self._arguments, style(text, "dim", stream=sys.stderr))

    # -- the commands

    def help(self, rest: str) -> None:
        widest = max(len(command.usage) for command in COMMANDS.values())
        for command in COMMANDS.values():
            put(f"  {command.usage:{widest}}  {command.help}", sys.stderr)

    def exit(self, rest: str) -> None:
        self._over = True

    def model(self, rest: str) -> None:
        client = self._talk.client
        if rest:
            self._talk.model = choose_model(client, rest, yes=False)
        else:
            models = [model for model in client.get("/lmlite/models")["models"] if model["type"] == "llm"]
            self._talk.model = asked_for([model for model in models if "problem" not in model], None)
        self._note(f"You talk to {escaped(self._talk.model)}, which knows what was said so far.")

    def download(self, rest: str) -> None:
        if not rest:
            raise LmError("Name the model: /download owner/name, or words to search for")
        asked = argparse.Namespace(**{**vars(self._arguments), "name": rest, "mlx": False, "select": False, "json": False})
        if get_model(asked, self._environ) == 0:
            self._note("/model NAME talks to it.")

    def image(self, rest: str) -> None:
        if not rest:
            raise LmError("Name the file: /image FILE; or drop it here")
        self._attach(attachments.named(rest))

    def clear(self, rest: str) -> None:
        self._talk.turns.clear()
        self._talk.files.clear()
        self._note("What was said is forgotten.")

    def system_prompt(self, rest: str) -> None:
        self._talk.system_prompt = rest or None
        self._note("The system prompt is set." if rest else "There is no system prompt any more.")

    def stats(self, rest: str) -> None:
        self._stats = not self._stats
        self._note(f"Statistics are {'shown' if self._stats else 'not shown'}.")

    def reasoning(self, rest: str) -> None:
        if rest and rest not in REASONING:
            raise LmError(f"Reasoning is one of: {', '.join(REASONING)}")
        self._talk.reasoning = rest or self._talk.reasoning
        self._note(f"Reasoning is {self._talk.reasoning}.")


@dataclass(slots=True, frozen=True)
class Command:
    usage: str
    help: str
    run: Callable[[Conversation, str], None]


COMMANDS: Final[Mapping[str, Command]] = {
    "help": Command("/help", "this list", Conversation.help),
    "model": Command("/model [NAME]", "talk to another model", Conversation.model),
    "download": Command("/download NAME", "get a model from the hub, as `lmlite get` does", Conversation.download),
    "image": Command("/image FILE", "a picture, or a sound, to go with the next question", Conversation.image),
    "system-prompt": Command("/system-prompt [TEXT]", "what the model is told before all else", Conversation.system_prompt),
    "reasoning": Command("/reasoning [auto|on|off]", "whether the model thinks first", Conversation.reasoning),
    "stats": Command("/stats", "show speed and token counts, or no more", Conversation.stats),
    "clear": Command("/clear", "forget what was said", Conversation.clear),
    "exit": Command("/exit", "leave; so does Ctrl-D", Conversation.exit),
}
