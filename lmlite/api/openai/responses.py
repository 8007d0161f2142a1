"""`POST /v1/responses`: the request becomes one run of a conversation, which may go on from a kept one.

What would change the answer and is not served is refused by name, but for what agents send whether it is there or not: tools
of a cloud, and items that say nothing here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from ...errors import InvalidRequest, MissingField
from ...messages import Message, text_message
from ...records import dataclass
from ...request import UNLIMITED, Chat, Generate
from ...turn import Approval, Follows
from ..dialect import Call, Origin, Reply
from ..kept_media import without_media
from ..read import unserved
from ..read.constraint import parse_constraint, parse_format
from ..read.fields import Fields, as_string
from ..read.sampling import TOP_LOGPROBS_MAX, parse_options
from ..read.unserved import refuse
from ..spell import dumps
from . import error as openai_error
from .chat import VERBOSITIES, parse_template_kwargs
from .responses_items import keep_input, parse_input
from .responses_reply import Asked, ResponseReply
from .responses_tools import ToolSet, parse_tool_set

error = openai_error.error

ENCRYPTED_REASONING: Final = "reasoning.encrypted_content"
LOGPROBS: Final = "message.output_text.logprobs"

MAX_TOOL_CALLS: Final = 2**31 - 1

WITHOUT_EFFECT: Final = ("context_management",)
"""Says how a context that is too long is made shorter, which is an error here: `truncation` says otherwise."""


@dataclass(slots=True, frozen=True)
class _Given:
    """What the input says: messages, what was decided about calls, and the types of items that nobody knows."""

    messages: tuple[Message, ...]
    approvals: tuple[Approval, ...]
    skipped: tuple[str, ...]


def parse_responses(body: dict[str, Any]) -> Call:
    fields = Fields(body)
    refuse(fields, unserved.ANYWHERE)
    refuse(fields, unserved.RESPONSES)
    previous = fields.name("previous_response_id")
    leading = _parse_instructions(fields)
    tools = parse_tool_set(fields)
    given = _parse_input(fields, previous)
    form = fields.object("text") or Fields({}, "text")
    prompt = Chat(
        (*leading, *given.messages),
        _template_kwargs(fields, form),
        tools=tools.offer.tools,
        tool_choice=tools.offer.choice,
        parallel_tool_calls=tools.offer.parallel,
    )
    include = _parse_include(fields)
    options = parse_options(fields, prompt, max_tokens=("max_output_tokens",))
    stream, background = fields.boolean("stream"), fields.boolean("background")
    run = _parse_run(fields, options.generate, form, tools, include)
    store = _parse_store(fields, background)
    follows = Follows(previous, n_leading=len(leading)) if previous else None
    max_calls = fields.integer("max_tool_calls", 0, MAX_TOOL_CALLS)
    turn = replace(
        options.turn("chat", (run,), follows), servers=tools.servers, max_calls=max_calls, approvals=given.approvals
    )
    summary = _parse_summary(fields)
    known = Asked(
        model=options.model or "",
        echo=_spell_echo(fields, run, tools, summary),
        messages=given.messages,
        input=keep_input(without_media(body.get("input"), "input", given.messages)) if store else (),
        previous=previous,
        told=tools.told,
        store=store,
        background=background,
        summary=summary is not None,
        encrypted=ENCRYPTED_REASONING in include,
        logprobs=run.top_logprobs is not None,
    )

    def reply(origin: Origin) -> Reply:
        return ResponseReply(origin, known)

    return Call(turn, stream, reply, _ignored(fields, tools, given), background)


# ---- what is asked ---------------------------------------------------------------------------------------------------


def _parse_instructions(fields: Fields) -> tuple[Message, ...]:
    """For this turn only: those of earlier ones are not kept."""
    instructions = fields.string("instructions")
    return (text_message("system", instructions),) if instructions else ()


def _parse_input(fields: Fields, previous: str | None) -> _Given:
    """Clients that want a model loaded send nothing to be answered: that is an empty message."""
    given = fields.get("input")
    if given is None and not previous:
        raise MissingField("input")
    skipped: list[str] = []
    approvals: list[Approval] = []
    messages = () if given is None or (previous and given == "") else parse_input(given, skipped, approvals)
    return _Given(messages if messages or previous else (Message("user", ()),), tuple(approvals), tuple(skipped))


def _template_kwargs(fields: Fields, form: Fields) -> Mapping[str, Any]:
    verbosity = form.choice("verbosity", VERBOSITIES)
    said = {} if verbosity is None else {"verbosity": verbosity}
    return {**said, **parse_template_kwargs(fields)}


# ---- how it is answered ----------------------------------------------------------------------------------------------


def _parse_run(fields: Fields, usual: Generate, form: Fields, tools: ToolSet, include: frozenset[str]) -> Generate:
    """`usual` with what is said in this dialect's own words."""
    return replace(
        usual,
        grammar=_parse_constraint(fields, form, tools),
        top_logprobs=_parse_logprobs(fields, include),
        progress=fields.boolean("stream") or fields.boolean("background"),
        overflow="drop_middle" if _parse_truncation(fields) == "auto" else usual.overflow,
    )


def _parse_constraint(fields: Fields, form: Fields, tools: ToolSet) -> Any:
    wanted = form.object("format")
    constraint = None if wanted is None else parse_format(wanted)
    other = parse_constraint(fields)
    if constraint is not None and other is not None:
        raise InvalidRequest("'text.format' and another form of the answer exclude each other", "text.format")
    if tools.offer.callable and other is not None and other.kind != "json_schema":
        raise InvalidRequest("'grammar' and 'tools' exclude each other; 'text.format' goes with them", "grammar")
    return constraint or other


def _parse_include(fields: Fields) -> frozenset[str]:
    """What it may name else is of tools that are not run here."""
    return frozenset(as_string(name, f"include[{i}]") for i, name in enumerate(fields.array("include") or ()))


def _parse_logprobs(fields: Fields, include: frozenset[str]) -> int | None:
    top = fields.integer("top_logprobs", 0, TOP_LOGPROBS_MAX)
    return (top or 0) if LOGPROBS in include else None


def _parse_truncation(fields: Fields) -> str | None:
    return fields.choice("truncation", ("auto", "disabled"))


def _parse_store(fields: Fields, background: bool) -> bool:
    store = fields.boolean("store", default=True)
    if background and not store:
        raise InvalidRequest("'background' needs 'store': its answer is asked for later", "background")
    return store


def _parse_summary(fields: Fields) -> str | None:
    """The wish for one, in whichever words: what the model thought is its own summary."""
    reasoning = fields.object("reasoning")
    if reasoning is None:
        return None
    wish = reasoning.string("summary") or reasoning.string("generate_summary")
    return None if wish in (None, "none") else wish


def _ignored(fields: Fields, tools: ToolSet, given: _Given) -> tuple[str, ...]:
    return (*tools.ignored, *dict.fromkeys(given.skipped), *(name for name in WITHOUT_EFFECT if fields.get(name)))


# ---- what a response repeats of its request --------------------------------------------------------------------------


def _spell_echo(fields: Fields, run: Generate, tools: ToolSet, summary: str | None) -> str:
    sampling = run.sampling
    text = dict((fields.object("text") or Fields({})).values)
    text["format"] = text.get("format") or {"type": "text"}
    reasoning = fields.object("reasoning") or Fields({}, "reasoning")
    metadata = fields.object("metadata")
    parallel = fields.optional_boolean("parallel_tool_calls")
    echo = {
        "previous_response_id": fields.name("previous_response_id"),
        "instructions": fields.string("instructions"),
        "tools": list(tools.echo),
        "tool_choice": fields.get("tool_choice") or "auto",
        "truncation": _parse_truncation(fields) or "disabled",
        "parallel_tool_calls": True if parallel is None else parallel,
        "text": text,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "top_logprobs": fields.integer("top_logprobs", 0, TOP_LOGPROBS_MAX) or 0,
        "reasoning": {"effort": reasoning.string("effort"), "summary": summary},
        "max_output_tokens": None if run.max_tokens == UNLIMITED else run.max_tokens,
        "max_tool_calls": fields.integer("max_tool_calls", 0, MAX_TOOL_CALLS),
        "store": fields.boolean("store", default=True),
        "background": fields.boolean("background"),
        "service_tier": fields.string("service_tier") or "default",
        "metadata": {} if metadata is None else metadata.values,
        "user": fields.string("user"),
        "safety_identifier": fields.string("safety_identifier"),
        "prompt_cache_key": fields.string("prompt_cache_key"),
    }
    return dumps(echo)[1:-1]
