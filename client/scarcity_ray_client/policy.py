"""A client's ceiling: the most privacy loss that it accepts from one federation, signed with its own key.

The federation keeps a signed policy in its ledger and leaves the client out before a release, a message or a
row would pass it (docs/ceilings.md). Whoever runs the federation can neither forge a policy nor loosen one.

Guarantees:
    a_policy_that_is_changed_or_forged_is_refused: In any field, or with another key.
    a_policy_is_read_back_from_its_text
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from scarcity_ray_client.arguments import number_of
from scarcity_ray_client.errors import UsageError, shown
from scarcity_ray_client.identity import PUBLIC_BYTES, SIGNATURE_BYTES, IdentityKeyPair

UNITS = ("client", "person", "record")
MAGIC = "scarcity_ray/policy/1"
"""Begins a policy's message; the number is the format's version."""


@dataclass(frozen=True)
class Policy:
    """What a client accepts: `lifetime_epsilon` at `delta` at most, over all budget periods of a federation.

    Attributes:
        unit: Whom it protects: ``client``, ``person`` or ``record``, as the federation's ``privacy.unit``.
        federation_id: The one federation that it is for; empty: any that the client registers with.
        is_newcomer: Whether the client says that it took no part in this federation before it gave its first
            policy. If not, all that the ledger has charged by then counts as its own, since the ledger does
            not know who took part in what.

    Raises:
        UsageError: For a value that no policy can have.
    """

    client_id: str
    unit: str
    lifetime_epsilon: float
    delta: float
    federation_id: str = ""
    is_newcomer: bool = False

    def __post_init__(self) -> None:
        for name in ("client_id", "federation_id"):
            text = getattr(self, name)
            if not isinstance(text, str) or not text.isprintable() or (name == "client_id" and not text):
                raise UsageError(f"policy: {name}: {shown(text)} is not accepted; a printable text")
        if self.unit not in UNITS:
            raise UsageError(f"policy: unit: {shown(self.unit)} is not accepted; one of {', '.join(UNITS)}")
        for name, most in (("lifetime_epsilon", 1e300), ("delta", 1.0)):
            number = number_of(f"policy: {name}", getattr(self, name))
            if not 0.0 < number < most:
                raise UsageError(f"policy: {name}: {number!r} is not accepted; above 0 and below {most:g}")
            object.__setattr__(self, name, number)
        if not isinstance(self.is_newcomer, bool):
            raise UsageError(f"policy: is_newcomer: {shown(self.is_newcomer)} is not accepted; a bool")

    def encode(self) -> bytes:
        r"""The bytes that the client signs.

        >>> Policy("ann", "person", 3.0, 0.25).encode()
        b'scarcity_ray/policy/1\n["ann","person","0x1.8000000000000p+1","0x1.0000000000000p-2","",false]'
        """
        content = [
            self.client_id,
            self.unit,
            self.lifetime_epsilon.hex(),
            self.delta.hex(),
            self.federation_id,
            self.is_newcomer,
        ]
        return f"{MAGIC}\n{json.dumps(content, separators=(',', ':'))}".encode()

    @classmethod
    def decode(cls, message: str) -> Policy:
        """The policy that `encode` wrote.

        Raises:
            UsageError: If it is none, or of a newer format.
        """
        magic, _, content = message.partition("\n")
        if magic != MAGIC:
            raise UsageError(f"this is no policy, or of a newer format: {shown(magic)}")
        try:
            client_id, unit, epsilon, delta, federation_id, is_newcomer = json.loads(content)
            return cls(
                client_id, unit, float.fromhex(epsilon), float.fromhex(delta), federation_id, is_newcomer
            )
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise UsageError(f"this is no policy: {error!r:.150}") from None

    def signed(self, identity: IdentityKeyPair) -> SignedPolicy:
        """The policy with the client's signature."""
        return SignedPolicy(self, identity.public_bytes, identity.sign(self.encode()))

    def loosens(self, other: Policy) -> bool:
        """Whether it allows what `other` does not: a greater epsilon or delta, or another unit."""
        greater = self.lifetime_epsilon > other.lifetime_epsilon or self.delta > other.delta
        return greater or self.unit != other.unit


@dataclass(frozen=True)
class SignedPolicy:
    """A policy, the client's Ed25519 public key (32 bytes), and its signature (64 bytes)."""

    policy: Policy
    public_key: bytes
    signature: bytes

    @property
    def is_valid(self) -> bool:
        """Whether the holder of the key has signed this policy."""
        sized = ((self.public_key, PUBLIC_BYTES), (self.signature, SIGNATURE_BYTES))
        whole = all(isinstance(part, bytes) and len(part) == size for part, size in sized)
        return whole and IdentityKeyPair.verify_with(self.public_key, self.policy.encode(), self.signature)

    def to_text(self) -> str:
        """As text, for a file or a message."""
        return json.dumps(
            {
                "policy": self.policy.encode().decode(),
                "public_key": self.public_key.hex(),
                "signature": self.signature.hex(),
            }
        )

    @classmethod
    def from_text(cls, text: str) -> SignedPolicy:
        """Read what `to_text` gave.

        Raises:
            UsageError: If it is no signed policy, or the signature is not the key's.
        """
        try:
            given = json.loads(text)
            policy = Policy.decode(given["policy"])
            key, signature = bytes.fromhex(given["public_key"]), bytes.fromhex(given["signature"])
        except (LookupError, TypeError, AttributeError, ValueError, RecursionError) as error:
            raise UsageError(f"this is no signed policy: {error!r:.150}") from None
        read = cls(policy, key, signature)
        if not read.is_valid:
            raise UsageError(f"the policy of {shown(policy.client_id)} is not signed by its key")
        return read
