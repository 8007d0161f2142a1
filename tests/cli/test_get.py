"""`lmlite get`: through a server and without one, from a hub on loopback; progress, refusals, Ctrl-C, going on."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from lmlite.cli import get
from tests.cli.conftest import Command
from tests.cli.peer import Peer
from tests.conftest import FakeServer
from tests.core.gguf_files import gguf, llama
from tests.hub import misbehaving
from tests.hub.misbehaving import Hub, answer, cut_after

DOWNLOAD = ("POST", "/api/v1/models/download")
JOB = {"job_id": "job_7c02e9b1aa", "total_size_bytes": 4_000_000_000, "started_at": "2026-05-01T09:00:00.000Z"}
RUNNING = {**JOB, "status": "downloading", "bytes_per_second": 50_000_000, "downloaded_bytes": 1_000_000_000}
COMPLETED = {**JOB, "status": "completed", "downloaded_bytes": 4_000_000_000}


def serve(peer: Peer, *steps: object) -> None:
    """A server whose job takes these steps, the last one for ever."""
    left = list(steps)
    peer.answers[DOWNLOAD] = {**JOB, "status": "downloading"}
    peer.answers["GET", "/lmlite/downloads/job_7c02e9b1aa"] = lambda asked: left.pop(0) if len(left) > 1 else left[0]
    peer.answers["POST", "/lmlite/downloads/pause/job_7c02e9b1aa"] = {**JOB, "status": "paused"}


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(get, "POLL_S", 0.01)


# ---- through a server ------------------------------------------------------------------------------------------------


def test_download_is_followed_to_its_end(command: Command, peer: Peer) -> None:
    serve(peer, RUNNING, COMPLETED)
    done = command("get", "acme/Falcon-7B-GGUF@q8_0")
    assert (done.code, done.out) == (0, "")
    assert done.err == "Downloading acme/Falcon-7B-GGUF@q8_0 (4.00 GB)\nDownload completed.\n"
    assert [asked.body for asked in peer.asked if asked.method == "POST"] == [{"model": "acme/Falcon-7B-GGUF@q8_0"}]
    assert command("get", "acme/Falcon-7B-GGUF", "--json").json == COMPLETED


def test_rate_and_time_left_are_shown_on_a_terminal(command: Command, peer: Peer) -> None:
    serve(peer, COMPLETED)
    peer.answers[DOWNLOAD] = RUNNING
    done = command("get", "acme/Falcon-7B-GGUF", typed="")
    assert "  25% 1.00 GB of 4.00 GB, 50.00 MB/s, 1m left" in done.err


@pytest.mark.parametrize(
    ("job", "words"),
    [
        (RUNNING, "1.00 GB of 4.00 GB, 50.00 MB/s, 1m left"),
        ({**RUNNING, "bytes_per_second": 0}, "1.00 GB of 4.00 GB"),
        ({**JOB, "status": "downloading"}, "0 B of 4.00 GB"),
        ({**RUNNING, "waiting_because": "the hub\nrests"}, "1.00 GB of 4.00 GB, waiting: the hub\\nrests"),
    ],
)
def test_pace_is_told_in_words(job: dict[str, object], words: str) -> None:
    assert get.pace_words(job) == words


def test_model_that_is_there_is_no_failure(command: Command, peer: Peer) -> None:
    peer.answers[DOWNLOAD] = {"status": "already_downloaded"}
    done = command("get", "acme/Falcon-7B-GGUF")
    assert (done.code, done.out, done.err) == (0, "", "acme/Falcon-7B-GGUF is already downloaded.\n")
    assert command("get", "acme/Falcon-7B-GGUF", "--json").json == {"status": "already_downloaded"}


def test_key_of_a_model_that_is_there_asks_no_hub(command: Command, peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    peer.answers["GET", "/api/v0/models/falcon-7b"] = {"id": "falcon-7b"}
    done = command("get", "--yes", "falcon-7b")
    assert (done.code, done.err) == (0, "falcon-7b is already downloaded.\n")


def test_refused_and_failed_downloads_exit_1(command: Command, peer: Peer) -> None:
    serve(peer, {**JOB, "status": "failed", "error_message": "the disk\nis full"})
    done = command("get", "acme/Falcon-7B-GGUF")
    assert (done.code, "lmlite: The download failed: the disk\\nis full\n" in done.err) == (1, True)
    serve(peer, {**JOB, "status": "paused"})
    assert "goes on with it" in command("get", "acme/Falcon-7B-GGUF").err
    peer.answers[DOWNLOAD] = 404, {"error": {"type": "invalid_request", "message": "acme/x has no Q3_K; there is Q8_0"}}
    done = command("get", "acme/x@q3_k")
    assert (done.code, done.err) == (1, "lmlite: acme/x has no Q3_K; there is Q8_0\n")


def test_mlx_is_refused_and_gguf_accepted(command: Command, peer: Peer) -> None:
    assert command("get", "acme/x", "--mlx").code == 1
    assert peer.asked == []
    serve(peer, COMPLETED)
    assert command("get", "acme/x", "--gguf").code == 0


@pytest.mark.parametrize(
    ("typed", "paused", "word"),
    [(None, False, "goes on in the background"), ("y\n", False, "goes on"), ("n\n", True, "stopped"), ("", True, "stopped")],
)
def test_ctrl_c_leaves_the_servers_download_unless_it_is_told_to_stop(
    command: Command,
    peer: Peer,
    monkeypatch: pytest.MonkeyPatch,
    typed: str | None,
    paused: bool,
    word: str,
) -> None:
    def press_ctrl_c(seconds: float) -> None:
        raise KeyboardInterrupt

    serve(peer, RUNNING)
    monkeypatch.setattr(get, "pause", press_ctrl_c)
    done = command("get", "acme/Falcon-7B-GGUF", typed=typed)
    assert (done.code, word in done.err) == (130, True)
    assert any("pause" in asked.path for asked in peer.asked) == paused


# ---- without a server ------------------------------------------------------------------------------------------------

REPO = "acme/Falcon-7B-GGUF"
FILES = {"Falcon-7B-Q4_K_M.gguf": gguf(llama()), "Falcon-7B-Q8_0.gguf": gguf(llama(general__name="larger")), "README.md": b"x"}


@pytest.fixture
def hub(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with misbehaving.running({REPO: FILES}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        for name in ("HF_TOKEN", "HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.delenv(name, raising=False)
        yield hub


def on_disk(home: Path) -> dict[str, bytes]:
    """The files that a catalogue would see."""
    files = (path for path in (home / "models").rglob("*") if path.is_file())
    return {str(path.relative_to(home / "models")): path.read_bytes() for path in files if ".download" not in path.parts}


def test_model_is_downloaded_without_a_server_and_listed(command: Command, hub: Hub, home: Path) -> None:
    done = command("get", f"{REPO}@q8_0")
    assert (done.code, done.out) == (0, "")
    assert done.err == f"Downloading {REPO}@q8_0 ({len(FILES['Falcon-7B-Q8_0.gguf'])} B)\nDownload completed.\n"
    assert on_disk(home) == {f"{REPO}/Falcon-7B-Q8_0.gguf": FILES["Falcon-7B-Q8_0.gguf"]}
    assert [entry["modelKey"] for entry in command("ls", "--json").json] == ["falcon-7b"]
    done = command("get", f"{REPO}@q8_0")
    assert (done.code, done.err) == (0, f"{REPO}@q8_0 is already downloaded.\n")
    assert command("get", "-y", "falcon-7b").err == "falcon-7b is already downloaded.\n"


def test_url_of_a_repository_and_of_a_file_are_names(command: Command, hub: Hub, home: Path) -> None:
    assert command("get", f"{hub.url}/{REPO}").code == 0
    done = command("get", f"{hub.url}/{REPO}/resolve/main/Falcon-7B-Q8_0.gguf", "--json")
    assert (done.code, done.json["status"], done.json["model"]) == (0, "completed", REPO)
    assert len(on_disk(home)) == 2


def test_interrupted_download_is_gone_on_with(
    command: Command, hub: Hub, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = FILES["Falcon-7B-Q4_K_M.gguf"]
    hub.on("/store/", cut_after(100))

    def press_ctrl_c(seconds: float) -> None:
        while not any(path.stat().st_size for path in (home / "models").rglob("*.part")):
            pass
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("lmlite.cli.get.pause", press_ctrl_c)
        done = command("get", REPO, typed="")
    assert (done.code, "goes on from what was received" in done.err) == (130, True)
    assert on_disk(home) == {}
    assert command("get", REPO).code == 0
    assert on_disk(home) == {f"{REPO}/Falcon-7B-Q4_K_M.gguf": content}
    assert hub.files_asked()[-1].range == "bytes=100-"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (f"{REPO}@q3_k_m", "there is Q4_K_M, Q8_0"),
        ("acme/no-such", "the hub has no acme/no-such"),
        ("acme/../x", "must be owner/repo"),
        ("https://example.org/a/b", "must be the URL of a repository of the hub"),
    ],
)
def test_what_the_hub_does_not_have_exits_1(command: Command, hub: Hub, home: Path, name: str, words: str) -> None:
    done = command("get", name)
    assert (done.code, done.out, words in done.err) == (1, "", True), done.err
    assert on_disk(home) == {}


def test_hub_that_is_not_there_is_told(command: Command, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert command("get", REPO).code == 1
    monkeypatch.setenv("HF_ENDPOINT", "ftp://x")
    assert command("get", REPO).code == 2


def test_named_server_that_is_not_there_is_no_reason_to_download_here(command: Command, hub: Hub, home: Path) -> None:
    assert command("get", REPO, "--port", "9").code == 1
    assert (hub.asked, on_disk(home)) == ([], {})


def test_server_downloads_into_its_own_home(command: Command, hub: Hub, home: Path, fake_server: FakeServer) -> None:
    done = command("get", REPO, "--port", str(fake_server.port))
    assert (done.code, done.err.splitlines()[-1]) == (0, "Download completed.")
    assert list(on_disk(fake_server.config.home)) == [f"{REPO}/Falcon-7B-Q4_K_M.gguf"]
    again = command("get", REPO, "--port", str(fake_server.port))
    assert (again.code, again.err) == (0, f"{REPO} is already downloaded.\n")


# ---- searching and selecting -----------------------------------------------------------------------------------------


def offer(hub: Hub, *found: object) -> None:
    hub.on("/api/models?", then=answer(200, json.dumps(found).encode()))


def test_only_match_is_downloaded_in_the_quantization_that_was_named(command: Command, hub: Hub, home: Path) -> None:
    offer(hub, {"id": REPO, "downloads": 5})
    assert command("get", "falcon 7b@q8_0").code == 0
    assert list(on_disk(home)) == [f"{REPO}/Falcon-7B-Q8_0.gguf"]
    assert re.search(r"search=falcon\+7b&filter=gguf", hub.asked[0].path)


def test_several_matches_are_chosen_from_refused_or_the_first_taken(command: Command, hub: Hub, home: Path) -> None:
    offer(hub, {"id": "other/falcon", "downloads": 5}, {"id": REPO, "downloads": 9})
    done = command("get", "falcon")
    assert (done.code, f'"falcon" matches several models: {REPO}, other/falcon.' in done.err) == (1, True)
    done = command("get", "falcon", typed="2\n")
    assert (done.code, f"  1. {REPO}  9 downloads\n  2. other/falcon" in done.err) == (1, True)
    assert command("get", "falcon", "-y").code == 0
    assert list(on_disk(home)) == [f"{REPO}/Falcon-7B-Q4_K_M.gguf"]
    offer(hub)
    assert 'no GGUF model that matches "nothing"' in command("get", "nothing").err


def test_quantization_is_selected_at_a_terminal(command: Command, hub: Hub, home: Path) -> None:
    done = command("get", REPO, "--select", typed="2\n")
    assert (done.code, "  1. Q4_K_M  " in done.err, "  2. Q8_0  " in done.err) == (0, True, True)
    assert list(on_disk(home)) == [f"{REPO}/Falcon-7B-Q8_0.gguf"]
    assert "name a quantization" in command("get", REPO, "--select").err
