"""Pictures and sound through a whole server, to a fake engine: what it is sent, what clients are told, what is kept."""

from __future__ import annotations

import asyncio
import asyncio.base_events
import base64
import json
import socket
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from lmlite.app import media
from lmlite.core.engine.frames import Kind
from lmlite.core.engine.payloads import MEDIA_MAX
from lmlite.mcp import http as web
from tests.conftest import Answer, FakeServer
from tests.fakes import BROKEN, MEDIA_TOKENS
from tests.test_log_stream import Ear

Serve = Callable[..., FakeServer]

PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 200
WAV = b"RIFF\x10\0\0\0WAVEfmt " + bytes(500)


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def url(data: bytes) -> str:
    return f"data:image/png;base64,{encoded(data)}"


@pytest.fixture
def served(serve_fake: Serve, model_folder: Path, seeing: Path) -> FakeServer:
    return serve_fake(models_dir=[model_folder, seeing])


# ---- what each dialect asks, and its answer --------------------------------------------------------------------------


def chat(picture: bytes, model: str = "seer", **more: Any) -> dict[str, Any]:
    content = [{"type": "text", "text": "What?"}, {"type": "image_url", "image_url": {"url": url(picture), "detail": "auto"}}]
    return {"model": model, "messages": [{"role": "user", "content": content}], **more}


def responses(picture: bytes, model: str = "seer", **more: Any) -> dict[str, Any]:
    content = [{"type": "input_text", "text": "What?"}, {"type": "input_image", "image_url": url(picture), "detail": "auto"}]
    return {"model": model, "input": [{"role": "user", "content": content}], **more}


def messages(picture: bytes, model: str = "seer", **more: Any) -> dict[str, Any]:
    source = {"type": "base64", "media_type": "image/png", "data": encoded(picture)}
    content = [{"type": "text", "text": "What?"}, {"type": "image", "source": source}]
    return {"model": model, "max_tokens": 9, "messages": [{"role": "user", "content": content}], **more}


def native(picture: bytes, model: str = "seer", **more: Any) -> dict[str, Any]:
    items = [{"type": "text", "content": "What?"}, {"type": "image", "data_url": url(picture)}]
    return {"model": model, "input": items, **more}


Ask = Callable[..., dict[str, Any]]
DIALECTS: dict[str, tuple[Ask, str]] = {
    "/v1/chat/completions": (chat, "messages[0].content[1].image_url.url"),
    "/api/v0/chat/completions": (chat, "messages[0].content[1].image_url.url"),
    "/v1/responses": (responses, "input[0].content[1].image_url"),
    "/v1/messages": (messages, "messages[0].content[1].source.data"),
    "/api/v1/chat": (native, "input[1].data_url"),
}
PATHS = pytest.mark.parametrize("path", DIALECTS)


def input_tokens(answer: Any) -> int:
    usage = answer.get("usage") or answer["stats"]
    return int(usage["prompt_tokens"] if "prompt_tokens" in usage else usage["input_tokens"])


def message_of(answer: Answer) -> str:
    error = answer.json["error"]
    return str(error if isinstance(error, str) else error["message"])


@PATHS
def test_a_picture_goes_to_the_engine_as_it_is(served: FakeServer, path: str) -> None:
    ask, _ = DIALECTS[path]
    client = served.client()
    whole = client.post(path, ask(PNG))
    assert whole.status == 200 and "quick" in whole.body.decode()
    if path != "/v1/messages":
        assert input_tokens(whole.json) == len("<user>What?") + MEDIA_TOKENS
    streamed = client.post(path, ask(PNG, stream=True))
    assert streamed.headers["Content-Type"] == "text/event-stream" and "quick" in streamed.body.decode()
    assert served.engine.media == [PNG, PNG]
    told = [command for kind, _, command in served.engine.commands if kind == Kind.GENERATE]
    media_part = {"type": "media", "kind": "image", "index": 0}
    assert [command["messages"][-1]["content"] for command in told] == [[{"type": "text", "text": "What?"}, media_part]] * 2


@PATHS
@pytest.mark.parametrize("stream", [False, True])
def test_what_the_engine_cannot_read_is_told_at_its_place(served: FakeServer, path: str, stream: bool) -> None:
    ask, where = DIALECTS[path]
    client = served.client()
    assert client.post(path, ask(PNG)).status == 200  # a stream that waits for a load has begun by then
    answer = client.post(path, ask(BROKEN, stream=stream))
    assert answer.status == 400
    assert where in message_of(answer)
    assert answer.json["error"].get("param", where) == where


@PATHS
def test_a_model_that_cannot_see_says_which_can(served: FakeServer, path: str) -> None:
    ask, _ = DIALECTS[path]
    answer = served.client().post(path, ask(PNG, model="talker"))
    assert answer.status == 400 and message_of(answer) == 'Model "talker" does not support pictures: seer can'
    assert not served.engines, "it is not loaded for that"


def test_where_no_model_sees_that_is_said(fake_server: FakeServer) -> None:
    answer = fake_server.client().post("/v1/chat/completions", chat(PNG, model="talker"))
    assert answer.status == 400 and answer.json["error"]["code"] == "model_type_mismatch"
    assert "no model here can see" in message_of(answer)


def test_sound_is_for_models_that_hear(served: FakeServer) -> None:
    sound = {"type": "input_audio", "input_audio": {"data": encoded(WAV), "format": "wav"}}
    body = {"model": "seer", "messages": [{"role": "user", "content": [sound]}]}
    client = served.client()
    refused = client.post("/v1/chat/completions", body)
    assert refused.status == 400 and message_of(refused) == 'Model "seer" does not support sound: hearer can'
    assert client.post("/v1/chat/completions", {**body, "model": "hearer"}).status == 200
    assert served.engine.media == [WAV]
    assert client.post("/v1/chat/completions", chat(PNG, model="hearer")).status == 400


def test_pictures_of_several_messages_are_counted_through(served: FakeServer) -> None:
    picture = {"type": "image_url", "image_url": {"url": url(b"one")}}
    other = {"type": "image_url", "image_url": {"url": url(b"two")}}
    call = {"id": "a", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    body = {
        "model": "seer",
        "messages": [
            {"role": "user", "content": [picture, {"type": "text", "text": "Look."}, other]},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "a", "content": [{"type": "text", "text": "Here:"}, picture]},
        ],
        "n": 2,
    }
    assert served.client().post("/v1/chat/completions", body).status == 200
    assert served.engine.media == [b"one", b"two", b"one"] * 2
    contents = [message["content"] for message in served.engine.commands[-1][2]["messages"]]
    assert [part.get("index") for content in contents if content for part in content] == [0, None, 1, None, 2]


def test_a_projector_can_be_left_out(serve_fake: Serve, seeing: Path) -> None:
    server = serve_fake(models_dir=[seeing], projector=False)
    client = server.client()
    answer = client.post("/v1/chat/completions", chat(PNG))
    assert answer.status == 400 and "loaded without its projector" in message_of(answer)
    hello = {"model": "seer", "messages": [{"role": "user", "content": "hi"}]}
    assert client.post("/v1/chat/completions", hello).status == 200
    (load,) = [command for kind, _, command in server.engine.commands if kind == Kind.LOAD]
    assert "projector" not in load


def test_of_two_instances_the_one_with_the_projector_gets_pictures(served: FakeServer) -> None:
    client = served.client()
    assert client.post("/api/v1/models/load", {"model": "seer", "projector": False}).status == 200
    refused = client.post("/v1/chat/completions", chat(PNG))
    assert refused.status == 400 and "loaded without its projector" in message_of(refused)
    assert client.post("/api/v1/models/load", {"model": "seer"}).json["instance_id"] == "seer:2"
    for _ in range(3):
        assert client.post("/v1/chat/completions", chat(PNG)).json["model"] == "seer:2"


def test_a_models_own_settings_can_leave_it_out(serve_fake: Serve, seeing: Path, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "model-settings.json").write_text(json.dumps({"seer": {"projector": False}}))
    answer = serve_fake(models_dir=[seeing]).client().post("/v1/chat/completions", chat(PNG))
    assert answer.status == 400 and "loaded without its projector" in message_of(answer)


def test_a_request_that_names_no_model_gets_the_loaded_one_that_sees(
    serve_fake: Serve, model_folder: Path, seeing: Path
) -> None:
    server = serve_fake(models_dir=[model_folder, seeing], auto_evict=False)
    client = server.client()
    for name in ("talker", "seer"):
        assert client.post("/v1/chat/completions", {**chat(PNG), "model": name}).status == (200 if name == "seer" else 400)
        said = {"model": name, "messages": [{"role": "user", "content": "hi"}]}
        assert client.post("/v1/chat/completions", said).status == 200
    body = chat(PNG)
    del body["model"]
    assert client.post("/v1/chat/completions", body).json["model"] == "seer"


def test_a_request_that_names_no_model_gets_the_only_one_that_sees(served: FakeServer) -> None:
    client = served.client()
    said = {"model": "talker", "messages": [{"role": "user", "content": "hi"}]}
    assert client.post("/v1/chat/completions", said).status == 200
    body = chat(PNG)
    del body["model"]
    assert client.post("/v1/chat/completions", body).json["model"] == "seer"


def test_more_pictures_than_a_conversation_may_have(served: FakeServer) -> None:
    picture = {"type": "image_url", "image_url": {"url": url(b"one")}}
    body = {"model": "seer", "messages": [{"role": "user", "content": [picture] * (MEDIA_MAX + 1)}]}
    answer = served.client().post("/v1/chat/completions", body)
    assert answer.status == 400 and f"messages[0].content[{MEDIA_MAX}].image_url.url" in message_of(answer)


# ---- counting --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "ask"),
    [("/v1/messages/count_tokens", messages), ("/v1/responses/input_tokens", responses),
     ("/v1/chat/completions/input_tokens", chat)],
)  # fmt: skip
def test_tokens_of_pictures_are_counted(served: FakeServer, path: str, ask: Ask) -> None:
    client = served.client()
    body = ask(PNG)
    counted = client.post(path, body)
    assert counted.status == 200, counted.body
    assert counted.json["input_tokens"] == len("<user>What?") + MEDIA_TOKENS
    assert client.post(path, ask(PNG, model="talker")).status == 400
    assert client.post(path, ask(BROKEN)).status == 400


# ---- what is kept ----------------------------------------------------------------------------------------------------


def kept(home: Path, query: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(home / "state.sqlite3")) as connection:
        return connection.execute(query).fetchall()


@pytest.mark.parametrize(("path", "ask", "id"), [("/v1/responses", responses, "id"), ("/api/v1/chat", native, "response_id")])
def test_a_conversation_that_goes_on_has_its_pictures_still(
    served: FakeServer, tmp_path: Path, path: str, ask: Ask, id: str
) -> None:
    client = served.client()
    first = client.post(path, ask(PNG)).json[id]
    second = client.post(path, {"model": "seer", "input": "And now?", "previous_response_id": first}).json
    third = client.post(path, ask(PNG, previous_response_id=second[id]))
    assert third.status == 200
    assert served.engine.media == [PNG] * 4
    files = [file for file in tmp_path.rglob("state.sqlite3")]
    (home,) = {file.parent for file in files}
    assert kept(home, "SELECT data FROM media") == [(PNG,)], "once"
    texts = kept(home, "SELECT asked || answer || body || items FROM exchanges")
    assert not any(encoded(PNG)[:40] in text for (text,) in texts)


def test_the_input_of_a_response_is_told_as_it_was_sent(served: FakeServer) -> None:
    client = served.client()
    body = responses(PNG)
    id = client.post("/v1/responses", body).json["id"]
    (item,) = client.get(f"/v1/responses/{id}/input_items").json["data"]
    assert item["content"] == body["input"][0]["content"]
    again = client.post("/v1/responses", {"model": "seer", "input": [{"type": "item_reference", "id": item["id"]}]})
    assert again.status == 200 and served.engine.media == [PNG, PNG]
    for response in (id, again.json["id"]):
        assert client.ask("DELETE", f"/v1/responses/{response}").status == 200


def test_the_last_conversation_to_go_takes_its_pictures_along(served: FakeServer, tmp_path: Path) -> None:
    client = served.client()
    ids = [client.post("/v1/responses", responses(picture)).json["id"] for picture in (PNG, PNG, b"other")]
    (home,) = {file.parent for file in tmp_path.rglob("state.sqlite3")}
    for id, left in zip(ids, (2, 1, 0), strict=True):
        client.ask("DELETE", f"/v1/responses/{id}")
        assert len(kept(home, "SELECT digest FROM media")) == left
    assert kept(home, "SELECT bytes FROM history") == [(0,)]


def test_the_engine_refuses_a_picture_of_an_earlier_turn_in_words(served: FakeServer) -> None:
    client = served.client()
    first = client.post("/v1/responses", responses(PNG)).json["id"]
    broken = b"broken later"
    (home,) = {file.parent for file in Path(served.config.home).rglob("state.sqlite3")}
    with closing(sqlite3.connect(home / "state.sqlite3")) as connection, connection:
        connection.execute("UPDATE media SET data = ?", (broken,))
    answer = client.post("/v1/responses", {"model": "seer", "input": "Go on", "previous_response_id": first})
    assert answer.status == 400 and "picture or sound 1 of the conversation" in message_of(answer)


def test_the_log_shows_marks_and_never_the_picture(served: FakeServer) -> None:
    ear = Ear(served.client())
    assert served.client().post("/v1/chat/completions", chat(PNG)).status == 200
    told = ear.next()
    assert told is not None and told["input"] == "<user>What?<image>"


# ---- by URL ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def shop() -> Iterator[Callable[[dict[str, bytes]], int]]:
    """A web server on loopback: gives each path's raw answer; counts its connections."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    servers: list[asyncio.base_events.Server] = []

    def open_at(pages: dict[str, bytes]) -> int:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            head = await reader.readuntil(b"\r\n\r\n")
            writer.write(pages[head.split()[1].decode()])
            await writer.drain()
            writer.close()

        async def begin() -> int:
            servers.append(await asyncio.start_server(answer, "127.0.0.1", 0))
            port: int = servers[-1].sockets[0].getsockname()[1]
            return port

        return asyncio.run_coroutine_threadsafe(begin(), loop).result(30)

    yield open_at
    for server in servers:
        loop.call_soon_threadsafe(server.close)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def page(body: bytes, status: str = "200 OK", more: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\n{more}Content-Length: {len(body)}\r\n\r\n".encode() + body


def named(address: str) -> dict[str, Any]:
    content = [{"type": "image_url", "image_url": {"url": address}}]
    return {"model": "seer", "messages": [{"role": "user", "content": content}]}


WHERE = "messages[0].content[0].image_url.url"


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/chat/completions/input_tokens"])
def test_an_address_is_not_followed_unless_the_operator_allows_it(served: FakeServer, path: str) -> None:
    answer = served.client().post(path, named("http://127.0.0.1:1/a.png"))
    assert answer.status == 400 and "--fetch-media" in message_of(answer) and WHERE in message_of(answer)
    assert not served.engines


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "169.254.169.254", "[::1]", "10.0.0.1", "0.0.0.0"])
def test_addresses_of_this_machine_and_its_network_are_refused(serve_fake: Serve, seeing: Path, host: str) -> None:
    server = serve_fake(models_dir=[seeing], fetch_media=True)
    answer = server.client().post("/v1/chat/completions", named(f"http://{host}:1/a.png"))
    assert answer.status == 400 and "non-public" in message_of(answer)


@pytest.fixture
def fetching(serve_fake: Serve, seeing: Path, monkeypatch: pytest.MonkeyPatch) -> FakeServer:
    """For which loopback is as public as any address."""
    monkeypatch.setattr(web, "kind", lambda address: "public")
    return serve_fake(models_dir=[seeing], fetch_media=True)


def test_what_is_allowed_is_fetched(fetching: FakeServer, shop: Callable[[dict[str, bytes]], int]) -> None:
    port = shop({"/a.png": page(PNG)})
    client = fetching.client()
    assert client.post("/v1/chat/completions", named(f"http://127.0.0.1:{port}/a.png")).status == 200
    item = {"role": "user", "content": [{"type": "input_image", "image_url": f"http://127.0.0.1:{port}/a.png"}]}
    id = client.post("/v1/responses", {"model": "seer", "input": [item]}).json["id"]
    (told,) = client.get(f"/v1/responses/{id}/input_items").json["data"]
    assert told["content"] == item["content"]
    assert client.post("/v1/responses", {"model": "seer", "input": "Go on", "previous_response_id": id}).status == 200
    assert fetching.engine.media == [PNG] * 3


def test_what_cannot_be_fetched_is_told(
    fetching: FakeServer, shop: Callable[[dict[str, bytes]], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(media, "BYTES_MAX", 1000)
    pages = {
        "/moved": page(b"", "302 Found", "Location: http://127.0.0.1/a.png\r\n"),
        "/gone": page(b"no", "404 Not Found"),
        "/large": page(bytes(1001)),
        "/empty": page(b""),
        "/odd": b"hello\r\n\r\n",
    }
    port = shop(pages)
    client = fetching.client()
    for path in (*pages, ":1/"):
        address = f"http://127.0.0.1:{port}{path}" if path.startswith("/") else "http://127.0.0.1:1/"
        answer = client.post("/v1/chat/completions", named(address))
        assert answer.status == 400 and f"'{WHERE}' cannot be fetched" in message_of(answer), path
    assert not fetching.engines


def test_a_server_that_does_not_answer_is_not_waited_for(
    fetching: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(media, "FETCH_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        answer = fetching.client().post("/v1/chat/completions", named(f"http://127.0.0.1:{port}/a.png"))
    assert answer.status == 400 and "takes more than" in message_of(answer)


def test_too_many_addresses_are_refused(fetching: FakeServer) -> None:
    part = {"type": "image_url", "image_url": {"url": "http://127.0.0.1:1/"}}
    body = {"model": "seer", "messages": [{"role": "user", "content": [part] * (media.LINKS_MAX + 1)}]}
    answer = fetching.client().post("/v1/chat/completions", body)
    assert answer.status == 400 and f"content[{media.LINKS_MAX}]" in answer.body.decode()
