"""Gaps filled in the middle of a text: `suffix` of `/v1/completions` and `POST /infill`, with the real engine and a random
model whose vocabulary has the tokens for it. What the model was given is read from an echoed prompt's log probabilities."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from lmlite.core.engine.client import Engine
from lmlite.core.engine.payloads import LoadSettings, LoadSpec
from lmlite.core.engine.worker import Process
from lmlite.errors import ContextOverflow, WrongModelType
from lmlite.events import Finished, TextDelta
from lmlite.request import Generate, Infill, Sampling
from lmlite.server import Server
from tests.conftest import Client
from tests.random_models import Llama

MARKS = ("pre", "suf", "mid")
ALL_MARKS = (*MARKS, "rep", "sep")
GREEDY = Sampling(temperature=0)


def with_model(
    folder: Path, marks: tuple[str, ...], test: Callable[[Engine], Coroutine[Any, Any, None]], context_length: int = 256
) -> None:
    async def run() -> None:
        engine = await Engine.open(Process(), "gap")
        try:
            path = Llama(marks=marks).write(folder / "model.gguf")
            await engine.load(LoadSpec((path,), LoadSettings(context_length=context_length)))
            await test(engine)
        finally:
            await engine.close()

    asyncio.run(run())


async def seen(engine: Engine, infill: Infill, **more: Any) -> str:
    """The prompt as the model sees it: marks, and letters."""
    work = Generate(infill, **{"max_tokens": 0, **more}, echo=True, top_logprobs=0, sampling=GREEDY)
    events = [event async for event in engine.run(work)]
    raw = b"".join(token.bytes for event in events if isinstance(event, TextDelta) for token in event.logprobs)
    return raw.decode().replace("<|fim_", "<").replace("|>", ">").replace(" ", "").replace("▁", "")


def test_what_stands_before_and_after_is_marked_and_text_stays_text(tmp_path: Path) -> None:
    async def test(engine: Engine) -> None:
        assert await seen(engine, Infill("ab", "cd")) == "<s><pre>ab<suf>cd<mid>"
        assert await seen(engine, Infill("ab", "cd", "ef")) == "<s><pre>abef<suf>cd<mid>"
        assert await seen(engine, Infill("", "")) == "<s><pre><suf><mid>"
        written = Generate(Infill("<|fim_mid|>", "x"), max_tokens=0)
        (end,) = [event async for event in engine.run(written) if isinstance(event, Finished)]
        assert end.stats.prompt_tokens > len("<|fim_mid|>")  # letters

    with_model(tmp_path, MARKS, test)


@pytest.mark.parametrize("marks", [MARKS, ALL_MARKS], ids=["plain", "repository"])
def test_other_files_come_first(tmp_path: Path, marks: tuple[str, ...]) -> None:
    async def test(engine: Engine) -> None:
        files = (("one", "aa"), ("two", "bb"))
        told = await seen(engine, Infill("x", "y", files=files))
        none = await seen(engine, Infill("x", "y", files=()))
        if marks == MARKS:
            snippet = "\n\n---snippet---\n\n"
            assert told == f"<s>{snippet}aa{snippet}bb<pre>x<suf>y<mid>"
            assert none == "<s><pre>x<suf>y<mid>"
        else:
            assert told == "<s><rep>myproject\n<sep>one\naa<sep>two\nbb<sep>filename\n<pre>x<suf>y<mid>"
            assert none == "<s><rep>myproject\n<sep>filename\n<pre>x<suf>y<mid>"

    with_model(tmp_path, marks, test)


def test_what_is_far_from_the_gap_goes_where_there_is_no_room(tmp_path: Path) -> None:
    async def test(engine: Engine) -> None:
        prefix, suffix = "abcdefghij" * 60, "klmnopqrst" * 60
        for files in ((), (("one", "z" * 500),)):
            told = await seen(engine, Infill(prefix, suffix, "uv", files=files))
            before, after = told.removesuffix("<mid>").removeprefix("<s><pre>").split("<suf>")
            assert (prefix + "uv").endswith(before) and suffix.startswith(after)
            assert 2 * len(after) < len(before) < 256
        short = await seen(engine, Infill("ab", "cd", files=(("one", "z" * 500),)))
        assert short.endswith("zzz<pre>ab<suf>cd<mid>") and 100 < short.count("z") < 256
        with pytest.raises(ContextOverflow):
            await seen(engine, Infill(prefix, suffix))
        assert "<suf>" in await seen(engine, Infill(prefix, suffix), overflow="drop_middle")

    with_model(tmp_path, MARKS, test)


@pytest.mark.parametrize("marks", [(), ("pre", "suf")])
def test_a_vocabulary_without_the_tokens_is_named(tmp_path: Path, marks: tuple[str, ...]) -> None:
    async def test(engine: Engine) -> None:
        with pytest.raises(WrongModelType, match="no token for: .*middle") as refused:
            await seen(engine, Infill("ab", "cd"))
        assert ("prefix" in refused.value.message.split("no token for")[1]) == (marks == ())

    with_model(tmp_path, marks, test)


# ---- over HTTP -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gap_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("gap")
    models = [Llama(marks=MARKS).write(folder / "filler.gguf"), Llama().write(folder / "plain.gguf")]
    with Server(port=0, models=models, home=folder / "home") as server:
        yield server


@pytest.fixture
def client(gap_server: Server) -> Iterator[Client]:
    client = Client(gap_server.port)
    yield client
    client.close()


ASKED = {"model": "filler", "temperature": 0, "max_tokens": 6, "ignore_eos": True}


def test_a_suffix_is_served(client: Client) -> None:
    (one, two) = client.post("/v1/completions", {**ASKED, "prompt": ["ab", "cd"], "suffix": "xy"}).json["choices"]
    (alone,) = client.post("/v1/completions", {**ASKED, "prompt": "ab"}).json["choices"]
    assert one["text"] != two["text"] and one["text"] != alone["text"]
    (echoed,) = client.post("/v1/completions", {**ASKED, "prompt": "ab", "suffix": "xy", "echo": True}).json["choices"]
    assert echoed["text"] == "ab" + one["text"]
    (empty,) = client.post("/v1/completions", {**ASKED, "prompt": "ab", "suffix": ""}).json["choices"]
    assert empty["text"] == alone["text"]


def test_a_model_that_fills_no_gaps_says_so(client: Client) -> None:
    refused = client.post("/v1/completions", {**ASKED, "model": "plain", "prompt": "ab", "suffix": "xy"})
    assert refused.status == 400 and "filling in the middle" in refused.json["error"]["message"]
    ids = client.post("/v1/completions", {**ASKED, "prompt": [5, 6], "suffix": "xy"})
    assert ids.status == 400 and ids.json["error"]["param"] == "prompt"


GAP = {"input_prefix": "ab", "input_suffix": "xy", "n_predict": 6, "temperature": 0, "ignore_eos": True, "model": "filler"}


def test_infill_answers_as_llama_cpp_s_server(client: Client) -> None:
    whole = client.post("/infill", GAP).json
    assert whole["stop"] is True and whole["stop_type"] == "limit" and whole["model"] == "filler"
    assert whole["tokens_predicted"] == 6 and whole["content"]
    assert whole["timings"]["predicted_n"] == 6
    (same,) = client.post("/v1/completions", {**ASKED, "prompt": "ab", "suffix": "xy"}).json["choices"]
    assert same["text"] == whole["content"]
    begun = client.post("/infill", {**GAP, "prompt": "c"}).json
    assert begun["tokens_evaluated"] > whole["tokens_evaluated"] and begun["content"] != whole["content"]
    told = client.post("/infill", {**GAP, "input_extra": [{"text": "hello", "filename": "a.py"}, {"text": "b"}]}).json
    assert told["tokens_evaluated"] > whole["tokens_evaluated"] + 5


def test_a_streamed_infill_says_the_same_and_ends_with_the_facts(client: Client) -> None:
    whole = client.post("/infill", GAP).json
    *parts, last = [json.loads(data) for _, data in client.post("/infill", {**GAP, "stream": True}).events]
    assert "".join(part["content"] for part in parts) == whole["content"]
    assert all(part["stop"] is False for part in parts)
    assert last["stop"] is True and last["content"] == "" and last["stop_type"] == "limit"
    assert last["tokens_predicted"] == 6


def test_an_editor_asks_for_few_fields_and_warms_the_cache(client: Client) -> None:
    fields = ["content", "timings/prompt_n", "truncated", "nothing/at_all"]
    few = client.post("/infill", {**GAP, "response_fields": fields, "cache_prompt": True, "n_indent": 0, "id_slot": 0}).json
    assert set(few) == {"content", "timings/prompt_n", "truncated"}
    warm = client.post("/infill", {**GAP, "n_predict": 0, "prompt": "c", "response_fields": [""]})
    assert warm.status == 200 and warm.json["tokens_predicted"] == 0


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"input_prefix": None}, "input_prefix"),
        ({"input_suffix": 1}, "input_suffix"),
        ({"prompt": ["c"]}, "prompt"),
        ({"input_extra": {}}, "input_extra"),
        ({"input_extra": ["a"]}, "input_extra[0]"),
        ({"input_extra": [{"filename": "a"}]}, "input_extra[0].text"),
        ({"response_fields": "content"}, "response_fields"),
        ({"n_indent": 4}, "n_indent"),
        ({"n": 2}, "n"),
    ],
)
def test_what_is_wrong_with_an_infill_is_named(client: Client, change: dict[str, Any], param: str) -> None:
    refused = client.post("/infill", {**GAP, **change})
    assert refused.status == 400 and refused.json["error"]["param"] == param
