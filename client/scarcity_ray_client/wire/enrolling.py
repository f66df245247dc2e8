"""Enrolment, and the certificate and key that a site has afterwards."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from scarcity_ray_client.identity import PUBLIC_BYTES, SIGNATURE_BYTES, IdentityKeyPair
from scarcity_ray_client.wire.fields import Fields, message_of, written

MOST_PEM = 16 * 1024


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
        return message_of("enrol", [self.client_id, self.public_key.hex(), self.num_examples, *hashed])

    @property
    def is_valid(self) -> bool:
        """Whether the holder of the key has signed it."""
        return IdentityKeyPair.verify_with(self.public_key, self.message, self.proof)

    def to_json(self) -> bytes:
        """As a request's body."""
        return written(**{**vars(self), "public_key": self.public_key.hex(), "proof": self.proof.hex()})

    @classmethod
    def from_json(cls, data: bytes) -> EnrolRequest:
        """Read what `to_json` gave; raises `MessageRefused`."""
        given = Fields("enrolment", data)
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
        return written(**vars(self))

    @classmethod
    def from_json(cls, data: bytes) -> EnrolAnswer:
        """Read what `to_json` gave; raises `MessageRefused`."""
        given = Fields("enrolment's answer", data)
        return given.end(
            cls(given.text("certificate", MOST_PEM), given.text("federation_id"), given.text("domain_id"))
        )


@dataclass(frozen=True)
class CertificateRequest:
    """A CSR (PEM), for a certificate in place of the one that is about to expire."""

    csr: str

    def to_json(self) -> bytes:
        """As a request's body."""
        return written(csr=self.csr)

    @classmethod
    def from_json(cls, data: bytes) -> CertificateRequest:
        """Read what `to_json` gave; raises `MessageRefused`."""
        given = Fields("certificate's request", data)
        return given.end(cls(given.text("csr", MOST_PEM)))


@dataclass(frozen=True)
class CertificateAnswer:
    """The new certificate (PEM)."""

    certificate: str

    def to_json(self) -> bytes:
        """As an answer's body."""
        return written(certificate=self.certificate)

    @classmethod
    def from_json(cls, data: bytes) -> CertificateAnswer:
        """Read what `to_json` gave; raises `MessageRefused`."""
        given = Fields("certificate", data)
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
        return written(**{name: value.hex() for name, value in vars(self).items()})

    @classmethod
    def from_json(cls, data: bytes) -> KeyRequest:
        """Read what `to_json` gave; raises `MessageRefused`."""
        given = Fields("key's request", data)
        return given.end(
            cls(
                given.hexadecimal("public_key", PUBLIC_BYTES),
                given.hexadecimal("proof_by_old", SIGNATURE_BYTES),
                given.hexadecimal("proof_by_new", SIGNATURE_BYTES),
            )
        )


def key_message(federation_id: str, client_id: str, old: bytes, new: bytes) -> bytes:
    """What both keys sign when one takes the other's place."""
    return message_of("key", [federation_id, client_id, old.hex(), new.hex()])
