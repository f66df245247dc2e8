"""What a site and a gateway say to each other over HTTPS, version 1, byte by byte.

Answers and small requests are JSON objects in UTF-8 that state their ``version``. Each request but enrolment
is signed by the client's Ed25519 key, since TLS may end at a proxy: over ``scarcity_ray/request/1``, a line
break, and a JSON list of federation id, method, path with query, client id, nonce, time (unix seconds) and
the body's SHA-256. The signature travels in headers (`SignedRequest`).

An update's body::

    length     u32 little-endian, of the header
    header     JSON of `UpdateHeader`, with the signature that `sign_update` makes
    row        float32 little-endian, (d,), to the body's end

Its *name*, in its path and in the signed request, is the SHA-256 of its head: of length and header
(`update_name`). That names the row too, since the header's signature is over the row's own digest, which the
basket computes and checks: a row is hashed once, by whoever judges it. Whoever ends TLS could put another row
beside a signed head; its basket refuses it then as ``bad_signature``, at no cost to its client's trust. The
SHA-256 of the whole body is its name too: older clients say that one, and bodies that are sent in parts must,
since the parts lie on a disk meanwhile.

Each answer to a signed request, and to an enrolment, is signed as well, by the federation's answer key, whose
public half is in the kit: over ``scarcity_ray/answer/1``, a line break, and a JSON list of the request's
occasion (`SignedRequest.occasion`), the status, and the body's SHA-256. Whoever ends TLS can drop or delay an
answer, and make none. The model's bytes are not signed: the round's answer, which is, states their SHA-256.

Guarantees:
    what_is_written_is_read_back
    a_newer_version_is_refused_by_name
    nothing_malformed_is_read: Cut, too long, of another type, with an unknown or a missing field.
    a_signature_is_for_one_request: Of one method, path, body, client, federation, nonce and time.
    an_answer_is_to_one_request: Of one status and body.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import math
import re
import secrets
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeVar
from urllib.parse import quote, unquote

import numpy as np

from scarcity_ray_client.accounting.modes import Accounting
from scarcity_ray_client.errors import MessageRefused, UsageError, shown
from scarcity_ray_client.identity import PUBLIC_BYTES, SIGNATURE_BYTES, IdentityKeyPair
from scarcity_ray_client.models import FloatVector
from scarcity_ray_client.private_evaluation import PrivateEvaluation
from scarcity_ray_client.receipts import SignedReceipt
from scarcity_ray_client.site_ledger import HASH_BYTES, Extension, Head
from scarcity_ray_client.site_noise import SiteNoise
from scarcity_ray_client.updates import SigningScope, UpdateStatement
from scarcity_ray_client.updates.signing import GREATEST, canonical_report, content_digest, is_text

T = TypeVar("T")

VERSION = 1
"""Of this protocol: the ``1`` of ``/v1``, and the version that each JSON object states."""
CLOCK_SECONDS = 300
"""By which a client's clock may differ from the gateway's."""
RESUMABLE_BYTES = 8 * 2**20
"""Larger bodies are sent by offsets, in parts of at most this size."""
MOST_JSON_BYTES = 2**20
MOST_HEADER_BYTES = 2**20
MOST_TEXT = 1000
"""Characters of an id, a reason or a message."""
MOST_PEM = 16 * 1024
MOST_RECEIPT = 256 * 1024
MOST_METRICS = 10_000
MOST_TOLD_LINKS = 1000
"""Rows of a site's ledger that one update tells of."""
CLIENT, NONCE, TIME, SIGNATURE = (f"Scarcity-{name}" for name in ("Client", "Nonce", "Time", "Signature"))
BODY_DIGEST = "Scarcity-Body-Digest"
"""SHA-256 of this request's body, or of an update's head, hexadecimal: sent wherever there is a body, so that
the signature can be checked before the body is read."""
ANSWER_SIGNATURE = "Scarcity-Answer-Signature"
UPLOAD_OFFSET, UPLOAD_LENGTH = "Upload-Offset", "Upload-Length"
MODEL_VERSION, MODEL_ROUND = "Scarcity-Model-Version", "Scarcity-Model-Round"
EMPTY_DIGEST = hashlib.sha256(b"").hexdigest()


class ErrorCode(StrEnum):
    """Why a gateway refused; `status` is HTTP's."""

    MALFORMED = "malformed"
    NEWER_VERSION = "newer_version"
    CLOCK = "clock"
    """The request's time is more than `CLOCK_SECONDS` from the gateway's, which the answer states."""
    REPLAYED = "replayed"
    """The nonce was used."""
    WRONG_SIGNATURE = "wrong_signature"
    NO_CERTIFICATE = "no_certificate"
    WRONG_CERTIFICATE = "wrong_certificate"
    """It is not the one that this client enrolled."""
    EXPIRED_CERTIFICATE = "expired_certificate"
    REVOKED = "revoked"
    BAD_TOKEN = "bad_token"
    """Of enrolment: unknown, used, expired, or another client's."""
    FORBIDDEN = "forbidden"
    NOT_FOUND = "not_found"
    WRONG_METHOD = "wrong_method"
    TIMED_OUT = "timed_out"
    SLOT_TAKEN = "slot_taken"
    """Another body was accepted for this client, round and sequence."""
    WRONG_OFFSET = "wrong_offset"
    ROUND_OVER = "round_over"
    TOO_BIG = "too_big"
    WRONG_RANGE = "wrong_range"
    REFUSED = "refused"
    """Judged and refused for good; the message is the reason."""
    TOO_MANY = "too_many"
    INTERNAL = "internal"
    BUSY = "busy"

    @property
    def status(self) -> int:
        """HTTP's."""
        return _STATUS[self]

    @property
    def is_final(self) -> bool:
        """Whether the same request can only be refused again."""
        return self not in _WORTH_A_RETRY


_STATUS = {
    ErrorCode.MALFORMED: 400,
    ErrorCode.NEWER_VERSION: 400,
    ErrorCode.CLOCK: 401,
    ErrorCode.REPLAYED: 401,
    ErrorCode.WRONG_SIGNATURE: 401,
    ErrorCode.NO_CERTIFICATE: 401,
    ErrorCode.WRONG_CERTIFICATE: 403,
    ErrorCode.EXPIRED_CERTIFICATE: 403,
    ErrorCode.REVOKED: 403,
    ErrorCode.BAD_TOKEN: 403,
    ErrorCode.FORBIDDEN: 403,
    ErrorCode.NOT_FOUND: 404,
    ErrorCode.WRONG_METHOD: 405,
    ErrorCode.TIMED_OUT: 408,
    ErrorCode.SLOT_TAKEN: 409,
    ErrorCode.WRONG_OFFSET: 409,
    ErrorCode.ROUND_OVER: 410,
    ErrorCode.TOO_BIG: 413,
    ErrorCode.WRONG_RANGE: 416,
    ErrorCode.REFUSED: 422,
    ErrorCode.TOO_MANY: 429,
    ErrorCode.INTERNAL: 500,
    ErrorCode.BUSY: 503,
}
# A request that is sent again has another nonce and time.
_WORTH_A_RETRY = {
    ErrorCode.REPLAYED,
    ErrorCode.TIMED_OUT,
    ErrorCode.WRONG_OFFSET,
    ErrorCode.TOO_MANY,
    ErrorCode.INTERNAL,
    ErrorCode.BUSY,
}


class RoundState(StrEnum):
    """What a site does now: train, wait, or end."""

    OPEN = "open"
    WAITING = "waiting"
    """No round after the one asked for has begun yet."""
    PAUSED = "paused"
    FINISHED = "finished"
    STOPPED = "stopped"


@dataclass(frozen=True)
class ErrorAnswer:
    """A refusal.

    Attributes:
        code: To act by.
        message: To read; for ``refused``, the reason.
        retry_after_seconds: When to try again; None: it says nothing.
        gateway_seconds: With ``clock``, the gateway's unix time.
    """

    code: ErrorCode
    message: str
    retry_after_seconds: float | None = None
    gateway_seconds: float | None = None

    def to_json(self) -> bytes:
        """As an answer's body."""
        return _written(
            error=self.code.value,
            message=self.message,
            retry_after_seconds=self.retry_after_seconds,
            gateway_seconds=self.gateway_seconds,
        )

    @classmethod
    def from_json(cls, data: bytes) -> ErrorAnswer:
        """Read what `to_json` gave; raises `MessageRefused`."""
        given = _Fields("error", data)
        return given.end(
            cls(
                given.one_of("error", ErrorCode),
                given.text("message", MOST_RECEIPT),
                given.maybe("retry_after_seconds", given.number),
                given.maybe("gateway_seconds", given.number),
            )
        )


@dataclass(frozen=True)
class ModelFacts:
    """The model that a round trains from; `sha256` is hexadecimal, of its float32 bytes."""

    version: int
    round_id: int
    sha256: str
    num_bytes: int


@dataclass(frozen=True)
class RoundAnswer:
    """The round, as one client is told of it.

    Attributes:
        state: What to do.
        reason: Why it waits, pauses or ended; empty if it is open.
        round_id: The newest; the one to train in if it is open.
        scope: What a signature of an update states.
        vector_dim: d.
        unit: ``client``, ``person`` or ``record``.
        accounting: In which rows' costs add up.
        model: None before there is one.
        closes_in_seconds: None: it waits for all.
        meta_parameters: Least and greatest value by name.
        private_evaluation: What clients measure and report in ``meta``; None: nothing.
        noise: With it the client noises its row; None under central noise.
        row_mu: What a row costs its sender, as `SiteLedger.send` takes it; None: it is not stated.
        clip_norm: To which Layer 1 clips.
        min_persons: None where a client is the unit.
        site_ledger: How far the accountant knows this client's own ledger; None: not at all.
        asks_evaluation: Whether clients are to measure the round's model on their own data and tell.
    """

    state: RoundState
    reason: str
    round_id: int
    scope: SigningScope
    vector_dim: int
    unit: str
    accounting: Accounting
    model: ModelFacts | None = None
    closes_in_seconds: float | None = None
    meta_parameters: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    private_evaluation: PrivateEvaluation | None = None
    noise: SiteNoise | None = None
    row_mu: float | None = None
    clip_norm: float | None = None
    min_persons: int | None = None
    site_ledger: Head | None = None
    asks_evaluation: bool = False

    def to_json(self) -> bytes:
        """As an answer's body."""
        model, asked, noise, head = self.model, self.private_evaluation, self.noise, self.site_ledger
        return _written(
            state=self.state.value,
            reason=self.reason,
            round_id=self.round_id,
            scope={
                "federation_id": self.scope.federation_id,
                "budget_period": self.scope.budget_period,
                "run": str(self.scope.run),
            },
            vector_dim=self.vector_dim,
            unit=self.unit,
            accounting=self.accounting.value,
            model=None if model is None else vars(model),
            closes_in_seconds=self.closes_in_seconds,
            meta_parameters={name: list(ends) for name, ends in self.meta_parameters.items()},
            private_evaluation=None
            if asked is None
            else {
                "metrics": {name: list(ends) for name, ends in asked.metrics.items()},
                "max_examples": asked.max_examples,
            },
            noise=None if noise is None else vars(noise),
            row_mu=self.row_mu,
            clip_norm=self.clip_norm,
            min_persons=self.min_persons,
            site_ledger=None if head is None else {"num_rows": head.num_rows, "head": head.head.hex()},
            asks_evaluation=self.asks_evaluation,
        )

    @classmethod
    def from_json(cls, data: bytes) -> RoundAnswer:
        """Read what `to_json` gave; raises `MessageRefused`."""
        given = _Fields("round", data)
        scope = given.inner("scope")
        return given.end(
            cls(
                given.one_of("state", RoundState),
                given.text("reason"),
                given.count("round_id"),
                scope.end(
                    SigningScope(
                        scope.text("federation_id"), scope.count("budget_period"), scope.digits("run")
                    )
                ),
                given.count("vector_dim"),
                given.text("unit"),
                given.one_of("accounting", Accounting),
                given.maybe("model", lambda name: _model_facts(given.inner(name))),
                given.maybe("closes_in_seconds", given.number),
                given.ranges("meta_parameters"),
                given.maybe("private_evaluation", lambda name: _evaluation(given.inner(name))),
                given.maybe("noise", lambda name: _site_noise(given.inner(name))),
                given.maybe("row_mu", given.number),
                given.maybe("clip_norm", given.number),
                given.maybe("min_persons", given.count),
                given.maybe("site_ledger", lambda name: _head(given.inner(name))),
                given.flag("asks_evaluation"),
            )
        )


@dataclass(frozen=True)
class UpdateHeader:
    """What an update says of itself.

    Attributes:
        client_id: Whose.
        round_id: Of which round's model.
        sequence: The client's own number for it, unique within the round.
        num_examples: Behind it; persons (records) where these are the unit.
        meta: Values of meta-parameters; None: no report.
        signature: Of `sign_update`, 64 bytes.
        metrics: Of the training; outside the privacy claim.
        site_ledger: What the client's own ledger tells the accountant; None: it keeps none.
    """

    client_id: str
    round_id: int
    sequence: int
    num_examples: int
    meta: Mapping[str, float] | None
    signature: bytes
    metrics: Mapping[str, float] = field(default_factory=dict)
    site_ledger: Extension | None = None

    def statement(self, scope: SigningScope, row: FloatVector) -> UpdateStatement:
        """What the signature is over, with the row (d,) that was sent."""
        return UpdateStatement(
            scope=scope,
            round_id=self.round_id,
            client_id=self.client_id,
            digest=content_digest(row),
            shape=row.shape,
            sequence=self.sequence,
            num_examples=self.num_examples,
            report=None if self.meta is None else canonical_report(self.meta),
        )


def update_body(header: UpdateHeader, row: FloatVector) -> bytes:
    """The body of an upload, the same bytes for the same arguments.

    Args:
        row: (d,), sent as float32.

    Raises:
        UsageError: If the header is above `MOST_HEADER_BYTES`.
    """
    told = header.site_ledger
    if told is not None:
        told = Extension(told.since, told.links[:MOST_TOLD_LINKS])
    head = _written(
        client_id=header.client_id,
        round_id=header.round_id,
        sequence=header.sequence,
        num_examples=header.num_examples,
        meta=None if header.meta is None else dict(sorted(header.meta.items())),
        signature=header.signature.hex(),
        metrics=dict(sorted(header.metrics.items())),
        site_ledger=None
        if told is None
        else {"since": told.since, "links": [link.hex() for link in told.links]},
    )
    if len(head) > MOST_HEADER_BYTES:
        raise UsageError(
            f"an update's header of {len(head)} bytes is not accepted; {MOST_HEADER_BYTES} at most"
        )
    return struct.pack("<I", len(head)) + head + np.ascontiguousarray(row, "<f4").tobytes()


def update_name(body: bytes | memoryview) -> str:
    """The name under which an upload is sent at once: SHA-256 of its head, hexadecimal."""
    return hashlib.sha256(memoryview(body)[: 4 + _head_length(body)]).hexdigest()


def is_named(body: bytes | memoryview, name: str) -> bool:
    """Whether an upload has this name: of its head or, as older clients say and parts do, of all of it.

    Raises:
        MessageRefused: If it has no head.
    """
    return hmac.compare_digest(update_name(body), name) or hmac.compare_digest(digest_of(body), name)


def _head_length(body: bytes | memoryview) -> int:
    if len(body) < 4:
        raise MessageRefused("torn", "it ends within its header's length")
    (length,) = struct.unpack_from("<I", body)
    if length > MOST_HEADER_BYTES:
        raise MessageRefused("foreign", f"its header of {length} bytes is longer than {MOST_HEADER_BYTES}")
    if len(body) < 4 + length:
        raise MessageRefused("torn", "it ends within its header")
    return int(length)


def read_update_body(body: bytes | memoryview, vector_dim: int) -> tuple[UpdateHeader, FloatVector]:
    """Header and row (d,) of an upload; the row may be not finite, which the basket judges.

    The row is a view of the body's memory, perhaps not aligned.

    Raises:
        MessageRefused: If it is none.
    """
    length = _head_length(body)
    given = _Fields("update header", bytes(body[4 : 4 + length]))
    header = given.end(
        UpdateHeader(
            given.text("client_id"),
            given.count("round_id"),
            given.count("sequence"),
            given.count("num_examples"),
            given.maybe("meta", given.numbers),
            given.hexadecimal("signature", SIGNATURE_BYTES),
            given.numbers("metrics"),
            given.maybe("site_ledger", lambda name: _extension(given.inner(name))),
        )
    )
    size = len(body) - 4 - length
    if size != 4 * vector_dim:
        raise MessageRefused(
            "foreign", f"its row has {size} bytes, and {vector_dim} float32 have {4 * vector_dim}"
        )
    return header, np.frombuffer(body, "<f4", offset=4 + length).astype(np.float32, copy=False)


@dataclass(frozen=True)
class UpdateAnswer:
    """That an update is counted: after the basket's journal has it.

    Attributes:
        receipt: `SignedReceipt.to_text`; None where the federation gives none.
    """

    client_id: str
    round_id: int
    sequence: int
    basket_id: str
    receipt: str | None = None

    def fault(self, body: bytes, federation_id: str, run: int) -> str:
        """Why it cannot be the answer to an upload; empty if it can.

        The receipt must be signed by the key that it names, and open to the row. Whether that key is its
        basket's shows the signature of the whole answer (`is_answer`), and later the rosters
        (`audit_receipt`).

        Args:
            body: The upload, as `update_body` gave it.
            run: Of the scope that the update was signed in.
        """
        header, row = read_update_body(body, (len(body) - 4 - _head_length(body)) // 4)
        sent = header.client_id, header.round_id, header.sequence
        if (self.client_id, self.round_id, self.sequence) != sent:
            return (
                f"it is of client {shown(self.client_id)}, round {self.round_id}, sequence {self.sequence}, "
                f"and {sent[0]!r}, {sent[1]}, {sent[2]} was sent"
            )
        if self.receipt is None:
            return ""
        try:
            receipt = SignedReceipt.from_text(self.receipt)
        except UsageError as error:
            return f"its receipt: {error}"
        if why := receipt.refusal():
            return f"its receipt: {why}"
        said = receipt.statement
        if (said.federation_id, said.run) != (federation_id, run):
            return "its receipt is of another federation, or another run of it"
        if (said.client_id, said.round_id, said.basket_id) != (*sent[:2], self.basket_id):
            return "its receipt is of another update"
        if receipt.digest != content_digest(row):
            return "its receipt is of another row"
        return ""

    def to_json(self) -> bytes:
        """As an answer's body."""
        return _written(**vars(self))

    @classmethod
    def from_json(cls, data: bytes) -> UpdateAnswer:
        """Read what `to_json` gave; raises `MessageRefused`."""
        given = _Fields("update's answer", data)
        return given.end(
            cls(
                given.text("client_id"),
                given.count("round_id"),
                given.count("sequence"),
                given.text("basket_id"),
                given.maybe("receipt", lambda name: given.text(name, MOST_RECEIPT)),
            )
        )


@dataclass(frozen=True)
class EvaluationRequest:
    """A client's metrics of a model on its own data, and on how many examples; outside the privacy claim."""

    metrics: Mapping[str, float]
    num_examples: int

    def to_json(self) -> bytes:
        """As a request's body."""
        return _written(metrics=dict(sorted(self.metrics.items())), num_examples=self.num_examples)

    @classmethod
    def from_json(cls, data: bytes) -> EvaluationRequest:
        """Read what `to_json` gave; raises `MessageRefused`."""
        given = _Fields("evaluation", data)
        return given.end(cls(given.numbers("metrics"), given.count("num_examples")))


@dataclass(frozen=True)
class RoundFate:
    """What became of a client's update in a round: ``accepted``, or why not."""

    round_id: int
    fate: str


@dataclass(frozen=True)
class MeAnswer:
    """What a gateway knows of the client that asks.

    Attributes:
        certificate_expires: Unix seconds; None where TLS ends at a proxy.
        epsilon_left: Of the federation's budget, at `delta`; None: it claims nothing.
        ceiling: Epsilon of the client's own policy; None: it has none.
        last_rounds: Oldest first.
    """

    client_id: str
    domain_id: str
    basket_id: str | None
    certificate_expires: int | None
    epsilon_left: float | None
    delta: float | None
    ceiling: float | None = None
    last_rounds: tuple[RoundFate, ...] = ()

    def to_json(self) -> bytes:
        """As an answer's body."""
        return _written(**{**vars(self), "last_rounds": [vars(one) for one in self.last_rounds]})

    @classmethod
    def from_json(cls, data: bytes) -> MeAnswer:
        """Read what `to_json` gave; raises `MessageRefused`."""
        given = _Fields("client's state", data)
        rounds = given.inners("last_rounds")
        return given.end(
            cls(
                given.text("client_id"),
                given.text("domain_id"),
                given.maybe("basket_id", given.text),
                given.maybe("certificate_expires", given.count),
                given.maybe("epsilon_left", given.number),
                given.maybe("delta", given.number),
                given.maybe("ceiling", given.number),
                tuple(one.end(RoundFate(one.count("round_id"), one.text("fate"))) for one in rounds),
            )
        )


@dataclass(frozen=True)
class EnrolRequest:
    """A site's first request, in place of a signed one.

    Attributes:
        token: Of its kit, for this client, once.
        public_key: The Ed25519 key that signs from now on, 32 bytes.
        proof: That the site holds it: its signature of `message`.
        csr: PEM, of the key that TLS will use.
        num_examples: That it trains on; None: it does not say.
        policy: `SignedPolicy.to_text`, its ceiling; None: it has none.
    """

    token: str = field(repr=False)
    client_id: str
    public_key: bytes
    proof: bytes
    csr: str
    num_examples: int | None = None
    policy: str | None = None

    @classmethod
    def signed(
        cls,
        identity: IdentityKeyPair,
        token: str,
        client_id: str,
        csr: str,
        num_examples: int | None = None,
        policy: str | None = None,
    ) -> EnrolRequest:
        """The request with its proof."""
        draft = cls(token, client_id, identity.public_bytes, b"", csr, num_examples, policy)
        return cls(
            token, client_id, identity.public_bytes, identity.sign(draft.message), csr, num_examples, policy
        )

    @property
    def message(self) -> bytes:
        """What the proof signs."""
        hashed = [
            hashlib.sha256(text.encode()).hexdigest() for text in (self.token, self.csr, self.policy or "")
        ]
        return _message("enrol", [self.client_id, self.public_key.hex(), self.num_examples, *hashed])

    @property
    def is_valid(self) -> bool:
        """Whether the holder of the key has signed it."""
        return IdentityKeyPair.verify_with(self.public_key, self.message, self.proof)

    def to_json(self) -> bytes:
        """As a request's body."""
        return _written(**{**vars(self), "public_key": self.public_key.hex(), "proof": self.proof.hex()})

    @classmethod
    def from_json(cls, data: bytes) -> EnrolRequest:
        """Read what `to_json` gave; raises `MessageRefused`."""
        given = _Fields("enrolment", data)
        return given.end(
            cls(
                given.text("token"),
                given.text("client_id"),
                given.hexadecimal("public_key", PUBLIC_BYTES),
                given.hexadecimal("proof", SIGNATURE_BYTES),
                given.text("csr", MOST_PEM),
                given.maybe("num_examples", given.count),
                given.maybe("policy", lambda name: given.text(name, MOST_PEM)),
            )
        )


@dataclass(frozen=True)
class EnrolAnswer:
    """The client's certificate (PEM), its domain, and the federation that it is enrolled with."""

    certificate: str
    federation_id: str
    domain_id: str

    def to_json(self) -> bytes:
        """As an answer's body."""
        return _written(**vars(self))

    @classmethod
    def from_json(cls, data: bytes) -> EnrolAnswer:
        """Read what `to_json` gave; raises `MessageRefused`."""
        given = _Fields("enrolment's answer", data)
        return given.end(
            cls(given.text("certificate", MOST_PEM), given.text("federation_id"), given.text("domain_id"))
        )


@dataclass(frozen=True)
class CertificateRequest:
    """A CSR (PEM), for a certificate in place of the one that is about to expire."""

    csr: str

    def to_json(self) -> bytes:
        """As a request's body."""
        return _written(csr=self.csr)

    @classmethod
    def from_json(cls, data: bytes) -> CertificateRequest:
        """Read what `to_json` gave; raises `MessageRefused`."""
        given = _Fields("certificate's request", data)
        return given.end(cls(given.text("csr", MOST_PEM)))


@dataclass(frozen=True)
class CertificateAnswer:
    """The new certificate (PEM)."""

    certificate: str

    def to_json(self) -> bytes:
        """As an answer's body."""
        return _written(certificate=self.certificate)

    @classmethod
    def from_json(cls, data: bytes) -> CertificateAnswer:
        """Read what `to_json` gave; raises `MessageRefused`."""
        given = _Fields("certificate", data)
        return given.end(cls(given.text("certificate", MOST_PEM)))


@dataclass(frozen=True)
class KeyRequest:
    """Another Ed25519 key for a client, signed by the old one and by itself; 204 answers it.

    Attributes:
        public_key: The new one, 32 bytes.
        proof_by_old: Signature of `message` by the key in force.
        proof_by_new: By the new one.
    """

    public_key: bytes
    proof_by_old: bytes
    proof_by_new: bytes

    @classmethod
    def signed(
        cls, old: IdentityKeyPair, new: IdentityKeyPair, federation_id: str, client_id: str
    ) -> KeyRequest:
        """The request with both proofs."""
        message = key_message(federation_id, client_id, old.public_bytes, new.public_bytes)
        return cls(new.public_bytes, old.sign(message), new.sign(message))

    def is_valid(self, old: bytes, federation_id: str, client_id: str) -> bool:
        """Whether the holders of both keys have signed it."""
        message = key_message(federation_id, client_id, old, self.public_key)
        return IdentityKeyPair.verify_with(old, message, self.proof_by_old) and IdentityKeyPair.verify_with(
            self.public_key, message, self.proof_by_new
        )

    def to_json(self) -> bytes:
        """As a request's body."""
        return _written(**{name: value.hex() for name, value in vars(self).items()})

    @classmethod
    def from_json(cls, data: bytes) -> KeyRequest:
        """Read what `to_json` gave; raises `MessageRefused`."""
        given = _Fields("key's request", data)
        return given.end(
            cls(
                given.hexadecimal("public_key", PUBLIC_BYTES),
                given.hexadecimal("proof_by_old", SIGNATURE_BYTES),
                given.hexadecimal("proof_by_new", SIGNATURE_BYTES),
            )
        )


def key_message(federation_id: str, client_id: str, old: bytes, new: bytes) -> bytes:
    """What both keys sign when one takes the other's place."""
    return _message("key", [federation_id, client_id, old.hex(), new.hex()])


@dataclass(frozen=True)
class SignedRequest:
    """Who sends a request, when, and its signature.

    Attributes:
        nonce: 32 hexadecimal digits, of this request alone.
        time_seconds: Unix seconds at the client.
        body_digest: SHA-256 of the body, hexadecimal; an update's name.
    """

    client_id: str
    nonce: str
    time_seconds: int
    signature: bytes
    body_digest: str = EMPTY_DIGEST

    @classmethod
    def signed(
        cls,
        identity: IdentityKeyPair,
        federation_id: str,
        method: str,
        target: str,
        client_id: str,
        time_seconds: float,
        body_digest: str = EMPTY_DIGEST,
    ) -> SignedRequest:
        """Sign one request under a nonce of its own.

        Args:
            target: Path with query, as it is sent.
        """
        draft = cls(client_id, secrets.token_hex(16), int(time_seconds), b"", body_digest)
        signature = identity.sign(draft._message(federation_id, method, target))
        return cls(client_id, draft.nonce, draft.time_seconds, signature, body_digest)

    def is_valid(self, public_key: bytes, federation_id: str, method: str, target: str) -> bool:
        """Whether the holder of the key has signed this request; time and nonce are the caller's to judge."""
        message = self._message(federation_id, method, target)
        return IdentityKeyPair.verify_with(public_key, message, self.signature)

    def occasion(self, federation_id: str, method: str, target: str) -> str:
        """What an answer names the request by: the SHA-256 of all that was signed, and of its signature."""
        return digest_of(self._message(federation_id, method, target) + self.signature)

    def headers(self) -> dict[str, str]:
        """As HTTP carries it."""
        found = {
            CLIENT: quote(self.client_id, safe=""),
            NONCE: self.nonce,
            TIME: str(self.time_seconds),
            SIGNATURE: base64.b64encode(self.signature).decode(),
        }
        return found if self.body_digest == EMPTY_DIGEST else {**found, BODY_DIGEST: self.body_digest}

    @classmethod
    def from_headers(cls, headers: Mapping[str, str]) -> SignedRequest:
        """Read what `headers` gave.

        Args:
            headers: By name, whose case the mapping ignores, as HTTP's mappings do.

        Raises:
            MessageRefused: If one is missing or malformed.
        """
        if missing := [name for name in (CLIENT, NONCE, TIME, SIGNATURE) if name not in headers]:
            raise MessageRefused("foreign", f"it lacks the header {missing[0]}")
        client_id = unquote(headers[CLIENT][: 12 * MOST_TEXT], errors="replace")
        is_named = 0 < len(client_id) <= MOST_TEXT and client_id.isprintable()
        nonce, seconds, digest = headers[NONCE], headers[TIME], headers.get(BODY_DIGEST, EMPTY_DIGEST)
        try:
            signature = base64.b64decode(headers[SIGNATURE], validate=True)
        except (binascii.Error, ValueError):
            signature = b""
        for name, fits in (
            (CLIENT, is_named and headers[CLIENT] == quote(client_id, safe="")),
            (NONCE, re.fullmatch("[0-9a-f]{32}", nonce)),
            (TIME, re.fullmatch("[0-9]{1,12}", seconds)),
            (BODY_DIGEST, is_digest(digest)),
            (SIGNATURE, len(signature) == SIGNATURE_BYTES),
        ):
            if not fits:
                raise MessageRefused("foreign", f"its header {name} is malformed")
        return cls(client_id, nonce, int(seconds), signature, digest)

    def clock_error(self, now_seconds: float) -> ErrorAnswer | None:
        """What to answer if the client's clock is off, with by how much; None if it is right."""
        off = self.time_seconds - now_seconds
        if abs(off) <= CLOCK_SECONDS:
            return None
        way = "ahead of" if off > 0 else "behind"
        said = f"this site's clock is {abs(off):.0f} s {way} the gateway's; set it"
        return ErrorAnswer(ErrorCode.CLOCK, said, gateway_seconds=now_seconds)

    def _message(self, federation_id: str, method: str, target: str) -> bytes:
        said = [
            federation_id,
            method,
            target,
            self.client_id,
            self.nonce,
            self.time_seconds,
            self.body_digest,
        ]
        return _message("request", said)


def sign_answer(identity: IdentityKeyPair, occasion: str, status: int, body: bytes) -> str:
    """What `ANSWER_SIGNATURE` holds of an answer.

    Args:
        occasion: `SignedRequest.occasion`; of an enrolment, which has none, its body's SHA-256.
    """
    signature = identity.sign(_message("answer", [occasion, status, digest_of(body)]))
    return base64.b64encode(signature).decode()


def is_answer(public_key: bytes, occasion: str, status: int, body: bytes, told: str) -> bool:
    """Whether the holder of the answer key has given this answer to this request."""
    try:
        signature = base64.b64decode(told, validate=True)
    except (binascii.Error, ValueError):
        return False
    message = _message("answer", [occasion, status, digest_of(body)])
    return IdentityKeyPair.verify_with(public_key, message, signature)


def is_digest(text: object) -> bool:
    """Whether it is a SHA-256 as paths and headers have it: 64 lower-case hexadecimal digits."""
    return isinstance(text, str) and re.fullmatch("[0-9a-f]{64}", text) is not None


def digest_of(data: bytes | memoryview) -> str:
    """A body's SHA-256 as paths and headers have it."""
    return hashlib.sha256(data).hexdigest()


class _Fields:
    """Reads one JSON object field by field; what is not as it must be is a `MessageRefused`."""

    def __init__(self, what: str, data: bytes | Mapping[str, object]) -> None:
        self._what = what
        given = self._parsed(data) if isinstance(data, bytes) else data
        self._left = dict(given)

    def _parsed(self, data: bytes) -> dict[str, object]:
        if len(data) > MOST_JSON_BYTES:
            raise MessageRefused("foreign", f"it has {len(data)} bytes, and {MOST_JSON_BYTES} are read")
        try:
            given = json.loads(data.decode(), parse_constant=_no_constant)
        except (ValueError, RecursionError):
            raise MessageRefused("foreign", f"it is no JSON of a {self._what}") from None
        if not isinstance(given, dict):
            raise MessageRefused("foreign", f"it is no JSON object of a {self._what}")
        version = given.pop("version", None)
        if type(version) is int and version > VERSION:
            said = (
                f"the {self._what} is of version {version}, and this release reads {VERSION}: use a newer one"
            )
            raise MessageRefused("newer", said)
        if type(version) is not int or version != VERSION:
            raise MessageRefused("foreign", f"the {self._what} has the version {shown(version)}")
        return given

    def text(self, name: str, most: int = MOST_TEXT) -> str:
        value = self._take(name)
        if not isinstance(value, str) or len(value) > most or not is_text(value):
            raise self._wrong(name, value, f"a text of at most {most} characters")
        return value

    def count(self, name: str) -> int:
        value = self._take(name)
        if type(value) is not int or not 0 <= value <= GREATEST:
            raise self._wrong(name, value, "a whole number from 0 to 2^64 - 1")
        return value

    def digits(self, name: str) -> int:
        text = self.text(name)
        if re.fullmatch("[0-9]{1,20}", text) is None or int(text) > GREATEST:
            raise self._wrong(name, text, "a whole number from 0 to 2^64 - 1 as text")
        return int(text)

    def flag(self, name: str) -> bool:
        value = self._take(name)
        if type(value) is not bool:
            raise self._wrong(name, value, "true or false")
        return value

    def number(self, name: str) -> float:
        return self._number(name, self._take(name))

    def numbers(self, name: str) -> dict[str, float]:
        return {key: self._number(name, value) for key, value in self._mapping(name).items()}

    def ranges(self, name: str) -> dict[str, tuple[float, float]]:
        found = {}
        for key, ends in self._mapping(name).items():
            if not isinstance(ends, list) or len(ends) != 2:
                raise self._wrong(name, ends, "a least and a greatest value by name")
            found[key] = self._number(name, ends[0]), self._number(name, ends[1])
        return found

    def hexadecimal(self, name: str, length: int) -> bytes:
        return self._bytes(name, self._take(name), length)

    def hexadecimals(self, name: str, length: int, most: int) -> tuple[bytes, ...]:
        value = self._take(name)
        if not isinstance(value, list) or len(value) > most:
            raise self._wrong(name, value, f"a list of at most {most}")
        return tuple(self._bytes(name, one, length) for one in value)

    def one_of(self, name: str, kind: Callable[[str], T]) -> T:
        text = self.text(name)
        try:
            return kind(text)
        except ValueError:
            raise self._wrong(name, text, "one that this release knows") from None

    def inner(self, name: str) -> _Fields:
        return _Fields(f"{self._what}'s {name}", self._mapping(name))

    def inners(self, name: str) -> list[_Fields]:
        value = self._take(name)
        if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
            raise self._wrong(name, value, "a list of objects")
        return [_Fields(f"{self._what}'s {name}", one) for one in value]

    def maybe(self, name: str, read: Callable[[str], T]) -> T | None:
        if self._left.get(name, self) is None:
            del self._left[name]
            return None
        return read(name)

    def end(self, made: T) -> T:
        """What was made of the fields, if they were all read."""
        if self._left:
            raise MessageRefused("foreign", f"the {self._what} has an unknown {shown(min(self._left))}")
        return made

    def _take(self, name: str) -> object:
        if name not in self._left:
            raise MessageRefused("torn", f"the {self._what} has no {name}")
        return self._left.pop(name)

    def _mapping(self, name: str) -> Mapping[str, object]:
        value = self._take(name)
        if not isinstance(value, dict) or len(value) > MOST_METRICS or not all(map(is_text, value)):
            raise self._wrong(name, value, f"an object of at most {MOST_METRICS} names")
        return value

    def _number(self, name: str, value: object) -> float:
        if type(value) is float and math.isfinite(value):
            return value
        if type(value) is int and abs(value) <= GREATEST:
            return float(value)
        raise self._wrong(name, value, "a finite number")

    def _bytes(self, name: str, value: object, length: int) -> bytes:
        if not isinstance(value, str) or re.fullmatch(f"[0-9a-f]{{{2 * length}}}", value) is None:
            raise self._wrong(name, value, f"{2 * length} hexadecimal digits")
        return bytes.fromhex(value)

    def _wrong(self, name: str, value: object, accepted: str) -> MessageRefused:
        said = f"the {self._what}'s {name}: {shown(value)} is not accepted; {accepted}"
        return MessageRefused("foreign", said)


def _model_facts(given: _Fields) -> ModelFacts:
    return given.end(
        ModelFacts(
            given.count("version"),
            given.count("round_id"),
            given.hexadecimal("sha256", 32).hex(),
            given.count("num_bytes"),
        )
    )


def _site_noise(given: _Fields) -> SiteNoise:
    told = (
        given.number("mu"),
        given.number("clip_norm"),
        given.count("min_persons"),
        given.count("dimension"),
        given.flag("is_discrete"),
    )
    try:
        return given.end(SiteNoise(*told))
    except UsageError as error:
        raise MessageRefused("foreign", f"the round's noise: {error}") from None


def _evaluation(given: _Fields) -> PrivateEvaluation:
    metrics, most = given.ranges("metrics"), given.count("max_examples")
    try:
        return given.end(PrivateEvaluation(metrics, most))
    except UsageError as error:
        raise MessageRefused("foreign", f"the round's private_evaluation: {error}") from None


def _head(given: _Fields) -> Head:
    return given.end(Head(given.count("num_rows"), given.hexadecimal("head", HASH_BYTES)))


def _extension(given: _Fields) -> Extension:
    links = given.hexadecimals("links", HASH_BYTES, MOST_TOLD_LINKS)
    return given.end(Extension(given.count("since"), links))


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number")


def _written(**content: object) -> bytes:
    return json.dumps({"version": VERSION, **content}, separators=(",", ":"), allow_nan=False).encode()


def _message(what: str, content: list[object]) -> bytes:
    return f"scarcity_ray/{what}/1\n{json.dumps(content, separators=(',', ':'))}".encode()
