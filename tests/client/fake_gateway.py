"""A gateway of a few lines, over real TLS, that loses answers and connections when it is told to."""

from __future__ import annotations

import hashlib
import http.server
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import numpy as np

from scarcity_ray.gateway.certificates import Certificates, fingerprint_of
from scarcity_ray.gateway.enrolments import Enrolments
from scarcity_ray_client import IdentityKeyPair, SigningScope
from scarcity_ray_client.accounting.modes import Accounting
from scarcity_ray_client.receipts import ReceiptBatch
from scarcity_ray_client.site_home import Kit
from scarcity_ray_client.updates import content_digest
from scarcity_ray_client.wire import (
    ANSWER_SIGNATURE,
    CertificateAnswer,
    CertificateRequest,
    EnrolAnswer,
    EnrolRequest,
    ErrorAnswer,
    ErrorCode,
    EvaluationRequest,
    KeyRequest,
    MeAnswer,
    ModelFacts,
    RoundAnswer,
    RoundState,
    SignedRequest,
    UpdateAnswer,
    UpdateHeader,
    digest_of,
    is_named,
    read_update_body,
    sign_answer,
)

FEDERATION = "federation"
BASKET = "hospitals_basket_0"


class Refused(Exception):
    def __init__(self, code: ErrorCode, message: str = "", **headers: str) -> None:
        self.answer = code if isinstance(code, ErrorAnswer) else ErrorAnswer(code, message)
        self.headers = headers


class FakeGateway:
    """What it knows, and what it does to the next requests.

    Attributes:
        round: What it answers; `publish` makes another.
        updates: By round: header, row and body that it took.
        faults: Each is called with the handler in place of the next request, before or after it was done.
        asked: Method and path of each request.
    """

    def __init__(self, folder: Path, dimension: int = 4) -> None:
        self.certificates = Certificates.make(folder / "keys", ["127.0.0.1"])
        self.folder, self.dimension = folder, dimension
        self.basket = IdentityKeyPair.generate()
        self.signer = IdentityKeyPair.generate()
        self.scope = SigningScope(FEDERATION, 0, 77)
        self.updates: dict[int, tuple[UpdateHeader, np.ndarray, bytes]] = {}
        self.evaluations: dict[int, EvaluationRequest] = {}
        self.faults: list[Callable[[http.server.BaseHTTPRequestHandler, Callable[[], None]], None]] = []
        self.asked: list[str] = []
        self.nonces: set[str] = set()
        self.partial: dict[str, bytes] = {}
        self.clock = time.time
        self.refusal: ErrorAnswer | None = None
        self.ceiling: float | None = None
        self.issued = lambda csr, client: self.certificates.issue(csr, client)
        self.lock = threading.Lock()
        self.publish(0)
        handler = type("Handler", (_Handler,), {"gateway": self})
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        context = self.certificates.server_context()
        self.server.socket = context.wrap_socket(
            self.server.socket, server_side=True, do_handshake_on_connect=False
        )
        self.port = self.server.server_address[1]
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    def publish(self, round_id: int, state: RoundState = RoundState.OPEN, **changed: object) -> None:
        self.model = np.full(self.dimension, round_id, np.float32)
        data = self.model.tobytes()
        model = ModelFacts(round_id, round_id, hashlib.sha256(data).hexdigest(), len(data))
        settings: dict[str, object] = {
            "unit": "client",
            "accounting": Accounting.ZCDP,
            "model": model,
            "clip_norm": 1.0,
        }
        self.round = RoundAnswer(
            state,
            "",
            round_id,
            self.scope,
            self.dimension,
            **{**settings, **changed},  # type: ignore[arg-type]
        )

    def kit(self, path: Path, client_id: str = "ann", **changed: str) -> Path:
        with Enrolments.opened(self.folder / "register") as sites:
            token = sites.invite(client_id, "hospitals", again=True)
        facts = {
            "gateway": f"https://127.0.0.1:{self.port}",
            "federation_id": FEDERATION,
            "client_id": client_id,
            "domain_id": "hospitals",
            "authority": self.certificates.server_authority(),
            "token": token,
            "answer_key": self.signer.public_bytes.hex(),
        }
        Kit(**{**facts, **changed}).write(path)
        return path

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


class _Handler(http.server.BaseHTTPRequestHandler):
    disable_nagle_algorithm = True  # head and body are two writes: each answer would wait 40 ms
    protocol_version = "HTTP/1.1"
    gateway: FakeGateway

    def log_message(self, *told: object) -> None:
        pass

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except (OSError, ssl.SSLError):
            self.close_connection = True

    def do(self) -> None:
        gateway = self.gateway
        span = self.headers.get("Range", "")
        gateway.asked.append(f"{self.command} {self.path} {span}".rstrip())
        fault = gateway.faults.pop(0) if gateway.faults else None
        if fault is None:
            self.answer()
        else:
            fault(self, self.answer)

    do_GET = do_PUT = do_POST = do_PATCH = do_HEAD = do  # noqa: N815

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        try:
            with self.gateway.lock:
                status, answer, headers = self.judged(body)
        except Refused as refused:
            status, answer, headers = refused.answer.code.status, refused.answer.to_json(), refused.headers
            after = refused.answer.retry_after_seconds
            if after is not None:
                headers["Retry-After"] = str(int(after))
        headers[ANSWER_SIGNATURE] = self.signed(body, status, b"" if self.command == "HEAD" else answer)
        self.send_response(status)
        for name, value in {"Content-Length": str(len(answer)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer)

    def signed(self, body: bytes, status: int, answer: bytes) -> str:
        occasion = digest_of(body)
        if self.path != "/v1/enrol":
            occasion = SignedRequest.from_headers(self.headers).occasion(FEDERATION, self.command, self.path)
        return sign_answer(self.gateway.signer, occasion, status, answer)

    def judged(self, body: bytes) -> tuple[int, bytes, dict[str, str]]:
        gateway, place = self.gateway, urlsplit(self.path)
        with Enrolments.opened(gateway.folder / "register") as sites:
            if place.path == "/v1/enrol":
                asked = EnrolRequest.from_json(body)
                pem = sites.enrol(asked, gateway.issued)
                if isinstance(pem, ErrorAnswer):
                    raise Refused(pem)
                return 200, EnrolAnswer(pem, FEDERATION, "hospitals").to_json(), {}
            signed = SignedRequest.from_headers(self.headers)
            shown = self.connection.getpeercert(binary_form=True)  # type: ignore[attr-defined]
            known = sites.admit(signed.client_id, None if shown is None else fingerprint_of(shown))
            if isinstance(known, ErrorAnswer):
                raise Refused(known)
            if wrong := signed.clock_error(gateway.clock()):
                raise Refused(wrong)
            if not signed.is_valid(known.public_key, FEDERATION, self.command, self.path):
                raise Refused(ErrorCode.WRONG_SIGNATURE)
            is_update = self.command == "PUT" and "/updates/" in place.path
            is_right = is_named if is_update else lambda body, name: digest_of(body) == name
            if not is_right(body, signed.body_digest) or signed.nonce in gateway.nonces:
                raise Refused(ErrorCode.REPLAYED)
            gateway.nonces.add(signed.nonce)
            if gateway.refusal is not None:
                raise Refused(gateway.refusal)
            match place.path.split("/")[2:]:
                case ["round"]:
                    after = parse_qs(place.query).get("after")
                    if after and int(after[0]) == gateway.round.round_id and gateway.round.state == "open":
                        time.sleep(0.02)
                    return 200, gateway.round.to_json(), {}
                case ["model"]:
                    return self.model()
                case ["updates", round_id, digest]:
                    return self.update(int(round_id), digest, body, known.public_key)
                case ["evaluations", round_id]:
                    gateway.evaluations[int(round_id)] = EvaluationRequest.from_json(body)
                    return 204, b"", {}
                case ["me"]:
                    me = MeAnswer("ann", "hospitals", "hospitals_basket_0", 0, 1.5, 1e-6, gateway.ceiling)
                    return 200, me.to_json(), {}
                case ["certificate"]:
                    pem = sites.renew("ann", CertificateRequest.from_json(body).csr, gateway.issued)
                    assert isinstance(pem, str)
                    return 200, CertificateAnswer(pem).to_json(), {}
                case ["key"]:
                    change = KeyRequest.from_json(body)
                    if not change.is_valid(known.public_key, FEDERATION, signed.client_id):
                        raise Refused(ErrorCode.WRONG_SIGNATURE)
                    assert sites.change_key(signed.client_id, known.public_key, change.public_key)
                    return 204, b"", {}
        raise Refused(ErrorCode.NOT_FOUND)

    def model(self) -> tuple[int, bytes, dict[str, str]]:
        data = self.gateway.model.tobytes()
        tag = {"ETag": f'"{digest_of(data)}"'}
        if asked := self.headers.get("Range"):
            first = int(asked.removeprefix("bytes=").removesuffix("-"))
            if first >= len(data):
                raise Refused(ErrorCode.WRONG_RANGE)
            return 206, data[first:], tag
        return 200, data, tag

    def update(
        self, round_id: int, digest: str, body: bytes, key: bytes
    ) -> tuple[int, bytes, dict[str, str]]:
        gateway = self.gateway
        have = gateway.partial.get(digest, b"")
        if self.command == "HEAD":
            return 204, b"", {"Upload-Offset": str(len(have))}
        if self.command == "PATCH":
            if int(self.headers["Upload-Offset"]) != len(have):
                raise Refused(ErrorCode.WRONG_OFFSET)
            gateway.partial[digest] = have = have + body
            if len(have) < int(self.headers["Upload-Length"]):
                return 204, b"", {}
            body = have
        assert is_named(body, digest)
        header, row = read_update_body(body, gateway.dimension)
        if round_id < gateway.round.round_id:
            raise Refused(ErrorCode.ROUND_OVER, "the round is over")
        assert header.round_id == round_id
        if not IdentityKeyPair.verify_with(
            key, header.statement(gateway.scope, row).encode(), header.signature
        ):
            raise Refused(ErrorCode.REFUSED, "bad_signature")
        known = gateway.updates.get(round_id)
        if known is not None and known[2] != body:
            raise Refused(ErrorCode.SLOT_TAKEN)
        receipt = self.receipt(round_id, row)
        gateway.updates[round_id] = header, row, body
        said = UpdateAnswer(header.client_id, round_id, header.sequence, BASKET, receipt)
        return 200 if known else 201, said.to_json(), {}

    def receipt(self, round_id: int, row: np.ndarray) -> str:
        scope = FEDERATION, self.gateway.scope.run, BASKET, ""
        batch = ReceiptBatch(scope, (round_id,), ("ann",), bytes(32), content_digest(row))
        return batch.signed(self.gateway.basket)[0].to_text()


def lost_request(handler, answer) -> None:
    """The connection breaks before anything is read."""
    handler.connection.close()
    handler.close_connection = True


def lost_answer(handler, answer) -> None:
    """It is done, and nobody hears of it."""
    real, handler.wfile = handler.wfile, _Nothing()
    answer()
    handler.wfile = real
    handler.connection.close()
    handler.close_connection = True


class _Nothing:
    closed = False

    def write(self, data: bytes) -> int:
        return len(data)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass


def said(answer: ErrorAnswer, *, is_signed: bool = True) -> Callable[..., None]:
    """It answers that instead."""

    def fault(handler, _) -> None:
        body = handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
        data = answer.to_json()
        handler.send_response(answer.code.status)
        if answer.retry_after_seconds is not None:
            handler.send_header("Retry-After", str(int(answer.retry_after_seconds)))
        handler.send_header("Content-Length", str(len(data)))
        if is_signed:
            handler.send_header(ANSWER_SIGNATURE, handler.signed(body, answer.code.status, data))
        handler.end_headers()
        handler.wfile.write(data)

    return fault
