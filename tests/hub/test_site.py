"""Where the hub is and how it is reached, as environment variables say."""

from __future__ import annotations

import pytest

from lmlite.errors import ConfigError, HubError
from lmlite.hub.site import Address, Proxy, Site


def test_an_empty_environment_is_the_public_hub_without_token() -> None:
    assert Site.of({}) == Site("https://huggingface.co", None, {}, ("",))
    assert Site.of({"HF_ENDPOINT": "", "HF_TOKEN": "", "HTTPS_PROXY": ""}) == Site.of({})


def test_endpoint_may_have_a_path_and_ends_without_a_slash() -> None:
    assert Site.of({"HF_ENDPOINT": " http://mirror:8080/hf/ "}).url("/api") == "http://mirror:8080/hf/api"


@pytest.mark.parametrize(
    "endpoint", ["hub.example", "ftp://hub", "https://", "https://user:pw@hub", "https://hub?x=1", "https://hub#x", "https://h:99999"]
)
def test_an_endpoint_that_is_none_is_refused(endpoint: str) -> None:
    with pytest.raises(ConfigError, match="HF_ENDPOINT"):
        Site.of({"HF_ENDPOINT": endpoint})


@pytest.mark.parametrize("token", ["hf_a b", "hf_a\nX: y", "hf_é", "x" * 5000])
def test_a_token_that_is_none_is_refused_without_being_told(token: str) -> None:
    with pytest.raises(ConfigError, match="HF_TOKEN") as refused:
        Site.of({"HF_TOKEN": token})
    assert token not in str(refused.value)


def test_secrets_are_in_no_repr() -> None:
    site = Site.of({"HF_TOKEN": " hf_secret\n", "HTTPS_PROXY": "http://me:pass%20word@proxy:3128"})
    assert site.token == "hf_secret"
    assert site.proxies["https"] == Proxy("proxy", 3128, "me:pass word")
    assert "secret" not in repr(site) and "word" not in repr(site)
    assert "secret" not in repr(Address.of("https://hub/x?X-Signature=secret"))


@pytest.mark.parametrize(
    ("environ", "url", "proxy"),
    [
        ({"HTTPS_PROXY": "http://proxy"}, "https://hub/", Proxy("proxy", 80)),
        ({"https_proxy": "lower:1", "HTTPS_PROXY": "http://upper:2"}, "https://hub/", Proxy("lower", 1)),
        ({"HTTPS_PROXY": "http://proxy"}, "http://hub/", None),
        ({"HTTP_PROXY": "http://proxy:1"}, "http://hub/", Proxy("proxy", 1)),
        ({"HTTP_PROXY": "http://proxy:1"}, "http://localhost/", None),
        ({"HTTP_PROXY": "http://proxy:1"}, "http://127.0.0.1:8/", None),
        ({"HTTP_PROXY": "http://proxy:1"}, "http://[::1]/", None),
    ],
)
def test_proxies_are_by_scheme_and_never_for_this_machine(environ: dict[str, str], url: str, proxy: Proxy | None) -> None:
    assert Site.of(environ).proxy_for(Address.of(url)) == proxy


@pytest.mark.parametrize(
    ("rules", "url", "direct"),
    [
        ("*", "http://hub.example/", True),
        ("hub.example", "http://hub.example/", True),
        (".example", "http://hub.example/", True),
        ("example", "http://hub.example/", True),
        ("*.example", "http://hub.example/", True),
        ("ub.example", "http://hub.example/", False),
        ("a, hub.example b", "http://hub.example/", True),
        ("HUB.Example", "http://hub.example/", True),
        ("hub.example:80", "http://hub.example/", True),
        ("hub.example:81", "http://hub.example/", False),
        ("10.0.0.0/8", "http://10.1.2.3/", True),
        ("10.0.0.0/8", "http://11.1.2.3/", False),
        ("[2001:db8::1]", "http://[2001:db8::1]/", True),
        ("", "http://hub.example/", False),
        (",", "http://hub.example/", False),
    ],
)
def test_no_proxy_names_hosts_domains_and_networks(rules: str, url: str, direct: bool) -> None:
    site = Site.of({"http_proxy": "http://proxy:1", "NO_PROXY": rules})
    assert (site.proxy_for(Address.of(url)) is None) == direct


@pytest.mark.parametrize("proxy", ["https://proxy", "socks5://proxy:1080", "http://", "http://proxy:99999", "http://a b"])
def test_a_proxy_that_cannot_be_used_is_refused_by_name(proxy: str) -> None:
    with pytest.raises(ConfigError, match="HTTPS_PROXY"):
        Site.of({"HTTPS_PROXY": proxy})


@pytest.mark.parametrize(
    "url",
    ["", "hub", "file:///etc/passwd", "gopher://hub/", "http://", "http://user@hub/", "http://hub:0/", "http://hub:99999/",
     "http://hub/a b", "http://hub/é", "http://hub/a\r\nX: y", "http://h\u00fcb/", "http://[::1/", "http://a\\b/"],
)  # fmt: skip
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(HubError):
        Address.of(url)


def test_an_address_is_spelled_for_a_host_header() -> None:
    urls = ("http://Hub:80/", "http://hub:81", "https://hub", "https://[::1]:8/x?y")
    assert [Address.of(url).authority for url in urls] == ["hub", "hub:81", "hub", "[::1]:8"]
    assert Address.of("https://hub").target == "/" and Address.of("https://hub/x?y").target == "/x?y"
