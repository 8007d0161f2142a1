"""The fields that OpenAI's completions and LM Studio's v0 share beyond every dialect's: choices, streaming, constraints.

Fields that would change the answer and are not served are refused by name; the rest of what a client may send is ignored, as
LM Studio ignores it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from ...errors import InvalidRequest
from ...records import dataclass
from ...request import Generate, Prompt, Sampling
from ...turn import Turn
from ..read import unserved
from ..read.constraint import parse_constraint
from ..read.fields import Fields
from ..read.sampling import SEEDS, Options, first, parse_options
from ..read.unserved import refuse
from .completion import Choices

RUNS_MAX = 128
"""Prompts times choices of one request: OpenAI's limit on `n`; more would only wait in the queue."""


@dataclass(slots=True, frozen=True)
class Shared:
    """What a request says apart from its prompt and its logprobs."""

    options: Options
    stream: bool
    include_usage: bool
    include_stats: bool  # of ours: LM Studio's streams do not tell them
    n: int
    timings: bool

    @property
    def generate(self) -> Generate:
        return self.options.generate

    def choices(self, total: int, logprobs: bool) -> Choices:
        return Choices(
            total,
            self.n,
            self.include_usage,
            drafted=self.generate.draft is not None,
            draft_model=self.options.draft_model,
            include_stats=self.include_stats,
            logprobs=logprobs,
            timings=self.timings,
            progress=self.generate.progress,
        )

    def turn(self, needs: Literal["chat", "text"], runs: tuple[Generate, ...]) -> Turn:
        return self.options.turn(needs, runs)

    def runs(
        self, prompts: Sequence[Prompt], top_logprobs: int | None = None, echo: bool = False
    ) -> tuple[Generate, ...]:
        """`n` runs per prompt, prompt by prompt; a given seed counts up from choice to choice, so that they differ."""
        if len(prompts) * self.n > RUNS_MAX:
            raise InvalidRequest(f"prompts times 'n' must be at most {RUNS_MAX}", "n")
        if self.n == 1 and prompts == (self.generate.prompt,) and top_logprobs is None and not echo:
            return (self.generate,)
        samplings = tuple(_reseed(self.generate.sampling, k) for k in range(self.n))
        return tuple(
            replace(self.generate, prompt=prompt, sampling=sampling, top_logprobs=top_logprobs, echo=echo)
            for prompt in prompts
            for sampling in samplings
        )


def parse_shared(fields: Fields, prompt: Prompt) -> Shared:
    """`prompt` is what the options are built around; `Shared.runs` puts the real ones in its place."""
    refuse(fields, unserved.ANYWHERE)
    stream_options = fields.object("stream_options") or Fields({})
    refuse(stream_options, unserved.STREAM)
    options = parse_options(fields, prompt)
    stream = fields.boolean("stream")
    progress = fields.boolean("return_progress") and stream
    grammar = parse_constraint(fields)
    if progress or grammar is not None:
        options = replace(options, generate=replace(options.generate, grammar=grammar, progress=progress))
    return Shared(
        options=options,
        stream=stream,
        include_usage=stream_options.boolean("include_usage"),
        include_stats=stream_options.boolean("include_stats"),
        n=first(fields.integer(name, 1, RUNS_MAX) for name in ("n", "n_cmpl")) or 1,
        timings=fields.boolean("timings_per_token"),
    )


def _reseed(sampling: Sampling, k: int) -> Sampling:
    return sampling if sampling.seed is None else replace(sampling, seed=(sampling.seed + k) % SEEDS)
