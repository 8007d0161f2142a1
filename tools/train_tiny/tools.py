"""Tools that the generated conversations list and call: their schemas, fitting questions, results and answers."""

import json
import random
from dataclasses import dataclass, field
from typing import Any

from words import ADJECTIVES, COLOURS, NOUNS, THINGS, TOPICS, VERBS


@dataclass(frozen=True)
class Call:
    ask: str
    arguments: dict[str, Any]
    result: str
    answer: str
    subject: str = ""


@dataclass(frozen=True)
class Tool:
    """`kind` picks how it is used; `keys` are its parameters' names, in order."""

    name: str
    kind: str
    noun: str
    keys: tuple[str, ...]
    schema: dict[str, Any] = field(hash=False)
    pairs_up: bool = False

    def listed(self) -> dict[str, Any]:
        return {"type": "function", "function": self.schema}

    def use(self, r: random.Random, subject: str) -> Call:
        return USES[self.kind](r, self, subject)


def same_kind(tool: Tool, question: str) -> bool:
    """Whether a question that was drawn without looking at the tools might yet be one for this tool."""
    question = question.lower()
    if tool.kind in ("add", "subtract", "multiply"):
        return any(mark in question for mark in "0123456789+*") or "plus" in question or "minus" in question
    if tool.kind == "clock" or tool.noun in ("time", "date"):
        return "time" in question or "day" in question
    if tool.kind in ("search", "send", "switch", "timer", "dice"):
        return any(verb in question for verb in ("tell me about", "repeat", "echo", "say", "find", "what is ", "who "))
    return tool.noun in question or (tool.noun == "age" and "old" in question)


# ---------------------------------------------------------------- schemas

def parameter(r: random.Random, key: str, kind: str, about: str) -> dict[str, Any]:
    described = {"type": kind, "description": about} if r.random() < 0.45 else {"type": kind}
    return dict(reversed(described.items())) if r.random() < 0.1 else described


def function(r: random.Random, name: str, about: str, properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    parameters: dict[str, Any] = {"type": "object", "properties": properties}
    if required and r.random() < 0.85:
        parameters["required"] = required
    if r.random() < 0.1:
        parameters["additionalProperties"] = False
    if r.random() < 0.1:
        parameters = {key: parameters[key] for key in sorted(parameters)}
    described = {"description": about} if r.random() < 0.8 else {}
    return {"name": name, **described, "parameters": parameters}


def styled(r: random.Random, *words: str) -> str:
    """get_weather, getWeather or get-weather."""
    chance = r.random()
    if chance < 0.8:
        return "_".join(words)
    return words[0] + "".join(map(str.capitalize, words[1:])) if chance < 0.93 else "-".join(words)


def lookup(r: random.Random) -> Tool:
    """get_weather(city) and its many cousins."""
    noun = "weather" if r.random() < 0.3 else r.choice(NOUNS)
    name = styled(r, *r.choice((("get", noun), ("get", noun), ("get", "current", noun), (noun, "lookup"), ("lookup", noun),
                                (noun,), ("find", noun), ("fetch", noun), (noun, "of"), ("read", noun))))  # fmt: skip
    key = r.choice(("city", "city", "location", "location", "place", "town", "name", "query", "id", "country", "item", "q"))
    about = r.choice((f"Get the {noun} of a {key}", f"Get the {noun} for a {key}.", f"Returns the {noun}",
                      f"Get the current {noun} in a given {key}", f"Look up the {noun} of a {key}."))  # fmt: skip
    properties = {key: parameter(r, key, "string", r.choice((f"The {key}", f"Name of the {key}", f"{key} name", key)))}
    keys: tuple[str, ...] = (key,)
    if noun in ("weather", "temperature", "forecast") and r.random() < 0.35:
        properties["unit"] = {"type": "string", "enum": ["celsius", "fahrenheit"]}
        keys = (key, "unit")
    return Tool(name, "lookup", noun, keys, function(r, name, about, properties, [key]), pairs_up=True)


def arithmetic(r: random.Random) -> Tool:
    kind, names = r.choice((
        ("add", (("add",), ("sum",), ("add", "numbers"), ("plus",), ("calculate", "sum"), ("add", "two", "numbers"))),
        ("add", (("add",), ("sum",), ("add", "numbers"))),
        ("multiply", (("multiply",), ("mul",), ("multiply", "numbers"), ("times",), ("product",))),
        ("subtract", (("subtract",), ("minus",), ("subtract", "numbers"), ("difference",))),
    ))  # fmt: skip
    name = styled(r, *r.choice(names))
    keys = r.choice((("a", "b"), ("a", "b"), ("x", "y"), ("first", "second"), ("left", "right"), ("n", "m"), ("num1", "num2")))
    number = r.choice(("number", "integer"))
    properties = {key: parameter(r, key, number, f"The {place} number") for key, place in zip(keys, ("first", "second"), strict=True)}
    about = r.choice((f"{kind.capitalize()} two numbers", f"{kind.capitalize()} numbers.", f"{kind}s two numbers"))
    return Tool(name, kind, kind, keys, function(r, name, about, properties, list(keys)))


def clock(r: random.Random) -> Tool:
    name = styled(r, *r.choice((("get", "time"), ("get", "current", "time"), ("time",), ("current", "time"), ("clock",), ("now",))))
    about = r.choice(("Get the current time", "Returns the time.", "Tells the time"))
    keys = () if r.random() < 0.5 else (r.choice(("city", "timezone", "location", "place")),)
    properties = {key: parameter(r, key, "string", f"The {key}") for key in keys}
    return Tool(name, "clock", "time", keys, function(r, name, about, properties, list(keys)))


def deed(r: random.Random) -> Tool:
    """Tools that do something: search, send, switch, timer, dice."""
    kind = r.choice(("search", "send", "switch", "timer", "dice", "search", "send"))
    if kind == "search":
        name = styled(r, *r.choice((("search",), ("web", "search"), ("search", "web"), ("find",), ("search", "documents"))))
        keys, kinds, about = (r.choice(("query", "q", "text", "term")),), ("string",), "Search for something"
    elif kind == "send":
        name = styled(r, *r.choice((("send", "message"), ("send", "mail"), ("send", "email"), ("message",), ("notify",))))
        keys = (r.choice(("to", "recipient", "user")), r.choice(("text", "message", "body")))
        kinds, about = ("string", "string"), "Send a message to somebody"
    elif kind == "switch":
        name = styled(r, *r.choice((("turn", "on"), ("switch", "on"), ("enable",), ("turn", "on", "device"))))
        keys, kinds, about = (r.choice(("device", "name", "what")),), ("string",), "Turn on a device"
    elif kind == "timer":
        name = styled(r, *r.choice((("set", "timer"), ("timer",), ("start", "timer"), ("wait",))))
        keys, kinds, about = (r.choice(("minutes", "duration", "time")),), ("integer",), "Set a timer in minutes"
    else:
        name = styled(r, *r.choice((("roll", "dice"), ("roll",), ("dice",), ("roll", "die"))))
        keys, kinds, about = (r.choice(("sides", "faces", "n")),), ("integer",), "Roll a dice"
    properties = {key: parameter(r, key, of, f"The {key}") for key, of in zip(keys, kinds, strict=True)}
    return Tool(name, kind, kind, keys, function(r, name, about, properties, list(keys)))


def invented(r: random.Random) -> Tool:
    """A tool that only its name and the question's words tie together."""
    verb, noun = r.choice(VERBS), r.choice(THINGS)
    name = styled(r, verb, noun)
    key = r.choice(("name", "id", "value", "path", "colour", "target", "key", "label", noun))
    properties = {key: parameter(r, key, "string", f"The {key}")}
    about = r.choice((f"{verb.capitalize()} a {noun}", f"{verb.capitalize()} the {noun}."))
    return Tool(name, "invented", noun, (key,), function(r, name, about, properties, [key]))


def draw_tools(r: random.Random) -> list[Tool]:
    """One to four tools, no two of a kind."""
    wanted = r.choice((1, 1, 1, 2, 2, 3)) if r.random() < 0.95 else r.choice((4, 5, 6))
    tools: list[Tool] = []
    while len(tools) < wanted:
        makers = (lookup, arithmetic, clock, deed, invented)
        tool = r.choices(makers, (5, 2, 1.5, 2, 2))[0](r)
        if all(tool.noun != other.noun and tool.name != other.name for other in tools):
            tools.append(tool)
    return tools


# ---------------------------------------------------------------- uses

def failed(r: random.Random) -> tuple[str, str] | None:
    """Now and then a tool fails: (result, answer)."""
    if r.random() >= 0.06:
        return None
    why = r.choice(("not found", "timeout", "no access", "unknown place", "invalid argument", "service is down"))
    return json.dumps({"error": why}), f"The tool failed: {why}."


def value_of(r: random.Random) -> Any:
    return r.choice((
        r.choice(("sunny", "rainy", "cloudy", "windy", "snowy", "foggy", "hot", "cold", "warm", "clear")),
        r.randint(-20, 40), r.randint(0, 9999), r.choice(COLOURS), r.choice(ADJECTIVES),
        f"{r.randint(-9, 35)} degrees", f"{r.choice(('sunny', 'rain', 'clouds', 'snow'))}, {r.randint(-9, 35)} C",
        "".join(r.choice("bdfgklmnprst") + r.choice("aeiou") for _ in range(r.randint(2, 3))).capitalize(),
    ))  # fmt: skip


def looked_up(r: random.Random, noun: str, subject: str) -> tuple[str, str]:
    if failure := failed(r):
        return failure
    value = value_of(r)
    if r.random() < 0.35:
        return str(value), f"The {noun} in {subject} is {value}."
    if r.random() < 0.6:
        return json.dumps({r.choice((noun, "result", "value")): value}), f"The {noun} in {subject} is {value}."
    keys = r.sample(("temperature", "wind", "sky", "unit", "humidity", "level", "state", "note"), r.choice((2, 2, 3)))
    found = {key: value_of(r) for key in keys}
    listed = ", ".join(f"{key} {value}" for key, value in found.items())
    return json.dumps(found), f"The {noun} in {subject}: {listed}."


def use_lookup(r: random.Random, tool: Tool, subject: str) -> Call:
    noun = tool.noun
    ask = r.choice((
        f"What is the {noun} in {subject}?", f"What's the {noun} in {subject}?", f"What is the {noun} of {subject}?",
        f"Tell me the {noun} of {subject}.", f"Get the {noun} for {subject}.", f"{noun} in {subject}?",
        f"I want to know the {noun} in {subject}.", f"What is the {noun} in {subject} today?",
        f"Look up the {noun} of {subject}.", f"What is the current {noun} in {subject}?", f"Find the {noun} for {subject}.",
        f"Do you know the {noun} in {subject}?", f"{noun.capitalize()} of {subject}, please.",
    ))  # fmt: skip
    if noun in ("weather", "temperature", "forecast") and r.random() < 0.4:
        ask = r.choice((f"How is the weather in {subject}?", f"What is the weather like in {subject}?",
                        f"How's the weather in {subject} today?")) if noun == "weather" else ask  # fmt: skip
    arguments = {tool.keys[0]: subject}
    if "unit" in tool.keys and r.random() < 0.5:
        unit = r.choice(("celsius", "fahrenheit"))
        ask = ask.rstrip("?.!") + f" in {unit}?"
        arguments["unit"] = unit
    result, answer = looked_up(r, noun, subject)
    return Call(ask, arguments, result, answer, subject)


def use_arithmetic(r: random.Random, tool: Tool, subject: str) -> Call:
    a, b = (r.randint(0, 10 ** r.choice((1, 2, 2, 3, 4))) for _ in range(2))
    sign, word, lead, result = {
        "add": ("+", "plus", "Add {} and {}.", a + b),
        "multiply": ("*", "times", "Multiply {} by {}.", a * b),
        "subtract": ("-", "minus", "Calculate {} - {}.", a - b),
    }[tool.kind]
    ask = r.choice((f"What is {a} {sign} {b}?", f"What is {a} {word} {b}?", lead.format(a, b), f"{a} {sign} {b}",
                    f"Calculate {a} {sign} {b}.", f"How much is {a} {word} {b}?", f"What's {a}{sign}{b}?"))  # fmt: skip
    answer = f"{a} {sign} {b} = {result}."
    text = str(result) if r.random() < 0.5 else json.dumps({r.choice(("result", "value", "sum")): result})
    if failure := failed(r):
        text, answer = failure
    return Call(ask, dict(zip(tool.keys, (a, b), strict=True)), text, answer)


def use_clock(r: random.Random, tool: Tool, subject: str) -> Call:
    now = f"{r.randint(0, 23):02}:{r.randint(0, 59):02}"
    text = now if r.random() < 0.5 else json.dumps({"time": now})
    if failure := failed(r):
        text, answer = failure
    elif tool.keys:
        answer = f"In {subject} it is {now}."
    else:
        answer = f"It is {now}."
    if not tool.keys:
        ask = r.choice(("What time is it?", "What's the time?", "Tell me the time.", "What time is it now?", "The time, please."))
        return Call(ask, {}, text, answer)
    ask = r.choice((f"What time is it in {subject}?", f"What's the time in {subject}?", f"Tell me the time in {subject}.",
                    f"What is the current time in {subject}?"))  # fmt: skip
    return Call(ask, {tool.keys[0]: subject}, text, answer, subject)


def some_words(r: random.Random) -> str:
    return " ".join(r.choice((*ADJECTIVES, *THINGS, *TOPICS)) for _ in range(r.randint(1, 4)))


def use_deed(r: random.Random, tool: Tool, subject: str) -> Call:
    words, n = some_words(r), r.randint(1, 90)
    if tool.kind == "search":
        what = subject if r.random() < 0.5 else words
        ask, values = r.choice(("Search for {}.", "Find {}.", "Look for {}.", "Search the web for {}.", "Please search {}.")), (what,)
        ask, result = ask.format(what), some_words(r)
        answer = f"I found: {result}."
    elif tool.kind == "send":
        ask = r.choice((f"Send a message to {subject}: {words}", f"Tell {subject}: {words}", f'Send "{words}" to {subject}.',
                        f"Write to {subject}: {words}"))  # fmt: skip
        values, result, answer = (subject, words), r.choice(("ok", "sent", '{"ok": true}', "done")), "Done."
    elif tool.kind == "switch":
        what = r.choice(THINGS)
        ask = r.choice(("Turn on the {}.", "Switch on the {}.", "Please turn on the {}.", "Can you turn on the {}?")).format(what)
        values, result, answer = (what,), r.choice(("ok", '{"ok": true}', "done", "on")), "Done."
    elif tool.kind == "timer":
        ask = r.choice(("Set a timer for {} minutes.", "Start a timer: {} minutes.", "Wake me in {} minutes.")).format(n)
        values, result, answer = (n,), r.choice(("ok", "started", '{"ok": true}')), "Done."
    else:
        rolled = r.randint(1, n)
        ask = r.choice(("Roll a dice with {} sides.", "Roll a {} sided dice.", "Roll a die with {} faces.")).format(n)
        values, result, answer = (n,), str(rolled), f"It is {rolled}."
    if failure := failed(r):
        result, answer = failure
    return Call(ask, dict(zip(tool.keys, values, strict=True)), result, answer)


def use_invented(r: random.Random, tool: Tool, subject: str) -> Call:
    verb = tool.name.replace("-", "_").split("_")[0]
    verb = next((known for known in VERBS if verb.startswith(known)), verb)
    key = tool.keys[0]
    what = subject if r.random() < 0.6 else r.choice(COLOURS)
    ask = r.choice((
        f"{verb.capitalize()} the {tool.noun} {what}.", f"{verb.capitalize()} {tool.noun} {what}", f"Call {tool.name} with {key} {what}.",
        f"Use {tool.name} with {what}.", f"Please {verb} the {tool.noun} with {key} {what}.", f"Use the tool {tool.name}: {what}",
    ))  # fmt: skip
    result = r.choice(("ok", "done", '{"ok": true}', some_words(r)))
    answer = "Done." if result in ("ok", "done", '{"ok": true}') else f"The answer is: {result}."
    if failure := failed(r):
        result, answer = failure
    return Call(ask, {key: what}, result, answer)


USES = {
    "lookup": use_lookup,
    "add": use_arithmetic,
    "multiply": use_arithmetic,
    "subtract": use_arithmetic,
    "clock": use_clock,
    "search": use_deed,
    "send": use_deed,
    "switch": use_deed,
    "timer": use_deed,
    "dice": use_deed,
    "invented": use_invented,
}
