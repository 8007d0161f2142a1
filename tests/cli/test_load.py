"""`lmlite load` and `unload`: which model a name means, what is asked of the server, how it is told."""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote

import pytest

from lmlite.cli.loading import matching
from tests.cli.conftest import Command
from tests.cli.entries import instance, model
from tests.cli.peer import Asked, Events, Peer

MODELS = [model(key) for key in ("acme/falcon-7b-chat", "bird/falcon-7b", "owl@q4_k_m", "owl@q8_0", "text-embedding-owl")]
LOAD, UNLOAD = ("POST", "/api/v1/models/load"), ("POST", "/api/v1/models/unload")


def serve(peer: Peer, *loaded: str) -> None:
    peer.answers["GET", "/lmlite/models"] = {"models": [*MODELS, model("broken", problem="incomplete file")]}
    peer.answers["GET", "/lmlite/instances"] = {"instances": [instance(identifier) for identifier in loaded]}
    for key in (entry["modelKey"] for entry in MODELS):
        peer.answers["GET", f"/api/v0/models/{key.replace('/', '%2F').replace('@', '%40')}"] = {"id": key}
    peer.answers[LOAD] = end_load
    peer.answers[UNLOAD] = lambda asked: asked.body


def end_load(asked: Asked) -> Events:
    answer = {"type": "llm", "instance_id": asked.body["model"], "load_time_seconds": 3.1234, "status": "loaded"}
    progress = [("model_load.progress", {"progress": share}) for share in (0.5, 1.0)]
    return Events([("model_load.start", {}), *progress, ("model_load.end", answer)])


def sent(peer: Peer, path: str) -> list[Any]:
    return [asked.body for asked in peer.asked if asked.path == path]


# ---- load ------------------------------------------------------------------------------------------------------------


def test_loaded_model_is_told_in_lm_studios_words(command: Command, peer: Peer) -> None:
    serve(peer)
    done = command("load", "bird/falcon-7b")
    assert (done.code, done.out) == (0, "")
    assert done.err == (
        "Model loaded successfully in 3.12s.\n"
        "(4.07 GiB, 4.37 GB on disk)\n"
        'To use the model in the API/SDK, use the identifier "bird/falcon-7b".\n'
    )
    assert sent(peer, LOAD[1]) == [{"model": "bird/falcon-7b", "stream": True}]


def test_every_setting_reaches_the_server(command: Command, peer: Peer) -> None:
    serve(peer)
    flags = ["--gpu", "0.5", "-c", "8192", "--parallel", "2", "--ttl", "60", "--identifier", "mine", "-y", "--force"]
    done = command("load", "bird/falcon-7b", *flags, "--json")
    assert (done.code, done.json["instance_id"]) == (0, "bird/falcon-7b")
    (body,) = sent(peer, LOAD[1])
    expected = {"gpu": 0.5, "context_length": 8192, "parallel": 2, "ttl": 60, "identifier": "mine", "stream": True}
    expected |= {"force": True}
    assert body == {"model": "bird/falcon-7b", **expected}


def test_a_model_may_be_loaded_or_estimated_without_what_it_sees_with(command: Command, peer: Peer) -> None:
    serve(peer)
    peer.answers["POST", "/lmlite/estimate"] = {"total": 1, "gpu_total": 0, "available": 2, "gpu_available": 0, "fits": True}
    assert command("load", "bird/falcon-7b", "--no-projector").code == 0
    assert sent(peer, LOAD[1]) == [{"model": "bird/falcon-7b", "projector": False, "stream": True}]
    assert command("load", "bird/falcon-7b", "--no-projector", "--estimate-only", "--json").code == 0
    assert sent(peer, "/lmlite/estimate") == [{"model": "bird/falcon-7b", "projector": False}]


@pytest.mark.parametrize("flags", [("--gpu", "2"), ("--gpu", "all"), ("-c", "0"), ("--ttl", "-1"), ("--parallel", "x")])
def test_wrong_setting_exits_2_and_asks_nothing(command: Command, peer: Peer, flags: tuple[str, ...]) -> None:
    serve(peer)
    assert command("load", "owl", *flags).code == 2
    assert peer.asked == []


def test_progress_is_drawn_on_a_terminal(command: Command, peer: Peer) -> None:
    serve(peer)
    done = command("load", "bird/falcon-7b", typed="")
    assert "Loading bird/falcon-7b [" in done.err
    assert "100%" in done.err


def test_refused_load_is_told(command: Command, peer: Peer) -> None:
    serve(peer)
    refusal = {"error": {"type": "invalid_request", "code": "model_load_failed", "message": "unknown architecture"}}
    for answer in ((422, refusal), Events([("model_load.start", {}), ("error", refusal)])):
        peer.answers[LOAD] = answer
        done = command("load", "bird/falcon-7b")
        assert (done.code, done.out, done.err) == (1, "", "lmlite: unknown architecture\n")


def test_refusal_for_memory_names_the_way_around_it(command: Command, peer: Peer) -> None:
    serve(peer)
    refusal = {"error": {"type": "invalid_request", "code": "insufficient_memory", "message": "needs 9 of 4 GiB"}}
    peer.answers[LOAD] = 422, refusal
    done = command("load", "bird/falcon-7b")
    assert (done.code, done.err) == (1, "lmlite: needs 9 of 4 GiB. Load it all the same with --force\n")


@pytest.mark.parametrize("broken", [True, False])
def test_load_that_ends_without_a_word_failed(command: Command, peer: Peer, broken: bool) -> None:
    serve(peer)
    peer.answers[LOAD] = Events([("model_load.start", {})], broken)
    assert command("load", "bird/falcon-7b").code == 1


def test_estimate_is_told_and_nothing_is_loaded(command: Command, peer: Peer) -> None:
    serve(peer)
    estimate: dict[str, Any] = {"total": 4_400_000_000, "gpu_total": 0, "available": 3_000_000_000, "gpu_available": 0}
    estimate |= {"fits": False, "threads": 6}
    peer.answers["POST", "/lmlite/estimate"] = estimate
    done = command("load", "bird/falcon-7b", "--estimate-only", "-c", "512", "--ttl", "9")
    assert done.code == 0
    assert done.out == (
        "Model: bird/falcon-7b\n"
        "Estimated Total Memory: 4.10 GiB\n"
        "Compute Threads:        6\n"
        "\n"
        "Estimate: it does not fit, only 2.79 GiB are free.\n"
    )
    assert sent(peer, "/lmlite/estimate") == [{"model": "bird/falcon-7b", "context_length": 512}]
    assert sent(peer, LOAD[1]) == []
    assert command("load", "bird/falcon-7b", "--estimate-only", "--json").json == estimate


@pytest.mark.parametrize(("needed", "free", "told"), [(2 << 30, 3 << 30, "2.00 GiB"), (0, 1, "0 B"), (1 << 30, 0, "1.00 GiB")])
def test_memory_of_a_gpu_is_told_where_there_is_one(
    command: Command, peer: Peer, needed: int, free: int, told: str
) -> None:
    serve(peer)
    estimate = {"total": 4 << 30, "gpu_total": needed, "available": 9 << 30, "gpu_available": free}
    peer.answers["POST", "/lmlite/estimate"] = {**estimate, "fits": True, "threads": 1}
    assert f"Estimated GPU Memory:   {told}\n" in command("load", "bird/falcon-7b", "--estimate-only").out


# ---- which model -----------------------------------------------------------------------------------------------------


def test_server_is_asked_first_what_the_name_means(command: Command, peer: Peer) -> None:
    serve(peer)
    name = "acme/falcon-7b-chat-GGUF/a b.gguf"
    peer.answers["GET", "/api/v0/models/acme%2Ffalcon-7b-chat-GGUF%2Fa%20b.gguf"] = {"id": "acme/falcon-7b-chat"}
    assert command("load", name).code == 0
    assert [unquote(asked.path) for asked in peer.asked][-2] == f"/api/v0/models/{name}"
    assert sent(peer, LOAD[1])[0]["model"] == "acme/falcon-7b-chat"


@pytest.mark.parametrize(
    ("query", "keys"),
    [
        ("falcon", ["bird/falcon-7b", "acme/falcon-7b-chat"]),
        ("chat", ["acme/falcon-7b-chat"]),
        ("Falcon chat", ["acme/falcon-7b-chat"]),
        ("acme falcon", ["acme/falcon-7b-chat"]),
        ("owl q8", ["owl@q8_0"]),
        ("flcn chat", ["acme/falcon-7b-chat"]),
        ("owl", ["owl@q8_0", "owl@q4_k_m", "text-embedding-owl"]),
        ("nothing", []),
    ],
)
def test_parts_of_names_find_models(query: str, keys: list[str]) -> None:
    assert [entry["modelKey"] for entry in matching(query, MODELS)] == keys


def test_only_match_is_taken(command: Command, peer: Peer) -> None:
    serve(peer)
    assert command("load", "chat").code == 0
    assert sent(peer, LOAD[1])[0]["model"] == "acme/falcon-7b-chat"


def test_several_matches_are_refused_where_nobody_can_be_asked(command: Command, peer: Peer) -> None:
    serve(peer)
    done = command("load", "falcon")
    assert (done.code, sent(peer, LOAD[1])) == (1, [])
    assert '"falcon" matches several models: bird/falcon-7b, acme/falcon-7b-chat.' in done.err


def test_yes_takes_the_first_match(command: Command, peer: Peer) -> None:
    serve(peer)
    assert command("load", "falcon", "-y").code == 0
    assert sent(peer, LOAD[1])[0]["model"] == "bird/falcon-7b"


def test_user_at_a_terminal_chooses(command: Command, peer: Peer) -> None:
    serve(peer)
    done = command("load", "falcon", typed="2\n")
    assert done.code == 0
    assert "  1. bird/falcon-7b  4.37 GB\n  2. acme/falcon-7b-chat  4.37 GB\n" in done.err
    assert sent(peer, LOAD[1])[0]["model"] == "acme/falcon-7b-chat"
    assert command("load", typed="\n").code == 1


def test_no_match_and_exact_names_are_refused(command: Command, peer: Peer) -> None:
    serve(peer)
    for arguments in (("nothing", "-y"), ("falcon", "--exact", "-y")):
        done = command("load", *arguments)
        assert (done.code, done.out) == (1, "")
        assert "lmlite ls" in done.err
    assert command("load", "bird/falcon-7b", "--exact").code == 0


def test_without_a_name_there_must_be_one_model_or_somebody_to_ask(command: Command, peer: Peer) -> None:
    serve(peer)
    done = command("load", "-y")
    assert (done.code, "Name a model, one of: " in done.err) == (1, True)
    peer.answers["GET", "/lmlite/models"] = {"models": [model("owl"), model("broken", problem="no")]}
    assert command("load").code == 0
    assert sent(peer, LOAD[1])[0]["model"] == "owl"


def test_without_a_name_and_anybody_to_ask_no_server_is_started(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[object] = []

    def start(*arguments: object) -> int:
        started.append(arguments)
        return 1

    monkeypatch.setattr("lmlite.cli.server.start", start)
    done = command("load")
    assert (done.code, "Name the model to load: lmlite load MODEL." in done.err, started) == (1, True, [])
    assert command("load", "owl").code == 1 and len(started) == 1
    assert command("load", typed="").code == 1 and len(started) == 2


def test_broken_models_are_no_match(command: Command, peer: Peer) -> None:
    serve(peer)
    assert command("load", "brok").code == 1


# ---- unload ----------------------------------------------------------------------------------------------------------


def test_named_instance_is_unloaded(command: Command, peer: Peer) -> None:
    serve(peer, "owl", "owl:2")
    done = command("unload", "owl:2")
    assert (done.code, done.out, done.err) == (0, "", 'Model "owl:2" unloaded.\n')
    assert sent(peer, UNLOAD[1]) == [{"instance_id": "owl:2"}]


@pytest.mark.parametrize(
    ("name", "unloaded"),
    [("falcon", "bird/falcon-7b"), ("OWL", "owl"), ("owl@q8", "owl@q8_0"), ("mine", "mine"), ("7b bird", "bird/falcon-7b")],
)
def test_part_of_a_name_unloads_what_it_means(command: Command, peer: Peer, name: str, unloaded: str) -> None:
    serve(peer, "owl", "owl@q8_0", "bird/falcon-7b", "mine")
    done = command("unload", name)
    assert (done.code, done.err) == (0, f'Model "{unloaded}" unloaded.\n')


def test_name_of_the_model_unloads_its_instance_under_another_name(command: Command, peer: Peer) -> None:
    serve(peer)
    peer.answers["GET", "/lmlite/instances"] = {"instances": [instance("mine", model="owl@q8_0"), instance("other")]}
    peer.answers["GET", "/api/v0/models/alias"] = {"id": "owl@q8_0"}
    for name in ("owl@q8_0", "alias", "q8"):
        assert command("unload", name).err == 'Model "mine" unloaded.\n'


def test_part_of_several_names_or_of_none_unloads_nothing(command: Command, peer: Peer) -> None:
    serve(peer, "bird/falcon-7b", "acme/falcon-7b-chat")
    done = command("unload", "falcon")
    assert (done.code, "matches several loaded models: bird/falcon-7b, acme/falcon-7b-chat" in done.err) == (1, True)
    done = command("unload", "wren")
    assert (done.code, 'No loaded model matches "wren"; loaded: bird/falcon-7b' in done.err) == (1, True)
    serve(peer)
    assert "none is loaded" in command("unload", "falcon").err
    assert sent(peer, UNLOAD[1]) == []


def test_user_at_a_terminal_chooses_what_to_unload(command: Command, peer: Peer) -> None:
    serve(peer, "bird/falcon-7b", "acme/falcon-7b-chat")
    assert command("unload", "falcon", typed="2\n").code == 0
    assert sent(peer, UNLOAD[1]) == [{"instance_id": "acme/falcon-7b-chat"}]


def test_sole_instance_needs_no_name(command: Command, peer: Peer) -> None:
    serve(peer, "owl")
    assert command("unload").err == 'Model "owl" unloaded.\n'


def test_no_instance_and_several_are_refused_without_a_name(command: Command, peer: Peer) -> None:
    serve(peer)
    done = command("unload")
    assert (done.code, done.err) == (1, "lmlite: No models are currently loaded.\n")
    serve(peer, "owl", "falcon")
    done = command("unload")
    assert (done.code, "owl, falcon" in done.err, sent(peer, UNLOAD[1])) == (1, True, [])


def test_all_instances_are_unloaded(command: Command, peer: Peer) -> None:
    serve(peer, "owl", "falcon")
    done = command("unload", "--all")
    assert (done.code, done.err) == (0, 'Unloading "owl"...\nUnloading "falcon"...\nUnloaded 2 models.\n')
    serve(peer)
    done = command("unload", "-a")
    assert (done.code, done.err) == (0, "No models to unload.\n")


def test_instance_that_left_by_itself_is_no_failure_of_all(command: Command, peer: Peer) -> None:
    serve(peer, "owl", "falcon")
    gone = 404, {"error": {"type": "invalid_request", "code": "model_not_found", "message": "gone"}}
    peer.answers[UNLOAD] = lambda asked: gone if asked.body["instance_id"] == "owl" else asked.body
    assert command("unload", "-a").code == 0
    assert command("unload", "owl").code == 1


def test_all_and_a_name_contradict_each_other(command: Command, peer: Peer) -> None:
    assert command("unload", "owl", "-a").code == 1
    assert peer.asked == []
