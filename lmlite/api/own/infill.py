"""`POST /infill` as llama.cpp's own server has it: what stands before and after a gap, and the text that fills it.

The answer has that server's keys, but for those that tell of its slots and of all its settings.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ...errors import InvalidRequest, InvalidType, LmError
from ...events import Event, Finished, Leased, StopReason, TextDelta
from ...request import Infill
from ..answer import Answer, fold, leased_of, spell_timings
from ..dialect import Call, Frame, Origin, Reply
from ..openai.error import error_object
from ..openai.shared import parse_shared
from ..read import unserved
from ..read.fields import Fields, as_array, as_object, as_string
from ..read.unserved import refuse
from ..spell import dumps

FILES_MAX = 1024
FILE_NAME = "tmp"
"""Of a file that has none."""

STOP_TYPES: Mapping[StopReason, str] = {"eosFound": "eos", "stopStringFound": "word"}
"""The others are the limit's."""


def parse_infill(body: dict[str, Any]) -> Call:
    fields = Fields(body)
    prompt = Infill(
        prefix=fields.require_string("input_prefix"),
        suffix=fields.require_string("input_suffix"),
        begun=fields.string("prompt") or "",
        files=_parse_files(fields.array("input_extra") or ()),
    )
    refuse(fields, unserved.TEXT)
    wanted = _parse_wanted(fields)
    shared = parse_shared(Fields({name: value for name, value in body.items() if name != "response_fields"}), prompt)
    if shared.n > 1:
        raise InvalidRequest("'n' must be 1: one gap is filled once", "n")

    def reply(origin: Origin) -> Reply:
        return _Filled(wanted)

    return Call(shared.turn("text", shared.runs((prompt,))), shared.stream, reply)


def _parse_files(given: Sequence[Any]) -> tuple[tuple[str, str], ...]:
    if len(given) > FILES_MAX:
        raise InvalidRequest(f"'input_extra' must have at most {FILES_MAX} files", "input_extra")
    files = [Fields(as_object(file, f"input_extra[{i}]"), f"input_extra[{i}]") for i, file in enumerate(given)]
    return tuple((file.string("filename") or FILE_NAME, file.require_string("text")) for file in files)


def _parse_wanted(fields: Fields) -> tuple[str, ...]:
    """`response_fields`: paths of the keys that an answer is to have; none: all."""
    given = fields.get("response_fields")
    if given is None:
        return ()
    if not isinstance(given, list):
        raise InvalidType("response_fields", "an array of strings")
    return tuple(as_string(path, f"response_fields[{i}]") for i, path in enumerate(as_array(given, "response_fields")))


class _Filled(Reply):
    def __init__(self, wanted: Sequence[str]):
        self._wanted = wanted
        self._model = ""

    def stream(self, index: int, event: Event) -> Iterable[Frame]:
        if isinstance(event, TextDelta) and event.text:
            return ((None, dumps({"index": index, "content": event.text, "tokens": [], "stop": False})),)
        if isinstance(event, Finished):
            return ((None, self._spell(Answer("", "", (), (), event))),)
        if isinstance(event, Leased):
            self._model = event.instance.id
        return ()

    def end(self) -> Iterable[Frame]:
        return ()

    def failed(self, exc: LmError) -> Iterable[Frame]:
        return (("error", dumps({"error": error_object(exc)})),)

    def whole(self, runs: Sequence[Sequence[Event]]) -> str:
        (events,) = runs
        self._model = leased_of(runs).instance.id
        return self._spell(fold(events))

    def _spell(self, answer: Answer) -> str:
        finished, stats = answer.finished, answer.finished.stats
        spelled = {
            "index": 0,
            "content": answer.text,
            "tokens": [],
            "stop": True,
            "model": self._model,
            "tokens_predicted": stats.generated_tokens,
            "tokens_evaluated": stats.prompt_tokens,
            "truncated": False,
            "stop_type": STOP_TYPES.get(finished.reason, "limit"),
            "stopping_word": finished.stop_string or "",
            "tokens_cached": stats.prompt_tokens + stats.generated_tokens,
            "timings": spell_timings([finished], 1),
        }
        return dumps({path: found for path in self._wanted if (found := _at(spelled, path)) is not None} or spelled)


def _at(spelled: Mapping[str, Any], path: str) -> Any:
    """What is there; None for nothing."""
    current: Any = spelled
    for key in path.split("/"):
        current = current.get(key) if isinstance(current, Mapping) else None
    return current
