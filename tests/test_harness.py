"""Evaluation harnesses score answers by the log probabilities of an echoed prompt: the requests that EleutherAI's `lm_eval`
sends for its model type `local-completions`, held against a computation token by token.

The harness itself is tried too where it is installed, for it is too large to come with the tests:
`pip install "lm_eval[api]" transformers` in an environment of its own, then
`LMLITE_LM_EVAL=/path/to/its/bin/lm_eval pytest tests/test_harness.py`.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gguf
import pytest

from lmlite.package import bundled_model
from lmlite.server import Server
from tests.conftest import Client
from tests.random_models import with_floats

MODEL = "tiny-f32"
TOLERANCE = 0.02
"""Nats: batches of another shape add up in another order. Of the bundled model as it is, whose weights and activations are
rounded, a sum would differ by ten times as much."""
SCORED = {"model": MODEL, "temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234, "echo": True}
"""What the harness sends to have prompts scored. It drops the last token: the one that was made."""
QUESTIONS = [
    ("What is the weather in", " Turin", " Oslo today"),
    ("Nadia has two cats and", " a dog.", " 7 7 7"),
    ("The capital of France is", " Paris", "?"),
]
TO_CONTINUE = ["Hello", "The weather in Turin is", "One two three"]


@pytest.fixture(scope="session")
def float_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("harness")
    path = with_floats(bundled_model(), folder / f"{MODEL}.gguf")
    with Server(port=0, models=[path], home=folder / "home") as server:
        yield server


@pytest.fixture
def tiny(float_server: Server) -> Iterator[Client]:
    client = Client(float_server.port)
    yield client
    client.close()


def tokenize(tiny: Client, text: str) -> list[int]:
    ids: list[int] = tiny.post("/v1/tokenize", {"model": MODEL, "content": text}).json["tokens"]
    return ids


def complete(tiny: Client, body: dict[str, Any]) -> list[dict[str, Any]]:
    answer = tiny.post("/v1/completions", body)
    assert answer.status == 200, answer.body
    choices: list[dict[str, Any]] = answer.json["choices"]
    return choices


def direct(tiny: Client, context: Sequence[int], continuation: Sequence[int]) -> tuple[float, bool]:
    """The sum of the log probabilities, each asked for by itself, and whether every token was the likeliest."""
    total, greedy, ids = 0.0, True, list(context)
    for token in continuation:
        forced = {"prompt": ids, "max_tokens": 1, "logprobs": 1, "logit_bias": {str(token): 100}, "temperature": 0}
        (choice,) = complete(tiny, {"model": MODEL, **forced})
        (logprob,), (top,) = choice["logprobs"]["token_logprobs"], choice["logprobs"]["top_logprobs"]
        total += logprob
        greedy = greedy and logprob >= max(top.values())
        ids.append(token)
    return total, greedy


def as_the_harness_reads(choice: dict[str, Any], n_context: int) -> tuple[float, bool]:
    logprobs = choice["logprobs"]["token_logprobs"][n_context:-1]
    tops = choice["logprobs"]["top_logprobs"][n_context:-1]
    return sum(logprobs), all(p == max(top.values()) for p, top in zip(logprobs, tops, strict=True))


def pairs(tiny: Client) -> list[tuple[list[int], list[int]]]:
    return [(tokenize(tiny, context), tokenize(tiny, end)) for context, *ends in QUESTIONS for end in ends]


@pytest.mark.parametrize("warm", [False, True], ids=["first", "again"])
def test_a_batch_of_token_ids_is_scored_as_token_by_token(tiny: Client, warm: bool) -> None:
    asked = pairs(tiny)
    prompts = [context + continuation for context, continuation in asked]
    if warm:
        complete(tiny, {"model": MODEL, "prompt": prompts, "max_tokens": 1})
    choices = complete(tiny, {**SCORED, "prompt": prompts})
    assert [choice["index"] for choice in choices] == list(range(len(prompts)))
    for choice, (context, continuation) in zip(choices, asked, strict=True):
        n = len(context) + len(continuation)
        logprobs = choice["logprobs"]
        assert len(logprobs["tokens"]) == len(logprobs["token_logprobs"]) == len(logprobs["text_offset"]) == n + 1
        assert logprobs["token_logprobs"][0] is None and logprobs["top_logprobs"][0] is None
        score, greedy = as_the_harness_reads(choice, len(context))
        expected, expected_greedy = direct(tiny, context, continuation)
        assert score == pytest.approx(expected, abs=TOLERANCE) and greedy == expected_greedy


@pytest.mark.parametrize("max_tokens", [0, 1, 5])
def test_texts_have_offsets_from_their_beginning(tiny: Client, max_tokens: int) -> None:
    texts = ["The weather in Köln, 中文 😀!", "Hello there"]
    body = {**SCORED, "prompt": texts, "max_tokens": max_tokens, "logprobs": 3}
    for text, choice in zip(texts, complete(tiny, body), strict=True):
        assert choice["text"].startswith(text) and (max_tokens > 0 or choice["text"] == text)
        logprobs = choice["logprobs"]
        ids = tokenize(tiny, text)
        assert len(logprobs["tokens"]) - len(ids) <= max_tokens
        for token, offset in zip(logprobs["tokens"][: len(ids)], logprobs["text_offset"], strict=False):
            assert "\ufffd" in token or choice["text"][offset:].startswith(token)
        assert logprobs["text_offset"][0] == 0
        assert all(1 <= len(top) <= 3 for top in logprobs["top_logprobs"][1:])  # tokens that read the same are one
        score = sum(logprobs["token_logprobs"][1 : len(ids)])
        assert score == pytest.approx(direct(tiny, ids[:1], ids[1:])[0], abs=TOLERANCE)


def test_a_stream_tells_the_same_of_the_prompt(tiny: Client) -> None:
    body = {**SCORED, "prompt": QUESTIONS[0][0], "max_tokens": 4}
    (whole,) = complete(tiny, body)
    events = tiny.post("/v1/completions", {**body, "stream": True}).events
    chunks = [json.loads(data) for _, data in events if data != "[DONE]"]
    told = [chunk["choices"][0]["logprobs"] for chunk in chunks if chunk["choices"][0]["logprobs"]]
    for name in ("tokens", "text_offset"):
        assert [value for logprobs in told for value in logprobs[name]] == whole["logprobs"][name]
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == whole["text"]


def test_an_answer_that_ends_at_once_has_its_token_behind_the_prompt_s(tiny: Client) -> None:
    """Else the harness would drop one of the prompt's."""
    (end,) = tiny.post("/v1/tokenize", {"model": MODEL, "content": "<|im_end|>", "parse_special": True}).json["tokens"]
    ids = tokenize(tiny, "Hello there")
    (choice,) = complete(tiny, {**SCORED, "prompt": ids, "logit_bias": {str(end): 100}})
    assert choice["text"] == "Hello there" and choice["finish_reason"] == "stop"
    assert choice["logprobs"]["tokens"][-1] == "<|im_end|>" and len(choice["logprobs"]["tokens"]) == len(ids) + 1
    assert choice["logprobs"]["token_logprobs"][-1] < 0 and choice["logprobs"]["text_offset"][-1] == len("Hello there")


def test_streams_go_on_beside_a_prompt_that_is_scored(tiny: Client) -> None:
    """No step of the prompt is longer than others' prompts are."""
    other = Client(tiny.port)
    response = other.start(
        "POST", "/v1/completions", {"model": MODEL, "prompt": "Hello", "max_tokens": 400, "ignore_eos": True, "stream": True}
    )
    response.readline()
    ids = tokenize(tiny, "The weather in Turin is sunny. " * 200)[:1500]
    (choice,) = complete(tiny, {**SCORED, "prompt": ids, "max_tokens": 0, "logprobs": 5})
    assert len(choice["logprobs"]["token_logprobs"]) == 1500
    assert b"[DONE]" in response.read()
    other.close()


def test_a_request_for_text_to_go_on_is_served_as_the_harness_sends_it(tiny: Client) -> None:
    ids = tokenize(tiny, "Hello")
    body = {"prompt": [ids, ids], "model": MODEL, "max_tokens": 12, "temperature": 0, "stop": ["\n\n", "</s>"], "seed": 1}
    one, two = complete(tiny, body)
    assert one["text"] == two["text"] and one["logprobs"] is None


# ---- the harness itself ----------------------------------------------------------------------------------------------


def write_tokenizer(folder: Path) -> None:
    """The bundled model's own, in the form that `transformers` reads."""
    fields = gguf.GGUFReader(bundled_model()).fields

    def strings(name: str) -> list[str]:
        return [bytes(fields[name].parts[i]).decode() for i in fields[name].data]

    tokens = strings("tokenizer.ggml.tokens")
    types = [int(fields["tokenizer.ggml.token_type"].parts[i][0]) for i in fields["tokenizer.ggml.token_type"].data]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    special = [{"id": id, "content": tokens[id], **flags} for id, kind in enumerate(types) if kind != gguf.TokenType.NORMAL]
    vocab = {token: id for id, token in enumerate(tokens)}
    model = {"type": "BPE", "vocab": vocab, "merges": strings("tokenizer.ggml.merges")}
    tokenizer = {"version": "1.0", "added_tokens": special, "pre_tokenizer": byte_level, "decoder": byte_level, "model": model}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "model_max_length": 2048}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def write_tasks(folder: Path) -> None:
    questions = [{"question": context, "choices": ends, "answer": 0} for context, *ends in QUESTIONS]
    beginnings = [{"question": text, "answer": "x"} for text in TO_CONTINUE]
    choose = {"output_type": "multiple_choice", "doc_to_choice": "{{choices}}"}
    go_on = {"output_type": "generate_until", "generation_kwargs": {"until": ["."], "max_gen_toks": 12}}
    for name, rows, task in (("choose", questions, choose), ("go_on", beginnings, go_on)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        description = {
            "task": f"lmlite_{name}",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(folder / f"{name}.jsonl")}},
            "test_split": "test",
            "doc_to_text": "{{question}}",
            "doc_to_target": "{{answer}}",
            "target_delimiter": "",
            **task,
        }
        (folder / f"{name}.yaml").write_text(json.dumps(description))  # JSON is YAML


@pytest.mark.skipif("LMLITE_LM_EVAL" not in os.environ, reason="LMLITE_LM_EVAL does not name an lm_eval (see above)")
@pytest.mark.timeout(600)
def test_lm_eval_comes_to_the_numbers_of_a_direct_computation(tiny: Client, tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    write_tasks(tmp_path)
    settings = {
        "model": MODEL,
        "base_url": f"http://127.0.0.1:{tiny.port}/v1/completions",
        "tokenizer_backend": "huggingface",
        "tokenizer": str(tmp_path),
        "num_concurrent": "3",
        "max_length": "1024",
    }
    command = [os.environ["LMLITE_LM_EVAL"], "run", "--model", "local-completions"]
    command += ["--model_args", ",".join(f"{name}={value}" for name, value in settings.items())]
    command += ["--tasks", "lmlite_choose,lmlite_go_on", "--include_path", str(tmp_path)]
    command += ["--output_path", str(tmp_path / "out"), "--log_samples"]
    offline = {"HF_HOME": str(tmp_path / "hub"), "HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1", "OPENAI_API_KEY": "any"}
    done = subprocess.run(command, env={**os.environ, **offline}, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-4000:]

    def samples(name: str) -> list[dict[str, Any]]:
        (file,) = (tmp_path / "out").rglob(f"samples_lmlite_{name}_*.jsonl")
        return sorted((json.loads(line) for line in file.read_text().splitlines()), key=lambda sample: int(sample["doc_id"]))

    scored = [response for sample in samples("choose") for ((response, *_),) in zip(sample["resps"])]
    for (score, greedy), (context, continuation) in zip(scored, pairs(tiny), strict=True):
        expected, expected_greedy = direct(tiny, context, continuation)
        assert math.isclose(float(score), expected, abs_tol=TOLERANCE) and str(greedy) == str(expected_greedy)
    for sample, text in zip(samples("go_on"), TO_CONTINUE, strict=True):
        body = {"model": MODEL, "prompt": text, "max_tokens": 12, "temperature": 0, "stop": "."}
        assert sample["resps"] == [[complete(tiny, body)[0]["text"]]]
