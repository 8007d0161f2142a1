"""What proxies say of who asks: believed of those that are trusted, of nobody else."""

from __future__ import annotations

from typing import Any

import pytest

from lmlite.errors import HttpError
from lmlite.wire import guard
from lmlite.wire.forwarded import Proxies, look
from lmlite.wire.guard import Policy

NEAR = ("10.0.0.2", 40000)
FILE = ""
"""What the far end of a socket file is called."""
PROXIES = Proxies.of(["10.0.0.2", "10.1.0.0/16", "fd00::/8"])
HEADERS = {
    "host": "lmlite:1234",
    "x-forwarded-for": "203.0.113.7",
    "x-forwarded-host": "ai.example",
    "x-forwarded-proto": "https",
}


@pytest.mark.parametrize("proxies", [Proxies(), Proxies.of(["10.0.0.3"]), Proxies.of(["unix"])])
def test_what_nobody_trusted_says_is_not_looked_at(proxies: Proxies) -> None:
    asking = look(proxies, NEAR, HEADERS, False)
    assert (asking.client, asking.headers, asking.secure) == ("10.0.0.2", HEADERS, False)


def test_a_trusted_proxy_tells_who_asks_by_which_name_and_how() -> None:
    asking = look(PROXIES, NEAR, HEADERS, False)
    assert (asking.client, asking.headers["host"], asking.secure) == ("203.0.113.7", "ai.example", True)
    assert HEADERS["host"] == "lmlite:1234"


@pytest.mark.parametrize(
    ("said", "client"),
    [
        ("", "10.0.0.2"),
        ("198.51.100.1, 203.0.113.7", "203.0.113.7"),  # the first is what the client said of itself
        ("198.51.100.1, 203.0.113.7, 10.1.2.3", "203.0.113.7"),
        ("203.0.113.7, unknown, 10.1.2.3", "10.1.2.3"),
        ("nonsense", "10.0.0.2"),
        ("10.1.2.3", "10.1.2.3"),
        ("203.0.113.7:4711", "203.0.113.7"),
        ("[2001:db8::7]:4711", "2001:db8::7"),
        ("2001:db8::7", "2001:db8::7"),
        ("2001:db8::7, fd00::1", "2001:db8::7"),
        ("::ffff:203.0.113.7", "203.0.113.7"),
        ("203.0.113.7 ,\t10.1.0.9", "203.0.113.7"),
    ],
)
def test_the_client_is_the_last_that_is_no_trusted_proxy(said: str, client: str) -> None:
    assert look(PROXIES, NEAR, {"x-forwarded-for": said}, False).client == client


@pytest.mark.parametrize(
    ("peer", "trusted"),
    [
        (("10.1.255.255", 1), True),
        (("10.2.0.0", 1), False),
        (("::ffff:10.0.0.2", 1, 0, 0), True),
        (("fd12::1%eth0", 1, 0, 2), True),
        (("::1", 1, 0, 0), False),
        (FILE, False),
        (None, False),
    ],
)
def test_networks_are_trusted_as_they_were_named(peer: Any, trusted: bool) -> None:
    assert (look(PROXIES, peer, HEADERS, False).client == "203.0.113.7") is trusted


def test_a_proxy_behind_a_socket_file_has_a_word_of_its_own() -> None:
    assert look(Proxies.of(["unix"]), FILE, HEADERS, False).client == "203.0.113.7"


def test_a_name_that_passed_several_proxies_is_the_last_ones() -> None:
    headers = {"host": "lmlite", "x-forwarded-host": "localhost, evil.example", "x-forwarded-proto": "http"}
    asking = look(PROXIES, NEAR, headers, True)
    assert (asking.headers["host"], asking.secure) == ("evil.example", False)


def test_the_guard_asks_for_the_name_that_the_client_used() -> None:
    policy = Policy.of(["127.0.0.1"], ["ai.example"], (), ["10.0.0.2"])
    for name, refused in (("ai.example", False), ("evil.example", True), ("not a name", True)):
        asking = look(policy.proxies, NEAR, {**HEADERS, "x-forwarded-host": name}, False)
        if refused:
            with pytest.raises(HttpError):
                guard.check(policy, asking.headers, False, asking.secure)
        else:
            guard.check(policy, asking.headers, False, asking.secure)


@pytest.mark.parametrize(
    ("origin", "let_in"),
    [("https://ai.example", True), ("http://ai.example", False), ("https://evil.example", False)],
)
def test_a_page_that_came_without_tls_is_another_origin(origin: str, let_in: bool) -> None:
    policy = Policy.of(["127.0.0.1"], ["ai.example"], (), ["10.0.0.2"])
    asking = look(policy.proxies, NEAR, {**HEADERS, "origin": origin}, False)
    if let_in:
        assert guard.check(policy, asking.headers, False, asking.secure) == ()
    else:
        with pytest.raises(HttpError):
            guard.check(policy, asking.headers, False, asking.secure)
