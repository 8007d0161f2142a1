"""Numbers that are counted, and their spelling for Prometheus (text format 0.0.4). Pure values: no clock, no input or output.

Label values are escaped, and a family holds a bounded number of them: what comes after is counted under `OTHER`. A series'
numbers are kept in an array: as objects they would be new ones after each request, here and there among those of large
requests, whose memory could not be given back then.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import ClassVar, Final

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
SERIES_MAX: Final = 1024
"""Of one family: routes times statuses are some dozens, models some dozens more; beyond this somebody makes names up."""
OTHER: Final = "other"

LOAD_S: Final = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
"""From a tiny model in the page cache to a large one on a slow disk."""

_ESCAPES: Final = str.maketrans({"\\": "\\\\", "\n": "\\n", '"': '\\"'})
_HELP_ESCAPES: Final = str.maketrans({"\\": "\\\\", "\n": "\\n"})

Values = tuple[str, ...]
"""The label values of one series, in the order of its family's label names."""


class Family:
    """Series of one name, told apart by the values of `labels`."""

    kind: ClassVar[str]

    def __init__(self, name: str, help: str, labels: Sequence[str] = ()):
        self.name, self.help, self.labels = name, help, tuple(labels)

    def samples(self) -> Iterator[str]:
        """One line per number."""
        raise NotImplementedError

    def series(self, values: Values, more: str = "") -> str:
        """The braces with the labels; `more` is a label that is spelled already."""
        pairs = [f'{name}="{value.translate(_ESCAPES)}"' for name, value in zip(self.labels, values, strict=True)]
        inner = ",".join((*pairs, more) if more else pairs)
        return f"{{{inner}}}" if inner else ""


class Counter(Family):
    """Only grows."""

    kind = "counter"

    def __init__(self, name: str, help: str, labels: Sequence[str] = ()):
        super().__init__(name, help, labels)
        self._counts: dict[Values, array[float]] = {}  # one each

    def add(self, *values: str, n: float = 1) -> None:
        values = bounded(self._counts, values)
        count = self._counts.get(values)
        if count is None:
            count = self._counts[values] = array("d", (0.0,))
        count[0] += n

    def get(self, *values: str) -> float:
        count = self._counts.get(values)
        return count[0] if count else 0

    def samples(self) -> Iterator[str]:
        for values, count in self._counts.items():
            yield f"{self.name}{self.series(values)} {number(count[0])}"


class Gauge(Family):
    """A state, set anew for each exposition."""

    kind = "gauge"

    def __init__(self, name: str, help: str, labels: Sequence[str] = ()):
        super().__init__(name, help, labels)
        self._values: dict[Values, float] = {}

    def set(self, value: float, *values: str) -> Gauge:
        self._values[bounded(self._values, values)] = value
        return self

    def samples(self) -> Iterator[str]:
        for values, value in self._values.items():
            yield f"{self.name}{self.series(values)} {number(value)}"


class Histogram(Family):
    """How observed numbers are distributed over buckets up to `bounds`, which ascend; their sum and how many there were."""

    kind = "histogram"

    def __init__(self, name: str, help: str, labels: Sequence[str] = (), *, bounds: Sequence[float]):
        super().__init__(name, help, labels)
        self._bounds = tuple(bounds)
        self._counts: dict[Values, array[float]] = {}
        """Per bucket, not cumulated: of up to each bound, then beyond all of them. The last is the sum."""

    def observe(self, value: float, *values: str) -> None:
        values = bounded(self._counts, values)
        counts = self._counts.get(values)
        if counts is None:
            counts = self._counts[values] = array("d", bytes(8 * (len(self._bounds) + 2)))
        counts[bisect_left(self._bounds, value)] += 1
        counts[-1] += value

    def samples(self) -> Iterator[str]:
        for values, (*counts, added) in self._counts.items():
            total = 0
            for bound, count in zip((*map(number, self._bounds), "+Inf"), map(int, counts), strict=True):
                total += count
                le = f'le="{bound}"'
                yield f"{self.name}_bucket{self.series(values, le)} {total}"
            labels = self.series(values)
            yield f"{self.name}_sum{labels} {number(added)}"
            yield f"{self.name}_count{labels} {total}"


def bounded(known: Mapping[Values, object], values: Values) -> Values:
    """`values`, or `OTHER` for each of them if they would be one series too many."""
    return values if values in known or len(known) < SERIES_MAX else (OTHER,) * len(values)


def number(value: float) -> str:
    """In the shortest digits that give back the same number."""
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(float(value))


def expose(families: Iterable[Family]) -> str:
    """The text of all families; one without a sample is left out."""
    lines: list[str] = []
    for family in families:
        samples = list(family.samples())
        if samples:
            lines += (f"# HELP {family.name} {family.help.translate(_HELP_ESCAPES)}", f"# TYPE {family.name} {family.kind}")
            lines += samples
    return "\n".join((*lines, ""))


# ---- what a pool counts ----------------------------------------------------------------------------------------------


class Loads:
    """What became of the models that a pool was to load."""

    def __init__(self) -> None:
        self.loads = Counter("lmlite_model_loads_total", "Loads ended, by result.", ("model", "result"))
        self.load_s = Histogram("lmlite_model_load_seconds", "Of loads that were successful.", ("model",), bounds=LOAD_S)
        self.crashes = Counter("lmlite_model_crashes_total", "Engines that ended by themselves.", ("model",))

    def loaded(self, model: str, seconds: float) -> None:
        self.loads.add(model, "loaded")
        self.load_s.observe(seconds, model)

    def failed(self, model: str) -> None:
        self.loads.add(model, "failed")

    def crashed(self, model: str) -> None:
        self.crashes.add(model)

    def families(self) -> Iterator[Family]:
        yield from vars(self).values()
