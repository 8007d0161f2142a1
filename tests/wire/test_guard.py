"""Which Host, Origin and Content-Type are let in, on which bind."""

from __future__ import annotations

import pytest

from lmlite.errors import HttpError
from lmlite.wire import guard
from lmlite.wire.guard import Policy

LOOPBACK = Policy.of(["127.0.0.1"])
ANYONE = Policy.of(["127.0.0.1"], allow_host=["*"])
LAN = Policy.of(["192.168.1.5"], allow_host=["Box.local"])
WILDCARD = Policy.of(["0.0.0.0"])
WILDCARD_6 = Policy.of(["::"])
PAGE = "https://page.example"


def refusal(policy: Policy, headers: dict[str, str], has_body: bool = False) -> int | None:
    try:
        guard.check(policy, headers, has_body)
    except HttpError as error:
        return error.status
    return None


@pytest.mark.parametrize("policy", [LOOPBACK, LAN, WILDCARD, WILDCARD_6])
@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", None),
        ("LOCALHOST:1234", None),
        ("localhost.", None),
        ("app.localhost:80", None),
        ("127.0.0.1:1234", None),
        ("127.8.9.1", None),
        ("[::1]:1234", None),
        ("[0:0:0:0:0:0:0:1]", None),
        ("evil.example", 403),
        ("localhost.evil.example", 403),
        ("evillocalhost", 403),
        ("127.0.0.1.evil.example", 403),
        ("127.1", 403),
        ("2130706433", 403),
        ("", 400),
        ("localhost:x", 400),
        ("localhost:", 400),
        ("a b", 400),
        ("user@localhost", 400),
        ("localhost/x", 400),
        ("[::1", 400),
    ],
)
def test_host(policy: Policy, host: str, status: int | None) -> None:
    assert refusal(policy, {"host": host}) == status


@pytest.mark.parametrize(
    ("policy", "host", "status"),
    [
        (LOOPBACK, "192.168.1.5", 403),
        (LAN, "192.168.1.5:1234", None),
        (LAN, "192.168.1.6", 403),
        (LAN, "box.LOCAL:1234", None),
        (WILDCARD, "10.0.0.7:1234", None),
        (WILDCARD_6, "[fe80::1]", None),
        (WILDCARD, "box.local", 403),
    ],
)
def test_host_by_what_the_server_is_bound_to(policy: Policy, host: str, status: int | None) -> None:
    assert refusal(policy, {"host": host}) == status


def test_http_1_0_client_without_host_is_let_in() -> None:
    assert refusal(LOOPBACK, {}) is None


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": PAGE},
        {"origin": "null"},
        {"origin": ""},
        {"origin": "http://localhost:3000"},
        {"origin": "http://localhost:1234.evil.example"},
        {"origin": "localhost:1234"},
        {"origin": "file://"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"sec-fetch-site": "same-origin, none"},
        {"sec-fetch-site": "cross-site", "origin": "http://localhost:1234"},
    ],
)
def test_requests_of_foreign_pages_are_refused(headers: dict[str, str]) -> None:
    assert refusal(LOOPBACK, {"host": "localhost:1234", **headers}) == 403


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://localhost:1234"},
        {"origin": "http://LocalHost:1234", "sec-fetch-site": "same-origin"},
        {"sec-fetch-site": "none"},
    ],
)
def test_requests_of_our_own_pages_pass_without_cors_headers(headers: dict[str, str]) -> None:
    assert guard.check(LOOPBACK, {"host": "localhost:1234", **headers}, False) == ()


def test_allowed_origin_passes_and_is_named() -> None:
    policy = Policy.of(["127.0.0.1"], allow_origin=["https://Page.example/"])
    headers = {"host": "localhost", "origin": PAGE, "sec-fetch-site": "cross-site"}
    assert guard.check(policy, headers, False) == (("Access-Control-Allow-Origin", PAGE), ("Vary", "Origin"))
    assert refusal(policy, {**headers, "origin": "https://other.example"}) == 403
    assert refusal(policy, {"host": "localhost", "sec-fetch-site": "cross-site"}) == 403


def test_any_origin() -> None:
    policy = Policy.of(["127.0.0.1"], allow_origin=["*"])
    assert guard.check(policy, {"host": "localhost", "origin": "null"}, False) == (
        ("Access-Control-Allow-Origin", "*"),
    )
    assert refusal(policy, {"host": "localhost", "sec-fetch-site": "cross-site"}) is None
    assert refusal(policy, {"host": "evil.example", "origin": PAGE}) == 403


@pytest.mark.parametrize(
    ("content_type", "browser", "status"),
    [
        ("application/json", True, None),
        ("Application/JSON; charset=utf-8", True, None),
        ("application/vnd.api+json", True, None),
        ("text/plain", True, 415),
        ("application/x-www-form-urlencoded", True, 415),
        ("text/plain; application/json", True, 415),
        (None, True, 415),
        ("application/x-www-form-urlencoded", False, None),
        (None, False, None),
    ],
)
def test_content_type_of_a_body(content_type: str | None, browser: bool, status: int | None) -> None:
    headers = {"host": "localhost"}
    if content_type is not None:
        headers["content-type"] = content_type
    for signs in ({"origin": "http://localhost"}, {"sec-fetch-mode": "cors"}) if browser else ({},):
        assert refusal(LOOPBACK, {**headers, **signs}, has_body=True) == status
        assert refusal(LOOPBACK, {**headers, **signs}, has_body=False) is None


def test_preflight() -> None:
    policy = Policy.of(["127.0.0.1"], allow_origin=[PAGE])
    asked = {
        "origin": PAGE,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization, content-type",
        "access-control-request-private-network": "true",
    }
    answer = dict(guard.preflight(policy, "OPTIONS", asked) or ())
    assert "POST" in answer["Access-Control-Allow-Methods"]
    assert answer["Access-Control-Allow-Headers"] == "authorization, content-type"
    assert answer["Access-Control-Allow-Private-Network"] == "true"
    assert guard.preflight(policy, "POST", asked) is None
    assert guard.preflight(policy, "OPTIONS", {"origin": PAGE}) is None
    assert guard.preflight(LOOPBACK, "OPTIONS", asked) is None, "OPTIONS is not special while CORS is off"


@pytest.mark.parametrize("name", ["host.docker.internal", "lmlite", "evil.example", "10.0.0.7:1234"])
def test_every_name_is_allowed_where_the_operator_says_so(name: str) -> None:
    guard.check_host(ANYONE, {"host": name})


def test_a_name_that_is_not_ours_is_refused_with_what_allows_it() -> None:
    with pytest.raises(HttpError) as refused:
        guard.check_host(Policy.of(["127.0.0.1"]), {"host": "host.docker.internal:1234"})
    assert refused.value.status == 403
    assert "--allow-host host.docker.internal" in str(refused.value)
