"""What a hub finds, honest and hostile."""

from __future__ import annotations

import json

import pytest

from lmlite.errors import HubError
from lmlite.hub.http import Client, Interrupt
from lmlite.hub.search import BYTES_MAX, Found, read, search
from lmlite.hub.site import Site
from tests.hub import misbehaving
from tests.hub.misbehaving import Act, answer


def found(act: Act) -> list[Found]:
    with misbehaving.running({}) as hub:
        hub.on("/api/models?", act)
        return search(Client(Site(hub.url)), "falcon & co", Interrupt())


def test_preferred_owners_come_first_then_the_most_downloaded() -> None:
    listed = [{"id": f"{owner}/falcon", "downloads": n} for n, owner in enumerate(("a", "b", "TheBloke", "bartowski"))]
    repos = [entry.repo for entry in found(answer(200, json.dumps(listed).encode()))]
    assert repos == ["bartowski/falcon", "TheBloke/falcon", "b/falcon", "a/falcon"]


def test_entries_that_are_no_repositories_are_left_out() -> None:
    ids = [{"id": id} for id in (5, "a", "a/b/c", "../x", "a/x\x1b")]
    assert read([None, 5, {}, *ids, {"id": "a/b", "downloads": "9"}]) == [Found("a/b", 0)]


@pytest.mark.parametrize("content", [b"", b"{}", b"[", b"[" * 100_000, b" " * (BYTES_MAX + 1)])
def test_answer_that_is_no_list_or_too_long_is_refused(content: bytes) -> None:
    with pytest.raises(HubError):
        found(answer(200, content))


@pytest.mark.parametrize("status", [401, 429, 500])
def test_refusal_is_told(status: int) -> None:
    with pytest.raises(HubError, match=str(status)):
        found(answer(status))


def test_mirror_without_a_search_says_what_to_do() -> None:
    with pytest.raises(HubError, match="cannot be searched .*; name a model as owner/name"):
        found(answer(404))
