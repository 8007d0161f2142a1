"""The Python API: one model without HTTP, with the real engine and the bundled model; and what importing costs."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest

import lmlite
from lmlite.errors import ConfigError, ContextOverflow, InvalidRequest, LoadFailed, WrongModelType
from lmlite.package import bundled_model
from tests.conftest import INSTALLED
from tests.random_models import write_bert

HELLO = [{"role": "user", "content": "Hello!"}]


@pytest.fixture(scope="module", params=["thread", "process"])
def model(request: pytest.FixtureRequest) -> Iterator[lmlite.Model]:
    with lmlite.load(bundled_model(), isolation=request.param, context_length=512) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[lmlite.Model]:
    with lmlite.load(write_bert(tmp_path_factory.mktemp("bert") / "bert.gguf")) as loaded:
        yield loaded


def test_chat_answers_and_stops_by_itself(model: lmlite.Model) -> None:
    answer = model.chat(HELLO, temperature=0.0, max_tokens=100)
    assert "Hello" in answer or "Hi" in answer
    assert answer == model.chat(HELLO, temperature=0.0, max_tokens=100)


def test_stream_is_the_whole_answer_in_pieces(model: lmlite.Model) -> None:
    count = [{"role": "user", "content": "Count to five."}]
    streamed = "".join(model.chat_stream(count, temperature=0.0, max_tokens=60))
    assert streamed == model.chat(count, temperature=0.0, max_tokens=60) != ""
    long = model.chat_stream(count, max_tokens=1000, ignore_eos=True)  # too long to arrive at once
    assert sum(1 for _ in long) > 1


def test_complete_takes_sampling_and_stop(model: lmlite.Model) -> None:
    whole = model.complete("Hello", max_tokens=20, temperature=1.0, seed=7, ignore_eos=True)
    assert whole == model.complete("Hello", max_tokens=20, temperature=1.0, seed=7, ignore_eos=True)
    cut = whole[len(whole) // 2 :][:2]
    stopped = model.complete("Hello", max_tokens=20, temperature=1.0, seed=7, ignore_eos=True, stop=(cut,))
    assert stopped == whole[: whole.index(cut)]


def test_grammar_constrains_the_answer(model: lmlite.Model) -> None:
    grammar = lmlite.Grammar("gbnf", 'root ::= "yes" | "no"')
    assert model.chat(HELLO, grammar=grammar) in ("yes", "no")


def test_chat_with_tools_gives_the_message_with_its_calls(model: lmlite.Model) -> None:
    city = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    weather = {"name": "get_weather", "description": "Get the weather in a city", "parameters": city}
    tools = [{"type": "function", "function": weather}]
    messages: list[dict[str, Any]] = [{"role": "user", "content": "What is the weather in Turin?"}]
    message = model.chat(messages, tools=tools, temperature=0.0, max_tokens=100)
    (call,) = message["tool_calls"]
    assert call["function"]["name"] == "get_weather" and "Turin" in call["function"]["arguments"]
    messages += [message, {"role": "tool", "tool_call_id": call["id"], "content": "sunny"}]
    final = model.chat(messages, tools=tools, temperature=0.0, max_tokens=100)
    assert "sunny" in final["content"] and "tool_calls" not in final
    forced = model.chat(HELLO, tools=tools, tool_choice="required", temperature=0.0, max_tokens=100)
    assert forced["tool_calls"]
    with pytest.raises(InvalidRequest, match="name"):
        model.chat(HELLO, tools=[{"type": "function", "function": {}}])


def test_stream_that_is_left_early_frees_the_model(model: lmlite.Model) -> None:
    for _ in range(12):  # three times what runs at once
        pieces = model.complete_stream("Hello", max_tokens=400, ignore_eos=True)
        assert next(pieces)
        pieces.close()
    assert model.chat(HELLO, max_tokens=3, ignore_eos=True)


def test_threads_share_a_model(model: lmlite.Model) -> None:
    alone = model.chat(HELLO, temperature=0.0, max_tokens=20)
    answers: list[str] = []
    threads = [
        threading.Thread(target=lambda: answers.append(model.chat(HELLO, temperature=0.0, max_tokens=20)))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 6
    assert all(answer[:5] == alone[:5] for answer in answers)


def test_errors_are_facts(model: lmlite.Model) -> None:
    with pytest.raises(ContextOverflow) as overflow:
        model.complete("word " * 5000)
    assert overflow.value.limit == 512 < overflow.value.needed
    with pytest.raises(InvalidRequest):
        model.chat(HELLO, temperature=-1.0)
    with pytest.raises(WrongModelType):
        model.embed(["a text model has no vectors to give"])


def test_unknown_parameters_are_refused_before_anything_runs(model: lmlite.Model) -> None:
    with pytest.raises(TypeError, match="temprature"):
        model.chat_stream(HELLO, temprature=1.0)
    with pytest.raises(TypeError, match="sequence"):
        model.embed("one text")
    with pytest.raises(ConfigError, match="no such option"):
        lmlite.load(bundled_model(), contextlength=1)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"temperature": "hot"}, "temperature must be of type float, not str"),
    ({"temperature": True}, "temperature must be of type float, not bool"),
    ({"max_tokens": 1.5}, "max_tokens must be of type int, not float"),
    ({"max_tokens": False}, "max_tokens .* not bool"),
    ({"seed": "7"}, r"seed must be of type int \| None, not str"),
    ({"stop": 5}, "stop must be of type tuple.*, not int"),
    ({"stop": ["a", 1]}, "stop must be of type tuple.*, not list"),
    ({"grammar": 'root ::= "a"'}, r"grammar must be of type Grammar \| None, not str"),
    ({"mirostat": 3}, "mirostat must be of type Literal"),
    ({"mirostat": True}, "mirostat must be of type Literal"),
    ({"logit_bias": {5: 1.0}}, "logit_bias must be of type tuple.*, not dict"),
    ({"logit_bias": [(5, 1.0, 2)]}, "logit_bias must be of type tuple"),
    ({"template_kwargs": 5}, "template_kwargs must be a mapping, not int"),
]


@pytest.mark.parametrize(("params", "told"), WRONG, ids=[" ".join(params) for params, _ in WRONG])
def test_wrong_types_of_parameters_are_named(model: lmlite.Model, params: dict[str, Any], told: str) -> None:
    with pytest.raises(TypeError, match=told):
        model.chat(HELLO, **params)


def test_wrong_types_of_what_is_asked_are_named(model: lmlite.Model, embedder: lmlite.Model) -> None:
    ask: Any = model.chat
    for messages, told in [
        (5, "messages must be a string or a sequence of messages, not int"),
        (HELLO[0], "messages .*, not dict"),
        (None, "messages .*, not NoneType"),
        (["Hello!"], r"messages\[0\] must be a mapping with a role and a content, not str"),
    ]:
        with pytest.raises(TypeError, match=told):
            ask(messages)
    with pytest.raises(InvalidRequest, match=r"messages\[0\]\.content"):
        ask([{"role": "user", "content": 5}])
    with pytest.raises(TypeError, match="tools must be a sequence of tools, not int"):
        ask(HELLO, tools=5)
    others: Any = embedder
    asked: list[tuple[Callable[[], object], str]] = [
        (lambda: model.complete(others), "prompt must be a string, not Model"),
        (lambda: others.embed(["a", 5]), r"texts\[1\] must be a string, not int"),
        (lambda: others.embed(5), "texts must be a sequence of strings, not int"),
        (lambda: others.rerank(5, ["a"]), "query must be a string, not int"),
        (lambda: others.rerank("a", "b"), "documents must be a sequence of strings, not str"),
    ]
    for call, told in asked:
        with pytest.raises(TypeError, match=told):
            call()


def test_a_string_is_one_message_of_the_user(model: lmlite.Model) -> None:
    asked: dict[str, Any] = {"temperature": 0.0, "max_tokens": 30}
    answer = model.chat(HELLO, **asked)
    assert model.chat("Hello!", **asked) == answer
    assert "".join(model.chat_stream("Hello!", **asked)) == answer
    assert model.chat("Hello!", tools=[], **asked)["content"] == answer
    assert model.complete("Hello", stop="e", max_tokens=9) == model.complete("Hello", stop=["e"], max_tokens=9)


def test_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"GGUF")
    with pytest.raises(LoadFailed):
        lmlite.load(path)
    with pytest.raises(LoadFailed):
        lmlite.load(tmp_path / "missing.gguf")


def test_closed_model_says_so_and_may_be_closed_again() -> None:
    model = lmlite.load(bundled_model())
    pieces = model.complete_stream("Hello", max_tokens=2000, ignore_eos=True)
    next(pieces)
    model.close()
    model.close()
    with pytest.raises(lmlite.LmError):
        for _ in pieces:
            pass
    with pytest.raises(RuntimeError, match="closed"):
        model.chat(HELLO)


def python(code: str, folder: Path) -> str:
    """What a program says that has nothing but the tested package."""
    environ = {**os.environ, "PYTHONPATH": str(INSTALLED), "HOME": str(folder)}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=folder, env=environ, stdout=subprocess.PIPE, text=True, check=True).stdout


def test_importing_does_nothing(tmp_path: Path) -> None:
    """No module of the package but itself, nothing heavy, no thread."""
    code = (
        "import sys, threading, lmlite; "
        "print([n for n in sys.modules if n.startswith('lmlite.') or n in ('asyncio', 'cffi', 'numpy', 'json')], "
        "threading.active_count())"
    )
    assert python(code, tmp_path) == "[] 1\n"


def test_server_with_child_engines_loads_neither_numpy_nor_cffi(tmp_path: Path) -> None:
    code = (
        "import sys, urllib.request, lmlite\n"
        "with lmlite.Server(port=0, home='home') as server:\n"
        "    body = b'{\"prompt\": \"Hello\", \"max_tokens\": 1, \"model\": \"lmlite-tiny\"}'\n"
        "    headers = {'Content-Type': 'application/json'}\n"
        "    urllib.request.urlopen(urllib.request.Request(server.url + '/v1/completions', body, headers)).read()\n"
        "    print([name for name in ('numpy', 'cffi', '_cffi_backend') if name in sys.modules])\n"
    )
    assert python(code, tmp_path) == "[]\n"


def test_every_public_name_is_there() -> None:
    for name in lmlite.__all__:
        assert getattr(lmlite, name) is not None
    with pytest.raises(AttributeError, match="nothing_like_it"):
        _ = lmlite.nothing_like_it


def test_embeddings_are_unit_rows(embedder: lmlite.Model) -> None:
    rows = embedder.embed(["one text", "another", "one text"])
    assert rows.dtype == numpy.float32
    assert (rows.ndim, len(rows)) == (2, 3)
    assert numpy.allclose(numpy.linalg.norm(rows, axis=1), 1.0, atol=1e-3)
    assert numpy.allclose(rows[0], rows[2], atol=1e-3)
    assert not numpy.allclose(rows[0], rows[1], atol=1e-3)
    assert embedder.embed([]).shape == (0, rows.shape[1])


def test_embeddings_of_fewer_dimensions_are_unit_rows_too(embedder: lmlite.Model) -> None:
    rows, cut = embedder.embed(["one text", "another"]), embedder.embed(["one text", "another"], dimensions=5)
    assert cut.shape == (2, 5)
    assert numpy.allclose(cut, rows[:, :5] / numpy.linalg.norm(rows[:, :5], axis=1, keepdims=True), atol=1e-4)
    for dimensions in (0, -1, rows.shape[1] + 1):
        with pytest.raises(InvalidRequest) as refused:
            embedder.embed(["one text"], dimensions=dimensions)
        assert refused.value.param == "dimensions"
