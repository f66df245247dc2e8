"""The operators' side of a gateway, over HTTP as a browser, a scraper and an attacker would ask."""

from __future__ import annotations

import http.client
import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from prometheus_client.parser import text_string_to_metric_families

from scarcity_ray import HierarchicalFederation, LedgerError, Rejection
from scarcity_ray.gateway import console
from scarcity_ray.gateway.console import COOKIE, GUESSES, SESSION_SECONDS, Guard
from scarcity_ray.gateway.operators import OperatorRole, Operators
from scarcity_ray.monitoring.status import SiteState, State
from tests.gateway.watched import WatchedFederation, served
from tests.monitoring.test_status import NOW, config_of

CLIENTS = [(f"ward-{domain}-{number}", f"region-{domain}") for domain in range(3) for number in range(5)]
FROM_THE_PAGE = {"Scarcity-Console": "1", "Content-Type": "application/json"}


class Browser:
    """Asks one gateway."""

    def __init__(self, address: str) -> None:
        self.place = urlsplit(address)
        self.cookie = ""

    def ask(
        self, path: str, body: object = None, *, method: str = "", **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        if self.cookie:
            given["Cookie"] = self.cookie
        connection = http.client.HTTPConnection(self.place.hostname or "", self.place.port, timeout=10)
        try:
            data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
            connection.request(method or ("GET" if body is None else "POST"), path, data, given)
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            connection.close()


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A federation after three rounds, its console, and the tokens of who operates and who reads."""
    folder = tmp_path_factory.mktemp("console")
    operators = Operators(folder / "operators.json")
    tokens = {role: operators.add(f"{role} Ann", role) for role in OperatorRole}
    with HierarchicalFederation(config_of(folder), runtime="local", clock=lambda: NOW) as fed:
        fed.register_clients(CLIENTS)
        source = WatchedFederation(fed, NOW)
        source.make_rounds(CLIENTS, 3)
        with served(source, operators) as address:
            yield source, address, tokens


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def logged_in(address: str, token: str) -> Browser:
    browser = Browser(address)
    status, headers, _ = browser.ask("/console/login", {"token": token}, **FROM_THE_PAGE)
    assert status == 200
    assert {"HttpOnly", "SameSite=Strict"} <= set(headers["Set-Cookie"].split("; "))
    browser.cookie = headers["Set-Cookie"].split(";")[0]
    return browser


def test_nothing_is_told_without_a_token(scene: Any) -> None:
    source, address, tokens = scene
    before = source.num_asked
    for path in ("/v1/status", "/v1/ledger", "/metrics"):
        for headers in (
            {},
            {"Authorization": f"Basic {tokens[OperatorRole.READ]}"},
            {"Cookie": f"{COOKIE}=QW5u.9999999999.00"},
            {"Cookie": f"{COOKIE}=x"},
        ):
            status, _, body = Browser(address).ask(path, **headers)
            assert (status, json.loads(body)["error"]) == (401, "unknown_token")
    assert Browser(address).ask("/v1/operate/pause", {}, **FROM_THE_PAGE)[0] == 401
    assert (source.num_asked, source.acts) == (before, [])


def test_who_reads_sees_the_status_the_metrics_and_the_ledger(scene: Any) -> None:
    _, address, tokens = scene
    asks = bearer(tokens[OperatorRole.READ])
    status, headers, body = Browser(address).ask("/v1/status", **asks)
    told = json.loads(body)
    assert (status, told["operator"]) == (200, {"name": "read Ann", "role": "read"})
    assert told["sites"]["registered"] == 15
    assert headers["Cache-Control"] == "no-store"
    _, headers, body = Browser(address).ask("/metrics", **asks)
    read = {s.name: s for f in text_string_to_metric_families(body.decode()) for s in f.samples}
    assert headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert read["scarcity_ray_round"].value == 3.0
    assert b"ward-" not in body
    _, headers, body = Browser(address).ask("/v1/ledger", **asks)
    rows = [json.loads(line) for line in body.splitlines()]
    assert (rows[0]["kind"], rows[-1]["hash"]) == ("genesis", told["ledger"]["head"])
    assert headers["Content-Disposition"].startswith("attachment")


def test_a_login_holds_until_its_token_is_revoked(scene: Any, tmp_path: Path) -> None:
    source, _, _ = scene
    operators = Operators(tmp_path / "operators.json")
    token = operators.add("Bo", OperatorRole.READ)
    with served(source, operators) as address:
        browser = logged_in(address, token)
        assert browser.ask("/v1/status")[0] == 200
        operators.revoke("Bo")
        assert browser.ask("/v1/status")[0] == 401
        operators.add("Bo", OperatorRole.OPERATE)
        assert browser.ask("/v1/status")[0] == 401


def test_an_operator_who_reads_cannot_operate(scene: Any) -> None:
    source, address, tokens = scene
    for browser, headers in (
        (Browser(address), bearer(tokens[OperatorRole.READ])),
        (logged_in(address, tokens[OperatorRole.READ]), FROM_THE_PAGE),
    ):
        status, _, body = browser.ask("/v1/operate/pause", {}, **headers)
        assert (status, json.loads(body)["error"]) == (403, "only_reads")
    assert source.acts == []


def test_another_site_cannot_have_a_browser_operate(scene: Any) -> None:
    """A form sends no header of its own; what a script of another site sends says where it comes from."""
    source, address, tokens = scene
    browser = logged_in(address, tokens[OperatorRole.OPERATE])
    foreign = FROM_THE_PAGE | {"Sec-Fetch-Site": "cross-site"}
    for headers in ({"Content-Type": "text/plain"}, {"Content-Type": "application/json"}, foreign):
        assert browser.ask("/v1/operate/pause", {}, **headers)[0] == 403
        login = {"token": tokens[OperatorRole.OPERATE]}
        assert Browser(address).ask("/console/login", login, **headers)[0] == 403
    assert source.acts == []


def test_an_operators_acts_are_done_in_the_operators_name(scene: Any) -> None:
    source, address, tokens = scene
    browser = logged_in(address, tokens[OperatorRole.OPERATE])
    own = FROM_THE_PAGE | {"Sec-Fetch-Site": "same-origin"}
    status, _, body = browser.ask("/v1/operate/pause", {}, **own)
    assert (status, json.loads(body)) == (200, {"message": "pause: done."})
    assert json.loads(browser.ask("/v1/status")[2])["state"] == State.PAUSED
    assert browser.ask("/v1/operate/resume", {}, **own)[0] == 200
    status, _, body = browser.ask("/v1/operate/unregister", {"client_id": "<b>"}, **own)
    assert (status, json.loads(body)["message"]) == (400, "no site is called '<b>'")
    for body_given in ([], 3, b"{", b'{"a":' + b"[" * 9000, b" " * 20_000):
        assert browser.ask("/v1/operate/renew", body_given, **own)[0] == 400
    assert browser.ask("/v1/operate/burn", {}, **own)[0] == 404
    assert [(act, who) for act, _, who in source.acts] == [
        (act, "operate Ann") for act in ("pause", "resume", "unregister")
    ]
    source.acts.clear()


def test_no_answer_tells_of_the_inside(scene: Any, tmp_path: Path) -> None:
    source, _, _ = scene
    operators, now = Operators(tmp_path / "operators.json"), [NOW]
    token = operators.add("Bo", OperatorRole.READ)
    with served(source, operators, clock=lambda: now[0]) as address:
        for failure, status in ((RuntimeError("/secret/path"), 500), (LedgerError("/secret/path"), 503)):
            now[0] += 2.0
            source.failure = failure
            try:
                answer = Browser(address).ask("/metrics", **bearer(token))
            finally:
                source.failure = None
            assert answer[0] == status
            assert b"secret" not in answer[2]


def test_a_status_is_asked_for_once_a_second_whoever_looks(scene: Any, tmp_path: Path) -> None:
    source, _, _ = scene
    operators, now = Operators(tmp_path / "operators.json"), [NOW]
    token = operators.add("Bo", OperatorRole.READ)
    with served(source, operators, clock=lambda: now[0]) as address:
        before = source.num_asked
        for _ in range(5):
            assert Browser(address).ask("/v1/status", **bearer(token))[0] == 200
        assert source.num_asked == before + 1
        now[0] += 1.0
        assert Browser(address).ask("/v1/status", **bearer(token))[0] == 200
        assert source.num_asked == before + 2


def test_guesses_are_slowed(scene: Any, tmp_path: Path) -> None:
    source, _, _ = scene
    operators, now = Operators(tmp_path / "operators.json"), [NOW]
    token = operators.add("Bo", OperatorRole.READ)
    with served(source, operators, clock=lambda: now[0]) as address:
        browser = logged_in(address, token)
        for _ in range(GUESSES):
            assert Browser(address).ask("/v1/status", **bearer("srop_guess"))[0] == 401
        status, headers, _ = Browser(address).ask("/v1/status", **bearer("srop_guess"))
        assert (status, headers["Retry-After"]) == (429, "6")
        guess = {"token": "srop_guess"}
        assert Browser(address).ask("/console/login", guess, **FROM_THE_PAGE)[0] == 429
        assert browser.ask("/v1/status")[0] == 200
        assert Browser(address).ask("/v1/status", **bearer(token))[0] == 200, (
            "another's guesses lock nobody out"
        )
        assert logged_in(address, token).ask("/v1/status")[0] == 200
        now[0] += 6.1
        assert Browser(address).ask("/v1/status", **bearer("srop_guess"))[0] == 401


def test_a_body_that_does_not_come_is_given_up(
    scene: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, _, _ = scene
    monkeypatch.setattr(console, "BODY_SECONDS", 0.2)
    with served(source, Operators(tmp_path / "operators.json")) as address:
        place = urlsplit(address)
        lines = ["POST /console/login HTTP/1.1", "Host: x", "Scarcity-Console: 1"]
        lines += ["Content-Type: application/json", "Content-Length: 99", "", "{"]
        with socket.create_connection((place.hostname or "", place.port or 0), timeout=5) as slow:
            slow.sendall("\r\n".join(lines).encode())
            assert b" 401 " in slow.recv(4096).split(b"\r\n")[0]


def test_a_cookie_ends_with_its_token_and_its_time(tmp_path: Path) -> None:
    now, operators = [NOW], Operators(tmp_path / "operators.json")
    operators.add("Ann.é", OperatorRole.READ)
    (ann,) = operators.all()
    guard = Guard(operators, b"k" * 32, lambda: now[0])
    cookie = guard.cookie(ann)
    assert guard.by_cookie(cookie) == Guard(operators, b"k" * 32, lambda: now[0]).by_cookie(cookie) == ann
    assert Guard(operators, clock=lambda: now[0]).by_cookie(cookie) is None
    name, end, number, code = cookie.split(".")
    for wrong in (
        f"{name}.{int(end) + 1}.{number}.{code}",
        f"{name}.{end}.{'0' * 16}.{code}",
        f"{name}.{end}.{number}.{code[:-1]}",
        f"{name}.{end}.\ud800.{code}",
        name,
        "",
        "é.é.é",
        f".{end}.",
    ):
        assert guard.by_cookie(wrong) is None
    now[0] += SESSION_SECONDS + 1
    assert guard.by_cookie(cookie) is None


def test_a_cookie_ends_with_its_logout(tmp_path: Path) -> None:
    now, operators = [NOW], Operators(tmp_path / "operators.json")
    operators.add("ann", OperatorRole.READ)
    (ann,) = operators.all()
    guard = Guard(operators, b"k" * 32, lambda: now[0])
    stolen, other = guard.cookie(ann), guard.cookie(ann)
    guard.log_out(stolen)
    guard.log_out("made up")
    assert guard.by_cookie(stolen) is None
    assert guard.by_cookie(other) == ann
    now[0] += SESSION_SECONDS + 1
    guard.log_out(other)
    assert not guard._logged_out, "what has ended by itself is remembered no longer"


def test_the_page_is_the_gateways_own_and_nothing_in_it_is_from_elsewhere(scene: Any) -> None:
    _, address, _ = scene
    texts = {}
    for path in ("/console", "/console/console.css", "/console/console.js"):
        status, headers, body = Browser(address).ask(path)
        assert status == 200
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert "unsafe" not in headers["Content-Security-Policy"]
        texts[path] = body.decode()
    for text in texts.values():
        assert set(re.findall(r"https?://[^\"' )]+", text)) <= {"http://www.w3.org/2000/svg"}
    page, script = texts["/console"], texts["/console/console.js"]
    assert not re.search(r"<script(?![^>]*src=)|<style|\son\w+=|\sstyle=", page)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|Function\(", script)
    assert Browser(address).ask("/console/operators.json")[0] == 404
    assert Browser(address).ask("/console/../operators.py")[0] == 404


def test_the_page_has_words_for_every_reason_and_state() -> None:
    script = (Path(__file__).parents[2] / "scarcity_ray" / "gateway" / "page" / "console.js").read_text()
    for words in ([*Rejection], [*State], [*SiteState]):
        assert all(re.search(rf"\b{word.value}:", script) for word in words)
