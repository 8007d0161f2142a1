"""Tools that the generated conversations list and call: their schemas, fitting questions, results and answers."""

import json
import random
from dataclasses import dataclass, field
from typing import Any

from words import ADJECTIVES, COLOURS, NOUNS, THINGS, TOPICS, VERBS, pick


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
    if tool.kind in DEEDS:
        return any(verb in question for verb in ("tell me about", "repeat", "echo", "say", "find", "what is ", "who ",
                                                 "search", "send", "turn on", "timer"))  # fmt: skip
    return tool.noun in question or (tool.noun == "age" and "old" in question)


# ---------------------------------------------------------------- schemas

def parameter(r: random.Random, key: str, kind: str, about: str) -> dict[str, Any]:
    described = {"type": kind, "description": about} if r.random() < 0.45 else {"type": kind}
    return dict(reversed(described.items())) if r.random() < 0.1 else described


def function(
    r: random.Random, name: str, about: str, properties: dict[str, Any], required: list[str]
) -> dict[str, Any]:
    parameters: dict[str, Any] = {"type": "object", "properties": properties}
    if required and r.random() < 0.85:
        parameters["required"] = required
    if r.random() < 0.1:
        parameters["additionalProperties"] = False
    if r.random() < 0.1:
        parameters = {key: parameters[key] for key in sorted(parameters)}
    described = {"description": about if r.random() < 0.8 else ""}  # llama.cpp writes one that is missing so
    return {"name": name, **described, "parameters": parameters}


def styled(r: random.Random, name: str) -> str:
    """Some words as get_weather, getWeather or get-weather."""
    words = name.split()
    chance = r.random()
    if chance < 0.8:
        return "_".join(words)
    return words[0] + "".join(map(str.capitalize, words[1:])) if chance < 0.93 else "-".join(words)


def lookup(r: random.Random) -> Tool:
    """get_weather(city) and its many cousins."""
    noun = "weather" if r.random() < 0.3 else r.choice(NOUNS)
    names = "get {0}|get {0}|get current {0}|{0} lookup|lookup {0}|{0}|find {0}|fetch {0}|{0} of|read {0}"
    name = styled(r, pick(r, names).format(noun))
    key = pick(r, "city|city|location|location|place|town|name|query|id|country|item|q")
    about = pick(r, f"Get the {noun} of a {key}|Get the {noun} for a {key}.|Returns the {noun}|"
                    f"Get the current {noun} in a given {key}|Look up the {noun} of a {key}.")  # fmt: skip
    properties = {key: parameter(r, key, "string", pick(r, f"The {key}|Name of the {key}|{key} name|{key}"))}
    keys: tuple[str, ...] = (key,)
    if noun in ("weather", "temperature", "forecast") and r.random() < 0.35:
        properties["unit"] = {"type": "string", "enum": ["celsius", "fahrenheit"]}
        keys = (key, "unit")
    return Tool(name, "lookup", noun, keys, function(r, name, about, properties, [key]), pairs_up=True)


def arithmetic(r: random.Random) -> Tool:
    kind, names = r.choice((
        ("add", "add|sum|add numbers|plus|calculate sum|add two numbers"), ("add", "add|sum|add numbers"),
        ("multiply", "multiply|mul|multiply numbers|times|product"),
        ("subtract", "subtract|minus|subtract numbers|difference"),
    ))  # fmt: skip
    name = styled(r, pick(r, names))
    keys = tuple(pick(r, "a b|a b|x y|first second|left right|n m|num1 num2").split())
    number = r.choice(("number", "integer"))
    places = zip(keys, ("first", "second"), strict=True)
    properties = {key: parameter(r, key, number, f"The {place} number") for key, place in places}
    about = pick(r, f"{kind.capitalize()} two numbers|{kind.capitalize()} numbers.|{kind}s two numbers")
    return Tool(name, kind, kind, keys, function(r, name, about, properties, list(keys)))


def clock(r: random.Random) -> Tool:
    name = styled(r, pick(r, "get time|get current time|time|current time|clock|now"))
    about = pick(r, "Get the current time|Returns the time.|Tells the time")
    keys = () if r.random() < 0.5 else (pick(r, "city|timezone|location|place"),)
    properties = {key: parameter(r, key, "string", f"The {key}") for key in keys}
    return Tool(name, "clock", "time", keys, function(r, name, about, properties, list(keys)))


# Per kind: names, choices for each key, the keys' types, description.
DEEDS: dict[str, tuple[str, tuple[str, ...], tuple[str, ...], str]] = {
    "search": ("search|web search|search web|find|search documents", ("query|q|text|term",), ("string",),
               "Search for something"),
    "send": ("send message|send mail|send email|message|notify", ("to|recipient|user", "text|message|body"),
             ("string", "string"), "Send a message to somebody"),
    "switch": ("turn on|switch on|enable|turn on device", ("device|name|what",), ("string",), "Turn on a device"),
    "timer": ("set timer|timer|start timer|wait", ("minutes|duration|time",), ("integer",), "Set a timer in minutes"),
    "dice": ("roll dice|roll|dice|roll die", ("sides|faces|n",), ("integer",), "Roll a dice"),
}  # fmt: skip


def deed(r: random.Random) -> Tool:
    """Tools that do something: search, send, switch, timer, dice."""
    kind = pick(r, "search|send|switch|timer|dice|search|send")
    names, all_keys, kinds, about = DEEDS[kind]
    name = styled(r, pick(r, names))
    keys = tuple(pick(r, choices) for choices in all_keys)
    properties = {key: parameter(r, key, of, f"The {key}") for key, of in zip(keys, kinds, strict=True)}
    return Tool(name, kind, kind, keys, function(r, name, about, properties, list(keys)))


def invented(r: random.Random) -> Tool:
    """A tool that only its name and the question's words tie together."""
    verb, noun = r.choice(VERBS), r.choice(THINGS)
    name = styled(r, f"{verb} {noun}")
    key = pick(r, f"name|id|value|path|colour|target|key|label|{noun}")
    properties = {key: parameter(r, key, "string", f"The {key}")}
    about = pick(r, f"{verb.capitalize()} a {noun}|{verb.capitalize()} the {noun}.")
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
    why = pick(r, "not found|timeout|no access|unknown place|invalid argument|service is down")
    return json.dumps({"error": why}), f"The tool failed: {why}."


def some_letters(r: random.Random) -> str:
    return "".join(r.choice("bdfgklmnprst") + r.choice("aeiou") for _ in range(r.randint(2, 3)))


def value_of(r: random.Random) -> Any:
    return r.choice((
        pick(r, "sunny|rainy|cloudy|windy|snowy|foggy|hot|cold|warm|clear"), some_letters(r), f"{r.randint(-9, 40)} C",
        r.randint(-20, 40), r.randint(0, 9999), r.choice(COLOURS), r.choice(ADJECTIVES),
        f"{r.randint(-9, 35)} degrees", f"{pick(r, 'sunny|rain|clouds|snow')}, {r.randint(-9, 35)} C",
        some_letters(r).capitalize(),
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


LOOKUP_ASKS = (
    "What is the {noun} in {subject}?|What's the {noun} in {subject}?|What is the {noun} of {subject}?|"
    "Tell me the {noun} of {subject}.|Get the {noun} for {subject}.|{noun} in {subject}?|"
    "I want to know the {noun} in {subject}.|What is the {noun} in {subject} today?|"
    "Look up the {noun} of {subject}.|What is the current {noun} in {subject}?|Find the {noun} for {subject}.|"
    "Do you know the {noun} in {subject}?|{Noun} of {subject}, please."
)
WEATHER_ASKS = "How is the weather in {0}?|What is the weather like in {0}?|How's the weather in {0} today?"


def use_lookup(r: random.Random, tool: Tool, subject: str) -> Call:
    noun = tool.noun
    ask = pick(r, LOOKUP_ASKS).format(noun=noun, Noun=noun.capitalize(), subject=subject)
    if noun in ("weather", "temperature", "forecast") and r.random() < 0.4 and noun == "weather":
        ask = pick(r, WEATHER_ASKS).format(subject)
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
    ask = pick(r, f"What is {a} {sign} {b}?|What is {a} {word} {b}?|{lead.format(a, b)}|{a} {sign} {b}|"
                  f"Calculate {a} {sign} {b}.|How much is {a} {word} {b}?|What's {a}{sign}{b}?")  # fmt: skip
    answer = f"{a} {sign} {b} = {result}."
    text = str(result) if r.random() < 0.5 else json.dumps({pick(r, "result|value|sum"): result})
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
        ask = pick(r, "What time is it?|What's the time?|Tell me the time.|What time is it now?|The time, please.")
        return Call(ask, {}, text, answer)
    ask = pick(r, f"What time is it in {subject}?|What's the time in {subject}?|Tell me the time in {subject}.|"
                  f"What is the current time in {subject}?")  # fmt: skip
    return Call(ask, {tool.keys[0]: subject}, text, answer, subject)


def some_words(r: random.Random) -> str:
    return " ".join(r.choice((*ADJECTIVES, *THINGS, *TOPICS)) for _ in range(r.randint(1, 4)))


def use_deed(r: random.Random, tool: Tool, subject: str) -> Call:
    words, n = some_words(r), r.randint(1, 90)
    answer = "Done."
    values: tuple[str | int, ...]
    if tool.kind == "search":
        values = (subject if r.random() < 0.5 else words,)
        ask = pick(r, "Search for {}.|Find {}.|Look for {}.|Search the web for {}.|Please search {}.")
        result = some_words(r)
        answer = f"I found: {result}."
    elif tool.kind == "send":
        values = (subject, words)
        ask = pick(r, 'Send a message to {}: {}|Tell {}: {}|Send "{1}" to {0}.|Write to {}: {}')
        result = pick(r, 'ok|sent|{"ok": true}|done')
    elif tool.kind == "switch":
        values = (r.choice(THINGS),)
        ask = pick(r, "Turn on the {}.|Switch on the {}.|Please turn on the {}.|Can you turn on the {}?")
        result = pick(r, 'ok|{"ok": true}|done|on')
    elif tool.kind == "timer":
        values = (n,)
        ask = pick(r, "Set a timer for {} minutes.|Start a timer: {} minutes.|Wake me in {} minutes.")
        result = pick(r, 'ok|started|{"ok": true}')
    else:
        values, result = (n,), str(r.randint(1, n))
        ask = pick(r, "Roll a dice with {} sides.|Roll a {} sided dice.|Roll a die with {} faces.")
        answer = f"It is {result}."
    ask = ask.format(*values)
    if failure := failed(r):
        result, answer = failure
    return Call(ask, dict(zip(tool.keys, values, strict=True)), result, answer)


def use_invented(r: random.Random, tool: Tool, subject: str) -> Call:
    verb = tool.name.replace("-", "_").split("_")[0]
    verb = next((known for known in VERBS if verb.startswith(known)), verb)
    key = tool.keys[0]
    what = subject if r.random() < 0.6 else r.choice(COLOURS)
    ask = pick(r, f"{verb.capitalize()} the {tool.noun} {what}.|{verb.capitalize()} {tool.noun} {what}|"
                  f"Call {tool.name} with {key} {what}.|Use {tool.name} with {what}.|"
                  f"Please {verb} the {tool.noun} with {key} {what}.|Use the tool {tool.name}: {what}")  # fmt: skip
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
