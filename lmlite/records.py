"""`dataclass`, as `dataclasses` has it with `slots`, made when it is first used: there are more than a hundred before a server
is ready, each takes a third of a millisecond, and most serve a few requests only.

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

    FIELDS, PARAMS = "__dataclass_fields__", "__dataclass_params__"
    """By which the standard library knows one of its classes."""

    def dataclass(*, slots, frozen=False, eq=True, kw_only=False):
        """`slots` has to be true, and all that is annotated is a field."""

        def make(cls):
            body = {name: value for name, value in vars(cls).items() if name not in ("__dict__", "__weakref__")}
            if "__eq__" in body and body["__hash__"] is None:
                del body["__hash__"]  # Python's doing, not the class's

            def finish():
                """May run twice, in two threads: the same comes of it."""
                done = dataclasses.dataclass(again(made, body), slots=slots, repr=False, eq=False, kw_only=kw_only)
                found = dataclasses.fields(done)
                finished = {"__init__": done.__init__, "__match_args__": done.__match_args__}
                finished["__repr__"] = representation(tuple(field.name for field in found if field.repr))
                if eq:
                    values = values_of(tuple(field.name for field in found if field.compare))
                    finished["__eq__"] = equality(values)
                    finished["__hash__"] = hashing(values) if frozen else None
                for name in finished.keys() - body.keys():
                    setattr(made, name, finished[name])
                setattr(made, PARAMS, getattr(done, PARAMS))
                setattr(made, FIELDS, getattr(done, FIELDS))

            inherited = {name for base in cls.__mro__[1:-1] for name in vars(base).get("__slots__", ())}
            fields = inherited.union(cls.__annotations__)
            slim = {name: value for name, value in body.items() if name not in fields}
            made = again(cls, {**slim, "__slots__": tuple(name for name in cls.__annotations__ if name not in inherited)})
            waiting = ["__init__", "__repr__"] + ["__eq__"] * eq + ["__hash__"] * (eq and frozen)
            for name in set(waiting) - body.keys():
                setattr(made, name, finishing(made, name, finish))
            if eq and not frozen and "__hash__" not in body:
                made.__hash__ = None
            setattr(made, FIELDS, Unfinished(made, finish))
            return made

        return make

    def again(cls, body):
        """The class once more, with another body."""
        made = type(cls)(cls.__name__, cls.__bases__, dict(body))
        made.__qualname__ = cls.__qualname__
        return made

    def finishing(made, name, finish):
        """The method until the class is made, which it is by calling it."""

        def method(*arguments, **named):
            finish()
            return getattr(made, name)(*arguments, **named)

        return method

    class Unfinished:
        """In the place of the fields until the class is made, which it is by asking for them."""

        __slots__ = ("_finish", "_made")

        def __init__(self, made, finish):
            self._made = made
            self._finish = finish

        def __get__(self, record, cls):
            self._finish()
            return getattr(self._made, FIELDS)

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
