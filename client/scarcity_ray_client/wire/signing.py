"""Signatures of requests, each for itself, and of the answers to them."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote, unquote

from scarcity_ray_client.errors import MessageRefused
from scarcity_ray_client.identity import SIGNATURE_BYTES, IdentityKeyPair
from scarcity_ray_client.wire.fields import MOST_TEXT, message_of
from scarcity_ray_client.wire.refusals import ErrorAnswer, ErrorCode

CLOCK_SECONDS = 300
"""By which a client's clock may differ from the gateway's."""
CLIENT, NONCE, TIME, SIGNATURE = (f"Scarcity-{name}" for name in ("Client", "Nonce", "Time", "Signature"))
BODY_DIGEST = "Scarcity-Body-Digest"
"""SHA-256 of this request's body, or of an update's head, hexadecimal: sent wherever there is a body, so that
the signature can be checked before the body is read."""
ANSWER_SIGNATURE = "Scarcity-Answer-Signature"
EMPTY_DIGEST = hashlib.sha256(b"").hexdigest()


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
        return message_of("request", said)


def sign_answer(identity: IdentityKeyPair, occasion: str, status: int, body: bytes) -> str:
    """What `ANSWER_SIGNATURE` holds of an answer.

    Args:
        occasion: `SignedRequest.occasion`; of an enrolment, which has none, its body's SHA-256.
    """
    signature = identity.sign(message_of("answer", [occasion, status, digest_of(body)]))
    return base64.b64encode(signature).decode()


def is_answer(public_key: bytes, occasion: str, status: int, body: bytes, told: str) -> bool:
    """Whether the holder of the answer key has given this answer to this request."""
    try:
        signature = base64.b64decode(told, validate=True)
    except (binascii.Error, ValueError):
        return False
    message = message_of("answer", [occasion, status, digest_of(body)])
    return IdentityKeyPair.verify_with(public_key, message, signature)


def is_digest(text: object) -> bool:
    """Whether it is a SHA-256 as paths and headers have it: 64 lower-case hexadecimal digits."""
    return isinstance(text, str) and re.fullmatch("[0-9a-f]{64}", text) is not None


def digest_of(data: bytes | memoryview) -> str:
    """A body's SHA-256 as paths and headers have it."""
    return hashlib.sha256(data).hexdigest()
