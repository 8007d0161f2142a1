"""`lmlite import`: puts a GGUF file in its place below the models folder, where the catalogue finds it.

Nothing is touched before the file's header was read, and no file is ever overwritten. All parts of a split model go
together. Whose model it is comes from `--user-repo`, from the folders that it lies in, or from its metadata; what tells
nothing goes to `imported-models/uncategorized`, as with LM Studio.
"""

from __future__ import annotations

import argparse
import errno
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ..core.disk.model_files import UNCATEGORIZED
from ..errors import LmError
from ..records import dataclass
from .terminal import Bar, choose, decimal_size, escaped, is_interactive, put, put_json

if TYPE_CHECKING:
    from ..core.disk.gguf import Header
    from ..store.home import Home

PART: Final = re.compile(r"(.+)-([0-9]{5})-of-([0-9]{5})(\.gguf)", re.IGNORECASE | re.DOTALL)
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
"""Of a publisher and of a repository: what Hugging Face allows, and nothing that leads out of a folder."""
HUB_FOLDER: Final = re.compile(rf"models--({NAME.pattern}?)--({NAME.pattern})")
"""A repository in Hugging Face's cache."""
REPO_URL: Final = re.compile(rf"https://huggingface\.co/({NAME.pattern})/({NAME.pattern})/?")
MAX_PARTS: Final = 999
"""Of a split model, as the catalogue takes them."""
CHUNK: Final = 8 << 20
MODES: Final = {"move": "moved", "copy": "copied", "hard_link": "hard linked", "symbolic_link": "linked"}

Repo = tuple[str, str]
"""Publisher and name."""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "import",
        help="put a GGUF file into the models folder",
        description="Moves a GGUF file, with all its parts, to publisher/repository/ below the models folder.",
        allow_abbrev=False,
    )
    parser.add_argument("file", type=Path, help="a GGUF file; of a split model, any of its parts")
    parser.add_argument("--user-repo", type=user_repo, metavar="PUBLISHER/REPO", help="whose model it is (default: guessed)")
    how = parser.add_mutually_exclusive_group()
    for short, flag, mode, help in (
        ("-c", "--copy", "copy", "copy it"),
        ("-l", "--hard-link", "hard_link", "hard link it"),
        ("-L", "--symbolic-link", "symbolic_link", "make a symbolic link to it"),
    ):
        how.add_argument(short, flag, dest="mode", action="store_const", const=mode, help=f"{help} instead of moving it")
    parser.add_argument("--dry-run", action="store_true", help="tell what would be done and do nothing")
    parser.add_argument("-y", "--yes", action="store_true", help="ask nothing")
    parser.add_argument("--json", action="store_true", help="tell the result as JSON")
    parser.set_defaults(run=import_file, mode="move")


def user_repo(text: str) -> Repo:
    publisher, _, name = text.partition("/")
    if NAME.fullmatch(publisher) and NAME.fullmatch(name):
        return publisher, name
    raise argparse.ArgumentTypeError(f"{text!r} is not a name like publisher/repository")


def import_file(arguments: argparse.Namespace, environ: Mapping[str, str]) -> int:
    from ..config import gather
    from ..store.home import Home

    parts = parts_of(Path(os.path.abspath(arguments.file.expanduser())))
    if arguments.mode == "move" and any(part.is_symlink() for part in parts):
        # Its target is somebody else's, and the link may not lead there from another folder.
        raise LmError(f"{escaped(str(parts[0]))} is a symbolic link: copy (-c), hard link (-l) or link (-L) it")
    headers = [checked(part) for part in parts]
    repo = arguments.user_repo or chosen_repo(guesses(parts[0], headers[0]), ask=not arguments.yes)
    home = Home(gather({}, environ).home)
    folder = home.models.joinpath(*repo)
    steps = [Step(part, folder / part.name) for part in parts]
    for step in steps:
        if os.path.lexists(step.target):
            raise LmError(f"{escaped(str(step.target))} exists already.")
    if not arguments.dry_run:
        perform(steps, actions(home)[arguments.mode], arguments.mode)
    tell(steps, repo, arguments)
    return 0


@dataclass(slots=True, frozen=True)
class Step:
    source: Path
    target: Path


def tell(steps: Sequence[Step], repo: Repo, arguments: argparse.Namespace) -> None:
    if arguments.json:
        files = [{"source": str(step.source), "path": str(step.target)} for step in steps]
        put_json({"publisher": repo[0], "repo": repo[1], "mode": arguments.mode, "dryRun": arguments.dry_run, "files": files})
        return
    done = ("would be " if arguments.dry_run else "") + MODES[arguments.mode]
    for step in steps:
        put(f"File {done} to {escaped(str(step.target))}")


# ---- what is imported ------------------------------------------------------------------------------------------------


def parts_of(file: Path) -> list[Path]:
    """The file, or all parts of the model that it is a part of."""
    split = PART.fullmatch(file.name)
    if split is None:
        return [file]
    stem, count, ending = split[1], min(int(split[3]), MAX_PARTS), split[4]
    parts = [file.with_name(f"{stem}-{n:05d}-of-{split[3]}{ending}") for n in range(1, count + 1)]
    missing = [part.name for part in parts if not part.exists()]
    if missing and file.exists():
        raise LmError(f"{len(missing)} of {count} parts are missing beside it: {escaped(', '.join(missing[:4]))}")
    return [file] if missing else parts


def checked(file: Path) -> Header:
    """The header of a file that an engine could use as far as that tells."""
    from ..core.disk import gguf

    if not file.name.lower().endswith(".gguf"):
        raise LmError(f"{escaped(str(file))} cannot be imported: its name does not end in .gguf")
    try:
        header = gguf.read_header(file)
    except gguf.GgufError as error:
        raise LmError(f"{escaped(str(file))} cannot be imported: {error.reason}") from None
    if header.incomplete is not None:
        raise LmError(f"{escaped(str(file))} cannot be imported: {header.incomplete}")
    return header


# ---- whose it is -----------------------------------------------------------------------------------------------------


def guesses(file: Path, header: Header) -> list[Repo]:
    """Repositories that it may come from, the likeliest first, each once."""
    found = [*from_folders(file), *from_metadata(file, header)]
    return list(dict.fromkeys(repo for repo in found if all(map(NAME.fullmatch, repo))))


def from_folders(file: Path) -> list[Repo]:
    """Hugging Face's cache names the repository; so does a folder `models` with LM Studio's layout below it."""
    folders = file.parent.parts
    found: list[Repo] = []
    for folder in reversed(folders):
        if hub := HUB_FOLDER.fullmatch(folder):
            found.append((hub[1], hub[2]))
    if "models" in folders:
        below = folders[len(folders) - folders[::-1].index("models") :]
        if 2 <= len(below) <= 3:  # the third: a folder per quantization
            found.append((below[0], below[1]))
    return found


def from_metadata(file: Path, header: Header) -> list[Repo]:
    """Who made the file, with the model's name as such repositories have it: `Falcon-7B-Chat-GGUF`."""
    found: list[Repo] = []
    for key in ("general.repo_url", "general.source.repo_url", "general.source.url"):
        if url := REPO_URL.fullmatch(header.text(key) or ""):
            found.append((url[1], url[2]))
    name = f"{model_name(file)}-GGUF"
    for key in ("general.quantized_by", "general.organization", "general.author"):
        if publisher := as_name(header.text(key) or ""):
            found.append((publisher, name))
    return found


def model_name(file: Path) -> str:
    """The file's name without part, quantization and ending."""
    from ..core.disk.model_files import file_name

    return as_name(file_name(file.name).base) or "model"


def as_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")[:96]


def chosen_repo(found: Sequence[Repo], ask: bool) -> Repo:
    """The likeliest, unless the user at the terminal takes another."""
    choices = [*found, UNCATEGORIZED]
    if not ask or not is_interactive():
        return choices[0]
    index = choose("Where does it belong? Another place: --user-repo", ["/".join(repo) for repo in choices])
    if index is None:
        raise LmError("Nothing was imported.")
    return choices[index]


# ---- putting it there ------------------------------------------------------------------------------------------------


def actions(home: Home) -> dict[str, Callable[[Step], None]]:
    return {"move": move, "copy": copy, "hard_link": hard_link, "symbolic_link": partial(symbolic_link, approvals=home.links)}


def perform(steps: Sequence[Step], act: Callable[[Step], None], mode: str) -> None:
    """All of them or none: what was done is undone if one fails."""
    done: list[Step] = []
    try:
        steps[0].target.parent.mkdir(parents=True, exist_ok=True)
        for step in steps:
            act(step)
            done.append(step)
    except FileExistsError:
        undo(done, mode)
        raise LmError(f"{escaped(str(step.target))} exists already.") from None
    except OSError as error:
        undo(done, mode)
        raise LmError(f"{escaped(str(step.source))} cannot be imported: {why(error, mode)}") from None
    except BaseException:
        undo(done, mode)
        raise


def undo(done: Sequence[Step], mode: str) -> None:
    for step in reversed(done):
        if mode == "move":
            move(Step(step.target, step.source))
        else:
            step.target.unlink(missing_ok=True)


def why(error: OSError, mode: str) -> str:
    reason = (error.strerror or str(error)).lower()
    if mode == "hard_link" and error.errno == errno.EXDEV:
        return f"{reason}; a hard link needs one file system, so copy it with -c or move it"
    return reason


def move(step: Step) -> None:
    """On one file system without a moment in which the target is not whole; never over another file."""
    try:
        os.link(step.source, step.target)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.EACCES, errno.EMLINK, errno.ENOSYS):
            raise
        copy(step)
    os.unlink(step.source)


def copy(step: Step) -> None:
    """Under a hidden name that no catalogue lists until it is whole and on the disk."""
    size = step.source.stat().st_size
    free = shutil.disk_usage(step.target.parent).free
    if size > free:
        name = escaped(str(step.source))
        raise LmError(f"{name} cannot be copied: {decimal_size(size)} are needed, {decimal_size(free)} are free")
    part = step.target.with_name(f".{step.target.name[:200]}.{os.getpid()}.part")
    try:
        copy_bytes(step.source, part, size)
        shutil.copystat(step.source, part)
        rename_new(part, step.target)
    finally:
        part.unlink(missing_ok=True)


def copy_bytes(source: Path, part: Path, size: int) -> None:
    with open(source, "rb") as reading, open(part, "xb") as writing, Bar(size, f"Copying {escaped(source.name)}") as bar:
        while chunk := reading.read(CHUNK):
            writing.write(chunk)
            bar.update(writing.tell(), f"{decimal_size(writing.tell())} of {decimal_size(size)}")
        writing.flush()
        os.fsync(writing.fileno())


def rename_new(part: Path, target: Path) -> None:
    """Raises FileExistsError where `rename` would replace; file systems without links have to be trusted."""
    try:
        os.link(part, target)
    except FileExistsError:
        raise
    except OSError:
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, "exists", str(target)) from None
        part.rename(target)


def hard_link(step: Step) -> None:
    os.link(os.path.realpath(step.source), step.target)


def symbolic_link(step: Step, approvals: Path) -> None:
    """With the word that it may lead out of the models folder: the catalogue follows no others that do."""
    from ..core.disk.model_files import approval

    target = os.path.realpath(step.source)
    os.symlink(target, step.target)
    link = os.path.join(os.path.realpath(step.target.parent), step.target.name)
    word = approval(approvals, link, target)
    word.parent.mkdir(mode=0o700, exist_ok=True)
    word.write_bytes(os.fsencode(f"{link}\n{target}\n"))
