"""Models come and go, end to end: the real engine in child processes, the bundled model and a small random one."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lmlite.core.catalog import bundled_model
from lmlite.server import Server
from tests.conftest import Answer, Client
from tests.random_models import write_bert

Serve = Callable[..., Client]


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
        servers.append(Server(port=0, home=tmp_path / "home", threads=1, **options).__enter__())
        clients.append(Client(servers[-1].port))
        return clients[-1]

    yield start
    for client in clients:
        client.close()
    for server in servers:
        server.close()


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
    assert listed(client)["alpha"] == [{"id": "alpha", "config": config}]
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
