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
since the parts lie on a disk meanwhile. Both are one slot of the gateways' register.

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

from scarcity_ray_client.wire.enrolling import (
    MOST_PEM,
    CertificateAnswer,
    CertificateRequest,
    EnrolAnswer,
    EnrolRequest,
    KeyRequest,
    key_message,
)
from scarcity_ray_client.wire.fields import MOST_JSON_BYTES, MOST_METRICS, MOST_RECEIPT, MOST_TEXT, VERSION
from scarcity_ray_client.wire.refusals import ErrorAnswer, ErrorCode
from scarcity_ray_client.wire.rounds import (
    MODEL_ROUND,
    MODEL_VERSION,
    EvaluationRequest,
    MeAnswer,
    ModelFacts,
    RoundAnswer,
    RoundFate,
    RoundState,
)
from scarcity_ray_client.wire.signing import (
    ANSWER_SIGNATURE,
    BODY_DIGEST,
    CLIENT,
    CLOCK_SECONDS,
    EMPTY_DIGEST,
    NONCE,
    SIGNATURE,
    TIME,
    SignedRequest,
    digest_of,
    is_answer,
    is_digest,
    sign_answer,
)
from scarcity_ray_client.wire.uploads import (
    MOST_HEADER_BYTES,
    MOST_TOLD_LINKS,
    RESUMABLE_BYTES,
    UPLOAD_LENGTH,
    UPLOAD_OFFSET,
    UpdateAnswer,
    UpdateHeader,
    is_named,
    read_update_body,
    update_body,
    update_name,
)

__all__ = [
    "ANSWER_SIGNATURE",
    "BODY_DIGEST",
    "CLIENT",
    "CLOCK_SECONDS",
    "EMPTY_DIGEST",
    "MODEL_ROUND",
    "MODEL_VERSION",
    "MOST_HEADER_BYTES",
    "MOST_JSON_BYTES",
    "MOST_METRICS",
    "MOST_PEM",
    "MOST_RECEIPT",
    "MOST_TEXT",
    "MOST_TOLD_LINKS",
    "NONCE",
    "RESUMABLE_BYTES",
    "SIGNATURE",
    "TIME",
    "UPLOAD_LENGTH",
    "UPLOAD_OFFSET",
    "VERSION",
    "CertificateAnswer",
    "CertificateRequest",
    "EnrolAnswer",
    "EnrolRequest",
    "ErrorAnswer",
    "ErrorCode",
    "EvaluationRequest",
    "KeyRequest",
    "MeAnswer",
    "ModelFacts",
    "RoundAnswer",
    "RoundFate",
    "RoundState",
    "SignedRequest",
    "UpdateAnswer",
    "UpdateHeader",
    "digest_of",
    "is_answer",
    "is_digest",
    "is_named",
    "key_message",
    "read_update_body",
    "sign_answer",
    "update_body",
    "update_name",
]
