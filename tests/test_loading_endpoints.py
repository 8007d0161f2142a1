"""Models come and go, end to end: the real engine in child processes, the bundled model and a small random one."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from lmlite.core.engine.cores import cores
from lmlite.package import bundled_model
from lmlite.server import Server
from tests.conftest import Answer, Client
from tests.random_models import Llama, with_swapped_words, write_bert

Serve = Callable[..., Client]
HI = [{"role": "user", "content": "Hi"}]


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """Starts servers of two text models, `alpha` and `beta`, and the embedding model `text-embedding-owl`."""
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = tmp_path / "home" / "models" / "acme"
    for name in ("alpha", "beta"):
        (folder / name).mkdir(parents=True)
        shutil.copy(bundled_model(), folder / name / f"{name}.gguf")
    (folder / "owl").mkdir()
    write_bert(folder / "owl" / "owl.gguf")
    servers: list[Server] = []
    clients: list[Client] = []

    def start(**options: Any) -> Client:
        servers.append(Server(port=0, home=tmp_path / "home", **{"threads": 1, **options}).__enter__())
        clients.append(Client(servers[-1].port))
        return clients[-1]

    yield start
    for client in clients:
        client.close()
    for server in servers:
        server.close()


@pytest.mark.parametrize("isolation", ["process", "thread"])
def test_threads_are_at_most_the_usable_cores_and_told(serve: Serve, isolation: str) -> None:
    client = serve(threads=512, isolation=isolation)
    assert client.post("/lmlite/estimate", {"model": "alpha"}).json["threads"] == cores().usable
    assert load(client, "alpha").status == 200
    (instance,) = client.get("/lmlite/instances").json["instances"]
    assert instance["threads"] == cores().usable
    assert complete(client, "alpha").status == 200


def load(client: Client, model: str, **more: Any) -> Answer:
    return client.post("/api/v1/models/load", {"model": model, **more})


def unload(client: Client, instance: str) -> Answer:
    return client.post("/api/v1/models/unload", {"instance_id": instance})


def complete(client: Client, model: str, **more: Any) -> Answer:
    return client.post("/v1/completions", {"model": model, "prompt": "a", "max_tokens": 2, **more})


def instances(client: Client) -> dict[str, dict[str, Any]]:
    return {entry["identifier"]: entry for entry in client.get("/lmlite/instances").json["instances"]}


def listed(client: Client) -> dict[str, list[dict[str, Any]]]:
    return {entry["key"]: entry["loaded_instances"] for entry in client.get("/api/v1/models").json["models"]}


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


# ---- memory ----------------------------------------------------------------------------------------------------------


CELL_BYTES = 1536
"""Of the bundled model's KV cache."""


def taken_bytes(client: Client) -> int:
    """What the engine of the loaded model has of the memory, files aside."""
    assert complete(client, "alpha").status == 200
    status = Path(f"/proc/{instances(client)['alpha']['pid']}/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("RssAnon:")]
    return int(line.split()[1]) << 10


@pytest.mark.skipif(sys.platform != "linux", reason="read from /proc, and the others have no such call")
def test_a_small_cache_takes_memory_as_it_is_used_and_a_larger_one_at_once(serve: Serve) -> None:
    few, many, more = 2048, 10_240, 12_288
    base, small, large = [taken_bytes(serve(kv_cells=cells, idle_cells=0)) for cells in (few, many, more)]
    assert small - base < CELL_BYTES * (many - few) / 2
    assert large - base > CELL_BYTES * more * 0.9


# ---- load and unload -------------------------------------------------------------------------------------------------


def test_a_model_is_loaded_used_and_unloaded_by_name(serve: Serve) -> None:
    client = serve()
    answer = load(client, "acme/alpha", context_length=512, parallel=2, kv_type="q8_0", echo_load_config=True)
    assert answer.status == 200
    config = answer.json["load_config"]
    assert (config["context_length"], config["parallel"]) == (512, 2)
    assert {key: answer.json[key] for key in ("type", "instance_id", "status")} == {
        "type": "llm",
        "instance_id": "alpha",
        "status": "loaded",
    }
    assert 0 < answer.json["load_time_seconds"] < 60
    assert listed(client)["alpha"] == [{"id": "alpha", "config": {**config, "num_experts": 0}}]
    there = instances(client)["alpha"]
    pid = there.pop("pid")
    assert there.pop("path").endswith("alpha.gguf") and there.pop("sizeBytes") > 0 and there.pop("lastUsedTime") > 1e12
    assert there == {
        "identifier": "alpha",
        "model": "alpha",
        "type": "llm",
        "status": "idle",
        "contextLength": 512,
        "parallel": 2,
        "threads": 1,
        "queued": 0,
        "ttlMs": None,
        "remainingTtlMs": None,
    }
    assert complete(client, "alpha").status == 200 and instances(client)["alpha"]["pid"] == pid
    answer = unload(client, "alpha")
    assert (answer.status, answer.json) == (200, {"instance_id": "alpha"})
    assert instances(client) == {} and not alive(pid)
    refused = unload(client, "alpha")
    error = refused.json["error"]
    assert (refused.status, error["type"], error["code"]) == (404, "model_not_found", "model_not_found")
    assert error["param"] == "instance_id"


def test_a_chat_template_is_chosen_for_all_models_and_for_one(serve: Serve, tmp_path: Path) -> None:
    """By a name that llama.cpp knows, and by a file, which is read when the model is loaded."""
    file = tmp_path / "mine.jinja"
    (tmp_path / "home" / "model-settings.json").write_text(json.dumps({"beta": {"chat_template": str(file)}}))
    client = serve(chat_template="vicuna")
    refused = load(client, "beta")
    assert refused.status == 422 and "mine.jinja cannot be read: No such file" in refused.json["error"]["message"]
    file.write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    for model, prompt in (("alpha", "USER: Hi\nASSISTANT:"), ("beta", "Hi")):
        assert "warnings" not in load(client, model).json
        answer = client.post("/v1/chat/completions", {"model": model, "messages": HI, "max_tokens": 1})
        alone = client.post("/v1/completions", {"model": model, "prompt": prompt, "max_tokens": 1})
        assert answer.json["usage"]["prompt_tokens"] == alone.json["usage"]["prompt_tokens"]
    shown = instances(client)
    assert (shown["alpha"]["chatTemplate"], shown["beta"]["chatTemplate"]) == ("vicuna", str(file))


def test_what_is_wrong_with_a_template_is_told_by_the_load_and_by_the_list(serve: Serve, tmp_path: Path) -> None:
    file = tmp_path / "broken.jinja"
    file.write_text("{% for m in messages %}{{ m.content }}")
    client = serve(chat_template=file)
    (warning,) = load(client, "alpha").json["warnings"]
    assert "the chat template is at fault" in warning
    assert instances(client)["alpha"]["warnings"] == [warning]
    answer = client.post("/v1/chat/completions", {"model": "alpha", "messages": HI})
    assert answer.status == 400 and "template is at fault" in answer.json["error"]["message"]
    assert complete(client, "alpha").status == 200
    assert client.post("/v1/embeddings", {"model": "text-embedding-owl", "input": "a"}).status == 200


def test_several_instances_of_a_model(serve: Serve) -> None:
    client = serve(jit=False)
    ids = [load(client, "alpha").json["instance_id"] for _ in range(2)]
    ids.append(load(client, "alpha", identifier="Mine", context_length=256).json["instance_id"])
    assert ids == ["alpha", "alpha:2", "mine"]
    assert complete(client, "alpha:2").json["model"] == "alpha:2"
    assert complete(client, "MINE").json["model"] == "mine"
    assert complete(client, "acme/alpha").json["model"] in ids
    assert [entry["id"] for entry in client.get("/v1/models").json["data"]] == ids
    assert {e["id"]: e["state"] for e in client.get("/api/v0/models").json["data"]}["mine"] == "loaded"
    assert client.get("/v1/models/mine").json["id"] == client.get("/api/v0/models/mine").json["id"] == "mine"
    taken = load(client, "beta", identifier="mine")
    assert (taken.status, taken.json["error"]["param"]) == (400, "identifier")
    assert load(client, "beta", identifier="alpha").status == 400, "another model's name"
    assert unload(client, "alpha").status == 200
    assert complete(client, "alpha").json["model"] == "alpha:2"


def test_without_jit_requests_load_nothing(serve: Serve) -> None:
    client = serve(jit=False)
    assert client.get("/v1/models").json["data"] == []
    refused = complete(client, "alpha")
    assert (refused.status, refused.json["error"]["code"]) == (404, "model_not_found")
    assert "just-in-time" in refused.json["error"]["message"]
    assert client.post("/v1/completions", {"prompt": "a"}).status == 404
    load(client, "alpha")
    assert complete(client, "alpha").status == client.post("/v1/completions", {"prompt": "a"}).status == 200


def test_a_load_tells_how_far_it_is(serve: Serve) -> None:
    client = serve()
    answer = load(client, "owl", stream=True, echo_load_config=True)
    names = [name for name, _ in answer.events]
    assert names[0] == "model_load.start" and names[-1] == "model_load.end"
    assert set(names[1:-1]) <= {"model_load.progress"}
    fractions = [json.loads(data)["progress"] for _, data in answer.events[1:-1]]
    assert fractions == sorted(fractions) and all(0 <= fraction <= 1 for fraction in fractions)
    end = json.loads(answer.events[-1][1])
    assert (end["type"], end["instance_id"], end["status"]) == ("embedding", "text-embedding-owl", "loaded")
    assert end["load_config"].keys() == {"context_length"}


def test_a_load_that_fails_after_it_began_ends_the_stream_with_the_reason(serve: Serve, tmp_path: Path) -> None:
    client = serve()
    file = tmp_path / "home" / "models" / "acme" / "alpha" / "alpha.gguf"
    listed(client)
    raw = bytearray(file.read_bytes())
    raw[64:4096] = bytes(4032)
    os.utime(file)
    file.write_bytes(raw)
    broken = load(client, "alpha", stream=True)
    if broken.status == 200:
        name, data = broken.events[-1]
        assert name == "error" and json.loads(data)["error"]["code"] == "model_load_failed"
    else:
        assert (broken.status, broken.json["error"]["code"]) == (422, "model_load_failed")
    assert instances(client) == {}


@pytest.mark.parametrize(
    ("body", "status", "code", "param"),
    [
        ({}, 400, "missing_required_parameter", "model"),
        ({"model": ""}, 400, "invalid_value", "model"),
        ({"model": 1}, 400, "invalid_type", "model"),
        ({"model": "nope"}, 404, "model_not_found", "model"),
        ({"model": "../x"}, 404, "model_not_found", "model"),
        ({"model": "alpha", "surprise": 1}, 400, "unrecognized_keys", "surprise"),
        ({"model": "alpha", "context_length": 0}, 400, "invalid_value", "context_length"),
        ({"model": "alpha", "context_length": 2**31}, 400, "invalid_value", "context_length"),
        ({"model": "alpha", "context_length": "512"}, 400, "invalid_type", "context_length"),
        ({"model": "alpha", "ttl": -1}, 400, "invalid_value", "ttl"),
        ({"model": "alpha", "ttl": 1e12}, 400, "invalid_value", "ttl"),
        ({"model": "alpha", "parallel": 0}, 400, "invalid_value", "parallel"),
        ({"model": "alpha", "flash_attention": 1}, 400, "invalid_type", "flash_attention"),
        ({"model": "alpha", "gpu": "half"}, 400, "invalid_type", "gpu"),
        ({"model": "alpha", "gpu": 1.5}, 400, "invalid_value", "gpu"),
        ({"model": "alpha", "kv_type": "q8_0,f16,f32"}, 400, "invalid_value", "kv_type"),
        ({"model": "alpha", "identifier": "a\nb"}, 400, "invalid_value", "identifier"),
    ],
)
def test_loads_that_are_refused(tiny: Client, body: dict[str, Any], status: int, code: str, param: str) -> None:
    if body.get("model") == "alpha":
        body = {**body, "model": "lmlite-tiny"}
    before = instances(tiny)
    answer = tiny.post("/api/v1/models/load", body)
    error = answer.json["error"]
    assert (answer.status, error["code"], error["param"]) == (status, code, param)
    assert instances(tiny).keys() == before.keys()


@pytest.mark.skipif(sys.platform != "linux", reason="names that are not Unicode")
@pytest.mark.parametrize("isolation", ["process", "thread"])
def test_a_file_whose_name_is_not_unicode_is_served_and_told_of(serve: Serve, tmp_path: Path, isolation: str) -> None:
    folder = tmp_path / "home/models/acme" / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    shutil.copy(bundled_model(), folder / os.fsdecode(b"caf\xe9.gguf"))
    client = serve(isolation=isolation)
    assert "caf_" in listed(client)
    assert client.post("/lmlite/estimate", {"model": "caf_"}).status == 200
    assert complete(client, "caf_").status == 200
    assert os.fsencode(instances(client)["caf_"]["path"]).endswith(b"acme/caf\xe9/caf\xe9.gguf")
    for name in ("caf_", "caf_.gguf", "acme%2Fcaf_%2Fcaf_.gguf"):
        assert client.get(f"/api/v0/models/{name}").json.get("state") == "loaded", name
    assert complete(client, "caf_.gguf").json["model"] == "caf_"
    assert unload(client, "caf_").status == 200


def test_the_bundled_model_stays_listed_while_it_is_loaded(serve: Serve) -> None:
    client = serve()
    assert "lmlite-tiny" not in listed(client)
    assert complete(client, "lmlite-tiny").status == 200
    keys = {"/v1/models": "id", "/api/v0/models": "id", "/api/v1/models": "key", "/lmlite/models": "modelKey"}
    for path, key in keys.items():
        (entries,) = (value for value in client.get(path).json.values() if isinstance(value, list) and value)
        assert "lmlite-tiny" in [entry[key] for entry in entries], path
    assert unload(client, "lmlite-tiny").status == 200
    assert "lmlite-tiny" not in listed(client)


@pytest.mark.parametrize("model", ["alpha", "text-embedding-owl", "mixture"])
def test_a_config_that_is_shown_loads_the_same_model_again(serve: Serve, tmp_path: Path, model: str) -> None:
    (tmp_path / "home/models/acme/mixture").mkdir()
    Llama(n_experts=4).write(tmp_path / "home/models/acme/mixture/mixture.gguf")
    client = serve()
    answer = load(client, model, context_length=128, echo_load_config=True)
    assert answer.status == 200, answer.json
    echoed, (shown,) = answer.json["load_config"], listed(client)[model]
    n_experts = {"alpha": 0, "mixture": 2}.get(model)
    assert shown["config"].get("num_experts") == n_experts
    assert echoed == {name: value for name, value in shown["config"].items() if name != "num_experts" or value}
    for config in (shown["config"], echoed):
        assert unload(client, answer.json["instance_id"]).status == 200
        answer = load(client, model, echo_load_config=True, **config)
        assert answer.status == 200, answer.json
        assert (answer.json["load_config"], listed(client)[model]) == (echoed, [shown])


@pytest.mark.parametrize("path", ["/api/v1/models/load", "/lmlite/estimate"])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("said", "param"),
    [
        ({"num_experts": 2}, "num_experts"),
        ({"kv_type": "q6_k"}, "kv_type"),
        ({"kv_type": "f16,q8_0", "flash_attention": False}, "kv_type"),
    ],
)
def test_a_setting_that_the_model_cannot_have_is_named_as_the_request_does(
    tiny: Client, path: str, stream: bool, said: dict[str, Any], param: str
) -> None:
    answer = tiny.post(path, {"model": "lmlite-tiny", "stream": stream, **said})
    error = answer.json["error"] if answer.status != 200 else json.loads(answer.events[-1][1])["error"]
    assert (error["code"], error["param"], f"'{param}'" in error["message"]) == ("invalid_value", param, True)


def test_a_setting_of_the_server_that_the_model_cannot_have_is_named_as_its_option(serve: Serve) -> None:
    client = serve(experts=2)
    for answer in (load(client, "alpha"), complete(client, "alpha")):
        error = answer.json["error"]
        assert (answer.status, error["param"]) == (400, "experts")
        assert 'Model "alpha" cannot be loaded' in error["message"] and "--experts" in error["message"]
    assert load(client, "alpha", num_experts=0).status == 200


# ---- coming and going ------------------------------------------------------------------------------------------------

LONG: dict[str, Any] = {"prompt": "a", "max_tokens": 400, "ignore_eos": True, "temperature": 0}


class Streaming:
    """A streamed completion whose first words have come."""

    def __init__(self, server: Client, model: str, **more: Any):
        self._client = Client(server.port)
        self._response = self._client.start("POST", "/v1/completions", {"model": model, "stream": True, **LONG, **more})
        assert self._response.status == 200
        self._heard = [self._response.readline()]

    def end(self) -> tuple[str, int]:
        """The last event, and how many tokens came before it."""
        self._heard += self._response.readlines()
        self._client.close()
        data = self._data()
        return data[-1], sum('"text":"' in event and '"text":""' not in event for event in data)


    def text(self) -> str:
        """What was said, when the end has come."""
        return "".join(json.loads(event)["choices"][0]["text"] for event in self._data()[:-1])

    def _data(self) -> list[str]:
        return [line[6:].strip().decode() for line in self._heard if line.startswith(b"data: ")]


def loads(client: Client) -> int:
    """How many loads there have been."""
    lines = client.get("/metrics").body.decode().splitlines()
    return sum(int(line.split()[-1]) for line in lines if line.startswith("lmlite_model_load_seconds_count"))


def wait_for_no_instance(client: Client) -> None:
    while instances(client):
        pass


@pytest.mark.parametrize("repetition", range(3))
def test_fifty_requests_for_an_unloaded_model_cause_one_load(serve: Serve, repetition: int) -> None:
    client = serve()
    gate = threading.Barrier(50)

    def ask(_: int) -> int:
        own = Client(client.port)
        gate.wait()
        answer = complete(own, "alpha")
        own.close()
        return answer.status

    with ThreadPoolExecutor(50) as threads:
        assert set(threads.map(ask, range(50))) == {200}
    assert loads(client) == 1


@pytest.mark.parametrize("repetition", range(3))
def test_a_request_for_another_model_lets_a_stream_finish(serve: Serve, repetition: int) -> None:
    client = serve()
    whole = complete(client, "alpha", **LONG).json["choices"][0]["text"]
    stream, impatient = Streaming(client, "alpha"), Client(client.port)
    with ThreadPoolExecutor(1) as threads:
        other = threads.submit(complete, impatient, "beta")
        last, n_tokens = stream.end()
        assert last == "[DONE]" and n_tokens > 0
        assert other.result().json["model"] == "beta"
    impatient.close()
    assert list(instances(client)) == ["beta"] and loads(client) == 2
    assert complete(client, "alpha", **LONG).json["choices"][0]["text"] == whole


@pytest.mark.parametrize("repetition", range(3))
def test_idle_time_never_ends_a_stream_and_ends_the_model_after_it(serve: Serve, repetition: int) -> None:
    client = serve(ttl=0.02)
    stream = Streaming(client, "alpha")
    (there,) = instances(client).values()
    assert (there["ttlMs"], there["remainingTtlMs"], there["status"]) == (20, 20, "generating")
    assert stream.end()[0] == "[DONE]" and loads(client) == 1
    wait_for_no_instance(client)
    assert complete(client, "alpha", ttl=100).status == 200
    (listed_instance,) = listed(client)["alpha"]
    assert 90 < listed_instance["remaining_ttl_seconds"] <= 100


def test_unload_ends_streams_with_a_word(serve: Serve) -> None:
    client = serve()
    stream = Streaming(client, "alpha", max_tokens=4000)
    assert unload(client, "alpha").status == 200
    last, _ = stream.end()
    assert json.loads(last)["error"]["message"] == "Model unloaded." and instances(client) == {}


def test_a_killed_engine_is_told_as_what_it_was_and_one_that_keeps_dying_is_refused(serve: Serve) -> None:
    client = serve()
    for n in range(4):
        stream = Streaming(client, "alpha", max_tokens=4000, prompt=f"{n} times")  # the same one would be refused itself
        os.kill(instances(client)["alpha"]["pid"], signal.SIGSEGV)
        assert "SIGSEGV" in json.loads(stream.end()[0])["error"]["message"]
    refused = complete(client, "alpha")
    assert refused.status == 503 and "4 times" in refused.json["error"]["message"]
    assert complete(client, "beta").status == 200
    assert load(client, "alpha").status == 200
    assert complete(client, "alpha").status == 200


def file_of(home: Path, name: str) -> Path:
    return home / "home" / "models" / "acme" / name / f"{name}.gguf"


def write_other(path: Path) -> Path:
    """The bundled model, which goes on after an "a" with the alphabet, in another order."""
    return with_swapped_words(bundled_model(), path, 297, 274)  # " b" and " c"


def said(client: Client, model: str) -> str:
    """What it always says."""
    answer = complete(client, model, **{**LONG, "max_tokens": 12})
    assert answer.status == 200, answer.body
    text = answer.json["choices"][0]["text"]
    assert isinstance(text, str)
    return text


@pytest.mark.parametrize("loaded", ["asked", "told"])
def test_a_file_that_is_replaced_is_loaded_by_the_next_request_while_streams_go_on(
    serve: Serve, tmp_path: Path, loaded: str
) -> None:
    client = serve()
    file, other = file_of(tmp_path, "alpha"), write_other(tmp_path / "other.gguf")
    if loaded == "told":
        assert load(client, "alpha", context_length=1000).status == 200
    old, whole = said(client, "alpha"), complete(client, "alpha", **LONG).json["choices"][0]["text"]
    stream = Streaming(client, "alpha")
    os.replace(other, file)
    new = said(client, "alpha")  # beside the stream
    assert new != old and list(instances(client)) == ["alpha"]
    last, _ = stream.end()
    assert (last, stream.text()) == ("[DONE]", whole)
    assert said(client, "alpha") == new
    (instance,) = listed(client)["alpha"]
    assert (instance["config"]["context_length"] == 1000) == (loaded == "told")
    assert ("remaining_ttl_seconds" in instance) == (loaded == "asked")
    file.unlink()
    gone = complete(client, "alpha")
    assert (gone.status, gone.json["error"]["code"]) == (404, "model_not_found")
    assert instances(client) == {}


def test_a_touch_costs_nothing(serve: Serve, tmp_path: Path) -> None:
    client = serve()
    file = file_of(tmp_path, "alpha")
    stream = Streaming(client, "alpha")
    pid = instances(client)["alpha"]["pid"]
    os.utime(file)
    file.chmod(0o600)
    assert complete(client, "alpha").status == 200
    assert stream.end()[0] == "[DONE]"
    assert instances(client)["alpha"]["pid"] == pid and loads(client) == 1


@pytest.mark.parametrize("whole", [True, False])
def test_only_streams_hear_of_a_file_that_is_written_to(serve: Serve, tmp_path: Path, whole: bool) -> None:
    client = serve()
    file, other = file_of(tmp_path, "alpha"), write_other(tmp_path / "other.gguf")
    old = said(client, "alpha")
    stream = Streaming(client, "alpha", max_tokens=4000)
    content = other.read_bytes()
    file.write_bytes(content if whole else content[:-100_000])  # the same file, first cut to nothing
    if whole:
        assert said(client, "alpha") != old
    else:
        assert complete(client, "alpha").json["error"]["code"] == "model_load_failed"
    assert json.loads(stream.end()[0])["error"]["code"] == "model_file_changed"
    file.write_bytes(content)
    assert said(client, "alpha") != old


def test_draft_models_come_and_go_on_disk(serve: Serve, tmp_path: Path) -> None:
    client = serve()
    file = file_of(tmp_path, "beta")
    expected = said(client, "alpha")

    def drafted() -> Answer:
        return complete(client, "alpha", draft_model="beta", **{**LONG, "max_tokens": 12})

    assert drafted().json["choices"][0]["text"] == expected
    os.utime(file)
    shutil.copy(file, file.with_suffix(".new"))
    os.replace(file.with_suffix(".new"), file)
    assert drafted().json["choices"][0]["text"] == expected
    file.unlink()
    gone = drafted()
    assert (gone.status, gone.json["error"]["param"]) == (404, "draft_model")
    assert said(client, "alpha") == expected


@pytest.mark.parametrize("newcomer", ["Q8_0", "Q4_K_M"])
def test_a_second_quantization_beside_a_loaded_model_takes_nothing_of_its_name(
    serve: Serve, tmp_path: Path, newcomer: str
) -> None:
    client = serve()
    folder = tmp_path / "home" / "models" / "acme" / "Falcon-7B-GGUF"
    folder.mkdir()
    shutil.copy(bundled_model(), folder / "Falcon-7B-Q5_K_M.gguf")
    expected = said(client, "falcon-7b")
    pid = instances(client)["falcon-7b"]["pid"]
    write_other(folder / f"Falcon-7B-{newcomer}.gguf")
    ids = [entry["id"] for entry in client.get("/v1/models").json["data"]]
    assert [id for id in ids if "falcon" in id] == ["falcon-7b", f"falcon-7b@{newcomer.lower()}"]
    assert [len(loaded) for id, loaded in listed(client).items() if "falcon" in id] == [1, 0]
    for name in ("falcon-7b", "falcon-7b@q5_k_m"):
        assert said(client, name) == expected
    assert instances(client)["falcon-7b"]["pid"] == pid
    assert said(client, f"falcon-7b@{newcomer.lower()}") != expected
    assert said(client, "falcon-7b") == expected


def test_a_load_that_its_client_leaves_is_given_up(serve: Serve) -> None:
    """Whenever it leaves: no engine is left behind, and the next load is as any."""
    client = serve()
    for _ in range(10):
        leaving = Client(client.port)
        leaving.connection.connect()
        leaving.connection.request(
            "POST", "/api/v1/models/load", json.dumps({"model": "alpha"}), {"Content-Type": "application/json"}
        )
        leaving.close()
    while set(instances(client)) - {entry["id"] for entry in listed(client)["alpha"]}:
        pass
    for id in list(instances(client)):
        unload(client, id)
    assert load(client, "alpha").json["instance_id"] == "alpha"
