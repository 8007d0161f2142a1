"""One file from the hub to the disk: whole and verified or not there, resumed only where it is the same file."""

from __future__ import annotations

import errno
import fcntl
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from lmlite.download import RemoteFile
from lmlite.errors import HubError
from lmlite.hub import transfer
from lmlite.hub.http import Client, Interrupted
from lmlite.hub.site import Site
from lmlite.hub.transfer import Place, Transfer
from tests.hub import misbehaving
from tests.hub.misbehaving import Handler, Hub, answer, chunked, cut_after, sha256

CONTENT = random.Random(1).randbytes(600_000)  # several chunks
OTHER = random.Random(2).randbytes(len(CONTENT))
FILE = RemoteFile("a.gguf", len(CONTENT), f"sha256:{sha256(CONTENT)}")
CUT = 250_000


@pytest.fixture
def hub() -> Iterator[Hub]:
    with misbehaving.running({"acme/falcon": {"a.gguf": CONTENT}}) as hub:
        yield hub


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path / "acme" / "falcon", FILE)


def run(hub: Hub, place: Place) -> Transfer:
    made = Transfer(Client(Site(hub.url)), "acme/falcon", "main", place)
    made.run()
    return made


def fails(hub: Hub, place: Place, match: str, retry: bool) -> HubError:
    with pytest.raises(HubError, match=match) as failed:
        run(hub, place)
    assert failed.value.retry is retry
    assert not place.ready.exists() and not place.target.exists()
    return failed.value


def begun(hub: Hub, place: Place) -> None:
    """The transfer was cut after some bytes."""
    hub.on("/store/", cut_after(CUT))
    fails(hub, place, f"ended after {CUT} of {len(CONTENT)}", True)
    assert place.part.read_bytes() == CONTENT[:CUT]


def test_a_file_is_ready_when_it_is_whole_and_then_gets_its_name(hub: Hub, place: Place) -> None:
    done = run(hub, place)
    assert place.ready.read_bytes() == CONTENT and not place.target.exists()
    assert done.have == done.received == len(CONTENT)
    assert sorted(path.name for path in place.part.parent.iterdir()) == [place.ready.name]
    place.publish()
    place.publish()
    assert place.target.read_bytes() == CONTENT and not place.ready.exists()


def test_a_ready_file_and_one_in_place_are_not_fetched_again(hub: Hub, place: Place) -> None:
    run(hub, place)
    assert run(hub, place).have == len(CONTENT)
    place.publish()
    assert run(hub, place).have == len(CONTENT)
    assert len(hub.files_asked()) == 1


def test_another_file_of_the_same_size_in_its_place_is_replaced(hub: Hub, place: Place) -> None:
    place.target.parent.mkdir(parents=True)
    place.target.write_bytes(OTHER)
    run(hub, place)
    assert place.target.read_bytes() == OTHER  # until all is verified
    place.publish()
    assert place.target.read_bytes() == CONTENT


# ---- resuming --------------------------------------------------------------------------------------------------------


def test_what_was_received_is_not_fetched_again(hub: Hub, place: Place) -> None:
    begun(hub, place)
    done = run(hub, place)
    assert place.ready.read_bytes() == CONTENT
    assert (done.have, done.received) == (len(CONTENT), len(CONTENT) - CUT)
    asked = hub.files_asked()[-1]
    assert (asked.range, asked.headers["if-range"]) == (f"bytes={CUT}-", misbehaving.etag_of(CONTENT))


def test_a_file_that_changed_at_the_hub_is_fetched_from_the_start(hub: Hub, place: Place) -> None:
    begun(hub, place)
    hub.on("/store/", lambda handler: misbehaving.send(handler, CONTENT, '"other"'))
    assert run(hub, place).received == len(CONTENT)
    assert place.ready.read_bytes() == CONTENT


@pytest.mark.parametrize("etag", [None, 'W/"weak"', "bare", '"a"b"', '"' + "x" * 600 + '"'])
def test_without_a_strong_etag_nothing_is_resumed(hub: Hub, place: Place, etag: str | None) -> None:
    headers = {} if etag is None else {"ETag": etag}

    def cut(handler: Handler) -> None:
        handler.begin(200, {"Content-Length": str(len(CONTENT)), **headers})
        handler.wfile.write(CONTENT[:CUT])

    hub.on("/store/", cut)
    fails(hub, place, "ended after", True)
    run(hub, place)
    assert hub.files_asked()[-1].range is None
    assert place.ready.read_bytes() == CONTENT


def test_a_rest_of_another_file_is_not_taken(hub: Hub, place: Place) -> None:
    begun(hub, place)
    where = {"Content_Range": f"bytes {CUT}-{len(CONTENT) - 1}/{len(CONTENT)}"}
    hub.on("/store/", answer(206, OTHER[CUT:], ETag='"other"', **where))
    fails(hub, place, "another file", True)
    run(hub, place)
    assert hub.files_asked()[-1].range is None
    assert place.ready.read_bytes() == CONTENT


@pytest.mark.parametrize(
    "where",
    [None, "bytes 0-599999/600000", f"bytes {CUT}-599999/600001", f"bytes {CUT}-599998/600000", f"bytes {CUT}-599999/*", "x"],
)
@pytest.mark.parametrize("always", [False, True])
def test_another_part_than_the_one_asked_for_is_not_taken_and_all_is_fetched_from_the_start(
    hub: Hub, place: Place, where: str | None, always: bool
) -> None:
    begun(hub, place)
    headers = {} if where is None else {"Content_Range": where}
    wrong = answer(206, OTHER[CUT:], **headers)
    hub.on("/store/", *[wrong, wrong][: 1 + always])
    if always:  # to who asks for all, too
        fails(hub, place, "status 206", False)
    done = run(hub, place)
    assert hub.files_asked()[-1].range is None
    assert (done.have, done.received) == (len(CONTENT), len(CONTENT))
    assert place.ready.read_bytes() == CONTENT


def test_a_transfer_that_began_anew_and_was_cut_goes_on_from_there(hub: Hub, place: Place) -> None:
    begun(hub, place)
    hub.on("/store/", answer(206, OTHER[CUT:]), cut_after(100_000))
    fails(hub, place, f"ended after 100000 of {len(CONTENT)}", True)
    assert run(hub, place).received == len(CONTENT) - 100_000
    assert place.ready.read_bytes() == CONTENT


def test_a_rest_that_was_not_asked_for_is_not_taken(hub: Hub, place: Place) -> None:
    hub.on("/store/", answer(206, CONTENT[CUT:], Content_Range=f"bytes {CUT}-599999/600000"))
    fails(hub, place, "status 206", False)


def test_a_range_that_the_hub_does_not_have_begins_anew(hub: Hub, place: Place) -> None:
    begun(hub, place)
    hub.on("/store/", answer(416))
    fails(hub, place, "another file", True)
    assert run(hub, place).received == len(CONTENT)


def test_bytes_that_went_bad_on_the_disk_are_found_and_fetched_again(hub: Hub, place: Place) -> None:
    begun(hub, place)
    place.part.write_bytes(OTHER[:CUT])
    fails(hub, place, "checksum", True)
    assert not place.part.exists()
    assert run(hub, place).received == len(CONTENT)


def test_a_part_that_is_longer_than_the_file_begins_anew(hub: Hub, place: Place) -> None:
    begun(hub, place)
    place.part.write_bytes(CONTENT + b"x")
    run(hub, place)
    assert hub.files_asked()[-1].range is None


def test_a_part_that_another_process_writes_is_left_to_it(hub: Hub, place: Place) -> None:
    begun(hub, place)
    with open(place.part, "rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)  # as from another process: a lock belongs to its open file
        fails(hub, place, "being fetched already", True)
    assert place.part.read_bytes() == CONTENT[:CUT]
    run(hub, place)
    assert place.ready.read_bytes() == CONTENT


def test_a_part_that_another_process_has_finished_meanwhile_is_not_written_again(
    hub: Hub, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun(hub, place)
    flock = fcntl.flock

    def late(fd: int, operation: int) -> None:
        place.part.rename(place.target)
        flock(fd, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(HubError, match="being fetched already"):
        run(hub, place)
    assert place.target.read_bytes() == CONTENT[:CUT]


def test_a_part_that_is_whole_needs_no_hub(hub: Hub, place: Place) -> None:
    place.part.parent.mkdir(parents=True)
    place.part.write_bytes(CONTENT)
    run(hub, place)
    assert hub.asked == [] and place.ready.read_bytes() == CONTENT


# ---- bodies that are not what was listed -----------------------------------------------------------------------------


def test_a_wrong_checksum_is_never_ready(hub: Hub, place: Place) -> None:
    hub.on("/store/", then=answer(200, OTHER, ETag='"x"'))
    fails(hub, place, "a.gguf does not have the checksum that the hub lists", False)
    assert not place.part.exists()


@pytest.mark.parametrize("n", [1, len(CONTENT) - 1, len(CONTENT) + 1, 10 * len(CONTENT)])
def test_an_announced_length_other_than_the_listed_one_is_refused_unread(hub: Hub, place: Place, n: int) -> None:
    hub.on("/store/", misbehaving.raw(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % n))
    fails(hub, place, f"sends {n} bytes of a file that has {len(CONTENT)} more", False)


def test_a_body_without_announced_length_is_taken_if_it_is_right(hub: Hub, place: Place) -> None:
    hub.on("/store/", chunked(CONTENT))
    run(hub, place)
    assert place.ready.read_bytes() == CONTENT


def test_bodies_that_are_too_short_too_long_or_endless_are_not(hub: Hub, place: Place) -> None:
    hub.on("/store/", chunked(CONTENT[:-1]), chunked(CONTENT + b"x"), chunked(CONTENT, endless=True))
    fails(hub, place, "ended after", True)
    for _ in range(2):
        place.discard()
        fails(hub, place, "sends more than", False)
        assert not place.part.exists()


def test_a_compressed_body_is_not_inflated(hub: Hub, place: Place) -> None:
    hub.on("/store/", answer(200, CONTENT, Content_Encoding="gzip"))
    fails(hub, place, "compressed", False)


def test_a_file_that_git_holds_has_gits_checksum(hub: Hub, tmp_path: Path) -> None:
    place = Place(tmp_path, RemoteFile("a.gguf", len(CONTENT), f"git:{misbehaving.git(CONTENT)}"))
    run(hub, place)
    assert place.ready.read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("status", "retry", "says"),
    [(401, False, "HF_TOKEN"), (403, False, "this token"), (404, False, "any more"), (410, False, "410"), (429, True, "fewer"),
     (500, True, "500"), (503, True, "503"), (408, True, "408"), (204, False, "204")],
)  # fmt: skip
def test_refusals_are_told_and_retried_where_it_helps(hub: Hub, place: Place, status: int, retry: bool, says: str) -> None:
    hub.on("/store/", answer(status, Retry_After="7"))
    assert fails(hub, place, says, retry).retry_after_s == 7


# ---- the disk --------------------------------------------------------------------------------------------------------


def test_a_full_disk_keeps_what_is_there(hub: Hub, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = transfer.append

    def full(fd: int, piece: bytes) -> None:
        if os.fstat(fd).st_size + len(piece) > CUT:
            os.write(fd, piece[:100])  # a disk takes what fits
            raise OSError(errno.ENOSPC, "No space left on device")
        whole(fd, piece)

    with monkeypatch.context() as patch:
        patch.setattr(transfer, "append", full)
        with pytest.raises(OSError, match="No space"):
            run(hub, place)
    kept = place.part.stat().st_size
    assert kept >= 100 and not place.ready.exists()
    assert run(hub, place).received == len(CONTENT) - kept
    assert place.ready.read_bytes() == CONTENT


def test_a_hidden_folder_that_another_job_takes_away_as_empty_is_made_anew(
    hub: Hub, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    opens, left = os.open, [1, 2]

    def late(path: object, *args: int) -> int:
        if path == place.part and left:
            left.pop()
            transfer.tidy(place.target.parent, place.target.parent.parent.parent)
        return opens(path, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", late)
    run(hub, place)
    assert left == [] and place.ready.read_bytes() == CONTENT


def test_a_folder_of_a_quantization_that_another_job_takes_away_as_empty_is_made_anew(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Place(tmp_path / "acme" / "falcon", RemoteFile("Q8_0/a.gguf", FILE.size, FILE.digest))
    hub.repos["acme/falcon"] = {"Q8_0/a.gguf": CONTENT}
    run(hub, place)
    replaces, left = os.replace, [1, 2]

    def late(source: Path, target: Path) -> None:
        if left:
            left.pop()
            transfer.tidy(target.parent, tmp_path)
        replaces(source, target)

    monkeypatch.setattr(os, "replace", late)
    place.publish()
    assert left == [] and place.target.read_bytes() == CONTENT


def test_a_transfer_that_is_cut_leaves_no_name_behind(hub: Hub, place: Place) -> None:
    begun(hub, place)
    made = Transfer(Client(Site(hub.url)), "acme/falcon", "main", place)
    made.interrupt.cut()
    with pytest.raises(Interrupted):
        made.run()
    assert not place.ready.exists() and place.part.read_bytes() == CONTENT[:CUT]


def test_two_transfers_never_write_to_one_file(hub: Hub, place: Place) -> None:
    begun(hub, place)
    other = os.open(place.part, os.O_RDWR)
    transfer.hold(other, place.part)
    fails(hub, place, "being fetched already", True)
    assert place.part.read_bytes() == CONTENT[:CUT]
    os.close(other)
    run(hub, place)
    assert place.ready.read_bytes() == CONTENT


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK])
def test_a_file_comes_to_a_disk_that_has_no_locks(
    hub: Hub, place: Place, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(fd: int, operation: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    run(hub, place)
    assert place.ready.read_bytes() == CONTENT


def test_another_failure_of_a_lock_is_told(hub: Hub, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(fd: int, operation: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        run(hub, place)


def test_names_of_any_kind_are_asked_for_as_they_are(hub: Hub, tmp_path: Path) -> None:
    name = "Q4 & more/é #1?.gguf"
    hub.repos["acme/falcon"] = {name: CONTENT}
    place = Place(tmp_path, RemoteFile(name, FILE.size, FILE.digest))
    run(hub, place)
    place.publish()
    assert (tmp_path / name).read_bytes() == CONTENT
