"""`lmlite.records.dataclass` beside the standard library's: what is made of a class behaves the same."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import field
from typing import Any

import pytest

from lmlite import records
from lmlite.principal import Principal
from tests.conftest import INSTALLED

MADE: dict[str, tuple[Any, Any]] = {}


def both(name: str, **how: bool) -> Any:
    """The class, by lmlite and by the standard library."""

    def make(cls: type) -> Any:
        copied = type(cls.__name__, cls.__bases__, {key: value for key, value in vars(cls).items() if key != "__dict__"})
        ours: Any = records.dataclass
        MADE[name] = (ours(**how)(cls), dataclasses.dataclass(**how)(copied))
        return MADE[name][0]

    return make


@both("frozen", slots=True, frozen=True)
class Frozen:
    number: int
    words: tuple[str, ...] = ()
    hidden: int = field(default=0, compare=False, repr=False)


@both("open", slots=True)
class Open:
    number: int
    words: list[str] = field(default_factory=list)


@both("by itself", slots=True, eq=False)
class ByItself:
    number: int


@both("one", slots=True, frozen=True)
class One:
    number: int


@both("none", slots=True, frozen=True)
class Nothing:
    pass


@both("own words", slots=True, frozen=True)
class OwnWords:
    number: int

    def __repr__(self) -> str:
        return "mine"

    def __hash__(self) -> int:
        return 7


@both("own equality", slots=True)
class OwnEquality:
    number: int

    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return 7


@both("equality alone", slots=True, frozen=True)
class EqualityAlone:
    number: int

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self)


@records.dataclass(slots=True, frozen=True)
class Longer(Frozen):
    words: str = "own"  # type: ignore[assignment]
    more: int = 3


def some(cls: Any) -> list[Any]:
    n_fields = len(dataclasses.fields(cls))
    return [cls(*arguments[:n_fields]) for arguments in ((1, ["a"]), (1, ["a"]), (2, ["a"]), (1, ["b"]))]


@pytest.mark.parametrize("name", MADE)
def test_records_are_equal_and_shown_as_dataclasses_are(name: str) -> None:
    ours, theirs = map(some, MADE[name])
    assert [repr(each) for each in ours] == [repr(each) for each in theirs]
    for i in range(len(ours)):
        for k in range(len(ours)):
            assert (ours[i] == ours[k]) == (theirs[i] == theirs[k])
        assert ours[i] != theirs[i] or name in ("own equality", "equality alone")
        assert ours[i] != 1 or name in ("own equality", "equality alone")


@pytest.mark.parametrize("name", MADE)
def test_records_are_hashed_if_dataclasses_are(name: str) -> None:
    ours, theirs = MADE[name]
    assert (ours.__hash__ is None) == (theirs.__hash__ is None)
    if ours.__hash__ is not None:
        made = [cls(*(3,)[: len(dataclasses.fields(cls))]) for cls in (ours, ours)]
        alone = name == "by itself"
        assert (hash(made[0]) == hash(made[1])) != alone


def test_fields_that_are_not_compared_or_shown_are_left_out() -> None:
    cls = MADE["frozen"][0]
    assert cls(1, hidden=2) == cls(1, hidden=3) and hash(cls(1, hidden=2)) == hash(cls(1, hidden=3))
    assert "hidden" not in repr(cls(1))


def test_what_dataclasses_can_do_works_on_records() -> None:
    cls: Any = Frozen
    one = cls(1, ("a",))
    assert dataclasses.replace(one, number=2) == cls(2, ("a",))
    assert dataclasses.asdict(one) == {"number": 1, "words": ("a",), "hidden": 0}
    assert copy.copy(one) == copy.deepcopy(one) == pickle.loads(pickle.dumps(one)) == one
    match one:
        case cls(number, words):
            assert (number, words) == (1, ("a",))
    assert not hasattr(one, "__dict__")


def test_record_that_holds_itself_is_shown() -> None:
    one = MADE["open"][0](1)
    one.words.append(one)
    assert repr(one) == "Open(number=1, words=[...])"


def test_a_record_of_a_record_has_the_fields_of_both() -> None:
    cls: Any = Longer
    base: Any = Frozen
    assert cls(1, words="other").words == "other" and cls(2).words == "own" and cls(2).more == 3
    assert cls(1) == cls(1) != base(1) and repr(cls(1)) == "Longer(number=1, words='own', more=3)"
    assert cls.__slots__ == ("more",) and not hasattr(cls(1), "__dict__")


def test_a_record_that_is_first_used_in_two_threads_is_one_class() -> None:
    for _ in range(50):
        made: Any = records.dataclass(slots=True, frozen=True)(type("New", (), {"__annotations__": {"number": "int"}}))
        ready = threading.Barrier(4)

        def make(number: int, made: Any = made, ready: threading.Barrier = ready) -> Any:
            ready.wait()
            return made(number)

        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(make, range(4))) == [made(number) for number in range(4)]


def test_a_record_that_comes_from_another_process_is_whole() -> None:
    """It comes without a call of the class."""
    code = f"""if True:
        import pickle
        one = pickle.loads({pickle.dumps(Principal("a", "", frozenset()))!r})
        assert "name='a'" in repr(one) and one == one and one in {{one}}
    """
    subprocess.run([sys.executable, "-c", code], cwd=INSTALLED, check=True)


def test_all_records_are_what_dataclasses_makes_of_them() -> None:
    code = """if True:
        import dataclasses, importlib, inspect, pkgutil
        import lmlite
        from lmlite import records
        made, dataclass = [], records.dataclass
        def noted(**how):
            def make(cls):
                body = {name: value for name, value in vars(cls).items() if name not in ("__dict__", "__weakref__")}
                ours = dataclass(**how)(cls)
                made.append((ours, dataclasses.dataclass(**how)(type(cls)(cls.__name__, cls.__bases__, body))))
                return ours
            return make
        records.dataclass = noted
        for module in pkgutil.walk_packages(lmlite.__path__, "lmlite."):
            if not module.name.endswith(("__main__", "_lib")):
                importlib.import_module(module.name)
        for ours, theirs in made:
            assert ours.__slots__ == theirs.__slots__, ours
            assert (ours.__hash__ is None) == (theirs.__hash__ is None), ours
            names = [[(field.name, field.init, field.compare, field.repr) for field in dataclasses.fields(each)]
                     for each in (ours, theirs)]
            assert names[0] == names[1], ours
            assert inspect.signature(ours.__init__) == inspect.signature(theirs.__init__), ours
            assert ours.__match_args__ == theirs.__match_args__, ours
        print(len(made))
    """
    done = subprocess.run([sys.executable, "-c", code], cwd=INSTALLED, capture_output=True, text=True, check=True)
    assert int(done.stdout) > 150


def test_few_records_are_made_before_a_server_is_ready() -> None:
    """Each costs it a third of a millisecond."""
    code = """if True:
        import dataclasses
        made = []
        whole = dataclasses.dataclass
        def noted(cls=None, /, **how):
            made.append(cls)
            return whole(cls, **how)
        dataclasses.dataclass = noted
        import lmlite.cli.serve, lmlite.server
        print(len(made), all(map(callable, made)))
    """
    done = subprocess.run([sys.executable, "-c", code], cwd=INSTALLED, capture_output=True, text=True, check=True)
    n_made, are_records = done.stdout.split()
    assert int(n_made) < 15 and are_records == "True"
