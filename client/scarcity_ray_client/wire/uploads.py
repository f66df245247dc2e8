"""An update on its way: its header and row, its names, and the answer that it is counted."""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from scarcity_ray_client.errors import MessageRefused, UsageError, shown
from scarcity_ray_client.identity import SIGNATURE_BYTES
from scarcity_ray_client.models import FloatVector
from scarcity_ray_client.receipts import SignedReceipt
from scarcity_ray_client.site_ledger import HASH_BYTES, Extension
from scarcity_ray_client.updates import SigningScope, UpdateStatement
from scarcity_ray_client.updates.signing import canonical_report, content_digest
from scarcity_ray_client.wire.fields import MOST_RECEIPT, Fields, written
from scarcity_ray_client.wire.signing import digest_of

RESUMABLE_BYTES = 8 * 2**20
"""Larger bodies are sent by offsets, in parts of at most this size."""
MOST_HEADER_BYTES = 2**20
MOST_TOLD_LINKS = 1000
"""Rows of a site's ledger that one update tells of."""
UPLOAD_OFFSET, UPLOAD_LENGTH = "Upload-Offset", "Upload-Length"


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
    head = written(
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


def read_update_body(body: bytes | memoryview, vector_dim: int) -> tuple[UpdateHeader, FloatVector]:
    """Header and row (d,) of an upload; the row may be not finite, which the basket judges.

    The row is a view of the body's memory, perhaps not aligned.

    Raises:
        MessageRefused: If it is none.
    """
    length = _head_length(body)
    given = Fields("update header", bytes(body[4 : 4 + length]))
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
        return written(**vars(self))

    @classmethod
    def from_json(cls, data: bytes) -> UpdateAnswer:
        """Read what `to_json` gave; raises `MessageRefused`."""
        given = Fields("update's answer", data)
        return given.end(
            cls(
                given.text("client_id"),
                given.count("round_id"),
                given.count("sequence"),
                given.text("basket_id"),
                given.maybe("receipt", lambda name: given.text(name, MOST_RECEIPT)),
            )
        )


def _head_length(body: bytes | memoryview) -> int:
    if len(body) < 4:
        raise MessageRefused("torn", "it ends within its header's length")
    (length,) = struct.unpack_from("<I", body)
    if length > MOST_HEADER_BYTES:
        raise MessageRefused("foreign", f"its header of {length} bytes is longer than {MOST_HEADER_BYTES}")
    if len(body) < 4 + length:
        raise MessageRefused("torn", "it ends within its header")
    return int(length)


def _extension(given: Fields) -> Extension:
    links = given.hexadecimals("links", HASH_BYTES, MOST_TOLD_LINKS)
    return given.end(Extension(given.count("since"), links))
