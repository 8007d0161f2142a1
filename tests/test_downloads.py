"""Downloads through a server, from a hub of our own: what a client asks for, is told, and finds in the catalogue."""

from __future__ import annotations

import json
import logging
import queue
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from lmlite.hub import jobs
from lmlite.package import bundled_model
from lmlite.server import Server
from tests.conftest import TIMEOUT_S, Client, FakeServer
from tests.core.gguf_files import gguf, llama, projector
from tests.hub import misbehaving
from tests.hub.misbehaving import COMMIT, SIGNATURE, Held, Hub

REPO = "acme/Falcon-7B-GGUF"
TOKEN = "hf_verysecret"
DOWNLOAD = "/api/v1/models/download"
SPOKEN = gguf(llama(general__name="falcon"))
LARGER = gguf(llama(general__name="falcon, larger", general__file_type=7))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    files = {"Falcon-7B-Q4_K_M.gguf": SPOKEN, "Falcon-7B-Q8_0.gguf": LARGER, "README.md": b"hello"}
    with misbehaving.running({REPO: files}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def client(hub: Hub, fake_server: FakeServer) -> Client:
    return fake_server.client()


class News(logging.Handler):
    """The ends of downloads, as the log tells them."""

    def __init__(self) -> None:
        super().__init__()
        self._ends: queue.SimpleQueue[str] = queue.SimpleQueue()

    def emit(self, record: logging.LogRecord) -> None:
        if re.search(r"^download of \S+ (completed|failed)", text := record.getMessage()):
            self._ends.put(text)

    def ended(self, client: Client, id: str, status: str = "completed") -> dict[str, Any]:
        """What is told of the job `id` at the next end, which is its own."""
        self._ends.get(timeout=TIMEOUT_S)
        return told(client, id, status)


@pytest.fixture
def news() -> Iterator[News]:
    log, news = logging.getLogger(jobs.__name__), News()
    level = log.level
    log.addHandler(news)
    log.setLevel(logging.INFO)
    yield news
    log.removeHandler(news)
    log.setLevel(level)


def told(client: Client, id: str, status: str) -> dict[str, Any]:
    answer = client.get(f"{DOWNLOAD}/status/{id}")
    assert answer.status == 200 and answer.json["status"] == status, answer.body
    found: dict[str, Any] = answer.json
    return found


def ids(client: Client) -> list[str]:
    return [model["key"] for model in client.get("/api/v1/models").json["models"]]


def on_disk(home: Path) -> list[str]:
    return sorted(str(path.relative_to(home / "models")) for path in (home / "models").rglob("*") if path.is_file())


def test_a_model_is_downloaded_and_listed(
    client: Client, fake_server: FakeServer, hub: Hub, home: Path, news: News
) -> None:
    assert "falcon-7b" not in ids(client)
    held = Held(100)
    hub.on("/store/", held)
    answer = client.post(DOWNLOAD, {"model": REPO})
    held.release.set()
    assert answer.status == 200
    job = answer.json
    assert list(job) == ["job_id", "status", "total_size_bytes", "started_at"]
    assert re.fullmatch("job_[0-9a-f]{10}", job["job_id"])
    assert job["total_size_bytes"] == len(SPOKEN)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", job["started_at"])
    done = news.ended(client, job["job_id"])
    assert list(done) == ["job_id", "status", "total_size_bytes", "downloaded_bytes", "started_at", "completed_at"]
    assert done["downloaded_bytes"] == done["total_size_bytes"]
    assert on_disk(home) == [f"{REPO}/Falcon-7B-Q4_K_M.gguf"]
    assert (home / "models" / REPO / "Falcon-7B-Q4_K_M.gguf").read_bytes() == SPOKEN
    assert not (home / "models" / REPO / ".download").exists()
    assert "falcon-7b" in ids(client)
    assert client.post(DOWNLOAD, {"model": REPO}).json == {"status": "already_downloaded"}
    assert COMMIT in hub.asked[1].path  # files are of the commit that was listed


@pytest.mark.parametrize(
    ("asked", "file"),
    [
        ({"model": REPO, "quantization": "q8_0"}, "Falcon-7B-Q8_0.gguf"),
        ({"model": f"{REPO}@Q8_0"}, "Falcon-7B-Q8_0.gguf"),
        ({"model": f"https://huggingface.co/{REPO}"}, "Falcon-7B-Q4_K_M.gguf"),
        ({"model": f"https://huggingface.co/{REPO}/resolve/main/Falcon-7B-Q8_0.gguf"}, "Falcon-7B-Q8_0.gguf"),
        ({"model": REPO.lower()}, "Falcon-7B-Q4_K_M.gguf"),
    ],
)
def test_models_are_named_in_every_way_the_contract_has(
    client: Client, home: Path, news: News, asked: dict[str, str], file: str
) -> None:
    news.ended(client, client.post(DOWNLOAD, asked).json["job_id"])
    assert on_disk(home) == [f"{REPO}/{file}"]


def test_a_running_job_tells_its_pace_and_its_end(client: Client, hub: Hub, home: Path, news: News) -> None:
    held = Held(100)
    hub.on("/store/", held)
    job = client.post(DOWNLOAD, {"model": REPO}).json
    assert held.reached.wait(TIMEOUT_S)
    running = told(client, job["job_id"], "downloading")
    assert list(running)[:3] == ["job_id", "status", "total_size_bytes"]
    assert "bytes_per_second" in running and "completed_at" not in running and "error_message" not in running
    (ours,) = client.get("/lmlite/downloads").json["downloads"]
    assert ours["model"] == REPO
    assert ours["files"] == [{"name": "Falcon-7B-Q4_K_M.gguf", "size_bytes": len(SPOKEN)}]
    assert all(name.startswith(f"{REPO}/.download/") for name in on_disk(home))
    assert "falcon-7b" not in ids(client)
    held.release.set()
    news.ended(client, job["job_id"])


def test_twenty_requests_at_once_are_one_job(hub: Hub, fake_server: FakeServer, news: News) -> None:
    held = Held(100)
    hub.on("/store/", held)
    clients = [fake_server.client() for _ in range(20)]
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda client: client.post(DOWNLOAD, {"model": REPO}).json["job_id"], clients))
    assert len(set(answers)) == 1
    held.release.set()
    news.ended(clients[0], answers[0])
    assert len(hub.files_asked()) == 1


def test_metrics_tell_of_downloads_and_ask_for_none(client: Client, hub: Hub, home: Path, news: News) -> None:
    def scraped() -> list[str]:
        text = client.get("/metrics").body.decode()
        return [line.removeprefix("lmlite_") for line in text.splitlines() if line.startswith("lmlite_download")]

    statuses = ("downloading", "paused", "completed", "failed")
    assert scraped() == [*(f'downloads{{status="{status}"}} 0' for status in statuses), "downloaded_bytes_total 0"]
    assert not home.exists() and hub.asked == []
    hub.on("/store/", held := Held(100))
    id = client.post(DOWNLOAD, {"model": REPO}).json["job_id"]
    while told(client, id, "downloading")["downloaded_bytes"] < 100:
        pass  # each question waits for the server
    assert {'downloads{status="downloading"} 1', "downloaded_bytes_total 100"} < set(scraped())
    held.release.set()
    news.ended(client, id)
    ended = {'downloads{status="downloading"} 0', 'downloads{status="completed"} 1', f"downloaded_bytes_total {len(SPOKEN)}"}
    assert ended < set(scraped())


def test_a_job_is_paused_resumed_and_cancelled(client: Client, hub: Hub, home: Path) -> None:
    held = Held(100)
    hub.on("/store/", held)
    id = client.post(DOWNLOAD, {"model": REPO}).json["job_id"]
    assert held.reached.wait(TIMEOUT_S)
    assert client.post(f"/lmlite/downloads/pause/{id}", {}).json["status"] == "paused"
    held.release.set()
    assert told(client, id, "paused")["downloaded_bytes"] <= 100
    again = Held(100)
    hub.on("/store/", again)
    assert client.post(f"/lmlite/downloads/resume/{id}", {}).json["status"] == "downloading"
    assert again.reached.wait(TIMEOUT_S)
    assert client.ask("DELETE", f"/lmlite/downloads/{id}").json == {"job_id": id, "status": "cancelled"}
    again.release.set()
    assert client.get(f"{DOWNLOAD}/status/{id}").status == 404
    assert on_disk(home) == [] and list((home / "models").iterdir()) == []


@pytest.mark.parametrize("name", ["../x", "a/../../b", "C:\\x", "%2e", "a/b\0", "x" * 10_000])
def test_names_that_are_paths_are_refused_and_nothing_is_made(client: Client, hub: Hub, home: Path, name: str) -> None:
    answer = client.post(DOWNLOAD, {"model": name})
    assert answer.status == 400
    assert answer.json["error"]["type"] == "invalid_request" and answer.json["error"]["param"] == "model"
    assert not home.exists() and hub.asked == []


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({}, "missing_required_parameter"),
        ({"model": 1}, "invalid_type"),
        ({"model": REPO, "quant": "q8_0"}, "unrecognized_keys"),
        ({"model": f"{REPO}@q4_0", "quantization": "q8_0"}, "invalid_value"),
        (b"{", "invalid_json"),
    ],
)
def test_bodies_that_break_a_rule_are_refused(client: Client, body: Any, code: str) -> None:
    answer = client.post(DOWNLOAD, body)
    assert (answer.status, answer.json["error"]["code"]) == (400, code)


def test_what_the_hub_does_not_have_is_not_found(client: Client, hub: Hub) -> None:
    hub.repos["acme/empty"] = {"model.safetensors": b"x"}
    for model in ("acme/nothing", "acme/empty", f"{REPO}@q2_k"):
        answer = client.post(DOWNLOAD, {"model": model})
        assert answer.status == 404, answer.body
        assert answer.json["error"]["type"] == "model_not_found" and answer.json["error"]["code"] == "model_not_found"
    assert "Q4_K_M, Q8_0" in answer.json["error"]["message"]


@pytest.mark.parametrize("path", [f"{DOWNLOAD}/status/job_0123456789", "/lmlite/downloads/job_0123456789"])
def test_an_unknown_job_is_not_found(client: Client, path: str) -> None:
    answer = client.get(path)
    assert answer.status == 404
    assert answer.json["error"]["type"] == "job_not_found" and answer.json["error"]["code"] == "job_not_found"


def test_unfinished_jobs_go_on_after_a_restart(
    hub: Hub, serve_fake: Callable[..., FakeServer], home: Path, news: News
) -> None:
    held = Held(100)
    hub.on("/store/", held)
    first = serve_fake()
    client = first.client()
    id = client.post(DOWNLOAD, {"model": REPO}).json["job_id"]
    assert held.reached.wait(TIMEOUT_S)
    while told(client, id, "downloading")["downloaded_bytes"] < 100:
        pass  # each question waits for the server
    first.close()
    assert not held.given_up  # nobody waited for the hub
    held.release.set()
    second = serve_fake().client()
    news.ended(second, id)
    assert hub.files_asked()[-1].range == "bytes=100-"
    assert (home / "models" / REPO / "Falcon-7B-Q4_K_M.gguf").read_bytes() == SPOKEN


def test_neither_token_nor_signature_is_told_or_kept(
    client: Client, hub: Hub, home: Path, caplog: pytest.LogCaptureFixture, news: News
) -> None:
    caplog.set_level(logging.DEBUG)
    hub.on("/store/", misbehaving.answer(403))
    id = client.post(DOWNLOAD, {"model": REPO}).json["job_id"]
    failed = news.ended(client, id, "failed")
    assert "status 403" in failed["error_message"]
    everything = json.dumps([failed, client.get("/lmlite/downloads").json]) + caplog.text
    for path in home.rglob("*"):
        everything += path.read_bytes().decode("latin-1") if path.is_file() else ""
    assert hub.asked[0].headers["authorization"] == f"Bearer {TOKEN}"
    assert TOKEN not in everything and SIGNATURE.partition("=")[2] not in everything


def test_a_wrong_environment_is_told_to_whoever_downloads(
    serve_fake: Callable[..., FakeServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "ftp://hub")
    client = serve_fake().client()
    answer = client.post(DOWNLOAD, {"model": REPO})
    assert answer.status == 500 and "HF_ENDPOINT" in answer.json["error"]["message"]
    assert client.get("/health").status == 200


def test_a_vision_model_comes_with_its_projector(client: Client, hub: Hub, home: Path, news: News) -> None:
    hub.repos["acme/Seer-GGUF"] = {"Seer-Q4_K_M.gguf": SPOKEN, "mmproj-Seer-f16.gguf": gguf(projector())}
    news.ended(client, client.post(DOWNLOAD, {"model": "acme/Seer-GGUF"}).json["job_id"])
    assert on_disk(home) == ["acme/Seer-GGUF/Seer-Q4_K_M.gguf", "acme/Seer-GGUF/mmproj-Seer-f16.gguf"]


def test_a_folder_that_cannot_be_written_fails_the_job_only(client: Client, home: Path, news: News) -> None:
    home.mkdir()
    (home / "models").write_text("a file where a folder should be")
    id = client.post(DOWNLOAD, {"model": REPO}).json["job_id"]
    assert "Not a directory" in news.ended(client, id, "failed")["error_message"]
    (home / "models").unlink()
    assert client.post(DOWNLOAD, {"model": REPO}).json["job_id"] == id
    news.ended(client, id)


def test_a_downloaded_model_answers(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, news: News) -> None:
    """With the real engine."""
    monkeypatch.setenv("HOME", str(tmp_path))
    hub.repos["acme/Chatty-GGUF"] = {"Chatty-Q8_0.gguf": bundled_model().read_bytes()}
    with Server(port=0, home=tmp_path / "home") as server:
        client = Client(server.port)
        news.ended(client, client.post(DOWNLOAD, {"model": "acme/Chatty-GGUF"}).json["job_id"])
        asked = {"model": "chatty", "messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 8}
        answer = client.post("/v1/chat/completions", asked)
        client.close()
    assert answer.status == 200 and answer.json["choices"][0]["message"]["content"]
