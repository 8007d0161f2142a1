"""The package's shape: who may import whom, relative imports only, no state in modules. Read from the syntax trees."""

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
    **dict.fromkeys(("errors", "forks", "messages", "settings", "package"), 0),
    **dict.fromkeys(("config", "request", "exchange", "card", "metrics", "download"), 1),
    **dict.fromkeys(("events", "turn"), 2),
    **dict.fromkeys(("wire", "api", "core", "hub", "mcp", "store"), 3),
    **{"rounds": 4},
    **{"app": 5},
    **{"server": 6},
    **dict.fromkeys(("__init__", "__main__", "embedded", "cli"), 7),
}
OUTSIDE = {"cffi", "numpy"}
"""All that is used of others at run time; numpy only where arrays are handed out."""

MUTATORS = {"append", "add", "update", "extend", "pop", "popitem", "clear", "setdefault", "remove", "discard", "insert"}

def unit(parts: tuple[str, ...]) -> str:
    """The row of the ranks table that a module belongs to."""
    return parts[0].removesuffix(".py") if parts else "__init__"

def imported(file: Path) -> Iterator[tuple[str, ...]]:
    """The package's modules that `file` imports, as parts of their path."""
    for node in ast.walk(ast.parse((PACKAGE / file).read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = (*file.parent.parts, *[""])[: len(file.parent.parts) + 1 - node.level]
            if node.module:
                yield (*base, *node.module.split("."))
            else:
                for alias in node.names:
                    is_module = (PACKAGE.joinpath(*base, alias.name)).with_suffix(".py").exists()
                    yield (*base, alias.name) if is_module or PACKAGE.joinpath(*base, alias.name).is_dir() else base

@pytest.mark.parametrize("file", FILES, ids=str)
def test_module_imports_lower_ranks_or_its_own_folder(file: Path) -> None:
    mine = unit(file.parts)
    for target in imported(file):
        theirs = unit(target)
        allowed = RANKS[theirs] < RANKS[mine] or theirs == mine or RANKS[theirs] == RANKS[mine] == 7
        assert allowed, f"{file} (rank {RANKS[mine]}) imports {'.'.join(target)} (rank {RANKS[theirs]})"

@pytest.mark.parametrize("file", FILES, ids=str)
def test_module_names_neither_the_package_nor_other_dependencies(file: Path) -> None:
    for node in ast.walk(ast.parse((PACKAGE / file).read_text())):
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
    tree = ast.parse((PACKAGE / file).read_text())
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

def test_importing_the_package_imports_nothing_else_of_it() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    for node in tree.body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            assert isinstance(node, ast.ImportFrom)
            assert node.module in ("__future__", "typing"), f"line {node.lineno}"
