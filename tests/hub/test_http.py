"""The hub's client: where it goes and where never, what it sends whom, and that it can be cut off."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from lmlite.addresses import kind
from lmlite.errors import HubError
from lmlite.hub import http
from lmlite.hub.http import Client, Interrupt, Interrupted, retry_after_s
from lmlite.hub.site import Proxy, Site
from tests.hub import misbehaving
from tests.hub.misbehaving import Hub, answer, redirect

PUBLIC = "93.184.216.34"
NAMES = {
    "hub.example": [PUBLIC],
    "cdn.example": ["93.184.216.35"],
    "inner.example": ["10.0.0.1"],
    "mixed.example": [PUBLIC, "127.0.0.1"],
    "six.example": ["fd00::1"],
    "metadata.google.internal": ["169.254.169.254"],
}
CERTIFICATE = Path(__file__).parent / "hub.example.pem"
"""Of hub.example, signed by itself, with its key."""
TOKEN = "hf_verysecret"


class Net:
    """A network in which every address leads to a hub on loopback; `dialled` has those that were connected to."""

    def __init__(self, hub: Hub):
        self.hub = hub
        self.dialled: list[tuple[str, int]] = []

    def resolve(self, host: str, port: int) -> list[str]:
        found = NAMES.get(host) or http._numeric(host)
        if not found:
            raise socket.gaierror(socket.EAI_NONAME, "not known")
        return found

    def dial(self, address: str, port: int, timeout_s: float) -> socket.socket:
        self.dialled.append((address, port))
        return socket.create_connection(("127.0.0.1", self.hub.port), timeout_s)

    def client(self, endpoint: str = "http://hub.example", proxies: Mapping[str, Proxy] | None = None) -> Client:
        return Client(Site(endpoint, TOKEN, proxies or {}), resolve=self.resolve, dial=self.dial)


@pytest.fixture
def hub() -> Iterator[Hub]:
    with misbehaving.running({"acme/falcon": {"a.gguf": b"content"}}) as hub:
        hub.on("/fine", then=answer(200, b"fine"))
        yield hub


@pytest.fixture
def net(hub: Hub) -> Net:
    return Net(hub)


def got(client: Client, path: str = "/start") -> bytes:
    with client.get(client.site.url(path), {}, Interrupt()) as response:
        assert response.status == 200
        return response.read_all(1000)


# ---- redirects -------------------------------------------------------------------------------------------------------


def test_the_token_goes_to_the_hub_and_to_no_other_host(hub: Hub, net: Net) -> None:
    hub.on("/start", redirect("/second"))
    hub.on("/second", redirect("http://hub.example:8080/third"))
    hub.on("/third", redirect("http://cdn.example/fine?sig=1"))
    assert got(net.client()) == b"fine"
    bearer = f"Bearer {TOKEN}"
    assert [(asked.host, asked.headers.get("authorization")) for asked in hub.asked] == [
        ("hub.example", bearer), ("hub.example", bearer), ("hub.example:8080", None), ("cdn.example", None),
    ]  # fmt: skip
    assert net.dialled[-1] == ("93.184.216.35", 80)


@pytest.mark.parametrize(
    "location",
    [
        "http://127.0.0.1/x", "http://localhost/x", "http://a.localhost/x", "http://127.1/x", "http://0x7f000001/x",
        "http://2130706433/x", "http://0.0.0.0/x", "http://[::1]/x", "http://[::]/x", "http://[::ffff:127.0.0.1]/x",
        "http://[::ffff:a9fe:a9fe]/x", "http://[64:ff9b::7f00:1]/x", "http://[2002:7f00:1::]/x", "http://10.0.0.1/x",
        "http://172.16.0.1/x", "http://192.168.1.1/x", "http://100.64.0.1/x", "http://169.254.169.254/latest/meta-data",
        "http://169.254.1.1/x", "http://[fe80::1]/x", "http://[fd00:ec2::254]/x", "http://100.100.100.200/x",
        "http://224.0.0.1/x", "http://240.0.0.1/x", "http://inner.example/x", "http://mixed.example/x", "http://six.example/x",
        "http://metadata.google.internal/x", "https://inner.example/x", "//127.0.0.1/x",
    ],
)  # fmt: skip
def test_redirects_into_this_machine_or_its_networks_are_not_followed(hub: Hub, net: Net, location: str) -> None:
    hub.on("/start", then=redirect(location))
    with pytest.raises(HubError, match="not followed") as refused:
        got(net.client())
    assert not refused.value.retry
    assert net.dialled == [(PUBLIC, 80)]


@pytest.mark.parametrize("location", ["http://127.0.0.1/x", "http://0x7f.1/x", "http://localhost/x", "http://10.0.0.1/x"])
def test_behind_a_proxy_figures_are_checked_and_names_are_the_proxys_business(hub: Hub, net: Net, location: str) -> None:
    client = net.client(proxies={"http": Proxy(PUBLIC, 3128)})
    hub.on("/start", redirect(location), redirect("http://unknown.example/fine"))
    with pytest.raises(HubError, match="not followed"):
        got(client)
    assert got(client) == b"fine"
    assert {address for address, _ in net.dialled} == {PUBLIC}


@pytest.mark.parametrize(
    "location",
    ["file:///etc/passwd", "ftp://cdn.example/x", "gopher://cdn.example/", "data:,x", "http://user:pass@cdn.example/",
     "http://cdn.example:0/", "http://cdn.example:99999/", "http://[::1", "http://cdn.example/a b", ""],
)  # fmt: skip
def test_redirects_to_what_is_no_web_address_are_not_followed(hub: Hub, net: Net, location: str) -> None:
    hub.on("/start", redirect(location))
    with pytest.raises(HubError):
        got(net.client())
    assert net.dialled == [(PUBLIC, 80)]


def test_a_hub_on_this_machine_may_redirect_to_it_and_to_no_other_private_place(hub: Hub) -> None:
    client = Client(Site(hub.url))
    with misbehaving.running({}) as other:
        other.on("/fine", then=answer(200, b"elsewhere"))
        hub.on("/start", redirect(f"{other.url}/fine"), redirect("http://10.0.0.1/x"), redirect("http://169.254.169.254/x"))
        assert got(client) == b"elsewhere"
        for _ in range(2):
            with pytest.raises(HubError, match="not followed"):
                got(client)


def test_five_redirects_are_followed_and_six_are_not(hub: Hub, net: Net) -> None:
    hub.on("/start", then=redirect("/r1"))
    for i in range(1, 5):
        hub.on(f"/r{i}", then=redirect(f"/r{i + 1}"))
    hub.on("/r5", answer(200, b"there"), redirect("/fine"))
    assert got(net.client()) == b"there"
    with pytest.raises(HubError, match="more than 5 times"):
        got(net.client())


# ---- TLS and proxies -------------------------------------------------------------------------------------------------


@pytest.fixture
def tls_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    with misbehaving.running({}, tls=context) as hub:
        hub.on("/fine", then=answer(200, b"fine"))
        yield hub


def test_https_is_verified_and_never_left_for_http(tls_hub: Hub) -> None:
    net = Net(tls_hub)
    tls_hub.on("/start", redirect("/fine"), redirect("http://hub.example/fine"))
    assert got(net.client("https://hub.example")) == b"fine"
    with pytest.raises(HubError, match="from https to http"):
        got(net.client("https://hub.example"))
    with pytest.raises(HubError, match="no certificate that can be trusted") as refused:
        got(net.client("https://cdn.example"))
    assert not refused.value.retry


def test_https_goes_through_a_proxy_by_connect(tls_hub: Hub, hub: Hub) -> None:
    hub.tunnel_to = tls_hub.port
    net = Net(hub)
    client = net.client("https://hub.example", {"https": Proxy("10.9.9.9", 3128, "me:pw")})
    assert got(client, "/fine") == b"fine"
    (connect,) = hub.asked
    assert connect.path == "hub.example:443"
    assert connect.headers["proxy-authorization"] == "Basic bWU6cHc="
    assert "authorization" not in connect.headers
    assert tls_hub.asked[0].headers["authorization"] == f"Bearer {TOKEN}"
    assert "proxy-authorization" not in tls_hub.asked[0].headers
    assert net.dialled == [("10.9.9.9", 3128)]


@pytest.mark.parametrize("reply", [b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", b"hello", b"x" * 20_000, b""])
def test_a_proxy_that_does_not_connect_is_told(hub: Hub, reply: bytes) -> None:
    net = Net(hub)
    hub.on("hub.example:443", misbehaving.raw(reply))
    with pytest.raises(HubError, match="the proxy 10.9.9.9 does not|connection to hub.example failed"):
        got(net.client("https://hub.example", {"https": Proxy("10.9.9.9", 3128, "me:pw")}))


def test_http_goes_through_a_proxy_by_its_whole_url(hub: Hub, net: Net) -> None:
    client = net.client("http://hub.example:8080/hf", {"http": Proxy("10.9.9.9", 3128, "me:pw")})
    assert got(client, "/fine?x=1") == b"fine"
    (asked,) = hub.asked
    assert asked.path == "http://hub.example:8080/hf/fine?x=1" and asked.host == "hub.example:8080"
    assert asked.headers["proxy-authorization"] == "Basic bWU6cHc=" and asked.headers["authorization"] == f"Bearer {TOKEN}"


# ---- answers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "reply",
    [b"", b"SSH-2.0-OpenSSH_9.6\r\n", b"HTTP/1.1 999999 x\r\n\r\n", b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 1000,
     b"HTTP/1.1 200 " + b"x" * 70_000, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
     b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab"],
)  # fmt: skip
def test_what_is_not_http_is_an_error_that_may_pass(hub: Hub, reply: bytes) -> None:
    hub.on("/start", misbehaving.raw(reply))
    with pytest.raises(HubError) as refused:
        got(Client(Site(hub.url)))
    assert refused.value.retry


def test_a_host_that_is_not_there_or_not_up_is_an_error_that_may_pass(hub: Hub, net: Net) -> None:
    with pytest.raises(HubError, match="nowhere.example cannot be found") as refused:
        got(net.client("http://nowhere.example"))
    assert refused.value.retry
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    with pytest.raises(HubError, match="the connection to 127.0.0.1 failed") as refused:
        got(Client(Site(f"http://127.0.0.1:{port}")))
    assert refused.value.retry


@pytest.mark.parametrize("body", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nsome"])
def test_a_wait_is_cut_off_at_once(hub: Hub, body: bytes) -> None:
    asked, release = threading.Event(), threading.Event()

    def hang(handler: misbehaving.Handler) -> None:
        handler.wfile.write(body)
        asked.set()
        release.wait(30)

    hub.on("/start", hang)
    interrupt, outcome = Interrupt(), list[object]()

    def work() -> None:
        try:
            with Client(Site(hub.url)).get(hub.url + "/start", {}, interrupt) as response:
                outcome.append(response.read_all(1000))
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    assert asked.wait(30)
    interrupt.cut()
    thread.join(15)
    assert not thread.is_alive()  # though the hub goes on holding its answer
    release.set()
    assert isinstance(outcome[0], Interrupted)
    with pytest.raises(Interrupted):
        Client(Site(hub.url)).get(hub.url + "/fine", {}, interrupt)


@pytest.mark.parametrize(
    ("value", "least", "most"),
    [(None, 0, 0), ("7", 7, 7), ("0", 0, 0), ("-1", 0, 0), ("1e9", 0, 0), ("999999999", 3600, 3600), ("soon", 0, 0),
     ("5_0", 0, 0),
     ("Wed, 21 Oct 2015 07:28:00 GMT", 0, 0), ("Wed, 21 Oct 2199 07:28:00 GMT", 3600, 3600), ("", 0, 0), ("\u0665", 0, 0)],
)  # fmt: skip
def test_retry_after_is_seconds_or_a_date_and_bounded(value: str | None, least: float, most: float) -> None:
    assert least <= retry_after_s(value) <= most


@pytest.mark.parametrize(
    ("address", "of"),
    [("8.8.8.8", "public"), ("2606:4700::1", "public"), ("127.0.0.1", "loopback"), ("::1", "loopback"),
     ("10.1.1.1", "private"), ("fd00::1", "private"), ("fe80::1%eth0", "link-local"), ("169.254.1.1", "link-local"),
     ("169.254.169.254", "metadata"),
     ("::ffff:10.0.0.1", "private"), ("64:ff9b::a9fe:a9fe", "metadata"), ("0.0.0.0", "reserved"),
     ("255.255.255.255", "reserved"), ("100.64.0.1", "reserved"), ("224.0.0.1", "reserved"), ("ff02::1", "reserved")],
)  # fmt: skip
def test_addresses_are_told_apart(address: str, of: str) -> None:
    assert kind(address) == of
