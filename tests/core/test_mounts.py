"""Which files can be looked at without waiting, by the table in which Linux tells of its mounts."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from lmlite.core.disk.mounts import Mount, at_hand, mounts

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="there is no such table")


def table(root: Path, *made: tuple[str, str]) -> Path:
    """A system with these mounts: where, and of which kind."""
    lines = (f"{30 + at} 1 8:{at} / {point} rw shared:{at} - {kind} dev rw\n" for at, (point, kind) in enumerate(made))
    return written(root, lines)


def written(root: Path, lines: Iterable[str]) -> Path:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/mountinfo").write_text("".join(lines))
    return root


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/models/a.gguf", True),
        ("/net/a.gguf", False),
        ("/network/a.gguf", True),  # another name that begins so
        ("/net/local/a.gguf", True),
        ("/net/local/on/top/a.gguf", False),
        ("/with space/a.gguf", False),
    ],
)
def test_the_deepest_mount_around_a_file_tells(tmp_path: Path, path: str, expected: bool) -> None:
    made = [("/", "ext4"), ("/net", "nfs4"), ("/net/local", "xfs"), ("/net/local/on", "autofs"), ("/with\\040space", "9p")]
    assert at_hand([Path(path)], table(tmp_path, *made)) is expected


def test_the_last_mount_at_a_place_hides_the_others(tmp_path: Path) -> None:
    root = table(tmp_path, ("/", "ext4"), ("/a", "nfs"), ("/a", "tmpfs"), ("/b", "ext4"), ("/b", "fuse.sshfs"))
    assert at_hand([Path("/a/x")], root) and not at_hand([Path("/b/x")], root)
    assert not at_hand([Path("/a/x"), Path("/b/x")], root)


def test_a_link_counts_as_what_it_leads_to(tmp_path: Path) -> None:
    far = tmp_path / "far"
    far.mkdir()
    (tmp_path / "link").symlink_to(far)
    root = table(tmp_path, ("/", "ext4"), (str(far), "cifs"))
    assert not at_hand([tmp_path / "link/a.gguf"], root) and at_hand([tmp_path / "other"], root)


def test_where_nothing_is_told_nothing_is_at_hand(tmp_path: Path) -> None:
    assert not at_hand([Path("/a.gguf")], tmp_path)


def test_lines_that_are_none_are_passed_over(tmp_path: Path) -> None:
    root = written(tmp_path, ["\n", "30 1\n", "31 1 8:1 /sub /a rw - ext4\n", "32 1 8:1 / /b rw - ext4 dev rw,x\n"])
    assert list(mounts(root)) == [Mount("/sub", "/a", "ext4", ()), Mount("/", "/b", "ext4", ("rw", "x"))]
