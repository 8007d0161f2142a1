"""Which endpoint answers what, and in whose words its errors are told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from ..api.anthropic import messages as anthropic
from ..api.lmstudio import chat as lmstudio_chat
from ..api.lmstudio import load as lmstudio_v1_load
from ..api.lmstudio import models as lmstudio_v1
from ..api.lmstudio import v0 as lmstudio_v0
from ..api.openai import chat as openai_chat
from ..api.openai import embeddings as openai_embeddings
from ..api.openai import error as openai_error
from ..api.openai import text as openai_text
from ..api.own import infill
from ..errors import LmError
from ..wire.router import Route
from . import downloading, estimating, greeting, listing, loading, log_stream, questions, responses, scrape
from .generation import generating
from .state import Endpoint

Spelling = Callable[[LmError, Callable[[], str]], tuple[int, str]]
"""Gets the error and what draws random characters, should an error of its family have an id."""

ROUTES: Final[tuple[Route[Endpoint], ...]] = (
    Route("GET", "/", greeting.show),
    Route("GET", "/health", listing.health),
    Route("GET", "/ready", listing.ready),
    Route("GET", "/lmstudio-greeting", listing.greet),
    Route("GET", "/metrics", scrape.show, "admin"),
    # OpenAI
    Route("GET", "/v1/models", listing.list_compatible, "models"),
    Route("GET", "/v1/models/{model}", listing.show_compatible, "models"),
    Route("POST", "/v1/chat/completions", generating(openai_chat.parse_chat), "chat"),
    Route("POST", "/v1/chat/completions/input_tokens", questions.count_chat, "chat"),
    Route("POST", "/v1/responses", responses.create, "chat"),
    Route("POST", "/v1/responses/input_tokens", responses.count, "chat"),
    Route("GET", "/v1/responses/{id}", responses.show, "chat"),
    Route("DELETE", "/v1/responses/{id}", responses.delete, "chat"),
    Route("POST", "/v1/responses/{id}/cancel", responses.cancel, "chat"),
    Route("GET", "/v1/responses/{id}/input_items", responses.list_input, "chat"),
    Route("POST", "/v1/completions", generating(openai_text.parse_completions), "chat"),
    Route("POST", "/v1/embeddings", questions.embedding(openai_embeddings.parse_embeddings), "embed"),
    # Anthropic
    Route("POST", "/v1/messages", generating(anthropic.parse_messages), "chat"),
    Route("POST", "/v1/messages/count_tokens", questions.counting(anthropic.parse_count), "chat"),
    # shapes of other servers, and of our own
    Route("POST", "/v1/rerank", questions.score, "embed"),
    Route("POST", "/rerank", questions.score, "embed"),
    Route("POST", "/infill", generating(infill.parse_infill), "chat"),
    Route("POST", "/apply-template", questions.apply_template, "chat"),
    Route("POST", "/v1/tokenize", questions.tokenize, "chat"),
    Route("POST", "/v1/detokenize", questions.detokenize, "chat"),
    Route("GET", "/lmlite/models", listing.list_own, "models"),
    # LM Studio
    Route("GET", "/api/v0/models", listing.list_v0, "models"),
    Route("GET", "/api/v0/models/{model}", listing.show_v0, "models"),
    Route("POST", "/api/v0/chat/completions", generating(lmstudio_v0.parse_chat), "chat"),
    Route("POST", "/api/v0/completions", generating(lmstudio_v0.parse_completions), "chat"),
    Route("POST", "/api/v0/embeddings", questions.embedding(lmstudio_v0.parse_embeddings), "embed"),
    Route("POST", "/api/v1/chat", generating(lmstudio_chat.parse_chat), "chat"),
    Route("GET", "/api/v1/models", listing.list_v1, "models"),
    Route("POST", "/api/v1/models/load", loading.load, "load"),
    Route("POST", "/api/v1/models/unload", loading.unload, "load"),
    Route("POST", "/api/v1/models/download", downloading.start, "download"),
    Route("GET", "/api/v1/models/download/status/{job_id}", downloading.status, "download"),
    # of our own
    Route("GET", "/lmlite/downloads", downloading.list_all, "download"),
    Route("GET", "/lmlite/downloads/{job_id}", downloading.show, "download"),
    Route("DELETE", "/lmlite/downloads/{job_id}", downloading.cancel, "download"),
    Route("POST", "/lmlite/downloads/pause/{job_id}", downloading.pause, "download"),
    Route("POST", "/lmlite/downloads/resume/{job_id}", downloading.resume, "download"),
    Route("GET", "/lmlite/instances", loading.list_instances, "models"),
    Route("POST", "/lmlite/estimate", estimating.estimate, "load"),
    Route("GET", "/lmlite/log", log_stream.stream, "admin"),
)


def nameless(error: Callable[[LmError], tuple[int, str]]) -> Spelling:
    """Of a family whose errors have no ids."""

    def spell(exc: LmError, _: Callable[[], str]) -> tuple[int, str]:
        return error(exc)

    return spell


def named(exc: LmError, draw: Callable[[], str]) -> tuple[int, str]:
    """Anthropic's errors tell the id of their request."""
    return anthropic.error(exc, draw())


FAMILIES: Final[tuple[tuple[str, Spelling], ...]] = (
    ("/api/v0", nameless(lmstudio_v0.error)),
    ("/api/v1/models", nameless(lmstudio_v1_load.error)),
    ("/api/v1", nameless(lmstudio_v1.error)),
    ("/lmlite", nameless(lmstudio_v1.error)),
    ("/v1/messages", named),
    ("/v1/responses", nameless(openai_error.response_error)),
)
"""Whose words an error is told in, by the first beginning of the path that fits."""

ANTHROPIC_FAMILIES: Final = (("/v1/models", named), *FAMILIES)
"""For clients of Anthropic's, who share a path with OpenAI's."""

ELSEWHERE: Final = nameless(openai_error.error)
