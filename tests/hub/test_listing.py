"""A hub's list of files, honest and hostile."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from lmlite.download import RemoteFile
from lmlite.errors import AccessDenied, HubError, NothingToDownload
from lmlite.hub import listing
from lmlite.hub.http import Client, Interrupt
from lmlite.hub.listing import Listing, fetch, read
from lmlite.hub.names import Wanted
from lmlite.hub.site import Site
from tests.hub import misbehaving
from tests.hub.misbehaving import COMMIT, Hub

WANTED = Wanted("acme", "falcon")
SHA256 = "ab" * 32


@pytest.fixture
def hub() -> Iterator[Hub]:
    with misbehaving.running({"acme/falcon": {"a.gguf": b"content", "b/c.gguf": b"more", "README.md": b"x"}}) as hub:
        yield hub


def fetched(hub: Hub, wanted: Wanted = WANTED) -> Listing:
    return fetch(Client(Site(hub.url)), wanted, Interrupt())


def sibling(name: Any = "a.gguf", size: Any = 7, sha256: Any = SHA256, **more: Any) -> dict[str, Any]:
    return {"rfilename": name, "size": size, "lfs": {"sha256": sha256, "size": size}, **more}


def test_gguf_files_are_listed_with_size_checksum_and_commit(hub: Hub) -> None:
    listed = fetched(hub)
    assert listed == Listing(
        "acme/falcon",
        COMMIT,
        (
            RemoteFile("a.gguf", 7, f"sha256:{misbehaving.sha256(b'content')}"),
            RemoteFile("b/c.gguf", 4, f"sha256:{misbehaving.sha256(b'more')}"),
        ),
    )
    fetched(hub, Wanted("acme", "falcon", "refs/pr/1"))
    assert [asked.path for asked in hub.asked] == [
        "/api/models/acme/falcon?blobs=true",
        "/api/models/acme/falcon/revision/refs%2Fpr%2F1?blobs=true",
    ]


def test_the_hubs_spelling_of_the_repository_is_taken_and_another_name_is_not(hub: Hub) -> None:
    assert fetched(hub, Wanted("ACME", "Falcon")).repo == "acme/falcon"
    assert read({"id": "evil/../x", "siblings": []}, WANTED).repo == "acme/falcon"


def test_files_that_git_holds_itself_have_gits_checksum() -> None:
    (file,) = read({"siblings": [{"rfilename": "a.gguf", "size": 3, "blobId": "ab" * 20}]}, WANTED).files
    assert file.digest == f"git:{'ab' * 20}"


@pytest.mark.parametrize(
    "name",
    ["/x.gguf", "../x.gguf", "a/../../x.gguf", "a\\..\\x.gguf", "C:\\x.gguf", "x\0.gguf", "", 5, None, "../../README.md"],
)
def test_a_name_that_leaves_the_repository_refuses_the_list(name: Any) -> None:
    with pytest.raises(HubError):
        read({"siblings": [sibling(), sibling(name)]}, WANTED)


@pytest.mark.parametrize(
    "name",
    ["Screen at 3.04.05\u202fPM.png", "images/caf\u00e9\u00a0x.png", "\U0001f469\u200d\U0001f4bb.png", "a:b.md", "x\\y.png",
     "x" * 300 + ".md", ".cache/x\u00a0.gguf", "a/b/x\u00a0.gguf"],
)  # fmt: skip
def test_an_odd_name_of_what_is_not_offered_refuses_nothing(name: str) -> None:
    assert [file.name for file in read({"siblings": [sibling(name), sibling()]}, WANTED).files] == ["a.gguf"]


@pytest.mark.parametrize("name", ["x\u202e.gguf", "Q4/x\u00a0.gguf", "x" * 300 + ".gguf"])
def test_an_odd_name_of_what_could_be_fetched_refuses_the_list(name: str) -> None:
    with pytest.raises(HubError, match="lists a file whose name"):
        read({"siblings": [sibling(), sibling(name)]}, WANTED)


def test_names_that_differ_in_case_only_refuse_the_list() -> None:
    with pytest.raises(HubError, match="lists both"):
        read({"siblings": [sibling("a.gguf"), sibling("A.gguf")]}, WANTED)


def test_files_that_no_catalogue_would_see_are_not_offered() -> None:
    names = (".download/x.gguf", "a/b/c.gguf", "model.safetensors", ".gitattributes")
    assert read({"siblings": [sibling(name) for name in names]}, WANTED).files == ()


@pytest.mark.parametrize("size", [0, -1, None, "7", 7.0, True, 2**60])
def test_a_size_that_is_none_refuses_the_list(size: Any) -> None:
    with pytest.raises(HubError, match="no size"):
        read({"siblings": [sibling(size=size)]}, WANTED)


@pytest.mark.parametrize("sha256", [None, "", "zz" * 32, "ab" * 31, 5])
def test_a_file_without_checksum_refuses_the_list(sha256: Any) -> None:
    with pytest.raises(HubError, match="no checksum"):
        read({"siblings": [sibling(sha256=sha256)]}, WANTED)


@pytest.mark.parametrize("listed", [None, [], "x", {}, {"siblings": {}}, {"siblings": [None]}, {"siblings": [[]]}])
def test_what_is_no_list_is_refused(listed: Any) -> None:
    with pytest.raises(HubError):
        read(listed, WANTED)


@pytest.mark.parametrize("content", [b"", b"<html>", b"[" * 100_000, b"\xff\xfe", b'{"siblings":' + b"9" * 5000 + b"}"])
def test_what_is_not_json_is_refused(hub: Hub, content: bytes) -> None:
    hub.on("/api/", misbehaving.answer(200, content))
    with pytest.raises(HubError):
        fetched(hub)


def test_a_list_of_gigabytes_is_cut_off(hub: Hub) -> None:
    hub.on(
        "/api/",
        misbehaving.raw(b"HTTP/1.1 200 OK\r\nContent-Length: 4294967296\r\n\r\n"),
        misbehaving.chunked(b" " * 65536, endless=True),
        misbehaving.raw(b"HTTP/1.0 200 OK\r\n\r\n" + b" " * (listing.BYTES_MAX + 1)),
    )
    for _ in range(3):
        with pytest.raises(HubError, match="make sense"):
            fetched(hub)


@pytest.mark.parametrize("entry", [b"{}", b"[]", b"1", b'"a,b"'])
def test_a_list_that_would_keep_others_waiting_while_it_is_parsed_is_refused(hub: Hub, entry: bytes) -> None:
    hub.on("/api/", misbehaving.answer(200, b'{"siblings":[' + b",".join([entry] * 1_000_000) + b"]}"))
    with pytest.raises(HubError, match="files holds more than 100000 values"):
        fetched(hub)


def test_ten_thousand_files_are_listed_whatever_stands_in_their_names(hub: Hub) -> None:
    siblings = [sibling(f"{i}, [{{x}}].gguf", blobId="c" * 40, xetHash="d" * 64) for i in range(10_000)]
    hub.on("/api/", misbehaving.answer(200, json.dumps({"siblings": siblings}).encode()))
    assert len(fetched(hub).files) == 10_000


def test_a_compressed_list_is_never_inflated(hub: Hub) -> None:
    hub.on("/api/", misbehaving.answer(200, b"\x1f\x8b" + b"\0" * 100, Content_Encoding="gzip"))
    with pytest.raises(HubError, match="compressed"):
        fetched(hub)
    assert hub.asked[0].headers["accept-encoding"] == "identity"


def test_a_list_that_ends_too_soon_may_be_asked_for_again(hub: Hub) -> None:
    hub.on("/api/", misbehaving.raw(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{}"))
    with pytest.raises(HubError, match="after 2 of 99") as refused:
        fetched(hub)
    assert refused.value.retry


def test_what_is_not_there_not_given_or_not_now_is_told_apart(hub: Hub) -> None:
    hub.on("/api/", *(misbehaving.answer(status, b"<html>") for status in (401, 404, 403, 503, 418)))
    for expected in (NothingToDownload, NothingToDownload, AccessDenied, HubError, HubError):
        with pytest.raises(expected):
            fetched(hub)
