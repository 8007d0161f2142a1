"""Tools of Anthropic's that clients run themselves and send no schema of, since the models that they are meant for know it:
here they get one, so that any model can call them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

Known = tuple[str, Mapping[str, Any]]
"""What a tool is for, and the schema of what it takes."""


def _text(about: str) -> dict[str, Any]:
    return {"type": "string", "description": about}


def _known(about: str, required: tuple[str, ...], **properties: Mapping[str, Any]) -> Known:
    return about, {"type": "object", "properties": properties, "required": list(required)}


_LINES: Final = {
    "type": "array",
    "items": {"type": "integer"},
    "minItems": 2,
    "maxItems": 2,
    "description": "Of view: the first and the last line, counted from 1; -1 is the file's last one.",
}
_LINE: Final = {"type": "integer", "minimum": 0, "description": "Of insert: the line that the text comes behind; 0: none."}


def _files(about: str, insert: str, *more: str, **others: Mapping[str, Any]) -> Known:
    """`insert` is the field with the text to insert, which older editors take from that of the new text."""
    commands = ("view", "create", "str_replace", "insert", *more)
    properties: dict[str, Mapping[str, Any]] = {
        "command": {"type": "string", "enum": list(commands), "description": "What is to be done."},
        "path": _text("The absolute path of a file, or to view, of a folder."),
        "view_range": _LINES,
        "file_text": _text("Of create: all that the file is to have."),
        "old_str": _text("Of str_replace: what is there, exactly once."),
        "new_str": _text("Of str_replace: what is to be there."),
        "insert_line": _LINE,
    }
    properties[insert] = _text("Of insert: the text." if insert != "new_str" else "Of str_replace and insert: the new text.")
    required = ("command",) if "rename" in more else ("command", "path")
    return _known(about, required, **properties, **others)


_BASH: Final = _known(
    "Runs a command in a shell that stays open between calls, and tells what it printed.",
    (),
    command=_text("The command; needed unless the shell is to be restarted."),
    restart={"type": "boolean", "description": "Begin with a new shell."},
)
_EDITOR: Final = _files("Shows, writes and changes text files.", "insert_text")
_OLD_EDITOR: Final = _files("Shows, writes and changes text files.", "new_str", "undo_edit")
_MEMORY: Final = _files(
    "Keeps notes for later conversations as files below /memories. Look there before you begin.",
    "insert_text",
    "delete",
    "rename",
    old_path=_text("Of rename: what it is called."),
    new_path=_text("Of rename: what it is to be called."),
)


def find(kind: str, name: str) -> Known | None:
    """By a tool's type, which ends in the date of its version, and its name; None of a tool that clients cannot run."""
    match kind.rpartition("_")[0]:
        case "bash":
            return _BASH
        case "text_editor":
            return _OLD_EDITOR if name == "str_replace_editor" else _EDITOR
        case "memory":
            return _MEMORY
    return None
