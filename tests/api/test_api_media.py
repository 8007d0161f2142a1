"""Pictures and sound in every dialect: the same parts whatever the spelling, and what is none of them is refused by name."""

from __future__ import annotations

import base64
import json
import random
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from lmlite.api.kept_media import with_media, without_media
from lmlite.api.lmstudio import chat as native
from lmlite.api.openai import responses_items
from lmlite.api.read import media
from lmlite.api.read.media import decode, decode_piece, parse_url
from lmlite.errors import InvalidRequest, LmError
from lmlite.messages import MediaPart, Message, TextPart, ToolCallPart, ToolResultPart, media_of
from lmlite.request import Chat, senses
from tests.api.golden_files import PARSE

PNG = b"\x89PNG\r\n\x1a\n and so on"
WAV = b"RIFF\x10\0\0\0WAVEfmt "
PICTURE, SOUND = base64.b64encode(PNG).decode(), base64.b64encode(WAV).decode()
URL, SOUND_URL = f"data:image/png;base64,{PICTURE}", f"data:audio/wav;base64,{SOUND}"
TEXT = TextPart("What is it?")
SEEN = MediaPart("image", PNG)
HEARD = MediaPart("audio", WAV)
SAID: dict[str, Any] = {"type": "text", "text": TEXT.text}


def chat(*parts: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": list(parts)}]}


def responses(*items: Any) -> dict[str, Any]:
    return {"model": "m", "input": list(items)}


def messages(*blocks: Any) -> dict[str, Any]:
    return {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": list(blocks)}]}


def user(*parts: Any) -> dict[str, Any]:
    return {"type": "message", "role": "user", "content": list(parts)}


def source(**more: Any) -> dict[str, Any]:
    return {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PICTURE, **more}}


ASKED = Message("user", (TEXT, SEEN))
CALLED: dict[str, Any] = {"role": "assistant", "tool_calls": [{"id": "a", "function": {"name": "look", "arguments": "{}"}}]}
CLICKED = {"type": "computer_call", "id": "c", "call_id": "a", "action": {"type": "click", "button": "left", "x": 1, "y": 2},
           "pending_safety_checks": [], "status": "completed"}  # fmt: skip
SCREENSHOT = {"type": "computer_screenshot", "image_url": URL}
CASES: list[tuple[str, dict[str, Any], Message, str]] = [
    ("openai_chat", chat(SAID, {"type": "image_url", "image_url": {"url": URL, "detail": "low"}}), ASKED,
     "messages[0].content[1].image_url.url"),
    ("v0_chat", chat(SAID, {"type": "image_url", "image_url": URL}), ASKED, "messages[0].content[1].image_url"),
    ("openai_chat", chat(SAID, {"type": "input_image", "image_url": URL, "detail": "high"}), ASKED,
     "messages[0].content[1].image_url"),
    ("openai_chat", chat({"type": "input_audio", "input_audio": {"data": SOUND, "format": "wav"}}, SAID),
     Message("user", (HEARD, TEXT)), "messages[0].content[0].input_audio.data"),
    ("v0_chat", chat({"type": "audio_url", "audio_url": {"url": SOUND_URL}}), Message("user", (HEARD,)),
     "messages[0].content[0].audio_url.url"),
    ("openai_chat", {"messages": [CALLED, {"role": "tool", "tool_call_id": "a", "content": [
        SAID, {"type": "image_url", "image_url": {"url": URL}}]}]},
     Message("tool", (ToolResultPart("a", "look", (TEXT, SEEN)),)), "messages[1].content[1].image_url.url"),
    ("openai_responses", responses(user({"type": "input_text", "text": TEXT.text}, {"type": "input_image", "image_url": URL})),
     ASKED, "input[0].content[1].image_url"),
    ("openai_responses", responses(user({"type": "input_audio", "input_audio": {"data": SOUND, "format": "mp3"}})),
     Message("user", (HEARD,)), "input[0].content[0].input_audio.data"),
    ("openai_responses", responses({"type": "function_call", "call_id": "a", "name": "look", "arguments": "{}"}, {
        "type": "function_call_output", "call_id": "a", "output": [
            {"type": "input_text", "text": TEXT.text}, {"type": "input_image", "image_url": URL}]}),
     Message("tool", (ToolResultPart("a", "look", (TEXT, SEEN)),)), "input[1].output[1].image_url"),
    ("openai_responses", responses(CLICKED, {"type": "computer_call_output", "call_id": "a", "output": SCREENSHOT}),
     Message("tool", (ToolResultPart("a", "computer", (SEEN,)),)), "input[1].output.image_url"),
    ("messages", messages(SAID, source()), ASKED, "messages[0].content[1].source.data"),
    ("messages", messages(SAID, source(media_type="image/jpeg")), ASKED, "messages[0].content[1].source.data"),
    ("messages", messages({"type": "tool_result", "tool_use_id": "a", "is_error": True, "content": [source(), SAID]}),
     Message("tool", (ToolResultPart("a", "", (TextPart("Error"), SEEN, TEXT)),)),
     "messages[0].content[0].content[0].source.data"),
    ("native", {"model": "m", "input": [{"type": "text", "content": TEXT.text}, {"type": "image", "data_url": URL}]}, ASKED,
     "input[1].data_url"),
]  # fmt: skip


def chat_of(dialect: str, body: dict[str, Any]) -> Chat:
    prompt = PARSE[dialect](body).turn.runs[0].prompt
    assert isinstance(prompt, Chat)
    return prompt


@pytest.mark.parametrize(("dialect", "body", "message", "where"), CASES, ids=[f"{case[0]}-{case[3]}" for case in CASES])
def test_every_dialect_reads_media(dialect: str, body: dict[str, Any], message: Message, where: str) -> None:
    prompt = chat_of(dialect, body)
    assert prompt.messages[-1] == message
    (part,) = media_of(prompt.messages)
    assert part.where == where
    assert senses(prompt) == {"vision" if part.kind == "image" else "audio"}


@pytest.mark.parametrize("url", [URL, URL.upper().replace(PICTURE.upper(), PICTURE), f"data:;charset=x;base64,{PICTURE}",
                                 f"data:application/octet-stream;base64,{PICTURE}"])  # fmt: skip
def test_a_data_url_may_say_little_of_its_type(url: str) -> None:
    assert parse_url(url, "x", "image").data == PNG


@pytest.mark.parametrize(
    "url",
    ["", PICTURE, "file:///etc/passwd", "/etc/passwd", "ftp://a/b.png", "data:", "data:,", "data:image/png,abc",
     "data:;base64,",
     f"data:image/png;base64,{PICTURE[:-1]}", f"data:image/png;base64,{PICTURE[:8]}\n{PICTURE[8:]}",
     f"data:image/png;base64,{PICTURE[:8]} {PICTURE[8:]}==", "data:image/png;base64,A-_A", "data:image/png;base64,AA=A",
     "data:image/png;base64,====", "data:image/png;base64,AAAé", f"data:application/pdf;base64,{PICTURE}",
     f"data:audio/wav;base64,{PICTURE}", f"data:image/png;{'x' * 2000};base64,{PICTURE}", "http://", "https:// a",
     f"http://a/{'x' * 9000}"],
)  # fmt: skip
def test_what_is_no_picture_is_refused_where_it_stands(url: str) -> None:
    body = chat(SAID, {"type": "image_url", "image_url": {"url": url}})
    with pytest.raises(InvalidRequest) as refused:
        chat_of("openai_chat", body)
    assert refused.value.param == "messages[0].content[1].image_url.url"
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize(
    ("dialect", "body", "param"),
    [
        ("openai_chat", chat({"type": "image_url"}), "messages[0].content[0].image_url"),
        ("openai_chat", chat({"type": "image_url", "image_url": {}}), "messages[0].content[0].image_url.url"),
        ("openai_chat", chat({"type": "image_url", "image_url": 7}), "messages[0].content[0].image_url"),
        ("openai_chat", chat({"type": "image_url", "image_url": {"url": URL, "detail": 7}}),
         "messages[0].content[0].image_url.detail"),
        ("openai_chat", {"messages": [{"role": "assistant", "content": [{"type": "image_url", "image_url": {"url": URL}}]}]},
         "messages[0].content[0].type"),
        ("openai_responses", responses({"role": "system", "content": [{"type": "input_image", "image_url": URL}]}),
         "input[0].content[0].type"),
        ("openai_responses", responses(user({"type": "input_file", "file_data": "data:application/pdf;base64,AAAA"})),
         "input[0].content[0].type"),
        ("openai_responses", responses(user({"type": "input_image", "file_id": "file-1"})), "input[0].content[0].file_id"),
        ("openai_responses", responses(CLICKED, {"type": "computer_call_output", "call_id": "a", "output": {
            "type": "computer_screenshot", "file_id": "file-1"}}), "input[1].output.file_id"),
        ("messages", messages(source(data="A")), "messages[0].content[0].source.data"),
        ("messages", messages(source(media_type="application/pdf")), "messages[0].content[0].source.media_type"),
        ("messages", messages({"type": "image", "source": {"type": "file", "file_id": "a"}}),
         "messages[0].content[0].source.type"),
        ("messages", messages({"type": "image"}), "messages[0].content[0].source"),
        ("native", {"model": "m", "input": [{"type": "image"}]}, "input[0].data_url"),
        ("native", {"model": "m", "input": [{"type": "image", "data_url": URL, "detail": "low"}]}, "detail"),
    ],
)  # fmt: skip
def test_errors_name_the_place_as_each_dialect_does(dialect: str, body: dict[str, Any], param: str) -> None:
    with pytest.raises(LmError) as refused:
        chat_of(dialect, body)
    assert (refused.value.status, refused.value.param) == (400, param)


def test_an_address_on_the_web_is_only_noted() -> None:
    block = {"type": "image", "source": {"type": "url", "url": "https://a/b.png"}}
    (part,) = media_of(chat_of("messages", messages(block)).messages)
    assert (part.url, part.data, part.where) == ("https://a/b.png", b"", "messages[0].content[0].source.url")


@pytest.mark.parametrize("n", [1, 2, 3, 49_151, 49_152, 49_153, 49_154, 150_000])
def test_base64_is_read_across_the_steps_of_its_decoder(n: int) -> None:
    data = random.Random(n).randbytes(n)
    text = base64.b64encode(data).decode()
    assert decode(text, "x") == data
    for broken in (text[:-1], f"{text}AAAA="[: len(text) + 4] if text.endswith("=") else text[:-4] + "A=AA", "!" + text[1:]):
        with pytest.raises(InvalidRequest):
            decode(broken, "x")


def test_no_picture_is_printed() -> None:
    part = MediaPart("image", PNG, url="https://a/secret")
    assert "PNG" not in repr(part) and "secret" not in repr(part)


# ---- what is kept of a request ---------------------------------------------------------------------------------------


def test_the_items_that_are_kept_hold_digests_and_give_back_what_was_sent() -> None:
    part = {"type": "input_image", "image_url": URL}
    audio = {"type": "input_audio", "input_audio": {"data": SOUND, "format": "wav"}}
    given = [
        user({"type": "input_text", "text": "a"}, part, audio),
        {"type": "function_call_output", "call_id": "a", "output": [part]},
        {"type": "computer_call_output", "call_id": "b", "output": SCREENSHOT},
        {"type": "reasoning", "content": []},
    ]
    read = responses_items.parse_input(given, [])
    kept = responses_items.keep_input(without_media(given, "input", read))
    assert PICTURE not in "".join(kept) and SOUND not in "".join(kept)
    assert given[0]["content"][1] is part, "what the request has is as it was"
    told = with_media([json.loads(item) for item in kept], read)
    assert told[0]["content"] == given[0]["content"] and told[1]["output"] == given[1]["output"]
    assert told[2]["output"] == SCREENSHOT


def test_a_click_is_a_call_with_what_was_done_as_its_arguments() -> None:
    came = {"type": "computer_call_output", "call_id": "a", "output": "none"}
    prompt = chat_of("openai_responses", responses(CLICKED, came))
    (call,), (result,) = prompt.messages[0].parts, prompt.messages[1].parts
    assert isinstance(call, ToolCallPart) and call.name == "computer"
    assert json.loads(call.arguments) == {"action": CLICKED["action"]}
    assert result == ToolResultPart("a", "computer", (TextPart("none"),))


def test_a_list_of_many_pictures_is_copied_once() -> None:
    copies = []

    class Content(list[Any]):
        def __iter__(self) -> Iterator[Any]:
            copies.append(len(self))
            return super().__iter__()

    content = [{"type": "input_image", "image_url": URL} for _ in range(20)]
    read = responses_items.parse_input([user(*content)], [])
    kept = without_media([{**user(), "content": Content(content)}], "input", read)
    assert len(copies) == 1
    assert all(part["image_url"].startswith("lmlite-media:") for part in kept[0]["content"])


def test_text_that_looks_like_a_digest_stays_text() -> None:
    text = f"lmlite-media:{'0' * 64};data:image/png;base64,"
    item = user({"type": "input_text", "text": text}, {"type": "input_image", "image_url": URL})
    read = responses_items.parse_input([item], [])
    assert with_media({"a": [text]}, read) == {"a": [text]}


def test_a_picture_elsewhere_is_kept_by_its_address() -> None:
    given = [{"type": "image", "data_url": "http://a/b.png"}]
    read = (Message("user", tuple(native._parse_input(given))),)
    for part in media_of(read):
        part.fill(PNG)
    assert without_media(given, "input", read) == given


def test_base64_is_read_in_short_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody else has the interpreter during one."""
    steps: list[int] = []

    def noted(piece: str, is_last: bool) -> bytes:
        steps.append(len(piece))
        return decode_piece(piece, is_last)

    monkeypatch.setattr(media, "decode_piece", noted)
    assert decode(base64.b64encode(bytes(1 << 20)).decode(), "x") == bytes(1 << 20)
    assert max(steps) <= 1 << 16


STEPS = """
import base64, json, os, sys
from lmlite.api.kept_media import encode
from lmlite.api.openai.chat import parse_chat
from lmlite.api.read.json_body import parse_body

N_BYTES = 30 << 20
data = os.urandom(N_BYTES)
content = [{"type": "image_url", "image_url": {"url": "data:;base64," + base64.b64encode(data).decode()}}]
body = bytearray(json.dumps({"messages": [{"role": "user", "content": content}], "model": "m"}).encode())

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")

last, most, where = resident(), 0, None

def look(frame, event, argument):
    global last, most, where
    now = resident()
    if now - last > most:
        most, where = now - last, (frame.f_code.co_name, frame.f_lineno)
    last = now
    return look

sys.settrace(look)
call = parse_chat(parse_body(body))
again = encode(call.turn.runs[0].prompt.messages[0].parts[0].data)
sys.settrace(None)
assert again == content[0]["image_url"]["url"][len("data:;base64,"):]
print(most, *where)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a process is told here what memory it has")
def test_no_step_of_a_large_picture_makes_the_kernel_give_much_memory() -> None:
    """That is what joining pieces costs, and no other thread has the interpreter meanwhile. What is watched so closely is
    copied as it grows, and some of its former places are given back later."""
    done = subprocess.run([sys.executable, "-c", STEPS], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    most, *where = done.stdout.split()
    assert int(most) < 16 << 20, where
