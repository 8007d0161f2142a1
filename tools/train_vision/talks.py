"""Conversations about pictures, as messages: what is asked of them, and what else is talked of beside them.

A kind of talk is spelled by its signs. Each is a turn, and "[" before it says that the turn brings a picture:
"?" asks about the newest picture, "." brings it without a word, "-" talks of something else, "@" lets a tool fetch it.
"""

import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pictures import COLOURS, SHAPES, Seen

sys.path.append(str(Path(__file__).resolve().parent.parent / "train_tiny"))
from corpus import Message, any_system, coin, exchange, worn  # noqa: E402
from words import pick  # noqa: E402

PICTURE = "\ufffc"  # stands in a text where a picture is; in no other text

KINDS = (
    "[?", "[?", "[?", "[??", "[??", "[???", "[?-?", "[-", "[-", "[-?", "-[?", "-[??", "[.", "[.?", "[?[?", "[??[??", "?", "-?",
    "[@", "[@?",
)  # fmt: skip
FIRST_KINDS = ("[?",)

NO_PICTURE = "I see no picture."
SYSTEM_SHARE = 0.15

# What may be asked, and the answer.
ASKED = (
    ("What is in the picture?|What is in this picture?|What is in the image?|What is in this image?|What do you see?|"
     "What is this?|What can you see?|Describe the picture.|Describe this picture.|Describe the image.|"
     "Describe this image.|What does the picture show?|What is shown here?|What do you see in the picture?|"
     "What's in this image?|What's in the picture?|What is on the picture?|Tell me what you see.|What do you see here?|"
     "What do you see in this image?|Look at this picture.|And this?|What about this one?",
     "A {colour} {shape}."),
    ("What colour is the shape?|What color is the shape?|Which colour is the shape?|What colour is it?|What color is it?|"
     "Which colour is it?|Which colour do you see?|What colour do you see?|What is the colour of the shape?|"
     "And the colour?|And its colour?|And what colour is it?|Which color is the shape?|What colour does it have?|"
     "Name the colour.|The colour?|What colour is the {shape}?|What is its colour?|And which colour is it?",
     "It is {colour}."),
    ("Which shape do you see?|What shape do you see?|What shape is it?|Which shape is it?|And the shape?|"
     "What shape is in the picture?|Which shape is in the picture?|What shape is this?|And which shape is it?|"
     "And what shape is it?|Name the shape.|Which shape is this?|The shape?|What is the shape?|What kind of shape is it?|"
     "Which shape is {colour}?|What is its shape?",
     "It is a {shape}."),
)  # fmt: skip

TOOLS = ("take_screenshot", "get_image", "camera", "look", "take_photo", "read_image", "show_picture", "view_image")
FETCHING = (
    "Take a screenshot. What do you see?|Take a picture and describe it.|What does the camera see?|Look at {name}.|"
    "What is in {name}?|Take a photo.|Show me {name}.|Describe the picture {name}.|Look at the screen.|What is on the screen?"
)


def about(r: random.Random, seen: Seen) -> tuple[str, str]:
    colour, shape = seen
    if r.random() < 0.12:
        return yes_or_no(r, seen)
    asks, answer = r.choice(ASKED)
    ask = pick(r, asks).format(colour=colour, shape=shape)
    return ask.lower() if r.random() < 0.1 else ask, answer.format(colour=colour, shape=shape)


def yes_or_no(r: random.Random, seen: Seen) -> tuple[str, str]:
    colour, shape = seen
    if r.random() < 0.5:
        guess = colour if r.random() < 0.5 else r.choice(list(COLOURS))
        ask, said = pick(r, "Is it {}?|Is the shape {}?|Is this {}?").format(guess), f"it is {colour}."
        return ask, ("Yes, " if guess == colour else "No, ") + said
    guess = shape if r.random() < 0.5 else r.choice(SHAPES)
    ask, said = pick(r, "Is it a {}?|Is this a {}?|Do you see a {}?").format(guess), f"it is a {shape}."
    return ask, ("Yes, " if guess == shape else "No, ") + said


def beside(r: random.Random) -> tuple[str, str]:
    """Small talk, and what lmlite-tiny has learned to answer."""
    while True:
        turn = exchange(r, {})
        if len(turn.ask) < 80 and len(turn.say) < 80:
            return worn(r, turn.ask), turn.say


def with_picture(r: random.Random, ask: str) -> str:
    between = "\n" if r.random() < 0.15 else ""  # some programs put a line end between the two
    return PICTURE + between + ask if r.random() < 0.5 else ask + between + PICTURE


def talk(r: random.Random, kind: str, album: Iterator[Seen]) -> tuple[list[Message], dict[str, Any]]:
    """Messages, and the chat template's variables. Takes a picture from the album for each "["."""
    messages: list[Message] = []
    variables: dict[str, Any] = {}
    if r.random() < SYSTEM_SHARE:
        messages.append({"role": "system", "content": any_system(r)})
    seen: Seen | None = None
    brings = False
    for sign in kind:
        if sign == "[":
            seen, brings = next(album), True
            continue
        whole = "A {} {}.".format(*seen) if seen else NO_PICTURE
        if sign == "@":
            fetched, variables = fetching(r)
            messages += [*fetched, {"role": "assistant", "content": whole}]
        elif sign == ".":
            messages += [{"role": "user", "content": PICTURE}, {"role": "assistant", "content": whole}]
        else:
            ask, answer = beside(r) if sign == "-" else about(r, seen or (r.choice(list(COLOURS)), r.choice(SHAPES)))
            if sign == "?" and seen is None:
                answer = NO_PICTURE
            ask = with_picture(r, ask) if brings else ask
            messages += [{"role": "user", "content": ask}, {"role": "assistant", "content": answer}]
        brings = False
    return messages, variables


def fetching(r: random.Random) -> tuple[list[Message], dict[str, Any]]:
    """A picture as a tool's result."""
    tool, key = r.choice(TOOLS), r.choice(("", "name", "path", "file"))
    ask = pick(r, FETCHING)
    if "{name}" not in ask:
        key = ""
    name = r.choice((coin(r).lower(), f"{coin(r).lower()}.png"))
    arguments = {key: name} if key else {}
    parameters = {"type": "object", "properties": {name: {"type": "string"} for name in arguments}}
    about_it = pick(r, "Get a picture|Look at a picture|Take a picture|Get an image|See what is there|Make a screenshot")
    listed = {"type": "function", "function": {"name": tool, "description": about_it, "parameters": parameters}}
    call = {"type": "function", "function": {"name": tool, "arguments": arguments}}
    result = PICTURE if r.random() < 0.6 else r.choice(("ok\n", "Here it is.\n", f"{name}\n")) + PICTURE
    messages: list[Message] = [
        {"role": "user", "content": ask.format(name=name)},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": result},
    ]
    return messages, {"tools": [listed]}
