"""Hundreds of pictures and sounds that are broken, cut off, huge, bombs or something else, sent to models that see or hear
through every dialect: each is refused with its reason, and whole ones are answered by the engine that was there before."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from lmlite.package import bundled_model, bundled_vision_model
from lmlite.server import Server
from tests import media_files
from tests.conftest import Client
from tests.media_files import MediaFile
from tests.media_models import write_ultravox

CHAT, RESPONSES, MESSAGES, NATIVE = "/v1/chat/completions", "/v1/responses", "/v1/messages", "/api/v1/chat"
MOST_BYTES = 1 << 20
"""What is larger takes its time to be sent; tests/c has it, too."""


def showing(file: MediaFile, model: str, turn: int) -> tuple[str, dict[str, Any]]:
    """A request about the file, in one dialect after the other."""
    data = base64.b64encode(file.data).decode()
    limit: dict[str, Any] = {"model": model, "max_tokens": 2}
    if file.kind == "audio":
        sound = {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}
        return CHAT, {**limit, "messages": [{"role": "user", "content": [sound]}]}
    url = f"data:image/png;base64,{data}"
    match turn % 4:
        case 0:
            return CHAT, {
                **limit,
                "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}],
            }
        case 1:
            shown = [{"role": "user", "content": [{"type": "input_image", "image_url": url}]}]
            return RESPONSES, {"model": model, "max_output_tokens": 2, "store": False, "input": shown}
        case 2:
            source = {"type": "base64", "media_type": "image/png", "data": data}
            return MESSAGES, {**limit, "messages": [{"role": "user", "content": [{"type": "image", "source": source}]}]}
        case _:
            return NATIVE, {
                "model": model,
                "max_output_tokens": 2,
                "store": False,
                "input": [{"type": "image", "data_url": url}],
            }


@contextmanager
def serving(model: Path, isolation: str, home: Path) -> Iterator[Client]:
    with Server(models=(model,), port=0, home=home, isolation=isolation, context_length=1024) as server:
        with closing(Client(server.port)) as client:
            yield client


def loads_and_crashes(client: Client) -> list[str]:
    lines = client.get("/metrics").body.decode().splitlines()
    return [line for line in lines if line.startswith(("lmlite_model_load_seconds_count", "lmlite_model_crashes_total"))]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("isolation", ["process", "thread"])
@pytest.mark.parametrize("kind", ["image", "audio"])
def test_what_cannot_be_read_is_refused_and_ends_nothing(tmp_path: Path, kind: str, isolation: str) -> None:
    if kind == "image":
        model = bundled_vision_model()
    else:
        model = Path(shutil.copy(bundled_model(), tmp_path / "listener.gguf"))
        write_ultravox(tmp_path / "mmproj-listener.gguf")
    whole = [file for file in media_files.whole().values() if file.kind == kind]
    broken = [file for file in media_files.hostile() if file.kind == kind and len(file.data) <= MOST_BYTES]
    assert len(broken) >= 140
    with serving(model, isolation, tmp_path / "home") as client:
        for turn, file in enumerate(whole * 4):
            answer = client.post(*showing(file, model.stem, turn))
            assert answer.status == 200, (file.name, turn, answer.body)
        before = loads_and_crashes(client)
        assert before
        got = {}
        for turn, file in enumerate(broken):
            answer = client.post(*showing(file, model.stem, turn))
            if answer.status != 400 or not answer.json["error"]["message"] or len(answer.body) > 1000:
                got[file.name] = (answer.status, answer.body[:200])
        assert got == {}
        assert loads_and_crashes(client) == before
        assert client.post(*showing(whole[0], model.stem, 0)).status == 200
