"""Pictures end to end: the real engine and the bundled model that sees name what is drawn, whoever's words they come in."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from lmlite import Server
from lmlite.package import bundled_vision_model
from tests.conftest import Client, bare_server
from tests.drawings import COLOURS, SHAPES, drawing, named, part
from tests.voices import BY_ID, CHAT, VOICES, WITH_HISTORY, Message, Said, Voice

MODEL = "lmlite-tiny-vision"
WHAT, COLOUR, SHAPE = "What is in the picture?", "What colour is the shape?", "Which shape do you see?"
EVERYTHING = [(colour, shape) for colour in COLOURS for shape in SHAPES]
LIMIT = 24
PACKAGED_MAX = 2_000_000
"""Bytes that the model, its projector and its card may add to the package."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Of its own, so that loading this model unloads nobody else's."""
    with bare_server(tmp_path_factory.mktemp("home")) as server:
        yield server


@pytest.fixture
def seeing(server: Server) -> Iterator[Client]:
    client = Client(server.port)
    yield client
    client.close()


def by_name(found: Iterable[Voice]) -> list[Any]:
    return [pytest.param(voice, id=voice.name) for voice in found]


def user(*parts: str | bytes) -> Message:
    content = [{"type": "text", "text": given} if isinstance(given, str) else part(given) for given in parts]
    return {"role": "user", "content": content}


def text(words: str) -> Message:
    return {"role": "user", "content": words}


def ask(voice: Voice, client: Client, *messages: Message, stream: bool = False, **more: Any) -> Said:
    return voice.ask(client, messages, (), LIMIT, stream=stream, model=MODEL, **more)


def share(right: list[bool]) -> float:
    return sum(right) / len(right)


def test_every_colour_and_shape_is_named_whatever_is_asked_and_wherever_the_picture_stands(seeing: Client) -> None:
    right = []
    for i, (colour, shape) in enumerate(EVERYTHING):
        picture = drawing(colour, shape, (56, 96, 200)[i % 3])
        for question, answer in ((WHAT, {colour, shape}), (COLOUR, {colour}), (SHAPE, {shape})):
            for message in (user(picture, question), user(question, picture)):
                right.append(named(ask(CHAT, seeing, message).text) == answer)
    assert share(right) >= 0.95


@pytest.mark.parametrize("voice", by_name(VOICES))
def test_every_dialect_gives_the_same_answer_whole_and_streamed(seeing: Client, voice: Voice) -> None:
    for seed, (colour, shape) in enumerate(EVERYTHING[::4]):
        message = user(drawing(colour, shape, seed=seed), WHAT)
        reference = ask(CHAT, seeing, message)
        assert named(reference.text) == {colour, shape}
        for stream in (False, True):
            said = ask(voice, seeing, message, stream=stream)
            assert (said.text, said.n_prompt or reference.n_prompt) == (reference.text, reference.n_prompt)


@pytest.mark.parametrize("voice", by_name(WITH_HISTORY))
def test_later_turns_are_about_the_same_picture(seeing: Client, voice: Voice) -> None:
    right = []
    for seed, (colour, shape) in enumerate(EVERYTHING):
        messages = [user(drawing(colour, shape, seed=seed), WHAT)]
        for question, answer in ((COLOUR, {colour}), (SHAPE, {shape})):
            messages += [ask(voice, seeing, *messages).message(), text(question)]
            right.append(named(ask(voice, seeing, *messages).text) == answer)
    assert share(right) >= 0.8


@pytest.mark.parametrize("voice", by_name(BY_ID))
def test_a_kept_conversation_keeps_its_picture(seeing: Client, voice: Voice) -> None:
    right = []
    for seed, (colour, shape) in enumerate(EVERYTHING):
        first = ask(voice, seeing, user(drawing(colour, shape, seed=seed), COLOUR), stream=bool(seed % 2))
        second = ask(voice, seeing, text(SHAPE), previous_response_id=first.id)
        right += [named(first.text) == {colour}, named(second.text) == {shape}]
    assert share(right) >= 0.8


def test_an_answer_that_was_begun_is_brought_to_its_end(seeing: Client) -> None:
    for seed, (colour, shape) in enumerate(EVERYTHING[1::4]):
        begun = {"role": "assistant", "content": f"A {colour}"}
        said = ask(CHAT, seeing, user(drawing(colour, shape, seed=seed), WHAT), begun, continue_final_message=True,
                   add_generation_prompt=False)  # fmt: skip
        assert named(said.text) == {shape}


def test_what_is_not_about_the_picture_is_answered_as_without_it(seeing: Client) -> None:
    right = []
    for question, answer in (("Hello!", "help"), ("Who are you?", "lmlite-tiny"), ("Count to 5.", "1, 2, 3, 4, 5")):
        for colour, shape in EVERYTHING[::4]:
            said = ask(CHAT, seeing, user(drawing(colour, shape), question))
            right.append(answer in said.text and not named(said.text))
    assert share(right) >= 0.8


def test_a_picture_may_come_after_other_talk_and_be_followed_by_another(seeing: Client) -> None:
    chance, right = random.Random(5), []
    for _ in range(8):
        (colour, shape), other = chance.choice(EVERYTHING), chance.choice(EVERYTHING)
        messages = [text("Hello!"), {"role": "assistant", "content": "Hello! How can I help?"}]
        messages.append(user(drawing(colour, shape), WHAT))
        said = ask(CHAT, seeing, *messages)
        messages += [said.message(), user(drawing(*other, seed=1), WHAT)]
        right += [named(said.text) == {colour, shape}, named(ask(CHAT, seeing, *messages).text) == set(other)]
    assert share(right) >= 0.8


@pytest.mark.parametrize("voice", by_name(WITH_HISTORY))
def test_a_tool_may_bring_the_picture(seeing: Client, voice: Voice) -> None:
    tool = {"type": "function", "function": {"name": "take_screenshot", "description": "Takes a picture.", "parameters": {
        "type": "object", "properties": {}}}}  # fmt: skip
    call = {"id": "call_1", "type": "function", "function": {"name": "take_screenshot", "arguments": "{}"}}
    right = []
    for colour, shape in EVERYTHING[::3]:
        messages = [text("Take a screenshot. What do you see?"), {"role": "assistant", "content": "", "tool_calls": [call]}]
        messages.append({"role": "tool", "tool_call_id": "call_1", "content": [part(drawing(colour, shape))]})
        said = voice.ask(seeing, messages, [tool], LIMIT, model=MODEL)
        right.append(named(said.text) == {colour, shape})
    assert share(right) >= 0.8


def test_the_model_that_sees_adds_little_to_the_package_and_says_what_it_is() -> None:
    files = {path.suffix: path for path in bundled_vision_model().parent.iterdir()}
    assert sum(path.stat().st_size for path in bundled_vision_model().parent.iterdir()) <= PACKAGED_MAX
    assert "A toy that sees" in files[".md"].read_text()


def test_the_bundled_text_model_says_that_it_does_not_see(seeing: Client) -> None:
    body = {"model": "lmlite-tiny", "messages": [user(drawing("red", "circle"), WHAT)]}
    answer = seeing.post("/v1/chat/completions", body)
    assert answer.status == 400
    assert MODEL in answer.json["error"]["message"]  # there is one that does
