"""Paths to endpoints: fixed, with a parameter that takes the rest, and what is told to those who miss."""

from __future__ import annotations

import pytest

from lmlite.errors import UnexpectedEndpoint
from lmlite.wire.router import Route, Router

ROUTER: Router[str] = Router(
    [
        Route("GET", "/v1/models", "list"),
        Route("GET", "/v1/models/{model}", "one"),
        Route("DELETE", "/v1/models/{model}", "delete"),
        Route("POST", "/v1/models/load", "load"),
        Route("GET", "/v1/models/download/status/{job_id}", "status"),
        Route("POST", "/v1/chat/completions", "chat"),
        Route("GET", "/v1/things/{id}", "thing"),
        Route("GET", "/v1/things/{id}/parts", "parts"),
        Route("POST", "/v1/things/{id}/stop", "stop"),
    ]
)


@pytest.mark.parametrize(
    ("method", "path", "endpoint", "parameters"),
    [
        ("GET", "/v1/models", "list", {}),
        ("HEAD", "/v1/models", "list", {}),
        ("POST", "/v1/chat/completions", "chat", {}),
        ("GET", "/v1/models/m", "one", {"model": "m"}),
        ("HEAD", "/v1/models/m", "one", {"model": "m"}),
        ("GET", "/v1/models/publisher/m@q4", "one", {"model": "publisher/m@q4"}),
        ("DELETE", "/v1/models/m", "delete", {"model": "m"}),
        ("POST", "/v1/models/load", "load", {}),
        ("GET", "/v1/models/load", "one", {"model": "load"}),
        ("GET", "/v1/models/download/status/j", "status", {"job_id": "j"}),
        ("GET", "/v1/things/t", "thing", {"id": "t"}),
        ("GET", "/v1/things/t/parts", "parts", {"id": "t"}),
        ("GET", "/v1/things/t/parts/", "parts", {"id": "t"}),
        ("GET", "/v1/things/parts", "thing", {"id": "parts"}),
        ("GET", "/v1/things/a/b/parts", "parts", {"id": "a/b"}),
        ("POST", "/v1/things/t/stop", "stop", {"id": "t"}),
    ],
)
def test_match(method: str, path: str, endpoint: str, parameters: dict[str, str]) -> None:
    found = ROUTER.match(method, path)
    assert (found.route.endpoint, dict(found.parameters)) == (endpoint, parameters)


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/m", "/v1/chat/completions"])
def test_a_slash_at_the_end_says_nothing(path: str) -> None:
    for method in ("GET", "POST", "DELETE"):
        try:
            plain = ROUTER.match(method, path)
        except UnexpectedEndpoint as error:
            with pytest.raises(UnexpectedEndpoint) as refused:
                ROUTER.match(method, path + "/")
            assert refused.value.allow == error.allow
        else:
            assert ROUTER.match(method, path + "/") == plain


@pytest.mark.parametrize("path", ["/", "/v1", "/v1/models2", "/V1/models", "/v1/"])
def test_unknown_path_is_404(path: str) -> None:
    with pytest.raises(UnexpectedEndpoint) as refused:
        ROUTER.match("GET", path)
    assert (refused.value.status, refused.value.allow) == (404, ())


@pytest.mark.parametrize("path", ["/chat/completions", "/v1/v1/chat/completions", "/chat/completions/"])
def test_a_path_that_lacks_its_beginning_or_has_it_twice_is_told_the_whole(path: str) -> None:
    with pytest.raises(UnexpectedEndpoint, match=rf"\(POST {path}\) Did you mean /v1/chat/completions\?"):
        ROUTER.match("POST", path)


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", "/v1/chat/completions", ("POST",)),
        ("POST", "/v1/models", ("GET", "HEAD")),
        ("TRACE", "/v1/models", ("GET", "HEAD")),
        ("get", "/v1/models", ("GET", "HEAD")),
        ("PUT", "/v1/models/load", ("DELETE", "GET", "HEAD", "POST")),
    ],
)
def test_wrong_method_is_405_and_names_the_right_ones(method: str, path: str, allow: tuple[str, ...]) -> None:
    with pytest.raises(UnexpectedEndpoint) as refused:
        ROUTER.match(method, path)
    assert (refused.value.status, refused.value.allow) == (405, allow)


def test_error_names_the_target_as_sent() -> None:
    with pytest.raises(UnexpectedEndpoint, match=r"\(GET /x\?y=1\)$"):
        ROUTER.match("GET", "/x", "/x?y=1")


@pytest.mark.parametrize("pattern", ["v1", "/v1/{model}/{x}", "/v1/{model}x", "/{a}{b}", "/v1/{", "/{}"])
def test_unreadable_pattern_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match="pattern"):
        Router([Route("GET", pattern, 0)])


@pytest.mark.parametrize(("first", "second"), [("GET", "GET"), ("GET", "HEAD")])
def test_two_routes_for_one_request_are_refused(first: str, second: str) -> None:
    with pytest.raises(ValueError, match="two routes"):
        Router([Route(first, "/x", 0), Route(second, "/x", 1)])


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("POST", "/v1/things/t", ("GET", "HEAD")),
        ("GET", "/v1/things/t/stop", ("POST",)),
        ("POST", "/v1/things/t/parts", ("GET", "HEAD")),
    ],
)
def test_an_end_of_its_own_has_methods_of_its_own(method: str, path: str, allow: tuple[str, ...]) -> None:
    with pytest.raises(UnexpectedEndpoint) as refused:
        ROUTER.match(method, path)
    assert (refused.value.status, refused.value.allow) == (405, allow)
