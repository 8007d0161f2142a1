"""`GET /metrics`: the format, what is counted when, and that asking costs a server nothing."""

from __future__ import annotations

import http.client
import json
import random
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from lmlite.app import App
from lmlite.app.metrics import Metrics
from lmlite.config import Config
from lmlite.core.engine.frames import Kind
from lmlite.events import Finished, Stats
from lmlite.metrics import OTHER, SERIES_MAX, Counter, Gauge, Histogram, expose
from lmlite.server import LoopThread, Service
from tests.conftest import TIMEOUT_S, Client, FakeServer
from tests.fakes import Gate, Script, error
from tests.test_auth import EVERY, Keys, bearer, keys

__all__ = ["keys"]

Serve = Callable[..., FakeServer]
HELLO: dict[str, Any] = {"model": "talker", "messages": [{"role": "user", "content": "hi"}]}
LINE = re.compile(r'([a-z_:]+)(?:\{((?:[a-z_]+="(?:[^"\\\n]|\\[\\n"])*",?)*)\})? (\S+)')


class Scrape(dict[tuple[str, tuple[str, ...]], float]):
    """Samples by name and label values; every line has been read by the format's rules."""

    def __init__(self, text: str):
        super().__init__()
        self.types: dict[str, str] = {}
        for line in text.splitlines():
            if line.startswith("# TYPE "):
                _, _, name, kind = line.split(" ")
                assert name not in self.types, "a family in two pieces"
                self.types[name] = kind
            elif not line.startswith("# HELP "):
                match = LINE.fullmatch(line)
                assert match is not None, line
                values = tuple(re.findall(r'="((?:[^"\\]|\\.)*)"', match[2] or ""))
                key = match[1], values
                assert key not in self, line
                self[key] = float(match[3])

    def total(self, name: str) -> float:
        """Over all series of `name`."""
        return sum(value for (series, _), value in self.items() if series == name)


def scrape(client: Client) -> Scrape:
    answer = client.get("/metrics")
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert answer.body.endswith(b"\n")
    return Scrape(answer.body.decode())


def scrape_until(client: Client, there: Callable[[Scrape], bool]) -> Scrape:
    """The first scrape that is so; each waits for the server, none for a clock."""
    deadline = time.monotonic() + TIMEOUT_S
    while not there(found := scrape(client)):
        assert time.monotonic() < deadline, found
    return found


# ---- the format ------------------------------------------------------------------------------------------------------


def test_label_values_and_help_are_escaped() -> None:
    counter = Counter("c_total", 'a "quoted" \\ help\nof two lines', ("name",))
    counter.add('a"b\\c\nd')
    assert expose([counter]).splitlines() == [
        '# HELP c_total a "quoted" \\\\ help\\nof two lines',
        "# TYPE c_total counter",
        'c_total{name="a\\"b\\\\c\\nd"} 1',
    ]


def test_buckets_cumulate_and_bounds_are_inclusive() -> None:
    histogram = Histogram("h_seconds", "h", ("model",), bounds=(0.5, 1.0))
    for value in (0.1, 0.5, 0.7, 3):
        histogram.observe(value, "m")
    assert [line for line in expose([histogram]).splitlines() if not line.startswith("#")] == [
        'h_seconds_bucket{model="m",le="0.5"} 2',
        'h_seconds_bucket{model="m",le="1"} 3',
        'h_seconds_bucket{model="m",le="+Inf"} 4',
        'h_seconds_sum{model="m"} 4.3',
        'h_seconds_count{model="m"} 4',
    ]


def test_a_family_without_labels_has_no_braces_and_one_without_samples_no_lines() -> None:
    assert expose([Gauge("g", "g").set(1.5), Counter("c_total", "c")]) == "# HELP g g\n# TYPE g gauge\ng 1.5\n"


def test_series_beyond_the_limit_are_counted_together() -> None:
    counter = Counter("c_total", "c", ("name", "more"))
    for i in range(SERIES_MAX + 10):
        counter.add(f"name-{i}", "x")
    counter.add("name-0", "x")
    assert (counter.get(OTHER, OTHER), counter.get("name-0", "x")) == (10, 2)
    assert len(list(counter.samples())) == SERIES_MAX + 1


# ---- requests --------------------------------------------------------------------------------------------------------


def test_requests_are_counted_by_route_method_and_status(fake_server: FakeServer) -> None:
    client = fake_server.client()
    client.get("/v1/models/talker")
    client.get("/v1/models/embedder")
    client.get("/v1/models/unknown")
    client.ask("HEAD", "/health")
    client.post("/v1/chat/completions", HELLO)
    found = scrape(client)
    assert found["lmlite_requests_total", ("/v1/models/{model}", "GET", "200")] == 2
    assert found["lmlite_requests_total", ("/v1/models/{model}", "GET", "404")] == 1
    assert found["lmlite_requests_total", ("/health", "HEAD", "200")] == 1
    assert found["lmlite_requests_total", ("/v1/chat/completions", "POST", "200")] == 1
    assert found["lmlite_request_seconds_count", ("/v1/models/{model}",)] == 3
    assert found["lmlite_request_seconds_bucket", ("/v1/chat/completions", "+Inf")] == 1


def test_whatever_clients_make_up_is_one_series(fake_server: FakeServer) -> None:
    client = fake_server.client()
    for i in range(20):
        client.get(f"/made/up/{i}")
    client.get("/v1/models", Host="elsewhere.example")
    client = fake_server.client()
    client.ask("BREW", "/health")
    found = scrape(fake_server.client())
    series = {values: n for (name, values), n in found.items() if name == "lmlite_requests_total"}
    assert series == {(OTHER, "GET", "404"): 20, (OTHER, "GET", "403"): 1, (OTHER, OTHER, "405"): 1}


def test_a_request_whose_head_is_no_http_is_counted_as_refused(fake_server: FakeServer) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", fake_server.port, timeout=TIMEOUT_S)
    connection.connect()
    connection.sock.sendall(b"nonsense\r\n\r\n")
    assert connection.sock.recv(1 << 16).startswith(b"HTTP/1.1 400")
    connection.close()
    assert scrape(fake_server.client())["lmlite_requests_total", (OTHER, OTHER, "400")] == 1


def test_a_client_that_left_before_its_answer_began_is_counted_apart(serve_fake: Serve) -> None:
    gate = Gate(Kind.GENERATE)
    server = serve_fake(Script(hold=gate))
    leaving, watching = server.client(), server.client()
    leaving.connection.request("POST", "/v1/chat/completions", json.dumps(HELLO))
    scrape_until(watching, lambda found: found.get(("lmlite_loaded_instances", ()), 0) == 1)
    leaving.close()
    key = ("lmlite_requests_total", ("/v1/chat/completions", "POST", "499"))
    found = scrape_until(watching, lambda found: key in found)
    gate.open()
    assert found[key] == 1


def test_open_connections_are_those_there_are(fake_server: FakeServer) -> None:
    clients = [fake_server.client() for _ in range(3)]
    for client in clients:
        client.get("/health")
    assert scrape(clients[0])["lmlite_connections_open", ()] == 3
    clients[1].close()
    scrape_until(clients[0], lambda found: found["lmlite_connections_open", ()] == 2)


# ---- tokens ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
def test_a_generation_counts_as_its_usage_says(serve_fake: Serve, stream: bool) -> None:
    client = serve_fake(Script(reasoning=("I ", "see. "), words=("a ", "b ", "c "))).client()
    client.post("/v1/chat/completions", {**HELLO, "n": 2, "stream": stream})
    found = scrape(client)
    model = ("talker",)
    assert found["lmlite_prompt_tokens_total", model] == len("<user>hi"), "a prompt counts once for all its choices"
    assert found["lmlite_generated_tokens_total", model] == 2 * 5
    assert found["lmlite_reasoning_tokens_total", model] == 2 * 2
    assert found["lmlite_generations_total", ("talker", "eosFound")] == 2
    assert found["lmlite_time_to_first_token_seconds_count", model] == 2
    assert found["lmlite_queue_seconds_count", model] == 2
    assert found["lmlite_tokens_per_second_count", model] == 2


def test_a_stream_that_is_cut_counts_what_was_generated(serve_fake: Serve) -> None:
    server = serve_fake(Script(words=("word ",) * 100_000))
    leaving, watching = server.client(), server.client()
    leaving.start("POST", "/v1/chat/completions", {**HELLO, "stream": True}).read1(100)
    leaving.close()
    key = ("lmlite_generations_total", ("talker", "userStopped"))
    found = scrape_until(watching, lambda found: key in found)
    assert found[key] == 1
    assert found["lmlite_generated_tokens_total", ("talker",)] == 1, "what the engine said at the end"


def test_a_generation_given_up_before_its_first_token_counts_no_prompt() -> None:
    metrics, nothing = Metrics(), Stats(10, 4, 0, 0.0, 0.0, 0.0)
    metrics.generated("m", True, "", Finished("userStopped", nothing))
    assert metrics.generations.get("m", "userStopped") == 1
    assert metrics.prompt_tokens.get("m") == metrics.cached_tokens.get("m") == 0
    metrics.generated("m", True, "", Finished("maxPredictedTokensReached", nothing))
    assert (metrics.prompt_tokens.get("m"), metrics.cached_tokens.get("m")) == (10, 4), "a prompt may be all that was asked"


def test_what_each_token_has_asked_and_used_is_counted_under_its_name(serve_fake: Serve, keys: Keys) -> None:
    client = serve_fake(auth=True).client()
    for name in ("ann", "ben"):
        answer = client.post("/v1/chat/completions", {**HELLO, "n": 2, "max_tokens": 3}, **bearer(keys.create(name)))
        used = answer.json["usage"]
    ann, eve = bearer(keys.create("ann again")), "sk-lm-AAAAAAAA:" + "a" * 20
    inputs = client.post("/v1/embeddings", {"model": "embedder", "input": ["one", "another"]}, **ann).json["usage"]
    client.get("/v1/models/unknown", **ann)
    assert client.get("/v1/models", **bearer(eve)).status == 401
    admin = bearer(keys.create("watcher", frozenset({"admin"})))
    answer = client.get("/metrics", **admin)
    assert answer.status == 200 and client.get("/metrics", **bearer(keys.create("c", EVERY - {"admin"}))).status == 403
    found = Scrape(answer.body.decode())
    assert {values: found["lmlite_caller_requests_total", values] for values in ((n, "200") for n in ("ann", "ben"))} == {
        ("ann", "200"): 1,
        ("ben", "200"): 1,
    }
    assert found["lmlite_caller_requests_total", ("ann again", "404")] == 1
    assert found["lmlite_caller_prompt_tokens_total", ("ben",)] == used["prompt_tokens"]
    assert found["lmlite_caller_generated_tokens_total", ("ben",)] == used["completion_tokens"] == 6
    assert found["lmlite_caller_prompt_tokens_total", ("ann again",)] == inputs["prompt_tokens"]
    assert {values[0] for name, values in found if name == "lmlite_caller_requests_total"} == {"ann", "ben", "ann again"}


def test_tokens_beyond_the_limit_are_counted_together() -> None:
    metrics = Metrics()
    for i in range(SERIES_MAX + 10):
        metrics.answered("/x", "GET", 200, 0.0, f"token-{i}")
    assert len(list(metrics.caller_requests.samples())) == SERIES_MAX + 1
    assert metrics.caller_requests.get(OTHER, OTHER) == 10


def test_without_tokens_nobody_is_counted_apart(fake_server: FakeServer) -> None:
    client = fake_server.client()
    client.post("/v1/chat/completions", HELLO)
    assert not any(name.startswith("lmlite_caller") for name, _ in scrape(client))


def test_inputs_of_embeddings_and_documents_are_counted(fake_server: FakeServer) -> None:
    client = fake_server.client()
    usages = [
        client.post("/v1/embeddings", {"model": "embedder", "input": ["one", "another"]}).json["usage"],
        client.post("/v1/rerank", {"model": "judge", "query": "a", "documents": ["b", "cd"]}).json["usage"],
    ]
    found = scrape(client)
    names = ("text-embedding-embedder", "text-embedding-judge")
    counted = [found["lmlite_prompt_tokens_total", (name,)] for name in names]
    assert counted == [usage["prompt_tokens"] for usage in usages]


# ---- engines ---------------------------------------------------------------------------------------------------------


def test_a_scrape_loads_nothing_and_keeps_nothing_loaded(serve_fake: Serve) -> None:
    server = serve_fake(ttl=0.05)
    client = server.client()
    assert scrape(client)["lmlite_loaded_instances", ()] == 0 and not server.engines
    client.post("/v1/chat/completions", HELLO)
    found = scrape_until(client, lambda found: found["lmlite_loaded_instances", ()] == 0)
    assert found["lmlite_model_loads_total", ("talker", "loaded")] == 1
    assert found["lmlite_model_load_seconds_count", ("talker",)] == 1
    assert not any(name == "lmlite_cache_cells" for name, _ in found), "what is unloaded has no cells"


def test_loads_that_fail_and_crashes_are_counted(serve_fake: Serve) -> None:
    client = serve_fake(Script(load_error=error("load_failed"))).client()
    client.post("/v1/chat/completions", HELLO)
    assert scrape(client)["lmlite_model_loads_total", ("talker", "failed")] == 1
    client = serve_fake(Script(die_after=1)).client()
    client.post("/v1/chat/completions", HELLO)
    assert scrape(client)["lmlite_model_crashes_total", ("talker",)] == 1


def test_requests_that_wait_for_a_load_are_seen(serve_fake: Serve) -> None:
    gate = Gate(Kind.LOAD)
    server = serve_fake(Script(hold=gate))
    clients = [server.client() for _ in range(3)]
    headers = {"Content-Type": "application/json"}
    for client in clients:
        client.connection.request("POST", "/v1/chat/completions", json.dumps(HELLO), headers)
    watching = server.client()
    key = ("lmlite_requests_waiting_for_load", ("talker",))
    scrape_until(watching, lambda found: found.get(key) == 3)
    gate.open()
    for client in clients:
        assert client.connection.getresponse().status == 200
    assert key not in scrape(watching)


def test_an_engine_that_does_not_answer_holds_up_no_scrape(serve_fake: Serve) -> None:
    gate = Gate(Kind.STATS)
    server = serve_fake(Script(hold=gate))
    client = server.client()
    client.post("/v1/chat/completions", HELLO)
    first, second = scrape(client), scrape(client)
    assert first["lmlite_cache_cells", ("talker", "talker")] == second["lmlite_cache_cells", ("talker", "talker")] == 8192
    assert not any(name == "lmlite_requests_running" for name, _ in second), "it has never said"
    gate.open()
    scrape_until(client, lambda found: ("lmlite_requests_running", ("talker", "talker")) in found)
    asked = [kind for kind, _, _ in server.engine.commands if kind == Kind.STATS]
    assert len(asked) < 4, "one question at a time"


# ---- with a model ----------------------------------------------------------------------------------------------------


@pytest.fixture
def real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[LoopThread, Service]]:
    """A server of its own: what it counts is what the test did."""
    monkeypatch.setenv("HOME", str(tmp_path))
    config = Config.of(port=0, home=tmp_path, parallel=2, max_queue=64)
    thread = LoopThread("test-server")
    service = Service(config, App(config))
    thread.call(service.open())
    yield thread, service
    thread.call(service.close())
    thread.close()


def random_body(choose: random.Random) -> tuple[str, dict[str, Any]]:
    text = " ".join(choose.choices(("tell", "me", "a", "story", "of", "two", "foxes"), k=choose.randint(1, 12)))
    more = {"max_tokens": choose.randint(1, 40), "n": choose.choice((1, 1, 2)), "temperature": 1.0}
    if choose.random() < 0.5:
        return "/v1/chat/completions", {**more, "messages": [{"role": "user", "content": text}]}
    return "/v1/completions", {**more, "prompt": choose.choice((text, [text, "another " + text]))}


def test_counters_equal_the_summed_usage_of_a_random_mix(real: tuple[LoopThread, Service]) -> None:
    thread, service = real
    choose = random.Random(7)
    work = [(choose.choice(("whole", "stream", "cut")), *random_body(choose)) for _ in range(60)]

    def one(kind: str, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any] | None]:
        """The generations it had, and its usage if it has been told."""
        client = Client(service.port)
        try:
            n_prompts = len(body["prompt"]) if isinstance(body.get("prompt"), list) else 1
            n = body["n"] * n_prompts
            if kind == "whole":
                return n, client.post(path, body).json["usage"]
            streamed = {**body, "stream": True, "stream_options": {"include_usage": True}}
            if kind == "stream":
                return n, json.loads(client.post(path, streamed).events[-2][1])["usage"]
            # Left after its first words: of several choices, none may have ended before its first token.
            client.start("POST", path, {**streamed, "n": 1, "max_tokens": 2000, "ignore_eos": True}).read1(64)
            return n_prompts, None
        finally:
            client.close()

    with ThreadPoolExecutor(6) as pool:
        results = list(pool.map(lambda item: one(*item), work))
    client = Client(service.port)
    expected = sum(n for n, _ in results)
    found = scrape_until(client, lambda found: found.total("lmlite_generations_total") == expected)
    told = [usage for _, usage in results if usage is not None]
    (engine,) = (engine for _, engine in service.app.models.engines())
    report = thread.call(engine.stats())
    generated = found.total("lmlite_generated_tokens_total")
    assert generated == report.decoded_tokens, "what was generated counts, for whoever left too"
    assert generated > sum(usage["completion_tokens"] for usage in told)
    assert found.total("lmlite_prompt_tokens_total") >= sum(usage["prompt_tokens"] for usage in told)
    assert found.total("lmlite_time_to_first_token_seconds_count") <= expected
    instance = next(values for name, values in found if name == "lmlite_cache_cells")
    assert found["lmlite_requests_running", instance] == found["lmlite_requests_waiting", instance] == 0
    assert 0 < found["lmlite_cache_cells_used", instance] <= found["lmlite_cache_cells", instance]
    whole_before = scrape(client)
    usages = [one("whole" if i % 2 else "stream", path, body)[1] for i, (_, path, body) in enumerate(work[:20])]
    after = scrape(client)
    for name, key in (("prompt", "prompt_tokens"), ("generated", "completion_tokens")):
        family = f"lmlite_{name}_tokens_total"
        assert after.total(family) - whole_before.total(family) == sum(usage[key] for usage in usages if usage), name
    client.close()


def test_what_waits_for_a_place_is_seen(real: tuple[LoopThread, Service]) -> None:
    _, service = real
    clients = [Client(service.port) for _ in range(5)]
    body = {"prompt": "once upon a time", "stream": True, "max_tokens": 3000, "ignore_eos": True}
    for client in clients:
        client.connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    watching = Client(service.port)

    def settled(found: Scrape) -> bool:
        return (found.total("lmlite_requests_running"), found.total("lmlite_requests_waiting")) == (2, 3)

    found = scrape_until(watching, settled)
    assert found["lmlite_queue_limit", ()] == 64
    for client in clients:
        client.close()
    scrape_until(watching, lambda found: found.total("lmlite_generations_total") == 5)
    watching.close()
