"""What the server counts, and the last word of its engines on how they are."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final
from weakref import WeakKeyDictionary

from ..errors import LmError
from ..events import Finished
from ..metrics import Counter, Family, Histogram

if TYPE_CHECKING:
    from ..card import Instance
    from ..core.engine.client import Engine
    from ..core.engine.payloads import Report

REPORT_S: Final = 0.2
"""An engine answers within a millisecond, unless it is about to render or tokenize something large."""
FAST_S: Final = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
"""From an answer without a model to the longest generation that a client waits for."""
RATES: Final = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 5000.0)
"""Tokens per second of one stream, from a large model on a small machine to a toy on a GPU."""


class Metrics:
    """What one server has answered since it started. Nothing here is called per token: an answer counts at its end."""

    def __init__(self) -> None:
        self.requests = Counter("lmlite_requests_total", "Requests answered.", ("route", "method", "status"))
        self.request_s = Histogram(
            "lmlite_request_seconds", "From a request's head to the end of its answer.", ("route",), bounds=FAST_S
        )
        model = ("model",)
        self.prompt_tokens = Counter("lmlite_prompt_tokens_total", "Tokens of prompts and inputs.", model)
        self.cached_tokens = Counter("lmlite_cached_tokens_total", "Those taken from the cache.", model)
        self.generated_tokens = Counter("lmlite_generated_tokens_total", "Tokens generated, reasoning included.", model)
        self.reasoning_tokens = Counter("lmlite_reasoning_tokens_total", "Those that were reasoning.", model)
        self.generations = Counter("lmlite_generations_total", "Generations ended, by reason.", ("model", "reason"))
        self.first_token_s = Histogram(
            "lmlite_time_to_first_token_seconds", "From a generation's start to its first token.", model, bounds=FAST_S
        )
        self.queue_s = Histogram("lmlite_queue_seconds", "That a generation waited for a place.", model, bounds=FAST_S)
        self.rates = Histogram(
            "lmlite_tokens_per_second", "Of generations of two tokens and more.", model, bounds=RATES
        )

        token = ("token",)
        self.caller_requests = Counter("lmlite_caller_requests_total", "Requests by an API token's name.", (*token, "status"))
        self.caller_prompt_tokens = Counter("lmlite_caller_prompt_tokens_total", "Tokens of its prompts and inputs.", token)
        self.caller_generated_tokens = Counter("lmlite_caller_generated_tokens_total", "Tokens generated for it.", token)

    def answered(self, route: str, method: str, status: int, seconds: float, caller: str = "") -> None:
        """`caller` is the name of the token that asked, "" where none is asked for or none was good."""
        self.requests.add(route, method, str(status))
        self.request_s.observe(seconds, route)
        if caller:
            self.caller_requests.add(caller, str(status))

    def generated(self, model: str, new_prompt: bool, caller: str, finished: Finished) -> None:
        """`new_prompt`: not one that another choice of the same request counts already, as its usage does.

        A generation that was given up before its first token has perhaps not looked at its prompt: that counts nothing.
        """
        stats = finished.stats
        self.generations.add(model, finished.reason)
        if finished.reason == "userStopped" and not stats.generated_tokens:
            return
        if new_prompt:
            self.prompt_tokens.add(model, n=stats.prompt_tokens)
            self.cached_tokens.add(model, n=stats.cached_tokens)
        self.generated_tokens.add(model, n=stats.generated_tokens)
        if caller:
            self.caller_prompt_tokens.add(caller, n=stats.prompt_tokens if new_prompt else 0)
            self.caller_generated_tokens.add(caller, n=stats.generated_tokens)
        self.reasoning_tokens.add(model, n=stats.reasoning_tokens)
        self.queue_s.observe(stats.queue_ms / 1000, model)
        if stats.generated_tokens:
            self.first_token_s.observe(stats.first_token_ms / 1000, model)
        if stats.generated_tokens > 1:
            self.rates.observe(stats.tokens_per_second, model)

    def read(self, model: str, n_tokens: int, caller: str) -> None:
        """Inputs that were embedded or scored."""
        self.prompt_tokens.add(model, n=n_tokens)
        if caller:
            self.caller_prompt_tokens.add(caller, n=n_tokens)

    def families(self) -> Iterator[Family]:
        yield from vars(self).values()


class Reports:
    """The last report of each engine. One question per engine is on its way at most, however many ask."""

    def __init__(self) -> None:
        self._known: WeakKeyDictionary[Engine, Report] = WeakKeyDictionary()
        self._asking: dict[Engine, asyncio.Task[None]] = {}

    async def fresh(self, engines: tuple[tuple[Instance, Engine], ...]) -> list[tuple[Instance, Report | None]]:
        """None for an engine that has never said how it is."""
        questions = [self._ask(engine) for _, engine in engines]
        if questions:
            await asyncio.wait(questions, timeout=REPORT_S)
        return [(instance, self._known.get(engine)) for instance, engine in engines]

    def _ask(self, engine: Engine) -> asyncio.Task[None]:
        task = self._asking.get(engine)
        if task is None:
            task = self._asking[engine] = asyncio.get_running_loop().create_task(self._note(engine))
            task.add_done_callback(lambda _: self._asking.pop(engine))
        return task

    async def _note(self, engine: Engine) -> None:
        try:
            self._known[engine] = await engine.stats()
        except LmError:  # it has just ended
            self._known.pop(engine, None)
