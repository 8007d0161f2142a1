"""Who may do what, on a server that asks for tokens: route by route, in each family's words, from the moment of a change."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from lmlite.app.auth import GuardedDoor, Pace, Use
from lmlite.app.request_log import LINES_MAX
from lmlite.app.routes import ROUTES
from lmlite.config import Config
from lmlite.core.engine.frames import Kind
from lmlite.errors import ConfigError
from lmlite.principal import RIGHTS, Principal
from lmlite.store.database import Database
from lmlite.store.home import Home
from lmlite.store.tokens import TokenTable
from tests.conftest import TIMEOUT_S, Answer, Client, FakeServer
from tests.fakes import Gate, Script

Serve = Callable[..., FakeServer]
PUBLIC = {"/", "/health", "/ready", "/lmstudio-greeting"}
HELLO: dict[str, Any] = {"model": "talker", "messages": [{"role": "user", "content": "hi"}]}
EVERY = frozenset(RIGHTS)
NOW = 1_800_000_000.0


class Keys:
    """The tokens of a home folder, made and revoked as another process would."""

    def __init__(self, folder: Path):
        self._database = Database(Home(folder).state)
        self.tokens = TokenTable(self._database)

    def create(self, name: str, rights: frozenset[str] = EVERY, scope: str | None = None, **limits: int) -> str:
        return self.tokens.create(Principal(name, scope or f"token {name}", rights, **limits), NOW, None)

    def close(self) -> None:
        self._database.close()


@pytest.fixture
def keys(tmp_path: Path) -> Iterator[Keys]:
    home = Keys(tmp_path / "home")
    yield home
    home.close()


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def knock(client: Client, method: str, pattern: str, headers: dict[str, str] | None = None) -> Answer:
    path = re.sub(r"\{\w+\}", "x", pattern)
    return client.ask(method, path, {} if method == "POST" else None, headers)


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.pattern}")
def test_a4_every_route_asks_for_a_token_but_those_that_are_public(serve_fake: Serve, route: Any) -> None:
    client = serve_fake(auth=True).client()
    answer = knock(client, route.method, route.pattern)
    if route.pattern in PUBLIC:
        assert answer.status == 200 and route.right == ""
        return
    assert route.right in RIGHTS
    assert answer.status == 401
    assert answer.headers["WWW-Authenticate"].startswith("Bearer")
    assert "token is required" in json.dumps(answer.json)


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.pattern}")
def test_a5_a_token_opens_no_route_that_needs_another_right(serve_fake: Serve, keys: Keys, route: Any) -> None:
    if not route.right:
        return
    client = serve_fake(auth=True).client()
    others = keys.create("others", EVERY - {route.right})
    answer = knock(client, route.method, route.pattern, bearer(others))
    assert answer.status == 403 and f"'{route.right}'" in answer.body.decode()
    just = keys.create("just", frozenset({route.right}))
    if route.pattern != "/lmlite/log":  # which does not end
        assert knock(client, route.method, route.pattern, bearer(just)).status not in (401, 403)


CHATTERS = {
    *("/v1/chat/completions", "/v1/chat/completions/input_tokens", "/v1/completions", "/v1/messages"),
    *("/v1/messages/count_tokens", "/v1/responses", "/v1/responses/input_tokens", "/v1/responses/{id}"),
    *("/v1/responses/{id}/cancel", "/v1/responses/{id}/input_items", "/api/v0/chat/completions", "/api/v0/completions"),
    *("/api/v1/chat", "/infill", "/apply-template", "/v1/tokenize", "/v1/detokenize"),
}
"""What one that may chat can ask for: each further route is thought about here."""


def test_a5_one_that_may_chat_may_nothing_else(serve_fake: Serve, keys: Keys) -> None:
    client = serve_fake(auth=True).client()
    chatter, all_rights = bearer(keys.create("chatter", frozenset({"chat"}))), bearer(keys.create("all"))
    assert client.post("/v1/chat/completions", HELLO, **all_rights).status == 200  # something is loaded
    let_in = set()
    for route in ROUTES:
        answer = knock(client, route.method, route.pattern, chatter)
        assert answer.status != 401
        if answer.status != 403:
            let_in.add(route.pattern)
    assert let_in == CHATTERS | PUBLIC
    mine = {"instance_id": "talker"}
    assert client.post("/api/v1/models/unload", mine, **chatter).status == 403
    (instance,) = client.get("/lmlite/instances", **all_rights).json["instances"]
    assert instance["identifier"] == "talker" and client.get("/lmlite/downloads", **all_rights).json["downloads"] == []


def test_a1_what_is_no_token_is_refused_and_nothing_fails_of_it(serve_fake: Serve, keys: Keys) -> None:
    client = serve_fake(auth=True).client()
    good = keys.create("good")
    for given in ("", "x", "sk-lm-", good[:-1], good[:-1] + "\xe9", good + "a", good.upper(), "sk-lm-AAAAAAAA:" + "a" * 20):
        answer = client.get("/v1/models", Authorization=f"Bearer {given}")
        assert answer.status == 401, given
        assert answer.json["error"]["code"] == "invalid_api_key"
    assert client.get("/v1/models", **bearer(good)).status == 200


def test_a1_a_token_without_end_is_no_token(serve_fake: Serve) -> None:
    server = serve_fake(auth=True)
    answer = server.client().get("/v1/models", Authorization="Bearer " + "a" * 8000)
    assert answer.status == 401 and answer.headers["WWW-Authenticate"].startswith("Bearer")
    with contextlib.suppress(OSError):  # it is answered, and may be cut before it has sent all
        assert server.client().get("/v1/models", Authorization="Bearer " + "a" * (1 << 20)).status == 431
    assert server.client().get("/health").status == 200


def test_a2_both_headers_and_no_other_way(serve_fake: Serve, keys: Keys, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    server = serve_fake(auth=True)
    client = server.client()
    token = keys.create("good")
    assert client.get("/v1/models", **{"x-api-key": token}).status == 200
    assert client.get("/v1/models", Authorization=f"bearer {token}").status == 200
    assert client.get("/v1/models", Authorization=f"Basic {token}").status == 401
    assert client.get("/v1/models", Authorization="Bearer no", **{"x-api-key": token}).status == 401
    assert client.get(f"/v1/models?token={token}").status == 401
    server.settle()
    assert token not in caplog.text and token.partition(":")[2] not in caplog.text
    for second in (token, "other"):
        with socket.create_connection(("127.0.0.1", server.port), TIMEOUT_S) as sock:
            heads = f"Authorization: Bearer {token}\r\nAuthorization: Bearer {second}\r\n"
            sock.sendall(f"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n{heads}\r\n".encode())
            assert sock.recv(1 << 16).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/v1/chat/completions", {"type": "invalid_request_error", "code": "invalid_api_key"}),
        ("/api/v0/chat/completions", {"type": "invalid_request_error", "code": "invalid_api_key"}),
        ("/api/v1/models/load", {"type": "invalid_request", "code": "invalid_api_key"}),
        ("/v1/messages", {"type": "authentication_error"}),
    ],
)
def test_each_family_says_it_in_its_own_words(serve_fake: Serve, path: str, expected: dict[str, str]) -> None:
    answer = serve_fake(auth=True).client().post(path, HELLO)
    assert answer.status == 401
    assert expected.items() <= answer.json["error"].items()


def test_a6_a_token_counts_from_when_it_is_made_until_it_is_revoked(serve_fake: Serve, keys: Keys) -> None:
    client = serve_fake(auth=True).client()
    assert client.get("/v1/models", **bearer("sk-lm-AAAAAAAA:" + "a" * 20)).status == 401  # there is no database yet
    token = keys.create("mine")
    assert client.get("/v1/models", **bearer(token)).status == 200
    assert keys.tokens.revoke("mine")
    assert client.get("/v1/models", **bearer(token)).status == 401
    assert not keys.tokens.revoke("mine")


def test_a6_a_stream_ends_whose_token_is_revoked_meanwhile_and_the_next_is_none(serve_fake: Serve, keys: Keys) -> None:
    gate = Gate(Kind.GENERATE)
    server = serve_fake(Script(hold=gate), auth=True)
    token = keys.create("mine")
    client = server.client()
    with ThreadPoolExecutor(1) as pool:
        stream = pool.submit(client.post, "/v1/chat/completions", {**HELLO, "stream": True}, **bearer(token))
        deadline = time.monotonic() + TIMEOUT_S
        while not any(kind == Kind.GENERATE for engine in server.engines for kind, _, _ in engine.commands):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert keys.tokens.revoke("mine")
        gate.open()
        assert stream.result().body.endswith(b"data: [DONE]\n\n")
    assert client.post("/v1/chat/completions", HELLO, **bearer(token)).status == 401


def test_a7_a_flood_of_wrong_tokens_is_refused_with_a_bounded_log(
    serve_fake: Serve, keys: Keys, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "lmlite")
    server = serve_fake(auth=True)
    keys.create("good")
    wrong = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer sk-lm-AAAAAAAA:%b\r\n\r\n" % (b"a" * 20)
    n, began = 1000, time.monotonic()
    with socket.create_connection(("127.0.0.1", server.port), TIMEOUT_S) as sock, sock.makefile("rb") as answers:
        for _ in range(n // 50):
            sock.sendall(wrong * 50)
            for _ in range(50):
                assert answers.readline().startswith(b"HTTP/1.1 401 ")
                while (line := answers.readline()) != b"\r\n":
                    if line.lower().startswith(b"content-length:"):
                        n_bytes = int(line.partition(b":")[2])
                answers.read(n_bytes)
    assert server.client().get("/health").status == 200
    n_seconds = int(time.monotonic() - began) + 2
    server.settle()
    lines = [record for record in caplog.records if record.name == "lmlite.app.request_log"]
    assert len(lines) <= (LINES_MAX + 1) * n_seconds and (len(lines) < n or n_seconds > n // LINES_MAX)


def test_without_auth_nobody_is_asked_and_any_key_will_do(serve_fake: Serve) -> None:
    client = serve_fake().client()
    assert client.get("/v1/models", Authorization="Bearer whatever").status == 200


def test_a8_an_address_that_others_reach_needs_tokens_or_a_word(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--auth"):
        Config.of(host=["0.0.0.0"], home=tmp_path)
    assert Config.of(host=["0.0.0.0"], home=tmp_path, auth=True).auth
    with pytest.raises(ConfigError, match="--auth"):
        Config.of(mcp=True, home=tmp_path)


def test_prompts_are_cached_and_turns_kept_for_those_of_one_scope_only(serve_fake: Serve, keys: Keys) -> None:
    server = serve_fake(auth=True)
    client = server.client()
    ann, ben = keys.create("ann", scope="group home"), keys.create("ben", scope="group home")
    eve = keys.create("eve")
    made = client.post("/v1/responses", {"model": "talker", "input": "hi", "store": True}, **bearer(ann))
    assert made.status == 200
    id = made.json["id"]
    assert client.get(f"/v1/responses/{id}", **bearer(ben)).status == 200
    assert client.get(f"/v1/responses/{id}", **bearer(eve)).status == 404
    on = {"model": "talker", "input": "and?", "previous_response_id": id}
    refused = client.post("/v1/responses", on, **bearer(eve))
    assert (refused.status, refused.json["error"]["code"]) == (400, "previous_response_not_found")
    assert client.ask("DELETE", f"/v1/responses/{id}", None, bearer(eve)).status == 404
    assert client.post("/v1/responses", on, **bearer(ben)).status == 200
    for token, salt in ((ann, None), (ben, None), (eve, None), (ann, "s")):
        assert client.post("/v1/chat/completions", {**HELLO, "cache_salt": salt}, **bearer(token)).status == 200
    scopes = [command.get("scope") for kind, _, command in server.engines[0].commands if kind == Kind.GENERATE][-4:]
    assert scopes[0] == scopes[1] and len({json.dumps(scope) for scope in scopes}) == 3


def test_a_token_may_have_so_many_requests_at_once(serve_fake: Serve, keys: Keys) -> None:
    gate, arrived = Gate(Kind.GENERATE), threading.Event()

    def hold(kind: Kind) -> None:
        if kind == Kind.GENERATE:
            arrived.set()
        gate(kind)

    server = serve_fake(Script(hold=hold), auth=True)
    few = bearer(keys.create("few", requests_max=1))
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(server.client().post, "/v1/chat/completions", HELLO, **few)
        assert arrived.wait(TIMEOUT_S)
        client = server.client()
        refused = client.post("/v1/chat/completions", HELLO, **few)
        assert (refused.status, refused.headers["Retry-After"]) == (429, "1")
        assert client.get("/v1/models", **few).status == 200
        gate.open()
        assert first.result().status == 200
        assert client.post("/v1/chat/completions", HELLO, **few).status == 200


def test_moments_are_given_out_at_a_pace_and_nobody_waits_for_longer_than_said() -> None:
    pace = Pace(10, 5, 2.0)
    assert [pace.wait_s(100.0) for _ in range(5)] == pytest.approx([0.0] * 5)
    assert [pace.wait_s(100.0) for _ in range(3)] == pytest.approx([0.1, 0.2, 0.3])
    assert max(pace.wait_s(100.0) for _ in range(1000)) == pytest.approx(2.0)
    assert pace.wait_s(101.0) == pytest.approx(1.1)
    assert pace.wait_s(200.0) == 0.0


def test_a7_who_knocks_too_often_waits_and_who_has_a_token_does_not(serve_fake: Serve, keys: Keys) -> None:
    waits = threading.Event()

    class Slow(Pace):
        def wait_s(self, now: float) -> float:
            wait_s = super().wait_s(now)
            if wait_s:
                waits.set()
            return wait_s

    server = serve_fake(auth=True, drain=0)
    good = bearer(keys.create("good"))
    door = server.service.app.door
    assert isinstance(door, GuardedDoor)
    door._refusals = Slow(0.001, 1, 3600.0)
    impatient = server.client()
    assert impatient.get("/v1/models").status == 401
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(impatient.get, "/v1/models")
        assert waits.wait(TIMEOUT_S)
        assert server.client().get("/v1/models", **good).status == 200
        assert server.client().get("/health").status == 200
        assert not waiting.done()
        server.close()
        assert waiting.result().status == 503


def test_tokens_per_minute_are_owed_and_forgiven_with_time() -> None:
    use = Use()
    assert use.wait_s(60, 100.0) == 0
    use.spend(90, 60, 100.0)
    assert use.wait_s(60, 100.0) == pytest.approx(30.0)
    assert use.wait_s(60, 129.0) == pytest.approx(1.0)
    assert use.wait_s(60, 131.0) == 0


def test_what_was_used_counts_for_the_next_request(serve_fake: Serve, keys: Keys) -> None:
    client = serve_fake(auth=True).client()
    short = bearer(keys.create("short", tokens_per_minute=1))
    assert client.post("/v1/chat/completions", {**HELLO, "max_tokens": 3}, **short).status == 200
    refused = client.post("/v1/chat/completions", HELLO, **short)
    assert refused.status == 429 and int(refused.headers["Retry-After"]) > 60
    assert client.get("/v1/models", **short).status == 200


def test_the_log_names_the_token_and_never_shows_it(
    serve_fake: Serve, keys: Keys, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "lmlite")
    server = serve_fake(auth=True)
    token = keys.create("kitchen tablet")
    server.client().get("/v1/models", **bearer(token))
    server.settle()
    assert "by kitchen tablet" in caplog.text and token[6:14] not in caplog.text and token[15:] not in caplog.text
