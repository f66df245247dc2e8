"""Why a gateway refuses, and whether it is worth another try."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from scarcity_ray_client.wire.fields import MOST_RECEIPT, Fields, written


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
        return written(
            error=self.code.value,
            message=self.message,
            retry_after_seconds=self.retry_after_seconds,
            gateway_seconds=self.gateway_seconds,
        )

    @classmethod
    def from_json(cls, data: bytes) -> ErrorAnswer:
        """Read what `to_json` gave; raises `MessageRefused`."""
        given = Fields("error", data)
        return given.end(
            cls(
                given.one_of("error", ErrorCode),
                given.text("message", MOST_RECEIPT),
                given.maybe("retry_after_seconds", given.number),
                given.maybe("gateway_seconds", given.number),
            )
        )
