"""The package's shape: who may import whom, relative imports only, no state in modules or classes, dialects without clock,
chance and I/O. Read from the syntax trees."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "lmlite"
GENERATED = PACKAGE / "core" / "engine" / "_lib.py"
FILES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py") if path != GENERATED)

RANKS = {
    **{"records": -1},
    **dict.fromkeys(
        ("addresses", "archive", "beside", "errors", "forks", "messages", "settings", "package", "pieces", "values"), 0
    ),
    **dict.fromkeys(("config", "request", "exchange", "card", "metrics", "download", "principal", "tool_servers"), 1),
    **dict.fromkeys(("events", "turn"), 2),
    **dict.fromkeys(("wire", "api", "core", "hub", "mcp", "store"), 3),
    **{"rounds": 4},
    **{"app": 5},
    **{"server": 6},
    **dict.fromkeys(("__init__", "__main__", "embedded", "media_arguments", "cli"), 7),
}
OUTSIDE = {"cffi", "numpy"}
"""All that is used of others at run time; numpy only where arrays are handed out."""

OPTIONAL = {"yaml", "PIL"}
"""Used if it is there: imported by name, and never at the top of a module."""

IMPURE = {
    *(
        "asyncio",
        "concurrent",
        "multiprocessing",
        "queue",
        "sched",
        "select",
        "selectors",
        "signal",
        "subprocess",
        "threading",
    ),
    *("ftplib", "http", "smtplib", "socket", "socketserver", "sqlite3", "ssl", "xmlrpc"),
    *("glob", "io", "pathlib", "os", "shelve", "shutil", "tempfile"),
    *("random", "secrets", "time", "uuid"),
}
"""What a dialect has no business with: it gets ids and times, and waits for nothing."""
IMPURE_NAMES = {"getrandom", "urandom", "now", "today", "utcnow", "open", "input", "print"}
"""Functions, by whatever way they are reached, that look at a clock, at chance or at the world."""

MUTABLE_CALLS = {"Counter", "OrderedDict", "WeakKeyDictionary", "WeakSet", "WeakValueDictionary", "bytearray", "defaultdict",
                 "deque", "dict", "list", "set"}  # fmt: skip

MUTATORS = {"append", "add", "update", "extend", "pop", "popitem", "clear", "setdefault", "remove", "discard", "insert"}


def unit(parts: tuple[str, ...]) -> str:
    """The row of the ranks table that a module belongs to."""
    return parts[0].removesuffix(".py") if parts else "__init__"


def tree_of(file: Path) -> ast.Module:
    return ast.parse((PACKAGE / file).read_text())


def imported(tree: ast.Module, file: Path) -> Iterator[tuple[str, ...]]:
    """The package's modules that `file` imports, as parts of their path."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = (*file.parent.parts, *[""])[: len(file.parent.parts) + 1 - node.level]
            if node.module:
                yield (*base, *node.module.split("."))
            else:
                for alias in node.names:
                    is_module = (PACKAGE.joinpath(*base, alias.name)).with_suffix(".py").exists()
                    yield (*base, alias.name) if is_module or PACKAGE.joinpath(*base, alias.name).is_dir() else base


def imported_by_name(tree: ast.Module, file: Path) -> Iterator[str]:
    """The names that are given to `import_module` and `__import__`. Where a name is looked up, each that the module writes
    down may be meant; one that is put together must begin with a dot, so that it is in the module's own folder."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or called(node) not in ("import_module", "__import__"):
            continue
        match node.args[0] if node.args else None:
            case ast.Constant(value=str(name)):
                yield name
            case ast.JoinedStr(values=[ast.Constant(value="."), *_]):
                yield "."
            case ast.Subscript():
                yield from (
                    name for name in strings(tree) if name.startswith(".") and name.strip(".").replace(".", "_").isidentifier()
                )
            case _:
                yield "?"


def called(node: ast.Call) -> str | None:
    match node.func:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
    return None


def strings(tree: ast.Module) -> Iterator[str]:
    return (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str))


def resolved(name: str, file: Path) -> tuple[str, ...]:
    """The parts of the module's path that a relative name means in `file`."""
    up = len(name) - len(name.lstrip("."))
    return (*(*file.parent.parts, "")[: len(file.parent.parts) + 1 - up], *filter(None, name.lstrip(".").split(".")))


def may_import(mine: str, theirs: str) -> bool:
    return RANKS[theirs] < RANKS[mine] or theirs == mine or RANKS[theirs] == RANKS[mine] == max(RANKS.values())


def wrong_dynamic_imports(tree: ast.Module, file: Path) -> list[str]:
    found = []
    for name in imported_by_name(tree, file):
        if name.startswith("."):
            target = resolved(name, file)
            if not may_import(unit(file.parts), unit(target)):
                found.append(name)
        elif name.split(".")[0] not in sys.stdlib_module_names | OPTIONAL:
            found.append(name)
    return found


@pytest.mark.parametrize("file", FILES, ids=str)
def test_module_imports_lower_ranks_or_its_own_folder(file: Path) -> None:
    mine = unit(file.parts)
    for target in imported(tree_of(file), file):
        theirs = unit(target)
        assert may_import(mine, theirs), f"{file} (rank {RANKS[mine]}) imports {'.'.join(target)} (rank {RANKS[theirs]})"


@pytest.mark.parametrize("file", FILES, ids=str)
def test_module_imports_nothing_by_name_that_it_may_not_import(file: Path) -> None:
    assert wrong_dynamic_imports(tree_of(file), file) == []


@pytest.mark.parametrize(
    "source",
    [
        'import_module("...app.models", __package__)',
        'importlib.import_module("...server", __name__)',
        '__import__("numpy.linalg")',
        '__import__("lmlite.app")',
        "import_module(name)",
        'import_module(f"{name}")',
        'HOMES = {"a": "...wire.sse"}\nimport_module(HOMES[a], __name__)',
        "import_module()",
    ],
)
def test_imports_by_name_past_a_rank_are_found(source: str) -> None:
    assert wrong_dynamic_imports(ast.parse(source), Path("core/loading/pool.py")) != []


@pytest.mark.parametrize("file", FILES, ids=str)
def test_module_names_neither_the_package_nor_other_dependencies(file: Path) -> None:
    for node in ast.walk(tree_of(file)):
        match node:
            case ast.Import(names=aliases):
                names = [alias.name for alias in aliases]
            case ast.ImportFrom(module=str(name), level=0):
                names = [name]
            case _:
                names = []
        for name in names:
            top = name.split(".")[0]
            assert top != "lmlite", f"{file} imports the package by its name"
            assert top in sys.stdlib_module_names or top in OUTSIDE, f"{file} imports {top}"


@pytest.mark.parametrize("file", FILES, ids=str)
def test_module_has_no_state(file: Path) -> None:
    """No `global`, and nothing bound at module level is changed by a function."""
    tree = tree_of(file)
    bound = set(module_level_names(tree))
    for function in ast.walk(tree):
        if not isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        for node in ast.walk(function):
            assert not isinstance(node, ast.Global), f"{file}:{node.lineno} has a global statement"
            changed = changed_name(node)
            if changed is not None and changed not in local_names(function):
                assert changed not in bound, f"{file} changes its module-level {changed}"


def module_level_names(tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        match node:
            case ast.Assign(targets=targets):
                yield from (target.id for target in targets if isinstance(target, ast.Name))
            case ast.AnnAssign(target=ast.Name(id=name)):
                yield name


def local_names(function: ast.FunctionDef | ast.AsyncFunctionDef) -> set[str]:
    arguments = {argument.arg for argument in ast.walk(function) if isinstance(argument, ast.arg)}
    stored = {n.id for n in ast.walk(function) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    return arguments | stored


def changed_name(node: ast.AST) -> str | None:
    """The name whose object this node changes in place."""
    match node:
        case ast.Subscript(ctx=ast.Store() | ast.Del(), value=ast.Name(id=name)):
            return name
        case ast.Call(func=ast.Attribute(attr=method, value=ast.Name(id=name))) if method in MUTATORS:
            return name
    return None


# ---- classes ---------------------------------------------------------------------------------------------------------


def class_state(tree: ast.Module) -> Iterator[str]:
    """What all objects of a class would share and could change: mutable values in its body, and changes of itself."""
    classes = {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            for statement in node.body:
                if isinstance(statement, (ast.Assign, ast.AnnAssign)) and is_mutable(statement.value):
                    yield f"line {statement.lineno}: {node.name} holds {ast.unparse(statement)}"
        for target in changed_objects(node):
            if is_class(target, classes):
                yield f"line {target.lineno}: {ast.unparse(target)} is changed"


def is_mutable(value: ast.expr | None) -> bool:
    match value:
        case ast.List() | ast.Dict() | ast.Set() | ast.ListComp() | ast.DictComp() | ast.SetComp():
            return True
        case ast.Call():
            return called(value) in MUTABLE_CALLS
    return False


def changed_objects(node: ast.AST) -> Iterator[ast.expr]:
    """The objects of which this node sets an attribute, or changes what an attribute holds."""
    match node:
        case ast.Attribute(value=owner, ctx=ast.Store() | ast.Del()):
            yield owner
        case ast.Subscript(value=ast.Attribute(value=owner), ctx=ast.Store() | ast.Del()):
            yield owner
        case ast.Call(func=ast.Attribute(attr=method, value=ast.Attribute(value=owner))) if method in MUTATORS:
            yield owner
        case ast.Call(func=ast.Name(id="setattr" | "delattr"), args=[owner, *_]):
            yield owner


def is_class(node: ast.expr, classes: set[str]) -> bool:
    match node:
        case ast.Name(id=name):
            return name == "cls" or name in classes
        case ast.Attribute(attr="__class__") | ast.Call(func=ast.Name(id="type"), args=[_]):
            return True
    return False


@pytest.mark.parametrize("file", FILES, ids=str)
def test_classes_have_no_state(file: Path) -> None:
    assert list(class_state(tree_of(file))) == []


@pytest.mark.parametrize(
    "body",
    [
        "seen = []",
        "seen: ClassVar[dict[str, int]] = {}",
        "seen = {name for name in NAMES}",
        "seen = collections.deque()",
        "n = 0\n    def f(self): A.n += 1",
        "n = 0\n    def f(self): type(self).n = 1",
        "n = 0\n    def f(self): self.__class__.n = 1",
        "n = 0\n    @classmethod\n    def f(cls): cls.n = 1",
        "n = X()\n    @classmethod\n    def f(cls): cls.n.append(1)",
        "n = X()\n    def f(self): A.n[0] = 1",
        "n = X()\n    def f(self): setattr(A, 'n', 1)",
    ],
)
def test_state_of_a_class_is_found(body: str) -> None:
    assert list(class_state(ast.parse(f"class A:\n    {body}"))) != []


def test_what_objects_hold_is_no_state_of_a_class() -> None:
    source = (
        "class A:\n    kinds = ('a', 'b')\n    seen: T = field(default_factory=list)\n    def f(self): self.seen.append(1)"
    )
    assert list(class_state(ast.parse(source))) == []


# ---- dialects --------------------------------------------------------------------------------------------------------

DIALECTS = [file for file in FILES if file.parts[0] == "api"]


def impurities(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=aliases):
                names = {alias.name for alias in aliases}
            case ast.ImportFrom(module=str(module), names=aliases, level=0):
                names = {module, *(alias.name for alias in aliases if alias.name in IMPURE_NAMES)}
            case ast.Call() if called(node) in IMPURE_NAMES:
                names = {str(called(node))}
            case ast.AsyncFunctionDef() | ast.Await() | ast.AsyncFor() | ast.AsyncWith():
                names = {"await"}
            case _:
                continue
        for name in names:
            if name.split(".")[0] in IMPURE or name in IMPURE_NAMES | {"await", "urllib.request"}:
                yield f"line {getattr(node, 'lineno', 0)}: {name}"


@pytest.mark.parametrize("file", DIALECTS, ids=str)
def test_dialects_know_neither_clock_nor_chance_nor_the_world(file: Path) -> None:
    assert list(impurities(tree_of(file))) == []


@pytest.mark.parametrize(
    "source",
    [
        "import asyncio",
        "from asyncio import sleep",
        "import socket as s",
        "from time import monotonic",
        "def f():\n    import random",
        "import os.path",
        "from os import urandom",
        "from secrets import token_hex",
        "import uuid",
        "datetime.now()",
        "datetime.datetime.utcnow()",
        "date.today()",
        "x.urandom(8)",
        "open('a')",
        "import http.client",
        "import urllib.request",
        "async def f(): pass",
    ],
)
def test_impure_dialects_are_found(source: str) -> None:
    assert list(impurities(ast.parse(source))) != []


@pytest.mark.parametrize("file", FILES, ids=str)
def test_class_patterns_name_the_attributes(file: Path) -> None:
    """For each match of one that does not, CPython makes a string `__match_args__` anew, and its cache of methods keeps
    thousands of these: each holds the memory of a large request that it was made beside."""
    assert [n.lineno for n in ast.walk(tree_of(file)) if isinstance(n, ast.MatchClass) and n.patterns] == []


def test_importing_the_package_imports_nothing_else_of_it() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    for node in tree.body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            assert isinstance(node, ast.ImportFrom)
            assert node.module in ("__future__", "typing"), f"line {node.lineno}"
