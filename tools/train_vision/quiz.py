"""Shows a server pictures at temperature 0 and prints how many of its answers were right, as JSON.

`python quiz.py http://127.0.0.1:1234 lmlite-tiny-vision [SEED]`, for any server that speaks OpenAI's chat completions
and serves the model with its tower; with --verbose wrong answers go to stderr. Training saw none of the pictures.
"""

import base64
import json
import re
import struct
import sys
import urllib.request
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from pictures import COLOURS, SHAPES, Seen, any_seen, draw

PICTURES = 60  # of each kind of question
SIDES = (56, 96, 200, 640)
LONGEST_ANSWER = 40  # tokens
QUESTIONS = (
    ("What is in the picture?", True, True), ("What colour is the shape?", True, False),
    ("Which shape do you see?", False, True), ("Describe this image.", True, True), ("What color is it?", True, False),
    ("What shape is it?", False, True),
)  # fmt: skip
SMALL_TALK = (
    ("Hello!", "help"), ("Who are you?", "lmlite-tiny"), ("What is 3 + 4?", "3 + 4 = 7"), ("Count to 5.", "1, 2, 3, 4, 5"),
    ("Thank you!", "welcome"), ("Where is Zagreb?", "do not know"), ("Tell me about a cat.", "hat"), ("Goodbye!", "Goodbye"),
)  # fmt: skip

Message = dict[str, Any]
Right = Callable[[str], bool]
Turns = list[tuple[list[Message], Right | None]]  # what is said to it, and whether its answer is right; None: never mind


def png(picture: np.ndarray) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, _ = picture.shape
    rows = b"".join(b"\0" + row.tobytes() for row in picture)
    head = chunk(b"IHDR", struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def part(r: np.random.Generator, seen: Seen) -> Message:
    side = int(r.choice(SIDES))
    url = "data:image/png;base64," + base64.b64encode(png(draw(r, seen, side, side))).decode()
    return {"type": "image_url", "image_url": {"url": url}}


def shown(r: np.random.Generator, seen: Seen, ask: str) -> Message:
    """A turn with a picture, before its text or after."""
    text, picture = {"type": "text", "text": ask}, part(r, seen)
    return said([picture, text] if r.random() < 0.5 else [text, picture])


def said(content: Any, role: str = "user") -> Message:
    return {"role": role, "content": content}


def names(seen: Seen, colour: bool, shape: bool) -> Right:
    """Whether an answer names what is asked for, and no other."""

    def right(answer: str) -> bool:
        words = set(re.findall("[a-z]+", answer.lower()))
        colours, shapes = words & set(COLOURS), words & set(SHAPES)
        return colours <= {seen[0]} and shapes <= {seen[1]} and len(colours) >= colour and len(shapes) >= shape

    return right


def has(text: str) -> Right:
    return lambda answer: text in answer


def question(r: np.random.Generator, seen: Seen) -> tuple[str, Right]:
    ask, colour, shape = QUESTIONS[r.integers(len(QUESTIONS))]
    return ask, names(seen, colour, shape)


def small_talk(r: np.random.Generator) -> tuple[str, Right]:
    ask, answer = SMALL_TALK[r.integers(len(SMALL_TALK))]
    return ask, has(answer)


def first_turn(r: np.random.Generator) -> Turns:
    seen = any_seen(r)
    ask, right = question(r, seen)
    return [([shown(r, seen, ask)], right)]


def later_turn(r: np.random.Generator) -> Turns:
    seen = any_seen(r)
    first, second, third = (question(r, seen) for _ in range(3))
    return [([shown(r, seen, first[0])], None), ([said(second[0])], second[1]), ([said(third[0])], third[1])]


def after_small_talk(r: np.random.Generator) -> Turns:
    seen = any_seen(r)
    ask, right = question(r, seen)
    return [([said(small_talk(r)[0])], None), ([shown(r, seen, ask)], right)]


def small_talk_between(r: np.random.Generator) -> Turns:
    seen = any_seen(r)
    (ask, _), (again, right) = question(r, seen), question(r, seen)
    talk, fits = small_talk(r)
    return [([shown(r, seen, ask)], None), ([said(talk)], fits), ([said(again)], right)]


def small_talk_beside(r: np.random.Generator) -> Turns:
    ask, right = small_talk(r)
    return [([shown(r, any_seen(r), ask)], right)]


def without_a_word(r: np.random.Generator) -> Turns:
    seen = any_seen(r)
    return [([said([part(r, seen)])], names(seen, True, True))]


def new_picture(r: np.random.Generator) -> Turns:
    old, seen = any_seen(r), any_seen(r)
    (first, _), (ask, right), (again, still) = question(r, old), question(r, seen), question(r, seen)
    return [([shown(r, old, first)], None), ([shown(r, seen, ask)], right), ([said(again)], still)]


def result_of_a_tool(r: np.random.Generator) -> Turns:
    seen = any_seen(r)
    call = {"id": "call_1", "type": "function", "function": {"name": "take_screenshot", "arguments": "{}"}}
    result = {"role": "tool", "tool_call_id": "call_1", "content": [part(r, seen)]}
    asked = [said("Take a screenshot. What do you see?"), {"role": "assistant", "content": "", "tool_calls": [call]}, result]
    return [(asked, names(seen, True, True))]


def no_picture(r: np.random.Generator) -> Turns:
    return [([said(question(r, any_seen(r))[0])], has("no picture"))]


KINDS = (
    first_turn, later_turn, after_small_talk, small_talk_between, small_talk_beside, without_a_word, new_picture,
    result_of_a_tool, no_picture,
)  # fmt: skip
TOOL = {"name": "take_screenshot", "description": "Take a picture", "parameters": {"type": "object", "properties": {}}}


def answers(url: str, model: str, turns: Turns, tools: bool) -> Iterator[tuple[str, Right | None]]:
    messages: list[Message] = []
    for sayings, right in turns:
        messages += sayings
        body = {"model": model, "messages": messages, "temperature": 0, "max_tokens": LONGEST_ANSWER}
        if tools:
            body["tools"] = [{"type": "function", "function": TOOL}]
        request = urllib.request.Request(
            f"{url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=120) as response:
            answer = json.load(response)["choices"][0]["message"]["content"] or ""
        messages.append(said(answer, "assistant"))
        yield answer, right


def words_of(turns: Turns) -> list[Any]:
    parts = [part for sayings, _ in turns for saying in sayings for part in listed(saying["content"])]
    return [part.get("text", "(picture)") for part in parts]


def listed(content: Any) -> list[Message]:
    return [{"text": content}] if isinstance(content, str) else content


def main(url: str, model: str, seed: int = 1, *, verbose: bool) -> None:
    r = np.random.default_rng([seed, 424242])
    right: Counter[str] = Counter()
    asked: Counter[str] = Counter()
    for kind in KINDS:
        name = kind.__name__.replace("_", " ")
        for _ in range(PICTURES):
            turns = kind(r)
            for answer, fits in answers(url, model, turns, kind is result_of_a_tool):
                if fits is None:
                    continue
                asked[name] += 1
                right[name] += fits(answer)
                if verbose and not fits(answer):
                    print(f"{name}: {words_of(turns)}: {answer!r}", file=sys.stderr)
    print(json.dumps({name: f"{right[name]}/{n}" for name, n in asked.items()}))


if __name__ == "__main__":
    plain = [argument for argument in sys.argv[1:] if not argument.startswith("-")]
    main(plain[0].rstrip("/"), plain[1], *map(int, plain[2:3]), verbose="--verbose" in sys.argv)
