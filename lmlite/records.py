"""`dataclass`, as `dataclasses` has it, made in a third of the time and with less memory: there are more than a hundred before
a server is ready, and Python compiles six functions for each, where one is enough (the others are the same for all).

For the type checker it is the very same, which is who sees to it that what is `frozen` is never written to.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dataclasses import dataclass as dataclass
else:
    import dataclasses
    from operator import attrgetter
    from reprlib import recursive_repr

    def dataclass(cls=None, /, *, slots=False, frozen=False, eq=True, kw_only=False):
        def make(cls):
            given = frozenset(vars(cls))
            made = dataclasses.dataclass(cls, slots=slots, repr=False, eq=False, kw_only=kw_only)
            found = dataclasses.fields(made)
            own = {"__repr__": representation(tuple(field.name for field in found if field.repr))}
            if eq:
                values = values_of(tuple(field.name for field in found if field.compare))
                own["__eq__"] = equality(values)
                own["__hash__"] = hashing(values) if frozen else None
            for name in own.keys() - given:
                setattr(made, name, own[name])
            return made

        return make if cls is None else make(cls)

    def values_of(names):
        """A tuple, however many there are."""
        if len(names) > 1:
            return attrgetter(*names)
        return lambda record: tuple(getattr(record, name) for name in names)

    def equality(values):
        def __eq__(self, other):
            return values(self) == values(other) if other.__class__ is self.__class__ else NotImplemented

        return __eq__

    def hashing(values):
        def __hash__(self):
            return hash(values(self))

        return __hash__

    def representation(names):
        @recursive_repr()
        def __repr__(self):
            shown = ", ".join(f"{name}={getattr(self, name)!r}" for name in names)
            return f"{self.__class__.__qualname__}({shown})"

        return __repr__
