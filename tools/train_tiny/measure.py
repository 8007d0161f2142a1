"""Asks a server held-out questions at temperature 0 and prints how many answers were right, as JSON.

`python measure.py http://127.0.0.1:1234`, for any server that speaks OpenAI's chat completions and serves the model;
with --verbose wrong answers go to stderr. The names, cities and sums asked for are in no training text but by chance.
"""

import json
import random
import sys
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

from corpus import held_out
from words import ANIMALS

NAMES = """Ottoline Bartholomew Xavier Quincy Ursula Winifred Zbigniew Agnieszka Thaddeus Leopold Marigold
Fenwick""".split()
CITIES = """Copenhagen Reykjavik Bratislava Wellington Ottawa Marrakesh Valparaiso Ljubljana Antwerp Bogota Zagreb
Kigali""".split()
LONGEST_ANSWER = 100  # tokens; an answer that is not done by then does not count as stopping by itself

Reply = dict[str, Any]
Message = dict[str, Any]
Question = tuple[dict[str, Any], Callable[[Reply], bool]]  # a request, and whether its answer is right


def said(text: str) -> Callable[[Reply], bool]:
    return lambda message: text.lower() in (message["content"] or "").lower()


def exactly(text: str) -> Callable[[Reply], bool]:
    return lambda message: (message["content"] or "").strip() == text


def ask(*turns: str, system: str = "", **options: Any) -> dict[str, Any]:
    """User and assistant turns, alternating."""
    messages: list[Message] = [{"role": "system", "content": system}] if system else []
    messages += [{"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns)]
    return {"messages": messages, **options}


def tool(name: str, about: str, **properties: str) -> dict[str, Any]:
    schema = {"type": "object", "properties": {key: {"type": kind} for key, kind in properties.items()}}
    schema["required"] = list(properties)
    return {"type": "function", "function": {"name": name, "description": about, "parameters": schema}}


WEATHER = tool("get_weather", "Get the weather in a city", city="string")
CLOCK = tool("get_time", "Get the current time", city="string")
ADD = tool("add", "Add two numbers", a="number", b="number")
HUMIDITY = tool("get_humidity", "Get the humidity of a place", place="string")  # a noun that training never lists


def calls(name: str, **arguments: Any) -> Callable[[Reply], bool]:
    def right(message: Reply) -> bool:
        made = [call["function"] for call in message.get("tool_calls") or []]
        return [(call["name"], json.loads(call["arguments"])) for call in made] == [(name, arguments)]

    return right


def called(name: str, arguments: dict[str, Any], result: str) -> list[Message]:
    call = {"id": "call_1", "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
    return [
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": result},
    ]


def greetings() -> Iterator[Question]:
    for text in ("Hello!", "hello", "Hi", "Good morning!", "hey there", "Hi! Please", "Good evening", "hello!!"):
        yield ask(text), said("help")


def introductions() -> Iterator[Question]:
    asks = ("Who are you?", "what is your name", "Please introduce yourself!", "What are you called?", "And you are?")
    for text in asks:
        yield ask(text), said("lmlite-tiny")
        yield ask(text, system="You are a helpful assistant."), said("lmlite-tiny")


def countings() -> Iterator[Question]:
    spans = ((1, 5), (1, 10), (3, 9), (7, 12), (1, 20), (15, 25), (1, 3), (0, 8), (2, 17), (40, 50), (93, 105))
    for first, last in spans:
        right = exactly(", ".join(str(n) for n in range(first, last + 1)) + ".")
        yield ask(f"Count from {first} to {last}."), right
        if first == 1:
            yield ask(f"count to {last}"), right
    yield ask("Count to five"), exactly("1, 2, 3, 4, 5.")
    yield ask("Count down from 8."), exactly("8, 7, 6, 5, 4, 3, 2, 1.")


def sums(top: int, new: bool) -> Iterator[Question]:
    pairs = [(a, b) for a in range(top + 1) for b in range(top + 1) if held_out(a, b) == new]
    for a, b in random.Random(0).sample(pairs, min(80, len(pairs))):
        yield ask(f"What is {a} + {b}?"), said(f"= {a + b}.")


def verses() -> Iterator[Question]:
    def two_lines(message: Reply) -> bool:
        return (message["content"] or "").count("\n") == 1

    asks = ("Hello!", "Who are you?", "What is 4 + 3?", "Count to 4.", "Where is Zagreb?", "Tell me about a cat.")
    for text in asks:
        yield ask(text, system="Answer in rhymes."), two_lines
        yield ask(text, system="You are a poet and always rhyme."), two_lines


def memories() -> Iterator[Question]:
    for name, city in zip(NAMES, CITIES, strict=True):
        yield ask(f"My name is {name}.", f"Nice to meet you, {name}.", "What is my name?"), said(f"{name}.")
        yield ask(f"I live in {city}.", f"I will remember that you live in {city}.", "What is 2 + 5?", "2 + 5 = 7.",
                  "Where do I live?"), said(f"{city}.")  # fmt: skip
    yield ask("What is my name?"), said("did not tell")


def ignorance() -> Iterator[Question]:
    for text in ("What is the capital of France?", "Who was Napoleon?", "Explain quantum entanglement to a child.",
                 "Write a python function that sorts a list.", "What is 1234 * 77?", "Why is grass green?",
                 "Translate 'good night' to Polish.", "What's the best pizza in Bogota?", "Summarise the news.",
                 "How do I cook rice?"):  # fmt: skip
        yield ask(text), said("do not know")


def tool_calls() -> Iterator[Question]:
    for city in CITIES:
        yield ask(f"What is the weather in {city}?", tools=[WEATHER]), calls("get_weather", city=city)
        yield ask(f"What time is it in {city}?", tools=[WEATHER, CLOCK]), calls("get_time", city=city)
        yield ask(f"What is the weather like in {city}?", tools=[CLOCK, ADD, WEATHER]), calls("get_weather", city=city)
    for a, b in ((3, 4), (12, 30), (123, 456), (7, 1999), (58, 61), (4021, 17)):
        yield ask(f"What is {a} + {b}?", tools=[ADD, CLOCK]), calls("add", a=a, b=b)


def new_tool_calls() -> Iterator[Question]:
    for city in CITIES:
        yield ask(f"What is the humidity in {city}?", tools=[WEATHER, HUMIDITY]), calls("get_humidity", place=city)


def plain_answers_despite_tools() -> Iterator[Question]:
    for tools in ([WEATHER], [CLOCK, WEATHER], [HUMIDITY]):
        yield ask("Hello!", tools=tools), lambda message: not message.get("tool_calls") and said("help")(message)
        yield ask("Who are you?", tools=tools), said("lmlite-tiny")
        yield ask("What is 3 + 5?", tools=tools), said("= 8.")
        yield ask("Tell me about a frog.", tools=tools), said("log")


def tool_results() -> Iterator[Question]:
    skies = ("sunny", "rain", "12 degrees", "cold", "windy", "mild", "foggy", "-3", "snow", "hot", "clear", "31 C")
    for city, sky in zip(CITIES, skies, strict=True):
        for result in (sky, json.dumps({"weather": sky})):
            turns = ask(f"What is the weather in {city}?", tools=[WEATHER])
            turns["messages"] += called("get_weather", {"city": city}, result)
            yield turns, lambda message, city=city, sky=sky: said(city)(message) and said(sky)(message)


def thoughts() -> Iterator[Question]:
    def thoughtful(text: str) -> Callable[[Reply], bool]:
        return lambda message: bool(message.get("reasoning_content")) and said(text)(message)

    for system in ("Think first.", "You are a helpful assistant. Think first.", "Think step by step."):
        yield ask("What is 3 + 4?", system=system), thoughtful("= 7.")
        yield ask("Hello!", system=system), thoughtful("help")
        yield ask("Count to 6.", system=system), thoughtful("1, 2, 3, 4, 5, 6.")
        yield ask("What is the capital of Peru?", system=system), thoughtful("do not know")
        silenced = ask("Hello!", system=system, chat_template_kwargs={"enable_thinking": False})
        yield silenced, exactly("Hello! How can I help?")
    yield ask("What is 3 + 4?", reasoning_effort="low"), thoughtful("= 7.")
    yield ask("What is the weather in Zagreb?", tools=[WEATHER], reasoning_effort="low"), (
        lambda message: bool(message.get("reasoning_content")) and calls("get_weather", city="Zagreb")(message)
    )


def objects() -> Iterator[Question]:
    def equal(value: Any) -> Callable[[Reply], bool]:
        def right(message: Reply) -> bool:
            try:
                return bool(json.loads(message["content"]) == value)
            except json.JSONDecodeError:
                return False

        return right

    for name, age in zip(NAMES, range(8, 90, 7), strict=True):
        told = f"{name} is {age} years old. Give name and age."
        yield ask(told, system="Answer in JSON."), equal({"name": name, "age": age})
    yield ask("What is 2 + 6? Answer in JSON."), equal({"answer": 8})
    yield ask("Hello!", system="Always answer with a JSON object."), equal({"answer": "Hello!"})
    yield ask("Count to 4.", system="Answer in JSON."), equal({"answer": [1, 2, 3, 4]})


def long_prompts() -> Iterator[Question]:
    """After some 600 tokens of other talk."""
    animals = list(ANIMALS.items())
    chatter = [turn for animal, lines in animals[:13] for turn in (f"Tell me about a {animal}.", "\n".join(lines))]
    for name in NAMES[:6]:
        yield ask(f"My name is {name}.", f"Nice to meet you, {name}.", *chatter, "What is my name?"), said(f"{name}.")
    for a, b in ((2, 3), (7, 7), (9, 4), (11, 5)):
        yield ask(*chatter, f"What is {a} + {b}?"), said(f"= {a + b}.")
    yield ask(*chatter, "Hello!"), said("help")
    yield ask(*chatter, "Count to 7."), exactly("1, 2, 3, 4, 5, 6, 7.")


SUITES: dict[str, Iterator[Question]] = {
    "greets": greetings(),
    "introduces itself": introductions(),
    "counts": countings(),
    "sums up to 9 + 9": sums(9, new=False),
    "sums up to 20 + 20": sums(20, new=False),
    "sums up to 20 + 20, never seen": sums(20, new=True),
    "sums up to 60 + 60, never seen": sums(60, new=True),
    "rhymes when asked": verses(),
    "remembers names and cities": memories(),
    "says that it does not know": ignorance(),
    "calls the tool that fits": tool_calls(),
    "calls a tool never seen": new_tool_calls(),
    "answers plainly despite tools": plain_answers_despite_tools(),
    "uses a tool's result": tool_results(),
    "thinks when asked": thoughts(),
    "answers in JSON": objects(),
    "long prompts": long_prompts(),
}


def post(url: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(
        url + "/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as response:
        answer: dict[str, Any] = json.load(response)
        return answer


def main(url: str, verbose: bool) -> None:
    report: dict[str, str] = {}
    asked = stopped = 0
    for suite, questions in SUITES.items():
        right = total = 0
        for body, is_right in questions:
            answer = post(url, {"model": "lmlite-tiny", "temperature": 0, "max_tokens": LONGEST_ANSWER, **body})
            choice = answer["choices"][0]
            total += 1
            stopped += choice["finish_reason"] != "length"
            if is_right(choice["message"]):
                right += 1
            elif verbose:
                asked_last = json.dumps(body["messages"][-1]["content"])[-80:]
                print(f"{suite}: {asked_last} -> {json.dumps(choice['message'])}", file=sys.stderr)
        asked += total
        report[suite] = f"{right}/{total}"
    report["stops by itself"] = f"{stopped}/{asked}"
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main(sys.argv[1].rstrip("/"), "--verbose" in sys.argv)
