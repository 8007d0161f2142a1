"""Every error has its status and its family's body, and says nothing about this machine."""

from __future__ import annotations

import json
import re

import pytest

from lmlite import errors
from lmlite.api.lmstudio import models as lmstudio_v1
from lmlite.api.lmstudio import v0 as lmstudio_v0
from lmlite.api.openai import chat as openai_chat
from lmlite.api.openai import error as openai_error

A_CASES = [
    (
        errors.InvalidRequest("'messages[2].role' is wrong", "messages[2].role"),
        400,
        ("invalid_request_error", "messages[2].role", "invalid_value"),
    ),
    (errors.InvalidJson("no JSON"), 400, ("invalid_request_error", None, "invalid_json")),
    (errors.MissingField("prompt"), 400, ("invalid_request_error", "prompt", "missing_required_parameter")),
    (errors.InvalidType("n", "an integer"), 400, ("invalid_request_error", "n", "invalid_type")),
    (errors.OutOfRange("n", 1, 2), 400, ("invalid_request_error", "n", "invalid_value")),
    (errors.UnsupportedField("tools"), 400, ("invalid_request_error", "tools", "unsupported_parameter")),
    (errors.ModelNotFound("x", ("a",)), 404, ("invalid_request_error", "model", "model_not_found")),
    (errors.WrongModelType("x", "chat"), 400, ("invalid_request_error", "model", "model_type_mismatch")),
    (errors.LoadFailed("x", "cut short"), 422, ("invalid_request_error", "model", "model_load_failed")),
    (errors.MemoryRefused(2, 1), 422, ("invalid_request_error", "model", "insufficient_memory")),
    (errors.EngineError("bad", "no", 400, "grammar"), 400, ("invalid_request_error", "grammar", "bad")),
    (errors.HttpError(413, "too large"), 413, ("invalid_request_error", None, "request_too_large")),
    (errors.HttpError(401, "no key"), 401, ("invalid_request_error", None, "invalid_api_key")),
    (errors.HttpError(417, "no"), 417, ("invalid_request_error", None, "invalid_request")),
    (errors.QueueFull(8), 429, ("rate_limit_error", None, "rate_limit_exceeded")),
    (errors.RequestRefused("x", 2, "crashed"), 422, ("invalid_request_error", None, "request_ends_engine")),
    (errors.EngineGone("x", "crashed"), 503, ("server_error", None, "engine_gone")),
    (errors.ShuttingDown(), 503, ("server_error", None, "shutting_down")),
    (errors.InternalError(), 500, ("server_error", None, "internal_error")),
]


@pytest.mark.parametrize(("exc", "status", "rest"), A_CASES, ids=lambda value: type(value).__name__)
def test_error_object(exc: errors.LmError, status: int, rest: tuple[str, str | None, str]) -> None:
    kind, param, code = rest
    answered, body = openai_error.error(exc)
    assert answered == status
    expected = {"message": exc.message, "type": kind, "param": param, "code": code}
    assert json.loads(body) == {"error": expected}


def test_missing_messages_is_lm_studios_text() -> None:
    assert openai_chat.error(errors.MissingField("messages")) == (400, '{"error":"\'messages\' field is required"}')


def test_context_overflow_carries_both_counts() -> None:
    overflow = errors.ContextOverflow(9000, 4096)
    status, body = lmstudio_v0.error(overflow)
    assert status == 400
    assert json.loads(body) == {
        "error": {
            "code": "context_length_exceeded",
            "message": overflow.message,
            "type": "exceed_context_size_error",
            "n_prompt_tokens": 9000,
            "n_ctx": 4096,
        }
    }
    native = json.loads(lmstudio_v1.error(overflow)[1])["error"]
    assert (native["code"], native["message"]) == ("context_length_exceeded", overflow.message)


KNOWN_PHRASES = (
    r"request \(9000 tokens\) exceeds the available context size \(4096 tokens\)",
    r"this model's maximum context length is 4096 tokens",
    r"prompt is too long: ",
)
"""By what agents know that their history has to get shorter, as the lists of several of them have it."""


@pytest.mark.parametrize("index", [None, 3])
def test_context_overflow_speaks_in_phrases_that_agents_look_for(index: int | None) -> None:
    message = errors.ContextOverflow(9000, 4096, index).message
    for phrase in KNOWN_PHRASES:
        assert re.search(phrase, message)
    for remedy in ("--context-length", "model-settings.json", "load"):
        assert remedy in message
    assert not re.search("rate limit|too many requests|try again", message, re.IGNORECASE), "then nobody shortens anything"
    assert ("input 3" in message) == (index is not None)


def subclasses(kind: type[errors.LmError]) -> list[type[errors.LmError]]:
    return [kind, *(found for child in kind.__subclasses__() for found in subclasses(child))]


def test_every_code_is_a_word_and_never_a_number() -> None:
    kinds = subclasses(errors.LmError)
    assert len(kinds) > 25
    assert all(re.fullmatch("[a-z][a-z_]+", kind.code) for kind in kinds)
    for status in range(400, 512):
        assert re.fullmatch("[a-z][a-z_]+", errors.HttpError(status, "x").code)


@pytest.mark.parametrize("error", [openai_error.error, lmstudio_v1.error])
def test_unexpected_endpoint_is_the_same_in_every_family(error: object) -> None:
    assert callable(error)
    body = '{"error":"Unexpected endpoint or method. (GET /x?a=b)"}'
    assert error(errors.UnexpectedEndpoint("GET", "/x?a=b")) == (404, body)
    assert error(errors.UnexpectedEndpoint("GET", "/x?a=b", ("POST",))) == (405, body)


def test_a_target_that_is_no_utf8_can_be_answered() -> None:
    _, body = openai_error.error(errors.UnexpectedEndpoint("GET", "/\udcff"))
    assert body.encode()


def test_native_error_shape() -> None:
    status, body = lmstudio_v1.error(errors.ModelNotFound("x", ()))
    assert status == 404
    assert json.loads(body)["error"] == {
        "type": "invalid_request",
        "message": 'Invalid model identifier "x". Models: none',
        "code": "model_not_found",
        "param": "model",
    }
    assert json.loads(lmstudio_v1.error(errors.InternalError())[1]) == {
        "error": {"type": "internal_error", "message": "internal error", "code": "internal_error"}
    }


@pytest.mark.parametrize("error", [openai_error.error, lmstudio_v1.error])
@pytest.mark.parametrize(
    "exc",
    [
        errors.LoadFailed("m", "cannot open /home/ada/models/m.gguf: truncated"),
        errors.LoadFailed("m", "cannot open 'C:\\Users\\ada\\m.gguf'"),
        errors.EngineError("internal", "exception in /home/ada/llama.cpp:12"),
        errors.EngineError("invalid_request", "see /home/ada/x/y.jinja", 400),
        errors.BuildError("/home/ada/lib/liblmlite.so is missing"),
        errors.LmError("Traceback: /home/ada"),
    ],
)
def test_no_path_of_this_machine_leaves_it(error: object, exc: errors.LmError) -> None:
    assert callable(error)
    status, body = error(exc)
    assert status == exc.status
    assert "ada" not in body
    assert json.loads(body)["error"]["message"]


def test_the_file_name_in_a_load_failure_stays() -> None:
    exc = errors.LoadFailed("acme/m", "cannot open /home/ada/models/m.gguf: truncated")
    message = json.loads(openai_error.error(exc)[1])["error"]["message"]
    assert message == 'Model "acme/m" cannot be loaded: cannot open m.gguf: truncated'
