"""`lmlite ls` and `ps`: LM Studio's words and JSON, with a server and without one, whatever names the disk has."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lmlite.core.disk import model_yaml
from tests.cli.conftest import Command
from tests.cli.entries import instance, model
from tests.cli.peer import Peer
from tests.conftest import FakeServer
from tests.core.gguf_files import bert, gguf, llama, projector


def put_models(home: Path, models: dict[str, bytes]) -> None:
    for place, content in models.items():
        path = home / "models" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def serve(peer: Peer, models: list[dict[str, Any]], loaded: list[dict[str, Any]]) -> None:
    peer.answers["GET", "/lmlite/models"] = {"models": models}
    peer.answers["GET", "/lmlite/instances"] = {"instances": loaded}


# ---- ls without a server ---------------------------------------------------------------------------------------------


def test_models_on_disk_are_listed_without_a_server(command: Command, home: Path) -> None:
    put_models(
        home,
        {
            "acme/Falcon-7B-GGUF/Falcon-7B-Q4_K_M.gguf": gguf(llama(general__size_label="7B")),
            "acme/owl/owl-F16.gguf": gguf(bert(general__file_type=1)),
        },
    )
    done = command("ls")
    assert (done.code, done.err) == (0, "")
    sizes = [path.stat().st_size for path in sorted((home / "models").rglob("*.gguf"))]
    assert done.out == (
        f"\nYou have 2 models, taking up {sum(sizes) / 1000:.2f} KB of disk space.\n"
        "\n"
        "LLM         PARAMS   ARCH    SIZE    DEVICE\n"
        f"falcon-7b   7B       llama   {sizes[0]} B   Local\n"
        "\n"
        "EMBEDDING            PARAMS   ARCH   SIZE    DEVICE\n"
        f"text-embedding-owl   4        bert   {sizes[1]} B   Local\n"
        "\n"
    )


def test_json_is_that_of_the_contract(command: Command, home: Path) -> None:
    put_models(home, {"acme/Falcon-7B-GGUF/Falcon-7B-Q4_K_M.gguf": gguf(llama(general__size_label="7B"))})
    path = "acme/Falcon-7B-GGUF/Falcon-7B-Q4_K_M.gguf"
    assert command("ls", "--json").json == [
        {
            "type": "llm",
            "modelKey": "falcon-7b",
            "format": "gguf",
            "displayName": "Falcon 7B",
            "publisher": "acme",
            "path": path,
            "sizeBytes": (home / "models" / path).stat().st_size,
            "indexedModelIdentifier": path,
            "deviceIdentifier": None,
            "paramsString": "7B",
            "architecture": "llama",
            "quantization": {"name": "Q4_K_M", "bits": 4},
            "vision": False,
            "trainedForToolUse": False,
            "maxContextLength": 4096,
        }
    ]


def test_models_that_see_or_hear_are_marked(command: Command, home: Path) -> None:
    hears = {"clip.has_vision_encoder": False, "clip.has_audio_encoder": True}
    files = {
        "acme/Seer-GGUF/Seer-Q4_K_M.gguf": gguf(llama()),
        "acme/Seer-GGUF/mmproj-Seer-f16.gguf": gguf(projector()),
        "acme/Ear-GGUF/Ear-Q4_K_M.gguf": gguf(llama()),
        "acme/Ear-GGUF/mmproj-Ear-f16.gguf": gguf(projector() | hears),
    }
    put_models(home, files)
    out = command("ls").out
    assert "seer (sees)" in out and "ear (hears)" in out and "mmproj" not in out
    told = {entry["modelKey"]: (entry["vision"], entry.get("hears", False)) for entry in command("ls", "--json").json}
    assert told == {"seer": (True, False), "ear": (False, True)}


def test_bundled_models_are_what_a_new_user_has(command: Command) -> None:
    assert "You have 2 models, taking up" in command("ls").out
    listed = [(entry["modelKey"], entry["publisher"], entry["vision"]) for entry in command("ls", "--json").json]
    assert listed == [("lmlite-tiny", "lmlite", False), ("lmlite-tiny-vision", "lmlite", True)]


def test_broken_file_is_shown_with_its_reason_and_breaks_nothing(command: Command, home: Path) -> None:
    put_models(home, {"acme/a/good.gguf": gguf(llama()), "acme/b/bad.gguf": b"GGUF", "acme/c/zip.gguf": b"PK\3\4"})
    done = command("ls")
    assert done.code == 0
    assert "You have 3 models" in done.out
    broken = done.out.split("CANNOT BE LOADED")[1]
    assert [line.split()[0] for line in broken.splitlines()[1:] if line] == ["b", "c"]
    assert all(entry.get("problem") for entry in command("ls", "--json").json if entry["modelKey"] != "a")


def test_names_with_line_breaks_and_escape_sequences_are_shown_escaped(command: Command, home: Path) -> None:
    name = "acme/x\x1b[31m\ny/m\x1b]0;title\x07.gguf"
    put_models(home, {name: gguf(llama()), "acme/-rf/-rf.gguf": gguf(llama()), "acme/🦙/🦙.gguf": b"no"})
    shown, data = command("ls"), command("ls", "--json")
    assert shown.code == data.code == 0
    for text in (shown.out, data.out):
        assert all(c == "\n" or c.isprintable() for c in text)
    assert len(data.json) == 3
    assert "🦙" in shown.out


def test_name_that_is_not_unicode_is_listed_with_and_without_a_server(
    command: Command, home: Path, serve_fake: Callable[..., FakeServer]
) -> None:
    put_models(home, {os.fsdecode(b"acme/x/\xff.gguf"): gguf(llama())})
    (entry,) = command("ls", "--json").json
    assert os.fsencode(entry["path"]) == b"acme/x/\xff.gguf"
    server = serve_fake(models_dir=[home / "models"])
    assert command("ls", "--json", "--port", str(server.port)).json == [entry]
    assert command("ls", "--port", str(server.port)).code == 0


def test_what_is_not_listed_is_told_beside_the_list(
    command: Command, home: Path, serve_fake: Callable[..., FakeServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    put_models(home, {"acme/falcon/falcon.gguf": gguf(llama())})
    (home / "models/birds").symlink_to("nowhere")
    monkeypatch.setenv("LMLITE_ALIAS", "gpt-4o=falcon,gone=wren")
    link = f"{home}/models/birds is left out: a link to what is not there\n"
    alias = "the alias gone stands for wren, and there is no such model\n"
    done = command("ls")
    assert ("falcon (gpt-4o) " in done.out, done.err) == (True, link + alias)
    assert command("ls", "--quiet").err == command("ls", "--json").err == command("ls", "falcon").err == ""
    assert command("ls", "--json").json[0]["aliases"] == ["gpt-4o"]
    server = serve_fake(models_dir=[home / "models"])
    assert command("ls", "--port", str(server.port)).err == link


def test_a_model_whose_yaml_is_not_read_says_so(command: Command, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_models(home, {"acme/falcon/falcon.gguf": gguf(llama()), "acme/falcon/model.yaml": b"model: a/b\nbase: acme/falcon"})
    monkeypatch.setattr(model_yaml, "can_read", lambda: False)
    (entry,) = command("ls", "--json").json
    assert entry["note"] == "its model.yaml is ignored: PyYAML is not installed (pip install 'lmlite[yaml]')"
    assert "model.yaml is ignored: PyYAML is not installed" in command("ls").err


@pytest.mark.parametrize(("flag", "keys"), [("--llm", ["falcon"]), ("--embedding", ["text-embedding-owl"])])
def test_types_can_be_asked_for(command: Command, home: Path, flag: str, keys: list[str]) -> None:
    put_models(home, {"acme/falcon/falcon.gguf": gguf(llama()), "acme/owl/owl.gguf": gguf(bert())})
    assert [entry["modelKey"] for entry in command("ls", flag, "--json").json] == keys


def test_name_stands_for_all_its_quantizations(command: Command, home: Path) -> None:
    quants = {f"acme/falcon/falcon-{quant}.gguf": gguf(llama()) for quant in ("Q4_K_M", "Q8_0")}
    put_models(home, {**quants, "acme/owl/owl.gguf": gguf(llama())})
    assert [entry["modelKey"] for entry in command("ls", "Falcon", "--json").json] == ["falcon@q4_k_m", "falcon@q8_0"]
    assert [entry["modelKey"] for entry in command("ls", "falcon@q8_0", "--json").json] == ["falcon@q8_0"]
    done = command("ls", "no\nsuch")
    assert (done.code, done.out) == (1, "")
    assert 'There is no model "no\\nsuch"' in done.err


def test_no_models_of_a_type_is_said_on_stderr(command: Command) -> None:
    done = command("ls", "--embedding")
    assert (done.code, done.out, done.err) == (0, "", "There are no such models.\n")
    assert command("ls", "--embedding", "--json").json == []
    assert command("ls", "--embedding", "--quiet").err == ""


def test_named_server_that_is_not_there_is_no_reason_to_look_at_the_disk(command: Command) -> None:
    done = command("ls", "--port", "9")
    assert (done.code, done.out) == (1, "")
    assert "The server is not running at http://127.0.0.1:9" in done.err


@pytest.mark.parametrize("port", ["0", "65536", "x", "٥", "-1"])
def test_wrong_port_exits_2(command: Command, port: str) -> None:
    assert command("ls", f"--port={port}").code == 2


# ---- ls with a server ------------------------------------------------------------------------------------------------


def test_loaded_models_are_marked(command: Command, peer: Peer) -> None:
    loaded = [instance("falcon-7b"), instance("falcon-7b:2"), instance("owl", status="loading")]
    serve(peer, [model("falcon-7b"), model("owl")], loaded)
    lines = command("ls").out.splitlines()
    assert [line.endswith("✓ LOADED") for line in lines if "Local" in line] == [True, False]


def test_variants_are_counted_and_shown_when_asked_for(command: Command, peer: Peer) -> None:
    variants = ["acme/falcon@q4_k_m", "acme/falcon@q8_0"]
    serve(peer, [model("acme/falcon", variants=variants, selectedVariant=variants[0])], [])
    assert "acme/falcon (2 variants)" in command("ls").out
    for asked in (("--variants",), ("acme/falcon",)):
        shown = command("ls", *asked).out.splitlines()
        assert [line.split() for line in shown if line.startswith("  ")] == [[variants[0], "selected"], [variants[1]]]


def test_list_of_a_server_is_that_of_the_disk(command: Command, fake_server: FakeServer) -> None:
    listed = json.loads(fake_server.client().get("/lmlite/models").body)["models"]
    assert [entry["modelKey"] for entry in listed] == ["talker", "text-embedding-embedder", "text-embedding-judge"]
    assert listed[0]["path"] == "acme/talker-GGUF/talker-Q4_K_M.gguf"


# ---- ps --------------------------------------------------------------------------------------------------------------


def test_instances_are_shown_with_what_they_do(command: Command, peer: Peer) -> None:
    loaded = [
        instance("falcon-7b", status="generating", queued=2, ttlMs=3_600_000, remainingTtlMs=3_540_000),
        instance("falcon-7b:2", status="processingPrompt", contextLength=8192),
        instance("heron", status="loading", threads=None),
        instance("owl", type="embedding", sizeBytes=274_000_000, ttlMs=60_000, remainingTtlMs=9_500),
    ]
    serve(peer, [], loaded)
    assert command("ps").out == (
        "\n"
        "IDENTIFIER    MODEL       STATUS                  SIZE        CONTEXT   PARALLEL   THREADS   DEVICE   TTL\n"
        "falcon-7b     falcon-7b   GENERATING (2 queued)   4.37 GB     4096      4          2         Local    59m / 1h\n"
        "falcon-7b:2   falcon-7b   PROCESSING PROMPT       4.37 GB     8192      4          2         Local\n"
        "heron         heron       LOADING                 4.37 GB     4096      4                    Local\n"
        "owl           owl         IDLE                    274.00 MB   4096                 2         Local    9s / 1m\n"
        "\n"
    )


def test_instances_as_json_are_their_models_and_what_is_true_of_them(command: Command, peer: Peer) -> None:
    serve(peer, [model("owl", type="embedding")], [instance("owl", type="embedding", ttlMs=5, lastUsedTime=7)])
    (entry,) = command("ps", "--json").json
    expected = {"modelKey": "owl", "identifier": "owl", "ttlMs": 5, "lastUsedTime": 7, "contextLength": 4096}
    expected |= {"status": "idle", "queued": 0, "parallel": None, "threads": 2, "deviceIdentifier": None, "type": "embedding"}
    assert entry | expected == entry


def test_instance_of_a_model_that_left_the_disk_is_listed(command: Command, peer: Peer) -> None:
    serve(peer, [], [instance("falcon-7b")])
    assert [entry["modelKey"] for entry in command("ps", "--json").json] == ["falcon-7b"]


def test_nothing_loaded_is_said_with_what_to_do(command: Command, peer: Peer) -> None:
    serve(peer, [], [])
    done = command("ps")
    assert (done.code, done.out) == (0, "")
    assert done.err.startswith("No models are currently loaded.\n")
    assert "lmlite load" in done.err
    assert command("ps", "--json").json == []


PROMPTS = {"usedBytes": 47_200_000, "budgetBytes": 4096 << 20}
"""What the server tells of prompts that are kept on the disk."""


def with_prompts(peer: Peer, loaded: list[dict[str, Any]]) -> None:
    serve(peer, [], loaded)
    peer.answers["GET", "/lmlite/instances"] = {"instances": loaded, "promptCache": PROMPTS}


def test_room_that_prompts_take_on_the_disk_is_shown_with_what_is_loaded(command: Command, peer: Peer) -> None:
    with_prompts(peer, [instance("falcon-7b")])
    last = "Prompt cache on the disk: 47.20 MB of 4.29 GB"
    assert command("ps").out.splitlines()[-2:] == [last, ""]
    assert command("status").out.splitlines()[-2:] == ["", last]
    assert command("status", "--json").json["promptCache"] == PROMPTS
    assert [entry["identifier"] for entry in command("ps", "--json").json] == ["falcon-7b"]


def test_prompts_on_the_disk_are_shown_without_a_model(command: Command, peer: Peer) -> None:
    with_prompts(peer, [])
    assert "Prompt cache on the disk: 47.20 MB of 4.29 GB\n" in command("ps").out
    assert command("ps", "--json").json == []


def test_without_prompts_on_the_disk_nothing_is_said_of_them(command: Command, peer: Peer) -> None:
    serve(peer, [], [instance("falcon-7b")])
    assert "rompt" not in command("ps").out + command("status").out
    assert "promptCache" not in command("status", "--json").json


def test_ps_without_a_server_fails_and_names_the_way_out(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LMLITE_PORT", "9")
    done = command("ps")
    assert (done.code, done.out) == (1, "")
    assert "lmlite server start" in done.err
