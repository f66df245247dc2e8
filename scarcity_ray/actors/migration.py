"""Migration of clients between basket actors, in sealed boxes that the carrying driver cannot read.

A client's state holds its raw updates. The actor that it leaves seals the state to the key of another actor
(X25519, HKDF, AES-256-GCM). That key must have a tag under the federation's actors' key, which drivers give
to the basket actors that they start, and to no other role.

Guarantees:
    Only the actor that a box is sealed to can open it, for the client, basket and operation that it was made
        for.
    A key without its tag is refused.
    A box holds known plain data types alone; nothing in it is executed.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scarcity_ray.baskets.basket import Basket, ClientMigration
from scarcity_ray.baskets.reputation import Reputation
from scarcity_ray.baskets.update_buffer import BufferedUpdate, ClientUpdates, ReplayKey
from scarcity_ray.errors import ProtocolViolation
from scarcity_ray.gossip import GossipMessage, GossipMigration, GossipState
from scarcity_ray.secagg.key_agreement import (
    KEY_BYTES,
    agree,
    derive_key,
    private_key_from,
    public_key_of,
    seal,
    unseal,
)
from scarcity_ray.secagg.transcript import encode
from scarcity_ray.storage.codec import Codec

_codec = Codec(
    ClientMigration,
    ClientUpdates,
    BufferedUpdate,
    ReplayKey,
    GossipMigration,
    GossipState,
    GossipMessage,
    Reputation,
)


@dataclass(frozen=True)
class ActorKey:
    """The public half of an actor's key, 32 bytes, with the tag that proves that it is an actor's."""

    public: bytes
    tag: bytes


@dataclass(frozen=True, eq=False)
class SealedBox:
    """One client's state as ciphertext, with the public half of the key that it was sealed with."""

    client_id: str
    public: bytes
    sealed: bytes


class MigrationDesk:
    """One actor's side of the migrations of an operation.

    Calls may be repeated: the state of clients that left is kept until the basket closes, in case a box or
    its addressee is lost; a client that arrived is added once.

    Args:
        actors_key: Shared by all basket actors of the federation, 32 bytes.

    Attributes:
        key: Boxes for this actor are sealed to it.
        arrived: Clients that have arrived in this operation.
    """

    def __init__(self, actors_key: bytes) -> None:
        self._actors_key = actors_key
        self._private = private_key_from(os.urandom(KEY_BYTES))
        public = public_key_of(self._private)
        self.key = ActorKey(public, self._tag(public))
        self._left: dict[str, ClientMigration] = {}
        self.arrived: set[str] = set()

    def begin(self) -> None:
        """Forget the operation before this one."""
        self._left.clear()
        self.arrived.clear()

    def forget_left(self) -> None:
        """Forget the clients that left: their basket is closed."""
        self._left.clear()

    def take(
        self, basket: Basket | None, homes: Mapping[str, tuple[str, ActorKey]], operation_id: str
    ) -> tuple[SealedBox, ...]:
        """Seal the states of clients that move.

        Args:
            basket: The basket that they leave; None once it is closed.
            homes: The basket that each moves to, and the key of the actor there.

        Raises:
            ProtocolViolation: If a key is no actor's.
        """
        if basket is not None:
            self._left |= {c: basket.take(c) for c in homes if c in basket.members}
        return tuple(
            self.seal(self._left[client_id], home, operation_id, key)
            for client_id, (home, key) in sorted(homes.items())
            if client_id in self._left
        )

    def put(
        self, baskets: Mapping[str, Basket], basket_id: str, boxes: Sequence[SealedBox], operation_id: str
    ) -> bool:
        """Add the states of clients that move to a basket; whether all boxes could be opened."""
        opened = True
        for box in boxes:
            if box.client_id not in self.arrived:
                moved = self.open(box, basket_id, operation_id)
                opened = opened and moved is not None
                if moved is not None:
                    baskets[basket_id].put(moved)
                    self.arrived.add(box.client_id)
        return opened

    def seal(self, moved: ClientMigration, basket_id: str, operation_id: str, to: ActorKey) -> SealedBox:
        """Seal a client's state for the actor of its new basket.

        Raises:
            ProtocolViolation: If the key is not that of an actor of this federation.
        """
        if not hmac.compare_digest(to.tag, self._tag(to.public)):
            raise ProtocolViolation("what belongs to a client is sealed to this federation's actors only")
        private = private_key_from(os.urandom(KEY_BYTES))
        public = public_key_of(private)
        bound = encode("parcel", moved.client_id, basket_id, operation_id, public, to.public)
        key = derive_key(agree(private, to.public), "parcel", bound)
        return SealedBox(moved.client_id, public, seal(key, packed(moved), bound))

    def open(self, box: SealedBox, basket_id: str, operation_id: str) -> ClientMigration | None:
        """The content of a box; None if it was made for another actor, basket or operation, or changed."""
        bound = encode("parcel", box.client_id, basket_id, operation_id, box.public, self.key.public)
        key = derive_key(agree(self._private, box.public), "parcel", bound)
        plain = unseal(key, box.sealed, bound)
        return None if plain is None else unpacked(plain)

    def _tag(self, public: bytes) -> bytes:
        return hmac.digest(self._actors_key, encode("actor", public), "sha256")


def packed(moved: ClientMigration) -> bytes:
    """A migration as bytes."""
    return _codec.pack(moved)


def unpacked(plain: bytes) -> ClientMigration:
    """The migration of which `packed` made these bytes."""
    moved = _codec.unpack(plain)
    if not isinstance(moved, ClientMigration):
        raise ProtocolViolation(f"a box of a client's belongings holds a {type(moved).__name__}")
    return moved
