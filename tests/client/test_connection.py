"""The way to a gateway: proxies, trust, and what is no gateway."""

from __future__ import annotations

import socket
import threading

import pytest

from scarcity_ray_client import UsageError
from scarcity_ray_client.connection import GatewayConnection, GatewayRefused, GatewayUnreachable, Waits
from scarcity_ray_client.wire import ErrorAnswer, ErrorCode
from tests.client.fake_gateway import FakeGateway


class Proxy:
    """Answers CONNECT and passes bytes on."""

    def __init__(self, answer=b"200 OK"):
        self.answer, self.asked = answer, b""
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        near, _ = self.listener.accept()
        while b"\r\n\r\n" not in self.asked:
            self.asked += near.recv(4096)
        near.sendall(b"HTTP/1.1 " + self.answer + b"\r\n\r\n")
        if not self.answer.startswith(b"200"):
            near.close()
            return
        place = self.asked.split()[1].decode().rsplit(":", 1)
        far = socket.create_connection((place[0], int(place[1])))
        for one, other in ((near, far), (far, near)):
            threading.Thread(target=self.pass_on, args=(one, other), daemon=True).start()

    @staticmethod
    def pass_on(one, other):
        try:
            while data := one.recv(65536):
                other.sendall(data)
        except OSError:
            pass
        other.close()

    def close(self):
        self.listener.close()


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    made = FakeGateway(tmp_path_factory.mktemp("gateway"))
    yield made
    made.close()


def connected(gateway, authority=None, **environ):
    waits = Waits(give_up_seconds=0.0, sleep=lambda seconds: None)
    url = f"https://127.0.0.1:{gateway.port}"
    authority = authority or gateway.certificates.server_authority()
    return GatewayConnection(url, authority, None, None, waits, environ)


def refusal(connection):
    """What an unsigned request is told, which shows that it came through."""
    try:
        with pytest.raises(GatewayRefused) as refused:
            connection.ask("POST", "/v1/enrol", b"{}")
        return refused.value.answer.code
    finally:
        connection.close()


@pytest.fixture(autouse=True)
def enrolments_are_malformed(gateway, monkeypatch):
    def answered(handler, answer):
        handler.rfile.read(int(handler.headers["Content-Length"]))
        body = ErrorAnswer(ErrorCode.MALFORMED, "x").to_json()
        handler.send_response(400)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    gateway.faults = [answered] * 3


@pytest.mark.parametrize("name", ["HTTPS_PROXY", "https_proxy", "ALL_PROXY"])
def test_a_proxy_of_the_environment_is_gone_through(gateway, name):
    proxy = Proxy()
    connection = connected(gateway, **{name: f"http://user:pass%20word@127.0.0.1:{proxy.port}"})
    assert refusal(connection) is ErrorCode.MALFORMED
    assert proxy.asked.startswith(f"CONNECT 127.0.0.1:{gateway.port} ".encode())
    assert b"Proxy-Authorization: Basic dXNlcjpwYXNzIHdvcmQ=" in proxy.asked  # user:pass word
    proxy.close()


@pytest.mark.parametrize("spared", ["127.0.0.1", "*"])
def test_a_gateway_that_no_proxy_names_is_reached_without(gateway, spared):
    environ = {"HTTPS_PROXY": "http://127.0.0.1:1", "NO_PROXY": spared}
    assert refusal(connected(gateway, **environ)) is ErrorCode.MALFORMED


def test_a_proxy_that_refuses_is_told_at_once(gateway):
    proxy = Proxy(b"407 Proxy Authentication Required")
    with pytest.raises(GatewayUnreachable, match=r"the proxy refuses.*407"):
        connected(gateway, HTTPS_PROXY=f"127.0.0.1:{proxy.port}").ask("GET", "/v1/me")
    proxy.close()


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:1", "https://user:secret@proxy:1"])
def test_another_kind_of_proxy_is_refused_without_its_password(gateway, proxy):
    with pytest.raises(UsageError, match="HTTPS_PROXY") as refused:
        connected(gateway, HTTPS_PROXY=proxy)
    assert "secret" not in str(refused.value)


def test_no_other_server_is_spoken_to(gateway, tmp_path):
    other = FakeGateway(tmp_path / "other")
    try:
        with pytest.raises(GatewayUnreachable, match=r"not one of this federation's.*a proxy opens TLS"):
            connected(gateway, authority=other.certificates.server_authority()).ask("GET", "/v1/me")
    finally:
        other.close()


@pytest.mark.parametrize(
    "url", ["", "gateway", "ftp://x", "http://example.org", "https://", "https://h/path", "https://h:x"]
)
def test_what_is_no_gateway_is_refused(gateway, url):
    with pytest.raises(UsageError, match="gateway"):
        GatewayConnection(url, gateway.certificates.server_authority())


def test_an_empty_authority_does_not_trust_everybody():
    with pytest.raises(UsageError, match="no authority"):
        GatewayConnection("https://127.0.0.1:1", "\n", environ={})


def test_an_authority_that_is_none_is_refused():
    with pytest.raises(UsageError, match="authority"):
        GatewayConnection("https://h", "no PEM")


@pytest.mark.parametrize(
    ("status", "body", "code"),
    [
        (502, b"<html>", ErrorCode.BUSY),
        (429, b"", ErrorCode.BUSY),
        (403, b"<html>blocked</html>", ErrorCode.FORBIDDEN),
        (400, b'{"version": 2}', ErrorCode.NEWER_VERSION),
    ],
)
def test_what_a_proxy_answers_in_the_gateways_place_is_understood(gateway, status, body, code):
    def answered(handler, answer):
        handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    gateway.faults = [answered] * 3
    with pytest.raises((GatewayRefused, GatewayUnreachable), match=str(code)):
        connected(gateway).ask("POST", "/v1/enrol", b"{}")


def test_waits_grow_with_full_jitter_and_are_bounded():
    waits = Waits(jitter=lambda: 1.0)
    assert [waits.before(attempt, None) for attempt in (0, 1, 2, 50)] == [0.5, 1.0, 2.0, 60.0]
    assert waits.before(0, 10.0) == 10.5
    assert waits.before(0, 1e9) == 3600.5
    assert Waits(jitter=lambda: 0.0).before(9, None) == 0.0
