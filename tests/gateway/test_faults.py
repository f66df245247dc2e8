"""Nobody gets in who should not, and whoever is cut off goes on: over real sockets, with TLS, without Ray."""

from __future__ import annotations

import json
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scarcity_ray.actors.directory import Directory
from scarcity_ray.actors.names import DIRECTORY
from scarcity_ray.gateway import front_door
from scarcity_ray.gateway.certificates import Certificates
from scarcity_ray.gateway.enrolments import Enrolments
from scarcity_ray.gateway.gateway import Gateway
from scarcity_ray.gateway.operators import OperatorRole, Operators
from scarcity_ray_client import IdentityKeyPair
from scarcity_ray_client.wire import (
    ANSWER_SIGNATURE,
    EMPTY_DIGEST,
    ErrorAnswer,
    RoundAnswer,
    RoundState,
    SignedRequest,
    digest_of,
    is_answer,
    update_name,
)
from tests.gateway.sites import Answer, Served, Site, job, target_of

DIMENSION = 3_000
QUICK = {"handshake_seconds": 2.0, "header_seconds": 2.0, "body_seconds": 2.0, "least_bytes_per_second": 1e5}


class Watched(Served):
    """A served job whose gateway can be looked into."""

    gateway: Gateway

    def site_without_keys(self, client_id: str) -> Site:
        authority = Certificates(self.keys).server_authority()
        return Site(client_id, self.port, ssl.create_default_context(), authority=authority)

    def wire(self, site: Site) -> ssl.SSLSocket:
        """A TLS connection as bytes."""
        raw = socket.create_connection(("localhost", self.port), timeout=10)
        return site.context().wrap_socket(raw, server_hostname="localhost")

    def idle(self) -> None:
        """Nothing is held any more."""
        until = time.monotonic() + 10
        pressure = self.gateway.web.pressure
        while pressure.open or pressure.num_bytes:
            assert time.monotonic() < until, (pressure.open, pressure.num_bytes)
            time.sleep(0.02)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """One job for all: its rounds never end, as a release needs two domains and all sites are of one."""
    folder = tmp_path_factory.mktemp("served")
    made: list[Gateway] = []

    class Kept(Gateway):
        def __init__(self, *given: Any, **more: Any) -> None:
            super().__init__(*given, **more)
            made.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(front_door, "Gateway", Kept)
        operators = str(folder / "operators.json")
        more = {"requests_per_second": 1000.0, "operators": operators, **QUICK}
        config = job(folder, dimension=DIMENSION, rounds=100, **more)
        running = Watched(folder, config)
        running.start()
    (running.gateway,) = made
    yield running
    running.gateway.stop()


@pytest.fixture(scope="module")
def site(served: Watched) -> Site:
    return served.site("north-1", "north")


def code_of(answer: Answer) -> str:
    return ErrorAnswer.from_json(answer.body).code.value


def request_of(site: Site, told: RoundAnswer, body: bytes) -> bytes:
    """A PUT as bytes."""
    target = target_of(told.round_id, body)
    made = SignedRequest.signed(
        site.identity, site.federation_id, "PUT", target, site.client_id, time.time(), digest_of(body)
    )
    lines = [f"PUT {target} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in made.headers().items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def test_an_answer_is_signed_for_its_request(served: Watched, site: Site) -> None:
    with Enrolments.opened(served.register) as enrolments:
        key = IdentityKeyPair.of_seed(enrolments.answer_seed()).public_bytes
    told = site.round()
    body, name = site.update(told, np.full(DIMENSION, 0.75), 40), ANSWER_SIGNATURE.lower()
    asked: list[tuple[str, str, bytes, str]] = [
        ("GET", "/v1/me", b"", ""),
        ("HEAD", target_of(told.round_id, body), b"", ""),
        ("GET", "/v1/nowhere", b"", "no such path: who asks is not looked at"),
        ("PUT", f"/v1/evaluations/{told.round_id + 1}", b"{}", ""),
        ("PUT", target_of(told.round_id, body), body, ""),
        ("PUT", target_of(told.round_id, body), body, ""),
        ("GET", "/v1/model", b"", "its bytes are named by the round's answer"),
    ]
    for method, target, sent, why_not in asked:
        answer = site.ask(method, target, sent)
        told_signature = answer.headers.get(name, "")
        is_signed = is_answer(key, site.occasion, answer.status, answer.body, told_signature)
        assert is_signed is not bool(why_not), (method, target, answer.status)
    stranger = served.site_without_keys("north-1")
    stranger.federation_id = site.federation_id
    answer = stranger.ask("GET", "/v1/me")
    assert answer.status == 401, "a refusal is signed as well, for the request that was refused"
    assert is_answer(key, stranger.occasion, 401, answer.body, answer.headers[name])


@pytest.mark.long
def test_who_is_not_admitted_gets_nothing_but_a_reason(served: Watched, site: Site, tmp_path: Path) -> None:
    bare = served.site_without_keys("north-1")
    bare.identity, bare.federation_id = site.identity, site.federation_id
    assert code_of(bare.ask("GET", "/v1/me")) == "no_certificate"
    other = served.site("north-2", "north")
    stolen = served.site_without_keys("north-1")
    stolen.identity, stolen.federation_id, stolen.chain = site.identity, site.federation_id, other.chain
    assert code_of(stolen.ask("GET", "/v1/me")) == "wrong_certificate"
    unsigned = served.site_without_keys("north-1")
    unsigned.identity, unsigned.federation_id = IdentityKeyPair.generate(), site.federation_id
    unsigned.chain = site.chain
    assert code_of(unsigned.ask("GET", "/v1/me")) == "wrong_signature"
    assert code_of(site.ask("GET", "/v1/me", signed=False)) == "malformed"
    with Enrolments.opened(served.register) as enrolments:
        assert enrolments.revoke("north-2")
    assert code_of(other.ask("GET", "/v1/me")) == "revoked", "on a connection that was open"
    strange = Certificates.make(tmp_path / "others", ["localhost"])
    key, chain = site.chain, tmp_path / "foreign.pem"
    assert key is not None
    private = key.read_text().split("-----BEGIN CERTIFICATE")[0]
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization

    pair = serialization.load_pem_private_key(private.encode(), None)
    csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(pair, hashes.SHA256())  # type: ignore[arg-type]
    pem = csr.public_bytes(serialization.Encoding.PEM).decode()
    own = Certificates(served.keys)
    for certificate in (
        strange.issue(pem, "north-1"),
        own.issue(pem, "north-1", days=1, now=datetime.now(UTC) - timedelta(days=2)),
    ):
        chain.write_text(private + certificate)
        foreign = served.site_without_keys("north-1")
        foreign.identity, foreign.federation_id, foreign.chain = site.identity, site.federation_id, chain
        with pytest.raises((ssl.SSLError, ConnectionError)):
            foreign.ask("GET", "/v1/me")
    unknown = own.issue(pem, "north-1")
    chain.write_text(private + unknown)
    foreign.hang_up()
    assert code_of(foreign.ask("GET", "/v1/me")) == "wrong_certificate", "ours, and not enrolled"


def test_a_signature_is_for_one_request_once(served: Watched, site: Site) -> None:
    def asked(**more: Any) -> Answer:
        given = {
            "identity": site.identity, "federation_id": site.federation_id, "method": "GET",
            "target": "/v1/me", "client_id": site.client_id, "time_seconds": time.time(), **more,
        }  # fmt: skip
        return site.ask("GET", "/v1/me", signed=False, **SignedRequest.signed(**given).headers())

    assert asked().status == 200
    for wrong in (
        {"federation_id": "f" * 32},
        {"method": "PUT"},
        {"target": "/v1/round"},
        {"body_digest": digest_of(b"x")},
    ):
        found = asked(**wrong)
        assert found.status in (400, 401), wrong
    assert code_of(asked(time_seconds=time.time() - 1000)) == "clock"
    headers = SignedRequest.signed(
        site.identity, site.federation_id, "GET", "/v1/me", site.client_id, time.time(), EMPTY_DIGEST
    ).headers()
    assert site.ask("GET", "/v1/me", signed=False, **headers).status == 200
    assert code_of(site.ask("GET", "/v1/me", signed=False, **headers)) == "replayed"


def test_an_update_of_another_is_refused(served: Watched, site: Site) -> None:
    told = site.round()
    row = np.ones(DIMENSION)
    other = served.site("north-3", "north")
    body = other.update(told, row)
    assert code_of(site.ask("PUT", target_of(told.round_id, body), body)) == "malformed"
    good = other.identity
    other.identity = IdentityKeyPair.generate()
    body = other.update(told, row)
    other.identity = good
    answer = other.ask("PUT", target_of(told.round_id, body), body)
    assert (answer.status, ErrorAnswer.from_json(answer.body).message) == (422, "bad_signature")
    assert other.send(told, row).status == 201, "what was refused has taken no slot"
    assert code_of(other.send(told, 2 * row)) == "slot_taken"
    assert other.send(told, row).status == 200
    assert other.ask("GET", "/v1/me").status == 200


def test_a_body_that_is_not_what_its_digest_says_is_refused(served: Watched, site: Site) -> None:
    told = site.round()
    body = site.update(told, np.ones(DIMENSION), sequence=7)
    wire = request_of(site, told, body)
    with served.wire(site) as sent:
        sent.sendall(wire[:-4] + b"\0\0\0\1")
        assert b" 400 " in sent.recv(4096).split(b"\r\n")[0]
    assert code_of(site.ask("PUT", target_of(told.round_id, body + b"x"), body)) == "malformed"
    served.idle()


def test_another_row_beside_a_signed_head_is_refused_and_costs_nothing(served: Watched, site: Site) -> None:
    """Whoever ends TLS could put one there: the name of an upload is of its head alone."""
    told = site.round()
    body = site.update(told, np.full(DIMENSION, 3.0), sequence=21)
    name, other = update_name(body), body[:-4] + np.float32(9.0).tobytes()
    target = f"/v1/updates/{told.round_id}/{name}"
    answer = site.ask("PUT", target, other, digest=name)
    assert (answer.status, ErrorAnswer.from_json(answer.body).message) == (422, "bad_signature")
    assert code_of(
        site.ask("PUT", target, body.replace(b'"sequence":21', b'"sequence":22'), digest=name)
    ) == ("malformed"), "another head has another name"
    accepted = site.ask("PUT", target, body, digest=name)
    assert accepted.status == 201
    again = site.ask("PUT", target_of(told.round_id, body), body)
    assert (again.status, again.body) == (200, accepted.body), "of an older client: one body under both names"


@pytest.mark.long
def test_a_client_that_is_killed_anywhere_goes_on(served: Watched) -> None:
    """A PUT that is cut in each of its parts leaves nothing behind, and the same bytes are then accepted."""
    site = served.site("north-4", "north")
    told = site.round()
    body = site.update(told, np.ones(DIMENSION))
    size = len(request_of(site, told, body))
    head = size - len(body)
    for cut in (1, 20, head // 2, head - 1, head, head + 3, head + 200, size - DIMENSION, size - 1):
        with served.wire(site) as sent:
            sent.sendall(request_of(site, told, body)[:cut])
    with served.wire(site) as sent:
        sent.sendall(request_of(site, told, body))  # all of it: gone before the answer
    answer = site.ask("PUT", target_of(told.round_id, body), body)
    assert answer.status in (200, 201), answer
    served.idle()
    parts = [0, 1, 4096, 4097, len(body)]
    body = site.update(told, 2 * np.ones(DIMENSION), sequence=1)
    target = target_of(told.round_id, body)
    for begin, end in pairwise(parts):
        wrong = site.ask("PATCH", target, b"x", Upload_Offset=str(begin + 1), Upload_Length=str(len(body)))
        assert (wrong.status, wrong.headers["upload-offset"]) == (409, str(begin))
        site.hang_up()
        assert site.ask("HEAD", target).headers["upload-offset"] == str(begin)
        answer = site.ask(
            "PATCH", target, body[begin:end], Upload_Offset=str(begin), Upload_Length=str(len(body))
        )
    assert answer.status == 201, answer


def test_an_upload_in_parts_that_is_another_body_begins_again(served: Watched, site: Site) -> None:
    told = site.round()
    body = site.update(told, np.ones(DIMENSION), sequence=3)
    target, whole = target_of(told.round_id, body), str(len(body))
    other = bytes(len(body))
    assert code_of(site.ask("PATCH", target, other, Upload_Offset="0", Upload_Length=whole)) == "malformed"
    assert site.ask("HEAD", target).headers["upload-offset"] == "0"
    assert site.ask("PATCH", target, body, Upload_Offset="0", Upload_Length=whole).status == 201


@pytest.mark.long
def test_who_is_slow_is_given_up(served: Watched, site: Site) -> None:
    """In the handshake, in the headers, in the body; others go on meanwhile, and nothing is held after it."""
    told = site.round()
    body = site.update(told, np.ones(DIMENSION), sequence=9)
    wire = request_of(site, told, body)
    head = len(wire) - len(body)
    silent = socket.create_connection(("localhost", served.port), timeout=10)
    heads, bodies = [], []
    for _ in range(3):
        bodies.append(served.wire(site))
        bodies[-1].sendall(request_of(site, told, body)[: head + 100])
        heads.append(served.wire(site))
        heads[-1].sendall(wire[:30])
    for _ in range(3):
        time.sleep(0.2)
        for sent in heads:
            with suppress(OSError):
                sent.sendall(b"X")
        assert site.ask("GET", "/v1/me").status in (200, 429), "others are answered"
    for sent in heads:
        with pytest.raises((OSError, AssertionError)):
            assert sent.recv(100), "ended"
    for sent in bodies:
        assert b" 408 " in sent.recv(4096).split(b"\r\n")[0]
    assert silent.recv(100) == b"", "ended"
    served.idle()
    for sent in (silent, *heads, *bodies):
        sent.close()


def test_a_revoked_site_is_waited_for_no_more(served: Watched) -> None:
    gone = served.site("north-11", "north")
    assert gone.send(gone.round(), np.ones(DIMENSION)).status == 201
    desk = served.gateway.web._desk
    now = desk._driver.client.now
    known = partial(desk._driver.client.call, DIRECTORY, Directory.client, "north-11")
    assert served.gateway.web._on_driver(lambda: known(now())) is not None
    with Enrolments.opened(served.register) as enrolments:
        assert enrolments.revoke("north-11")
    until = time.monotonic() + 20
    while served.gateway.web._on_driver(lambda: known(now())) is not None:
        assert time.monotonic() < until, "it stays in its basket"
        time.sleep(0.05)


def test_an_upload_that_is_on_its_way_as_its_site_is_revoked_is_refused(served: Watched) -> None:
    gone = served.site("north-10", "north")
    told = gone.round()
    wire = request_of(gone, told, gone.update(told, np.ones(DIMENSION)))
    with served.wire(gone) as sent:
        sent.sendall(wire[:-1])
        time.sleep(0.3)
        with Enrolments.opened(served.register) as enrolments:
            assert enrolments.revoke("north-10")
        sent.sendall(wire[-1:])
        answer = sent.recv(4096)
    assert b" 403 " in answer.split(b"\r\n")[0], answer


def test_what_is_too_big_is_refused_before_it_is_read(served: Watched, site: Site) -> None:
    told = site.round()
    body = site.update(told, np.ones(DIMENSION))
    target = target_of(told.round_id, body)
    made = SignedRequest.signed(
        site.identity, site.federation_id, "PUT", target, site.client_id, time.time(), digest_of(body)
    )
    lines = "".join(f"{name}: {value}\r\n" for name, value in made.headers().items())
    with served.wire(site) as sent:
        sent.sendall(f"PUT {target} HTTP/1.1\r\nHost: x\r\n{lines}Content-Length: 999999999\r\n\r\n".encode())
        assert b" 413 " in sent.recv(4096).split(b"\r\n")[0]
    with served.wire(site) as sent:
        answer = b" 400 "  # unless the connection's end overtakes it
        with suppress(OSError):
            sent.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 100_000)
            answer = sent.recv(4096).split(b"\r\n")[0] or answer
        assert b" 400 " in answer
    served.idle()


def test_what_the_server_cannot_hold_is_one_clients_refusal(served: Watched, site: Site) -> None:
    """Each of them once ended the register or the served job for everybody."""
    told = site.round()
    row = np.ones(DIMENSION)
    for given in ({"sequence": 2**63}, {"num_examples": 2**63, "sequence": 11}):
        assert code_of(site.send(told, row, **given)) == "malformed"
    evaluation = {"version": 1, "metrics": {"loss": 1e308}, "num_examples": 2**63}
    target = f"/v1/evaluations/{told.round_id}"
    assert code_of(site.ask("PUT", target, json.dumps(evaluation).encode())) == "malformed"
    for metrics in ({"x" * 5_000: 1.0}, {"": 1.0}):
        evaluation = {"version": 1, "metrics": metrics, "num_examples": 1}
        assert code_of(site.ask("PUT", target, json.dumps(evaluation).encode())) == "malformed"
        assert code_of(site.send(told, row, sequence=12, metrics=metrics)) == "malformed"
    assert site.ask("GET", "/v1/me").status == 200


@pytest.mark.parametrize(
    "sent",
    [
        b"BLAH\r\n\r\n",
        b"GET /\xff\0 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET http://[::1/ HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /v1/enrol HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nContent-Encoding: gzip\r\n\r\n{}",
    ],
)
def test_what_is_no_http_is_told_nothing(
    served: Watched, site: Site, sent: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with served.wire(site) as wire:
        wire.sendall(sent)
        answer = wire.recv(4096)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b" 400 " in head.split(b"\r\n")[0]
    assert b"aiohttp" not in answer
    assert b"Python" not in answer
    assert ErrorAnswer.from_json(body).code.value == "malformed"
    assert not caplog.records, "anybody may send it, as often as they like"


@pytest.mark.long
def test_no_peer_takes_all_connections(served: Watched, site: Site) -> None:
    """Neither one without a certificate nor a site: others are answered meanwhile."""
    greedy, bare = served.site("north-8", "north"), served.site_without_keys("nobody")
    other = served.site("north-9", "north")
    other.hang_up()
    held = []
    try:
        for one in (greedy, bare):
            for _ in range(32 + 8):
                with suppress(OSError):
                    held.append(served.wire(one))
        until = time.monotonic() + 5
        while len(served.gateway.web.connections) > 2 * 32 + 8:
            assert time.monotonic() < until
            time.sleep(0.02)
        assert other.ask("GET", "/v1/me").status == 200
        assert site.ask("GET", "/v1/me").status == 200
    finally:
        for wire in held:
            wire.close()
    served.idle()


@pytest.mark.long
def test_sockets_before_their_handshake_are_capped(
    served: Watched, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Silent ones of one address may be a quarter of all connections, for the time of a handshake."""
    connections = served.gateway.web.connections
    monkeypatch.setattr(connections, "_most", 40)
    silent = [socket.create_connection(("localhost", served.port), timeout=5) for _ in range(16)]
    try:
        for one in silent[10:]:
            assert one.recv(1) == b"", "turned away at once"
        assert connections.num_turned_away == 6
        assert connections._shaking.total() == 10
        assert silent[0].recv(1) == b"", "its handshake did not come in time"
        site.hang_up()
        assert site.ask("GET", "/v1/me").status == 200
    finally:
        for one in silent:
            one.close()
    served.idle()


def test_no_traceback_and_no_path_leaves_a_gateway(
    served: Watched, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = site.round()
    cases = [
        ("GET", "/", b""),
        ("GET", "/v1/nothing", b""),
        ("DELETE", "/v1/me", b""),
        ("GET", "/v1/round?after=-1", b""),
        ("GET", "/v1/round?wait_seconds=nan", b""),
        ("PUT", f"/v1/updates/{told.round_id}/zz", b"x"),
        ("PUT", f"/v1/updates/99999/{digest_of(b'x')}", b"x"),
        ("PUT", f"/v1/updates/{told.round_id}/{digest_of(b'x')}", b"x"),
        ("PUT", f"/v1/updates/{told.round_id}/{digest_of(b'cos' + bytes(40))}", b"cos" + bytes(40)),
        ("PUT", f"/v1/evaluations/{told.round_id}", b"[]"),
        ("POST", "/v1/enrol", b'{"version": 2}'),
        ("POST", "/v1/key", b"\x80\x04."),
        ("POST", "/v1/certificate", b'{"version":1,"csr":"none"}'),
        ("PATCH", f"/v1/updates/{told.round_id}/{digest_of(b'x')}", b"x"),
    ]

    def fails(*given: Any) -> None:
        raise RuntimeError(f"in {served.folder}")

    answers = [site.ask(method, target, body) for method, target, body in cases]
    monkeypatch.setattr(served.gateway.web._desk, "me", fails)
    answers.append(site.ask("GET", "/v1/me"))
    assert answers[-1].status == 500
    for answer in answers:
        assert 400 <= answer.status <= 500
        assert set(json.loads(answer.body)) == {
            "version", "error", "message", "retry_after_seconds", "gateway_seconds"
        }  # fmt: skip
        for word in (b"Traceback", str(served.folder).encode(), b"/work", b".py", b"aiohttp"):
            assert word not in answer.body
        assert answer.headers["server"] == "scarcity-ray"


def test_operators_watch_pause_and_unregister(served: Watched, site: Site) -> None:
    gone = served.site("north-6", "north")
    assert gone.ask("GET", "/v1/me").status == 200
    operators = Operators(served.folder / "operators.json")
    bearer = {"Authorization": f"Bearer {operators.add('Ann', OperatorRole.OPERATE)}"}
    browser = served.site_without_keys("nobody")

    def operate(act: str, **arguments: Any) -> Answer:
        body = json.dumps(arguments).encode()
        headers = {**bearer, "Content_Type": "application/json"}
        return browser.ask("POST", f"/v1/operate/{act}", body, signed=False, **headers)

    assert browser.ask("GET", "/v1/status", signed=False).status == 401
    status = browser.ask("GET", "/v1/status", signed=False, **bearer)
    told = json.loads(status.body)
    assert (status.status, told["state"]) == (200, "open")
    assert browser.ask("GET", "/console", signed=False).status == 200
    assert operate("unregister", client_id="north-6").status == 200
    assert code_of(gone.ask("GET", "/v1/me")) == "revoked"
    assert operate("pause").status == 200
    until = time.monotonic() + 10
    while site.round(wait_seconds=0).state is not RoundState.PAUSED:
        assert time.monotonic() < until
        time.sleep(0.05)
    assert operate("resume").status == 200
    assert site.round().state is RoundState.OPEN


def test_a_model_is_sent_in_part_and_once(served: Watched, site: Site) -> None:
    whole = site.ask("GET", "/v1/model")
    assert len(whole.body) == 4 * DIMENSION
    part = site.ask("GET", "/v1/model", Range="bytes=4-11")
    assert (part.status, part.body) == (206, whole.body[4:12])
    assert part.headers["content-range"] == f"bytes 4-11/{4 * DIMENSION}"
    assert site.ask("GET", "/v1/model", Range=f"bytes={4 * DIMENSION}-").status == 416
    assert site.ask("GET", "/v1/model", If_None_Match=whole.headers["etag"]).status == 304


def test_an_evaluation_and_a_key_are_taken(served: Watched) -> None:
    from scarcity_ray_client.wire import EvaluationRequest, KeyRequest

    site = served.site("north-5", "north")
    told = site.round()
    said = EvaluationRequest({"accuracy": 0.5}, 10).to_json()
    assert site.ask("PUT", f"/v1/evaluations/{told.round_id}", said).status == 204
    new = IdentityKeyPair.generate()
    asked = KeyRequest.signed(site.identity, new, site.federation_id, site.client_id)
    assert site.ask("POST", "/v1/key", asked.to_json()).status == 204
    assert code_of(site.ask("GET", "/v1/me")) == "wrong_signature"
    site.identity = new
    assert site.ask("GET", "/v1/me").status == 200
    assert site.send(told, np.ones(DIMENSION)).status == 201, "its basket knows the new key"
